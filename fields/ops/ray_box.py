"""Where does a ray enter and leave an axis-aligned box? The slab test of Kay and Kajiya (1986), exact for rays that run
parallel to an axis or start inside."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ShapeError
from . import _cpu, _library, _native


def intersect_box(origins: Tensor, directions: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Intersect rays with one box, faces included.

    Args:
        origins: (R, 3) float32 or float64.
        directions: (R, 3), any length but zero; distances are in units of that length.
        lower, upper: (3,) corners of the box, lower <= upper, same dtype.

    Returns:
        near, far: (R,) each, 0 <= near <= far. A ray that starts inside has near = 0. Both are +infinity where the ray
        misses; rays with NaN or infinite components, or with no direction, miss.

    No gradients.

    Raises:
        ShapeError: a shape or dtype is not as above.
    """
    if origins.dim() != 2 or origins.shape[1] != 3 or origins.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"origins must be (R, 3) float32 or float64; got {tuple(origins.shape)} {origins.dtype}")
    for name, tensor, shape in (
        ("directions", directions, origins.shape),
        ("lower", lower, (3,)),
        ("upper", upper, (3,)),
    ):
        if tuple(tensor.shape) != tuple(shape) or tensor.dtype != origins.dtype:
            expected = f"{tuple(shape)} {origins.dtype}, as the origins"
            raise ShapeError(f"{name} must be {expected}; got {tuple(tensor.shape)} {tensor.dtype}")
    return _intersect_box(origins.detach(), directions.detach(), lower.detach(), upper.detach())


def intersect_box_reference(origins: Tensor, directions: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """`intersect_box` in plain torch, any device."""
    parallel = directions == 0
    inside = (origins >= lower) & (origins <= upper)
    t0, t1 = (lower - origins) / directions, (upper - origins) / directions
    enter = torch.where(parallel, 0.0, torch.minimum(t0, t1)).amax(1).clamp(min=0)
    leave = torch.where(parallel, torch.inf, torch.maximum(t0, t1)).amin(1)
    length = directions.abs().sum(1)
    hit = (enter <= leave) & (inside | ~parallel).all(1)
    hit &= torch.isfinite(origins).all(1) & torch.isfinite(length) & (length > 0)
    return torch.where(hit, enter, torch.inf), torch.where(hit, leave, torch.inf)


def _forward(origins: Tensor, directions: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    if not _native.usable(origins, directions, lower, upper):
        return intersect_box_reference(origins, directions, lower, upper)
    rays = origins.shape[0]
    near, far = origins.new_empty(rays), origins.new_empty(rays)
    inputs = [t.contiguous() for t in (origins, directions, lower, upper)]
    _native.call(f"pf_intersect_box_{_cpu.suffix_of(origins)}", *inputs, rays, near, far, over=rays)
    return near, far


def _fake(origins: Tensor, directions: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    return origins.new_empty(origins.shape[0]), origins.new_empty(origins.shape[0])


_intersect_box = _library.define(
    "intersect_box(Tensor origins, Tensor directions, Tensor lower, Tensor upper) -> (Tensor, Tensor)", _forward, _fake
)
