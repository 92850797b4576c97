"""Muon moves matrices along the orthogonal factor of their momentum, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch

from polyfield.fields import ConfigError, ShapeError
from polyfield.fields.ops.muon import Matrix, muon_, orthogonalised


def random(*shape: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    """Matrices with singular values over some decades."""
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(*shape, generator=generator, dtype=torch.float64), full_matrices=False)
    values = torch.logspace(0, -spread, min(shape[-2:]), dtype=torch.float64)
    return u @ (values[:, None] * v)


@pytest.mark.parametrize("shape", [(3, 40, 40), (2, 24, 60), (1, 60, 24), (5, 7)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_singular_values_come_near_one_and_vectors_stay(shape, precision):
    x = random(*shape, spread=1.0)
    given = x if precision == "fp32" else x.float()
    found = orthogonalised(given, precision=precision)
    assert found.dtype == given.dtype
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    values = (u.mT @ found.double() @ v.mT).diagonal(dim1=-2, dim2=-1)
    slack = 0.0 if precision == "fp32" else 0.1
    assert 0.65 - slack < float(values.min()) <= float(values.max()) < 1.25 + slack
    if precision == "fp32":
        rest = found - u @ (values[..., :, None] * v)
        assert float(rest.abs().max()) < 1e-9


def test_length_does_not_matter_and_nothing_stays_nothing():
    x = random(2, 16, 32)
    torch.testing.assert_close(orthogonalised(1e-9 * x), orthogonalised(x))
    zero = orthogonalised(torch.zeros(2, 8, 8))
    assert torch.equal(zero, torch.zeros(2, 8, 8))


def test_steps_are_those_by_hand():
    matrices, momentum = [torch.randn(20, 50).double(), torch.randn(20, 50).double()], torch.zeros(2, 20, 50).double()
    expected, mean = [m.clone() for m in matrices], torch.zeros(2, 20, 50).double()
    for step in range(3):
        gradients = random(2, 20, 50, seed=step)
        muon_(matrices, gradients, momentum, lr=0.01, decay=0.9)
        mean = 0.9 * mean + 0.1 * gradients
        for k in range(2):
            expected[k] -= 0.01 * 0.2 * math.sqrt(50) * orthogonalised(0.9 * mean[k] + 0.1 * gradients[k])
    torch.testing.assert_close(momentum, mean)
    torch.testing.assert_close(matrices, expected)


def test_directions_of_small_gradients_are_learned_too():
    """W x = y with inputs of deviations from 1 to 1/1000; gradient descent at the highest rate leaves most of it."""
    wanted, spread = random(32, 32, seed=1), torch.logspace(0, -3, 32, dtype=torch.float64)
    weights, momentum, plain = torch.zeros(32, 32).double(), torch.zeros(1, 32, 32).double(), torch.zeros(32, 32)
    for step in range(400):
        muon_([weights], ((weights - wanted) * spread.square())[None], momentum, lr=0.02 * (1 - step / 400))
        plain = plain - (plain - wanted) * spread.square()
    left, left_plain = (float((w - wanted).norm() / wanted.norm()) for w in (weights, plain))
    assert left < 0.15 < 0.4 < left_plain


def test_a_matrix_is_a_view_of_its_parameter():
    parameter = torch.nn.Parameter(torch.arange(20.0))
    view = Matrix(parameter, 4, (3, 5)).of(parameter.detach())
    assert view.tolist() == torch.arange(4.0, 19.0).view(3, 5).tolist()
    view.zero_()
    assert float(parameter.detach().sum()) == 0 + 1 + 2 + 3 + 19


def test_what_does_not_fit_is_refused():
    x = torch.zeros(1, 4, 4)
    with pytest.raises(ShapeError, match=r"momentum must be like gradients, \(1, 4, 4\)"):
        muon_([x[0]], x, torch.zeros(1, 4, 5), lr=0.1)
    with pytest.raises(ConfigError, match="lr must be finite"):
        muon_([x[0]], x, x.clone(), lr=math.nan)
    with pytest.raises(ConfigError, match=r"decay in \[0, 1\)"):
        muon_([x[0]], x, x.clone(), lr=0.1, decay=1.0)
