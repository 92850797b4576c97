"""A scene small enough to train on in a test: a coloured ball, views of 24 x 24 pixels, made without any file."""

from __future__ import annotations

import torch

from polyfield.fields import Cameras, Similarity
from polyfield.fields.geometry import look_at
from polyfield.scenes.images import Images
from polyfield.scenes.scene import Scene

SIDE = 24


def tiny_scene(views: int = 12) -> Scene:
    """RGBA, object-like, in the scene frame; the last two frames are the test split, the others train."""
    k = torch.arange(views) + 0.5
    z, angle = 1 - 2 * k / views, k * 2.399963
    radius = (1 - z * z).sqrt()
    position = 3.0 * torch.stack([radius * angle.cos(), radius * angle.sin(), z], 1)
    poses = torch.stack([look_at(p, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])) for p in position])
    cameras = Cameras.create(poses, width=SIDE, height=SIDE, focal=SIDE * 1.4)
    frames = []
    for frame in range(views):
        origins, directions, _ = cameras.image_rays(frame)
        along = -(origins * directions).sum(1)
        nearest = origins + along[:, None] * directions
        distance = nearest.norm(dim=1)
        half = (0.36 - distance.square()).clamp(min=0).sqrt()
        hit = origins + (along - half)[:, None] * directions
        color = hit / 0.6 * 0.4 + 0.5
        alpha = ((0.6 - distance) * (SIDE * 1.4 / 3) + 0.5).clamp(0, 1)  # edges one pixel wide
        rgba = torch.cat([color.clamp(0, 1), alpha[:, None]], 1)
        frames.append((rgba * 255).round().to(torch.uint8).reshape(SIDE, SIDE, 4))
    return Scene(
        name="tiny",
        kind="object",
        cameras=cameras,
        images=Images.from_frames(frames),
        splits={"train": torch.arange(views - 2), "test": torch.arange(views - 2, views)},
        to_scene=Similarity.identity(),
        bounds=torch.tensor([[-1.0] * 3, [1.0] * 3]),
        background="white",
    )
