"""How does a film become frames, and what of it is lost?

Through ffmpeg, upright (as players turn it), as sRGB-encoded RGB of 8 bits. Files are hostile: what ffmpeg says of a
damaged one becomes one line.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..fields.errors import FormatError
from .images import available_memory, demand_memory

ONLY_8_BITS = "of its more than 8 bits a channel a film keeps 8"
_NO_ALPHA = "its transparency is left out; a folder of PNG frames keeps it"
_DAMAGED = "its frames cannot be decoded: it is damaged or cut short; check that it plays"
# ffmpeg's names of pixel layouts.
_WITH_ALPHA = re.compile(r"yuva|[rgb]{3}a|a[rgb]{3}|ya\d")
_DEEP = re.compile(r"(9|10|12|14|16|32|48|64)[bl]e\b")


class Film(NamedTuple):
    """Frames of a film.

    Attributes:
        frames: (T, H, W, 3) uint8, sRGB-encoded.
        fps: Frames per second.
        notes: What of the film is not in them, each in a few words.
    """

    frames: np.ndarray
    fps: float
    notes: tuple[str, ...]


def read_film(path: Path) -> Film:
    """Decode a film of any format that ffmpeg knows.

    Raises:
        FormatError: No file, no film, damaged, without frames, or too large for this machine.
    """
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise FormatError(f"{path}: the file is empty")
    import imageio_ffmpeg

    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)  # it warns of every film that is turned
    there = available_memory()
    frames: list[np.ndarray] = []
    try:
        stream = imageio_ffmpeg.read_frames(str(path))
        facts = next(stream)
        (width, height), rate = facts["size"], float(facts.get("fps") or 30.0)
        expected = round(rate * float(facts.get("duration") or 0))
        for data in stream:
            frames.append(np.frombuffer(data, np.uint8).reshape(height, width, 3))
            # Each by itself and then all together; how many there are is seen only at the end.
            demand_memory(path, 2 * max(expected, len(frames)) * len(data), there)
    except (FormatError, MemoryError):
        raise
    except Exception as error:  # ffmpeg's own failures come as OSError, RuntimeError, StopIteration or KeyError
        raise FormatError(f"{path}: {_what_is_wrong(str(error))}") from error
    if not frames:
        raise FormatError(f"{path}: {_DAMAGED}")
    layout = str(facts.get("pix_fmt", ""))
    lost = ((_NO_ALPHA, _WITH_ALPHA.match(layout)), (ONLY_8_BITS, _DEEP.search(layout)))
    return Film(np.stack(frames), rate, tuple(note for note, found in lost if found))


def _what_is_wrong(said: str) -> str:
    """With a film of which ffmpeg gave no frame, by its remarks."""
    if "does not contain any stream" in said:
        return "a film without frames: there is no picture in it to learn"
    if "Error opening input" in said:
        return "not a film that ffmpeg can read, or damaged; check that it plays"
    return _DAMAGED
