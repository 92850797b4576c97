"""Do converted, posed and refined cameras see known points where they must?"""

from __future__ import annotations

import math

import pytest
import torch
from helpers.camera_samples import mixed, random_poses
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError, FormatError, ShapeError
from polyfield.fields.geometry import Cameras, from_llff, from_opengl, look_at, refine
from polyfield.fields.geometry.poses import rotation_exp


def see(pose: torch.Tensor, points: list[list[float]]) -> list[list[float]]:
    cameras = Cameras.create(pose.double(), width=100, height=100, focal=50.0)
    projected = cameras.project(0, torch.tensor(points, dtype=torch.float64))
    assert projected.valid.all()
    return projected.pixels.tolist()


def test_opengl_camera_at_rest_sees_up_as_up_and_looks_along_minus_z():
    assert see(from_opengl(torch.eye(4)), [[0, 0, -2], [1, 0, -2], [0, 1, -2]]) == [[50, 50], [75, 50], [50, 25]]


def test_blender_camera_of_lego_sees_the_origin_in_the_middle():
    # A camera on the +y side of a z-up scene, rotated to look at the origin: Blender's axes are right, up, back.
    back = torch.tensor([0.0, 0.8, 0.6])
    right = torch.tensor([-1.0, 0.0, 0.0])
    matrix = torch.stack((right, torch.linalg.cross(back, right), back, 4 * back), -1)
    middle, above = see(from_opengl(matrix), [[0, 0, 0], [0, 0, 0.5]])
    assert middle == pytest.approx([50, 50], abs=1e-4)
    assert above[1] < 45


def test_llff_camera_at_rest_sees_known_points():
    # LLFF columns: down, right, back; here the world's axes are chosen as x right, y up, z back.
    matrix = torch.tensor([[0.0, 1, 0, 0, 378], [-1, 0, 0, 0, 504], [0, 0, 1, 0, 400]])
    rows = torch.cat((matrix.flatten(), torch.tensor([1.0, 9.0])))[None]
    poses = from_llff(rows)
    pixels = see(poses.world_from_camera[0], [[0, 0, -2], [1, 0, -2], [0, 1, -2]])
    assert pixels == [[50, 50], [75, 50], [50, 25]]
    assert (poses.height.item(), poses.width.item(), poses.focal.item()) == (378, 504, 400)
    assert poses.near_far.tolist() == [[1, 9]]


def test_llff_rows_are_checked():
    with pytest.raises(FormatError, match=r"poses_bounds must be \(F, 17\); got \(3, 15\)"):
        from_llff(torch.zeros(3, 15))
    rows = torch.zeros(3, 17)
    rows[1, 4] = math.nan
    with pytest.raises(FormatError, match="row 1 has numbers that are not finite"):
        from_llff(rows)
    with pytest.raises(ShapeError, match=r"poses must be \(..., 3, 4\)"):
        from_opengl(torch.zeros(2, 3, 3))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=6, max_size=6))
def test_look_at_gives_rigid_upright_poses(numbers):
    position, target = torch.tensor(numbers, dtype=torch.float64).view(2, 3)
    if (position - target).norm() < 1e-3:
        return
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    pose = look_at(position, target, up)
    rotation = pose[:, :3]
    assert torch.allclose(rotation.T @ rotation, torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert torch.linalg.det(rotation) > 0
    assert rotation[2, 1] <= 1e-9  # image-down never points up
    assert torch.allclose(position + (target - position).norm() * rotation[:, 2], target, atol=1e-9)


def test_look_at_straight_down_and_at_itself():
    pose = look_at(torch.tensor([0.0, 0.0, 5.0]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    assert torch.allclose(pose[:, 2], torch.tensor([0.0, 0.0, -1.0]))
    assert torch.isfinite(pose).all()
    with pytest.raises(ConfigError, match="look_at needs a finite target"):
        look_at(torch.zeros(3), torch.zeros(3), torch.ones(3))


def test_refine_is_the_identity_at_zero():
    cameras = mixed()
    same = refine(cameras, torch.zeros(len(cameras), 6, dtype=torch.float64))
    assert torch.equal(same.world_from_camera, cameras.world_from_camera)


def test_refine_moves_the_centre_in_the_world_and_turns_about_it():
    cameras = Cameras.create(random_poses(2), width=4, height=4, focal=5.0)
    delta = torch.zeros(2, 6, dtype=torch.float64)
    delta[0] = torch.tensor([0.1, 0.2, 0.3, 0.0, math.pi / 2, 0.0])
    moved = refine(cameras, delta)
    assert torch.allclose(moved.centres()[0] - cameras.centres()[0], delta[0, :3])
    # A quarter turn about the camera's y (down) axis takes forward to where right was.
    assert torch.allclose(moved.forward()[0], cameras.world_from_camera[0, :, 0])
    assert torch.equal(moved.world_from_camera[1], cameras.world_from_camera[1])
    with pytest.raises(ShapeError, match=r"must be \(2, 6\); got \(3, 6\)"):
        refine(cameras, torch.zeros(3, 6))


@pytest.mark.parametrize("size", [0.0, 1e-9, 5e-3, 0.02, 3.0])
def test_gradients_of_refine_are_right(size):
    cameras = mixed(1)
    delta = size * torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    frames, pixels = torch.arange(5), cameras.intrinsics[:, 2:] + 3.0
    assert torch.autograd.gradcheck(lambda d: refine(cameras, d).rays(frames, pixels)[:2], delta.requires_grad_())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-4, 4), min_size=3, max_size=3), st.sampled_from([1.0, 1e-2, 1e-5, 0.0]))
def test_rotation_exp_is_the_matrix_exponential(numbers, size):
    vector = size * torch.tensor(numbers, dtype=torch.float64)
    x, y, z = vector.tolist()
    skew = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    assert torch.allclose(rotation_exp(vector), torch.matrix_exp(skew), atol=1e-12)


def test_pose_refinement_recovers_a_small_error_by_gradient_descent():
    true = Cameras.create(random_poses(4), width=64, height=48, focal=50.0)
    error = 0.03 * torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    start = refine(true, error)
    points = 0.5 * torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    frames = torch.arange(4).repeat_interleave(40)
    wanted = true.project(frames, points.repeat(4, 1)).pixels
    delta = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=3e-3)

    def loss() -> torch.Tensor:
        return (refine(start, delta).project(frames, points.repeat(4, 1)).pixels - wanted).square().mean()

    before = loss().item()
    for _ in range(200):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert before > 1
    assert loss() < 1e-3
