"""How are poses made: from a position and a target, from other programs' conventions, from a small correction?

All results are `world_from_camera` with OpenCV axes (x right, y down, z forward).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, FormatError, ShapeError
from .cameras import Cameras


class LlffPoses(NamedTuple):
    """What `poses_bounds.npy` says: poses (F, 3, 4) OpenCV, height (F,), width (F,), focal (F,) pixels, near_far (F,
    2) depths.
    """

    world_from_camera: Tensor
    height: Tensor
    width: Tensor
    focal: Tensor
    near_far: Tensor


def look_at(position: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """Poses cameras at positions, looking at targets, image-up along `up` as far as possible.

    Args:
        position: (..., 3).
        target: (..., 3), not equal to position.
        up: (..., 3), any length. Where it is parallel to the line of sight, another axis stands in.

    Returns:
        (..., 3, 4) world_from_camera; gradients flow to position and target.

    Raises:
        ConfigError: A target at its position, or numbers that are not finite.
    """
    position, target, up = torch.broadcast_tensors(position, target, up.to(position))
    sight = target - position
    length = torch.linalg.vector_norm(sight, dim=-1, keepdim=True)
    if not bool(((length > 0) & torch.isfinite(length)).all()):
        raise ConfigError(f"look_at needs a finite target away from the position; got distance {float(length.min())}")
    forward = sight / length
    upright = torch.nn.functional.normalize(up, dim=-1)
    # The axis least along the line of sight replaces an up that is within 0.001 rad of it.
    spare = torch.nn.functional.one_hot(forward.detach().abs().argmin(-1), 3).to(forward)
    parallel = torch.linalg.cross(forward, upright).detach().norm(dim=-1, keepdim=True) < 1e-3
    upright = torch.where(parallel, spare, upright)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, upright), dim=-1)
    down = torch.linalg.cross(forward, right)
    return torch.stack((right, down, forward, position), -1)


def from_opengl(world_from_camera: Tensor) -> Tensor:
    """Blender, NeRF and nerfstudio poses (x right, y up, z back), (..., 3 or 4, 4), to OpenCV (..., 3, 4)."""
    if world_from_camera.ndim < 2 or world_from_camera.shape[-1] != 4 or world_from_camera.shape[-2] not in (3, 4):
        raise ShapeError(f"poses must be (..., 3, 4) or (..., 4, 4); got {tuple(world_from_camera.shape)}")
    return world_from_camera[..., :3, :] * world_from_camera.new_tensor([1.0, -1.0, -1.0, 1.0])


def from_llff(rows: Tensor) -> LlffPoses:
    """Reads rows of `poses_bounds.npy`: 3x5 [down, right, back, centre, (height, width, focal)] and near, far.

    Args:
        rows: (F, 17) float.

    Raises:
        FormatError: Another shape, or numbers that are not finite (the row is named).
    """
    if rows.ndim != 2 or rows.shape[1] != 17:
        raise FormatError(f"poses_bounds must be (F, 17); got {tuple(rows.shape)}")
    broken = ~torch.isfinite(rows).all(-1)
    if bool(broken.any()):
        raise FormatError(f"poses_bounds row {int(broken.nonzero()[0])} has numbers that are not finite")
    matrix = rows[:, :15].reshape(-1, 3, 5)
    down, right, back, centre, size = matrix.unbind(-1)
    pose = torch.stack((right, down, -back, centre), -1)
    return LlffPoses(pose, size[:, 0], size[:, 1], size[:, 2], rows[:, 15:])


def refine(cameras: Cameras, pose_delta: Tensor) -> Cameras:
    """Moves cameras by learned corrections (tangent of SO3 x R3): centre + v, R exp(w).

    The rotation is about the camera's own centre and axes, so that the two halves are independent and penalties on
    them have units.

    Args:
        cameras: F cameras.
        pose_delta: (F, 6) [v in world units along world axes, w in radians along camera axes]; zero changes nothing.

    Returns:
        The moved cameras; gradients flow to cameras and pose_delta, also at zero.
    """
    if pose_delta.shape != (len(cameras), 6):
        raise ShapeError(
            f"pose_delta of {len(cameras)} cameras must be ({len(cameras)}, 6); got {tuple(pose_delta.shape)}"
        )
    rotation = cameras.world_from_camera[:, :, :3] @ rotation_exp(pose_delta[:, 3:])
    centre = cameras.centres() + pose_delta[:, :3]
    return cameras._with(world_from_camera=torch.cat((rotation, centre[:, :, None]), -1))


def rotation_exp(vector: Tensor) -> Tensor:
    """Rotation vectors (..., 3) in radians to matrices (..., 3, 3), by Rodrigues' formula; smooth at zero."""
    squared = vector.square().sum(-1)[..., None, None]
    small = squared < 1e-4  # the series' next terms are below 1e-16 there
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    sine = torch.where(small, 1 - squared / 6 + squared**2 / 120 - squared**3 / 5040, angle.sin() / angle)
    versine = torch.where(
        small, 0.5 - squared / 24 + squared**2 / 720 - squared**3 / 40320, (1 - angle.cos()) / angle**2
    )
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    return torch.eye(3, dtype=vector.dtype, device=vector.device) + sine * skew + versine * (skew @ skew)
