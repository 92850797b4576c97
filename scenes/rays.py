"""Training rays of a scene: random pixels of the training frames, the same for the same (seed, step)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..fields.geometry import Cameras, refine
from ..fields.optim.field_task import RayBatch
from .images import Images
from .scene import Scene


class SceneRays:
    """`fields.optim.field_task.RaySource` over some frames of a scene."""

    def __init__(
        self,
        scene: Scene,
        frames: Tensor,
        *,
        seed: int = 0,
        pose_delta: nn.Parameter | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Args:
        frames: (F,) int64 frames to draw from.
        pose_delta: (all frames, 6) learned corrections of the poses, or None.
        device: where rays are drawn. The photos come along where they fit into half of what is free there, else each
            batch is fetched from where they are.
        """
        self.device, self.seed, self.pose_delta = torch.device(device), seed, pose_delta
        self.images = scene.images.to(self.device) if _fits(scene.images, self.device) else scene.images
        self.given, self.frames = scene.cameras.to(self.device), frames.to(self.device)
        self.width, self.height = self.given.width.long(), self.given.height.long()
        self.masked = scene.images.masks is not None

    def batch(self, step: int, count: int) -> RayBatch:
        """`count` rays through pixel centres, frames and pixels uniform, masked pixels left out."""
        generator = torch.Generator(self.device)
        generator.manual_seed((self.seed * 0x9E3779B97F4A7C15 + step) % (1 << 63))
        frames, x, y = self._pixels(count, generator)
        pixels = torch.stack([x, y], 1).float() + 0.5
        rays = self.cameras().rays(frames, pixels)
        color = self._fetch(self.images.sample, frames, x, y).float() * (1 / 255)
        backgrounds = torch.rand(count, 3, generator=generator, device=self.device)
        if color.shape[1] == 4:
            alpha = color[:, 3:]
            color = color[:, :3] * alpha + backgrounds * (1 - alpha)
        return RayBatch(rays, color, backgrounds, frames)

    def cameras(self) -> Cameras:
        """The scene's cameras with the learned corrections."""
        return self.given if self.pose_delta is None else refine(self.given, self.pose_delta)

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
