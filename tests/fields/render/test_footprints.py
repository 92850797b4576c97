"""Which footprints does a field meet in marching, rendering and training?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from polyfield.fields import Geometry, MarchConfig, Model, OccupancyGrid, RadianceField, Rays, Similarity
from polyfield.fields.geometry import Cameras, cone_gaussians, look_at
from polyfield.fields.optim.radiance import RadianceTask, RadianceTaskConfig, RayBatch
from polyfield.fields.radiance import MlpField, MlpFieldConfig
from polyfield.fields.render import march_visible, render

MARCH = MarchConfig(step_size=0.05, waves=(2, 3, 64))


class Watcher(RadianceField):
    """Fog that remembers what it was asked."""

    def __init__(self, integrates: bool) -> None:
        super().__init__()
        self.integrates = integrates
        self.density_activation, self.contraction, self.feature_count = "relu", "none", 3
        self.bounds = torch.tensor([[-1.0] * 3, [1.0] * 3])
        self.config = None
        self.asked: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def geometry(self, x, *, time=None, footprint=None):
        self.asked.append((x, footprint))
        return Geometry(x.new_full((len(x),), 0.5), x * 0.5 + 0.5)

    def radiance(self, features, directions, *, x=None, normals=None, appearance=None):
        return features

    def parameter_groups(self):
        return []

    def footprints(self) -> torch.Tensor:
        parts = [footprint for _, footprint in self.asked]
        return torch.cat([part for part in parts if part is not None])


def full_grid(resolution: int = 32) -> OccupancyGrid:
    grid = OccupancyGrid(resolution=resolution)
    grid.reset()
    return grid


def camera_of(side: int) -> Cameras:
    pose = look_at(torch.tensor([0.0, -3.0, 0.4]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    return Cameras.create(pose, width=side, height=side, focal=side * 1.2)


def widths(side: int) -> torch.Tensor:
    """Variance across the ray, near the middle of the picture, at the distance of the scene's centre."""
    field = Watcher(True)
    render(Model(field, full_grid(), MARCH, Similarity.identity()), camera_of(side))
    near = torch.cat([x.norm(dim=1) < 0.2 for x, _ in field.asked])
    return field.footprints()[near][:, 0, 0]  # rays go nearly along y


def test_pictures_of_half_the_resolution_have_footprints_twice_as_wide():
    fine, coarse = widths(32), widths(16)
    assert float(coarse.mean() / fine.mean()) == pytest.approx(4, rel=0.05)
    pixel = 3 / (32 * 1.2)  # its width at the distance of the centre
    assert float(fine.mean()) == pytest.approx(pixel**2 / 12, rel=0.1)


def test_fields_that_do_not_integrate_meet_none():
    field = Watcher(False)
    render(Model(field, full_grid(), MARCH, Similarity.identity()), camera_of(8))
    assert field.asked
    assert all(footprint is None for _, footprint in field.asked)


@pytest.mark.parametrize("waves", [(2, 3, 64), (1024,)])
def test_every_sample_has_the_footprint_of_its_own_ray(waves):
    heights = torch.tensor([1.5, 0.0, 0.4, -0.3])  # the first passes by, so that later waves are not of all rays
    rays = Rays(
        torch.stack([torch.full((4,), -2.0), torch.zeros(4), heights], 1),
        torch.tensor([[1.0, 0.0, 0.0]]).expand(4, 3).contiguous(),
        torch.tensor([0.01, 0.02, 0.04, 0.08]),
    )
    asked = []

    def density_pass(x, footprint):
        asked.append((x, footprint))
        return torch.full((len(x),), 3.0), None

    out = march_visible(rays, full_grid(), density_pass, replace(MARCH, waves=waves), activation="relu")
    x, footprint = (torch.cat(parts) for parts in zip(*asked, strict=True))
    rows = out.rows.long()
    expected = cone_gaussians(rays, out.ray_ids(), out.distances[rows], out.deltas[rows])
    assert torch.equal(x[rows], expected.means)
    assert torch.equal(footprint[rows], expected.covariances)
    torch.testing.assert_close(x, out.positions, rtol=0, atol=1e-3)  # the middle of a footprint lies a little behind
    for ray, height in enumerate(heights[1:], 1):
        mine = x[:, 2] == height
        assert bool(mine.any())
        assert rays.radii is not None
        across = (rays.radii[ray] * (x[mine, 0] + 2)).square() / 4
        torch.testing.assert_close(footprint[mine, 2, 2], across, rtol=1e-2, atol=0)


class FixedRays:
    """The same rays every step."""

    def __init__(self, pose: torch.Tensor | None = None) -> None:
        rays = camera_of(16).image_rays(0, radii=True)
        self.pose, self.rays = pose, rays

    def batch(self, step: int, count: int) -> RayBatch:
        rays = Rays(*(part[:count] for part in self.rays if part is not None))
        if self.pose is not None:
            rays = rays._replace(origins=rays.origins + self.pose)
        count = len(rays.origins)
        half = torch.full((count, 3), 0.5)
        return RayBatch(rays, half, half, torch.zeros(count, dtype=torch.int64))


@pytest.mark.parametrize("moving", [False, True])
def test_training_meets_the_footprints_of_marching_and_moves_poses(monkeypatch, moving):
    config = MlpFieldConfig(octaves=6, density_width=16, density_layers=2, density_skip=None, integrated=True)
    field, asked = MlpField(config), []
    geometry = field.geometry

    def watched(x, *, time=None, footprint=None):
        asked.append((torch.is_grad_enabled(), x.detach(), None if footprint is None else footprint.detach()))
        return geometry(x, time=time, footprint=footprint)

    monkeypatch.setattr(field, "geometry", watched)
    pose = torch.nn.Parameter(torch.zeros(3)) if moving else None
    task = RadianceTask(
        field,
        full_grid(16),
        MARCH,
        FixedRays(pose),
        RadianceTaskConfig(samples=1024, first_rays=256),
        extra={} if pose is None else {"poses": (pose, 1e-3)},
    )
    assert task.step(0, 1.0).finite
    refreshed = [(x, f) for learning, x, f in asked if not learning and f is None]
    marched = [(x, f) for learning, x, f in asked if not learning and f is not None]
    learned = [(x, f) for learning, x, f in asked if learning]
    assert refreshed  # the occupancy grid asks of points
    assert len(learned) == 1
    x, footprint = (torch.cat(parts) for parts in zip(*marched, strict=True))
    seen = {tuple(row) for row in torch.cat([x, footprint.flatten(1)], 1).tolist()}
    taught = torch.cat([learned[0][0], learned[0][1].flatten(1)], 1).tolist()
    assert {tuple(row) for row in taught} <= seen
    if pose is not None:
        assert bool((pose != 0).all())
