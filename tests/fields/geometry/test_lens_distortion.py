"""Do the lens formulas say what their sources say, and are folds found?"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from polyfield.fields.geometry.distortion import (
    distort_fisheye,
    distort_opencv,
    find_lens,
    undistort_fisheye,
    undistort_opencv,
)


def opencv_by_the_book(x: float, y: float, k: list[float]) -> tuple[float, float]:
    """OpenCV's documentation, literally."""
    k1, k2, p1, p2, k3, k4, k5, k6 = k
    r = math.sqrt(x**2 + y**2)
    radial = (1 + k1 * r**2 + k2 * r**4 + k3 * r**6) / (1 + k4 * r**2 + k5 * r**4 + k6 * r**6)
    return (
        x * radial + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2),
        y * radial + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y,
    )


@settings(max_examples=50, deadline=None)
@given(st.floats(-1, 1), st.floats(-1, 1), st.lists(st.floats(-0.2, 0.2), min_size=8, max_size=8))
def test_opencv_model_is_the_documented_one(x, y, k):
    bent = distort_opencv(torch.tensor([[x, y]], dtype=torch.float64), torch.tensor([k], dtype=torch.float64))
    assert bent[0].tolist() == pytest.approx(opencv_by_the_book(x, y, k), abs=1e-12)


def test_fisheye_model_is_the_documented_one():
    k = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0, 0, 0, 0]], dtype=torch.float64)
    theta = 0.7
    expected = theta * (1 + 0.1 * theta**2 + 0.2 * theta**4 + 0.3 * theta**6 + 0.4 * theta**8)
    assert float(distort_fisheye(torch.tensor([theta], dtype=torch.float64), k)) == pytest.approx(expected)


def lens(k: list[float], *, fisheye: bool = False, corner: float = 0.8):
    coefficients = torch.tensor([k], dtype=torch.float64)
    return coefficients, find_lens(coefficients, torch.tensor([fisheye]), torch.tensor([corner], dtype=torch.float64))


@pytest.mark.parametrize(
    ("k", "fisheye", "fold"),
    [
        ([-0.5, 0, 0, 0, 0, 0, 0, 0], False, math.sqrt(1 / 1.5)),  # r - 0.5 r^3
        ([0, 0, 0, 0, 0, -0.25, 0, 0], False, 2.0),  # the pole of 1 / (1 - r^2/4)
        ([0, 0, 0, 0, 0, 1.0, 0, 0], False, 1.0),  # r / (1 + r^2)
        ([0, 0, 0.03, 0.04, 0, 0, 0, 0], False, 1 / 0.3),  # 1 - 6 r |p| in the worst direction
        ([-0.3, 0, 0, 0, 0, 0, 0, 0], True, math.sqrt(1 / 0.9)),
    ],
)
def test_fold_is_found_and_the_limit_stays_below_it(k, fisheye, fold):
    _, found = lens(k, fisheye=fisheye)
    assert float(found.limit) == pytest.approx(0.99 * fold, rel=1e-6)


@pytest.mark.parametrize(("fisheye", "limit"), [(False, math.tan(math.radians(89))), (True, math.pi)])
def test_lens_without_a_fold_reaches_its_whole_domain(fisheye, limit):
    _, found = lens([0.0] * 8, fisheye=fisheye)
    assert float(found.limit) == pytest.approx(limit)
    assert found.steps == (1, 0)


def test_wild_coefficients_give_a_usable_lens():
    for value in (1e6, -1e6, 1e30, math.nan):
        for fisheye in (False, True):
            k, found = lens([value] * 4 + [0.0] * 4, fisheye=fisheye)
            assert float(found.limit) > 0
            if math.isfinite(value):
                xy = undistort_opencv(torch.tensor([[0.3, 0.2]], dtype=torch.float64), k, *found)
                assert torch.isfinite(xy).all()


def test_shared_lenses_are_solved_once_and_agree_with_single_ones():
    first, second = [-0.5] + [0.0] * 7, [0.1, -0.05] + [0.0] * 6
    rows = torch.tensor([first, second, first, first], dtype=torch.float64)
    found = find_lens(rows, torch.zeros(4, dtype=torch.bool), torch.full((4,), 0.5, dtype=torch.float64))
    for row, k in enumerate((first, second, first, first)):
        _, single = lens(k, corner=0.5)
        assert torch.equal(found.limit[row], single.limit[0])
        assert torch.equal(found.reach[row], single.reach[0])


@settings(max_examples=40, deadline=None)
@given(st.floats(-0.2, 0.2), st.floats(-0.1, 0.1), st.floats(0.01, 0.99))
@example(0.19921875, -0.01415146796259903, 0.9375)
def test_fisheye_inverse_is_exact_up_to_the_rim(k1, k2, part):
    coefficients = [k1, k2, 0, 0, 0, 0, 0, 0]
    rim = float(lens(coefficients, fisheye=True)[1].reach)
    k, found = lens(coefficients, fisheye=True, corner=rim)  # steps are counted for the image, which ends at the rim
    theta = part * found.limit
    assert torch.allclose(undistort_fisheye(distort_fisheye(theta, k), k, *found), theta, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_suffice_for_a_strong_lens_over_its_whole_image(dtype):
    # Half a percent inside the reach of r - r^3 / 3 the derivative is a tenth of that at the centre.
    k = torch.tensor([[-1 / 3, 0, 0, 0, 0, 0, 0, 0]], dtype=dtype)
    found = find_lens(k, torch.tensor([False]), torch.tensor([0.66], dtype=dtype))
    radius = torch.linspace(0, 0.66, 500, dtype=dtype)
    uv = torch.stack((0.6 * radius, 0.8 * radius), -1)
    xy = undistort_opencv(uv, k, *found)
    assert (distort_opencv(xy, k) - uv).abs().max() < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_newton_is_caught_where_it_would_swing_to_and_fro(dtype):
    # The slope of this lens rises to 1.7 and falls to 0.1 within its image: plain Newton jumps between two points.
    k = torch.tensor([[0.0, 0.09375, 0.09375, -0.0625, 0, 0, 0, 0]], dtype=dtype)
    found = find_lens(k, torch.tensor([True]), torch.tensor([2.0], dtype=dtype))
    theta = torch.linspace(0, 1, 300, dtype=dtype) * found.limit
    radius = distort_fisheye(theta, k)
    assert (distort_fisheye(undistort_fisheye(radius, k, *found), k) - radius).abs().max() < 64 * torch.finfo(dtype).eps
