"""What is a scene, and how does a folder become one?

`load_scene` parses a data set (`scenes.datasets`, which reads no pixels), drops images that are absent, makes lenses
and image sizes agree, finds the scene frame, splits the frames, and reads the pixels. All but the last
step is `survey`, which is quick: `polyfield info` stops there.

Splits are the data set's own; else every frame whose index, in the file-name order of the images present, is divisible
by 8 is held out for testing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..fields.errors import ConfigError, FormatError
from ..fields.geometry import CameraModel, Cameras, CaptureKind, Normalisation, Similarity, normalise
from .datasets import Capture, CaptureFrame, parse
from .image_files import Header, read_image
from .images import MAX_DOWNSCALE, ImageSource, bytes_needed, load_images, read_headers
from .images import Images as Images

HOLD_OUT_EVERY = 8  # LLFF's and mip-NeRF 360's convention
_PROBED = 3  # RGBA images looked at to tell whether their alpha says anything


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Posed photos in the scene frame: z up, region of interest about [-1, 1]^3.

    Attributes:
        name: The folder's name, or "demo".
        kind: object (all within [-1, 1]^3), forward (cameras look one way) or unbounded.
        cameras: F cameras, float32, scene frame, for the images as loaded.
        images: Their pixels.
        splits: "train", "test" and perhaps "val": int64 frame numbers.
        to_scene: Data set frame to scene frame.
        points: (P, 3) float32 scene frame, or None.
        bounds: (2, 3) float32 scene frame: the box of what is to be reconstructed, see `geometry.scene_bounds`.
        background: What evaluation composites transparent pixels on; "none" where the photos are opaque.
        warnings: What the user should know, one line each.
        protocol: How the photos were reached: layout, image folder, downscale, resolution, split rule.
        point_colors: (P, 3) uint8, or None.
        times: (F,) float32 as the data set states them, or None.
        paths: The image files, in frame order; empty for "demo".
        near_far: Distances that hold the scene, scene units, where known; else None.
    """

    name: str
    kind: CaptureKind
    cameras: Cameras
    images: Images
    splits: dict[str, Tensor]
    to_scene: Similarity
    bounds: Tensor
    background: Literal["white", "black", "none"]
    points: Tensor | None = None
    warnings: list[str] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)
    point_colors: Tensor | None = None
    times: Tensor | None = None
    paths: tuple[Path, ...] = ()
    near_far: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A scene but for its pixels; attributes as in `Scene`, and:

    Attributes:
        capture: What the data set said.
        frames: The frames whose image is present, in scene order.
        sources: Their images.
        bytes_needed: What pixels and masks will take.
        downscale: As asked for.
    """

    name: str
    capture: Capture
    frames: list[CaptureFrame]
    sources: list[ImageSource]
    cameras: Cameras
    placement: Normalisation
    splits: dict[str, Tensor]
    transparent: bool
    bytes_needed: int
    downscale: int
    warnings: list[str]
    protocol: dict[str, Any]


def load_scene(
    path: str | os.PathLike[str],
    *,
    downscale: int = 1,
    strict: bool = False,
    byte_budget: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    layout: str | None = None,
) -> Scene:
    """Load posed photos.

    Args:
        path: A folder in a known layout, a transforms.json, or "demo" for the built-in scene.
        downscale: Integer K: images are area-averaged over K x K pixels, intrinsics follow.
        strict: Make absent images an error; else they are left out, with one warning, while half or more are there.
        byte_budget: Most bytes of memory for pixels; beyond it they lie in a memory-mapped file. None: half of what is
            free.
        cache_dir: Folder of that file. None: POLYFIELD_CACHE, else the user's cache folder.
        layout: A name in `datasets.LAYOUTS` where a folder fits several; None: the first that fits.

    Raises:
        FormatError: The folder, a file in it or an image is not what it should be.
        ConfigError: An option out of range, or no room for the pixels.
    """
    if byte_budget is not None and byte_budget < 0:
        raise ConfigError(f"byte_budget must be at least 0 bytes; got {byte_budget}")
    if os.fspath(path) == "demo":
        from .demo import load_demo

        _check_downscale(downscale)
        return load_demo(downscale=downscale, cache_dir=cache_dir)
    found = survey(path, downscale=downscale, strict=strict, layout=layout)
    images, opaque = load_images(
        found.sources,
        downscale=downscale,
        masks_as_alpha=found.capture.mask_meaning == "object",
        byte_budget=byte_budget,
        cache_dir=None if cache_dir is None else Path(cache_dir),
    )
    points, colors, times = found.capture.points, found.capture.point_colors, [f.time for f in found.frames]
    return Scene(
        name=found.name,
        kind=found.placement.kind,
        cameras=found.cameras,
        images=images,
        splits=found.splits,
        to_scene=found.placement.to_scene,
        bounds=found.placement.aabb,
        background="none" if opaque else "white",
        points=None if points is None else found.placement.to_scene.apply(torch.from_numpy(points)).float(),
        warnings=found.warnings,
        protocol=found.protocol,
        point_colors=None if colors is None else torch.from_numpy(np.ascontiguousarray(colors)),
        times=None if None in times else torch.tensor(times, dtype=torch.float32),
        paths=tuple(source.path for source in found.sources),
        near_far=found.placement.near_far,
    )


def survey(
    path: str | os.PathLike[str], *, downscale: int = 1, strict: bool = False, layout: str | None = None
) -> Survey:
    """All of `load_scene` (not "demo") up to the pixels: parses, reads headers, poses cameras, splits."""
    _check_downscale(downscale)
    folder = Path(path).expanduser()
    capture = parse(folder, layout)
    frames, notes = present_frames(capture, strict)
    splits, rule, frames = split_frames(frames, capture.root)
    headers = read_headers([frame.image for frame in frames])
    fitted = [fit_lens(frame, header, capture.exif) for frame, header in zip(frames, headers, strict=True)]
    sources = [
        ImageSource(path=frame.image, header=header, turned=fit.turned, mask=frame.mask)
        for frame, header, fit in zip(frames, headers, fitted, strict=True)
    ]
    cameras = pose_cameras(frames, fitted)
    if min(int(cameras.width.min()), int(cameras.height.min())) < downscale:
        raise ConfigError(f"downscale {downscale} leaves nothing of an image of {_sizes(cameras)} pixels")
    transparent = _is_transparent(sources, capture)
    placement = normalise(
        cameras,
        points=None if capture.points is None else torch.from_numpy(capture.points),
        up=capture.up,
        region=capture.region,
        depth_range=capture.depth_range,
        masked=transparent,
    )
    # Frames of different times may well be taken from one place.
    timed = all(frame.time is not None for frame in frames)
    odd = [note for note in placement.warnings if not (timed and "share their pose" in note)]
    posed = cameras.transformed(placement.to_scene).to(dtype=torch.float32).downscaled(downscale)
    return Survey(
        name=capture.root.resolve().name or "scene",
        capture=capture,
        frames=frames,
        sources=sources,
        cameras=posed,
        placement=placement,
        splits=splits,
        transparent=transparent,
        bytes_needed=bytes_needed(sources, downscale=downscale, masks_as_alpha=capture.mask_meaning == "object"),
        downscale=downscale,
        warnings=[*capture.warnings, *notes, *_scaled_notes(fitted), *_lens_notes(cameras), *odd],
        protocol={
            "format": capture.layout,
            "source": capture.source,
            "downscale": downscale,
            "downscale_method": "area average of sRGB values, colour weighted by alpha" if downscale > 1 else "none",
            "resolution": _sizes(posed),
            "split_rule": rule,
            "images_present": len(frames),
            "images_listed": len(capture.frames),
        },
    )


def present_frames(capture: Capture, strict: bool) -> tuple[list[CaptureFrame], list[str]]:
    """The frames whose image file exists, and a warning when some do not.

    Copies of data sets often leave validation images out, so that these do not count towards the half that must be
    there.

    Raises:
        FormatError: More than half are absent, or any where `strict`.
    """
    frames = [frame for frame in capture.frames if frame.image.is_file()]
    absent = [frame for frame in capture.frames if not frame.image.is_file()]
    if not absent:
        return frames, []
    missing = f"{len(absent)} of {len(capture.frames)} listed images are absent, the first is {absent[0].image}"
    if strict:
        raise FormatError(f"{capture.root}: {missing}; load without 'strict' to leave them out")
    needed = [frame for frame in capture.frames if frame.split != "val"] or list(capture.frames)
    there = sum(frame.image.is_file() for frame in needed)
    if 2 * there < len(needed):
        raise FormatError(f"{capture.root}: {missing}; expected at least half of them")
    return frames, [f"{missing}; they are left out"]


def split_frames(frames: Sequence[CaptureFrame], root: Path) -> tuple[dict[str, Tensor], str, list[CaptureFrame]]:
    """(splits, the rule in words, the frames in scene order)."""
    if any(frame.split is not None for frame in frames):
        names = [name for name in ("train", "val", "test") if any(frame.split == name for frame in frames)]
        if "train" not in names:
            raise FormatError(f"{root}: none of the {len(frames)} images present is a training image")
        ordered = [frame for name in names for frame in frames if frame.split == name]
        splits = {name: torch.tensor([i for i, f in enumerate(ordered) if f.split == name]) for name in names}
        return splits, "the data set's own", ordered
    ordered = sorted(frames, key=lambda frame: frame.name)
    index = torch.arange(len(ordered))
    if len(ordered) == 1:
        return {"train": index}, "a single image, used for training", ordered
    held = index % HOLD_OUT_EVERY == 0
    rule = f"held out: index % {HOLD_OUT_EVERY} == 0 in file-name order of the {len(ordered)} images present"
    return {"train": index[~held], "test": index[held]}, rule, ordered


class FittedLens(NamedTuple):
    """A lens in pixels of the image as decoded.

    Attributes:
        size: (width, height) pixels.
        intrinsics: (fx, fy, cx, cy) pixels.
        turned: Whether the EXIF orientation is applied to reach `size`.
        scaled: What the intrinsics were multiplied by without the data set announcing it; 1 normally.
    """

    size: tuple[int, int]
    intrinsics: tuple[float, float, float, float]
    turned: bool
    scaled: float = 1.0


def fit_lens(frame: CaptureFrame, header: Header, exif: bool) -> FittedLens:
    """Make the stated intrinsics and the image's size agree.

    The stated size decides whether an EXIF orientation is applied; where it leaves that open, `exif` does. An image
    that is a whole fraction or multiple of the stated size gets scaled intrinsics.

    Raises:
        FormatError: The sizes disagree otherwise.
    """
    lens = frame.lens
    options = [(True, header.turned_size), (False, (header.width, header.height))]
    options = options if exif else options[::-1]
    if lens.size is None:
        turned, size = options[0]
        return FittedLens(size, lens.pixels(*size), turned)
    stated = lens.size
    for turned, size in options:
        if size == stated:
            return FittedLens(size, lens.pixels(*size), turned)
    for turned, size in options:
        announced = lens.nominal_scale > 1 and all(
            abs(s / lens.nominal_scale - a) <= 1 for s, a in zip(stated, size, strict=True)
        )
        if announced or _is_whole(stated, size) or _is_whole(size, stated):
            scale = (size[0] / stated[0], size[1] / stated[1])
            fx, fy, cx, cy = lens.pixels(*stated)
            scaled = (fx * scale[0], fy * scale[1], cx * scale[0], cy * scale[1])
            return FittedLens(size, scaled, turned, 1.0 if announced else scale[0])
    size = options[0][1]
    raise FormatError(
        f"{frame.image}: the image has {size[0]}x{size[1]} pixels, its intrinsics are for {stated[0]}x{stated[1]}; "
        "expected the same size, or a whole fraction or multiple of it"
    )


def pose_cameras(frames: Sequence[CaptureFrame], fitted: Sequence[FittedLens]) -> Cameras:
    """The cameras of `frames` in the data set frame, float64."""
    return Cameras(
        world_from_camera=torch.from_numpy(np.stack([frame.world_from_camera for frame in frames])),
        intrinsics=torch.tensor([fit.intrinsics for fit in fitted], dtype=torch.float64),
        distortion=torch.tensor([frame.lens.distortion for frame in frames], dtype=torch.float64),
        model=torch.tensor([int(frame.lens.model) for frame in frames], dtype=torch.uint8),
        width=torch.tensor([fit.size[0] for fit in fitted], dtype=torch.int32),
        height=torch.tensor([fit.size[1] for fit in fitted], dtype=torch.int32),
    )


def _is_whole(large: tuple[int, int], small: tuple[int, int]) -> bool:
    """Whether `large` is `small` times one whole number."""
    return large[0] % small[0] == 0 and large[1] % small[1] == 0 and large[0] // small[0] == large[1] // small[1]


def _scaled_notes(fitted: Sequence[FittedLens]) -> list[str]:
    counts = Counter(fit.scaled for fit in fitted if fit.scaled != 1)
    return [
        f"{count} images are {scale:.4g} times the size that their intrinsics are stated for; these were scaled"
        for scale, count in counts.items()
    ]


def _lens_notes(cameras: Cameras) -> list[str]:
    """What is odd about intrinsics: usually units or an image size that is not theirs."""
    size = torch.stack([cameras.width, cameras.height], 1)
    centre = cameras.intrinsics[:, 2:]
    outside = ((centre < 0) | (centre > size)).any(1)
    focal = (cameras.intrinsics[:, :2] / size).amin(1)
    odd = ((focal > 20) | (focal < 0.05)) & (cameras.model < int(CameraModel.FISHEYE))
    texts = (
        (outside, "have their principal point outside the image"),
        (odd, "see less than 3 or more than 168 degrees; are focal lengths in pixels of the image?"),
    )
    return [f"{int(which.sum())} of {len(cameras)} cameras {text}" for which, text in texts if bool(which.any())]


def _is_transparent(sources: Sequence[ImageSource], capture: Capture) -> bool:
    """Whether there is an object before nothing: masks of it, or alpha that is not 255 everywhere."""
    if capture.mask_meaning == "object" and any(source.mask is not None for source in sources):
        return True
    some = [source for source in sources if source.header.channels == 4]
    probes = [some[i * (len(some) - 1) // max(_PROBED - 1, 1)] for i in range(min(_PROBED, len(some)))]
    return any(bool((read_image(source.path, turned=False)[..., 3:] < 255).any()) for source in probes)


def _check_downscale(downscale: int) -> None:
    if isinstance(downscale, bool) or not isinstance(downscale, int) or not 1 <= downscale <= MAX_DOWNSCALE:
        raise ConfigError(f"downscale must be a whole number from 1 to {MAX_DOWNSCALE}; got {downscale!r}")


def _sizes(cameras: Cameras) -> str:
    """The frames' size, or the smallest and largest."""
    sizes = sorted(set(zip(cameras.width.tolist(), cameras.height.tolist(), strict=True)))
    texts = [f"{width}x{height}" for width, height in sizes]
    return texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"
