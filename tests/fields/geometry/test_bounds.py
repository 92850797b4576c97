"""Do boxes hold what they say they hold?"""

from __future__ import annotations

import pytest
import torch
from helpers.camera_samples import camera, random_pixels
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.geometry import (
    CameraModel,
    Cameras,
    contains,
    frustum_bounds,
    look_at,
    points_bounds,
    scene_bounds,
    union_bounds,
)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40))
def test_box_of_points_holds_them_and_touches_them(seed, count):
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    box = points_bounds(points)
    assert contains(box, points).all()
    assert torch.equal(box, torch.stack((points.amin(0), points.amax(0))))
    other = points_bounds(points + 5)
    assert contains(union_bounds(box, other), torch.cat((points, points + 5))).all()


def test_outliers_are_left_out():
    points = torch.zeros(1000, 3)
    points[:5] = 1e6
    assert points_bounds(points, outliers=0.01).abs().max() == 0
    with pytest.raises(ConfigError, match=r"outliers must be in \[0, 0.5\); got 0.5"):
        points_bounds(points, outliers=0.5)
    with pytest.raises(ShapeError, match="at least one row"):
        points_bounds(points[:0])


def test_nan_lies_nowhere():
    assert not contains(torch.tensor([[-1.0] * 3, [1.0] * 3]), torch.tensor([0.0, float("nan"), 0.0]))


def test_frustum_of_a_pinhole_is_exact():
    cameras = Cameras.create(torch.eye(4)[:3], width=100, height=50, focal=50.0)
    assert torch.allclose(frustum_bounds(cameras, 1.0, 4.0), torch.tensor([[-4.0, -2.0, 1.0], [4.0, 2.0, 4.0]]))


@pytest.mark.parametrize("model", [CameraModel.PINHOLE, CameraModel.ORTHOGRAPHIC])
def test_frustum_holds_every_ray_between_near_and_far(model):
    cameras = camera(model)
    frames, pixels = random_pixels(cameras, 200)
    rays = cameras.rays(frames, pixels)
    cosine = (rays.directions * cameras.forward()[frames]).sum(-1, keepdim=True)
    box = frustum_bounds(cameras, 1.0, 3.0) + 1e-9 * torch.tensor([[-1.0], [1.0]])
    for depth in (1.0, 2.0, 3.0):
        assert contains(box, rays.origins + depth / cosine * rays.directions).all()


def test_panoramas_have_a_finite_frustum():
    box = frustum_bounds(camera(CameraModel.EQUIRECTANGULAR), 0.5, 2.0)
    assert torch.isfinite(box).all()
    with pytest.raises(ConfigError, match="0 <= near <= far"):
        frustum_bounds(camera(CameraModel.PINHOLE), 3.0, 2.0)


def test_scene_bounds_by_kind():
    pose = look_at(torch.tensor([0.0, -0.9, 0.0]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    cameras = Cameras.create(pose, width=100, height=100, focal=100.0)
    unit = torch.tensor([[-1.0] * 3, [1.0] * 3])
    assert torch.equal(scene_bounds("object", cameras), unit)
    assert torch.equal(scene_bounds("unbounded", cameras), 4 * unit)
    points = 2 * torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    box = scene_bounds("unbounded", cameras, points=points)
    assert contains(box, points).float().mean() > 0.9
    assert torch.equal(scene_bounds("unbounded", cameras, points=1e9 * points), 16 * unit)
    forward = scene_bounds("forward", cameras, near_far=(0.5, 1.5))
    assert torch.allclose(forward, torch.tensor([[-0.75, -0.4, -0.75], [0.75, 0.6, 0.75]]), atol=1e-6)
    with pytest.raises(ConfigError, match="need near and far"):
        scene_bounds("forward", cameras)
    with pytest.raises(ConfigError, match="kind must be object, forward or unbounded; got 'round'"):
        scene_bounds("round", cameras)
