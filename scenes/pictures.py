"""How do rendered frames become files: numbered PNG stills, or films through ffmpeg?

Stills: `00000.png` (rgb, sRGB as rendered), `00000_alpha.png` (8 bit), `00000_normal.png` (dataset frame, [-1, 1] as
0..255, grey where there is none), `00000_depth.png` (16 bit, distance along the ray in steps of
`depth_unit_scale_factor` dataset units, 0 where there is none) with `00000_depth_view.png` to look at, and
`render.json` with the cameras and these units (layout of transforms.json). A film has one file per channel and appears
only when it is complete.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..fields.errors import ConfigError, FormatError
from ..fields.formats import atomic_write
from .camera_paths import write_cameras

if TYPE_CHECKING:
    from ..fields.geometry import Cameras
    from ..fields.model import Model
    from ..fields.render.frame import Frame

# Near to far: warm and light to cold and dark, even in lightness so that it reads in grey too.
_DEPTH_COLORS = ((1.0, 0.96, 0.75), (0.98, 0.72, 0.35), (0.83, 0.36, 0.38), (0.45, 0.20, 0.50), (0.08, 0.08, 0.25))
_MAX_REACH = 64.0
"""Scene units: how far depth is stored where a model has no bounds."""


class StillWriter:
    """Writes each frame as PNG files into a folder. Use as a context manager."""

    def __init__(self, out: Path, channels: Sequence[str], model: Model, cameras: Cameras, *, fps: float = 0) -> None:
        self.out, self.channels, self.model, self.cameras = out, channels, model, cameras
        self.written: list[Path] = []
        self._depth_step = depth_step(model, cameras)
        self._range: tuple[float, float] | None = None
        self._count = 0

    def __enter__(self) -> StillWriter:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FormatError(f"{self.out} could not be created: {error.strerror or error}") from error
        return self

    def add(self, frame: Frame) -> None:
        """Write the next frame."""
        for channel in self.channels:
            if channel == "depth":
                self._range = self._range or depth_range(frame.depth)
                levels = (frame.depth * (self.model.to_dataset.scale / self._depth_step)).nan_to_num(0, 0, 0)
                self._save("_depth", levels.round().clamp(0, 65535).cpu().numpy().astype(np.uint16))
                self._save("_depth_view", to_bytes(depth_colors(frame.depth, self._range)))
            else:
                suffix = "" if channel == "rgb" else f"_{channel}"
                self._save(suffix, to_bytes(channel_image(frame, channel, self.model)))
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        cameras = self.cameras.transformed(self.model.to_dataset)
        names = [f"{i:05d}.png" for i in range(len(cameras))]
        extra: dict[str, Any] = {}
        if "depth" in self.channels:
            extra = {"depth_unit_scale_factor": self._depth_step, "depth_is": "distance along the ray"}
        write_cameras(self.out / "render.json", cameras, names, **extra)
        self.written = [self.out]

    def _save(self, suffix: str, pixels: np.ndarray) -> None:
        from PIL import Image

        path = self.out / f"{self._count:05d}{suffix}.png"
        atomic_write(path, lambda temporary: Image.fromarray(pixels).save(temporary, format="PNG"))


class FilmFile:
    """One film on its way. Frames go to a file beside it, which takes its place when it is closed.

    Raises:
        ConfigError: imageio-ffmpeg is missing.
        FormatError: the film could not be written; an older file is unchanged.
    """

    def __init__(self, target: Path, size: tuple[int, int], fps: float) -> None:
        """size: (width, height) of the frames, pixels."""
        try:
            import imageio_ffmpeg
        except ImportError:
            raise ConfigError(
                "films need the package imageio-ffmpeg: run 'pip install imageio-ffmpeg', "
                "or give a folder for PNG stills"
            ) from None
        self.target = target
        self._odd = (size[0] % 2, size[1] % 2)  # H.264 with half-size colour needs even sides
        self._stream: Any = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
            os.close(handle)
            self._temporary = Path(name)
            self._stream = imageio_ffmpeg.write_frames(
                name,
                (size[0] + self._odd[0], size[1] + self._odd[1]),
                fps=fps,  # pyright: ignore[reportArgumentType] (fractions work)
                quality=8,
                macro_block_size=2,
                ffmpeg_log_level="error",
            )
            self._stream.send(None)
        except OSError as error:
            if self._stream is not None:
                self.discard()
            raise FormatError(f"{target} could not be written: {_cause(error)}") from error

    def add(self, pixels: np.ndarray) -> None:
        """Append a frame (H, W, 3) uint8."""
        pixels = np.pad(pixels, ((0, self._odd[1]), (0, self._odd[0]), (0, 0)), mode="edge")
        try:
            self._stream.send(np.ascontiguousarray(pixels))
        except OSError as error:
            raise FormatError(f"{self.target} could not be written: {_cause(error)}") from error

    def close(self) -> None:
        """Put the film in its place."""
        try:
            self._stream.close()
            if self._temporary.stat().st_size == 0:
                raise FormatError(f"{self.target} could not be written: ffmpeg made an empty file")
            mask = os.umask(0)
            os.umask(mask)
            self._temporary.chmod(0o666 & ~mask)
            os.replace(self._temporary, self.target)
        except OSError as error:
            raise FormatError(f"{self.target} could not be written: {_cause(error)}") from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Leave nothing behind; after `close` there is nothing."""
        with contextlib.suppress(Exception):  # a stream whose ffmpeg died has nothing more to say
            self._stream.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()


class FilmWriter:
    """Writes frames into films: NAME.mp4 for the first channel, NAME-CHANNEL.mp4 for others. A context manager.

    Raises:
        ConfigError: imageio-ffmpeg is missing, or the cameras differ in size.
        FormatError: a film could not be written.
    """

    def __init__(self, out: Path, channels: Sequence[str], model: Model, cameras: Cameras, *, fps: float = 30) -> None:
        sizes = sorted({(int(w), int(h)) for w, h in zip(cameras.width, cameras.height, strict=True)})
        if len(sizes) > 1:
            raise ConfigError(
                f"a film needs frames of one size, got {sizes[0]} to {sizes[-1]}; give --size WxH, or a folder"
            )
        self.out, self.channels, self.model, self.fps = out, channels, model, fps
        self.written: list[Path] = []
        self._size = sizes[0]
        self._range: tuple[float, float] | None = None
        self._films: list[FilmFile] = []

    def __enter__(self) -> FilmWriter:
        try:
            for index, channel in enumerate(self.channels):
                target = self.out if index == 0 else self.out.with_stem(f"{self.out.stem}-{channel}")
                self._films.append(FilmFile(target, self._size, self.fps))
        except (ConfigError, FormatError):
            self._discard()
            raise
        return self

    def add(self, frame: Frame) -> None:
        """Append the next frame to every film."""
        for film, channel in zip(self._films, self.channels, strict=True):
            if channel == "depth":
                self._range = self._range or depth_range(frame.depth)
                image = depth_colors(frame.depth, self._range)
            else:
                image = channel_image(frame, channel, self.model)
            film.add(to_bytes(image if image.dim() == 3 else image[..., None].expand(-1, -1, 3)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for film in self._films:
                    film.close()
                    self.written.append(film.target)
        finally:
            self._discard()

    def _discard(self) -> None:
        for film in self._films:
            film.discard()


def channel_image(frame: Frame, channel: str, model: Model) -> Tensor:
    """rgb or normal as (H, W, 3), alpha as (H, W), all in [0, 1]."""
    if channel == "rgb":
        return frame.rgb
    if channel == "alpha":
        return frame.alpha
    if frame.normal is None:
        raise ConfigError("this model gives no normals; leave 'normal' out of --channels")
    return 0.5 * model.to_dataset.apply_directions(frame.normal) + 0.5


def depth_range(depth: Tensor) -> tuple[float, float]:
    """(near, far) that show `depth` (H, W): its 1 and 99 % quantiles with a tenth to spare; (0, 1) where empty."""
    values = depth[torch.isfinite(depth) & (depth > 0)].float().flatten()
    if values.numel() == 0:
        return 0.0, 1.0
    values = values[:: max(1, values.numel() // 100_000)]  # torch.quantile takes at most 16 M values
    near, far = (float(v) for v in torch.quantile(values, torch.tensor([0.01, 0.99], device=values.device)))
    return 0.9 * near, 1.1 * far


def depth_colors(depth: Tensor, limits: tuple[float, float]) -> Tensor:
    """Depth (H, W) as colours (H, W, 3) in [0, 1]: near light, far dark, black where there is none."""
    near, far = limits
    palette = torch.tensor(_DEPTH_COLORS, device=depth.device)
    valid = torch.isfinite(depth) & (depth > 0)
    position = ((depth.nan_to_num(0, 0, 0) - near) / max(far - near, 1e-9)).clamp(0, 1) * (len(palette) - 1)
    low = position.long().clamp(max=len(palette) - 2)
    share = (position - low)[..., None]
    return torch.where(valid[..., None], palette[low] * (1 - share) + palette[low + 1] * share, 0.0)


def depth_step(model: Model, cameras: Cameras) -> float:
    """Dataset units per level of 16-bit depth, so that everything within the model's bounds fits from every camera."""
    reach = float(model.representation.bounds.abs().nan_to_num(_MAX_REACH, _MAX_REACH).max())
    farthest = float(cameras.centres().norm(dim=-1).max()) + 3**0.5 * min(reach, _MAX_REACH)
    return farthest * model.to_dataset.scale / 65535


def to_bytes(image: Tensor) -> np.ndarray:
    """[0, 1] floats to 8 bits, rounded; NaN becomes 0."""
    return image.nan_to_num(0).mul_(255).add_(0.5).clamp_(0, 255).to(torch.uint8).cpu().numpy()


def _cause(error: OSError) -> str:
    """The telling part of an error, which for ffmpeg is its last line of output."""
    lines = [line.strip() for line in str(error.strerror or error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
