"""How are the points (and colours) of a PLY file read?

Stanford PLY, ASCII or binary of either byte order; only the vertex element is read, and of it x, y, z and, where
present, red, green, blue. Splat files are PLY too but hold much more: they are read elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...fields.errors import FormatError
from .files import first_line, read_bytes

TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
MAX_HEADER = 1 << 16  # splat files have some 70 properties, 2 kB


def read_points(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The vertices of `path`: positions (P, 3) float64 and colours (P, 3) uint8 or None."""
    return parse_points(read_bytes(path), str(path))


def parse_points(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """As `read_points`, from the file's bytes."""
    order, elements, body = _parse_header(data, where)
    skipped = 0
    for name, count, properties in elements:
        if name == "vertex":
            break
        if any(kind is None for _, kind in properties) or order == "":
            raise FormatError(f"{where}: element '{name}' stands before the vertices; expected vertices first")
        skipped += count * sum(np.dtype(kind).itemsize for _, kind in properties)
    else:
        raise FormatError(f"{where}: has no 'vertex' element; it holds {[name for name, _, _ in elements]}")
    names = [key for key, _ in properties]
    if not {"x", "y", "z"} <= set(names):
        raise FormatError(f"{where}: vertices need x, y and z; they have {', '.join(names) or 'nothing'}")
    if any(kind is None for _, kind in properties) or len(set(names)) != len(names):
        raise FormatError(f"{where}: vertices with lists or with a property given twice cannot be used")
    columns = _columns(data[body + skipped :], order, count, properties, where)
    points = np.stack([columns[axis].astype(np.float64) for axis in "xyz"], axis=1)
    if not {"red", "green", "blue"} <= set(names):
        return points, None
    colors = np.stack([columns[key] for key in ("red", "green", "blue")], axis=1)
    if colors.dtype.kind == "f" and dict(properties)["red"] in ("f4", "f8"):
        with np.errstate(invalid="ignore"):
            colors = np.nan_to_num(colors).clip(0, 1) * 255
    return points, colors.clip(0, 255).round().astype(np.uint8)


def _parse_header(data: bytes, where: str) -> tuple[str, list[tuple[str, int, list[tuple[str, str | None]]]], int]:
    """Byte order ("" for ASCII), elements (name, count, [(property, NumPy type or None for a list)]), body offset."""
    if not data.startswith(b"ply"):
        raise FormatError(f"{where}: not a PLY file: expected it to begin with 'ply', got {data[:8]!r}")
    end = data.find(b"end_header", 0, MAX_HEADER)
    newline = data.find(b"\n", end, end + 16) if end >= 0 else -1
    if newline < 0:
        raise FormatError(f"{where}: the PLY header has no 'end_header' line in its first {MAX_HEADER} bytes")
    order: str | None = None
    elements: list[tuple[str, int, list[tuple[str, str | None]]]] = []
    for number, line in enumerate(data[:end].decode("latin-1").splitlines()[1:], start=2):
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format" and len(words) == 3 and words[1] in ORDERS:
            order = ORDERS[words[1]]
        elif words[0] == "element" and len(words) == 3 and words[2].isascii() and words[2].isdigit():
            elements.append((words[1], int(words[2][:18]), []))
        elif words[0] == "property" and elements and len(words) == 3 and words[1] in TYPES:
            elements[-1][2].append((words[2], TYPES[words[1]]))
        elif words[0] == "property" and elements and len(words) == 5 and words[1] == "list":
            elements[-1][2].append((words[4], None))
        else:
            raise FormatError(f"{where}: PLY header line {number} cannot be used: '{line[:60]}'")
    if order is None:
        raise FormatError(f"{where}: the PLY header names no format out of {', '.join(ORDERS)}")
    return order, elements, newline + 1


def _columns(
    body: bytes, order: str, count: int, properties: list[tuple[str, str | None]], where: str
) -> dict[str, np.ndarray]:
    """The vertex properties as one array each."""
    if order:
        dtype = np.dtype([(f"p{i}", order + str(kind)) for i, (_, kind) in enumerate(properties)])
        if count * dtype.itemsize > len(body):
            raise FormatError(
                f"{where}: cut short: {count} vertices need {count * dtype.itemsize} bytes, {len(body)} are there"
            )
        table = np.frombuffer(body, dtype, count)
        return {name: table[f"p{i}"] for i, (name, _) in enumerate(properties)}
    width = len(properties)
    if count * width * 2 > len(body) + 1:  # a number and a separator
        raise FormatError(f"{where}: cut short: {count} vertices of {width} numbers do not fit in {len(body)} bytes")
    words = body.split(None, count * width)[: count * width]
    if len(words) < count * width:
        raise FormatError(f"{where}: cut short: expected {count} vertices of {width} numbers, got {len(words)} numbers")
    try:
        values = np.array(words, dtype="S32").astype(np.float64) if words else np.zeros(0)
    except (ValueError, UnicodeDecodeError) as error:
        raise FormatError(f"{where}: a vertex is not made of numbers ({first_line(error)})") from error
    rows = values.reshape(count, width)
    return {name: rows[:, i] for i, (name, _) in enumerate(properties)}
