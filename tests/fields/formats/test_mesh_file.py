"""Mesh files: what is written is read again, and hostile files are refused in one line."""

import contextlib
import copy
import json
import struct

import pytest
import torch

from polyfield.fields.errors import ConfigError, FormatError
from polyfield.fields.formats import MESH_FORMATS, read_mesh, write_mesh
from polyfield.fields.geometry import Mesh, check_mesh, make_icosphere, merge_vertices

SPHERE = make_icosphere(1)
PLY = """ply
format ascii 1.0
element vertex 3
property float x
property float y
property float z
element face 1
property list uchar int vertex_indices
end_header
0 0 0
1 0 0
0 1 {y}
3 0 1 {last}
"""
TRIANGLE = struct.pack("<9f", 0, 0, 0, 1, 0, 0, 0, 1, 0)
TREE = {
    "asset": {"version": "2.0"},
    "scene": 0,
    "scenes": [{"nodes": [0]}],
    "nodes": [{"mesh": 0}],
    "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
    "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
    "bufferViews": [{"buffer": 0, "byteLength": 36}],
    "buffers": [{"byteLength": 36}],
}


def glb(**changes: object) -> bytes:
    """A file of one triangle, with parts of its JSON replaced."""
    text = json.dumps({**copy.deepcopy(TREE), **changes}).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(TRIANGLE), b"BIN\0") + TRIANGLE
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


@pytest.mark.parametrize("kind", MESH_FORMATS)
def test_what_is_written_is_read_again(kind, tmp_path):
    path = tmp_path / f"sphere.{kind}"
    write_mesh(path, SPHERE)
    mesh = read_mesh(path, dtype=torch.float64)
    assert mesh.triangles.shape == SPHERE.triangles.shape
    torch.testing.assert_close(mesh.corners(), SPHERE.corners(), rtol=0, atol=1e-7)
    assert merge_vertices(mesh).vertices.shape == SPHERE.vertices.shape
    assert check_mesh(mesh).signed_distance_trusted
    assert read_mesh(path).vertices.dtype == torch.float32
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_vertices_stay_as_they_are(tmp_path):
    path = tmp_path / "two.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 0\nv 1 0 0\nv 0 0 1\nf 1 2 3\nf 4 5 6\n")
    assert read_mesh(path).vertices.shape[0] == 6


def test_polygons_are_cut_into_triangles(tmp_path):
    path = tmp_path / "quad.OFF"
    path.write_text("OFF\n4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n")
    mesh = read_mesh(path)
    assert mesh.triangles.shape == (2, 3)
    torch.testing.assert_close(mesh.area_vectors().sum(0), torch.tensor([0.0, 0, 1]))


def test_parts_of_a_scene_are_put_together_in_its_frame(tmp_path):
    path = tmp_path / "scene.glb"
    nodes = [{"children": [1, 2]}, {"mesh": 0}, {"mesh": 0, "translation": [5, 0, 0], "scale": [2, 2, 2]}]
    path.write_bytes(glb(nodes=nodes))
    corners = read_mesh(path).corners()
    assert corners.shape == (2, 3, 3)
    assert sorted(corners[:, :, 0].amax(1).tolist()) == [1.0, 7.0]


def test_other_files_are_not_opened(tmp_path, monkeypatch):
    path = tmp_path / "a.obj"
    (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd a.png\n")
    path.write_text("mtllib a.mtl\nusemtl m\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nf 1/1 2/1 3/1\n")
    read_mesh(path)  # trimesh imports what it needs
    opened = []
    import builtins
    import io

    real = io.open
    monkeypatch.setattr(builtins, "open", lambda name, *a, **k: opened.append(str(name)) or real(name, *a, **k))
    monkeypatch.setattr(io, "open", lambda name, *a, **k: opened.append(str(name)) or real(name, *a, **k))
    assert read_mesh(path).triangles.shape == (1, 3)
    assert [name for name in opened if str(tmp_path) in name] in ([str(path)], [])


HOSTILE = {
    "longer than the file.ply": b"ply\nformat binary_little_endian 1.0\nelement vertex 999999999999\nproperty float x\n"
    b"property float y\nproperty float z\nend_header\n",
    "nan.ply": PLY.format(y="nan", last=2).encode(),
    "infinite as float32.ply": PLY.format(y="1e300", last=2).replace("float", "double").encode(),
    "past the end.ply": PLY.format(y=0, last=7).encode(),
    "negative.ply": PLY.format(y=0, last=-1).encode(),
    "cloud.ply": PLY.format(y=0, last=2)
    .replace("element face 1\nproperty list uchar int vertex_indices\n", "")
    .encode(),
    "pickle.ply": b"\x80\x04cos\nsystem\n(S'touch HACKED'\ntR.",
    "python.obj": b"v __import__('os') 0 0\n",
    "words.obj": b"v a b c\nf x y z\n",
    "past the end.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n",
    "count.stl": b"\0" * 80 + struct.pack("<I", 2**32 - 1) + b"\0" * 50,
    "cut.stl": b"solid x\nfacet normal",
    "count.off": b"OFF\n999999999999 1 0\n0 0 0\n",
    "past the end.off": b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 9\n",
    "version.glb": b"glTF" + b"\xff" * 40,
    "count.glb": glb(accessors=[{"bufferView": 0, "componentType": 5126, "count": 10**12, "type": "VEC3"}]),
    "zeros.glb": glb(accessors=[{"componentType": 5126, "count": 10**15, "type": "VEC3"}]),
    "elsewhere.glb": glb(buffers=[{"byteLength": 36, "uri": "file:///etc/passwd"}]),
    "no meshes.glb": glb(meshes=[], nodes=[{}]),
    **{f"empty.{kind}": b"" for kind in MESH_FORMATS},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    with pytest.raises(FormatError) as caught:
        read_mesh(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert any(advice in text for advice in ("export it again", "mend it", "point clouds are not meshes"))
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", MESH_FORMATS)
def test_files_cut_anywhere_are_refused_or_whole_triangles(kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    write_mesh(path, SPHERE)
    whole = path.read_bytes()
    for k in range(1, 20):
        path.write_bytes(whole[: len(whole) * k // 20])
        try:
            mesh = read_mesh(path)
        except FormatError:
            continue
        assert mesh.triangles.shape[0] <= SPHERE.triangles.shape[0]


def test_a_ring_of_nodes_ends(tmp_path):
    path = tmp_path / "ring.glb"
    path.write_bytes(glb(nodes=[{"mesh": 0, "children": [1]}, {"children": [0]}]))
    with contextlib.suppress(FormatError):
        assert read_mesh(path).triangles.shape[0] <= 2


def test_error_texts(tmp_path):
    with pytest.raises(FormatError, match=r"a\.ply cannot be read: no such file or directory; check the path"):
        read_mesh(tmp_path / "a.ply")
    with pytest.raises(
        FormatError, match=r"a\.fbx is not a mesh that Polyfield knows \(\.ply, \.obj, .*\); convert it"
    ):
        read_mesh(tmp_path / "a.fbx")
    with pytest.raises(FormatError, match=r"a\.npz is not a mesh that Polyfield knows"):
        write_mesh(tmp_path / "a.npz", SPHERE)
    with pytest.raises(
        ConfigError, match=r"a\.ply is to hold finite vertices and at least one triangle; run check_mesh"
    ):
        write_mesh(tmp_path / "a.ply", Mesh(SPHERE.vertices, SPHERE.triangles[:0]))
    with pytest.raises(FormatError, match=r"a\.ply could not be written: no such file or directory"):
        write_mesh(tmp_path / "none" / "a.ply", SPHERE)
