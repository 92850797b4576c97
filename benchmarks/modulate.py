"""How much does CAM's modulation add to a network, and how fast is its operator beside torch.compile?

Forward and backward of 8192 rows of 256 channels through `modulate` with its ReLU, and of a network of NeRF's shape (8
layers of 256, octaves, skip connection) whose layers three planes of 64x64 cells modulate: as one operator, layer by
layer with `modulate` and with the composition of torch operators, compiled and not, and without modulation. Gates
first: results and gradients of the operator against float64, relative L2. Then all of one precision in turns, and what
the memory allows: a copy of as many bytes as both passes must read and write.

Prints one JSON object. Exits with 3 when other work runs (see `quiet.py`), with 1 when a gate is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Literal
from unittest import mock

import torch
from machine import facts
from quiet import Watch, accept, demand_quiet
from torch import Tensor

from polyfield.fields.networks import CoordinateNetwork, CoordinateNetworkConfig, coordinate
from polyfield.fields.ops.modulate import modulate, modulate_reference
from polyfield.fields.optim.memory import keep_freed_memory

ROWS, CHANNELS = 8192, 256
GATES = {"fp32": 1e-6, "bf16": 4e-3}
"""Relative L2; of bf16 a rounding to 2^-9, and of a gradient one more."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Modulate = Callable[..., Tensor]


def passes(f: Modulate, given: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """The result, and the gradients of `given`, given that of the result."""
    y = f(*given, relu=True)
    return [y, *torch.autograd.grad(y, given, gradient)]


def make_rows(dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """z, scales and shifts; a gradient of the result."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, CHANNELS), (ROWS,), (ROWS,), (ROWS, CHANNELS))
    wide = (torch.randn(*shape, generator=generator) for shape in shapes)
    *given, gradient = (t.to(dtype if t.dim() == 2 else torch.float32) for t in wide)
    return [t.requires_grad_() for t in given], gradient


def gate(precision: str) -> float:
    """The largest error."""
    given, gradient = make_rows(DTYPES[precision])
    exact = [t.detach().double().requires_grad_() for t in given]
    truth = passes(modulate_reference, exact, gradient.double())
    found = passes(modulate, given, gradient)
    with torch.no_grad():
        return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True))


def operators(precision: str) -> dict[str, Callable[[], object]]:
    given, gradient = make_rows(DTYPES[precision])
    compiled = torch.compile(modulate_reference, mode="max-autotune-no-cudagraphs")
    forms = {"modulate": modulate, "composed": modulate_reference, "torch.compile of the composed": compiled}
    runs: dict[str, Callable[[], object]] = {
        name: (lambda f=f: passes(f, given, gradient)) for name, f in forms.items()
    }
    # Forward reads z and writes y, backward reads z and a gradient and writes one: five times the rows.
    rows = given[0].detach().repeat(5, 1)[: 5 * ROWS // 2]
    return runs | {"copy of as many bytes": rows.clone}


def networks(precision: Literal["fp32", "bf16"]) -> dict[str, Callable[[], object]]:
    plain = CoordinateNetworkConfig(
        inputs=3, outputs=16, activation="relu", encoding="octaves", hidden_layers=8, skip=4
    )
    modulated = CoordinateNetworkConfig(**vars(plain) | {"modulation": 64, "modulated_by": "xyz"})
    x = torch.rand(ROWS, 3, generator=torch.Generator().manual_seed(0))
    without, network = (CoordinateNetwork(config, precision=precision) for config in (plain, modulated))
    compiled_without, compiled = torch.compile(without), torch.compile(network)

    def run(
        f: Callable[[Tensor], Tensor], of: CoordinateNetwork, form: Modulate, *, layered: bool = True
    ) -> Callable[[], object]:
        spec = None if layered else of._fused_spec

        def both() -> None:
            with mock.patch.object(coordinate, "modulate", form), mock.patch.object(of, "_fused_spec", spec):
                y = f(x)
                torch.autograd.grad(y, list(of.parameters()), torch.ones_like(y))

        return both

    return {
        "network": run(network, network, modulate, layered=False),
        "network, layer by layer": run(network, network, modulate),
        "composed network": run(network, network, modulate_reference),
        "torch.compile of the composed network": run(compiled, network, modulate_reference),
        "network without modulation": run(without, without, modulate, layered=False),
        "torch.compile of the network without modulation": run(compiled_without, without, modulate),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--force", action="store_true", help="run although the machine is not quiet; the result says so"
    )
    options = parser.parse_args()
    demand_quiet(options.force)
    keep_freed_memory()
    errors = {precision: gate(precision) for precision in GATES}
    report: dict[str, Any] = {"machine": facts(), "gates": GATES, "relative_l2": errors}
    if any(errors[precision] > limit for precision, limit in GATES.items()):
        print(json.dumps(report, indent=2))
        return 1
    runs: dict[str, Callable[[], object]] = {}
    for precision in ("fp32", "bf16"):
        runs |= {f"{precision}: {name}": f for name, f in (operators(precision) | networks(precision)).items()}
    for run in runs.values():  # compiles, touches memory
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with Watch() as watch:
        for _ in range(options.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    report["quiet"] = accept(watch, options.force)
    report["milliseconds"] = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
    report["milliseconds, best"] = {name: 1e3 * min(times) for name, times in seconds.items()}
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
