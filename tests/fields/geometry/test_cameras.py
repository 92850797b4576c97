"""Do rays and projection agree, for each camera model, with right gradients?"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers.camera_samples import camera, mixed, random_pixels, random_poses
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.geometry import CameraModel, Cameras, Similarity, look_at

MODELS = list(CameraModel)
BENT = [CameraModel.OPENCV, CameraModel.FISHEYE]
PIXEL_TOLERANCE = {torch.float64: 1e-7, torch.float32: 5e-3}  # of 64 pixels; a pole of a sphere is the worst place


def round_trip(cameras: Cameras, count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    frames, pixels = random_pixels(cameras, count)
    rays = cameras.rays(frames, pixels)
    distance = torch.linspace(0.5, 8, count, dtype=pixels.dtype)[:, None]
    projected = cameras.project(frames, rays.origins + distance * rays.directions)
    return (projected.pixels - pixels).abs().max(), projected.valid


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("model", MODELS)
def test_project_inverts_rays(model, dtype):
    error, valid = round_trip(camera(model, dtype=dtype))
    assert error < PIXEL_TOLERANCE[dtype]
    assert valid.all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_project_inverts_rays_for_mixed_models(dtype):
    error, valid = round_trip(mixed(dtype=dtype), 500)
    assert error < PIXEL_TOLERANCE[dtype]
    assert valid.all()


@settings(max_examples=40, deadline=None)
@given(
    k=st.lists(st.floats(-0.3, 0.3), min_size=6, max_size=6),
    p=st.tuples(st.floats(-0.01, 0.01), st.floats(-0.01, 0.01)),
    focal=st.floats(40, 200),
)
def test_opencv_rays_are_inverted_wherever_the_lens_reaches(k, p, focal):
    bend = torch.tensor([k[0], k[1], *p, *k[2:]], dtype=torch.float64)
    cameras = camera(CameraModel.OPENCV, 1, distortion=bend, focal=focal)
    frames, pixels = random_pixels(cameras, 100)
    uv = (pixels - cameras.intrinsics[0, 2:]) / focal
    tangential = 4 * cameras.lens.limit**2 * math.hypot(*p)  # moves points by at most 3 r^2 |p|
    reached = uv.norm(dim=-1) < cameras.lens.reach - tangential
    rays = cameras.rays(frames, pixels)
    assert torch.isfinite(rays.directions).all()
    projected = cameras.project(frames, rays.origins + 2 * rays.directions)
    assert ((projected.pixels - pixels).abs().amax(-1)[reached] < 1e-6).all()
    assert projected.valid[reached].all()


@settings(max_examples=40, deadline=None)
@given(k=st.lists(st.floats(-0.1, 0.1), min_size=4, max_size=4), focal=st.floats(20, 100))
def test_fisheye_rays_are_inverted_wherever_the_lens_reaches(k, focal):
    bend = torch.tensor([*k, 0, 0, 0, 0], dtype=torch.float64)
    cameras = camera(CameraModel.FISHEYE, 1, distortion=bend, focal=focal)
    frames, pixels = random_pixels(cameras, 100)
    reached = ((pixels - cameras.intrinsics[0, 2:]) / focal).norm(dim=-1) < cameras.lens.reach
    rays = cameras.rays(frames, pixels)
    projected = cameras.project(frames, rays.origins + 2 * rays.directions)
    assert ((projected.pixels - pixels).abs().amax(-1)[reached] < 1e-6).all()
    assert projected.valid[reached].all()


@settings(max_examples=25, deadline=None)
@given(model=st.sampled_from(MODELS), seed=st.integers(0, 10_000))
def test_ray_directions_have_unit_length(model, seed):
    cameras = camera(model, seed=seed)
    frames, pixels = random_pixels(cameras, 50, seed)
    assert torch.allclose(cameras.rays(frames, pixels).directions.norm(dim=-1), torch.ones(50, dtype=torch.float64))


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 1000])
def test_mixed_batch_equals_each_camera_alone(count):
    cameras = mixed()
    frames, pixels = random_pixels(cameras, count)
    together = cameras.rays(frames, pixels)
    points = together.origins + 2 * together.directions
    landed = cameras.project(frames, points)
    for frame in range(len(cameras)):
        rows = frames == frame
        alone = cameras[frame].rays(torch.zeros(int(rows.sum()), dtype=torch.long), pixels[rows])
        assert torch.allclose(together.origins[rows], alone.origins, atol=1e-12)
        assert torch.allclose(together.directions[rows], alone.directions, atol=1e-12)
        single = cameras.project(frame, points[rows])
        assert torch.allclose(landed.pixels[rows], single.pixels, atol=1e-9)
        assert torch.equal(landed.valid[rows], single.valid)


def test_no_distortion_makes_opencv_a_pinhole():
    plain = camera(CameraModel.PINHOLE)
    lens = camera(CameraModel.OPENCV, distortion=torch.zeros(8))
    frames, pixels = random_pixels(plain, 100)
    assert torch.allclose(plain.rays(frames, pixels).directions, lens.rays(frames, pixels).directions, atol=1e-14)


def test_image_rays_go_through_pixel_centres_row_by_row():
    cameras = camera(CameraModel.OPENCV)
    rays = cameras.image_rays(-1)
    assert rays.origins.shape == rays.directions.shape == (64 * 48, 3)
    centre = torch.tensor([[5.5, 7.5]], dtype=torch.float64)
    expected = cameras.rays(torch.tensor([2]), centre)
    assert torch.allclose(rays.directions[7 * 64 + 5], expected.directions[0])


def test_equirectangular_centre_looks_forward_and_quarter_looks_right():
    pose = torch.eye(4, dtype=torch.float64)[:3]
    panorama = Cameras.create(pose, width=80, height=40, model=CameraModel.EQUIRECTANGULAR)
    pixels = torch.tensor([[40.0, 20.0], [60.0, 20.0], [40.0, 40.0], [0.0, 20.0]], dtype=torch.float64)
    directions = panorama.rays(torch.zeros(4, dtype=torch.long), pixels).directions
    expected = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, -1]], dtype=torch.float64)
    assert torch.allclose(directions, expected, atol=1e-14)


def test_orthographic_rays_are_parallel_and_a_pixel_is_one_over_focal_wide():
    flat = camera(CameraModel.ORTHOGRAPHIC, 1)
    rays = flat.image_rays(0)
    assert torch.allclose(rays.directions, flat.forward().expand(64 * 48, 3))
    assert torch.allclose((rays.origins[1] - rays.origins[0]).norm(), torch.tensor(1 / 20, dtype=torch.float64))


def test_project_reports_what_is_not_seen():
    pose = torch.eye(4, dtype=torch.float64)[:3]
    cameras = Cameras.create(pose, width=64, height=48, focal=50.0)
    points = torch.tensor([[0.0, 0, 2], [0, 0, -2], [5, 0, 2], [0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    projected = cameras.project(0, points)
    assert projected.valid.tolist() == [True, False, False, False, False]
    assert projected.depth[0] == 2
    assert torch.isfinite(projected.pixels).all()
    nan = torch.full((1, 3), math.nan, dtype=torch.float64)
    for model in MODELS:
        assert not camera(model).project(0, nan).valid.any()


def test_points_past_the_fold_are_invalid_and_stay_at_the_rim():
    # r - r^3 folds at r = 1/sqrt(3); past it the polynomial would bring points back into the image.
    bend = torch.tensor([-1.0, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)[:3]
    cameras = Cameras.create(pose, width=200, height=200, focal=100.0, distortion=bend, model=CameraModel.OPENCV)
    assert cameras.lens.limit[0] == pytest.approx(0.99 / math.sqrt(3), rel=1e-6)
    points = torch.tensor([[r, 0.0, 1.0] for r in (0.3, 0.57, 0.6, 1.0, 5.0)], dtype=torch.float64)
    projected = cameras.project(0, points)
    assert projected.valid.tolist() == [True, True, False, False, False]
    assert (projected.pixels[:, 0].diff() >= 0).all()
    far = torch.tensor([[199.0, 100.0], [150.0, 100.0]], dtype=torch.float64)
    directions = cameras.rays(torch.zeros(2, dtype=torch.long), far).directions
    assert torch.allclose(directions[0], directions[1])  # both beyond the reach: the rim's ray


@pytest.mark.parametrize("model", MODELS)
def test_gradients_of_rays_are_right(model):
    cameras = camera(model, 2)
    frames, pixels = random_pixels(cameras, 4)

    def rays(pose, intrinsics, distortion, at):
        changed = dataclasses.replace(cameras, world_from_camera=pose, intrinsics=intrinsics, distortion=distortion)
        return changed.rays(frames, at)[:2]

    inputs = (cameras.world_from_camera, cameras.intrinsics, cameras.distortion, pixels)
    assert torch.autograd.gradcheck(rays, tuple(x.clone().requires_grad_() for x in inputs))


@pytest.mark.parametrize("model", MODELS)
def test_gradients_of_projection_are_right(model):
    cameras = camera(model, 2)
    frames, pixels = random_pixels(cameras, 4)
    rays = cameras.rays(frames, pixels)
    points = rays.origins + 2 * rays.directions

    def project(pose, intrinsics, distortion, at):
        changed = dataclasses.replace(cameras, world_from_camera=pose, intrinsics=intrinsics, distortion=distortion)
        return tuple(changed.project(frames, at)[:2])

    inputs = (cameras.world_from_camera, cameras.intrinsics, cameras.distortion, points)
    assert torch.autograd.gradcheck(project, tuple(x.clone().requires_grad_() for x in inputs))


def test_gradients_of_a_mixed_batch_are_right_and_finite_at_principal_points():
    cameras = mixed(1)
    frames = torch.arange(5)
    pixels = cameras.intrinsics[:, 2:].clone()
    pose, intrinsics, distortion = (
        t.clone().requires_grad_() for t in (cameras.world_from_camera, cameras.intrinsics, cameras.distortion)
    )
    changed = dataclasses.replace(cameras, world_from_camera=pose, intrinsics=intrinsics, distortion=distortion)
    rays = changed.rays(frames, pixels)
    projected = changed.project(frames, (rays.origins + rays.directions))
    (rays.directions.sum() + rays.origins.sum() + projected.pixels.sum() + projected.depth.sum()).backward()
    for tensor in (pose, intrinsics, distortion):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()


def test_coefficients_of_one_model_do_not_poison_gradients_of_another():
    # As OpenCV coefficients, this fisheye's would put a pole at r = 1, where the fisheye's pixel lies.
    bend = torch.tensor([[0.0] * 5 + [-1.0, 0, 0], [0.0] * 8], dtype=torch.float64).requires_grad_()
    poses = random_poses(2)
    codes = torch.tensor([CameraModel.FISHEYE, CameraModel.OPENCV])
    cameras = Cameras.create(poses, width=200, height=200, focal=50.0, distortion=bend, model=codes)
    pixels = torch.tensor([[150.0, 100.0], [120.0, 90.0]], dtype=torch.float64)
    rays = cameras.rays(torch.arange(2), pixels)
    landed = cameras.project(torch.arange(2), rays.origins + 2 * rays.directions).pixels
    assert torch.allclose(landed, pixels)
    landed.sum().backward()
    assert bend.grad is not None
    assert torch.isfinite(bend.grad).all()


@pytest.mark.parametrize("model", BENT)
def test_gradients_past_the_lens_limit_are_finite(model):
    bend = torch.tensor([-0.9, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64).requires_grad_()
    cameras = camera(model, 1, distortion=bend)
    pixels = torch.tensor([[500.0, 400.0], [31.0, 25.5], [60.0, 40.0]], dtype=torch.float64)
    cameras.rays(torch.zeros(3, dtype=torch.long), pixels).directions.sum().backward()
    assert bend.grad is not None
    assert torch.isfinite(bend.grad).all()


def test_transformed_cameras_see_the_transformed_world():
    cameras = mixed()
    rotation = random_poses(1, 9)[0, :, :3]
    similarity = Similarity(0.3, rotation, torch.tensor([1.0, -2.0, 0.5]))
    frames, pixels = random_pixels(cameras, 200)
    rays = cameras.rays(frames, pixels)
    points = rays.origins + 2 * rays.directions
    moved = similarity.apply_to_cameras(cameras)
    projected = moved.project(frames, similarity.apply(points))
    assert torch.allclose(projected.pixels, pixels, atol=1e-7)
    before = cameras.project(frames, points).depth
    assert torch.allclose(projected.depth, 0.3 * before)
    assert torch.allclose(moved.rays(frames, pixels).directions, similarity.apply_directions(rays.directions))


def test_downscaled_pixel_sees_the_middle_of_its_block():
    cameras = camera(CameraModel.OPENCV)
    small = cameras.downscaled(4)
    assert (int(small.width[0]), int(small.height[0])) == (16, 12)
    frames = torch.zeros(1, dtype=torch.long)
    coarse = small.rays(frames, torch.tensor([[3.5, 2.5]], dtype=torch.float64))
    fine = cameras.rays(frames, torch.tensor([[14.0, 10.0]], dtype=torch.float64))
    assert torch.allclose(coarse.directions, fine.directions)
    with pytest.raises(ConfigError, match="downscale factor must be an integer of at least 1; got 0"):
        cameras.downscaled(0)
    with pytest.raises(ConfigError, match="leaves nothing of an image of 64 x 48"):
        cameras.downscaled(49)


def test_selection_gives_batches():
    cameras = mixed()
    assert len(cameras[3]) == len(cameras[-7]) == 1
    assert torch.equal(cameras[3].world_from_camera, cameras[-7].world_from_camera)
    assert len(cameras[2:5]) == 3
    assert cameras[[0, 9]].model.tolist() == [0, 4]
    assert cameras[cameras.model == 2].kinds == (2,)
    with pytest.raises(IndexError, match="camera 10 of 10"):
        cameras[10]


def test_dtype_moves_with_to_but_codes_stay():
    cameras = mixed().to(dtype=torch.float32)
    assert cameras.intrinsics.dtype == torch.float32
    assert cameras.model.dtype == torch.uint8


def test_shapes_are_checked_with_values():
    cameras = camera(CameraModel.PINHOLE)
    with pytest.raises(ShapeError, match=r"got \(3,\) and \(2, 2\)"):
        cameras.rays(torch.zeros(3, dtype=torch.long), torch.zeros(2, 2))
    with pytest.raises(ShapeError, match=r"points must be \(N, 3\); got \(4,\)"):
        cameras.project(0, torch.zeros(4))
    with pytest.raises(ShapeError, match=r"intrinsics of 3 cameras must have shape \(3, 4\); got \(2, 4\)"):
        dataclasses.replace(cameras, intrinsics=torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="focal must be given"):
        Cameras.create(torch.eye(4)[:3], width=4, height=4)


def test_no_cameras_and_no_rays_are_fine():
    none = camera(CameraModel.OPENCV)[:0]
    rays = none.rays(torch.zeros(0, dtype=torch.long), torch.zeros(0, 2, dtype=torch.float64))
    assert rays.directions.shape == (0, 3)


def test_camera_at_the_target_point_of_look_at_sees_it_in_the_middle():
    pose = look_at(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-1.0, 0.5, 0.0]), torch.tensor([0.0, 0.0, 1.0]))
    cameras = Cameras.create(pose, width=64, height=48, focal=50.0)
    projected = cameras.project(0, torch.tensor([[-1.0, 0.5, 0.0], [-1.0, 0.5, 0.3]]))
    assert torch.allclose(projected.pixels[0], torch.tensor([32.0, 24.0]), atol=1e-4)
    assert projected.pixels[1, 1] < 24  # up in the world is up in the image


def solid_angles(radii: torch.Tensor | None) -> torch.Tensor:
    """Of the pixels whose cones have these radii."""
    assert radii is not None
    return radii.square() * 3


def test_pixels_of_a_panorama_see_the_sphere_once():
    cameras = Cameras.create(torch.eye(4).double(), width=200, height=100, model=CameraModel.EQUIRECTANGULAR)
    assert float(solid_angles(cameras.image_rays(0, radii=True).radii).sum()) == pytest.approx(4 * math.pi, rel=1e-3)


def test_pixels_of_a_pinhole_see_its_pyramid():
    cameras = Cameras.create(torch.eye(4).double(), width=80, height=60, focal=50.0)
    a, b = 80 / 100, 60 / 100
    pyramid = 4 * math.atan(a * b / math.sqrt(1 + a * a + b * b))
    radii = cameras.image_rays(0, radii=True).radii
    assert float(solid_angles(radii).sum()) == pytest.approx(pyramid, rel=1e-3)
    assert radii is not None
    assert float(radii.max()) == pytest.approx(2 / math.sqrt(12) / 50, rel=1e-3)


def test_pixels_twice_as_wide_have_cones_twice_as_wide():
    cameras = Cameras.create(torch.eye(4).double(), width=64, height=64, focal=200.0)
    fine, coarse = (c.image_rays(0, radii=True).radii for c in (cameras, cameras.downscaled(2)))
    assert fine is not None
    assert coarse is not None
    torch.testing.assert_close(coarse.reshape(32, 32), 2 * fine.reshape(64, 64)[::2, ::2], rtol=1e-2, atol=0)


@pytest.mark.parametrize("model", [m for m in MODELS if m != CameraModel.ORTHOGRAPHIC])
def test_radii_are_the_same_for_chosen_pixels_and_whole_images(model):
    cameras = camera(model, 1)
    whole, centre = cameras.image_rays(0, radii=True), torch.tensor([[3.5, 2.5]]).to(cameras.intrinsics)
    one = cameras.rays(torch.zeros(1, dtype=torch.int64), centre, radii=True)
    assert whole.radii is not None
    assert one.radii is not None
    torch.testing.assert_close(one.radii[0], whole.radii[2 * int(cameras.width[0]) + 3])
    assert bool((whole.radii > 0).all())


def test_rays_come_without_radii_unless_asked():
    cameras = mixed()
    frames, pixels = random_pixels(cameras, 5)
    assert cameras.rays(frames, pixels).radii is None
    assert cameras.image_rays(0).radii is None


def test_radii_have_no_gradient():
    cameras = camera(CameraModel.PINHOLE, 1)
    moving = dataclasses.replace(cameras, intrinsics=cameras.intrinsics.clone().requires_grad_())
    rays = moving.image_rays(0, radii=True)
    assert rays.radii is not None
    assert not rays.radii.requires_grad
    assert rays.directions.requires_grad


def test_pixels_of_orthographic_cameras_have_no_cones():
    cameras = camera(CameraModel.ORTHOGRAPHIC, 1)
    with pytest.raises(ConfigError, match="ORTHOGRAPHIC cameras do not diverge"):
        cameras.image_rays(0, radii=True)
