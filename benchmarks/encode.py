"""How fast are the encodings of positions, forward and backward, beside torch.compile?

A batch of 2^16 positions in short stretches of rays, as a train step sees them, through each encoding and back to its
values: the tensor field's planes and lines and the planes field's planes, as fine as they become, and the sparse grid
of a hollow ball on 256^3 vertices. Opponents are compiled (`max-autotune-no-cudagraphs`): for planes and lines
`torch.nn.functional.grid_sample`, which the released codes use, and everywhere this project's own reference. Gates
first: encodings and gradients against float64, relative L2, beside the reference's in float32.

Prints one JSON object. Exits with 3 when other work runs (see `quiet.py`), with 1 when a gate is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from machine import facts
from quiet import Watch, accept, demand_quiet
from torch import Tensor

from polyfield.fields.ops.factored_encode import FactoredGridSpec, factored_encode, factored_encode_reference
from polyfield.fields.ops.sparse_grid import sparse_grid_sample, sparse_grid_sample_reference
from polyfield.fields.optim.memory import keep_freed_memory
from polyfield.fields.radiance import PlanesField, PlanesFieldConfig, TensorField, TensorFieldConfig

RAYS, PER_RAY = 2048, 32
GATE = 1e-5
VERTICES, ROW = 256, 28
"""Of the sparse grid: along each axis, and values of a row (a density and nine harmonics of three colours)."""

Encode = Callable[[Tensor, Tensor], Tensor]
"""Positions and parameters to the encoding."""


class Case(NamedTuple):
    """An operator and what it is compared with."""

    operator: Encode
    opponents: dict[str, Encode]
    reference: Encode
    parameters: Tensor


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


def cases() -> dict[str, Case]:
    out = {}
    tensor = TensorField(TensorFieldConfig(first_voxels=TensorFieldConfig().final_voxels))
    planes = PlanesField(PlanesFieldConfig(first_voxels=PlanesFieldConfig().final_voxels))
    for name, field in (("tensor", tensor), ("planes", planes)):
        spec, parameters = field.encoding.spec, field.encoding.table.detach().reshape(-1)

        def reference(x: Tensor, values: Tensor, spec: FactoredGridSpec = spec) -> Tensor:
            return factored_encode_reference(x, values, spec)

        out[name] = Case(
            lambda x, values, spec=spec: factored_encode(x, values, spec),
            {"grid_sample": lambda x, values, spec=spec: by_grid_sample(x, values, spec), "reference": reference},
            reference,
            parameters,
        )
    index, rows = hollow_ball()
    blend = lambda x, values: sparse_grid_sample_reference(x, values, index)
    out["sparse grid"] = Case(lambda x, values: sparse_grid_sample(x, values, index), {"reference": blend}, blend, rows)
    return out


def hollow_ball() -> tuple[Tensor, Tensor]:
    """Index and rows of a shell, a tenth of the cube's side thick."""
    at = torch.linspace(-0.5, 0.5, VERTICES)
    z, y, x = torch.meshgrid(at, at, at, indexing="ij")
    full = ((x * x + y * y + z * z).sqrt() - 0.35).abs() < 0.05
    index = torch.full(full.shape, -1, dtype=torch.int32)
    index[full] = torch.arange(int(full.sum()), dtype=torch.int32)
    return index, torch.randn(int(full.sum()), ROW, generator=torch.Generator().manual_seed(1))


def passes(encode: Encode, x: Tensor, parameters: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Encoding, and the gradient of the parameters, given that of the encoding."""
    leaf = parameters.detach().requires_grad_()
    out = encode(x, leaf)
    out.backward(gradient)
    assert leaf.grad is not None
    return out.detach(), leaf.grad


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


def measure(case: Case, x: Tensor, rounds: int) -> dict[str, Any]:
    """Errors, and where they pass the gate also the times."""
    with torch.no_grad():
        shape = case.operator(x, case.parameters).shape
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    truth = passes(case.reference, x.double(), case.parameters.double(), gradient.double())
    errors, least = (
        [relative(a, b) for a, b in zip(passes(encode, x, case.parameters, gradient), truth, strict=True)]
        for encode in (case.operator, case.reference)
    )
    gates = {"relative_l2": errors, "relative_l2 of the reference": least}
    if max(errors) > GATE:
        return gates
    compiled = {
        f"torch.compile of {name}": torch.compile(f, mode="max-autotune-no-cudagraphs")
        for name, f in case.opponents.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("operator", *compiled)}
    for encode in compiled.values():
        passes(encode, x, case.parameters, gradient)
    for _ in range(rounds):
        for name, encode in (("operator", case.operator), *compiled.items()):
            start = time.perf_counter()
            passes(encode, x, case.parameters, gradient)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return gates | {
        "milliseconds": {k: 1e3 * v for k, v in medians.items()},
        "over torch.compile": min(medians[name] for name in compiled) / medians["operator"],
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
    x = make_positions()
    with Watch() as watch:
        found = {name: measure(case, x, options.rounds) for name, case in cases().items()}
    report = {"machine": facts(), "gate": GATE, "quiet": accept(watch, options.force), **found}
    print(json.dumps(report, indent=2))
    return int(any("milliseconds" not in row for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
