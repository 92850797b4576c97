"""How does an image file become rows of uint8, and what does its header say beforehand?

PNG, JPEG, WebP, TIFF, BMP through Pillow; OpenEXR through its own module; Radiance HDR by the reader here. Every image
comes out as (H, W, 3) or, with transparency, (H, W, 4) uint8, sRGB-encoded, straight alpha:

- 16-bit channels keep their high byte (an error below one step of 8 bits);
- grey becomes three equal channels, palettes are looked up;
- linear formats (EXR, HDR) are clipped to [0, 1] without exposure, then sRGB-encoded (IEC 61966-2-1) and rounded; alpha
  of EXR is associated, colour is divided by it;
- an EXIF orientation is applied on request (`turned=True`).

Files are hostile: whatever a decoder raises becomes a `FormatError`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from ..fields.errors import FormatError
from . import radiance_hdr

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


class Header(NamedTuple):
    """What is known before decoding.

    Attributes:
        width: Pixels as stored.
        height: Pixels as stored.
        channels: 3, or 4 with transparency.
        orientation: EXIF orientation, 1 (upright) to 8.
    """

    width: int
    height: int
    channels: int
    orientation: int = 1

    @property
    def turned_size(self) -> tuple[int, int]:
        """(width, height) once the EXIF orientation is applied."""
        return (self.height, self.width) if self.orientation in _TRANSPOSED else (self.width, self.height)


def read_header(path: Path) -> Header:
    """Size, channels and orientation of an image without decoding it.

    Raises:
        FormatError: No file, or not an image.
    """
    suffix = path.suffix.lower()
    if suffix == ".exr":
        return _exr_header(path)
    if suffix in (".hdr", ".pic"):
        with _refused(path), path.open("rb") as file:
            return Header(*radiance_hdr.parse_header(file.read(radiance_hdr.MAX_HEADER), str(path))[:2], 3)
    with _refused(path), Image.open(path) as image:
        transparent = image.mode in _TRANSPARENT_MODES or "transparency" in image.info
        return Header(image.width, image.height, 4 if transparent else 3, _orientation(image))


def read_image(path: Path, *, turned: bool = True) -> np.ndarray:
    """Decode an image.

    Args:
        path: The file.
        turned: Apply the EXIF orientation.

    Returns:
        (H, W, 3) or (H, W, 4) uint8, sRGB-encoded, straight alpha.

    Raises:
        FormatError: No file, not an image, or cut short.
    """
    if path.suffix.lower() in LINEAR:
        return encode_srgb(read_linear(path))
    with _refused(path), Image.open(path) as image:
        transparent = image.mode in _TRANSPARENT_MODES or "transparency" in image.info
        if image.mode.startswith("I") or image.mode == "F":
            return _deep_grey(image, path)
        turn = _TURNS.get(_orientation(image)) if turned else None
        picture = image if turn is None else image.transpose(turn)
        return np.asarray(picture.convert("RGBA" if transparent else "RGB"))


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
    values = np.nan_to_num(linear, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1)
    colour = values[..., :3]
    curve = np.where(colour <= 0.0031308, colour * 12.92, 1.055 * np.maximum(colour, 1e-8) ** (1 / 2.4) - 0.055)
    encoded = np.concatenate([curve, values[..., 3:]], axis=2)
    return np.rint(encoded * 255).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where there is none or a senseless one."""
    # Asked for the EXIF block of a PNG without one before its pixels, Pillow decodes the whole picture to look behind.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _deep_grey(image: Image.Image, path: Path) -> np.ndarray:
    """16-bit grey by its high byte; 32-bit grey and float are no photo formats."""
    if image.mode == "F":
        raise FormatError(f"{path}: floating-point TIFF cannot be used; save it as EXR or as 8- or 16-bit PNG")
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 0xFFFF):
        raise FormatError(f"{path}: grey values beyond 16 bits; save it as 8- or 16-bit PNG")
    grey = (values >> 8).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _open_exr(path: Path, header_only: bool):
    try:
        import OpenEXR
    except ImportError as error:
        raise FormatError(f"{path}: reading EXR needs the package OpenEXR; pip install OpenEXR") from error
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    with _refused(path):
        return OpenEXR.File(str(path), separate_channels=True, header_only=header_only)


def _exr_header(path: Path) -> Header:
    file = _open_exr(path, header_only=True)
    with _refused(path):
        header = file.header()
        low, high = header["dataWindow"]
        names = {channel.name for channel in header["channels"]}
        width, height = (int(high[i]) - int(low[i]) + 1 for i in (0, 1))
    return Header(width, height, 4 if "A" in names else 3)


def _read_exr(path: Path) -> np.ndarray:
    file = _open_exr(path, header_only=False)
    with _refused(path):
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
        if isinstance(error, Image.DecompressionBombError):
            reason = "it has more than 179 million pixels"
        elif isinstance(error, Image.UnidentifiedImageError):
            reason = "the file is empty" if self.path.stat().st_size == 0 else "no known image format"
        raise FormatError(f"{self.path}: cannot be read as an image: {reason}") from error
