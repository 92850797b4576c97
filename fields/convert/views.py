"""From where is a teacher looked at? Poses between those from which its scene was seen.

PVD draws poses on a sphere round objects and in the box of the cameras of forward-facing captures. One rule serves both
and 360-degree captures: somewhere between a camera and one of its neighbours, turned a little. So no view is asked of
the teacher from where it never learned anything.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..geometry import Cameras, look_at, rotation_exp

NEIGHBOURS = 4
"""A view lies between a camera and one of so many nearest ones."""
TURN_RAD = math.pi / 20
"""Most that a view is turned about each axis (PVD-AL: pi / 20)."""
ORBIT_FOV_RAD = math.radians(40)
"""Of `orbit_cameras`; NeRF-Synthetic's is 39.6 degrees."""
LOWEST = -0.35
"""Sine of the lowest elevation of `orbit_cameras`: of what stands on something little is known from below."""


def views_between(cameras: Cameras, count: int, generator: torch.Generator) -> Cameras:
    """Random cameras where `cameras` looked from, each with the lens and image size of one of them.

    Args:
        cameras: F cameras, at least one, scene frame.
        count: how many to make.
        generator: on the CPU; draws come from there whatever the cameras' device.
    """
    centres = cameras.centres()
    chosen = torch.randint(len(cameras), (count,), generator=generator)
    rank = torch.randint(max(1, min(NEIGHBOURS, len(cameras) - 1)), (count,), generator=generator)
    share = torch.rand(count, generator=generator)
    turn = (2 * torch.rand(count, 3, generator=generator) - 1) * TURN_RAD
    device = centres.device
    chosen, rank, share, turn = (t.to(device) for t in (chosen, rank, share, turn))
    apart = torch.cdist(centres[chosen], centres)
    apart.scatter_(1, chosen[:, None], -1.0)  # itself is the nearest
    order = apart.argsort(dim=1, stable=True)
    neighbour = order.gather(1, (rank + 1).clamp(max=len(cameras) - 1)[:, None])[:, 0]
    views = cameras[chosen]
    centre = torch.lerp(centres[chosen], centres[neighbour], share[:, None])
    rotation = views.world_from_camera[:, :, :3] @ rotation_exp(turn).to(centres)
    return Cameras(
        world_from_camera=torch.cat([rotation, centre[:, :, None]], 2),
        **{name: getattr(views, name) for name in ("intrinsics", "distortion", "model", "width", "height")},
    )


def orbit_cameras(box: Tensor, count: int = 128, *, size: int = 400) -> Cameras:
    """Cameras spread evenly round a box, a little from below to the zenith, that see it whole.

    Args:
        box: (2, 3) lower and upper corner, scene frame, finite.
        count: how many.
        size: pixels along each side of their images.
    """
    box = box.detach().float().cpu()
    k = torch.arange(count) + 0.5
    z, angle = 1 - (1 - LOWEST) * k / count, k * (math.pi * (3 - math.sqrt(5)))  # Fibonacci's lattice on the sphere
    ring = (1 - z * z).sqrt()
    centre = box.mean(0)
    radius = max(float((box[1] - box[0]).norm()) / 2, 1e-3) / math.sin(ORBIT_FOV_RAD / 2)
    positions = centre + radius * torch.stack([ring * angle.cos(), ring * angle.sin(), z], 1)
    poses = look_at(positions, centre, torch.tensor([0.0, 0.0, 1.0]))
    return Cameras.create(poses, width=size, height=size, focal=0.5 * size / math.tan(ORBIT_FOV_RAD / 2))
