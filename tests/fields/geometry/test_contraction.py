"""Are the contractions bounded, continuous and invertible, with finite gradients?"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.geometry import CONTRACTIONS, UNCONTRACTIONS, to_unit_cube, to_unit_cube_variance

NAMES = ["sphere", "cube"]
NORMS = {"sphere": lambda x: x.norm(dim=-1), "cube": lambda x: x.abs().amax(-1)}
coordinates = st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3)


@pytest.mark.parametrize("name", ["none", *NAMES])
@settings(max_examples=60, deadline=None)
@given(numbers=coordinates)
def test_contraction_is_inverted(name, numbers):
    x = torch.tensor([numbers], dtype=torch.float64)
    back = UNCONTRACTIONS[name](CONTRACTIONS[name](x))
    assert torch.allclose(back, x, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3))
def test_contraction_is_bounded_by_two(name, dtype, numbers):
    contracted = CONTRACTIONS[name](torch.tensor([numbers], dtype=dtype))
    assert NORMS[name](contracted) <= 2 * (1 + 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_contraction_leaves_the_unit_region_alone(name, numbers):
    x = torch.tensor([numbers], dtype=torch.float64)
    x = x / NORMS[name](x).clamp_min(1)[:, None]
    assert torch.allclose(CONTRACTIONS[name](x), x, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_contraction_and_its_radial_slope_are_continuous_at_the_seam(name):
    direction = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=-1)
    direction = direction / NORMS[name](direction)[:, None]
    step = 1e-6
    below, at, above = (CONTRACTIONS[name](direction * r) for r in (1 - step, 1.0, 1 + step))
    assert (above - below).abs().max() < 3 * step
    assert ((above - at) / step - (at - below) / step).abs().max() < 1e-4


def test_sphere_is_equation_10():
    x = torch.tensor([[3.0, 0.0, 4.0]])
    assert torch.allclose(CONTRACTIONS["sphere"](x), (2 - 1 / 5) * x / 5)


def test_cube_fills_the_corners():
    assert torch.allclose(CONTRACTIONS["cube"](torch.full((1, 3), 1e6)), torch.full((1, 3), 2.0), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e8, 3e38, math.inf])
def test_gradients_are_finite_everywhere(name, size):
    for shape in ([1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [-1.0, 0.5, 0.0]):
        x = torch.tensor(shape)
        x = torch.where(x == 0, x, x * size).requires_grad_()
        y = CONTRACTIONS[name](x)
        y.sum().backward()
        assert x.grad is not None
        assert torch.isfinite(y).all()
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_right_on_both_sides_and_through_the_inverse(name):
    x = torch.tensor([[0.2, -0.3, 0.1], [2.0, -3.0, 1.5], [40.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(CONTRACTIONS[name], x)
    y = torch.tensor([[0.2, -0.3, 0.1], [1.2, -0.9, 0.5]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(UNCONTRACTIONS[name], y)


@pytest.mark.parametrize("name", NAMES)
def test_what_lies_at_two_or_beyond_goes_far_but_stays_finite(name):
    y = torch.tensor([[2.0, 0.0, 0.0], [5.0, 1.0, -3.0]])
    x = UNCONTRACTIONS[name](y)
    assert torch.isfinite(x).all()
    assert (NORMS[name](x) > 1e6).all()


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_nan_and_empty_stays_empty(name):
    assert torch.isnan(CONTRACTIONS[name](torch.tensor([[math.nan, 0.0, 0.0]]))).any()
    assert CONTRACTIONS[name](torch.zeros(0, 3)).shape == (0, 3)


def random_covariances(count: int) -> torch.Tensor:
    root = torch.randn(count, 3, 3, dtype=torch.float64)
    return root @ root.transpose(1, 2)


@pytest.mark.parametrize("name", ["none", *NAMES])
@pytest.mark.parametrize("reach", [0.4, 1.5, 8.0])
def test_variance_goes_through_the_jacobian(name, reach):
    x, covariance = torch.randn(40, 3, dtype=torch.float64) * reach, random_covariances(40)
    found = to_unit_cube_variance(x, covariance, name, 1.5)
    for k in range(40):
        jacobian = torch.autograd.functional.jacobian(lambda p: to_unit_cube(p[None], name, 1.5)[0], x[k])
        torch.testing.assert_close(found[k], (jacobian @ covariance[k] @ jacobian.T).diagonal())


@pytest.mark.parametrize("name", NAMES)
def test_depth_shrinks_far_out_along_slanting_rays_too(name):
    direction = torch.tensor([[0.6, 0.64, 0.48]])
    x, depth = 8 * direction, direction[:, :, None] * direction[:, None]
    found = to_unit_cube_variance(x, depth, name, 1.0)
    moved = to_unit_cube(x + 1e-2 * direction, name, 1.0) - to_unit_cube(x - 1e-2 * direction, name, 1.0)
    torch.testing.assert_close(found.sqrt(), moved.abs() / 2e-2, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("name", ["none", *NAMES])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e8, math.inf])
def test_variance_is_finite_and_not_negative_everywhere(name, size):
    x = torch.nan_to_num(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [-1.0, 0.5, 0.0]]) * size, nan=0.0)
    found = to_unit_cube_variance(x, random_covariances(3).float(), name, 1.0)
    assert torch.isfinite(found).all()
    assert (found >= 0).all()
