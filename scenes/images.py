"""Where are the pixels of a scene, and how do they get there?

All frames lie one after the other in one flat uint8 tensor, whatever their sizes, in memory or, past a byte budget, in
a memory-mapped file. The memory needed is known from the headers before a pixel is decoded. Files are decoded by a few
threads (the decoders release the interpreter lock), each writing its frame in place.

Downscaling averages whole blocks of K x K pixels of sRGB-encoded values, colour weighted by alpha; columns and rows
that fill no block are cut off, as `Cameras.downscaled` does.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..fields.cache import cache_folder
from ..fields.errors import ConfigError, FormatError, ShapeError
from .image_files import Header, read_header, read_image, read_mask

# Decoding is limited by memory bandwidth beyond this; each thread also holds one decoded image.
_MAX_THREADS = 16
# Sums of 255 * 255 over 128 x 128 pixels, doubled for rounding, are half of what 32 bits hold.
MAX_DOWNSCALE = 128
_ASSUMED_MEMORY = 4 << 30  # where the system does not tell


@dataclass(frozen=True, eq=False)
class Images:
    """The frames of a scene, flat.

    Attributes:
        pixels: (P, C) uint8, C = 3 or 4 (straight alpha), sRGB-encoded, frame after frame, row by row; perhaps mapped.
        offsets: (F,) int64, the first pixel of each frame.
        width: (F,) int32 pixels.
        height: (F,) int32 pixels.
        masks: (P,) uint8, 0 where a pixel is not to be used; None without masks.
        file_backed: Whether the pixels lie in a memory-mapped file.
    """

    pixels: Tensor
    offsets: Tensor
    width: Tensor
    height: Tensor
    masks: Tensor | None = None
    file_backed: bool = False

    def __post_init__(self) -> None:
        frames = len(self.offsets)
        if self.pixels.ndim != 2 or self.pixels.shape[1] not in (3, 4) or self.pixels.dtype != torch.uint8:
            raise ShapeError(f"pixels must be (P, 3 or 4) uint8; got {tuple(self.pixels.shape)} {self.pixels.dtype}")
        if self.width.shape != (frames,) or self.height.shape != (frames,):
            raise ShapeError(f"width and height of {frames} frames must be ({frames},); got {tuple(self.width.shape)}")
        if self.masks is not None and self.masks.shape != self.pixels.shape[:1]:
            raise ShapeError(f"masks must be ({len(self.pixels)},); got {tuple(self.masks.shape)}")
        if int((self.width.long() * self.height.long()).sum()) != len(self.pixels):
            raise ShapeError(f"the frames' sizes add up to other than the {len(self.pixels)} pixels given")

    @staticmethod
    def from_frames(frames: Sequence[Tensor], masks: Sequence[Tensor] | None = None) -> Images:
        """Join (H, W, C) uint8 images, all with the same C, and (H, W) uint8 masks."""
        sizes = torch.tensor([frame.shape[:2] for frame in frames], dtype=torch.int32).reshape(-1, 2)
        flat = [frame.reshape(-1, frame.shape[2]) for frame in frames]
        return Images(
            pixels=torch.cat(flat) if flat else torch.empty(0, 3, dtype=torch.uint8),
            offsets=_offsets(sizes),
            width=sizes[:, 1].contiguous(),
            height=sizes[:, 0].contiguous(),
            masks=None if masks is None else torch.cat([mask.reshape(-1) for mask in masks]),
        )

    def __len__(self) -> int:
        return len(self.offsets)

    def to(self, device: torch.device | str) -> Images:
        """The same frames in the memory of `device`."""
        return replace(
            self,
            pixels=self.pixels.to(device),
            offsets=self.offsets.to(device),
            width=self.width.to(device),
            height=self.height.to(device),
            masks=None if self.masks is None else self.masks.to(device),
            file_backed=self.file_backed and torch.device(device).type == "cpu",
        )

    def image(self, frame: int) -> Tensor:
        """(H, W, C) uint8 view of a frame.

        Raises:
            IndexError: No such frame (negative numbers count from the end).
        """
        rows, height, width = self._span(frame)
        return self.pixels[rows].view(height, width, -1)

    def mask(self, frame: int) -> Tensor:
        """(H, W) uint8 view of a frame's mask; all 255 where the scene has none."""
        rows, height, width = self._span(frame)
        if self.masks is None:
            return torch.full((height, width), 255, dtype=torch.uint8)
        return self.masks[rows].view(height, width)

    def sample(self, frames: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """(R, C) uint8 pixels at columns x and rows y.

        Args:
            frames: (R,) int64 frame numbers.
            x: (R,) int64 columns, 0 to width - 1.
            y: (R,) int64 rows, 0 to height - 1.

        Raises:
            IndexError: A pixel outside its frame.
        """
        return self.pixels[self._places(frames, x, y)]

    def sample_masks(self, frames: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """(R,) uint8 mask values at columns x and rows y; all 255 where the scene has none."""
        places = self._places(frames, x, y)
        return torch.full_like(places, 255, dtype=torch.uint8) if self.masks is None else self.masks[places]

    def _span(self, frame: int) -> tuple[slice, int, int]:
        if not -len(self) <= frame < len(self):
            raise IndexError(f"frame {frame} of {len(self)}")
        start, width, height = (int(values[frame]) for values in (self.offsets, self.width, self.height))
        return slice(start, start + width * height), height, width

    def _places(self, frames: Tensor, x: Tensor, y: Tensor) -> Tensor:
        width, height = self.width[frames], self.height[frames]
        if bool(((x < 0) | (y < 0) | (x >= width) | (y >= height)).any()):
            raise IndexError("a sampled pixel lies outside its frame")
        return self.offsets[frames] + y * width + x


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """One frame to read.

    Attributes:
        path: The image.
        header: As read from it.
        turned: Whether its EXIF orientation is applied.
        mask: Its mask, of the same size, or None.
    """

    path: Path
    header: Header
    turned: bool = True
    mask: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as it will be decoded."""
        return self.header.turned_size if self.turned else (self.header.width, self.header.height)


def read_headers(paths: Sequence[Path]) -> list[Header]:
    """The headers of many images; the first broken one raises."""
    with _pool() as pool:
        return list(pool.map(read_header, paths))


def bytes_needed(sources: Sequence[ImageSource], *, downscale: int = 1, masks_as_alpha: bool = False) -> int:
    """The size of the pixels and masks once loaded, known without decoding."""
    pixels = sum((s.size[0] // downscale) * (s.size[1] // downscale) for s in sources)
    masked = any(s.mask is not None for s in sources)
    return pixels * (_channels(sources, masks_as_alpha) + (masked and not masks_as_alpha))


def load_images(
    sources: Sequence[ImageSource],
    *,
    downscale: int = 1,
    masks_as_alpha: bool = False,
    byte_budget: int | None = None,
    cache_dir: Path | None = None,
) -> tuple[Images, bool]:
    """Decode, downscale and store frames.

    Args:
        sources: The frames, in order.
        downscale: Side of the blocks that are averaged.
        masks_as_alpha: The masks show the object: they become (or multiply) the alpha channel.
        byte_budget: Most bytes of memory for the pixels; more goes to a mapped file. None: half of the memory that is
            free.
        cache_dir: Folder of that file; None: POLYFIELD_CACHE, else the user's cache folder. It is gone with the
            process.

    Returns:
        (images, opaque): opaque tells that every alpha is 255 or that there is no alpha.

    Raises:
        FormatError: A broken image, or a mask of another size.
        ConfigError: No room for the file.
    """
    channels = _channels(sources, masks_as_alpha)
    masked = any(source.mask is not None for source in sources) and not masks_as_alpha
    sizes = torch.tensor([(s.size[1] // downscale, s.size[0] // downscale) for s in sources], dtype=torch.int32)
    offsets, total = _offsets(sizes.reshape(-1, 2)), int(sizes.long().prod(1).sum()) if len(sources) else 0
    needed = total * (channels + masked)
    budget = available_memory() // 2 if byte_budget is None else byte_budget
    file_backed = needed > budget
    store = map_file(needed, cache_dir) if file_backed else torch.empty(needed, dtype=torch.uint8)
    pixels = store[: total * channels].view(total, channels)
    masks = store[total * channels :] if masked else None
    views = [
        _Target(
            pixels[start : start + h * w].view(h, w, channels), None if masks is None else masks[start : start + h * w]
        )
        for start, (h, w) in zip(offsets.tolist(), sizes.tolist(), strict=True)
    ]

    def read(index: int) -> bool:
        return _read_frame(sources[index], views[index], downscale, masks_as_alpha)

    with warnings.catch_warnings(), _pool() as pool:
        # Photos of 90 to 179 million pixels are fine; Pillow's warning about them means nothing to our users.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        opaque = all(list(pool.map(read, range(len(sources)))))
    images = Images(pixels, offsets, sizes[:, 1].contiguous(), sizes[:, 0].contiguous(), masks, file_backed)
    return images, opaque


def area_downscale(image: np.ndarray, factor: int) -> np.ndarray:
    """Averages blocks of factor x factor pixels of (H, W, C) uint8; with 4 channels colour is weighted by alpha."""
    if factor == 1:
        return image
    height, width, channels = image.shape[0] // factor, image.shape[1] // factor, image.shape[2]
    cut = image[: height * factor, : width * factor]
    if channels != 4:
        sums = _block_sums(cut, factor)
        return ((sums * 2 + factor * factor) // (2 * factor * factor)).astype(np.uint8)
    alpha = cut[..., 3:].astype(np.uint32)
    weighted = _block_sums(cut[..., :3] * alpha, factor)
    weight = _block_sums(alpha, factor)
    colour = (weighted * 2 + weight) // np.maximum(2 * weight, 1)
    mean = (weight * 2 + factor * factor) // (2 * factor * factor)
    return np.concatenate([colour, mean], axis=2).astype(np.uint8)


def available_memory() -> int:
    """Bytes of memory that can be taken now, the limit of a container included."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    if not found:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return max(min(found, default=_ASSUMED_MEMORY), 0)


def demand_memory(path: Path, needed: int, there: int | None = None) -> None:
    """Refuse a file that would take more bytes than are there (by default `available_memory()`).

    Raises:
        FormatError: with both in GB.
    """
    there = available_memory() if there is None else there
    if needed > there:
        raise FormatError(f"{path}: needs {needed / 1e9:.1f} GB of memory, {there / 1e9:.1f} GB are there; shrink it")


def map_file(size: int, cache_dir: Path | None) -> Tensor:
    """(size,) uint8 in a new file of `cache_dir`, which vanishes with the tensor (on POSIX even after a kill).

    Raises:
        ConfigError: The folder cannot be written, or the disk has no room.
    """
    folder = cache_folder(cache_dir)
    path = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(prefix="polyfield-pixels-", suffix=".bin", dir=folder)
        try:
            # Reserved now: a disk that fills up later would kill the process in the middle of a store.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, size)
            else:
                os.truncate(handle, size)
        finally:
            os.close(handle)
        mapped = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        if path is not None:
            _remove(path)
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{folder}: no room for {size / 1e9:.2f} GB of pixels ({reason}); raise byte_budget, set cache_dir or "
            "POLYFIELD_CACHE to a folder with room, or downscale"
        ) from error
    if os.name == "posix":
        _remove(path)  # the mapping keeps the content until it goes
    else:
        weakref.finalize(mapped.untyped_storage(), _remove, path)
    return mapped


@dataclass(frozen=True)
class _Target:
    """Where a frame goes: pixels (H, W, C) and mask (H * W,) or None."""

    pixels: Tensor
    mask: Tensor | None


def _read_frame(source: ImageSource, target: _Target, downscale: int, masks_as_alpha: bool) -> bool:
    """Decode one frame into its place; tells whether it is opaque."""
    image = read_image(source.path, turned=source.turned)
    if (image.shape[1], image.shape[0]) != source.size:
        raise FormatError(f"{source.path}: changed while it was read (now {image.shape[1]}x{image.shape[0]} pixels)")
    mask = None if source.mask is None else _read_matching_mask(source)
    channels = target.pixels.shape[2]
    if image.shape[2] < channels:
        image = np.concatenate([image, np.full((*image.shape[:2], 1), 255, np.uint8)], axis=2)
    if mask is not None and masks_as_alpha:
        image = image.copy()
        image[..., 3] = (image[..., 3].astype(np.uint16) * mask + 127) // 255
    image = area_downscale(image, downscale)
    target.pixels.numpy()[...] = image
    if target.mask is not None:
        kept = np.full(source.size[::-1], 255, np.uint8) if mask is None else mask
        # A block that is partly hidden is hidden: its average holds colours that are not to be used.
        visible = np.where(kept > 127, 255, 0).astype(np.uint8)[..., None]
        target.mask.numpy()[...] = (area_downscale(visible, downscale)[..., 0] == 255).ravel() * np.uint8(255)
    return channels == 3 or bool((image[..., 3] == 255).all())


def _read_matching_mask(source: ImageSource) -> np.ndarray:
    assert source.mask is not None
    mask = read_mask(source.mask, turned=source.turned)
    if (mask.shape[1], mask.shape[0]) != source.size:
        raise FormatError(
            f"{source.mask}: a mask of {mask.shape[1]}x{mask.shape[0]} pixels for {source.path.name} of "
            f"{source.size[0]}x{source.size[1]}; both must have the same size"
        )
    return mask


def _channels(sources: Sequence[ImageSource], masks_as_alpha: bool) -> int:
    with_alpha = any(source.header.channels == 4 for source in sources)
    return 4 if with_alpha or (masks_as_alpha and any(source.mask is not None for source in sources)) else 3


def _offsets(sizes: Tensor) -> Tensor:
    """(F, 2) sizes to (F,) int64 first pixels."""
    areas = sizes.long().prod(1)
    return areas.cumsum(0) - areas


def _block_sums(values: np.ndarray, factor: int) -> np.ndarray:
    """Sums over blocks, (H / factor, W / factor, C) uint32: exact for blocks of up to MAX_DOWNSCALE."""
    height, width, channels = values.shape
    total = np.zeros((height // factor, width // factor, channels), np.uint32)
    for row in range(factor):
        for column in range(factor):
            total += values[row::factor, column::factor]
    return total


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_MAX_THREADS, max(1, os.cpu_count() or 1)))


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
