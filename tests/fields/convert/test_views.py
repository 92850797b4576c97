"""Views are where the scene was seen from."""

from __future__ import annotations

import torch
from helpers.tiny import tiny_scene

from polyfield.fields.convert import orbit_cameras, views_between
from polyfield.fields.geometry import Cameras


def draw(cameras: Cameras, count: int, seed: int = 0) -> Cameras:
    return views_between(cameras, count, torch.Generator().manual_seed(seed))


def test_a_view_lies_on_the_line_from_a_camera_to_a_near_one_and_looks_about_the_same_way():
    cameras = tiny_scene(views=30).cameras
    views, centres = draw(cameras, 200), cameras.centres()
    for centre, forward in zip(views.centres(), views.forward(), strict=True):
        from_, to = (t.flatten() for t in torch.meshgrid(torch.arange(30), torch.arange(30), indexing="ij"))
        a, ab = centres[from_], centres[to] - centres[from_]
        t = ((centre - a) * ab).sum(1) / ab.square().sum(1).clamp(min=1e-9)
        off = (a + t.clamp(0, 1)[:, None] * ab - centre).norm(dim=1)
        near = ab.norm(dim=1) < 3  # of 30 on a sphere of radius 3 they are 2.1 apart
        same = (cameras.forward()[from_] * forward).sum(1) > 0.95
        assert bool((near & same & (off < 1e-4)).any())


def test_views_repeat_for_a_seed_and_differ_for_another():
    cameras = tiny_scene().cameras
    a, b, c = draw(cameras, 20), draw(cameras, 20), draw(cameras, 20, seed=1)
    assert torch.equal(a.world_from_camera, b.world_from_camera)
    assert not torch.equal(a.world_from_camera, c.world_from_camera)
    rotation = a.world_from_camera[:, :, :3]
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(20, 3, 3))


def test_a_single_camera_is_turned_only():
    camera = tiny_scene().cameras[:1]
    views = draw(camera, 10)
    torch.testing.assert_close(views.centres(), camera.centres().expand(10, 3))


def test_orbit_cameras_see_the_corners_of_the_box():
    box = torch.tensor([[-0.3, -0.5, 0.1], [0.6, 0.2, 0.7]])
    cameras = orbit_cameras(box, 40)
    corners = torch.cartesian_prod(*box.T)
    for frame in range(40):
        assert bool(cameras.project(frame, corners).valid.all())
