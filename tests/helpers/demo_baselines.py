"""Baselines that the built-in scene must be too hard for: the nearest view's colour, and a 32^3 voxel grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from polyfield.fields.geometry import Cameras


def on_white(pictures: Tensor) -> Tensor:
    """(..., 4) uint8 straight alpha to (..., 3) float on white."""
    values = pictures.float() / 255
    return values[..., :3] * values[..., 3:] + 1 - values[..., 3:]


def mean_psnr(images: Tensor, truth: Tensor) -> float:
    """Mean over images of the PSNR of each; (F, P, 3) in [0, 1]."""
    error = (images.clamp(0, 1) - truth).square().flatten(1).mean(1)
    return float((-10 * error.clamp_min(1e-12).log10()).mean())


def nearest_view_psnr(cameras: Cameras, pictures: Tensor, train: Tensor, test: Tensor) -> float:
    """Every test pixel takes the colour of the same pixel in the train view whose camera is nearest."""
    centres = cameras.centres()
    nearest = train[torch.cdist(centres[test], centres[train]).argmin(1)]
    return mean_psnr(on_white(pictures[nearest]).flatten(1, 2), on_white(pictures[test]).flatten(1, 2))


class VoxelGrid:
    """Density and colour at side^3 points of [-1, 1]^3, trilinear, composited on white; fitted by Adam."""

    def __init__(self, side: int = 32) -> None:
        self.values = torch.zeros(1, 4, side, side, side)
        self.values[:, 3] = -2.0
        self.values.requires_grad_()
        self.step = 2 / side  # one sample a voxel

    def render(self, origins: Tensor, directions: Tensor, jitter: float) -> Tensor:
        low, high = (-1 - origins) / directions, (1 - origins) / directions
        near = torch.minimum(low, high).amax(1, keepdim=True).clamp_min(0)
        far = torch.maximum(low, high).amin(1, keepdim=True)
        t = near + self.step * (torch.arange(math.ceil(2 * math.sqrt(3) / self.step)) + jitter)
        points = origins[:, None] + t[..., None] * directions[:, None]
        # grid_sample's corners (align_corners) lie on the faces of the cube; its last axis is x.
        value = torch.nn.functional.grid_sample(self.values, points[None, None], align_corners=True)[0, :, 0]
        sigma = torch.nn.functional.softplus(value[3]) * 20 * (t < far)
        through = torch.exp(-torch.cumsum(sigma * self.step, 1))
        before = torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], 1)
        weight = before - through
        return (weight * value[:3].sigmoid()).sum(2).T + through[:, -1:]

    def fit(self, cameras: Cameras, pictures: Tensor, frames: Tensor, steps: int, rays: int = 4096) -> None:
        generator = torch.Generator().manual_seed(0)
        optimiser = torch.optim.Adam([self.values], lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        height, width = pictures.shape[1:3]
        for _ in range(steps):
            frame = frames[torch.randint(len(frames), (rays,), generator=generator)]
            x = torch.randint(width, (rays,), generator=generator)
            y = torch.randint(height, (rays,), generator=generator)
            bundle = cameras.rays(frame, torch.stack([x, y], 1) + 0.5)
            image = self.render(*bundle[:2], float(torch.rand((), generator=generator)))
            loss = (image - on_white(pictures[frame, y, x])).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()

    @torch.no_grad()
    def psnr(self, cameras: Cameras, pictures: Tensor, frames: Tensor, stride: int) -> float:
        """On every stride-th pixel both ways."""
        images = []
        for frame in frames.tolist():
            origins, directions = (
                part.view(*pictures.shape[1:3], 3)[::stride, ::stride].reshape(-1, 3)
                for part in cameras.image_rays(frame)[:2]
            )
            images.append(self.render(origins, directions, 0.5))
        truth = on_white(pictures[frames][:, ::stride, ::stride]).flatten(1, 2)
        return mean_psnr(torch.stack(images), truth)
