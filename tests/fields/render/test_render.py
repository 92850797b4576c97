"""Rendering against closed forms: a ball of constant density, a white furnace, and waves that change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from polyfield.fields import Geometry, MarchConfig, Model, OccupancyGrid, RadianceField, Rays, Similarity
from polyfield.fields.errors import ShapeError
from polyfield.fields.geometry import Cameras, look_at
from polyfield.fields.render import march_visible, render, render_rays


class Ball(RadianceField):
    """Constant density inside radius 0.5, colour by position; what a ray sees has a closed form."""

    def __init__(self, density: float, color: float | None = None) -> None:
        super().__init__()
        self.density, self.color = density, color
        self.density_activation, self.contraction, self.feature_count = "relu", "none", 3
        self.bounds = torch.tensor([[-1.0] * 3, [1.0] * 3])
        self.config = None

    def geometry(self, x, *, time=None, footprint=None):
        return Geometry(torch.where(x.norm(dim=1) < 0.5, self.density, 0.0), x * 0.5 + 0.5)

    def radiance(self, features, directions, *, x=None, normals=None, appearance=None):
        return features if self.color is None else torch.full_like(features, self.color)

    def parameter_groups(self):
        return []


def full_grid() -> OccupancyGrid:
    grid = OccupancyGrid(resolution=32)
    grid.reset()
    return grid


def rays_at(*heights: float) -> Rays:
    origins = torch.tensor([[-2.0, 0.0, h] for h in heights])
    return Rays(origins, torch.tensor([[1.0, 0.0, 0.0]]).expand(len(heights), 3).contiguous())


FINE = MarchConfig(step_size=1e-3)


@pytest.mark.parametrize("density", [0.5, 3.0, 50.0])
def test_opacity_of_a_ball_is_that_of_its_chord(density):
    heights = (0.0, 0.2, 0.4, 0.6)
    seen = render_rays(Ball(density), full_grid(), rays_at(*heights), FINE, torch.zeros(3))
    chord = torch.tensor([2 * max(0.0, 0.25 - h * h) ** 0.5 for h in heights])
    torch.testing.assert_close(seen.alpha, 1 - torch.exp(-density * chord), rtol=0, atol=0.01)


def test_median_depth_of_an_opaque_ball_is_its_surface():
    seen = render_rays(Ball(5e3), full_grid(), rays_at(0.0, 0.3, 0.9), FINE, torch.zeros(3))
    expected = torch.tensor([1.5, 2 - (0.25 - 0.09) ** 0.5])
    torch.testing.assert_close(seen.depth[:2], expected, rtol=0, atol=3e-3)
    assert seen.depth[2] == float("inf")


@pytest.mark.parametrize("density", [0.1, 2.0, 100.0])
def test_white_furnace(density):
    seen = render_rays(Ball(density, color=1.0), full_grid(), rays_at(0.0, 0.3, 0.7), FINE, torch.ones(3))
    torch.testing.assert_close(seen.rgb, torch.ones(3, 3), rtol=0, atol=1e-4)


def test_waves_change_what_is_marched_but_not_what_is_seen():
    field, grid, rays = Ball(200.0), full_grid(), rays_at(0.0, 0.1, 0.45)
    seen = [render_rays(field, grid, rays, replace(FINE, waves=w), torch.ones(3)) for w in ((8, 16), (64,), (4096,))]
    for other in seen[1:]:
        assert torch.equal(seen[0].rgb, other.rgb)
        assert torch.equal(seen[0].depth, other.depth)
    assert seen[0].samples < seen[2].samples


def test_live_samples_lie_in_order_along_their_rays():
    field = Ball(20.0)
    out = march_visible(
        rays_at(0.0, 0.8, 0.2),
        full_grid(),
        lambda x, _: (field.geometry(x).density_raw, None),
        replace(FINE, waves=(16, 64)),
        activation="relu",
    )
    t = out.distances[out.rows.long()]
    for ray in range(3):
        begin, end = int(out.offsets[ray]), int(out.offsets[ray + 1])
        assert bool((t[begin + 1 : end] > t[begin : end - 1]).all())


def test_a_picture_has_a_round_alpha_and_normals_that_face_the_camera():
    model = Model(Ball(500.0), full_grid(), MarchConfig(), Similarity.identity())
    pose = look_at(torch.tensor([0.0, -3.0, 0.0]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    camera = Cameras.create(pose, width=48, height=40, focal=60.0)
    frame = render(model, camera)
    assert frame.rgb.shape == (40, 48, 3)
    assert float(frame.alpha[20, 24]) > 0.99
    assert float(frame.alpha[0, 0]) == 0
    assert bool((frame.rgb[0, 0] == 1).all())
    torch.testing.assert_close(frame.normal[20, 24], torch.tensor([0.0, -1.0, 0.0]), rtol=0, atol=0.15)
    rays = camera.image_rays(0)
    assert float((frame.normal.reshape(-1, 3) * rays.directions).sum(1).max()) <= 1e-6


def test_empty_space_shows_the_background():
    grid = OccupancyGrid(resolution=32)
    grid.bits.zero_()
    grid.coarse.zero_()
    seen = render_rays(Ball(50.0), grid, rays_at(0.0), FINE, torch.tensor([0.2, 0.4, 0.6]))
    torch.testing.assert_close(seen.rgb, torch.tensor([[0.2, 0.4, 0.6]]))


def test_two_cameras_at_once_are_refused():
    model = Model(Ball(1.0), full_grid(), MarchConfig(), Similarity.identity())
    cameras = Cameras.create(torch.eye(4).expand(2, 4, 4), width=4, height=4, focal=4.0)
    with pytest.raises(ShapeError, match="takes one camera; got 2"):
        render(model, cameras)
