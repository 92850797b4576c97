"""Which axis-aligned box holds these points, these views, this scene?

A box is a tensor (2, 3): least and greatest corner, in the frame of what went in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from .cameras import Cameras

# Half size of the box of an unbounded scene of which nothing but the cameras is known: with camera centres within
# radius 1, this reaches three times as far behind the subject as the cameras stand before it.
UNBOUNDED_EXTENT = 4.0
# Beyond 16 camera distances parallax is below a pixel for photos of ordinary size; boxes stop there.
FARTHEST_EXTENT = 16.0


def points_bounds(points: Tensor, *, outliers: float = 0.0) -> Tensor:
    """The box of points.

    Args:
        points: (P, 3), at least one.
        outliers: Fraction in [0, 0.5) left out at either end of each axis; sparse points of structure from motion have
            strays.

    Returns:
        (2, 3) box.
    """
    if points.ndim != 2 or points.shape[1] != 3 or points.shape[0] == 0:
        raise ShapeError(f"points must be (P, 3) with at least one row; got {tuple(points.shape)}")
    if not 0 <= outliers < 0.5:
        raise ConfigError(f"outliers must be in [0, 0.5); got {outliers}")
    ordered = points.sort(0).values
    skip = int(outliers * (points.shape[0] - 1))
    return torch.stack((ordered[skip], ordered[points.shape[0] - 1 - skip]))


def frustum_bounds(cameras: Cameras, near: float, far: float) -> Tensor:
    """The box of everything that cameras see between two distances along the optical axis.

    Args:
        cameras: F cameras, at least one. Of each image a 5 x 5 lattice of pixels is followed, which is exact for
            pinholes.
        near: World units, not negative.
        far: World units, at least `near`. Rays more than 85 degrees off the axis end at `far` along the ray.

    Returns:
        (2, 3) box.
    """
    if len(cameras) == 0 or not 0 <= near <= far:
        raise ConfigError(f"frusta need cameras and 0 <= near <= far; got {len(cameras)} cameras, {near}, {far}")
    steps = torch.linspace(0, 1, 5, device=cameras.intrinsics.device, dtype=cameras.intrinsics.dtype)
    lattice = torch.cartesian_prod(steps, steps)
    extent = torch.stack((cameras.width, cameras.height), -1)
    frames = torch.arange(len(cameras), device=steps.device).repeat_interleave(25)
    rays = cameras.rays(frames, (extent[:, None] * lattice).flatten(0, 1))
    cosine = (rays.directions * cameras.forward()[frames]).sum(-1, keepdim=True)
    along = torch.where(cosine > 0.087, rays.directions / cosine.clamp_min(0.087), rays.directions)  # cos 85 deg
    return points_bounds(torch.cat((rays.origins + near * along, rays.origins + far * along)).detach())


def union_bounds(first: Tensor, second: Tensor) -> Tensor:
    """The box around two boxes (2, 3)."""
    return torch.stack((torch.minimum(first[0], second[0]), torch.maximum(first[1], second[1])))


def contains(box: Tensor, points: Tensor) -> Tensor:
    """Which points (..., 3) lie in the box (2, 3), its surface included: (...) bool. NaN lies nowhere."""
    return ((points >= box[0]) & (points <= box[1])).all(-1)


def scene_bounds(
    kind: str, cameras: Cameras, *, points: Tensor | None = None, near_far: tuple[float, float] | None = None
) -> Tensor:
    """The box that holds what is to be reconstructed.

    Args:
        kind: "object": the unit region [-1, 1]^3. "forward": what the cameras see from near to far, within 16.
            "unbounded": a cube about the origin that holds points (1 % of strays left out) and cameras, of half size 1
            to 16; 4 where there are no points.
        cameras: In the scene frame.
        points: (P, 3) in the scene frame.
        near_far: Distances in scene units; needed for "forward".

    Returns:
        (2, 3) box in the scene frame, float32 on the CPU.
    """
    unit = torch.tensor([[-1.0] * 3, [1.0] * 3])
    if kind == "object":
        return unit
    if kind == "forward":
        if near_far is None:
            raise ConfigError("bounds of a forward-facing scene need near and far distances; got None")
        box = frustum_bounds(cameras, *near_far).float().cpu()
        return box.clamp(-FARTHEST_EXTENT, FARTHEST_EXTENT)
    if kind != "unbounded":
        raise ConfigError(f"kind must be object, forward or unbounded; got {kind!r}")
    if points is None or len(points) == 0:
        return unit * UNBOUNDED_EXTENT
    box = union_bounds(
        points_bounds(points, outliers=0.01).float().cpu(), points_bounds(cameras.centres()).float().cpu()
    )
    return unit * float(box.abs().max().clamp(1.0, FARTHEST_EXTENT))
