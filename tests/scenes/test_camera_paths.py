import json
import math

import pytest
import torch
from helpers.fake_run import ring_cameras

from polyfield.fields.errors import ConfigError, FormatError
from polyfield.fields.geometry import CameraModel, Cameras, Similarity
from polyfield.scenes.camera_paths import (
    View,
    look_at,
    nearest_point,
    orbit,
    read_cameras,
    spiral,
    view_of_bounds,
    view_of_cameras,
    write_cameras,
)

VIEW = View(torch.tensor([0.1, -0.2, 0.3]), 2.5, 20.0, 50.0)


def forward_facing(count=9, focus=4.0):
    """A grid of cameras at y = -focus looking along +y at the origin."""
    side = torch.linspace(-0.5, 0.5, 3, dtype=torch.float64)
    x, z = torch.meshgrid(side, side, indexing="ij")
    centres = torch.stack([x.flatten(), torch.full((9,), -focus, dtype=torch.float64), z.flatten()], 1)[:count]
    return look_at(centres, torch.zeros(count, 3, dtype=torch.float64), fov_deg=50, size=(40, 30))


@pytest.mark.parametrize("frames", [1, 2, 31])
def test_every_orbit_camera_sees_the_centre_in_the_middle_of_its_picture(frames):
    cameras = orbit(VIEW, frames, size=(64, 48))
    assert len(cameras) == frames
    pixels, depth, valid = cameras.project(torch.arange(frames), VIEW.centre.float().expand(frames, 3))
    assert valid.all()
    torch.testing.assert_close(pixels, torch.tensor([32.0, 24.0]).expand(frames, 2), atol=1e-3, rtol=0)
    torch.testing.assert_close(depth, torch.full((frames,), 2.5))


def test_orbit_cameras_are_rigid_upright_and_at_the_stated_elevation():
    cameras = orbit(VIEW, 12)
    rotation = cameras.world_from_camera[:, :, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(12, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(12))
    assert (rotation[:, 2, 1] < 0).all()  # the picture's down axis points down in the world
    assert rotation[:, 2, 0].abs().max() < 1e-6  # and the horizon is level
    offset = cameras.centres() - VIEW.centre.float()
    torch.testing.assert_close(torch.rad2deg(torch.asin(offset[:, 2] / 2.5)), torch.full((12,), 20.0))


def test_looking_straight_down_has_a_pose():
    pose = look_at(torch.tensor([[0.0, 0.0, 2.0]]), torch.zeros(1, 3), fov_deg=40, size=(8, 8)).world_from_camera
    assert torch.isfinite(pose).all()
    torch.testing.assert_close(pose[0, :, 2], torch.tensor([0.0, 0.0, -1.0]))


def test_the_view_of_cameras_on_a_ring_is_that_ring():
    view = view_of_cameras(ring_cameras(8, radius=3.0))
    torch.testing.assert_close(view.centre, torch.zeros(3, dtype=torch.float64), atol=1e-3, rtol=0)
    assert view.radius == pytest.approx(3.0, abs=1e-2)
    assert view.elevation_deg == pytest.approx(30.0, abs=0.1)
    assert view.fov_deg == pytest.approx(40.0, abs=1e-3)


def test_the_view_of_bounds_holds_the_box():
    bounds = torch.tensor([[-0.5, -0.2, 0.0], [0.3, 0.4, 0.6]])
    cameras = orbit(view_of_bounds(bounds), 7, size=(100, 100))
    corners = torch.stack([torch.cartesian_prod(*bounds.T)], 0)[0]
    for frame in range(7):
        pixels, _, valid = cameras.project(torch.full((8,), frame), corners)
        assert valid.all()
        assert ((pixels >= 0) & (pixels <= 100)).all()


def test_unbounded_models_have_a_finite_view():
    view = view_of_bounds(torch.tensor([[-math.inf] * 3, [math.inf] * 3]))
    assert math.isfinite(view.radius)
    assert torch.equal(view.centre, torch.zeros(3, dtype=torch.float64))


def test_a_spiral_stays_among_the_cameras_and_looks_at_the_scene():
    cameras = forward_facing()
    path = spiral(cameras, 24)
    centres = path.centres().double()
    assert (centres[:, [0, 2]].abs() <= 0.5 + 1e-6).all()
    torch.testing.assert_close(centres[:, 1], torch.full((24,), -4.0, dtype=torch.float64), atol=1e-4, rtol=0)
    pixels, _, valid = path.project(torch.arange(24), torch.zeros(24, 3))
    assert valid.all()
    torch.testing.assert_close(pixels, torch.tensor([20.0, 15.0]).expand(24, 2), atol=1e-2, rtol=0)
    assert path.world_from_camera[:, 2, 1].max() < -0.9  # upright


def test_a_spiral_closes():
    path = spiral(forward_facing(), 48).centres()
    steps = (path - path.roll(1, 0)).norm(dim=1)
    assert steps[0] < 2 * steps[1:].max()


def test_cameras_all_around_have_no_spiral():
    with pytest.raises(ConfigError, match="look to all sides: a spiral needs a forward-facing capture; use --orbit N"):
        spiral(ring_cameras(8), 10)


def test_paths_need_a_frame():
    with pytest.raises(ConfigError, match="at least 1 frame; got 0"):
        orbit(VIEW, 0)


def test_parallel_lines_have_a_nearest_point():
    origins = torch.tensor([[1.0, 0.0, 5.0], [-1.0, 0.0, 5.0]], dtype=torch.float64)
    point = nearest_point(origins, torch.tensor([[0.0, 0.0, -1.0]] * 2, dtype=torch.float64))
    assert torch.isfinite(point).all()
    assert point.norm() < 1e-2


def mixed_cameras():
    base = ring_cameras(3)
    model = torch.tensor([CameraModel.PINHOLE, CameraModel.OPENCV, CameraModel.FISHEYE], dtype=torch.uint8)
    distortion = torch.zeros(3, 8)
    distortion[1] = torch.tensor([0.01, -0.02, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006])
    distortion[2, :4] = torch.tensor([0.01, 0.02, 0.03, 0.04])
    return Cameras(base.world_from_camera, base.intrinsics, distortion, model, base.width, base.height)


def test_written_cameras_are_read_back(tmp_path):
    cameras = mixed_cameras()
    write_cameras(tmp_path / "c.json", cameras, ["a.png", "b.png", "c.png"])
    back = read_cameras(tmp_path / "c.json")
    for name in ("world_from_camera", "intrinsics", "distortion"):
        torch.testing.assert_close(getattr(back, name), getattr(cameras, name), atol=1e-6, rtol=1e-6)
    for name in ("model", "width", "height"):
        assert torch.equal(getattr(back, name), getattr(cameras, name))


def test_camera_files_use_opengl_axes(tmp_path):
    """A camera at (0, 0, 4) with identity rotation looks down -z and sees the origin in the middle."""
    pose = torch.eye(4)
    pose[2, 3] = 4
    frame = {"transform_matrix": pose.tolist()}
    (tmp_path / "c.json").write_text(json.dumps({"camera_angle_x": 0.7, "w": 20, "h": 10, "frames": [frame]}))
    cameras = read_cameras(tmp_path / "c.json")
    pixels, depth, valid = cameras.project(torch.zeros(2, dtype=torch.int64), torch.tensor([[0.0, 0, 0], [0, 0.5, 0]]))
    assert valid.all()
    torch.testing.assert_close(pixels[0], torch.tensor([10.0, 5.0]))
    assert pixels[1, 1] < 5  # +y is up in the picture
    assert depth[0].item() == pytest.approx(4)


def test_another_size_keeps_the_vertical_view_and_the_middle(tmp_path):
    write_cameras(tmp_path / "c.json", ring_cameras(2), ["a", "b"])
    wide = read_cameras(tmp_path / "c.json", size=(64, 24))
    assert (int(wide.width[0]), int(wide.height[0])) == (64, 24)
    base = ring_cameras(2)
    torch.testing.assert_close(wide.intrinsics[:, :2], 2 * base.intrinsics[:, :2])
    torch.testing.assert_close(wide.intrinsics[:, 2:], torch.tensor([32.0, 12.0]).expand(2, 2))


def test_a_camera_file_without_any_size_asks_for_one(tmp_path):
    frame = {"transform_matrix": torch.eye(4).tolist()}
    (tmp_path / "c.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": [frame]}))
    with pytest.raises(FormatError, match="no image size; add 'w' and 'h' to the file or give --size WxH"):
        read_cameras(tmp_path / "c.json")
    assert int(read_cameras(tmp_path / "c.json", size=(30, 20)).width[0]) == 30


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"frames": []}', '{"frames": [3]}', '{"frames": [{}]}', "{'a'}"])
def test_files_of_another_shape_are_refused_by_name(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(FormatError, match=r"c\.json"):
        read_cameras(tmp_path / "c.json")


def test_a_moved_path_stays_on_its_model():
    """Cameras in the data set frame and back give the same pictures: the transforms cancel."""
    similarity = Similarity(2.0, torch.eye(3), torch.tensor([1.0, 2.0, 3.0]))
    cameras = orbit(VIEW, 3)
    back = cameras.transformed(similarity).transformed(similarity.inverse())
    torch.testing.assert_close(back.world_from_camera, cameras.world_from_camera, atol=1e-5, rtol=0)
