"""How models and checkpoints lie on disk: one safetensors file with a versioned JSON header.

The tensors are a plain safetensors file, so any safetensors reader can open it. Its metadata entry `polyfield` holds
JSON text: `{"format": "polyfield", "version": 1, "kind": "model" | "checkpoint", ...}`. Reading runs no code and trusts
nothing: lengths are checked before anything is parsed or allocated, and whatever is not understood is refused in one
line (FormatError). A change that an old program would misread raises FORMAT_VERSION.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import ConfigError, FormatError
from .atomic import atomic_write

FORMAT_VERSION = 1
_KEY = "polyfield"
# A model has tens of tensors; their JSON is kilobytes. 16 MiB leaves room for long provenance and refuses nonsense.
_MAX_HEADER_BYTES = 16 << 20


def write_tensors(path: str | os.PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and their header to one file, atomically (see `atomic_write`).

    Args:
        path: file to create or replace.
        header: JSON values. Must hold "kind"; "format" and "version" are added here. NaN and infinity are refused.
        tensors: name -> tensor of any shape, device and dtype that safetensors knows. Stored as contiguous CPU copies.

    Raises:
        ConfigError: the header is not JSON, has no kind, or sets a reserved key.
        FormatError: the file could not be written; the old one is unchanged.
    """
    if not isinstance(header.get("kind"), str):
        raise ConfigError(f'the header of {path} must hold "kind", a text such as "model"; got {header.get("kind")!r}')
    if "format" in header or "version" in header:
        raise ConfigError(f'the header of {path} must not set "format" or "version": they are added when writing')
    full = {"format": _KEY, "version": FORMAT_VERSION, **header}
    try:
        text = json.dumps(full, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the header of {path} must be plain JSON values: {error}") from error
    plain = _unshared(tensors)
    atomic_write(path, lambda temporary: _save(plain, temporary, text))


def read_tensors(
    path: str | os.PathLike[str], *, kind: str, device: str | torch.device = "cpu"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file of `write_tensors`. The content is treated as hostile.

    Args:
        path: the file.
        kind: what the caller can use, e.g. "model"; another kind is refused.
        device: where the tensors shall lie.

    Returns:
        The header (with "format", "version" and "kind") and the tensors, owned by the caller.

    Raises:
        FormatError: no such file, cut short, not safetensors, a safetensors file of another program, written by a newer
            version, or of another kind. The text is one line that starts with the path.
    """
    path = Path(path)
    header = read_header(path)
    _check_header(path, header, kind)
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Copies: the file may be replaced or cut while the caller still holds the tensors.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except MemoryError:
        raise
    except Exception as error:  # SafetensorError and, for dtypes that torch lacks, several built-in ones
        raise FormatError(f"{path} is damaged: {_one_line(error)}; restore it from a copy") from error
    return header, {name: t.to(device) for name, t in tensors.items()}


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON header of a file of `write_tensors`, whatever its kind, without loading tensors.

    Raises:
        FormatError: as `read_tensors`, except for kind and version.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            layout = _read_layout(path, file, path.stat().st_size)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error)).lower()
        raise FormatError(f"{path} cannot be read: {reason}") from error
    metadata = layout.get("__metadata__")
    text = metadata.get(_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise FormatError(
            f"{path} is a safetensors file of another program: it has no '{_KEY}' header; expected a file that "
            "'polyfield train' wrote"
        )
    header = _parse_object(path, text, "its polyfield header")
    if header.get("format") != _KEY:
        raise FormatError(f"{path} is damaged: its header says format {header.get('format')!r}, not '{_KEY}'")
    return header


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that own their memory: safetensors refuses tensors that share storage."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        t = tensor.detach().cpu().contiguous()
        storage = t.untyped_storage()
        if storage.nbytes() != t.nbytes or storage.data_ptr() in seen:
            t = t.clone()
        seen.add(t.untyped_storage().data_ptr())
        plain[name] = t
    return plain


def _save(tensors: dict[str, Tensor], path: Path, text: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata={_KEY: text})
    except SafetensorError as error:  # I/O failures arrive as text: give them their errno back
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _check_header(path: Path, header: dict[str, Any], kind: str) -> None:
    version, found = header.get("version"), header.get("kind")
    if type(version) is not int or version < 1:
        raise FormatError(f"{path} is damaged: its format version must be a positive integer; got {version!r:.60}")
    if version > FORMAT_VERSION:
        raise FormatError(
            f"{path} was written by a newer Polyfield (format version {version}; this one reads up to "
            f"{FORMAT_VERSION}); upgrade with 'pip install -U polyfield'"
        )
    if found != kind:
        hint = "; the model of a run is its model.safetensors" if kind == "model" else ""
        raise FormatError(f"{path} holds a {str(found)[:60]!r}, not a {kind!r}{hint}")


def _read_layout(path: Path, file: BinaryIO, size: int) -> dict[str, Any]:
    """The safetensors header: tensor name -> dtype, shape, byte range. Checks that all the bytes it names are there."""
    if size < 8:
        raise FormatError(f"{path} is not a safetensors file or is cut short: it has {size} bytes")
    (length,) = struct.unpack("<Q", file.read(8))
    first = file.read(1)
    if first != b"{" or length < 2:
        raise FormatError(f"{path} is not a safetensors file: no header at byte 8")
    if length > _MAX_HEADER_BYTES:
        raise FormatError(f"{path} is damaged: its header claims {length} bytes; at most {_MAX_HEADER_BYTES} are read")
    if length > size - 8:
        raise FormatError(f"{path} is cut short: its header has {length} bytes, the file only {size - 8} after byte 8")
    layout = _parse_object(path, first + file.read(length - 1), "its safetensors header")
    data_bytes = max((_end_of(path, name, entry) for name, entry in layout.items()), default=0)
    if 8 + length + data_bytes > size:
        raise FormatError(
            f"{path} is cut short: {8 + length + data_bytes} bytes expected, {size} found; restore it from a copy"
        )
    return layout


def _end_of(path: Path, name: str, entry: Any) -> int:
    """Last byte, relative to the data block, of one entry of the layout."""
    if name == "__metadata__":
        return 0
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(v) is int and v >= 0 for v in offsets):
        raise FormatError(f"{path} is damaged: tensor {name[:60]!r} has data_offsets {offsets!r:.60}")
    return offsets[1]


def _parse_object(path: Path, text: str | bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise FormatError(f"{path} is damaged: {what} is not valid JSON ({_one_line(error)})") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} is damaged: {what} must be a JSON object; got {type(value).__name__}")
    return value


def _refuse_constant(name: str) -> Callable[..., Any]:
    raise ValueError(f"{name} is not JSON")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
