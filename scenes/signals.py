"""How does a file become a signal that a field can learn, and a fitted field a file again?

Inputs: an image in any format of `image_files`; a film (.mp4, .mov, .mkv, .webm) or a folder of equally large frames;
a volume as .npy or .npz (the only array, or the one named "volume"), of axes (z, y, x) or (z, y, x, channels), brought
to [0, 1] by its own range; a mesh, as the signed distance from it. Outputs: PNG, JPEG, WebP, BMP or TIFF for images,
.mp4 and its like or a folder of PNG for films, .npy for volumes, mesh files for surfaces. Files are hostile: what
cannot be used becomes one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..fields.errors import ConfigError, FormatError
from ..fields.formats import atomic_write
from ..fields.formats.mesh_file import read_mesh, write_mesh
from ..fields.geometry import Mesh, check_mesh, merge_vertices, zero_surface
from ..fields.implicit import GridSignal, MeshSignal, make_mesh_signal
from .datasets.files import read_npy, read_npz
from .image_files import read_image
from .images import available_memory
from .pictures import FilmFile, to_bytes
from .suffixes import FILMS, IMAGES, MESHES, PICTURES

MAX_VOLUME_BYTES = 1 << 31


class Input(NamedTuple):
    """A signal with what its values were before they were brought to [0, 1]."""

    signal: GridSignal | MeshSignal
    low: float
    high: float
    fps: float | None
    """Frames per second, of films only."""
    warning: str | None = None
    """Why inside and outside of a mesh cannot be trusted, where they cannot."""


def read_signal(path: Path) -> Input:
    """Read an image, a film, a folder of frames, a volume or a mesh.

    Raises:
        FormatError: none of these, damaged, too large for this machine, not finite.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        frames = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES)
        if not frames:
            raise FormatError(f"{path}: a folder without images; expected the frames of a film")
        return Input(GridSignal("video", _frames(path, frames)), 0.0, 1.0, 30.0)
    if suffix in FILMS:
        values, fps = _read_film(path)
        return Input(GridSignal("video", values), 0.0, 1.0, fps)
    if suffix in (".npy", ".npz"):
        return _read_volume(path)
    if suffix in MESHES:
        return _read_surface(path)
    if suffix not in IMAGES:
        known = ", ".join((*IMAGES, *FILMS, ".npy", ".npz", *MESHES))
        raise FormatError(f"{path}: expected an image, a film, a volume or a mesh ({known}) or a folder of frames")
    return Input(GridSignal("image", torch.from_numpy(read_image(path).copy())), 0.0, 1.0, None)


def _frames(folder: Path, files: list[Path]) -> Tensor:
    first = read_image(files[0])
    _demand_memory(folder, len(files) * first.nbytes)
    out = torch.empty(len(files), *first.shape, dtype=torch.uint8)
    for index, file in enumerate(files):
        frame = read_image(file)
        if frame.shape != first.shape:
            raise FormatError(f"{file}: frames must be equally large: {first.shape} before, {frame.shape} here")
        out[index] = torch.from_numpy(frame.copy())
    return out


def _read_film(path: Path) -> tuple[Tensor, float]:
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    import imageio_ffmpeg

    try:
        stream = imageio_ffmpeg.read_frames(str(path))
        facts = next(stream)
        width, height = facts["size"]
        frames: list[Tensor] = []
        for data in stream:
            if not frames:
                expected = round(float(facts.get("fps") or 0) * float(facts.get("duration") or 0))
                _demand_memory(path, max(1, expected) * len(data))
            frames.append(torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(height, width, 3))
    except (FormatError, MemoryError):
        raise
    except Exception as error:  # ffmpeg's own failures come as OSError, RuntimeError, StopIteration or KeyError
        raise FormatError(f"{path}: ffmpeg cannot read it as a film; convert it to .mp4 (H.264)") from error
    if not frames:
        raise FormatError(f"{path}: a film without frames")
    return torch.stack(frames), float(facts.get("fps") or 30.0)


def _read_volume(path: Path) -> Input:
    if path.suffix.lower() == ".npy":
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
    scaled = (values - low) / ((high - low) or 1.0)
    return Input(GridSignal("volume", torch.from_numpy(scaled.astype(np.float32))), low, high, None)


def _read_surface(path: Path) -> Input:
    mesh = merge_vertices(read_mesh(path))
    report = check_mesh(mesh)
    try:
        signal = make_mesh_signal(mesh)
    except ConfigError as error:
        raise FormatError(f"{path}: {error}") from error
    return Input(signal, 0.0, 1.0, None, None if report.signed_distance_trusted else report.explanation)


def _demand_memory(path: Path, needed: int) -> None:
    there = available_memory()
    if needed > there:
        raise FormatError(f"{path}: needs {needed / 1e9:.1f} GB of memory, {there / 1e9:.1f} GB are there; shrink it")


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


def write_surface(path: Path, distances: Tensor, cube: tuple[float, float, float, float]) -> None:
    """Write the surface where signed distances (Z, Y, X, 1) at the cells of a cube are zero, as a mesh.

    Args:
        cube: corner (x, y, z) and side in the frame that the mesh shall have.

    Raises:
        ConfigError: there is no surface, or the name is no mesh's. FormatError: it cannot be written.
    """
    check_output(path, "surface")
    cells = distances.shape[2]
    unit = zero_surface(distances[..., 0], first=0.5 / cells, step=1 / cells)
    if unit is None:
        low, high = float(distances.min()), float(distances.max())
        raise ConfigError(f"the field has no surface: its distances are {low:.3g} to {high:.3g}")
    *corner, side = cube
    placed = unit.vertices.double() * side + torch.tensor(corner, dtype=torch.float64)
    write_mesh(path, Mesh(placed.float(), unit.triangles))


def write_signal(path: Path, kind: str, values: Tensor, *, low: float, high: float, fps: float | None) -> None:
    """Write the values of an image, film or volume, (.., y, x, C) in [0, 1], as the inverse of `read_signal`.

    Raises:
        ConfigError: the name does not fit. FormatError: it cannot be written.
    """
    check_output(path, kind)
    if kind == "volume":
        array = (values * (high - low) + low).numpy()
        atomic_write(path, lambda temporary: _save_npy(temporary, array))
    elif kind == "image":
        _write_picture(path, to_bytes(values))
    elif path.suffix:
        _write_film(path, to_bytes(values), fps or 30.0)
    else:
        path.mkdir(parents=True, exist_ok=True)
        for index, frame in enumerate(to_bytes(values)):
            _write_picture(path / f"{index:05d}.png", frame)


def _save_npy(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    without_alpha = path.suffix.lower() in (".jpg", ".jpeg", ".bmp") and pixels.shape[2] == 4
    image = Image.fromarray(pixels[..., :3] if without_alpha else pixels)
    kind = Image.registered_extensions()[path.suffix.lower()]
    atomic_write(path, lambda temporary: image.save(temporary, format=kind))


def _write_film(path: Path, frames: np.ndarray, fps: float) -> None:
    film = FilmFile(path, (frames.shape[2], frames.shape[1]), fps)
    try:
        for frame in frames:
            film.add(frame[..., :3])
        film.close()
    finally:
        film.discard()
