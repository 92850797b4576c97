"""How fast is the network of a coordinate field, against plain torch and against the machine's peaks?

NeRF's trunk (Mildenhall et al. 2020, figure 7): 63 encoded coordinates, 8 hidden layers of 256, the inputs once more at
layer 4, here 16 outputs; 2^16 rows. First the gates: gradients of a squared error against float64, relative L2. A path
that misses its gate is not timed, and the exit code is 1. In bf16 now and then a ReLU falls the other way, which
changes the gradient of that row's x (by 0.1 over all rows, in torch too) and drowns in the parameters' sums: x must
be as near as torch's is. Then everything is timed in one run, in turns; ratios are of the best of the rounds. The
opponent is the same network in plain torch under `torch.compile`, in bf16 under autocast. Both keep half a gigabyte of
activations, whose memory stays with the process from pass to pass, as in training.

Useful operations: forward, gradient to inputs, gradient to weights, a multiply and an add for every weight each.
Executed: the same where activations are kept, one forward more where they are recomputed. Prints one JSON object. Exits
with 3 when other work runs (see `quiet.py`).
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
import torch._dynamo
from machine import facts
from probes import Probes
from quiet import Watch, accept, demand_quiet
from torch import Tensor

from polyfield.fields.ops.fused_mlp import KEEPING_WIDTH, MlpSpec, fused_mlp, initial_parameters
from polyfield.fields.optim.memory import keep_freed_memory

GATES = {"fp32": 1e-5, "bf16": 3e-2}
"""Relative L2 per tensor against float64."""
PEAKS = {"fp32": "fma", "bf16": "bf16"}


class TorchMlp:
    """The same network of `torch.nn.functional.linear` and ReLU."""

    def __init__(self, flat: Tensor, spec: MlpSpec) -> None:
        self.spec, self.weights, at = spec, [], 0
        for out, size in spec.layer_shapes:
            self.weights.append(flat[at : at + out * size].view(out, size).clone().requires_grad_())
            at += out * size

    def __call__(self, x: Tensor) -> Tensor:
        h = x
        for number, weight in enumerate(self.weights[:-1]):
            if number and number == self.spec.skip:
                h = torch.cat([h, x], 1)
            h = torch.relu(torch.nn.functional.linear(h, weight))
        return torch.nn.functional.linear(h, self.weights[-1])


GATE_ROWS = 2048
"""Rows of the gates: as many as make the rounding of bf16 average out, as in training."""


def encode(points: Tensor) -> Tensor:
    """Points (N, 3) in [-1, 1] -> (N, 63): themselves, and ten octaves of sine and cosine."""
    angles = (points[:, :, None] * (2.0 ** torch.arange(10) * torch.pi)).flatten(1)
    return torch.cat([points, angles.sin(), angles.cos()], 1)


class Case:
    """One workload: rows, parameters, targets, and the ways to compute."""

    def __init__(self, spec: MlpSpec, rows: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.spec = spec
        points = torch.rand(rows, 3, generator=generator) * 2 - 1
        self.x = encode(points).requires_grad_()
        self.flat = initial_parameters(spec, generator).requires_grad_()
        self.target = (points[:, :1] * torch.arange(1, spec.outputs + 1) / 4 + points[:, 1:2]).sin()
        self.plain = TorchMlp(self.flat.detach(), spec)
        self.compiled = torch.compile(self.plain.__call__)

    def forward(self, precision: str) -> None:
        with torch.no_grad():
            fused_mlp(self.x, self.flat, self.spec, precision=precision)  # type: ignore[arg-type]

    def forward_backward(self, precision: str) -> None:
        torch.autograd.grad(self._ours(precision), [self.x, self.flat], self.target)

    def torch_forward(self, precision: str) -> None:
        with torch.no_grad():
            self._theirs(self.compiled, precision)

    def torch_forward_backward(self, precision: str) -> None:
        torch.autograd.grad(self._theirs(self.compiled, precision), [self.x, *self.plain.weights], self.target)

    def gradients(self, path: str, precision: str) -> tuple[Tensor, Tensor]:
        """Of half the squared distance to `target`, to x and to the flat parameters."""
        y = self._ours(precision) if path == "polyfield" else self._theirs(self.plain, precision)
        leaves = [self.x, self.flat] if path == "polyfield" else [self.x, *self.plain.weights]
        x, *rest = torch.autograd.grad(y, leaves, (y - self.target).detach())
        return x, torch.cat([part.flatten() for part in rest])

    def true_gradients(self) -> tuple[Tensor, Tensor]:
        """The same in float64."""
        network = TorchMlp(self.flat.detach().double(), self.spec)
        x = self.x.detach().double().requires_grad_()
        y = network(x)
        x_grad, *rest = torch.autograd.grad(y, [x, *network.weights], (y - self.target).detach())
        return x_grad, torch.cat([part.flatten() for part in rest])

    def _ours(self, precision: str) -> Tensor:
        return fused_mlp(self.x, self.flat, self.spec, precision=precision)  # type: ignore[arg-type]

    def _theirs(self, network: Callable[[Tensor], Tensor], precision: str) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return network(self.x).float()

    def forward_flops(self) -> float:
        return 2.0 * sum(out * size for out, size in self.spec.layer_shapes) * self.x.shape[0]


def check_gates(spec: MlpSpec) -> dict[str, Any]:
    """Errors of every path; the median over three batches, as a unit within rounding of zero may pass its ReLU either
    way."""
    errors: dict[str, list[tuple[float, float]]] = {}
    for seed in (1, 2, 3):
        case = Case(spec, GATE_ROWS, seed)
        truth = case.true_gradients()
        for path in ("polyfield", "torch"):
            for precision in GATES:
                pairs = zip(case.gradients(path, precision), truth, strict=True)
                found = tuple(float((got.double() - right).norm() / right.norm()) for got, right in pairs)
                errors.setdefault(f"{path} {precision}", []).append(found)  # type: ignore[arg-type]
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in errors.items()}
    report = {}
    for name, (x, parameters) in medians.items():
        precision = name.split()[1]
        gate = GATES[precision]
        gate_x = gate if precision == "fp32" else 1.1 * medians[f"torch {precision}"][0]
        passed = parameters <= gate and x <= gate_x
        relative = {"x": x, "parameters": parameters}
        report[name] = {"relative_l2": relative, "gates": {"x": gate_x, "parameters": gate}, "passed": passed}
    return report


def make_runs(case: Case, counts: list[int], gates: dict[str, Any], opponents: bool) -> dict[str, Callable[[], float]]:
    """Everything that is timed: name -> seconds of one run."""
    runs: dict[str, Callable[[], float]] = {}

    def add(name: str, threads: int, work: Callable[[str], None], precision: str) -> None:
        def run() -> float:
            torch.set_num_threads(threads)
            start = time.perf_counter()
            work(precision)
            return time.perf_counter() - start

        runs[f"{name} {precision} @{threads}"] = run

    for precision in GATES:
        for threads in counts:
            if gates[f"polyfield {precision}"]["passed"]:
                add("forward", threads, case.forward, precision)
                add("forward+backward", threads, case.forward_backward, precision)
            if opponents:
                add("torch forward", threads, case.torch_forward, precision)
                add("torch forward+backward", threads, case.torch_forward_backward, precision)
    return runs


def measure(runs: dict[str, Callable[[], float]], counts: list[int], rounds: int) -> dict[str, list[float]]:
    """Seconds, and rates of probes, of every round."""
    found: dict[str, list[float]] = {}
    with Probes() as probe:
        for run in runs.values():  # compiles, touches memory
            run()
        for _ in range(rounds):
            for kind in PEAKS.values():
                for threads in counts:
                    found.setdefault(f"probe {kind} @{threads}", []).append(probe(kind, threads, 0.3))
            for name, run in runs.items():
                found.setdefault(name, []).append(run())
    return found


def summarise(found: dict[str, list[float]], counts: list[int], forward_flops: float, recomputes: bool) -> dict:
    """Shares of the peak and ratios over torch; None where a part was not measured."""
    best = {k: max(v) if k.startswith("probe") else min(v) for k, v in found.items()}
    summary: dict[str, float | None] = {}

    def share(work: float, name: str, peak: str) -> float | None:
        return work / best[name] / best[peak] if name in best and best[peak] else None

    for precision, kind in PEAKS.items():
        for threads in counts:
            end, peak = f"{precision} @{threads}", f"probe {kind} @{threads}"
            both = f"forward+backward {end}"
            executed = (4 if recomputes else 3) * forward_flops
            summary[f"forward {end}: share of peak"] = share(forward_flops, f"forward {end}", peak)
            summary[f"{both}: share of peak, useful"] = share(3 * forward_flops, both, peak)
            summary[f"{both}: share of peak, executed"] = share(executed, both, peak)
            for name in ("forward", "forward+backward"):
                ours, theirs = f"{name} {end}", f"torch {name} {end}"
                ratio = best[theirs] / best[ours] if ours in best and theirs in best else None
                summary[f"{ours}: over torch.compile"] = ratio
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--force", action="store_true", help="run although the machine is not quiet; the result says so"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2**16)
    parser.add_argument("--skip", type=int, default=4, help="the layer that is given the inputs again; 0: none")
    parser.add_argument("--skip-opponents", action="store_true", help="no torch.compile")
    parser.add_argument("--gates-only", action="store_true", help="check gradients, time nothing")
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    torch._dynamo.config.recompile_limit = 16  # one graph for each precision, thread count, and with gradients or not
    spec = MlpSpec(inputs=63, outputs=16, width=256, hidden_layers=8, skip=options.skip or None)
    counts = sorted({1, torch.get_num_threads()})
    gates = check_gates(spec)
    report: dict[str, Any] = {"machine": facts(), "network": vars(spec), "rows": options.rows, "gates": gates}
    if not options.gates_only:
        demand_quiet(options.force)
        case = Case(spec, options.rows, 0)
        runs = make_runs(case, counts, gates, not options.skip_opponents)
        with Watch() as watch:
            found = measure(runs, counts, options.rounds)
        report["quiet"], report["foreign_share"] = accept(watch, options.force), watch.foreign
        report["summary"] = summarise(found, counts, case.forward_flops(), spec.width < KEEPING_WIDTH)
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
    return 0 if all(gate["passed"] for name, gate in gates.items() if name.startswith("polyfield")) else 1


if __name__ == "__main__":
    raise SystemExit(main())
