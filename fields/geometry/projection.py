"""How does each camera model map image coordinates to rays in the camera frame, and points to image coordinates?

Camera frame: x right, y down, z forward (OpenCV). Image coordinates here are uv = (pixel - principal point) / focal;
what they mean is up to the model: perspective x/z, y/z (PINHOLE, OPENCV after distortion), angle from the axis times
direction (FISHEYE), longitude and latitude in radians (EQUIRECTANGULAR), lengths in scene units (ORTHOGRAPHIC).
Everything is differentiable to first order.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from .distortion import distort_fisheye, distort_opencv, shrink, undistort_fisheye, undistort_opencv

# Points closer to the image plane of the pinhole than this angle (radians) count as beside the camera.
_GRAZING = 1e-6
# Directions closer to a pole or axis than this angle (radians) use the limit of the formula there; the error is its
# square.
_POLE = 1e-6


class CameraModel(IntEnum):
    """Codes of `Cameras.model`."""

    PINHOLE = 0
    OPENCV = 1
    FISHEYE = 2
    EQUIRECTANGULAR = 3
    ORTHOGRAPHIC = 4


class LensRows(NamedTuple):
    """Distortion (N or 1, 8), limit and reach (N or 1,) of each row, and the Newton steps; see `distortion.Lens`."""

    distortion: Tensor
    limit: Tensor
    reach: Tensor
    steps: tuple[int, int]


class Projection(NamedTuple):
    """uv (N, 2); depth (N,); inside (N,) bool: in front of the camera and within the lens limit."""

    uv: Tensor
    depth: Tensor
    inside: Tensor


def unproject(model: int, uv: Tensor, lens: LensRows) -> tuple[Tensor, Tensor]:
    """Image coordinates to rays in the camera frame.

    Args:
        model: A `CameraModel` code, the same for all rows.
        uv: (N, 2).
        lens: Distortion rows; read by OPENCV and FISHEYE only.

    Returns:
        (offset, direction), each (N, 3): the ray's start and its direction, not of unit length.
    """
    u, v = uv.unbind(-1)
    one, zero = torch.ones_like(u), torch.zeros_like(u)
    offset = torch.zeros_like(uv[:, :1]).expand(-1, 3)
    if model == CameraModel.PINHOLE:
        return offset, torch.stack((u, v, one), -1)
    if model == CameraModel.OPENCV:
        xy = undistort_opencv(uv, lens.distortion, lens.limit, lens.reach, lens.steps)
        return offset, torch.cat((xy, one[:, None]), -1)
    if model == CameraModel.FISHEYE:
        squared = u * u + v * v
        central = squared < _POLE**2
        radius = torch.where(central, one, squared).sqrt()
        theta = undistort_fisheye(radius, lens.distortion, lens.limit, lens.reach, lens.steps)
        factor = torch.where(central, one, theta.sin() / radius)
        return offset, torch.stack((u * factor, v * factor, torch.where(central, one, theta.cos())), -1)
    if model == CameraModel.EQUIRECTANGULAR:
        level = v.cos()
        return offset, torch.stack((u.sin() * level, v.sin(), u.cos() * level), -1)
    return torch.stack((u, v, zero), -1), torch.stack((zero, zero, one), -1)


def project_points(model: int, xyz: Tensor, lens: LensRows) -> Projection:
    """Points of the camera frame (N, 3) to image coordinates; the inverse of `unproject`."""
    x, y, z = xyz.unbind(-1)
    if model == CameraModel.ORTHOGRAPHIC:
        return Projection(torch.stack((x, y), -1), z, z > 0)
    distance = _length(xyz)
    if model == CameraModel.EQUIRECTANGULAR:
        return Projection(_longitude_latitude(x, y, z), distance, distance > 0)
    if model == CameraModel.FISHEYE:
        return _project_fisheye(xyz, distance, lens)
    inside = z > _GRAZING * distance
    xy = xyz[:, :2] / torch.where(inside, z, torch.ones_like(z))[:, None]
    if model == CameraModel.OPENCV:
        squared = xy.square().sum(-1)
        inside = inside & (squared <= lens.limit.square())
        xy = distort_opencv(xy * shrink(squared, lens.limit)[:, None], lens.distortion)
    return Projection(xy, z, inside)


def _project_fisheye(xyz: Tensor, distance: Tensor, lens: LensRows) -> Projection:
    x, y, z = xyz.unbind(-1)
    squared = x * x + y * y
    axial = squared <= (_POLE * distance).square()
    one = torch.ones_like(z)
    across = torch.where(axial, one, squared).sqrt()
    theta = torch.atan2(across, z)
    bent = distort_fisheye(torch.minimum(theta, lens.limit), lens.distortion)
    ahead = axial & (z > 0)
    factor = torch.where(axial, one / torch.where(ahead, z, one), bent / across)
    inside = torch.where(axial, z > 0, theta <= lens.limit)
    return Projection(torch.stack((x * factor, y * factor), -1), distance, inside)


def _longitude_latitude(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    squared = x * x + z * z
    polar = squared <= _POLE**2 * y * y
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    level = torch.where(polar, one, squared).sqrt()
    longitude = torch.atan2(torch.where(polar, zero, x), torch.where(polar, one, z))
    latitude = torch.atan2(y, torch.where(polar, _POLE * y.abs() + (y == 0), level))
    return torch.stack((longitude, latitude), -1)


def _length(xyz: Tensor) -> Tensor:
    """|xyz| with a zero (not NaN) gradient at the origin."""
    squared = xyz.square().sum(-1)
    zero = squared == 0
    return torch.where(zero, torch.zeros_like(squared), torch.where(zero, torch.ones_like(squared), squared).sqrt())
