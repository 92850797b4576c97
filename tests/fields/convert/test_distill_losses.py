"""Errors at points: what a reader would compute by hand, and what must not be punished."""

from __future__ import annotations

import math

import pytest
import torch

from polyfield.fields.convert.losses import EMPTY, OPAQUE, SPREAD, density_error, feature_error, weighted_huber
from polyfield.fields.ops.activations import DENSITY_ACTIVATIONS, density_from_raw, log_density


def by_hand(student: float, teacher: float) -> float:
    s, t = math.exp(student), math.exp(teacher)
    if t <= EMPTY:
        return 0.0 if s <= EMPTY else math.log(s / EMPTY)
    if t >= OPAQUE:
        return 0.0 if s >= OPAQUE else math.log(s / OPAQUE)
    return math.log(s / t)


def test_density_error_is_the_rule_by_hand():
    values = torch.linspace(-12, 6, 37)
    student, teacher = (t.flatten() for t in torch.meshgrid(values, values, indexing="ij"))
    expected = [by_hand(s, t) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    torch.testing.assert_close(density_error(student, teacher), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_empty_beside_empty_and_opaque_beside_opaque_pull_at_nothing():
    student = torch.tensor([-40.0, -7.0, 2.5, 9.0], requires_grad=True)
    teacher = torch.tensor([-math.inf, -20.0, 30.0, 2.1])
    error = density_error(student, teacher)
    assert error.tolist() == [0, 0, 0, 0]
    error.sum().backward()
    assert student.grad is not None
    assert student.grad.tolist() == [0, 0, 0, 0]


def test_lost_and_invented_matter_pull_with_full_slope_however_far_off():
    student = torch.tensor([-60.0, 5.0], requires_grad=True)
    error = density_error(student, torch.tensor([1.0, -50.0]))
    weighted_huber(error, torch.ones(2), 1.0).backward()
    assert student.grad is not None
    assert student.grad.tolist() == [-0.5, 0.5]


@pytest.mark.parametrize("channels", [None, 3])
def test_weighted_huber_is_the_loop_by_hand(channels):
    g = torch.Generator().manual_seed(0)
    error = torch.randn(20, *([channels] if channels else []), generator=g)
    weights = torch.rand(20, generator=g)
    total = 0.0
    for row, w in zip(error.reshape(20, -1).tolist(), weights.tolist(), strict=True):
        values = [0.5 * e * e / 0.4 if abs(e) < 0.4 else abs(e) - 0.2 for e in row]
        total += w * sum(values) / len(values)
    assert float(weighted_huber(error, weights, 0.4)) == pytest.approx(total / float(weights.sum()), rel=1e-5)
    assert float(weighted_huber(error, torch.zeros(20), 0.4)) == 0


@pytest.mark.parametrize("activation", DENSITY_ACTIVATIONS)
def test_log_density_is_the_logarithm_with_gradients_everywhere(activation):
    raw = torch.linspace(-80, 20, 401, dtype=torch.float64, requires_grad=True)
    log = log_density(raw, activation)
    density = density_from_raw(raw.detach(), activation)
    seen = density > (0.1 if activation == "relu" else 1e-30)
    assert int(seen.sum()) > 50
    torch.testing.assert_close(log.detach()[seen], density[seen].log(), atol=1e-6, rtol=1e-6)
    assert bool((log.diff() > 0).all())
    log.sum().backward()
    assert raw.grad is not None
    assert bool((raw.grad > 0.01).all())


@pytest.mark.parametrize("spread", [0.5, 1.9, 5.0])
def test_features_that_spread_wide_err_in_units_of_their_spread_and_others_as_they_are(spread):
    g = torch.Generator().manual_seed(0)
    offsets = torch.tensor([30.0, -70.0, 0.0])  # where features lie says nothing of how far they spread
    teacher = torch.randn(4000, 3, generator=g) * spread + offsets
    student = teacher + 3.0
    expected = 3.0 if spread < SPREAD else 3.0 * SPREAD / spread
    torch.testing.assert_close(feature_error(student, teacher), torch.full((4000, 3), expected), rtol=0.03, atol=1e-4)


def test_the_features_of_one_sample_err_as_they_are():
    student = torch.zeros(1, 4, requires_grad=True)
    error = feature_error(student, torch.full((1, 4), -7.0))
    assert error.tolist() == [[7.0] * 4]
    error.sum().backward()
    assert student.grad is not None
    assert student.grad.tolist() == [[1.0] * 4]
