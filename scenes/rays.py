"""Training rays of a scene: random pixels of the training frames, the same for the same (seed, step).

Fields that integrate their encoding also see pictures of lower resolution, as mip-NeRF does (Barron et al. 2021,
section 4.1): half of their rays go through squares of several pixels and have cones as wide. What such a cone sees must
be learned: of pixels alone a field learns nothing about wider ones, and aliases when it is rendered small.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..fields.geometry import Cameras, refine
from ..fields.optim.field_task import RayBatch
from .images import Images
from .scene import Scene

SIDES = (1, 2, 4, 8)
"""Pixels along the sides of squares, mip-NeRF's four scales, for half of the rays, a quarter, an eighth, an eighth."""
FITTING = 8
"""Squares of a side are left out where fewer of them than this fit beside one another in a frame."""


class SceneRays:
    """`fields.optim.field_task.RaySource` over some frames of a scene."""

    def __init__(
        self,
        scene: Scene,
        frames: Tensor,
        *,
        seed: int = 0,
        pose_delta: nn.Parameter | None = None,
        radii: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Args:
        frames: (F,) int64 frames to draw from.
        pose_delta: (all frames, 6) learned corrections of the poses, or None.
        radii: whether rays come with the radii of their cones, and half of them see several pixels, for fields that
            integrate their encoding.
        device: where rays are drawn. The photos come along where they fit into half of what is free there, else each
            batch is fetched from where they are.
        """
        self.device, self.seed, self.pose_delta, self.radii = torch.device(device), seed, pose_delta, radii
        self.images = scene.images.to(self.device) if _fits(scene.images, self.device) else scene.images
        self.given, self.frames = scene.cameras.to(self.device), frames.to(self.device)
        self.width, self.height = self.given.width.long(), self.given.height.long()
        self.masked = scene.images.masks is not None
        least = int(torch.minimum(self.width, self.height)[self.frames].min())
        self.sides = tuple(side for side in SIDES if side == 1 or (radii and side * FITTING <= least))

    def batch(self, step: int, count: int) -> RayBatch:
        """`count` rays through the middles of pixels or squares, frames and pixels uniform, masked pixels left out."""
        generator = torch.Generator(self.device)
        generator.manual_seed((self.seed * 0x9E3779B97F4A7C15 + step) % (1 << 63))
        frames, x, y = self._pixels(count, generator)
        parts = [self._squares(side, frames[part], x[part], y[part]) for side, part in self._shares(count)]
        middles, color = (torch.cat(values) if len(parts) > 1 else values[0] for values in zip(*parts, strict=True))
        rays = self.cameras().rays(frames, middles, radii=self.radii)
        if rays.radii is not None:
            wider = [rays.radii[part] * side for side, part in self._shares(count)]
            rays = rays._replace(radii=torch.cat(wider))
        backgrounds = torch.rand(count, 3, generator=generator, device=self.device)
        if color.shape[1] == 4:
            color = color[:, :3] + backgrounds * (1 - color[:, 3:])
        return RayBatch(rays, color, backgrounds, frames)

    def cameras(self) -> Cameras:
        """The scene's cameras with the learned corrections."""
        return self.given if self.pose_delta is None else refine(self.given, self.pose_delta)

    def _shares(self, count: int) -> list[tuple[int, slice]]:
        """Sides of squares, and which rays see such: half of them, then half of the others; the last side the rest."""
        ends = [count - (count >> k) for k in range(1, len(self.sides))] + [count]
        return [(side, slice(a, b)) for side, a, b in zip(self.sides, [0, *ends], ends, strict=False)]

    def _squares(self, side: int, frames: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Middles (R, 2) and mean colours (R, 3 or 4) in [0, 1], alpha multiplied in, of squares within the frames that
        hold pixels (x, y)."""
        if side > 1:
            x, y = torch.minimum(x, self.width[frames] - side), torch.minimum(y, self.height[frames] - side)
        middles = torch.stack([x, y], 1).float() + side / 2
        steps = torch.arange(side, device=x.device)
        down, across = torch.meshgrid(steps, steps, indexing="ij")
        pixels = (
            frames.repeat_interleave(side * side),
            (x[:, None] + across.flatten()).flatten(),
            (y[:, None] + down.flatten()).flatten(),
        )
        color = self._fetch(self.images.sample, *pixels).float() * (1 / 255)
        if color.shape[1] == 4:
            color = torch.cat([color[:, :3] * color[:, 3:], color[:, 3:]], 1)
        if side == 1:
            return middles, color
        color = color.unflatten(0, (len(frames), side * side))
        if not self.masked:
            return middles, color.mean(1)
        seen = (self._fetch(self.images.sample_masks, *pixels) > 0).reshape(len(frames), side * side, 1)
        return middles, (color * seen).sum(1) / seen.sum(1)

    def _pixels(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(count,) frames, columns and rows. Masked pixels are drawn again."""
        frames, x, y = self._draw(count, generator)
        for _ in range(64 if self.masked else 0):
            hidden = self._fetch(self.images.sample_masks, frames, x, y) == 0
            missing = int(hidden.sum())
            if not missing:
                break
            frames[hidden], x[hidden], y[hidden] = self._draw(missing, generator)
        return frames, x, y

    def _fetch(self, sample: Callable[..., Tensor], *pixels: Tensor) -> Tensor:
        there = self.images.pixels.device
        return sample(*(index.to(there) for index in pixels)).to(self.device)

    def _draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        frames = self.frames[torch.randint(len(self.frames), (count,), generator=generator, device=self.device)]
        u, v = torch.rand(2, count, generator=generator, device=self.device).unbind(0)
        width, height = self.width[frames], self.height[frames]
        x = (u * width).long().clamp_(max=width - 1)
        y = (v * height).long().clamp_(max=height - 1)
        return frames, x, y


def _fits(images: Images, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    masks = 0 if images.masks is None else images.masks.nbytes
    return images.pixels.nbytes + masks < free // 2
