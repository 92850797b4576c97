"""transforms.json: every lens and list of both dialects, and every wrong shape in one line."""

import contextlib

import numpy as np
import pytest
import torch
from helpers import datasets as data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from polyfield.fields.errors import FormatError
from polyfield.fields.geometry import CameraModel
from polyfield.scenes import load_scene
from polyfield.scenes.datasets import parse, transforms


def write(root, change=lambda top: None, **top):
    """A folder with images whose JSON was changed in place."""
    if not (root / "images").is_dir():
        data.write_images(root / "images")
    value = data.transforms_json(data.ring_poses(), **top)
    change(value)
    data.write_json(root / "transforms.json", value)
    return root


def lens_of(root, **top):
    return parse(write(root, **top)).frames[0].lens


def test_opencv_coefficients_are_put_in_opencv_order(tmp_path):
    stated = {"k1": 0.1, "k2": 0.2, "p1": 0.3, "p2": 0.4, "k3": 0.5, "k4": 0.6, "k5": 0.7, "k6": 0.8}
    lens = lens_of(tmp_path, camera_model="FULL_OPENCV", **stated)
    assert lens.model == CameraModel.OPENCV
    assert lens.distortion == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    assert lens_of(tmp_path, k1=0.1).model == CameraModel.OPENCV  # instant-ngp names no model
    assert lens_of(tmp_path, camera_model="OPENCV", k1=0.0).model == CameraModel.PINHOLE


def test_fisheye_takes_its_four_coefficients_from_k1_to_k4(tmp_path):
    stated = {"k1": 0.1, "k2": 0.2, "k3": 0.3, "k4": 0.4}
    for model in ({"camera_model": "OPENCV_FISHEYE"}, {"is_fisheye": True}):
        lens = lens_of(tmp_path, **model, **stated)
        assert lens.model == CameraModel.FISHEYE
        assert lens.distortion == (0.1, 0.2, 0.3, 0.4, 0, 0, 0, 0)


def test_equirectangular_images_need_no_focal_length(tmp_path):
    def no_focal(top):
        del top["fl_x"], top["fl_y"], top["cx"], top["cy"]

    scene = load_scene(write(tmp_path, no_focal, camera_model="EQUIRECTANGULAR"))
    camera = scene.cameras[0]
    left, right = camera.rays(torch.zeros(2, dtype=torch.int64), torch.tensor([[0.0, 8.0], [24.0, 8.0]])).directions
    np.testing.assert_allclose(left, right, atol=1e-5)  # the picture closes
    np.testing.assert_allclose(left @ camera.forward()[0], -1, atol=1e-5)


def test_angles_stand_in_for_focal_lengths(tmp_path):
    def angles(top):
        del top["fl_x"], top["fl_y"], top["cx"], top["cy"], top["w"], top["h"]

    scene = load_scene(write(tmp_path, angles, camera_angle_x=1.0, camera_angle_y=0.5))
    expected = [12 / np.tan(0.5), 8 / np.tan(0.25), 12, 8]
    np.testing.assert_allclose(scene.cameras.intrinsics[0], expected, rtol=1e-6)


def test_a_frame_can_have_its_own_lens(tmp_path):
    def own(top):
        top["frames"][3].update(fl_x=50.0, cx=11.0)

    cameras = load_scene(write(tmp_path, own)).cameras
    np.testing.assert_allclose(cameras.intrinsics[3], [50, 30, 11, 8])
    np.testing.assert_allclose(cameras.intrinsics[4], [30, 30, 12, 8])


def test_aabb_scale_states_the_unit_cube_of_instant_ngp(tmp_path):
    assert parse(write(tmp_path)).region is None
    centre, half = data.there(parse(write(tmp_path, aabb_scale=4)).region)
    assert centre == (0, 0, 0)
    np.testing.assert_allclose(half, 0.5 / 0.33)
    centre, half = data.there(parse(write(tmp_path, aabb_scale=1, scale=0.5, offset=[0.5, 0.0, 1.0])).region)
    assert (centre, half) == ((0.0, 1.0, -1.0), 1.0)


@pytest.mark.parametrize("binary", [False, True])
def test_points_of_the_ply_file_come_into_the_scene_frame(tmp_path, binary):
    points = np.array([[0, 0, 0], [1, 2, 3], [-1, 0.5, 0.25]], np.float32)
    head = "ply\nformat {} 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    head += "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
    if binary:
        body = b"".join(p.tobytes() + bytes([9, 8, 7]) for p in points)
        (tmp_path / "sparse.ply").write_bytes(head.format("binary_little_endian").encode() + body)
    else:
        lines = "\n".join(f"{x} {y} {z} 9 8 7" for x, y, z in points)
        (tmp_path / "sparse.ply").write_text(head.format("ascii") + lines + "\n")
    scene = load_scene(write(tmp_path, ply_file_path="sparse.ply"))
    np.testing.assert_allclose(scene.to_scene.inverse().apply(data.there(scene.points).double()), points, atol=1e-5)
    assert data.there(scene.point_colors).tolist() == [[9, 8, 7]] * 3


def test_an_absent_ply_file_is_a_warning(tmp_path):
    scene = load_scene(write(tmp_path, ply_file_path="gone.ply"))
    assert scene.points is None
    assert scene.warnings == ["gone.ply (ply_file_path) is absent; going on without points"]


def test_masks_hide_pixels_and_must_have_the_size_of_the_image(tmp_path):
    def masked(top):
        for frame in top["frames"]:
            frame["mask_path"] = frame["file_path"].replace("images", "masks")

    (tmp_path / "masks").mkdir()
    mask = np.full((data.HEIGHT, data.WIDTH), 255, np.uint8)
    for k in range(data.FRAMES):
        mask[: k + 1] = 0
        Image.fromarray(mask).save(tmp_path / "masks" / data.name(k))
    images = load_scene(write(tmp_path, masked)).images
    assert images.pixels.shape[1] == 3
    assert int((images.mask(4) == 0).sum()) == 5 * data.WIDTH
    y = torch.tensor([0, 4, 5])
    assert images.sample_masks(torch.full((3,), 4), torch.full((3,), 2), y).tolist() == [0, 0, 255]

    Image.fromarray(mask[:-1]).save(tmp_path / "masks" / data.name(7))
    with pytest.raises(FormatError, match=r"masks/photo_007.png: a mask of 24x15 pixels for photo_007.png of 24x16"):
        load_scene(tmp_path)


def test_nerfstudio_lists_are_the_splits_and_unlisted_frames_are_left_out(tmp_path):
    names = [f"images/{data.name(k)}" for k in range(data.FRAMES)]
    lists = {"train_filenames": names[:6], "val_filenames": names[6:8], "test_filenames": names[6:8]}
    scene = load_scene(write(tmp_path, **lists))
    assert {name: frames.tolist() for name, frames in scene.splits.items()} == {
        "train": [0, 1, 2, 3, 4, 5],
        "test": [6, 7],
    }
    with pytest.raises(FormatError, match="none of the frames is named in train_filenames"):
        load_scene(write(tmp_path, train_filenames=["images/other.png"]))
    with pytest.raises(FormatError, match="none of the 2 images present is a training image"):
        load_scene(write(tmp_path, test_filenames=names[:2]))


def test_frames_are_sorted_by_file_name_before_the_hold_out(tmp_path):
    scene = load_scene(write(tmp_path, lambda top: top["frames"].reverse()))
    assert [int(scene.images.image(k)[0, 0, 0]) for k in range(data.FRAMES)] == list(range(data.FRAMES))


def test_times_are_kept(tmp_path):
    def timed(top):
        for k, frame in enumerate(top["frames"]):
            frame["time"] = k / 10

    np.testing.assert_allclose(data.there(load_scene(write(tmp_path, timed)).times).numpy(), np.arange(10) / 10)
    assert load_scene(write(tmp_path)).times is None


def put(key, value):
    """Change a key of the file, or, written 'frame.key', of frame 2."""
    if key.startswith("frame."):
        return lambda top: top["frames"][2].update({key[6:]: value})
    return lambda top: top.update({key: value})


MATRIX = data.opengl(data.ring_poses()[2])
BAD = [
    (put("frames", []), r"'frames' must be a non-empty list, got \[\]"),
    (put("frames", None), "'frames' must be a non-empty list, got nothing"),
    (put("frames", {"a": 1}), "'frames' must be a list, got an object with 1 keys"),
    (put("frames", [7]), "frame 0: expected a JSON object, got 7"),
    (put("frame.file_path", None), "frame 2: 'file_path' is missing"),
    (put("frame.file_path", 5), "frame 2: 'file_path' must be a non-empty string, got 5"),
    (put("frame.file_path", "a\0b"), "frame 2: 'file_path' must be a non-empty string"),
    (
        put("frame.transform_matrix", None),
        "frame 2: 'transform_matrix' must be a 4x4 or 3x4 list of numbers, got nothing",
    ),
    (put("frame.transform_matrix", MATRIX[:2]), "must be a 4x4 or 3x4 list of numbers, got a list of 2 of lists of 4"),
    (put("frame.transform_matrix", [*MATRIX[:3], [0, 0, 0]]), "must be a 4x4 or 3x4 list of numbers"),
    (put("frame.transform_matrix", [[True] * 4] * 4), "must be a 4x4 or 3x4 list of numbers"),
    (put("frame.transform_matrix", [["0"] * 4] * 4), "must be a 4x4 or 3x4 list of numbers"),
    (put("frame.transform_matrix", [[float("nan")] * 4] * 4), r"frame 2 \(.*\): the pose holds NaN or infinity"),
    (put("frame.transform_matrix", [[float("inf")] * 4] * 4), "the pose holds NaN or infinity"),
    (put("frame.transform_matrix", [[0] * 4] * 4), "the last row of a pose must be 0 0 0 1, got 0 0 0 0"),
    (put("frame.transform_matrix", np.diag([2.0, 2, 2, 1]).tolist()), "the pose is not rigid"),
    (put("frame.transform_matrix", np.diag([1.0, 1, -1, 1]).tolist()), "the pose mirrors space"),
    (put("frame.transform_matrix", [[1, 0, 0, 1e300], *MATRIX[1:]]), "a pose entry is 1e.300"),
    (put("frame.mask_path", 3), "'mask_path' must be a non-empty string, got 3"),
    (put("frame.fl_x", "x"), "frame 2: 'fl_x' must be a finite number, got \"x\""),
    (put("frame.fl_x", -3), "frame 2: focal length fx is -3 pixels; expected a positive number"),
    (put("fl_x", 0), "focal length fx is 0 pixels"),
    (put("fl_x", 10**400), "'fl_x' must be a finite number, got 1000000"),
    (put("fl_x", 1e30), r"focal length fx is 1e\+30 pixels"),
    (put("cx", 1e30), r"principal point cx is 1e\+30 pixels"),
    (put("w", 1e300), r"'w' must be a whole number from 1 to 131072, got 1e\+300"),
    (put("w", 23.5), "'w' must be a whole number from 1 to 131072, got 23.5"),
    (put("w", None), "'w' and 'h' must both be given or both be absent"),
    (put("k1", float("inf")), "'k1' must be a finite number, got Infinity"),
    (put("k1", 1e12), "distortion coefficients"),
    (put("camera_model", "THIN_PRISM"), "camera_model 'THIN_PRISM' cannot be used; known are PINHOLE"),
    (put("is_fisheye", 1), "'is_fisheye' must be true or false, got 1"),
    (put("ftheta_p0", 0.1), "f-theta lenses cannot be used"),
    (put("train_filenames", "a"), "'train_filenames' must be a list, got \"a\""),
    (put("train_filenames", [1]), "'train_filenames' must be a list of file names"),
    (put("aabb_scale", "4"), "'aabb_scale' must be a finite number, got \"4\""),
    (lambda top: top.update(aabb_scale=1, offset=[1, 2]), "'offset' must be three numbers"),
    (put("ply_file_path", ["x"]), "'ply_file_path' must be a non-empty string, got a list of 1"),
    (lambda top: [top.pop(key) for key in ("fl_x", "fl_y")], r"no focal length; expected fl_x \(pixels\)"),
    (
        lambda top: [top.pop("fl_x"), top.pop("fl_y"), top.update(camera_angle_x=4.0)],
        "camera_angle_x is 4; expected rad",
    ),
]


@pytest.mark.parametrize(("change", "text"), BAD)
def test_a_json_of_the_wrong_shape_is_refused_in_one_line(tmp_path, change, text):
    with pytest.raises(FormatError, match=text) as caught:
        load_scene(write(tmp_path, change))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not valid JSON at line 1: Expecting value"),
        (b"{\n\n'a'", "not valid JSON at line 3"),
        (b"[1, 2]", "expected a JSON object, got a list of 2"),
        (b"\xff\xfe\x00", "byte 0 is not UTF-8 text"),
        (b'{"frames": ' + b"9" * 6000 + b"}", "not valid JSON: Exceeds the limit|'frames' must be a list"),
    ],
)
def test_what_is_no_json_is_refused_in_one_line(tmp_path, content, text):
    (tmp_path / "transforms.json").write_bytes(content)
    with pytest.raises(FormatError, match=text):
        load_scene(tmp_path)


def test_json_nested_too_deeply_is_refused(tmp_path):
    (tmp_path / "transforms.json").write_text("[" * 100_000)
    with pytest.raises(FormatError, match=r"nested too deeply|not valid JSON"):
        load_scene(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TOP_KEYS = [
    "frames",
    "camera_model",
    "w",
    "h",
    "fl_x",
    "cx",
    "k1",
    "aabb_scale",
    "offset",
    "scale",
    "ply_file_path",
    "train_filenames",
]
FRAME_KEYS = ["frame.file_path", "frame.transform_matrix", "frame.time", "frame.k4", "frame.mask_path"]
KEYS = TOP_KEYS + FRAME_KEYS


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KEYS), JSON), min_size=1, max_size=3))
def test_any_json_value_anywhere_parses_or_is_refused(tmp_path_factory, changes):
    def change(top):
        for key, value in changes:
            if not (key.startswith("frame.") and not isinstance(top["frames"], list)):
                with contextlib.suppress(IndexError, AttributeError, TypeError):
                    put(key, value)(top)

    root = tmp_path_factory.mktemp("json")
    (root / "images").mkdir()
    capture = data.parse_or_refusal(parse, write(root, change))
    if isinstance(capture, str):
        assert "\n" not in capture
    else:
        assert all(np.isfinite(frame.world_from_camera).all() for frame in capture.frames)


def test_opengl_poses_turn_two_axes_only():
    pose = np.arange(12.0).reshape(3, 4)
    turned = transforms.opencv_pose(pose)
    np.testing.assert_array_equal(turned[:, [0, 3]], pose[:, [0, 3]])
    np.testing.assert_array_equal(turned[:, 1:3], -pose[:, 1:3])
