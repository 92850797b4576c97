"""A surface is where the values say it is, and two meshes are as far apart as they are."""

import pytest
import torch

from polyfield.fields.errors import ShapeError
from polyfield.fields.geometry import chamfer_distance, check_mesh, make_icosphere, zero_surface


def ball(cells: int, radius: float) -> torch.Tensor:
    x = (torch.arange(cells) + 0.5) / cells
    z, y, x = torch.meshgrid(x, x, x, indexing="ij")
    return torch.stack([x - 0.5, y - 0.4, z - 0.6]).norm(dim=0) - radius


def test_a_ball_is_found_where_it_lies_and_faces_outwards():
    mesh = zero_surface(ball(48, 0.3), first=0.5 / 48, step=1 / 48)
    assert mesh is not None
    off = mesh.vertices - torch.tensor([0.5, 0.4, 0.6])
    torch.testing.assert_close(off.norm(dim=1), torch.full((len(off),), 0.3), rtol=0, atol=1e-3)
    assert check_mesh(mesh).open_edges == 0
    outwards = (mesh.area_vectors() * (mesh.corners().mean(1) - torch.tensor([0.5, 0.4, 0.6]))).sum(1)
    assert bool((outwards >= 0).all())


@pytest.mark.parametrize("values", [torch.ones(4, 4, 4), -torch.ones(4, 4, 4), torch.full((4, 4, 4), float("nan"))])
def test_where_nothing_changes_its_sign_there_is_no_surface(values):
    assert zero_surface(values, first=0.0, step=1.0) is None


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ShapeError, match=r"values must be \(Z, Y, X\) of at least 2 per axis"):
        zero_surface(torch.ones(shape), first=0.0, step=1.0)


def test_concentric_balls_are_as_far_apart_as_their_radii():
    meshes = [type(m)(m.vertices.float(), m.triangles) for m in (make_icosphere(4, 1.0), make_icosphere(4, 0.75))]
    assert chamfer_distance(*meshes, samples=2000) == pytest.approx(0.25, abs=2e-3)
    assert chamfer_distance(meshes[0], meshes[0], samples=2000) < 1e-6


def test_both_ways_count():
    small, large = (make_icosphere(2, r) for r in (0.5, 1.0))
    one = type(small)(small.vertices.float(), small.triangles)
    more = torch.cat([one.vertices, large.vertices.float() + torch.tensor([9.0, 0.0, 0.0])])
    both = type(small)(more, torch.cat([one.triangles, large.triangles + len(one.vertices)]))
    assert chamfer_distance(one, both, samples=1000) > 1
    assert chamfer_distance(both, one, samples=1000) > 1
