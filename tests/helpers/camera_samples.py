"""Cameras for tests: one of each model, posed at random, and pixels inside their images."""

from __future__ import annotations

import math

import torch

from polyfield.fields.geometry import CameraModel, Cameras, look_at

OPENCV_DISTORTION = [0.08, -0.05, 0.02, -0.015, 0.01, 0.02, -0.01, 0.002]
FISHEYE_DISTORTION = [0.04, -0.02, 0.004, -0.0005, 0.0, 0.0, 0.0, 0.0]


def random_poses(frames: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(frames, 3, 4) poses about the origin, looking near it, with a random up."""
    generator = torch.Generator().manual_seed(seed)
    position = 3 * torch.randn(frames, 3, generator=generator, dtype=dtype)
    target = 0.3 * torch.randn(frames, 3, generator=generator, dtype=dtype)
    return look_at(position, target, torch.randn(frames, 3, generator=generator, dtype=dtype))


def camera(
    model: CameraModel, frames: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float64, **changes
) -> Cameras:
    """Cameras of one model, 64 x 48 pixels, principal point off the centre."""
    focal = {
        CameraModel.FISHEYE: 25.0,
        CameraModel.EQUIRECTANGULAR: torch.tensor([64 / math.tau, 48 / math.pi]),
        CameraModel.ORTHOGRAPHIC: 20.0,
    }.get(model, 50.0)
    bend = {CameraModel.OPENCV: OPENCV_DISTORTION, CameraModel.FISHEYE: FISHEYE_DISTORTION}.get(model, [0.0] * 8)
    centre = [32.0, 24.0] if model == CameraModel.EQUIRECTANGULAR else [31.0, 25.5]
    settings = {
        "width": 64,
        "height": 48,
        "focal": focal,
        "principal": torch.tensor(centre),
        "distortion": torch.tensor(bend, dtype=dtype),
        "model": model,
    }
    return Cameras.create(random_poses(frames, seed, dtype), **{**settings, **changes})


def mixed(frames_each: int = 2, dtype: torch.dtype = torch.float64) -> Cameras:
    """All models in one batch."""
    return Cameras.concatenate([camera(model, frames_each, seed=int(model), dtype=dtype) for model in CameraModel])


def random_pixels(cameras: Cameras, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames (count,) and pixels (count, 2) inside the images."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, len(cameras), (count,), generator=generator)
    extent = torch.stack((cameras.width, cameras.height), -1)[frames]
    unit = torch.rand(count, 2, generator=generator, dtype=cameras.intrinsics.dtype)
    return frames, unit * extent
