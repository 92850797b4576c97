"""How fast is one train step, against plain torch and against the machine's ceilings? (Bar 1.)

2^18 packed samples (4096 rays x 64), hash grid 16 x 2 with T = 2^19, density network 64 wide, colour network 2 x 64,
from encoding to Adam. First the gates: gradients of every product path and of the opponents against a float64
reference, relative L2 per tensor. A path that misses its gate is not timed, and the exit code is 1. Then everything is
timed in one run, in turns, so that a change of clock or heat meets all alike; figures are the best of the rounds,
medians beside them.

Prints one JSON object. Exits with 3 when other work runs (see `quiet.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from machine import facts
from opponent import TorchModel, make_step
from probes import Probes
from quiet import Watch, accept, demand_quiet
from torch import Tensor

from polyfield.fields.ops.adam import lazy_adam_
from polyfield.fields.ops.composite import composite
from polyfield.fields.ops.fused_mlp import MlpSpec, fused_mlp, initial_parameters
from polyfield.fields.ops.hash_encode import HashGridSpec, hash_encode
from polyfield.fields.ops.radiance_step import (
    AdamRates,
    RadianceBatch,
    RadianceParameters,
    RadianceSpec,
    radiance_gradients,
    radiance_step_,
)
from polyfield.fields.ops.spherical_harmonics import spherical_harmonics

RAYS, PER_RAY = 4096, 64
GATES = {"fp32": 1e-5, "bf16": 3e-2}
"""Relative L2 per tensor against float64."""
SPEC = RadianceSpec(
    grid=HashGridSpec(levels=16, channels=2, log2_table_size=19),
    density=MlpSpec(inputs=32, outputs=16, width=64, hidden_layers=1),
    color=MlpSpec(inputs=31, outputs=3, width=64, hidden_layers=2, output_activation="sigmoid"),
)
RATES = AdamRates(table_lr=1e-2, network_lr=1e-2)


# --- the product ------------------------------------------------------------------------------------------------------


class Training:
    """Parameters and moments of the product, and its steps."""

    def __init__(self, start: RadianceParameters) -> None:
        self.parameters = RadianceParameters(*(p.clone() for p in start))
        self.first = RadianceParameters(*(torch.zeros_like(p) for p in start))
        self.second = RadianceParameters(*(torch.zeros_like(p) for p in start))
        self.count = 0

    def fused(self, batch: RadianceBatch, precision: str) -> None:
        """The sanctioned fused operator."""
        self.count += 1
        state = self.parameters, self.first, self.second
        radiance_step_(batch, *state, SPEC, RATES, step=self.count, precision=precision)  # type: ignore[arg-type]

    def composed(self, batch: RadianceBatch, precision: str) -> None:
        """The same from single operators under autograd."""
        self.count += 1
        gradients = composed_gradients(batch, self.parameters, precision)
        for k, name in enumerate(RadianceParameters._fields):
            lr = RATES.table_lr if name == "table" else RATES.network_lr
            state = self.first[k], self.second[k]
            lazy_adam_(self.parameters[k], gradients[k], *state, step=self.count, lr=lr, skip_untouched=name == "table")


def fused_gradients(batch: RadianceBatch, parameters: RadianceParameters, precision: str) -> RadianceParameters:
    return radiance_gradients(batch, parameters, SPEC, precision=precision)[1]  # type: ignore[arg-type]


def composed_gradients(batch: RadianceBatch, parameters: RadianceParameters, precision: str) -> RadianceParameters:
    leaves = RadianceParameters(*(p.detach().requires_grad_() for p in parameters))
    counts = (batch.offsets[1:] - batch.offsets[:-1]).long()
    basis = spherical_harmonics(batch.directions, SPEC.sh_bands).repeat_interleave(counts, 0)
    encoded = hash_encode(batch.positions, leaves.table, SPEC.grid)
    head = fused_mlp(encoded, leaves.density, SPEC.density, precision=precision)  # type: ignore[arg-type]
    rgb = fused_mlp(torch.cat([head[:, 1:], basis], 1), leaves.color, SPEC.color, precision=precision)  # type: ignore[arg-type]
    distances = torch.zeros_like(batch.deltas)
    out = composite(head[:, 0].contiguous(), rgb, distances, batch.deltas, batch.offsets, batch.backgrounds)
    loss = (out.rgb - batch.targets).square().mean()
    return RadianceParameters(*torch.autograd.grad(loss, list(leaves)))


def encode_only(batch: RadianceBatch, table: Tensor) -> None:
    with torch.no_grad():
        hash_encode(batch.positions, table, SPEC.grid)


def scatter_only(batch: RadianceBatch, table: Tensor, gradient: Tensor) -> None:
    """The table's gradient, filling it with zeros included."""
    numbers = SPEC.grid.numbers
    torch.ops.polyfield.hash_encode_backward(gradient, batch.positions, table, *numbers, False, True)


class Networks:
    """Both networks, forward and backward, on rows as the step has them."""

    def __init__(self, start: RadianceParameters, samples: int) -> None:
        self.weights = [start.density.clone().requires_grad_(), start.color.clone().requires_grad_()]
        self.specs = [SPEC.density, SPEC.color]
        device = start.table.device
        self.inputs = [torch.randn(samples, spec.inputs, device=device).requires_grad_() for spec in self.specs]
        self.grads = [torch.randn(samples, spec.outputs, device=device) for spec in self.specs]

    def forward(self, precision: str) -> None:
        with torch.no_grad():
            for x, w, spec in zip(self.inputs, self.weights, self.specs, strict=True):
                fused_mlp(x, w, spec, precision=precision)  # type: ignore[arg-type]

    def forward_backward(self, precision: str) -> None:
        for x, w, spec, grad in zip(self.inputs, self.weights, self.specs, self.grads, strict=True):
            torch.autograd.grad(fused_mlp(x, w, spec, precision=precision), [x, w], grad)  # type: ignore[arg-type]

    def forward_flops(self) -> float:
        """Per pass over the samples: a multiply and an add for every weight."""
        weights = sum(out * size for spec in self.specs for out, size in spec.layer_shapes)
        return 2.0 * weights * self.inputs[0].shape[0]


def fused_step_seconds(threads: int, precision: str = "fp32", repeats: int = 7) -> float:
    """Best time of the fused step, for benchmarks that count in steps."""
    torch.set_num_threads(threads)
    training, batch = Training(start_parameters(1e-4)), make_batch(RAYS)
    return min(timed(lambda: training.fused(batch, precision)) for _ in range(repeats))


# --- workload and gates -----------------------------------------------------------------------------------------------


def start_parameters(table_scale: float) -> RadianceParameters:
    generator = torch.Generator().manual_seed(0)
    table = (torch.rand(SPEC.grid.entries, SPEC.grid.channels, generator=generator) * 2 - 1) * table_scale
    return RadianceParameters(
        table, initial_parameters(SPEC.density, generator), initial_parameters(SPEC.color, generator)
    )


def make_batch(rays: int, *, coherent: bool = False, seed: int = 1) -> RadianceBatch:
    """Packed samples with PER_RAY a ray: uniform in the cube (the harder case for caches), or a stretch of each ray.

    Stretches have instant-ngp's step, sqrt(3)/1024 of the cube, as samples near a surface have.
    """
    generator = torch.Generator().manual_seed(seed)
    samples = rays * PER_RAY
    directions = torch.nn.functional.normalize(torch.randn(rays, 3, generator=generator), dim=1)
    positions = torch.rand(samples, 3, generator=generator)
    if coherent:
        middle = torch.rand(rays, 1, 3, generator=generator) * 0.8 + 0.1
        t = (torch.arange(PER_RAY) + 0.5 - PER_RAY / 2).view(1, -1, 1) * (3**0.5 / 1024)
        positions = (middle + t * directions[:, None]).reshape(samples, 3)
    return RadianceBatch(
        positions=positions.contiguous(),
        deltas=torch.full((samples,), 0.01),
        offsets=torch.arange(0, samples + 1, PER_RAY, dtype=torch.int32),
        directions=directions,
        targets=torch.rand(rays, 3, generator=generator),
        backgrounds=torch.rand(rays, 3, generator=generator),
    )


def check_gates() -> dict[str, Any]:
    """Relative L2 per tensor of every path's gradients against float64; {path: {relative_l2, gate, passed}}.

    The median over three small batches: where a hidden unit lies within rounding of zero, ReLU may fall either side in
    float32, and in one of a million samples that moves the table's error past any useful gate.
    """
    start = start_parameters(0.1)
    paths: dict[str, tuple[Callable[[RadianceBatch], RadianceParameters], float]] = {}
    for precision, gate in GATES.items():
        paths[f"fused {precision}"] = (lambda batch, p=precision: fused_gradients(batch, start, p)), gate
        paths[f"composed {precision}"] = (lambda batch, p=precision: composed_gradients(batch, start, p)), gate
    for form in ("tuned", "eager"):
        paths[f"opponent {form}"] = (lambda batch, f=form: torch_gradients(batch, start, f)), GATES["fp32"]
    rows: dict[str, list[list[float]]] = {name: [] for name in paths}
    for seed in (1, 2, 3):
        batch = make_batch(32, coherent=True, seed=seed)
        truth = torch_gradients(batch, start, "truth")
        for name, (path, _) in paths.items():
            pairs = zip(path(batch), truth, strict=True)
            rows[name].append([float((got.double() - right).norm() / right.norm()) for got, right in pairs])
    report = {}
    for name, (_, gate) in paths.items():
        medians = [statistics.median(column) for column in zip(*rows[name], strict=True)]
        errors = dict(zip(RadianceParameters._fields, medians, strict=True))
        report[name] = {"relative_l2": errors, "gate": gate, "passed": max(medians) <= gate}
    return report


def torch_gradients(batch: RadianceBatch, start: RadianceParameters, form: str) -> RadianceParameters:
    if form == "truth":
        start = RadianceParameters(*(p.double() for p in start))
        batch = RadianceBatch(*(t.double() if t is not None and t.is_floating_point() else t for t in batch))  # type: ignore[arg-type]
    model = TorchModel(start, SPEC, form)
    model.loss(batch).backward()
    return model.gradients()


# --- timing -----------------------------------------------------------------------------------------------------------


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def make_cases(
    batch: RadianceBatch, counts: list[int], passed: Callable[[str], bool], options: argparse.Namespace
) -> dict[str, Callable[[], object]]:
    """Everything that is timed: name -> one run. Names end in the number of threads where it varies."""
    start = start_parameters(1e-4)
    networks = Networks(start, batch.positions.shape[0])
    gradient = torch.randn(batch.positions.shape[0], SPEC.grid.features) * 1e-4
    cases: dict[str, Callable[[], object]] = {}

    def add(name: str, threads: int, work: Callable[[], object]) -> None:
        def run() -> float:
            torch.set_num_threads(threads)
            return timed(work)

        cases[f"{name} @{threads}"] = run

    for threads in counts:
        for precision in GATES:
            for path in ("fused", "composed"):
                if passed(f"{path} {precision}"):
                    step = getattr(Training(start), path)
                    add(f"{path} {precision}", threads, lambda step=step, p=precision: step(batch, p))
            add(f"mlp forward {precision}", threads, lambda p=precision: networks.forward(p))
            add(f"mlp forward+backward {precision}", threads, lambda p=precision: networks.forward_backward(p))
        add("encode", threads, lambda: encode_only(batch, start.table))
        add("scatter", threads, lambda: scatter_only(batch, start.table, gradient))
    most = max(counts)
    if not options.skip_opponents:
        for name, form, bf16 in (
            ("tuned fp32", "tuned", False),
            ("tuned bf16", "tuned", True),
            ("eager", "eager", False),
        ):
            work = make_step(TorchModel(start, SPEC, form), batch, compiled=form == "tuned", bf16=bf16)
            add(f"torch {name}", most, work)
    return cases


def measure(cases: dict[str, Callable[[], object]], counts: list[int], rounds: int) -> dict[str, list[float]]:
    """Seconds (of cases) and rates (of probes) of every round."""
    found: dict[str, list[float]] = {}
    with Probes() as probe:
        for run in cases.values():  # compiles, touches memory
            run()
        for _ in range(rounds):
            for kind in ("fma", "bf16", "gather"):
                for threads in counts:
                    found.setdefault(f"probe {kind} @{threads}", []).append(probe(kind, threads, 0.3))
            for name, run in cases.items():
                for _ in range(1 if name.startswith("torch eager") else 2):
                    found.setdefault(name, []).append(float(run()))  # type: ignore[arg-type]
    return found


def summarise(found: dict[str, list[float]], counts: list[int], samples: int, forward_flops: float) -> dict[str, Any]:
    """Ratios of the bar; None where a part was not measured."""
    best = {k: max(v) if k.startswith("probe") else min(v) for k, v in found.items()}
    most = max(counts)

    def ratio(top: str, bottom: str, scale: float = 1.0) -> float | None:
        if top not in best or bottom not in best or not best[bottom]:
            return None
        return scale * best[top] / best[bottom]

    def share(work: float, name: str, probe: str) -> float | None:
        if name not in best or not best.get(probe):
            return None
        return work / best[name] / best[probe]

    corners = samples * SPEC.grid.levels * 8
    peaks = {"fp32": f"probe fma @{most}", "bf16": f"probe bf16 @{most}"}
    summary: dict[str, Any] = {
        "fused fp32 over torch.compile fp32": ratio(f"torch tuned fp32 @{most}", f"fused fp32 @{most}"),
        "fused bf16 over torch.compile bf16 autocast": ratio(f"torch tuned bf16 @{most}", f"fused bf16 @{most}"),
        "fused bf16 over torch.compile fp32": ratio(f"torch tuned fp32 @{most}", f"fused bf16 @{most}"),
        "fused fp32 over eager": ratio(f"torch eager @{most}", f"fused fp32 @{most}"),
        "composed over fused fp32": ratio(f"composed fp32 @{most}", f"fused fp32 @{most}"),
        "composed over fused bf16": ratio(f"composed bf16 @{most}", f"fused bf16 @{most}"),
        "encode share of gather rate": share(corners, f"encode @{most}", f"probe gather @{most}"),
        "scatter share of gather rate": share(corners, f"scatter @{most}", f"probe gather @{most}"),
    }
    for precision, peak in peaks.items():
        forward, both = f"mlp forward {precision} @{most}", f"mlp forward+backward {precision} @{most}"
        summary[f"mlp forward {precision} share of peak"] = share(forward_flops, forward, peak)
        # Useful: forward, gradient to inputs, gradient to weights. The operator's backward repeats the forward besides,
        # which the second figure counts as work done.
        summary[f"mlp forward+backward {precision} share of peak, useful"] = share(3 * forward_flops, both, peak)
        summary[f"mlp forward+backward {precision} share of peak, executed"] = share(4 * forward_flops, both, peak)
    if most > 1:
        for name in ("fused fp32", "fused bf16", "composed fp32", "encode", "scatter", "mlp forward+backward fp32"):
            summary[f"{name}: 1 to {most} threads"] = ratio(f"{name} @1", f"{name} @{most}")
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--force", action="store_true", help="run although the machine is not quiet; the result says so"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--coherent", action="store_true", help="samples along rays instead of uniform in the cube")
    parser.add_argument(
        "--skip-opponents", action="store_true", help="no torch.compile (its compilation takes minutes)"
    )
    parser.add_argument("--gates-only", action="store_true", help="check gradients, time nothing")
    options = parser.parse_args()
    torch.manual_seed(0)
    machine = facts()
    counts = sorted({1, torch.get_num_threads()})
    gates = check_gates()
    report: dict[str, Any] = {"machine": machine, "gates": gates}
    all_passed = all(gate["passed"] for gate in gates.values())
    if not options.gates_only:
        demand_quiet(options.force)
        batch = make_batch(RAYS, coherent=options.coherent)
        cases = make_cases(batch, counts, lambda path: gates[path]["passed"], options)
        with Watch() as watch:
            found = measure(cases, counts, options.rounds)
        report["quiet"], report["foreign_share"] = accept(watch, options.force), watch.foreign
        samples = batch.positions.shape[0]
        flops = Networks(start_parameters(1e-4), 1).forward_flops() * samples
        report["workload"] = {"rays": RAYS, "samples": samples, "positions": "rays" if options.coherent else "uniform"}
        report["summary"] = summarise(found, counts, samples, flops)
        report["rates"] = {
            k: {"best": max(v), "median": statistics.median(v)} for k, v in found.items() if "probe" in k
        }
        report["milliseconds"] = {
            k: {"best": 1e3 * min(v), "median": 1e3 * statistics.median(v)}
            for k, v in found.items()
            if "probe" not in k
        }
    json.dump(report, sys.stdout, indent=2)
    print()
    return 0 if all_passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
