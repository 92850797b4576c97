"""How a file is replaced so that a reader, a crash or a full disk never meets half of it.

The new content goes to a temporary file in the same folder (a rename is atomic within one file system only), is flushed
to the disk, and takes the old file's name in one step; then the folder itself is flushed, so that the new name outlives
a power cut. Whatever fails before the rename leaves the old file as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import FormatError

_SUFFIX = ".polyfield-tmp"


def atomic_write(path: str | os.PathLike[str], writer: Callable[[Path], object]) -> None:
    """Write `path` through `writer(temporary_path)`; the file appears whole or not at all.

    Args:
        path: the file to create or replace. Its folder must exist.
        writer: writes the complete content to the path it is given (an empty file when called).

    Raises:
        FormatError: the disk is full, the folder is missing or not writable, ...; one line with path and cause. The old
            file is unchanged and the temporary one removed. Other exceptions of `writer` pass through likewise cleaned.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        writer(temporary)
        _flush(temporary)
        _inherit_mode(temporary, path)
        os.replace(temporary, path)
        temporary = None
        _flush_folder(path.parent)
    except OSError as error:
        kept = "; the old file is unchanged" if path.exists() else ""
        raise FormatError(f"{path} could not be written: {_cause(error)}{kept}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused (ValueError): JSON has neither."""
    text = json.dumps(value, indent=2, allow_nan=False, default=str) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def remove_leftovers(folder: str | os.PathLike[str]) -> int:
    """Delete temporary files that a killed writer left in `folder`; returns how many.

    Only for a folder that nobody else is writing to, such as a run folder at the start of `--resume`.
    """
    leftovers = [path for path in Path(folder).iterdir() if is_leftover(path)]
    for leftover in leftovers:
        with contextlib.suppress(OSError):
            leftover.unlink()
    return len(leftovers)


def is_leftover(path: Path) -> bool:
    """Whether `path` is named as a temporary file of `atomic_write`."""
    return path.name.startswith(".") and path.name.endswith(_SUFFIX)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows has no handle of a folder to flush
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse this; the rename itself has succeeded
        pass
    finally:
        os.close(handle)


def _inherit_mode(temporary: Path, path: Path) -> None:
    """Give the new file the old one's permissions, else those of any new file (mkstemp makes private ones)."""
    if os.name == "nt":
        return
    try:
        mode = path.stat().st_mode & 0o777
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        mode = 0o666 & ~mask
    temporary.chmod(mode)


def _cause(error: OSError) -> str:
    text = error.strerror or str(error) or type(error).__name__
    return text[:1].lower() + text[1:]
