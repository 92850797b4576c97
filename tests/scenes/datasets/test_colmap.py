"""COLMAP: all camera models against formulas written down here, both forms of file, and every way to damage them."""

import struct

import numpy as np
import pytest
import torch
from helpers import datasets as data
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import FormatError
from polyfield.fields.geometry import Cameras
from polyfield.scenes import load_scene
from polyfield.scenes.datasets import colmap, parse

POSES = data.ring_poses()


def polynomial(r2, *k):
    return 1 + sum(c * r2 ** (i + 1) for i, c in enumerate(k))


def radial(x, y, *k):
    return np.array([x, y]) * polynomial(x * x + y * y, *k)


def opencv(x, y, k1, k2, p1, p2, k3=0.0, k4=0.0, k5=0.0, k6=0.0):
    r2 = x * x + y * y
    factor = polynomial(r2, k1, k2, k3) / polynomial(r2, k4, k5, k6)
    return np.array(
        [
            x * factor + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * factor + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ]
    )


def fisheye(x, y, *k):
    r = np.hypot(x, y)
    theta = np.arctan(r)
    return np.array([x, y]) / r * theta * polynomial(theta * theta, *k)


# Number, parameters, projection of (x/z, y/z) with the parameters after the principal point.
F, C = 30.0, (11.0, 9.0)
MODELS = [
    (0, (F, *C), lambda x, y: np.array([x, y])),
    (1, (F, F + 1, *C), lambda x, y: np.array([x, y])),
    (2, (F, *C, 0.05), radial),
    (3, (F, *C, 0.05, -0.02), radial),
    (4, (F, F + 1, *C, 0.05, -0.02, 0.003, -0.002), opencv),
    (5, (F, F + 1, *C, 0.05, -0.02, 0.01, 0.003), fisheye),
    (6, (F, F + 1, *C, 0.05, -0.02, 0.003, -0.002, 0.01, 0.02, 0.01, 0.005), opencv),
    (8, (F, *C, 0.05), fisheye),
    (9, (F, *C, 0.05, -0.02), fisheye),
]


@pytest.mark.parametrize(("model", "parameters", "formula"), MODELS)
def test_each_camera_model_projects_by_colmaps_formula(model, parameters, formula):
    cameras, images, _ = data.colmap_binary(POSES, model, parameters)
    lens = colmap.parse_cameras(cameras, "cameras.bin")[7]
    photos = colmap.parse_images(images, "images.bin")
    one_focal = colmap.MODELS[model][2].startswith("f")
    fx, fy, cx, cy = (parameters[0], *parameters[:3]) if one_focal else parameters[:4]
    rest = parameters[3:] if one_focal else parameters[4:]
    point = torch.tensor([[0.25, -0.3, 0.35]], dtype=torch.float64)
    for photo in photos[:3]:
        pose = colmap.invert_pose(photo.quaternion, photo.translation, "photo")
        cameras = Cameras(
            torch.from_numpy(pose)[None],
            torch.tensor([lens.intrinsics], dtype=torch.float64),
            torch.tensor([lens.distortion], dtype=torch.float64),
            torch.tensor([int(lens.model)], dtype=torch.uint8),
            torch.tensor([data.WIDTH]),
            torch.tensor([data.HEIGHT]),
        )
        q, t = photo.quaternion, np.array(photo.translation)
        axis = np.array(q[1:])
        local = point[0].numpy()  # rotated by the quaternion itself: v + 2 w (u x v) + 2 u x (u x v)
        local = local + 2 * q[0] * np.cross(axis, local) + 2 * np.cross(axis, np.cross(axis, local)) + t
        u, v = formula(local[0] / local[2], local[1] / local[2], *rest)
        np.testing.assert_allclose(cameras.project(0, point).pixels[0], [fx * u + cx, fy * v + cy], atol=1e-6)


def test_points_and_colors_come_along(tmp_path):
    data.write_dataset(tmp_path, "colmap-bin")
    points = np.array([[0.0, 0, 0], [0.5, -0.5, 0.25], [np.nan, 0, 0], [1, 1, 1]])
    (tmp_path / "sparse/0/points3D.bin").write_bytes(data.colmap_binary(POSES, points=points)[2])
    scene = load_scene(tmp_path)
    back = scene.to_scene.inverse().apply(data.there(scene.points).double())
    np.testing.assert_allclose(back, points[[0, 1, 3]], atol=1e-5)
    assert data.there(scene.point_colors)[:, 0].tolist() == [0, 1, 3]
    assert "1 of 4 points are not finite and were dropped" in scene.warnings


def test_text_points_are_read(tmp_path):
    scene = load_scene(data.write_dataset(tmp_path, "colmap-txt"))
    np.testing.assert_allclose(
        scene.to_scene.inverse().apply(data.there(scene.points).double()), [[0.5, -0.25, 0.125]], atol=1e-5
    )
    assert data.there(scene.point_colors).tolist() == [[10, 20, 30]]


def test_images_2_have_half_the_stated_size_rounded_either_way(tmp_path):
    data.write_dataset(tmp_path, "colmap-bin")
    cameras = data.colmap_binary(POSES)[0]
    (tmp_path / "sparse/0/cameras.bin").write_bytes(
        cameras.replace(struct.pack("<QQ", 24, 16), struct.pack("<QQ", 49, 31))
    )
    (tmp_path / "images").rename(tmp_path / "images_2")
    scene = load_scene(tmp_path)
    expected = [30 * 24 / 49, 30 * 16 / 31, 12 * 24 / 49, 8 * 16 / 31]
    np.testing.assert_allclose(scene.cameras.intrinsics[0], expected, rtol=1e-6)
    assert not scene.warnings


def test_masks_beside_the_images_are_found(tmp_path):
    data.write_dataset(tmp_path, "colmap-bin")
    (tmp_path / "masks").mkdir()
    blank = data.Image.new("L", (data.WIDTH, data.HEIGHT))
    blank.save(tmp_path / "masks" / (data.name(0) + ".png"))
    blank.save(tmp_path / "masks" / data.name(1))
    images = load_scene(tmp_path).images
    assert [bool(images.mask(k).any()) for k in range(3)] == [False, False, True]


def edit(name, old, new):
    return lambda files: files.update({name: files[name].replace(old, new, 1)})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (edit("cameras.txt", "PINHOLE 24 16", "FOV 24 16 30"), "cameras.txt, line 2: camera model FOV cannot be used"),
        (edit("cameras.txt", "PINHOLE", "LENS"), "line 2: expected a camera model out of SIMPLE_PINHOLE, .* got LENS"),
        (edit("cameras.txt", " 8.0", ""), "line 2: PINHOLE has 4 parameters, got 3"),
        (edit("cameras.txt", "24", "x"), "line 2: expected a whole number, got 'x'"),
        (edit("cameras.txt", "24", "0"), "line 2: an image of 0x16 pixels"),
        (edit("cameras.txt", "30.0", "abc"), "line 2: expected a number, got 'abc'"),
        (edit("cameras.txt", "30.0", "nan"), "focal length fx is nan pixels"),
        (
            edit("cameras.txt", "7 PIN", "8 PIN"),
            r"\(photo_000.png\): refers to camera 7, which cameras.txt does not hold",
        ),
        (edit("images.txt", " photo_000.png", ""), "images.txt, line 2: expected .* NAME, the name is missing"),
        (edit("images.txt", "\n1 ", "\none "), "images.txt, line 2: expected a whole number, got 'one'"),
        (lambda f: f.update({"images.txt": "1 0 0\n"}), "images.txt, line 1: expected at least 9 fields, got 3"),
        (lambda f: f.update({"images.txt": "# none\n"}), "holds no registered photo"),
        (lambda f: f.update({"points3D.txt": "1 2 3\n"}), "points3D.txt, line 1: expected at least 8 fields, got 3"),
    ],
)
def test_malformed_text_names_file_and_line(tmp_path, change, text):
    data.write_dataset(tmp_path, "colmap-txt")
    folder = tmp_path / "sparse/0"
    files = {path.name: path.read_text() for path in folder.iterdir()}
    change(files)
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(FormatError, match=text):
        load_scene(tmp_path)


def test_a_model_without_counterpart_says_which_can_be_used(tmp_path):
    data.write_dataset(tmp_path, "colmap-bin")
    cameras = data.colmap_binary(POSES, 7, (F, F, *C, 0.1))[0]
    (tmp_path / "sparse/0/cameras.bin").write_bytes(cameras)
    with pytest.raises(
        FormatError, match=r"camera 7: camera model FOV cannot be used \(usable: SIMPLE_PINHOLE, .*undistort"
    ):
        load_scene(tmp_path)


def test_a_quaternion_that_is_no_rotation_is_refused():
    with pytest.raises(FormatError, match="photo: the rotation quaternion has length 0; expected 1"):
        colmap.invert_pose((0, 0, 0, 0), (0, 0, 0), "photo")
    with pytest.raises(FormatError, match="photo: the pose holds NaN"):
        colmap.invert_pose((1, 0, 0, 0), (0, float("nan"), 0), "photo")


def test_binary_files_cut_short_anywhere_are_refused(tmp_path):
    data.write_dataset(tmp_path, "colmap-bin")
    contents = data.colmap_binary(POSES[:3], points=np.ones((3, 3)))
    parsers = (colmap.parse_cameras, colmap.parse_images, colmap.parse_points)
    for content, parser in zip(contents, parsers, strict=True):
        parser(content, "whole")
        for length in range(len(content)):
            with pytest.raises(FormatError, match=r"cut: "):
                parser(content[:length], "cut")
    (tmp_path / "sparse/0/cameras.bin").write_bytes(contents[0][:-4])
    with pytest.raises(FormatError, match=r"cameras.bin: .*cut short|cameras.bin: states 1 cameras"):
        load_scene(tmp_path)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_forged_count_allocates_nothing(which):
    parser = (colmap.parse_cameras, colmap.parse_images, colmap.parse_points)[which]
    for count in (10, 1 << 32, (1 << 64) - 1):
        with pytest.raises(
            FormatError, match=rf"x: states {count} \w+ of at least \d+ bytes each, but \d+ bytes are left"
        ):
            parser(struct.pack("<Q", count) + b"\0" * 100, "x")


CONTENTS = data.colmap_binary(POSES[:3], points=np.ones((3, 3)))


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2), st.data())
def test_any_mutation_of_a_binary_file_parses_or_is_refused(which, draw):
    content = bytearray(CONTENTS[which])
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(content)))
        new = draw.draw(st.binary(max_size=9))
        content[at : at + draw.draw(st.integers(0, 9))] = new
    parser = (colmap.parse_cameras, colmap.parse_images, colmap.parse_points)[which]
    result = data.parse_or_refusal(parser, bytes(content), "file")
    assert not isinstance(result, str) or "\n" not in result
    if which == 1 and not isinstance(result, str):
        for photo in result:
            pose = data.parse_or_refusal(colmap.invert_pose, photo.quaternion, photo.translation, "photo")
            assert isinstance(pose, str) or np.isfinite(pose).all()


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(["cameras.txt", "images.txt", "points3D.txt"]), st.integers(0, 400), st.text(max_size=8))
def test_any_mutation_of_a_text_file_parses_or_is_refused(tmp_path_factory, name, at, new):
    root = tmp_path_factory.mktemp("text")
    data.write_dataset(root, "colmap-txt", POSES[:2])
    file = root / "sparse/0" / name
    content = file.read_text()
    file.write_text(content[:at] + new + content[at + len(new) :], encoding="utf-8")
    result = data.parse_or_refusal(parse, root)
    assert not isinstance(result, str) or "\n" not in result
