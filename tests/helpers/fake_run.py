"""A scene of a few small pictures and a model with no field in it: they drive the command line in milliseconds."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from polyfield.fields.geometry import Cameras, Similarity

WIDTH, HEIGHT, FRAMES = 16, 12, 6


def ring_cameras(frames: int = FRAMES, radius: float = 3.0, width: int = WIDTH, height: int = HEIGHT) -> Cameras:
    """Cameras on a circle at 30 degrees, looking at the origin."""
    from polyfield.scenes.camera_paths import View, orbit

    return orbit(View(torch.zeros(3), radius, 30.0, 40.0), frames, size=(width, height))


class FakeImages:
    """`Images` with one random picture per frame."""

    def __init__(self, channels: int = 3, masked: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        count = FRAMES * WIDTH * HEIGHT
        self.pixels = torch.randint(0, 256, (count, channels), generator=generator, dtype=torch.uint8)
        self.masks = (torch.rand(count, generator=generator) < 0.5).to(torch.uint8) * 255 if masked else None

    def image(self, frame: int) -> torch.Tensor:
        return self.pixels.reshape(FRAMES, HEIGHT, WIDTH, -1)[frame]

    def mask(self, frame: int) -> torch.Tensor | None:
        return None if self.masks is None else self.masks.reshape(FRAMES, HEIGHT, WIDTH)[frame]


def to_scene() -> Similarity:
    """Half size, turned by 30 degrees about z, moved."""
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return Similarity(0.5, turn, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))


def fake_scene(channels: int = 3, masked: bool = False, test: bool = True) -> Any:
    """What the commands read of a `Scene`."""
    splits = {"train": torch.tensor([0, 1, 2, 3]), "test": torch.tensor([4, 5] if test else [], dtype=torch.int64)}
    return SimpleNamespace(
        name="toy",
        kind="object",
        cameras=ring_cameras(),
        images=FakeImages(channels, masked),
        splits=splits,
        to_scene=to_scene(),
        background="white" if channels == 4 else "none",
        warnings=[],
        protocol={"downscale": 1, "split_rule": "every 3rd"},
    )


class FakeModel:
    """What the commands read of a `Model`."""

    def __init__(self, transform: Similarity | None = None) -> None:
        self.to_dataset = (transform or to_scene()).inverse()
        self.background = "white"
        self.representation = SimpleNamespace(bounds=torch.tensor([[-1.0] * 3, [1.0] * 3]))
        self.provenance: dict[str, object] = {}

    def save(self, path: Path) -> None:
        Path(path).write_bytes(b"model")


def fake_model(transform: Similarity | None = None) -> Any:
    """A `Model` as far as the code under test reads it."""
    return FakeModel(transform)


def fake_frame(width: int = WIDTH, height: int = HEIGHT, value: float = 0.5) -> Any:
    """A `Frame`: plain colour, depth growing to the right with one empty column, normals towards +x."""
    depth = torch.linspace(1.0, 3.0, width).expand(height, width).clone()
    depth[:, 0] = math.inf
    normal = torch.zeros(height, width, 3)
    normal[..., 0] = 1.0
    return SimpleNamespace(
        rgb=torch.full((height, width, 3), value), alpha=torch.ones(height, width), depth=depth, normal=normal
    )
