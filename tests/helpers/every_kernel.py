"""Launches every CUDA kernel, for tools that watch a process: sanitizers over the emulator, compute-sanitizer on a GPU.

    python tests/helpers/every_kernel.py cuda

The argument is the device of the tensors ("cpu" with the emulator). Prints the names of the kernels that it launched.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from radiance_world import make_rays, make_world
from torch import Tensor

from polyfield.fields.ops import _cuda
from polyfield.fields.ops.adam import lazy_adam_
from polyfield.fields.ops.composite import composite
from polyfield.fields.ops.distortion import distortion_loss
from polyfield.fields.ops.factored_encode import FactoredGridSpec, Term, factored_encode
from polyfield.fields.ops.frequency_encode import frequency_encode, frequency_value_and_jacobian
from polyfield.fields.ops.fused_mlp import WIDTHS, MlpSpec, fused_mlp, initial_parameters
from polyfield.fields.ops.hash_encode import HashGridSpec, hash_encode, hash_value_and_jacobian
from polyfield.fields.ops.march import march_rays, pack_waves, trim_samples
from polyfield.fields.ops.mesh_bvh import build_bvh, closest_points, ray_hits, winding_numbers
from polyfield.fields.ops.modulate import modulate
from polyfield.fields.ops.occupancy import decay_and_max_, pack_bitfield, sample_cells
from polyfield.fields.ops.ray_box import intersect_box
from polyfield.fields.ops.sparse_grid import add_variation_gradient_, sparse_grid_sample
from polyfield.fields.ops.spherical_harmonics import spherical_harmonics

SIZES = (1, 33, 300)
"""A thread, a warp and one more, blocks and a rest."""
PLANES = FactoredGridSpec(terms=(Term(factors=("xy", "xz", "z"), channels=5, resolution=(4, 5, 6)),))
SPEC = HashGridSpec(levels=3, channels=2, base_resolution=4, finest_resolution=16, log2_table_size=8)


def record_launches() -> set[str]:
    """The names of all kernels that are launched from now on."""
    launch, names = _cuda.call, set()

    def call(name: str, *rest: Any) -> None:
        names.add(name)
        launch(name, *rest)

    _cuda.call = call
    return names


def encodings(n: int, dtype: torch.dtype) -> None:
    x = torch.rand(n, 3, dtype=dtype).requires_grad_()
    table = torch.rand(SPEC.entries, 2, dtype=dtype).requires_grad_()
    texels = torch.rand(PLANES.parameter_count, dtype=dtype).requires_grad_()
    index = torch.arange(120, dtype=torch.int32).reshape(4, 5, 6)
    rows = torch.rand(120, 5, dtype=dtype).requires_grad_()
    add_variation_gradient_(
        torch.zeros_like(rows), rows.detach(), index, index.flatten(), first=7, count=min(n, 120), weight=0.5
    )
    encodings = (
        spherical_harmonics(x),
        frequency_encode(x, 3),
        hash_encode(x, table, SPEC),
        sparse_grid_sample(x, rows, index),
    )
    for y in (*encodings, factored_encode(x, texels, PLANES)):
        y.sum().backward()
    for z in (x, x.bfloat16()) if dtype == torch.float32 else (x,):
        modulate(z, x[:, 0], x[:, 1], relu=True).sum().backward()
    for value, jacobian in (hash_value_and_jacobian(x, table, SPEC), frequency_value_and_jacobian(x, 3)):
        (value.sum() + jacobian.sum()).backward()
    torch.use_deterministic_algorithms(True)
    planes, voxels = factored_encode(x, texels, PLANES), sparse_grid_sample(x, rows, index)
    (hash_encode(x, table, SPEC).sum() + planes.sum() + voxels.sum()).backward()
    torch.use_deterministic_algorithms(False)
    if dtype == torch.float32:
        hash_encode(x.detach(), table.detach().half(), SPEC)
    assert x.grad is not None
    lazy_adam_(x.detach(), x.grad, torch.zeros_like(x), torch.zeros_like(x), step=1, lr=0.1)
    box = torch.ones(3, dtype=dtype)
    intersect_box(x.detach(), x.detach(), -box, box)


def meshes(n: int, dtype: torch.dtype) -> None:
    bvh = build_bvh(torch.rand(300, 3, dtype=dtype), torch.arange(300).reshape(-1, 3))
    points = torch.rand(n, 3, dtype=dtype)
    closest_points(bvh, points)
    winding_numbers(bvh, points)
    ray_hits(bvh, points, points - 0.5)


def networks(n: int) -> None:
    x = torch.rand(n, 3).requires_grad_()
    for width in WIDTHS:
        skip = 1 if width == max(WIDTHS) else None
        net = MlpSpec(
            inputs=3, outputs=5, width=width, hidden_layers=2, skip=skip, hidden_activation="softplus", bias=True
        )
        weights = initial_parameters(net).to(x.device).requires_grad_()
        fused_mlp(x, weights, net, precision="bf16").sum().backward()


def rays(n: int) -> None:
    grid = torch.rand(2, 16, 16, 16)
    bits, coarse = pack_bitfield(grid, torch.tensor(0.5))
    sample_cells(grid, bits, uniform=n, occupied=n, seed=0, step=0)
    decay_and_max_(grid, torch.arange(n), torch.rand(n), 0.9)
    directions = torch.nn.functional.normalize(torch.randn(n, 3), dim=1)
    near_and_far = torch.zeros(n), torch.full((n,), 3.0)
    for cone_angle in (0.0, 0.01):
        out = march_rays(
            torch.rand(n, 3),
            directions,
            *near_and_far,
            None,
            None,
            bits,
            coarse,
            cascades=2,
            resolution=16,
            step_size=0.02,
            cone_angle=cone_angle,
            samples_per_ray=40,
            capacity=20 * n + 20,
        )
        for dtype in (torch.float32, torch.float64):
            samples(out.distances.to(dtype), out.deltas.to(dtype), out.offsets)


def samples(distances: Tensor, deltas: Tensor, offsets: Tensor) -> None:
    n = offsets.shape[0] - 1
    raw, rgb = torch.randn_like(distances).requires_grad_(), deltas[:, None].repeat(1, 3).requires_grad_()
    live, _, _ = trim_samples(raw.detach(), deltas, offsets, deltas.new_zeros(n), activation="exp")
    pack_waves(torch.arange(n).int(), offsets[:-1], live, n)
    seen = composite(raw, rgb, distances, deltas, offsets, deltas.new_ones(n, 3))
    distortion_loss(seen.weights, distances, deltas, offsets).sum().backward()


def train_steps(n: int, device: str) -> None:
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        program = make_world(device).program(samples=1024)
        for step in range(2):
            program.run(*make_rays(n, device, step), step=step, rate=1.0)
    torch.use_deterministic_algorithms(False)


def main() -> None:
    torch.set_default_device(sys.argv[1])
    probe = torch.zeros(1)
    assert _cuda.usable(probe), _cuda.unusable(probe.device.index or 0)
    names = record_launches()
    for n in SIZES:
        for dtype in (torch.float32, torch.float64):
            encodings(n, dtype)
            meshes(n, dtype)
        networks(n)
        rays(n)
    train_steps(SIZES[-1], sys.argv[1])
    print(*sorted(names))


if __name__ == "__main__":
    main()
