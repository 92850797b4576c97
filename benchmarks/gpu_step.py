"""How fast is a train step on a GPU, part by part, and against plain torch?

The workload of `train_step.py` (2^18 packed samples, hash grid 16 x 2 with T = 2^19, networks 64 wide), on a device.
First the gates: gradients against float64 on the CPU, relative L2 per tensor; what misses its gate is not timed, and
the exit code is 1. Then everything in turns; times are medians, in milliseconds, the device waited for. `program` is
what training runs (`RadianceProgram`): a graph of the whole step, marching through a shell of occupied cells included;
`program live` says how many samples it learned from.

Prints one JSON object. `--device cpu` tries the script out without a GPU.
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
from train_step import (
    GATES,
    PER_RAY,
    RATES,
    RAYS,
    SPEC,
    Networks,
    Training,
    composed_gradients,
    encode_only,
    make_batch,
    scatter_only,
    start_parameters,
    torch_gradients,
)

from polyfield.fields.ops.adam import lazy_adam_
from polyfield.fields.ops.composite import composite
from polyfield.fields.ops.radiance_step import RadianceBatch, RadianceParameters
from polyfield.fields.optim.radiance_program import RadianceProgram, serves
from polyfield.fields.render import MarchConfig
from polyfield.fields.render.occupancy import OccupancyGrid

ROUNDS = 20


def moved(values: Any, device: str) -> Any:
    """A batch or parameters on `device`."""
    return type(values)(*(t if t is None else t.to(device) for t in values))


def gates(device: str) -> dict[str, dict[str, Any]]:
    """As `train_step.check_gates`, for the step under autograd on the device."""
    start, report = start_parameters(0.1), {}
    for precision, gate in GATES.items():
        rows = []
        for seed in (1, 2, 3):
            batch = make_batch(32, coherent=True, seed=seed)
            truth = torch_gradients(batch, start, "truth")
            found = composed_gradients(moved(batch, device), moved(start, device), precision)
            pairs = zip(found, truth, strict=True)
            rows.append([float((got.cpu().double() - right).norm() / right.norm()) for got, right in pairs])
        medians = [statistics.median(column) for column in zip(*rows, strict=True)]
        errors = dict(zip(RadianceParameters._fields, medians, strict=True))
        report[precision] = {"relative_l2": errors, "gate": gate, "passed": max(medians) <= gate}
    return report


def compositing(batch: RadianceBatch) -> Callable[[], object]:
    """Forward and backward."""
    count = batch.positions.shape[0]
    raw = torch.zeros(count, device=batch.deltas.device).requires_grad_()
    rgb = torch.rand(count, 3, device=batch.deltas.device).requires_grad_()
    distances = torch.zeros_like(batch.deltas)

    def run() -> None:
        out = composite(raw, rgb, distances, batch.deltas, batch.offsets, batch.backgrounds)
        torch.autograd.grad((out.rgb - batch.targets).square().mean(), [raw, rgb])

    return run


def updating(start: RadianceParameters) -> Callable[[], object]:
    """Adam on the table, an eighth of whose rows were touched."""
    table, m, v = start.table.clone(), torch.zeros_like(start.table), torch.zeros_like(start.table)
    gradient = torch.zeros_like(table)
    gradient[::8] = 1e-3
    return lambda: lazy_adam_(table, gradient, m, v, step=1, lr=RATES.table_lr, skip_untouched=True)


class ProgramSteps:
    """Steps of the training program from outside a ball whose surface is occupied: some 2^18 live samples each."""

    def __init__(self, start: RadianceParameters) -> None:
        device, count = start.table.device, 3 * RAYS // 2
        grid = OccupancyGrid()
        grid.grid.copy_(((grid.cell_centres().norm(dim=-1) - 0.6).abs() < 0.04).float())
        grid.refresh_bits()
        parameters, first, second = (
            RadianceParameters(*(t.clone() * scale for t in start)) for scale in (1.0, 0.0, 0.0)
        )
        self.program = RadianceProgram(
            SPEC,
            parameters,
            first,
            second,
            parameters.table.half(),
            grid.to(device),
            MarchConfig(),
            RATES,
            extent=1.0,
            samples=RAYS * PER_RAY,
            max_rays=count,
        )
        generator = torch.Generator().manual_seed(0)
        origins = 2 * torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
        aims = 0.5 * torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
        directions = torch.nn.functional.normalize(aims - origins, dim=1)
        self.rays = [t.to(device) for t in (origins, directions, torch.rand(count, 3), torch.rand(count, 3))]
        self.steps = self.live = 0

    def __call__(self) -> None:
        self.live = self.program.run(*self.rays, step=self.steps, rate=0.0).live
        self.steps += 1


def make_cases(device: str, passed: Callable[[str], bool]) -> dict[str, Callable[[], object]]:
    """Name -> one run."""
    batch, start = moved(make_batch(RAYS, coherent=True), device), moved(start_parameters(1e-4), device)
    gradient = torch.randn(batch.positions.shape[0], SPEC.grid.features, device=device) * 1e-4
    networks = Networks(start, batch.positions.shape[0])
    cases: dict[str, Callable[[], object]] = {}
    for precision in filter(passed, GATES):
        training = Training(start)
        cases[f"step {precision}"] = lambda t=training, p=precision: t.fused(batch, p)
        cases[f"step under autograd {precision}"] = lambda t=training, p=precision: t.composed(batch, p)
        cases[f"networks forward {precision}"] = lambda p=precision: networks.forward(p)
        cases[f"networks forward+backward {precision}"] = lambda p=precision: networks.forward_backward(p)
    if passed("bf16") and serves(start.table, "bf16"):
        cases["program"] = ProgramSteps(start)
    cases["encode"] = lambda: encode_only(batch, start.table)
    cases["scatter"] = lambda: scatter_only(batch, start.table, gradient)
    cases["composite forward+backward"] = compositing(batch)
    cases["adam of the table"] = updating(start)
    for bf16 in (False, True):
        name = f"torch.compile {'bf16 autocast' if bf16 else 'fp32'}"
        cases[name] = make_step(TorchModel(start, SPEC, "tuned"), batch, compiled=True, bf16=bf16)
    cases["torch eager"] = make_step(TorchModel(start, SPEC, "eager"), batch, compiled=False, bf16=False)
    return cases


def milliseconds(work: Callable[[], object], wait: Callable[[], object]) -> float:
    """Of one run, until the device is done."""
    wait()
    start = time.perf_counter()
    work()
    wait()
    return 1e3 * (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--gates-only", action="store_true", help="check gradients, time nothing")
    options = parser.parse_args()
    torch.manual_seed(0)
    report: dict[str, Any] = {"machine": facts(), "device": options.device, "gates": gates(options.device)}
    if not options.gates_only:
        wait = torch.cuda.synchronize if options.device.startswith("cuda") else (lambda: None)
        cases = make_cases(options.device, lambda precision: report["gates"][precision]["passed"])
        found: dict[str, list[float]] = {}
        for run in cases.values():  # compiles
            run()
        for _ in range(options.rounds):
            for name, run in cases.items():
                found.setdefault(name, []).append(milliseconds(run, wait))
        report["milliseconds"] = {name: statistics.median(values) for name, values in found.items()}
        program = cases.get("program")
        if isinstance(program, ProgramSteps):
            report["program live"] = program.live
        fastest = min(v for k, v in report["milliseconds"].items() if k in ("step fp32", "step bf16"))
        report["torch over step"] = {
            name: value / fastest for name, value in report["milliseconds"].items() if name.startswith("torch")
        }
    json.dump(report, sys.stdout, indent=2)
    print()
    return 0 if all(row["passed"] for row in report["gates"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
