"""Meshes: what is said of their inside, how points are drawn from them, and the sphere."""

import math

import pytest
import torch
from helpers.native_levels import uniform
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.geometry import Mesh, check_mesh, make_icosphere, merge_vertices, sample_surface


def together(*meshes: Mesh) -> Mesh:
    """One mesh of several."""
    before = [sum(m.vertices.shape[0] for m in meshes[:k]) for k in range(len(meshes))]
    triangles = torch.cat([m.triangles + offset for m, offset in zip(meshes, before, strict=True)])
    return Mesh(torch.cat([m.vertices for m in meshes]), triangles)


def moved(mesh: Mesh, *shift: float) -> Mesh:
    return Mesh(mesh.vertices + torch.tensor(shift, dtype=mesh.vertices.dtype), mesh.triangles)


def flipped(mesh: Mesh) -> Mesh:
    return Mesh(mesh.vertices, mesh.triangles.flip(1))


def loose(mesh: Mesh) -> Mesh:
    """As STL has it: every triangle with vertices of its own."""
    return Mesh(mesh.corners().reshape(-1, 3), torch.arange(3 * mesh.triangles.shape[0]).reshape(-1, 3))


SPHERE = make_icosphere(2)


@pytest.mark.parametrize("subdivisions", [0, 1, 2, 3])
def test_an_icosphere_is_closed_round_and_has_the_volume_of_a_ball(subdivisions):
    mesh = make_icosphere(subdivisions, 2.0)
    assert mesh.triangles.shape[0] == 20 * 4**subdivisions
    assert mesh.vertices.shape[0] == mesh.triangles.shape[0] / 2 + 2  # Euler
    torch.testing.assert_close(mesh.vertices.norm(dim=1), torch.full_like(mesh.vertices[:, 0], 2))
    report = check_mesh(mesh)
    assert report.signed_distance_trusted
    ball = 4 / 3 * math.pi * 8
    assert ball * (1 - 0.6 / 4**subdivisions) < report.signed_volume < ball


def test_closed_meshes_are_trusted_however_their_vertices_are_stored():
    for mesh in (SPHERE, loose(SPHERE), merge_vertices(loose(SPHERE)), Mesh(SPHERE.vertices.float(), SPHERE.triangles)):
        report = check_mesh(mesh)
        assert (report.open_edges, report.components, report.degenerate_triangles) == (0, 1, 0)
        assert report.signed_distance_trusted
        assert "can be trusted" in report.explanation
        assert report.duplicate_vertices == mesh.vertices.shape[0] - SPHERE.vertices.shape[0]


def test_holes_are_counted_and_not_trusted():
    report = check_mesh(Mesh(SPHERE.vertices, SPHERE.triangles[1:]))
    assert (report.open_edges, report.signed_distance_trusted) == (3, False)
    assert "3 open edges" in report.explanation
    assert "close the holes" in report.explanation


def test_a_triangle_of_opposite_sense_opens_its_edges():
    triangles = SPHERE.triangles.clone()
    triangles[7] = triangles[7].flip(0)
    report = check_mesh(Mesh(SPHERE.vertices, triangles))
    assert (report.open_edges, report.non_manifold_edges, report.signed_distance_trusted) == (3, 0, False)


def test_inside_out_meshes_are_told():
    report = check_mesh(flipped(SPHERE))
    assert report.signed_volume < 0
    assert (report.inside_out_components, report.signed_distance_trusted) == (1, False)
    assert report.explanation.startswith("inside out")


def test_a_part_that_faces_inwards_is_told_from_a_cavity():
    away = check_mesh(together(SPHERE, flipped(moved(make_icosphere(1, 0.3), 2, 0, 0))))
    assert (away.components, away.inside_out_components, away.signed_distance_trusted) == (2, 1, False)
    assert away.explanation.startswith("1 components face inwards")
    cavity = check_mesh(together(SPHERE, flipped(make_icosphere(1, 0.3))))
    assert (cavity.components, cavity.inside_out_components, cavity.signed_distance_trusted) == (2, 0, True)


def test_overlapping_parts_are_trusted():
    assert check_mesh(together(SPHERE, moved(SPHERE, 0.5, 0, 0))).signed_distance_trusted


def test_edges_of_four_triangles_are_told_and_trusted_where_they_balance():
    corners = torch.tensor([[0.0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]])
    pair = [[0, 3, 2], [0, 1, 3], [0, 2, 1], [1, 2, 3], [0, 5, 4], [0, 1, 5], [0, 4, 1], [1, 4, 5]]
    report = check_mesh(Mesh(corners, torch.tensor(pair)))
    assert (report.non_manifold_edges, report.open_edges, report.signed_distance_trusted) == (1, 0, True)


def test_flat_and_degenerate_meshes_are_told():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0]])
    report = check_mesh(Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 1], [0, 1, 3], [1, 1, 1]])))
    assert (report.degenerate_triangles, report.signed_distance_trusted) == (2, False)
    both_sides = check_mesh(Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 1]])))
    assert (both_sides.open_edges, both_sides.signed_distance_trusted) == (0, False)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.randoms(use_true_random=False))
def test_components_are_counted_in_any_order(count, random):
    mesh = together(*(moved(make_icosphere(1), 3.0 * k, 0, 0) for k in range(count)))
    order = list(range(mesh.triangles.shape[0]))
    random.shuffle(order)
    assert check_mesh(Mesh(mesh.vertices, mesh.triangles[order])).components == count


def test_long_strips_are_one_component():
    k = torch.arange(3000)
    vertices = torch.stack([k // 2, k % 2, k * 0], 1).float()
    strip = torch.stack([k[:-2], k[1:-1], k[2:]], 1)
    assert check_mesh(Mesh(vertices, strip)).components == 1


def test_merging_keeps_every_triangle_where_it_was():
    mesh = loose(SPHERE)
    merged = merge_vertices(together(mesh, mesh))
    assert merged.vertices.shape == SPHERE.vertices.shape
    assert torch.equal(merged.corners(), torch.cat([mesh.corners(), mesh.corners()]))
    signs = Mesh(torch.tensor([[0.0, 0, 0], [-0.0, 0, 0], [1, 0, 0], [5, 5, 5]]), torch.tensor([[0, 1, 2]]))
    assert merge_vertices(signs).vertices.shape[0] == 2


def test_samples_lie_on_the_surface_by_area():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 3], [2, 0, 3], [0, 2, 3]], dtype=torch.float64)
    mesh = Mesh(corners, torch.tensor([[1, 1, 2], [0, 1, 2], [3, 4, 5], [0, 0, 0]]))
    found = sample_surface(mesh, 20000, torch.Generator().manual_seed(0))
    counts = torch.bincount(found.triangles, minlength=4)
    assert counts[[0, 3]].tolist() == [0, 0]
    assert int(counts[1]) / 20000 == pytest.approx(0.2, abs=0.015)  # 5 standard deviations
    torch.testing.assert_close(found.normals, torch.tensor([[0.0, 0, 1]]).double().expand(20000, 3))
    torch.testing.assert_close(found.points[:, 2], torch.where(found.triangles == 1, 0.0, 3.0).double())
    large = found.points[found.triangles == 2][:, :2]
    assert (large >= 0).all()
    assert (large.sum(1) <= 2).all()
    torch.testing.assert_close(large.mean(0), torch.full((2,), 2 / 3).double(), rtol=0, atol=0.02)


def test_samples_depend_on_the_generator_alone():
    mesh = Mesh(SPHERE.vertices.float(), SPHERE.triangles)
    a, b = (sample_surface(mesh, 100, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert a.points.dtype == torch.float32
    assert [tuple(x.shape) for x in sample_surface(mesh, 0)] == [(0, 3), (0, 3), (0,)]


def test_error_texts():
    points = uniform(3, 3)
    with pytest.raises(ShapeError, match=r"vertices must be \(V, 3\) float32 or float64; got \(3,\)"):
        Mesh(points[0], torch.tensor([[0, 1, 2]]))
    with pytest.raises(ShapeError, match=r"triangles must be \(T, 3\) int64 on cpu; got \(1, 3\) torch.int32 on cpu"):
        Mesh(points, torch.tensor([[0, 1, 2]]).int())
    with pytest.raises(ConfigError, match="indices from 0 to 2; got 0 to 3"):
        Mesh(points, torch.tensor([[0, 1, 3]]))
    with pytest.raises(ConfigError, match=r"positive finite area; this one has 0\.0"):
        sample_surface(Mesh(points, torch.tensor([[0, 0, 1]])), 3)
    with pytest.raises(ConfigError, match=r"positive finite area; this one has 0\.0"):
        sample_surface(Mesh(points, torch.zeros(0, 3, dtype=torch.int64)), 3)
    with pytest.raises(ConfigError, match="n must not be negative; got -1"):
        sample_surface(SPHERE, -1)
    with pytest.raises(ConfigError, match="subdivisions must be 0 to 10"):
        make_icosphere(11)
    with pytest.raises(ShapeError, match="a mesh must have 1 to"):
        check_mesh(Mesh(points, torch.zeros(0, 3, dtype=torch.int64)))
