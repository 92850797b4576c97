"""How do triangle meshes come from files and go to them? PLY, OBJ, STL, OFF and GLB, through trimesh.

Content is treated as hostile: only geometry is read, from the one file that was named (no materials, textures or other
files that it refers to), nothing in it is run, and whatever is not understood is refused in one line (FormatError).
Polygons are cut into triangles; the parts of a GLB scene are put together in its frame. Vertices stay as they are:
`geometry.merge_vertices` merges those that coincide.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, FormatError
from ..geometry.meshes import Mesh
from .atomic import atomic_write

MESH_FORMATS = ("ply", "obj", "stl", "off", "glb")
"""Endings of files, as `read_mesh` and `write_mesh` know them."""


def read_mesh(path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> Mesh:
    """Read the triangles of a file.

    Args:
        path: a file whose name ends in .ply, .obj, .stl, .off or .glb, in capitals or not.
        dtype: of the vertices, float32 or float64.

    Returns:
        The mesh, in the file's frame and units, on the CPU; at least one triangle, all vertices finite.

    Raises:
        FormatError: no such file, another format, damaged, or no triangles; one line that starts with the path.
    """
    path = Path(path)
    kind = _kind_of(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        cause = (error.strerror or type(error).__name__).lower()
        raise FormatError(f"{path} cannot be read: {cause}; check the path") from error
    try:
        vertices, triangles = _load(content, kind)
        mesh = Mesh(torch.tensor(vertices, dtype=dtype), torch.tensor(triangles).long())
    except Exception as error:  # trimesh lets through whatever its readers meet: struct, numpy, JSON, memory, ...
        raise FormatError(
            f"{path} cannot be read as {kind.upper()}: {_one_line(error)}; open it in a mesh editor and export it again"
        ) from error
    if not mesh.triangles.numel():
        raise FormatError(f"{path} holds no triangles ({mesh.vertices.shape[0]} vertices): point clouds are not meshes")
    bad = ~mesh.vertices.isfinite().all(1)
    if bad.any():
        where = int(bad.nonzero()[0])
        raise FormatError(f"{path}: vertex {where} is not finite as {dtype}; mend it in a mesh editor")
    return mesh


def write_mesh(path: str | os.PathLike[str], mesh: Mesh) -> None:
    """Write triangles to a file, atomically (see `atomic_write`).

    Args:
        path: its ending chooses the format. PLY, STL and GLB hold float32, STL no common vertices.
        mesh: vertices must be finite, and there must be at least one triangle.

    Raises:
        ConfigError: the mesh is empty or not finite.
        FormatError: another format, or the file could not be written; the old one is unchanged.
    """
    path = Path(path)
    kind = _kind_of(path)
    if not mesh.triangles.numel() or not bool(mesh.vertices.isfinite().all()):
        raise ConfigError(f"{path} is to hold finite vertices and at least one triangle; run check_mesh on the mesh")
    import trimesh

    vertices, triangles = mesh.vertices.detach().cpu().numpy(), mesh.triangles.cpu().numpy()
    content: Any = trimesh.Trimesh(vertices, triangles, process=False).export(file_type=kind)
    data = content.encode() if isinstance(content, str) else bytes(content)
    atomic_write(path, lambda temporary: temporary.write_bytes(data))


def _kind_of(path: Path) -> str:
    kind = path.suffix.lower().lstrip(".")
    if kind not in MESH_FORMATS:
        known = ", ".join(f".{name}" for name in MESH_FORMATS)
        raise FormatError(f"{path} is not a mesh that Polyfield knows ({known}); convert it, or name it as what it is")
    return kind


def _load(content: bytes, kind: str) -> tuple[Any, Any]:
    """Vertices and triangles, as numpy arrays."""
    import numpy as np
    import trimesh

    # Bytes have no folder: there is no resolver, and nothing beside the file is opened.
    options: dict[str, Any] = {"skip_materials": True} if kind in ("obj", "glb") else {}
    scene = trimesh.load_scene(io.BytesIO(content), file_type=kind, process=False, **options)
    vertices, triangles, count = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], 0
    for part in scene.dump():
        if isinstance(part, trimesh.Trimesh):
            vertices.append(part.vertices)
            triangles.append(part.faces + count)
            count += len(part.vertices)
    return np.concatenate(vertices), np.concatenate(triangles)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
