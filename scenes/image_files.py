"""How does an image file become rows of pixels, and what does its header say beforehand?

PNG, JPEG, WebP, TIFF, BMP through Pillow; OpenEXR through its own module; Radiance HDR by the reader here. Every image
comes out as (H, W, 3) or, with transparency, (H, W, 4), sRGB-encoded, straight alpha; as uint8 from `read_image`, as
deep as its decoder gives it from `read_picture`, which also says what is lost:

- 16-bit colour keeps its high byte (Pillow decodes no more), and so does 16-bit grey where uint8 is wanted (an error
  below one step of 8 bits);
- grey becomes three equal channels, palettes are looked up, CMYK is converted;
- linear formats (EXR, HDR) are clipped to [0, 1] without exposure, then sRGB-encoded (IEC 61966-2-1) and, for uint8,
  rounded; alpha of EXR is associated, colour is divided by it;
- an EXIF orientation is applied on request (`turned=True`).

Files are hostile: whatever a decoder raises becomes a `FormatError`.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from ..fields.errors import FormatError
from . import radiance_hdr
from .silence import silenced

MOST_PIXELS = 178_956_970
"""No camera's picture has more: twice Pillow's limit, from which on it refuses to open one."""
LINEAR = (".exr", ".hdr", ".pic")
# EXIF orientations 5 to 8 exchange width and height.
_TRANSPOSED = (5, 6, 7, 8)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRANSPARENT_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
_CLIP_MARGIN = 1 / 250
"""Beyond [0, 1] that 8 bits would not show; the 1 of a Radiance file is read as 1 + 1/256."""
_opening = threading.Lock()


class Header(NamedTuple):
    """What is known before decoding.

    Attributes:
        width: Pixels as stored.
        height: Pixels as stored.
        channels: 3, or 4 with transparency.
        orientation: EXIF orientation, 1 (upright) to 8.
        deep: `read_picture` gives more than 8 bits a channel.
    """

    width: int
    height: int
    channels: int
    orientation: int = 1
    deep: bool = False

    @property
    def turned_size(self) -> tuple[int, int]:
        """(width, height) once the EXIF orientation is applied."""
        return (self.height, self.width) if self.orientation in _TRANSPOSED else (self.width, self.height)


class Picture(NamedTuple):
    """An image as deep as it can be decoded.

    Attributes:
        pixels: (H, W, 3 or 4), sRGB-encoded, straight alpha: uint8; uint16 of 16-bit grey; float32 in [0, 1] of linear
            formats.
        notes: What of the file is not in them, each in a few words.
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def read_header(path: Path, *, most_pixels: int | None = MOST_PIXELS) -> Header:
    """Size, channels and orientation of an image without decoding it.

    Args:
        path: The file.
        most_pixels: What Pillow decodes is refused beyond; None: nothing is.

    Raises:
        FormatError: No file, not an image, or too large.
    """
    suffix = path.suffix.lower()
    if suffix == ".exr":
        return _exr_header(path)
    if suffix in (".hdr", ".pic"):
        with _refused(path), path.open("rb") as file:
            size = radiance_hdr.parse_header(file.read(radiance_hdr.MAX_HEADER), str(path))[:2]
            return Header(*size, 3, deep=True)
    with _refused(path), _opened(path, most_pixels) as image:
        channels = 4 if _is_transparent(image) else 3
        return Header(image.width, image.height, channels, _orientation(image), image.mode.startswith("I"))


def read_image(path: Path, *, turned: bool = True) -> np.ndarray:
    """Decode an image of at most `MOST_PIXELS`.

    Args:
        path: The file.
        turned: Apply the EXIF orientation.

    Returns:
        (H, W, 3) or (H, W, 4) uint8, sRGB-encoded, straight alpha.

    Raises:
        FormatError: No file, not an image, too large, or cut short.
    """
    return to_8_bits(read_picture(path, turned=turned).pixels)


def read_picture(path: Path, *, turned: bool = True, most_pixels: int | None = MOST_PIXELS) -> Picture:
    """Decode an image as deep as can be, and say what of it is lost; arguments and errors as above."""
    if path.suffix.lower() in LINEAR:
        linear = read_linear(path)
        return Picture(_encode(linear), _clipped(linear))
    with _refused(path), _opened(path, most_pixels) as image:
        notes = _losses(image)
        turn = _TURNS.get(_orientation(image)) if turned else None
        mode = "RGBA" if _is_transparent(image) else "RGB"
        picture = image if turn is None else image.transpose(turn)
        if picture.mode.startswith("I") or picture.mode == "F":
            return Picture(_deep_grey(picture, path), notes)
        return Picture(np.asarray(picture if picture.mode == mode else picture.convert(mode)), notes)


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Of a `Picture`, as uint8: the high byte of uint16, floats in [0, 1] rounded."""
    if pixels.dtype == np.uint16:
        return (pixels >> 8).astype(np.uint8)
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).astype(np.uint8)


def read_mask(path: Path, *, turned: bool = True) -> np.ndarray:
    """(H, W) uint8, 0 where not set: the grey value, or the alpha of an image whose colour is constant."""
    image = read_image(path, turned=turned)
    colour = image[..., :3]
    if image.shape[2] == 4 and (colour == colour[:1, :1]).all():
        return np.ascontiguousarray(image[..., 3])
    return colour.max(axis=2)


def read_linear(path: Path) -> np.ndarray:
    """(H, W, 3 or 4) float32 linear values of an EXR or Radiance HDR file, unclipped, straight alpha."""
    if path.suffix.lower() == ".exr":
        return _read_exr(path)
    with _refused(path):
        data = path.read_bytes()
    return radiance_hdr.parse(data, str(path))


def encode_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear floats (H, W, C) to uint8: clip to [0, 1], encode colour by the sRGB curve, not alpha; NaN is 0."""
    return to_8_bits(_encode(linear))


def _encode(linear: np.ndarray) -> np.ndarray:
    """`encode_srgb` before it rounds."""
    values = np.nan_to_num(linear, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1)
    colour = values[..., :3]
    curve = np.where(colour <= 0.0031308, colour * 12.92, 1.055 * np.maximum(colour, 1e-8) ** (1 / 2.4) - 0.055)
    return np.concatenate([curve, values[..., 3:]], axis=2)


def _clipped(linear: np.ndarray) -> tuple[str, ...]:
    within = ((linear >= -_CLIP_MARGIN) & (linear <= 1 + _CLIP_MARGIN)).all(axis=2)  # which NaN is not
    share = 1 - np.count_nonzero(within) / within.size
    said = "of its pixels have values outside 0 to 1, which were clipped; a lower exposure keeps them"
    return (f"{100 * share:.3g}% {said}",) if share else ()


def _losses(image: Image.Image) -> tuple[str, ...]:
    """What Pillow's decoder leaves out, to be asked before it runs."""
    notes = []
    # Pillow's names for samples of 16 bits end so, whatever the pixel that they become; 5-6-5 bits are 'BGR;16'.
    if not image.mode.startswith("I") and re.search(";16[BLN]", str(getattr(image, "tile", ""))):
        notes.append("of its 16 bits a channel the upper 8 are kept")
    if image.mode == "CMYK":
        notes.append("its CMYK became RGB without a colour profile")
    if (pictures := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":  # whose others are previews
        notes.append(f"of its {pictures} pictures the first is taken")
    return tuple(notes)


@contextlib.contextmanager
def _opened(path: Path, most_pixels: int | None) -> Iterator[Image.Image]:
    """Pillow's image with our limit in place of Pillow's, which warns of large photos and is the whole process's."""
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image, silenced() if image.format == "TIFF" else contextlib.nullcontext():
        if most_pixels is not None and image.width * image.height > most_pixels:
            raise ValueError(f"it has more than {most_pixels / 1e6:.0f} million pixels")
        yield image


def _is_transparent(image: Image.Image) -> bool:
    """In what is made of it: of deep grey no transparency is kept."""
    return image.mode in _TRANSPARENT_MODES or ("transparency" in image.info and not image.mode.startswith("I"))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where there is none or a senseless one."""
    # Asked for the EXIF block of a PNG without one before its pixels, Pillow decodes the whole picture to look behind.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _deep_grey(image: Image.Image, path: Path) -> np.ndarray:
    """16-bit grey as (H, W, 3) uint16; 32-bit grey and float are no photo formats."""
    if image.mode == "F":
        raise FormatError(f"{path}: floating-point TIFF cannot be used; save it as EXR or as 8- or 16-bit PNG")
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 0xFFFF):
        raise FormatError(f"{path}: grey values beyond 16 bits; save it as 8- or 16-bit PNG")
    return np.repeat(values.astype(np.uint16)[..., None], 3, axis=2)


def _open_exr(path: Path, header_only: bool):
    try:
        import OpenEXR
    except ImportError as error:
        raise FormatError(f"{path}: reading EXR needs the package OpenEXR; pip install OpenEXR") from error
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    try:
        with silenced():
            return OpenEXR.File(str(path), separate_channels=True, header_only=header_only)
    except Exception as error:
        with _refused(path):
            raise ValueError("no OpenEXR file, or damaged") from error


def _exr_header(path: Path) -> Header:
    file = _open_exr(path, header_only=True)
    with _refused(path):
        header = file.header()
        low, high = header["dataWindow"]
        names = {channel.name for channel in header["channels"]}
        width, height = (int(high[i]) - int(low[i]) + 1 for i in (0, 1))
    return Header(width, height, 4 if "A" in names else 3, deep=True)


def _read_exr(path: Path) -> np.ndarray:
    file = _open_exr(path, header_only=False)
    with _refused(path):
        if not file.parts:  # those that it cannot decode the library leaves out
            raise ValueError("its pixels are damaged or cut short")
        channels = {name: channel.pixels for name, channel in file.channels().items()}
    names = ("R", "G", "B") if {"R", "G", "B"} <= set(channels) else ("Y", "Y", "Y")
    if not set(names) <= set(channels):
        raise FormatError(f"{path}: expected channels R, G and B (or Y), got {', '.join(sorted(channels)) or 'none'}")
    colour = np.stack([channels[name].astype(np.float32) for name in names], axis=2)
    if "A" not in channels:
        return colour
    alpha = channels["A"].astype(np.float32)[..., None]
    return np.concatenate([colour / np.where(alpha > 0, alpha, 1), alpha], axis=2)


class _refused:
    """Turns whatever a decoder raises or warns into a FormatError that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        if error is None or isinstance(error, (FormatError, MemoryError)) or not isinstance(error, Exception):
            return
        if isinstance(error, FileNotFoundError):
            raise FormatError(f"{self.path}: no such file") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        if self.path.is_file() and self.path.stat().st_size == 0:
            reason = "the file is empty"
        elif isinstance(error, Image.UnidentifiedImageError):
            reason = "no known image format"
        raise FormatError(f"{self.path}: cannot be read as an image: {reason}") from error
