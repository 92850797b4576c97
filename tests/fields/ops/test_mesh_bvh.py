"""Queries of meshes: against brute force, against closed forms and trimesh, and what the tree promises."""

import math

import pytest
import torch
import trimesh
from helpers.native_levels import SIZES, each_level, on_reference, threads, uniform
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.geometry import make_icosphere
from polyfield.fields.ops import _cpu
from polyfield.fields.ops.mesh_bvh import (
    FAN,
    MOST_LEVELS,
    MeshBvh,
    RayHits,
    build_bvh,
    closest_points,
    closest_points_reference,
    ray_hits,
    ray_hits_reference,
    signed_distances,
    winding_numbers,
    winding_numbers_reference,
)

DTYPES = [torch.float32, torch.float64]
EPSILON = {torch.float32: 2e-6, torch.float64: 1e-13}
"""Of lengths about 1."""


def sphere(dtype: torch.dtype = torch.float64, subdivisions: int = 2) -> MeshBvh:
    mesh = make_icosphere(subdivisions)
    return build_bvh(mesh.vertices.to(dtype), mesh.triangles)


def soup(dtype: torch.dtype = torch.float64, triangles: int = 120) -> MeshBvh:
    """Triangles of all sizes and shapes, a tenth of them degenerate in some way."""
    corners = uniform(triangles, 1, 3, seed=1) + uniform(triangles, 3, 3, seed=2, low=-1) * uniform(
        triangles, 1, 1, seed=3
    ).pow(4)
    corners[::10, 1] = corners[::10, 0]
    corners[5::20, 2] = (corners[5::20, 0] + corners[5::20, 1]) / 2
    corners[::40] = corners[::40, :1]
    return build_bvh(corners.reshape(-1, 3).to(dtype), torch.arange(3 * triangles).reshape(-1, 3))


def box() -> MeshBvh:
    """[0, 1]^3."""
    corners = torch.tensor([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=torch.float64)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))]
    return build_bvh(corners, torch.tensor(faces))


MESHES = {"sphere": sphere, "soup": soup, "one": lambda dtype: soup(dtype, 1), "nine": lambda dtype: soup(dtype, 9)}


def points_of(n: int, dtype: torch.dtype) -> torch.Tensor:
    return uniform(n, 3, seed=n, low=-1.5, high=1.5, dtype=dtype)


def rotation(seed: int) -> torch.Tensor:
    q, r = torch.linalg.qr(uniform(3, 3, seed=seed, low=-1))
    q = q * r.diagonal().sign()
    return q * q.det().sign()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("n", SIZES)
def test_nearest_points_are_those_of_brute_force(n, mesh, dtype):
    bvh, points = MESHES[mesh](dtype), points_of(n, dtype)
    found, expected = closest_points(bvh, points), closest_points_reference(bvh, points)
    assert [(a.shape, a.dtype) for a in found] == [(b.shape, b.dtype) for b in expected]
    limit = EPSILON[dtype]
    torch.testing.assert_close(found.distance, expected.distance, rtol=limit, atol=limit)
    # Triangles may differ where two are equally near but for rounding; any must have a point at that distance.
    nearest = (bvh.vertices[bvh.triangles[found.triangle]] * found.barycentric[..., None]).sum(1)
    torch.testing.assert_close((points - nearest).norm(dim=1), expected.distance, rtol=4 * limit, atol=4 * limit)
    assert (found.barycentric >= 0).all()
    torch.testing.assert_close(found.barycentric.sum(1), torch.ones_like(found.distance))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("n", SIZES)
def test_exact_winding_numbers_are_those_of_brute_force(n, mesh, dtype):
    bvh, points = MESHES[mesh](dtype), points_of(n, dtype)
    limit = 100 * EPSILON[dtype]  # sums of hundreds of angles
    expected = winding_numbers_reference(bvh, points)
    torch.testing.assert_close(winding_numbers(bvh, points, math.inf), expected, rtol=0, atol=limit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("n", SIZES)
def test_hits_are_those_of_brute_force(n, mesh, dtype):
    bvh, origins = MESHES[mesh](dtype), points_of(n, dtype)
    directions = uniform(n, 3, seed=7, low=-1, dtype=dtype)
    assert_hits_equal(bvh, origins, directions)


@pytest.mark.parametrize(("near", "far"), [(0.3, 1.2), (-math.inf, 0.0), (1.0, 0.5), (-0.1, math.inf)])
def test_hits_lie_within_their_range(near, far):
    bvh, origins = soup(), points_of(200, torch.float64)
    found = assert_hits_equal(bvh, origins, uniform(200, 3, seed=7, low=-1), near, far)
    hit = found.triangle >= 0
    assert hit.any() == (near <= far)
    assert ((found.distance >= near) & (found.distance <= far))[hit].all()


def assert_hits_equal(bvh: MeshBvh, origins: torch.Tensor, directions: torch.Tensor, *span: float) -> RayHits:
    found, expected = ray_hits(bvh, origins, directions, *span), ray_hits_reference(bvh, origins, directions, *span)
    limit = EPSILON[origins.dtype]
    torch.testing.assert_close(found.distance, expected.distance, rtol=20 * limit, atol=20 * limit)
    assert torch.equal(found.triangle, expected.triangle)
    torch.testing.assert_close(found.barycentric, expected.barycentric, rtol=1e-3, atol=2000 * limit)
    return found


def test_nearest_points_are_those_of_trimesh():
    bvh, points = soup(), points_of(100, torch.float64)
    corners = bvh.vertices[bvh.triangles].numpy()
    for point, distance in zip(points.numpy(), closest_points(bvh, points).distance, strict=True):
        near = trimesh.triangles.closest_point(corners[1::10], point[None].repeat(len(corners[1::10]), 0))
        least = ((near - point) ** 2).sum(1).min() ** 0.5
        assert float(distance) <= least + 1e-12
    bvh = sphere(subdivisions=1)
    corners = bvh.vertices[bvh.triangles].numpy()
    for point, distance in zip(points.numpy(), closest_points(bvh, points).distance, strict=True):
        near = trimesh.triangles.closest_point(corners, point[None].repeat(len(corners), 0))
        assert float(distance) == pytest.approx(((near - point) ** 2).sum(1).min() ** 0.5, abs=1e-12)


def test_a_box_has_its_closed_forms():
    bvh, points = box(), uniform(2000, 3, low=-1, high=2)
    q = (points - 0.5).abs() - 0.5
    expected = q.clamp(min=0).norm(dim=1) + q.amax(1).clamp(max=0)
    torch.testing.assert_close(signed_distances(bvh, points), expected)
    directions = uniform(2000, 3, seed=3, low=-1)
    t0, t1 = -points / directions, (1 - points) / directions
    enter, leave = torch.minimum(t0, t1).amax(1), torch.maximum(t0, t1).amin(1)
    first = torch.where(enter >= 0, enter, leave)
    first = torch.where((enter <= leave) & (leave >= 0), first, math.inf)
    torch.testing.assert_close(ray_hits(bvh, points, directions).distance, first)


def test_winding_numbers_of_a_closed_mesh_are_whole_away_from_the_surface():
    bvh, points = sphere(subdivisions=3), points_of(1000, torch.float64)
    away = closest_points(bvh, points).distance > 0.02
    inside = (points.norm(dim=1) < 1).double()
    for accuracy, limit in ((math.inf, 1e-12), (4.0, 0.01), (2.0, 0.1)):
        error = (winding_numbers(bvh, points, accuracy) - inside)[away].abs()
        assert error.max() < limit
    # The moments are used, and are right to second order: three times the distance, a tenth of the error or less.
    far = torch.nn.functional.normalize(points, dim=1) * 40
    cap = build_bvh(bvh.vertices, bvh.triangles[bvh.vertices[bvh.triangles].mean(1)[:, 2] > 0.3])
    exact = winding_numbers_reference(cap, far)
    errors = [
        (winding_numbers(cap, far * k, 1.0) - winding_numbers_reference(cap, far * k)).abs().max() for k in (1, 3)
    ]
    if _cpu.level() == "reference":
        return  # it looks at every triangle: there are no moments
    assert 1e-12 < errors[0] < 1e-4 * exact.abs().max()
    assert errors[1] < errors[0] / 60  # an error of fourth order falls to an 81st


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_queries_move_turn_and_grow_with_the_mesh(seed, scale):
    bvh, points = soup(triangles=40), points_of(50, torch.float64)
    directions = uniform(50, 3, seed=seed, low=-1)
    turn, shift = rotation(seed), uniform(3, seed=seed + 1, low=-5, high=5)
    moved = build_bvh(scale * bvh.vertices @ turn.T + shift, bvh.triangles)
    there = scale * points @ turn.T + shift
    torch.testing.assert_close(closest_points(moved, there).distance, scale * closest_points(bvh, points).distance)
    exact = [winding_numbers(m, p, math.inf) for m, p in ((moved, there), (bvh, points))]
    torch.testing.assert_close(*exact, rtol=0, atol=1e-8)
    hits = ray_hits(moved, there, directions @ turn.T), ray_hits(bvh, points, directions)
    assert (hits[0].triangle == hits[1].triangle).all()
    torch.testing.assert_close(hits[0].distance, scale * hits[1].distance)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.floats(1e-6, 1))
def test_distance_changes_at_most_as_fast_as_the_point(direction, step):
    bvh, points = sphere(), points_of(200, torch.float64)
    move = torch.tensor(direction, dtype=torch.float64) * step
    for of in (lambda p: closest_points(bvh, p).distance, lambda p: signed_distances(bvh, p)):
        assert (of(points + move) - of(points)).abs().max() <= move.norm() * (1 + 1e-9) + 1e-12


def test_the_gradient_of_distance_is_the_unit_direction_from_the_surface():
    bvh, points = soup(), points_of(20, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: closest_points(bvh, p).distance, points)
    assert torch.autograd.gradcheck(lambda p: signed_distances(sphere(), p), points)
    (slope,) = torch.autograd.grad(closest_points(bvh, points).distance.sum(), points)
    torch.testing.assert_close(slope.norm(dim=1), torch.ones_like(slope[:, 0]))
    on = bvh.vertices[:5].clone().requires_grad_()
    (slope,) = torch.autograd.grad(closest_points(bvh, on).distance.sum(), on)
    assert (slope == 0).all()
    found = closest_points(bvh, points)
    assert not found.barycentric.requires_grad
    assert not winding_numbers(bvh, points).requires_grad


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_ray_slips_through_between_triangles(dtype):
    bvh = sphere(dtype, 4)
    a, b, c = bvh.vertices[bvh.triangles].unbind(1)
    targets = torch.cat([a, (a + b) / 2, a + (c - a) / 3, b + (c - b) * 0.9])
    origins = uniform(targets.shape[0], 3, low=-0.4, high=0.4, dtype=dtype)
    found = ray_hits(bvh, origins, targets - origins)
    assert (found.triangle >= 0).all()
    assert ((found.distance - 1).abs() < 0.01).all()


def test_rays_along_axes_hit_faces_edges_and_corners():
    grid = torch.tensor([-0.5, 0.0, 0.25, 0.5, 1.0, 1.5], dtype=torch.float64)
    x, y = (t.reshape(-1) for t in torch.meshgrid(grid, grid, indexing="ij"))
    inside = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    for axis in range(3):
        for sign in (-1.0, 1.0):
            origins = torch.stack([x, y, torch.full_like(x, -2.0 if sign > 0 else 3.0)], 1).roll(axis, 1)
            directions = torch.zeros_like(origins)
            directions[:, (2 + axis) % 3] = sign
            for zero in (0.0, -0.0):
                directions[:, axis] = zero
                assert torch.equal(ray_hits(box(), origins, directions).distance.isfinite(), inside)


def test_rays_that_are_no_rays_miss():
    bad = torch.tensor([[0.0, 0, 0], [math.nan, 1, 0], [math.inf, 0, 0]], dtype=torch.float64)
    good = torch.full_like(bad, 0.2)
    found = ray_hits(sphere(), torch.cat([good, bad[1:]]), torch.cat([bad, good[1:]]))
    assert (found.triangle == -1).all()
    assert (found.distance == math.inf).all()
    assert (found.barycentric == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_points_that_are_not_finite_have_no_distance(dtype):
    points = torch.tensor([[math.nan, 0, 0], [0, math.inf, 0], [0, 0, 0], [0, -math.inf, math.nan]], dtype=dtype)
    bvh = sphere(dtype)
    found = closest_points(bvh, points)
    assert found.distance.isnan().tolist() == [True, True, False, True]
    assert (found.triangle >= 0).tolist() == [False, False, True, False]
    assert (found.barycentric[[0, 1, 3]] == 0).all()
    assert winding_numbers(bvh, points).isnan().tolist() == [True, True, False, True]
    assert signed_distances(bvh, points).isnan().tolist() == [True, True, False, True]


def test_distances_whose_squares_overflow_are_infinite():
    for on in (None, on_reference()):
        if on is None:
            found = closest_points(sphere(torch.float32), torch.full((2, 3), 1e30))
        else:
            with on:
                found = closest_points(sphere(torch.float32), torch.full((2, 3), 1e30))
        assert (found.distance == math.inf).all()
        assert (found.triangle == -1).all()


def test_degenerate_triangles_are_points_and_lines():
    vertices = torch.tensor([[0.0, 0, 0], [2, 0, 0], [1, 0, 0]], dtype=torch.float64)
    bvh = build_bvh(vertices, torch.tensor([[0, 1, 2], [0, 0, 0]]))
    found = closest_points(bvh, torch.tensor([[0.5, 3.0, 4.0], [-3.0, 0.0, 4.0], [3.0, 0, 0]], dtype=torch.float64))
    torch.testing.assert_close(found.distance, torch.tensor([5.0, 5.0, 1.0], dtype=torch.float64))
    assert found.triangle.tolist() == [0, 0, 0]
    origin, direction = torch.tensor([[0.5, 1.0, 0]]).double(), torch.tensor([[0.0, -1, 0]]).double()
    assert ray_hits(bvh, origin, direction).triangle.tolist() == [-1]
    assert winding_numbers(bvh, origin).abs().max() < 1e-15


def levels_of(bvh: MeshBvh) -> int:
    """How many nodes lie above one another; every child has one parent."""
    children, level, levels = bvh.children.long(), [0], 0
    seen = 0
    while level:
        below = children[level].reshape(-1)
        seen += len(level)
        level, levels = below[below >= 0].tolist(), levels + 1
    assert seen == children.shape[0]
    return levels


@pytest.mark.skipif(not _cpu.usable(), reason="needs the native library")
def test_the_tree_holds_every_triangle_once_and_is_never_too_deep():
    shrinking = 2.0 ** -torch.arange(1000).double()  # what makes the heuristic peel off a few at a time
    corners = shrinking[:, None, None] * torch.tensor([[1.0, 0, 0], [1, 1e-3, 0], [1, 0, 1e-3]]).double()
    same = torch.ones(4000, 3, 3, dtype=torch.float64)
    for corner in (corners, same, soup().vertices.reshape(-1, 3, 3)):
        n = corner.shape[0]
        bvh = build_bvh(corner.reshape(-1, 3), torch.arange(3 * n).reshape(-1, 3))
        assert math.log(n / FAN, FAN) <= levels_of(bvh) <= MOST_LEVELS
        held = bvh.numbers[bvh.numbers >= 0]
        assert torch.equal(held.sort().values, torch.arange(n).int())
        leaves = bvh.children[(bvh.children < 0) & (bvh.children > -(2**31))]
        assert torch.equal((-1 - leaves).sort().values, torch.arange(bvh.numbers.shape[0]).int())
        points = uniform(33, 3)
        expected = closest_points_reference(bvh, points).distance
        torch.testing.assert_close(closest_points(bvh, points).distance, expected)


def test_equal_triangles_are_told_by_the_lowest_number():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    bvh = build_bvh(vertices, torch.tensor([[0, 1, 2]]).expand(100, 3))
    origins = uniform(100, 3) * 0.5 + torch.tensor([0.0, 0, 0.1])
    assert (closest_points(bvh, origins).triangle == 0).all()
    down = torch.tensor([[0.0, 0, -1]], dtype=torch.float64).expand(100, 3)
    assert (ray_hits(bvh, origins * torch.tensor([0.9, 0.9, 1]), down).triangle == 0).all()


def everything(bvh: MeshBvh, points: torch.Tensor) -> list[torch.Tensor]:
    directions = points.roll(1, 1)
    return [*closest_points(bvh, points), winding_numbers(bvh, points), *ray_hits(bvh, points, directions)]


def test_results_and_trees_are_bit_equal_on_one_and_two_threads():
    results = []
    for count in (1, 2):
        with threads(count):
            bvh = sphere(torch.float32, 5)
            results.append([*everything(bvh, points_of(5000, torch.float32)), *bvh._tensors()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_levels_of_the_native_library_agree():
    points, first = points_of(1000, torch.float32), None
    for _level in each_level():
        found = everything(sphere(torch.float32, 3), points)
        first = first or found
        for place in (0, 3, 4):
            torch.testing.assert_close(found[place], first[place], rtol=1e-5, atol=1e-5)


def test_answers_without_the_native_library():
    points = points_of(50, torch.float64)
    native = everything(sphere(), points)
    with on_reference():
        bvh = sphere()
        assert bvh.boxes.shape == (0, 6, FAN)
        plain = everything(bvh, points)
    native[3] = winding_numbers(sphere(), points, math.inf)
    for place in (0, 3, 4, 5):
        torch.testing.assert_close(native[place], plain[place])
    assert torch.equal(closest_points(bvh, points).distance, plain[0])  # a tree that was made without it


def test_transposed_points_and_int32_triangles_do_as_well():
    points, mesh = points_of(40, torch.float64), make_icosphere(1)
    bvh = build_bvh(mesh.vertices.T.contiguous().T, mesh.triangles.int())
    for a, b in zip(everything(bvh, points.T.contiguous().T), everything(sphere(subdivisions=1), points), strict=True):
        if _cpu.level() == "reference":  # torch's own sums depend on the layout
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(a, b)


def test_opcheck():
    bvh, points = soup(triangles=20), points_of(5, torch.float64)
    mesh, ops = bvh._tensors(), torch.ops.polyfield
    torch.library.opcheck(ops.mesh_closest.default, (points.clone().requires_grad_(), mesh))
    torch.library.opcheck(ops.mesh_winding.default, (points, mesh, 2.0))
    torch.library.opcheck(ops.mesh_hits.default, (points, points, mesh, 0.0, 1.0))


def test_compiles_into_one_graph():
    bvh, points = sphere(), points_of(5, torch.float64).requires_grad_()
    f = lambda p: signed_distances(bvh, p).square().sum()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    mine, theirs = (torch.autograd.grad(g(points), points)[0] for g in (compiled, f))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.slow
def test_a_million_points_of_a_large_mesh():
    bvh = sphere(torch.float32, 7)  # 327,680 triangles
    points = torch.nn.functional.normalize(points_of(1_000_000, torch.float32), dim=1)
    points = points * uniform(1_000_000, 1, seed=5, low=0.5, high=1.5, dtype=torch.float32)
    error = signed_distances(bvh, points) - (points.norm(dim=1) - 1)
    assert error.abs().max() < 1e-4
    found = ray_hits(bvh, points * 0.5, points)
    assert (found.distance * points.norm(dim=1) + points.norm(dim=1) / 2 - 1).abs().max() < 1e-4


def test_error_texts():
    bvh, points = sphere(), points_of(4, torch.float64)
    triangle = torch.tensor([[0, 1, 2]])
    with pytest.raises(ShapeError, match=r"vertices must be \(V, 3\) float32 or float64; got \(4,\) torch.float64"):
        build_bvh(points[:, 0], triangle)
    with pytest.raises(ShapeError, match=r"triangles must be \(T, 3\) int64 or int32; got \(1, 3\) torch.float32"):
        build_bvh(points, triangle.float())
    with pytest.raises(ShapeError, match=r"a mesh must have 1 to 2\^28 - 1 triangles; got 0"):
        build_bvh(points, triangle[:0])
    with pytest.raises(ConfigError, match=r"triangle 0 is \[0, 1, 4\]; indices must be 0 to 3: drop it"):
        build_bvh(points, torch.tensor([[0, 1, 4]]))
    with pytest.raises(ConfigError, match=r"triangle 1 is \[0, -1, 2\]"):
        build_bvh(points, torch.tensor([[0, 1, 2], [0, -1, 2]]))
    with pytest.raises(ConfigError, match=r"vertex 1 is \[.*nan.*\]; vertices must be finite"):
        build_bvh(torch.where(torch.arange(4)[:, None] == 1, math.nan, points), triangle)
    with pytest.raises(
        ShapeError, match=r"points must be \(N, 3\) torch.float64, as the mesh; got \(4, 3\) torch.float32"
    ):
        closest_points(bvh, points.float())
    with pytest.raises(ShapeError, match=r"points must be \(N, 3\)"):
        winding_numbers(bvh, points[0])
    with pytest.raises(ShapeError, match=r"directions must be \(4, 3\), as the origins; got \(3, 3\)"):
        ray_hits(bvh, points, points[:3])
    with pytest.raises(ConfigError, match="accuracy must be at least 1"):
        winding_numbers(bvh, points, 0.5)
    with pytest.raises(ConfigError, match="near and far must be numbers"):
        ray_hits(bvh, points, points, near=math.nan)
