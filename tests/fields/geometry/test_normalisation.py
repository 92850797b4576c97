"""Is the kind of a capture recognised, and does the scene frame hold what it should?"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.camera_samples import random_poses
from helpers.datasets import data_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError, FormatError
from polyfield.fields.geometry import (
    CameraModel,
    Cameras,
    Similarity,
    check_poses,
    contains,
    from_llff,
    from_opengl,
    look_at,
    normalise,
)

UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


def need(name: str) -> Path:
    """A folder of evaluation data, or a skip."""
    folder = data_folder() / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set POLYFIELD_DATA")
    return folder


def looking(position: torch.Tensor, target: torch.Tensor, focal: float = 100.0, **changes) -> Cameras:
    return Cameras.create(look_at(position, target, UP), **{"width": 120, "height": 100, "focal": focal, **changes})


def dome(count: int = 60, radius: float = 4.0, seed: int = 0) -> torch.Tensor:
    """Points on the upper half of a sphere."""
    generator = torch.Generator().manual_seed(seed)
    position = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    position[:, 2] = position[:, 2].abs()
    return radius * torch.nn.functional.normalize(position, dim=-1)


def ring(count: int = 40, turn: float = math.tau, seed: int = 0) -> torch.Tensor:
    """A hand-held walk around the origin: radius 3, with wobble."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.linspace(0, turn, count, dtype=torch.float64)
    wobble = 0.3 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return torch.stack((3 * angle.cos(), 3 * angle.sin(), torch.ones_like(angle)), -1) + wobble


def handheld(position: torch.Tensor) -> Cameras:
    noise = 0.3 * torch.randn(position.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return looking(position, noise)


def grid(spread: float = 0.5) -> Cameras:
    """Forward-facing: a 4 x 4 grid of cameras that look along +x at things some 6 units away."""
    steps = torch.linspace(-spread, spread, 4, dtype=torch.float64)
    yz = torch.cartesian_prod(steps, steps)
    position = torch.cat((torch.zeros(16, 1, dtype=torch.float64), yz), -1)
    return looking(position, torch.tensor([6.0, 0.0, 0.0], dtype=torch.float64))


def test_cameras_on_a_dome_are_an_object_that_fills_the_box():
    offset = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = normalise(looking(dome() + offset, offset), up=(0, 0, 1))
    assert found.kind == "object"
    assert torch.equal(found.to_scene.rotation, torch.eye(3, dtype=torch.float64))
    assert torch.allclose(found.to_scene.apply(offset), torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert 1 / found.to_scene.scale == pytest.approx(4 * 0.5 * 1.05)  # tan of half the smaller angle is 50 / 100
    assert found.aabb.tolist() == [[-1.0] * 3, [1.0] * 3]
    assert found.warnings == []


def test_stated_region_of_an_object_becomes_the_unit_box():
    found = normalise(looking(dome(), torch.zeros(3, dtype=torch.float64)), region=((0.1, 0.2, 0.3), 0.5))
    assert found.kind == "object"
    corner = found.to_scene.inverse().apply(torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64))
    assert (corner - torch.tensor([0.1, 0.2, 0.3])).norm() == pytest.approx(0.5 * math.sqrt(3))


@pytest.mark.parametrize("turn", [math.pi, math.tau])
def test_handheld_walk_around_something_is_unbounded_unless_masked(turn):
    cameras = handheld(ring(turn=turn))
    found = normalise(cameras)
    assert found.kind == "unbounded"
    distance = cameras.transformed(found.to_scene).centres().norm(dim=-1)
    assert float(distance.quantile(0.95)) == pytest.approx(1.0)
    assert float(distance.min()) > 0.5  # the centre is what they look at, not a place among them
    assert normalise(cameras, masked=True).kind == "object"


def test_grid_of_parallel_cameras_is_forward_and_its_views_fill_the_box():
    cameras = grid()
    found = normalise(cameras, depth_range=(2.0, 9.0))
    assert found.kind == "forward"
    moved = cameras.transformed(found.to_scene)
    assert torch.allclose(moved.forward().mean(0)[[0, 2]], torch.zeros(2, dtype=torch.float64), atol=1e-6)
    frames = torch.arange(len(moved))
    corners = moved.rays(frames, torch.zeros(len(moved), 2, dtype=torch.float64))
    cosine = (corners.directions * moved.forward()).sum(-1, keepdim=True)
    box = torch.tensor([[-1.0], [1.0]]) * (1 + 1e-6)
    for depth in (2.0, 9.0):
        at = corners.origins + depth * found.to_scene.scale / cosine * corners.directions
        assert contains(box.expand(2, 3), at).all()
        assert contains(found.aabb + 1e-5 * box, at).all()
    assert found.near_far == pytest.approx((2 * found.to_scene.scale, 9 * found.to_scene.scale))


def test_far_background_of_a_forward_capture_does_not_shrink_the_foreground():
    close, wide = (normalise(grid(), depth_range=(2.0, far)).to_scene.scale for far in (12.0, 1e4))
    assert wide > close / 10


def test_depth_of_a_forward_capture_is_guessed_from_points_else_from_the_focus():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(500, 3, generator=generator, dtype=torch.float64) * torch.tensor([6.0, 4.0, 4.0])
    points += torch.tensor([4.0, -2.0, -2.0])
    found = normalise(grid(), points=points)
    assert found.near_far is not None
    near, far = (distance / found.to_scene.scale for distance in found.near_far)
    assert 3 < near < 4.3
    assert 9.7 < far < 12
    guessed = normalise(grid())
    assert guessed.near_far is not None
    assert [distance / guessed.to_scene.scale for distance in guessed.near_far] == pytest.approx([3, 15], rel=0.05)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100), which=st.sampled_from(["dome", "ring", "grid"]))
def test_scene_frame_does_not_depend_on_the_data_set_frame(seed, scale, which):
    cameras = {
        "dome": lambda: looking(dome(), torch.zeros(3, dtype=torch.float64)),
        "ring": lambda: handheld(ring()),
        "grid": grid,
    }[which]()
    pose = random_poses(1, seed)[0]
    moved = cameras.transformed(Similarity(scale, pose[:, :3], pose[:, 3]))
    first, second = normalise(cameras), normalise(moved)
    assert first.kind == second.kind
    one, two = (c.transformed(n.to_scene) for c, n in ((cameras, first), (moved, second)))
    assert torch.allclose(one.centres().norm(dim=-1), two.centres().norm(dim=-1), rtol=1e-5, atol=1e-6)
    # Up is +z in both; the heading may differ.
    assert torch.allclose(one.centres()[:, 2], two.centres()[:, 2], atol=1e-5)
    assert torch.allclose(one.forward()[:, 2], two.forward()[:, 2], atol=1e-5)


def test_up_is_found_although_all_cameras_look_down_from_one_side():
    position = ring(turn=math.pi / 2) + torch.tensor([0.0, 0.0, 3.0])
    found = normalise(handheld(position), kind="unbounded")
    assert found.to_scene.rotation[2, 2] > math.cos(math.radians(3))


def test_given_up_is_taken_to_z():
    for up in ([0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 2.0, 3.0]):
        rotation = normalise(grid(), up=torch.tensor(up)).to_scene.rotation
        target = rotation @ torch.nn.functional.normalize(torch.tensor(up, dtype=torch.float64), dim=0)
        assert torch.allclose(target, UP, atol=1e-12)


@pytest.mark.parametrize(
    ("frame", "change", "message"),
    [
        (3, lambda p: p.fill_(math.nan), "frame 3 has numbers that are not finite"),
        (5, lambda p: p[:, :3].mul_(2), "frame 5 is not rigid: R.T R is off the identity by 3"),
        (0, lambda p: p[:, 0].neg_(), "frame 0 mirrors the world"),
    ],
)
def test_faulty_poses_name_their_frame(frame, change, message):
    cameras = looking(dome(10), torch.zeros(3, dtype=torch.float64))
    poses = cameras.world_from_camera.clone()
    change(poses[frame])
    with pytest.raises(FormatError, match=message):
        normalise(dataclasses.replace(cameras, world_from_camera=poses))
    check_poses(cameras)


def test_warnings_name_what_is_odd():
    cameras = looking(dome(), torch.zeros(3, dtype=torch.float64))
    poses = cameras.world_from_camera.clone()
    poses[7, :, 0].neg_()
    poses[7, :, 2].neg_()
    away = normalise(dataclasses.replace(cameras, world_from_camera=poses)).warnings
    assert away == ["1 of 60 cameras look away from the centre: frames 7"]
    huge = normalise(cameras.transformed(Similarity(1e5, torch.eye(3), torch.zeros(3)))).warnings
    assert len(huge) == 1
    assert huge[0].startswith("odd scale: the region of interest has a half size of 2.1e+05")
    poses = cameras.world_from_camera.clone()
    poses[10:20] = poses[9]
    double = normalise(dataclasses.replace(cameras, world_from_camera=poses)).warnings
    assert double == ["11 of 60 cameras share their pose with another: frames 9, 10, 11, 12, 13, ..."]


def test_few_or_strange_cameras_still_get_a_frame():
    origin = torch.zeros(3, dtype=torch.float64)
    one = looking(dome(1), origin)
    assert normalise(one).kind == "forward"
    panorama = Cameras.create(random_poses(1), width=64, height=32, model=CameraModel.EQUIRECTANGULAR)
    found = normalise(panorama)
    assert found.kind == "unbounded"
    assert "all cameras stand at one point" in found.warnings[0]
    flat = looking(dome(), origin, focal=25.0, model=CameraModel.ORTHOGRAPHIC)
    found = normalise(flat)
    assert found.kind == "object"
    assert 1 / found.to_scene.scale == pytest.approx(2 * 1.05)  # 50 pixels at 25 pixels a unit
    # A pan on a tripod has a focus nowhere; inside-out captures get the middle of the cameras.
    outward = looking(ring() * 0.1, ring() * 10)
    found = normalise(outward)
    assert found.kind == "unbounded"
    assert outward.transformed(found.to_scene).centres().mean(0).norm() < 1e-6
    assert found.warnings == []


def test_bad_hints_are_refused():
    cameras = grid()
    with pytest.raises(ConfigError, match="at least one camera"):
        normalise(cameras[:0])
    with pytest.raises(ConfigError, match="half size of the region must be positive and finite; got 0"):
        normalise(cameras, region=((0, 0, 0), 0.0))
    with pytest.raises(ConfigError, match="depth_range must be 0 <= near < far"):
        normalise(cameras, depth_range=(3.0, 2.0))
    with pytest.raises(ConfigError, match="up must be three finite numbers"):
        normalise(cameras, up=(0.0, 0.0, 0.0))
    with pytest.raises(ConfigError, match="kind must be object, forward or unbounded; got 'video'"):
        normalise(cameras, kind="video")  # type: ignore[arg-type]


def test_lego_is_an_object_in_its_own_orientation():
    data = json.loads((need("nerf_synthetic/lego") / "transforms_train.json").read_text())
    poses = from_opengl(torch.tensor([frame["transform_matrix"] for frame in data["frames"]]))
    focal = 400 / math.tan(data["camera_angle_x"] / 2)
    found = normalise(Cameras.create(poses, width=800, height=800, focal=focal), up=(0, 0, 1))
    assert found.kind == "object"
    assert 1 / found.to_scene.scale == pytest.approx(1.5238, abs=1e-3)
    assert found.to_scene.translation.norm() < 1e-5
    assert torch.equal(found.to_scene.rotation, torch.eye(3, dtype=torch.float64))
    assert found.warnings == []


def test_fox_is_unbounded_and_upright_without_being_told():
    data = json.loads((need("fox") / "transforms.json").read_text())
    poses = from_opengl(torch.tensor([frame["transform_matrix"] for frame in data["frames"]]))
    cameras = Cameras.create(poses, width=1080, height=1920, focal=data["fl_x"])
    found = normalise(cameras)
    assert found.kind == "unbounded"
    assert found.to_scene.rotation[2, 2] > math.cos(math.radians(10))  # its own frame is z-up, made so by hand
    assert cameras.transformed(found.to_scene).centres().norm(dim=-1).max() < 1.3
    assert found.warnings == []


def test_fern_is_forward_facing():
    llff = from_llff(torch.from_numpy(np.load(need("llff/fern") / "poses_bounds.npy")))
    cameras = Cameras.create(llff.world_from_camera, width=504, height=378, focal=llff.focal * 504 / llff.width)
    near_far = (float(llff.near_far.min()), float(llff.near_far.max()))
    for hint in (near_far, None):
        found = normalise(cameras, depth_range=hint)
        assert found.kind == "forward"
        assert found.to_scene.scale == pytest.approx(0.0175, abs=3e-4)
        moved = cameras.transformed(found.to_scene)
        assert moved.forward().mean(0)[1] > 0.98
        assert (-moved.world_from_camera[:, :, 1]).mean(0)[2] > 0.98
        assert found.warnings == []
