"""How is a Radiance picture (.hdr) decoded?

A text header, a line `-Y height +X width`, then scanlines of RGBE: three mantissas and a shared exponent,
value = (mantissa + 0.5) / 256 * 2^(exponent - 128), black for exponent 0. Scanlines are plain or run-length coded by
component (lines that begin with 2 2); the run-length form before 1991 is refused. Source: G. Ward, "Real Pixels",
Graphics Gems II; Radiance reference.

The size in the header is compared with the bytes that follow before anything is allocated.
"""

from __future__ import annotations

import re

import numpy as np

from ..fields.errors import FormatError

MAX_HEADER = 1 << 16
MAX_SIDE = 1 << 17
# The shortest code of 127 pixels is 4 components of 2 bytes.
_MOST_PIXELS_PER_BYTE = 127 / 8


def parse_header(data: bytes, where: str) -> tuple[int, int, int]:
    """(width, height, offset of the pixels) from the first bytes of a file."""
    if not data.startswith((b"#?RADIANCE", b"#?RGBE")):
        raise FormatError(f"{where}: not a Radiance picture: expected '#?RADIANCE', got {data[:10]!r}")
    blank = re.search(rb"\n\r?\n", data[:MAX_HEADER])
    if blank is None:
        raise FormatError(f"{where}: the Radiance header does not end within {MAX_HEADER} bytes")
    kind = re.search(rb"^FORMAT=(.*?)\r?$", data[: blank.start() + 1], re.MULTILINE)
    if kind is not None and kind[1].strip() != b"32-bit_rle_rgbe":
        raise FormatError(f"{where}: FORMAT={kind[1][:40].decode('latin-1')} cannot be used; expected 32-bit_rle_rgbe")
    size = re.compile(rb"-Y ([0-9]{1,9}) \+X ([0-9]{1,9})\r?\n").match(data, blank.end())
    if size is None:
        got = data[blank.end() : blank.end() + 40].split(b"\n")[0].decode("latin-1")
        raise FormatError(f"{where}: expected a line '-Y height +X width', got '{got}'")
    height, width = int(size[1]), int(size[2])
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise FormatError(f"{where}: an image of {width}x{height} pixels; sides are 1 to {MAX_SIDE}")
    return width, height, size.end()


def parse(data: bytes, where: str) -> np.ndarray:
    """(H, W, 3) float32 linear values of a whole file."""
    width, height, at = parse_header(data, where)
    if width * height > (len(data) - at) * _MOST_PIXELS_PER_BYTE:
        raise FormatError(f"{where}: cut short: {width}x{height} pixels cannot come out of {len(data) - at} bytes")
    picture = np.empty((height, width, 4), np.uint8)
    for row in range(height):
        at = _scanline(data, at, picture[row], f"{where}, row {row}")
    scale = np.ldexp(np.float32(1), picture[..., 3:].astype(np.int32) - 136)
    return np.where(picture[..., 3:] > 0, (picture[..., :3] + np.float32(0.5)) * scale, 0).astype(np.float32)


def _scanline(data: bytes, at: int, line: np.ndarray, where: str) -> int:
    """Decode one row into `line` (W, 4); returns the offset after it."""
    width = len(line)
    head = data[at : at + 4]
    if len(head) == 4 and head[0] == 2 and head[1] == 2 and head[2] < 128 and 8 <= width < 1 << 15:
        if (head[2] << 8 | head[3]) != width:
            raise FormatError(f"{where}: coded for {head[2] << 8 | head[3]} pixels, the header says {width}")
        at += 4
        for component in range(4):
            at = _runs(data, at, line[:, component], where)
        return at
    flat = data[at : at + 4 * width]
    if len(flat) < 4 * width:
        raise FormatError(f"{where}: cut short at byte {len(data)}")
    line[:] = np.frombuffer(flat, np.uint8).reshape(width, 4)
    if (line[:, :3] == 1).all(axis=1).any():
        raise FormatError(f"{where}: run-length coding of before 1991; open and save it with any current program")
    return at + 4 * width


def _runs(data: bytes, at: int, values: np.ndarray, where: str) -> int:
    """Decode the runs of one component."""
    filled = 0
    while filled < len(values):
        if at + 1 >= len(data):
            raise FormatError(f"{where}: cut short at byte {len(data)}")
        code = data[at]
        count = code - 128 if code > 128 else code
        if not 0 < count <= len(values) - filled:
            raise FormatError(
                f"{where}: a run of {count} pixels at byte {at}, {len(values) - filled} are left in the row"
            )
        if code > 128:
            values[filled : filled + count] = data[at + 1]
            at += 2
        else:
            plain = data[at + 1 : at + 1 + count]
            if len(plain) < count:
                raise FormatError(f"{where}: cut short at byte {len(data)}")
            values[filled : filled + count] = np.frombuffer(plain, np.uint8)
            at += 1 + count
        filled += count
    return at
