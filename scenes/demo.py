"""What is the scene `demo`, which needs no download? Cameras, splits and the cache of its pictures.

60 training and 10 test views of 400x400 RGBA look inward from a sphere, from 14 degrees below the horizon to 72 above.
Both sets are Fibonacci spirals; the test spiral is turned against the training one. Pictures are drawn on first use
(`demo_render`) and cached as one safetensors file in the user's cache folder: `$POLYFIELD_CACHE`, else the platform's.
The file's name carries a fingerprint of the sources that draw it, so that an old cache is never taken for a new scene;
a cache that cannot be read, or whose checksum is wrong, is drawn again. One that cannot be written only warns.

Ground truth of any view, with exact depth, normals and materials: `DemoGroundTruth`.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..fields.cache import cache_folder
from ..fields.errors import ConfigError, FormatError
from ..fields.formats import atomic_write
from ..fields.geometry import Cameras, Similarity, look_at
from . import demo_render, demo_shapes, demo_world
from .demo_render import GroundTruth as GroundTruth
from .demo_render import render_images
from .demo_render import render_view as render_view
from .images import Images, area_downscale

if TYPE_CHECKING:
    from .scene import Scene

TRAIN_VIEWS, TEST_VIEWS = 60, 10
SIZE = 400
"""Pixels, width and height."""
FOCAL, DISTANCE = 512.0, 3.2
"""Pixels and scene units: a unit at the scene's centre spans 160 pixels, the island three quarters of the width."""
LOWEST, HIGHEST = math.radians(-14), math.radians(72)
"""Elevation of the lowest and highest camera."""
GOLDEN_TURN = math.pi * (3 - math.sqrt(5))


def demo_cameras(split: str, *, size: int = SIZE) -> Cameras:
    """Cameras of a split, scene frame.

    Args:
        split: 'train' or 'test'.
        size: pixels; the field of view stays.
    """
    if split not in ("train", "test"):
        raise ConfigError(f"split of the built-in scene must be 'train' or 'test'; got {split!r}")
    count, turn = (TRAIN_VIEWS, 0.0) if split == "train" else (TEST_VIEWS, 0.9)
    index = torch.arange(count, dtype=torch.float64)
    low, high = math.sin(LOWEST), math.sin(HIGHEST)
    z = low + (high - low) * (index + 0.5) / count
    angle = GOLDEN_TURN * index + turn
    across = (1 - z * z).sqrt()
    position = DISTANCE * torch.stack([across * angle.cos(), across * angle.sin(), z], 1)
    poses = look_at(position, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0.0, 1.0]))
    return Cameras.create(poses.float(), width=size, height=size, focal=FOCAL * size / SIZE)


class DemoGroundTruth:
    """What is exactly true of the views of the built-in scene, drawn when asked for.

    Indexing gives one `GroundTruth`; at 400x400 it takes about half a second and 7 MB, and is not kept.
    """

    def __init__(self, split: str = "test", *, size: int = SIZE) -> None:
        """Args:
        split: 'train' or 'test'.
        size: pixels; the field of view stays.
        """
        self.cameras = demo_cameras(split, size=size)

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, view: int) -> GroundTruth:
        return render_view(self.cameras[view])


def load_demo(*, downscale: int = 1, cache_dir: str | os.PathLike[str] | None = None) -> Scene:
    """The built-in scene; drawn in seconds the first time, then read from the cache.

    Args:
        downscale: integer K; pictures are area-averaged over K x K pixels, colour weighted by alpha.
        cache_dir: folder of the cache instead of the user's cache folder.

    Returns:
        A scene of kind 'object' with RGBA pictures: frames 0-59 are 'train', 60-69 'test'.

    Raises:
        ConfigError: downscale is not an integer in [1, 400].
    """
    if not isinstance(downscale, int) or not 1 <= downscale <= SIZE:
        raise ConfigError(f"downscale of the built-in scene must be an integer from 1 to {SIZE}; got {downscale!r}")
    from .scene import Scene

    cameras = Cameras.concatenate([demo_cameras("train"), demo_cameras("test")])
    pictures = _pictures(cameras, cache_folder(cache_dir))
    pictures = torch.stack([torch.from_numpy(area_downscale(p.numpy(), downscale)) for p in pictures])
    cameras = cameras.downscaled(downscale)
    frames, height, width, channels = pictures.shape
    train = torch.arange(TRAIN_VIEWS)
    return Scene(
        name="demo",
        kind="object",
        cameras=cameras,
        images=Images(
            pixels=pictures.reshape(-1, channels),
            offsets=torch.arange(frames) * (height * width),
            width=cameras.width,
            height=cameras.height,
        ),
        splits={"train": train, "test": torch.arange(TRAIN_VIEWS, frames)},
        to_scene=Similarity.identity(),
        points=None,
        bounds=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]),
        background="white",
        warnings=[],
        protocol={
            "format": "demo",
            "downscale": downscale,
            "resolution": [width, height],
            "split": "60 training and 10 test cameras on turned Fibonacci spirals",
        },
    )


def _pictures(cameras: Cameras, folder: Path) -> Tensor:
    path = folder / f"demo-{fingerprint()}.safetensors"
    cached = _read_cache(path, (len(cameras), SIZE, SIZE, 4))
    if cached is not None:
        return cached
    pictures = torch.stack(render_images(cameras))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_cache(path, pictures)
    except (OSError, FormatError) as error:
        warnings.warn(f"the built-in scene will be drawn again next time: {error}", RuntimeWarning, stacklevel=3)
    return pictures


def _read_cache(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The pictures, or None where there is no cache, or none that can be trusted."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            stated = (file.metadata() or {}).get("checksum")
            pictures = file.get_tensor("pictures")
    except (OSError, SafetensorError):
        return None
    sound = pictures.dtype == torch.uint8 and pictures.shape == shape and checksum(pictures) == stated
    return pictures if sound else None


def _write_cache(path: Path, pictures: Tensor) -> None:
    from safetensors.torch import save_file

    header = {"checksum": checksum(pictures)}
    atomic_write(path, lambda temporary: save_file({"pictures": pictures}, temporary, metadata=header))


def checksum(pictures: Tensor) -> str:
    """Digest of the bytes of a contiguous uint8 tensor."""
    return hashlib.blake2b(pictures.numpy().data, digest_size=16).hexdigest()


@cache
def fingerprint() -> str:
    """Digest of the sources that decide what the pictures are."""
    digest = hashlib.blake2b(digest_size=6)
    for path in (__file__, demo_render.__file__, demo_shapes.__file__, demo_world.__file__):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()
