"""How fast are the encodings of positions, forward and backward, beside torch.compile?

A batch of 2^16 positions in short stretches of rays, as a train step sees them, through each encoding and back to its
values. Opponents are compiled (`max-autotune-no-cudagraphs`): `torch.nn.functional.grid_sample`, which the released
codes use, and this project's own reference. Gates first: encodings and gradients against float64, relative L2.

Prints one JSON object. Exits with 3 when other work runs (see `quiet.py`), with 1 when a gate is missed.
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
from quiet import Watch, accept, demand_quiet
from torch import Tensor

from polyfield.fields.ops.factored_encode import FactoredGridSpec, factored_encode, factored_encode_reference
from polyfield.fields.radiance import TensorField, TensorFieldConfig

RAYS, PER_RAY = 2048, 32
GATE = 1e-5
FINAL_VOXELS = TensorFieldConfig().final_voxels


def make_positions() -> Tensor:
    """(2^16, 3): stretches of rays, as long as PER_RAY steps of 1/768 of the cube's diagonal."""
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(RAYS, 1, 3, generator=generator)
    along = torch.nn.functional.normalize(torch.randn(RAYS, 1, 3, generator=generator), dim=2)
    steps = torch.arange(PER_RAY)[None, :, None] * (3**0.5 / 768)
    return (start + along * steps).clamp(0, 1).reshape(-1, 3)


def by_grid_sample(x: Tensor, parameters: Tensor, spec: FactoredGridSpec) -> Tensor:
    """Planes and lines as the released TensoRF reads them: images with channels first."""
    at, factors, out = x * 2 - 1, iter(spec.factors()), []
    for term in spec.terms:
        product = None
        for _ in term.factors:
            factor = next(factors)
            rows, columns, channels = factor.shape
            values = parameters[factor.first : factor.first + rows * columns * channels]
            image = values.reshape(rows, columns, channels).permute(2, 0, 1)[None]
            across = at[:, factor.axis_b] if factor.axis_b >= 0 else torch.zeros_like(at[:, 0])
            where = torch.stack([at[:, factor.axis_a], across], 1)[None, None]
            read = torch.nn.functional.grid_sample(image, where, align_corners=True, padding_mode="border")[0, :, 0].T
            product = read if product is None else product * read
        out.append(product)
    return torch.cat(out, 1)  # type: ignore[arg-type]


Encode = Callable[[Tensor, Tensor, FactoredGridSpec], Tensor]


def passes(encode: Encode, x: Tensor, parameters: Tensor, spec: FactoredGridSpec) -> tuple[Tensor, Tensor]:
    """Encoding, and the gradient of the parameters."""
    leaf = parameters.detach().requires_grad_()
    out = encode(x, leaf, spec)
    out.backward(torch.ones_like(out))
    assert leaf.grad is not None
    return out.detach(), leaf.grad


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--force", action="store_true", help="run although the machine is not quiet; the result says so"
    )
    options = parser.parse_args()
    demand_quiet(options.force)
    field = TensorField(TensorFieldConfig(first_voxels=FINAL_VOXELS))
    spec, x, parameters = field.encoding.spec, make_positions(), field.encoding.table.detach().reshape(-1)
    truth = passes(factored_encode_reference, x.double(), parameters.double(), spec)
    errors = [relative(a, b) for a, b in zip(passes(factored_encode, x, parameters, spec), truth, strict=True)]
    report: dict[str, Any] = {"machine": facts(), "gate": GATE, "relative_l2": errors}
    if max(errors) > GATE:
        print(json.dumps(report, indent=2))
        return 1
    compiled = [
        torch.compile(f, mode="max-autotune-no-cudagraphs") for f in (by_grid_sample, factored_encode_reference)
    ]
    cases: dict[str, Encode] = {
        "factored_encode": factored_encode,
        "torch.compile of grid_sample": compiled[0],
        "torch.compile of the reference": compiled[1],
    }
    for encode in cases.values():
        passes(encode, x, parameters, spec)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with Watch() as watch:
        for _ in range(options.rounds):
            for name, encode in cases.items():
                start = time.perf_counter()
                passes(encode, x, parameters, spec)
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    report |= {"quiet": accept(watch, options.force), "milliseconds": {k: 1e3 * v for k, v in medians.items()}}
    report["over torch.compile"] = min(v for k, v in medians.items() if "compile" in k) / medians["factored_encode"]
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
