"""How are small files of untrusted content read without surprises?

Whole-file reads with a size limit, JSON with typed access, NumPy arrays without pickles and without trusting the sizes
in their headers. Everything that can be wrong becomes a `FormatError` that names the file and the key, byte or member.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ...fields.errors import FormatError

MAX_JSON_BYTES = 1 << 28  # 256 MiB: a transforms.json of a hundred thousand frames is 100 MB
MAX_ARRAY_BYTES = 1 << 26  # 64 MiB: ten thousand cameras are 3 MB; also the most that an archive may unpack to


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """The file's content, or a FormatError when it is absent, no plain file or larger than `limit` bytes."""
    try:
        if not path.is_file():
            raise FormatError(f"{path}: expected a file, found {'a folder' if path.is_dir() else 'nothing'}")
        size = path.stat().st_size
        if limit is not None and size > limit:
            raise FormatError(f"{path}: {size} bytes; such a file is at most {limit} bytes")
        return path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_text(path: Path, limit: int | None = None) -> str:
    """The file's content as UTF-8 text."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: byte {error.start} is not UTF-8 text") from error


class Node:
    """A JSON object with typed access; every error names the file and the key."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise FormatError(f"{where}: expected a JSON object, got {describe(value)}")
        self.value: dict[str, Any] = value
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self.value.get(key) is not None

    def number(self, key: str, default: float | None = None) -> float | None:
        """A finite number; `default` when the key is absent or null."""
        value = self.value.get(key)
        if value is None:
            return default
        number = as_number(value)
        if number is None:
            raise FormatError(f"{self.where}: '{key}' must be a finite number, got {describe(value)}")
        return number

    def integer(self, key: str, least: int, most: int) -> int | None:
        """A whole number within [least, most] (1080.0 passes); None when absent."""
        value = self.number(key)
        if value is None:
            return None
        if not least <= value <= most or value != int(value):
            raise FormatError(f"{self.where}: '{key}' must be a whole number from {least} to {most}, got {value:g}")
        return int(value)

    def text(self, key: str) -> str | None:
        """A string without NUL; None when absent."""
        value = self.value.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value or "\0" in value:
            raise FormatError(f"{self.where}: '{key}' must be a non-empty string, got {describe(value)}")
        return value

    def flag(self, key: str) -> bool:
        """A JSON boolean; False when absent."""
        value = self.value.get(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise FormatError(f"{self.where}: '{key}' must be true or false, got {describe(value)}")

    def items(self, key: str) -> list[Any] | None:
        """A list; None when absent."""
        value = self.value.get(key)
        if value is None or isinstance(value, list):
            return value
        raise FormatError(f"{self.where}: '{key}' must be a list, got {describe(value)}")

    def matrix(self, key: str, shapes: tuple[tuple[int, int], ...]) -> np.ndarray:
        """A float64 matrix of one of `shapes`; NaN passes (the pose check names it)."""
        value = self.value.get(key)
        wanted = " or ".join(f"{rows}x{columns}" for rows, columns in shapes)
        if isinstance(value, list) and all(isinstance(row, list) for row in value):
            shape = (len(value), len(value[0]) if value else 0)
            entries = [as_number(v, finite=False) for row in value for v in row]
            if shape in shapes and all(len(row) == shape[1] for row in value) and None not in entries:
                return np.array(entries, dtype=np.float64).reshape(shape)
        raise FormatError(f"{self.where}: '{key}' must be a {wanted} list of numbers, got {describe(value)}")


def as_number(value: Any, finite: bool = True) -> float | None:
    """`value` as a float, or None when it is no JSON number (booleans are not)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 308 digits
        return None
    return number if math.isfinite(number) or not finite else None


def describe(value: Any) -> str:
    """A JSON value in a few words, for error texts."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return f"an object with {len(value)} keys"
    if isinstance(value, list):
        inner = f" of lists of {len(value[0])}" if value and isinstance(value[0], list) else ""
        return f"a list of {len(value)}{inner}"
    try:
        text = json.dumps(value)
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        text = "a very long integer"
    return text if len(text) <= 40 else text[:37] + "..."


def read_json(path: Path) -> Node:
    """The file as a JSON object."""
    text = read_text(path, MAX_JSON_BYTES)
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise FormatError(f"{path}: nested too deeply to be a data set description") from error
    except json.JSONDecodeError as error:
        raise FormatError(f"{path}: not valid JSON at line {error.lineno}: {error.msg}") from error
    except ValueError as error:  # integers of more than 4300 digits
        raise FormatError(f"{path}: not valid JSON: {error}") from error
    return Node(value, str(path))


def parse_npy(data: bytes, where: str) -> np.ndarray:
    """An array of numbers or booleans from the bytes of an .npy file, as float64.

    Pickled objects are refused, and the shape in the header is compared with the bytes that are there before anything
    is allocated.
    """
    if not data:
        raise FormatError(f"{where}: the file is empty")
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    except Exception as error:  # NumPy evaluates the header as a Python literal, which can fail in any way
        raise FormatError(f"{where}: not a NumPy array file ({first_line(error)})") from error
    if dtype.hasobject or dtype.kind not in "fiub":
        found = "Python objects, which are never loaded" if dtype.hasobject else str(dtype)
        raise FormatError(f"{where}: holds {found}; expected numbers or booleans")
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise FormatError(f"{where}: impossible shape {shape}")
    count = math.prod(shape)
    found = len(data) - stream.tell()
    if count * dtype.itemsize > found:
        raise FormatError(f"{where}: cut short: shape {shape} needs {count * dtype.itemsize} bytes, {found} are there")
    values = np.frombuffer(data, dtype, count, stream.tell())
    if len(shape) > 8:
        raise FormatError(f"{where}: an array of {len(shape)} dimensions; expected a few")
    with np.errstate(all="ignore"):
        return values.reshape(shape, order="F" if fortran else "C").astype(np.float64)


def read_npy(path: Path, limit: int = MAX_ARRAY_BYTES) -> np.ndarray:
    """A numeric .npy file of at most `limit` bytes as float64."""
    return parse_npy(read_bytes(path, limit), str(path))


def parse_npz(data: bytes, where: str) -> dict[str, np.ndarray]:
    """The numeric arrays of an .npz file, as float64, by name."""
    if not data:
        raise FormatError(f"{where}: the file is empty")
    arrays: dict[str, np.ndarray] = {}
    total = 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            for member in members:
                if member.filename.endswith(".npy"):
                    with archive.open(member) as stream:
                        # The size stated in the archive is not trusted: reading stops at the limit.
                        content = stream.read(MAX_ARRAY_BYTES - total + 1)
                    total += len(content)
                    if total > MAX_ARRAY_BYTES:
                        raise FormatError(f"{where}: unpacks to more than {MAX_ARRAY_BYTES} bytes")
                    arrays[member.filename[:-4]] = parse_npy(content, f"{where} ({member.filename!r})")
    except FormatError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds on damaged archives
        raise FormatError(f"{where}: not a NumPy .npz archive ({first_line(error)})") from error
    return arrays


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """A numeric .npz file."""
    return parse_npz(read_bytes(path, MAX_ARRAY_BYTES), str(path))


def first_line(error: BaseException) -> str:
    """An exception in one short line."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:120]


class Bytes:
    """A cursor over a little-endian binary file: every read is checked against what is left."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, layout: struct.Struct, what: str) -> tuple[Any, ...]:
        """Unpack `layout` and move on."""
        if layout.size > self.left:
            raise FormatError(
                f"{self.where}: cut short at byte {len(self.data)}: {what} needs {layout.size} bytes, {self.left} left"
            )
        values = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return values

    def skip(self, count: int, size: int, what: str) -> None:
        """Move over `count` records of `size` bytes."""
        if count * size > self.left:
            raise FormatError(f"{self.where}: cut short: {count} {what} need {count * size} bytes, {self.left} left")
        self.at += count * size

    def count(self, layout: struct.Struct, size: int, what: str) -> int:
        """A record count that the rest of the file can hold at `size` bytes or more each."""
        (count,) = self.take(layout, f"the number of {what}")
        if count * size > self.left:
            raise FormatError(
                f"{self.where}: states {count} {what} of at least {size} bytes each, but {self.left} bytes are left"
            )
        return count

    def name(self, what: str) -> str:
        """A NUL-terminated UTF-8 string."""
        end = self.data.find(b"\0", self.at, self.at + 4096)
        if end < 0:
            raise FormatError(f"{self.where}: {what} at byte {self.at} has no end; the file is damaged")
        try:
            text = self.data[self.at : end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.where}: {what} at byte {self.at} is not UTF-8 text") from error
        self.at = end + 1
        return text
