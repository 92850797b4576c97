"""How does a file become a signal that a field can learn, and a fitted field a file again?

Inputs: an image in any format of `image_files`; a film (.mp4, .mov, .mkv, .webm) or a folder of equally large frames;
a volume as .npy or .npz (the only array, or the one named "volume"), of axes (z, y, x) or (z, y, x, channels), brought
to [0, 1] by its own range; a mesh, as the signed distance from it. Outputs: PNG, JPEG, WebP, BMP or TIFF for images,
.mp4 and its like or a folder of PNG for films, .npy for volumes, mesh files for surfaces. Files are hostile: what
cannot be used becomes one line.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..fields.errors import ConfigError, FormatError
from ..fields.formats import atomic_write
from ..fields.formats.mesh_file import read_mesh, write_mesh
from ..fields.geometry import Mesh, MeshReport, check_mesh, merge_vertices, zero_surface
from ..fields.implicit import GridSignal, MeshSignal, make_mesh_signal
from ..fields.implicit.surface import Target
from .datasets.files import read_npy, read_npz
from .film_files import ONLY_8_BITS, read_film
from .image_files import read_header, read_picture, to_8_bits
from .images import available_memory, demand_memory
from .pictures import FilmFile, to_bytes
from .suffixes import FILMS, IMAGES, MESHES, PICTURES

MAX_VOLUME_BYTES = 1 << 31
FEWEST_CELLS = 8
"""Along each axis of a mesh's cube. Of a ball that fills the cube 8 leave nine tenths, 6 three quarters, 2 nothing."""
_MOST_PIXELS = {".webp": 16383, ".jpg": 65535, ".jpeg": 65535}
"""Along a side, by the formats' own headers."""
_BYTES_TO_READ = 20
"""Of a volume's value: as float64 of its own range and of the unit interval, and as float32."""
_BYTES_TO_WRITE = {"image": 5, "video": 5, "volume": 5, "surface": 9, ".webp": 10}
"""Beside the 4 of each float32 value that is written at once: measured of 20 million pixels and of 256^3 cells."""


class Input(NamedTuple):
    """A signal with what its values were before they were brought to [0, 1]."""

    signal: GridSignal | MeshSignal
    low: float
    high: float
    fps: float | None
    """Frames per second, of films only."""
    mesh: MeshReport | None = None
    """Of a mesh: whether its inside and outside can be trusted."""
    notes: tuple[str, ...] = ()
    """What the file holds and the signal does not, each in a few words."""


def read_signal(path: Path, target: Target = "sdf") -> Input:
    """Read an image, a film, a folder of frames, a volume or a mesh.

    Args:
        target: what is to be learned of a mesh.

    Raises:
        FormatError: none of these, damaged, too large for this machine, not finite.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES)
        if not files:
            raise FormatError(f"{path}: a folder without images; expected the frames of a film")
        frames, notes = _read_frames(path, files)
        return Input(GridSignal("video", torch.from_numpy(frames)), 0.0, 1.0, 30.0, notes=notes)
    if suffix in FILMS:
        frames, fps, notes = read_film(path)
        return Input(GridSignal("video", torch.from_numpy(frames)), 0.0, 1.0, fps, notes=notes)
    if suffix in (".npy", ".npz"):
        return _read_volume(path)
    if suffix in MESHES:
        return _read_surface(path, target)
    if suffix not in IMAGES:
        known = ", ".join((*IMAGES, *FILMS, ".npy", ".npz", *MESHES))
        raise FormatError(f"{path}: expected an image, a film, a volume or a mesh ({known}) or a folder of frames")
    demand_memory(path, _bytes_to_decode(path))
    pixels, notes = read_picture(path, most_pixels=None)
    return Input(GridSignal("image", _as_values(pixels)), 0.0, 1.0, None, notes=notes)


def _bytes_to_decode(path: Path) -> int:
    """What a picture takes at most while it is read: the decoder's own copy and those on the way to its values."""
    header = read_header(path, most_pixels=None)
    return header.width * header.height * (20 if header.deep else 4) * header.channels


def _as_values(pixels: np.ndarray) -> Tensor:
    """Of a `Picture`, as `GridSignal` takes them."""
    if pixels.dtype == np.uint16:
        return torch.from_numpy(pixels.astype(np.float32) / 65535)
    return torch.from_numpy(np.array(pixels, np.uint8 if pixels.dtype == np.uint8 else np.float32))


def _read_frames(folder: Path, files: list[Path]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(T, H, W, C) uint8, and what the frames lose."""
    first = read_header(files[0], most_pixels=None)
    (width, height), channels = first.turned_size, first.channels
    demand_memory(folder, _bytes_to_decode(files[0]) + len(files) * width * height * channels)
    out = np.empty((len(files), height, width, channels), np.uint8)
    noted: list[str] = []
    for index, file in enumerate(files):
        picture = read_picture(file, most_pixels=None)
        frame = to_8_bits(picture.pixels)
        if frame.shape != out.shape[1:]:
            was, (rows, columns, depth) = f"{width}x{height} of {channels} channels", frame.shape
            raise FormatError(f"{file}: frames must be equally large: {was} before, {columns}x{rows} of {depth} here")
        out[index] = frame
        lost = [*picture.notes, *([ONLY_8_BITS] if picture.pixels.dtype != np.uint8 else [])]
        noted += [f"{file.name}: {note}" for note in lost[:1]]
    more = f"; {len(noted) - 1} more frames lose something too" if len(noted) > 1 else ""
    return out, tuple(note + more for note in noted[:1])


def _count_values(path: Path) -> int:
    """Of an .npy file by its header; 0 where reading it will tell what is wrong."""
    with contextlib.suppress(Exception):  # NumPy evaluates the header as a Python literal, which can fail in any way
        return np.load(path, mmap_mode="r", allow_pickle=False).size
    return 0


def _read_volume(path: Path) -> Input:
    if path.suffix.lower() == ".npy":
        demand_memory(path, _BYTES_TO_READ * _count_values(path))
        values = read_npy(path, MAX_VOLUME_BYTES)
    else:
        arrays = read_npz(path)
        name = "volume" if "volume" in arrays else next(iter(arrays), None)
        if name is None or (len(arrays) > 1 and name != "volume"):
            raise FormatError(f"{path}: must hold one array, or one named 'volume'; got {', '.join(arrays) or 'none'}")
        values = arrays[name]
    if values.ndim == 3:
        values = values[..., None]
    if values.ndim != 4 or values.size == 0 or values.shape[3] > 16:
        raise FormatError(f"{path}: a volume is (z, y, x) or (z, y, x, up to 16 channels); got {values.shape}")
    if not np.isfinite(values).all():
        raise FormatError(f"{path}: a volume must be finite; {int((~np.isfinite(values)).sum())} values are not")
    low, high = float(values.min()), float(values.max())
    most = float(np.finfo(np.float32).max)
    if max(-low, high, high - low) > most:
        raise FormatError(f"{path}: its values, {low:.3g} to {high:.3g}, are beyond float32 ({most:.2g}); scale them")
    scaled = (values - low) / ((high - low) or 1.0)
    return Input(GridSignal("volume", torch.from_numpy(scaled.astype(np.float32))), low, high, None)


def _read_surface(path: Path, target: Target) -> Input:
    mesh = merge_vertices(read_mesh(path, dtype=torch.float64))
    report = check_mesh(mesh)
    try:
        signal = make_mesh_signal(mesh, target=target)
    except ConfigError as error:
        raise FormatError(f"{path}: {error}") from error
    return Input(signal, 0.0, 1.0, None, report)


def check_output(path: Path, kind: str) -> None:
    """Refuse a file name that does not fit what a model holds, before anything is computed.

    Raises:
        ConfigError: with the endings that fit.
    """
    suffix = path.suffix.lower()
    fits = {"image": PICTURES, "video": (*FILMS, ""), "volume": (".npy",), "surface": MESHES}[kind]
    if suffix not in fits:
        shown = ", ".join(s or "a folder" for s in fits)
        raise ConfigError(f"--out of {'an' if kind == 'image' else 'a'} {kind} must be {shown}; got {path}")


def check_size(path: Path, kind: str, size: tuple[int, ...], channels: int) -> None:
    """Refuse what its file or this machine's memory cannot hold, before anything is computed.

    Args:
        size: cells along x, y (and z or t).

    Raises:
        ConfigError: with what fits.
    """
    if kind == "surface" and min(size) < FEWEST_CELLS:
        raise ConfigError(
            f"--size of a mesh is the cells along each axis of its cube, at least {FEWEST_CELLS}; got {min(size)}"
        )
    shape, suffix = "x".join(map(str, size)), path.suffix.lower()
    most = _MOST_PIXELS.get(suffix)
    if most is not None and max(size) > most:
        raise ConfigError(
            f"{path}: this format has at most {most} pixels a side; {shape} is more: give a smaller --size, or "
            "another format such as .png"
        )
    values = math.prod(size) * channels
    at_once = values // size[2] if kind == "video" else values
    needed = 4 * values + _BYTES_TO_WRITE.get(suffix, _BYTES_TO_WRITE[kind]) * at_once
    there = available_memory()
    if needed > there:
        found = f"{needed / 1e9:.1f} GB of memory, {there / 1e9:.1f} GB are there"
        raise ConfigError(f"{path}: {shape} needs {found}; give a smaller --size")


def write_surface(path: Path, values: Tensor, cube: tuple[float, float, float, float], target: Target) -> None:
    """Write the surface of a field of a mesh as a mesh.

    Args:
        values: (Z, Y, X, 1) at the cells of the cube.
        cube: corner (x, y, z) and side in the frame that the mesh shall have.
        target: what the values are. Unsigned distances are nowhere below zero: of them the surface a cell away is
            taken, a closed shell on both sides, for what is nearer falls between the cells.

    Raises:
        ConfigError: there is no surface, or the name is no mesh's. FormatError: it cannot be written.
    """
    check_output(path, "surface")
    cells = values.shape[2]
    level = 1 / cells if target == "udf" else 0.0
    unit = zero_surface(values[..., 0] - level, first=0.5 / cells, step=1 / cells)
    if unit is None:
        low, high = float(values.min()), float(values.max())
        raise ConfigError(f"the field has no surface: its values are {low:.3g} to {high:.3g}")
    *corner, side = cube
    placed = unit.vertices.double() * side + torch.tensor(corner, dtype=torch.float64)
    write_mesh(path, Mesh(placed, unit.triangles))


def write_signal(path: Path, kind: str, values: Tensor, *, low: float, high: float, fps: float | None) -> None:
    """Write the values of an image, film or volume, (.., y, x, C) in [0, 1], as the inverse of `read_signal`.

    Raises:
        ConfigError: the name does not fit. FormatError: it cannot be written.
    """
    check_output(path, kind)
    if kind == "volume":
        array = (values * (high - low)).add_(low).numpy()
        atomic_write(path, lambda temporary: _save_npy(temporary, array))
    elif kind == "image":
        _write_picture(path, to_bytes(values))
    elif path.suffix:
        _write_film(path, values, fps or 30.0)
    else:
        path.mkdir(parents=True, exist_ok=True)
        for index, frame in enumerate(values):
            _write_picture(path / f"{index:05d}.png", to_bytes(frame))


def _save_npy(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    without_alpha = path.suffix.lower() in (".jpg", ".jpeg", ".bmp") and pixels.shape[2] == 4
    image = Image.fromarray(pixels[..., :3] if without_alpha else pixels)
    kind = Image.registered_extensions()[path.suffix.lower()]
    atomic_write(path, lambda temporary: image.save(temporary, format=kind))


def _write_film(path: Path, frames: Tensor, fps: float) -> None:
    film = FilmFile(path, (frames.shape[2], frames.shape[1]), fps)
    try:
        for frame in frames:
            film.add(to_bytes(frame[..., :3]))
        film.close()
    finally:
        film.discard()
