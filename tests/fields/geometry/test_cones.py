"""Do Gaussians have the moments of the pieces of cones that they stand for?"""

from __future__ import annotations

import pytest
import torch

from polyfield.fields.errors import ConfigError
from polyfield.fields.geometry import Rays, cone_gaussians


def one_ray(radius: float, dtype: torch.dtype = torch.float64) -> Rays:
    direction = torch.nn.functional.normalize(torch.tensor([[0.3, -0.5, 0.8]], dtype=dtype), dim=1)
    return Rays(torch.tensor([[0.1, 0.2, -0.3]], dtype=dtype), direction, torch.tensor([radius], dtype=dtype))


def points_of_piece(rays: Rays, near: float, far: float) -> torch.Tensor:
    """Points of equal volume between two distances: the middles of cells of (volume so far, disk's area, angle)."""
    assert rays.radii is not None
    depth, area, turn = torch.meshgrid(*((torch.arange(n).double() + 0.5) / n for n in (200, 100, 16)), indexing="ij")
    t = (near**3 + depth * (far**3 - near**3)) ** (1 / 3)
    width, angle = rays.radii * t * area.sqrt(), turn * 2 * torch.pi
    axis = rays.directions[0]
    side = torch.nn.functional.normalize(torch.linalg.cross(axis, torch.eye(3).double()[0]), dim=0)
    up = torch.linalg.cross(axis, side)
    offset = (width * angle.cos())[..., None] * side + (width * angle.sin())[..., None] * up
    return (rays.origins[0] + t[..., None] * axis + offset).reshape(-1, 3)


@pytest.mark.parametrize(("near", "far"), [(1.0, 1.2), (0.5, 3.0), (0.0, 0.4), (2.0, 2.02)])
@pytest.mark.parametrize("radius", [0.002, 0.3])
def test_moments_are_those_of_points_in_the_piece(near, far, radius):
    rays = one_ray(radius)
    points = points_of_piece(rays, near, far)
    distance, delta = torch.tensor([[(near + far) / 2], [far - near]]).double()
    found = cone_gaussians(rays, torch.zeros(1, dtype=torch.int64), distance, delta)
    torch.testing.assert_close(found.means[0], points.mean(0), rtol=0, atol=1e-4 * (far - near))
    expected = torch.cov(points.T, correction=0)
    torch.testing.assert_close(found.covariances[0], expected, rtol=1e-3, atol=1e-3 * float(expected.diagonal().max()))


def test_single_precision_holds_for_short_pieces_far_away():
    ids, distances = torch.zeros(50, dtype=torch.int64), torch.linspace(0.5, 16, 50).double()
    exact = cone_gaussians(one_ray(0.005), ids, distances, torch.full_like(distances, 0.018))
    single = cone_gaussians(one_ray(0.005, torch.float32), ids, distances.float(), torch.full((50,), 0.018))
    torch.testing.assert_close(single.covariances.double(), exact.covariances, rtol=1e-4, atol=1e-10)


def test_gradients_are_right():
    rays, ids = one_ray(0.1), torch.zeros(3, dtype=torch.int64)
    inputs = (rays.origins, rays.directions, torch.rand(3).double() + 1, torch.rand(3).double())

    def function(origins, directions, distances, deltas):
        return tuple(cone_gaussians(Rays(origins, directions, rays.radii), ids, distances, deltas))

    assert torch.autograd.gradcheck(function, tuple(x.clone().requires_grad_() for x in inputs))


def test_no_samples_have_no_gaussians():
    none = cone_gaussians(one_ray(0.1), torch.zeros(0, dtype=torch.int64), *torch.zeros(2, 0).double())
    assert none.means.shape == (0, 3)
    assert none.covariances.shape == (0, 3, 3)


def test_rays_without_radii_are_refused():
    with pytest.raises(ConfigError, match="these rays have no radii"):
        cone_gaussians(Rays(*one_ray(0.1)[:2]), torch.zeros(1, dtype=torch.int64), torch.ones(1), torch.ones(1))
