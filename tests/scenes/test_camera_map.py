"""The picture of the cameras: always drawn, and what it shows is where it should be."""

import numpy as np
import torch
from helpers import datasets as data

from polyfield.fields.geometry import CameraModel, Cameras
from polyfield.scenes.camera_map import draw_cameras

BLUE, ORANGE, INK = (47, 111, 183), (224, 122, 31), (34, 38, 43)


def ring(count=8, model=CameraModel.PINHOLE) -> Cameras:
    poses = torch.from_numpy(data.ring_poses(count, 2.5, 0.0)).float()
    return Cameras.create(poses, width=24, height=16, focal=30.0, model=model)


def count(picture, color, left, right) -> int:
    """Pixels near a colour between two columns of the panels' rows."""
    pixels = np.asarray(picture)[76:836, left:right].astype(int)
    return int((np.abs(pixels - color).max(axis=2) < 40).sum())


def test_train_and_test_cameras_have_their_colours_in_both_views():
    splits = {"train": torch.arange(1, 8), "test": torch.tensor([0])}
    picture = draw_cameras(ring(), splits, title="ring", subtitle="eight")
    assert picture.size == (1604, 918)
    for left, right in ((28, 788), (816, 1576)):
        assert count(picture, BLUE, left, right) > count(picture, ORANGE, left, right) > 30
        assert count(picture, INK, left, right) > 500  # the unit box


def test_a_camera_at_plus_x_is_drawn_on_the_right():
    pose = torch.tensor([[[0.0, 0, -1, 3], [1, 0, 0, 0], [0, -1, 0, 0]]])
    picture = draw_cameras(Cameras.create(pose, width=24, height=16, focal=30.0), {"train": torch.tensor([0])})
    rows, columns = np.nonzero(np.abs(np.asarray(picture)[76:836, 28:788].astype(int) - BLUE).max(axis=2) < 40)
    assert columns.mean() > 500
    assert abs(rows.mean() - 380) < 60


def test_points_and_a_larger_box_are_drawn():
    points = torch.rand(500, 3) - 0.5
    plain = np.asarray(draw_cameras(ring(), {}))
    with_points = np.asarray(draw_cameras(ring(), {}, points=points, bounds=torch.tensor([[-2.0] * 3, [2.0] * 3])))
    assert (plain != with_points).any(axis=2).sum() > 2000


def test_degenerate_scenes_are_drawn_too():
    one = ring(1)
    same = Cameras.concatenate([one, one])
    far = one._with(world_from_camera=one.world_from_camera * torch.tensor([1, 1, 1, 1e6]))
    round_ = ring(3, model=CameraModel.EQUIRECTANGULAR)
    fisheye = ring(3, model=CameraModel.FISHEYE)
    centred = one._with(world_from_camera=one.world_from_camera * torch.tensor([1, 1, 1, 0]))
    for cameras in (one, same, Cameras.concatenate([ring(), far]), far, round_, fisheye, centred):
        picture = draw_cameras(cameras, {"train": torch.arange(len(cameras))}, points=torch.zeros(0, 3))
        assert picture.size == (1604, 918)
