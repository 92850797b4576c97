"""The Gaussian layer is its formula at every size, starts alive, and never holds points x units x channels."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.networks import RbfLayer

INPUTS, OUTPUTS, UNITS = 32, 5, 48


def make(seed: int = 0, inputs: int = INPUTS, units: int = UNITS) -> RbfLayer:
    return RbfLayer(inputs, OUTPUTS, units, generator=torch.Generator().manual_seed(seed))


def expected(layer: RbfLayer, x: torch.Tensor) -> torch.Tensor:
    """The formula as it is written, in double."""
    centres, beta, x = layer.centres.double(), layer.log_beta.double().exp(), x.double()
    phi = torch.exp(-0.5 * (beta * (x[:, None] - centres).square()).sum(2))
    return phi @ layer.weight.double().T + x @ layer.slope.double().T + layer.bias.double()


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 1000])
def test_it_is_the_formula(count):
    layer = make()
    x = 0.1 * torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), expected(layer, x).float(), rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_formula():
    layer = make(inputs=3, units=4).double()
    names, start = zip(*layer.named_parameters(), strict=True)

    def value(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    x = (0.1 * torch.randn(5, 3, generator=torch.Generator().manual_seed(1))).double().requires_grad_()
    given = (x, *(p.detach().clone().requires_grad_() for p in start))
    assert torch.autograd.gradcheck(value, given, eps=1e-7)


def test_autocast_does_not_round_the_distance():
    layer, x = make(), 0.1 * torch.randn(100, INPUTS)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert torch.equal(found, layer(x))
    assert torch.equal(layer(x.bfloat16()), layer(x.bfloat16().float()))


def test_rounding_never_makes_a_unit_answer_more_than_one():
    layer = make()
    with torch.no_grad():
        layer.centres.add_(100)  # where squares of 1e4 cancel
        layer.weight.fill_(1 / UNITS)
        layer.slope.zero_()
    assert float(layer(layer.centres).detach().max()) <= 1 + 1e-5
    far = layer(torch.full((1, INPUTS), 1e20))
    assert torch.equal(far[0], layer.bias)


def test_features_near_zero_meet_units_that_answer_and_pass_gradients():
    layer = make(units=1000)
    with torch.no_grad():
        layer.slope.zero_()
        layer.weight.zero_()
        layer.weight[0] = 1
        at_zero = torch.exp(-0.5 * (layer.log_beta.exp() * layer.centres.square()).sum(1))
    assert 0.1 < float((at_zero > 0.01).float().mean()) < 0.9
    assert float(at_zero.max()) < 0.999
    x = torch.zeros(1, INPUTS, requires_grad=True)
    layer(x)[0, 0].backward()
    assert x.grad is not None
    assert bool((x.grad.abs() > 0.1).all())


class Note(TorchDispatchMode):
    """Sizes of everything computed."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.sizes.extend(t.numel() for t in (out if isinstance(out, tuple | list) else [out]) if torch.is_tensor(t))
        return out


def test_nothing_is_ever_larger_than_points_by_units():
    layer, x = make(), torch.randn(200, INPUTS, requires_grad=True)
    with Note() as note:
        layer(x).sum().backward()
    assert max(note.sizes) == 200 * UNITS


def test_without_gradients_many_rows_answer_the_same_from_little_memory():
    layer, x = make(), 0.1 * torch.randn(5000, INPUTS, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), Note() as note:
        found = layer(x)
    torch.testing.assert_close(found, layer(x).detach(), rtol=1e-5, atol=1e-5)
    assert max(note.sizes) < 5000 * UNITS


def test_what_is_not_finite_stays_in_its_row():
    layer, x = make(), 0.1 * torch.randn(3, INPUTS)
    clean = layer(x)
    x[1, 2] = float("nan")
    found = layer(x)
    assert bool(found[1].isnan().all())
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


def test_a_generator_makes_the_start_repeatable():
    assert torch.equal(make(1).centres, make(1).centres)
    assert not torch.equal(make(1).log_beta, make(2).log_beta)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match=r"x must be \(N, 32\); got \(4, 31\)"):
        make()(torch.zeros(4, 31))
    with pytest.raises(ConfigError, match="inputs, outputs and units must be positive; got 32, 5 and 0"):
        make(units=0)
