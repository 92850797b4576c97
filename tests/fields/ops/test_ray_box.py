"""Does the slab test find where rays enter and leave a box, degenerate rays included?"""

import pytest
import torch
from helpers.packed_rays import SIZES, random_rays
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ShapeError
from polyfield.fields.ops.ray_box import intersect_box, intersect_box_reference

ONE = torch.ones(3)
INF = float("inf")


def one_ray(origin, direction, lower=-ONE, upper=ONE):
    near, far = intersect_box(torch.tensor([origin]).float(), torch.tensor([direction]).float(), lower, upper)
    return float(near), float(far)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_equals_reference(size, dtype):
    origins, directions = (t.to(dtype) for t in random_rays(size, 1.0))
    box = (-ONE.to(dtype), ONE.to(dtype) * 0.7)
    for value, expected in zip(
        intersect_box(origins, directions, *box), intersect_box_reference(origins, directions, *box), strict=True
    ):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("run", [intersect_box, intersect_box_reference])
def test_axis_parallel_rays_are_exact(run):
    origins = torch.tensor([[-3.0, 0.5, 1.0], [-3.0, 0.5, 1.0000001], [0.25, 0.0, 0.0], [5.0, 0.0, 0.0]])
    directions = torch.tensor([[1.0, 0.0, -0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    near, far = run(origins, directions, -ONE, ONE)
    assert near.tolist() == [2.0, INF, 0.0, INF]
    assert far.tolist() == [4.0, INF, 1.25, INF]


def test_rays_inside_start_at_zero():
    assert one_ray([0.0, 0.0, 0.0], [0.0, 0.0, 1.0]) == (0.0, 1.0)
    assert one_ray([1.0, 0.0, 0.0], [1.0, 0.0, 0.0]) == (0.0, 0.0)  # on the face, leaving


@pytest.mark.parametrize("run", [intersect_box, intersect_box_reference])
@pytest.mark.parametrize("bad", [float("nan"), INF, -INF])
def test_rays_that_are_not_finite_miss(run, bad):
    for row in range(2):
        for axis in range(3):
            ray = torch.tensor([[0.1, 0.2, 0.3], [0.5, -0.5, 0.7]])
            ray[row, axis] = bad
            near, far = run(ray[:1].clone(), ray[1:].clone(), -ONE, ONE)
            assert near.tolist() == far.tolist() == [INF]


@pytest.mark.parametrize("run", [intersect_box, intersect_box_reference])
def test_a_ray_without_direction_misses(run):
    near, far = run(torch.zeros(1, 3), torch.zeros(1, 3), -ONE, ONE)
    assert near.tolist() == far.tolist() == [INF]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.floats(0.05, 3))
def test_entry_and_exit_lie_on_the_box_and_the_middle_inside(seed, half):
    origins, directions = (t.double() for t in random_rays(64, 1.5, seed))
    size = torch.full((3,), half, dtype=torch.float64)
    near, far = intersect_box(origins, directions, -size, size)
    hit = torch.isfinite(near)
    assert bool((near[hit] <= far[hit]).all())
    assert bool((near >= 0).all())
    outside = hit & (near > 0)
    for t, rows in ((near, outside), (far, hit)):
        norm = (origins + t[:, None] * directions)[rows].abs().amax(1)
        torch.testing.assert_close(norm, torch.full_like(norm, half), rtol=1e-9, atol=1e-9)
    points = origins[:, None] + torch.linspace(0, 8, 200, dtype=torch.float64)[:, None] * directions[:, None]
    assert not bool((points[~hit].abs().amax(2) < half - 1e-9).any())


def test_operator_is_registered_and_traces():
    arguments = (*random_rays(5, 1.0), -ONE, ONE)
    torch.library.opcheck(torch.ops.polyfield.intersect_box.default, arguments)
    compiled = torch.compile(intersect_box, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments)[0], intersect_box(*arguments)[0])


def test_wrong_shapes_are_named():
    rays = torch.zeros(4, 3)
    with pytest.raises(ShapeError, match=r"origins must be \(R, 3\) float32 or float64; got \(4, 2\)"):
        intersect_box(rays[:, :2], rays, ONE, ONE)
    with pytest.raises(ShapeError, match=r"directions must be \(4, 3\) torch.float32, as the origins; got \(3, 3\)"):
        intersect_box(rays, rays[:3], ONE, ONE)
    with pytest.raises(ShapeError, match=r"upper must be \(3,\)"):
        intersect_box(rays, rays, ONE, ONE.double())
