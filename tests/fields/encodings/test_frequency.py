"""The frequency encoding as a module."""

import pytest
import torch
from helpers.native_levels import uniform

from polyfield.fields.encodings import FrequencyEncoding
from polyfield.fields.errors import ConfigError
from polyfield.fields.ops.frequency_encode import frequency_encode, frequency_value_and_jacobian


@pytest.mark.parametrize("include", [True, False])
def test_the_module_is_the_operator(include):
    encoding, x = FrequencyEncoding(octaves=4, include_input=include), uniform(20, 3, low=-1)
    assert encoding(x).shape == (20, encoding.features)
    assert torch.equal(encoding(x), frequency_encode(x, 4, include))
    for mine, theirs in zip(encoding.value_and_jacobian(x), frequency_value_and_jacobian(x, 4, include), strict=True):
        assert torch.equal(mine, theirs)
    assert not list(encoding.parameters())


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"octaves must be 1 to 32 and inputs at least 1; got 0 and 3"):
        FrequencyEncoding(octaves=0)


def test_unit_inputs_are_those_between_minus_one_and_one():
    unit, plain = FrequencyEncoding(4, 3, unit=True), FrequencyEncoding(4, 3)
    x = 0.1 + 0.8 * torch.rand(20, 3, dtype=torch.float64)
    torch.testing.assert_close(unit(x), plain(2 * x - 1))
    value, jacobian = unit.value_and_jacobian(x)
    torch.testing.assert_close(value, unit(x))
    for axis, step in enumerate(1e-6 * torch.eye(3, dtype=torch.float64)):
        torch.testing.assert_close(jacobian[:, axis], (unit(x + step) - unit(x - step)) / 2e-6, rtol=1e-4, atol=1e-4)


def test_unit_inputs_outside_are_taken_at_the_border_with_derivative_zero():
    unit = FrequencyEncoding(4, 3, unit=True)
    x = torch.tensor([[-0.5, 0.3, 1.7]])
    value, jacobian = unit.value_and_jacobian(x)
    torch.testing.assert_close(value, unit(torch.tensor([[0.0, 0.3, 1.0]])))
    assert jacobian[0, [0, 2]].abs().max() == 0
    assert jacobian[0, 1].abs().max() > 1


@pytest.mark.parametrize(("unit", "include"), [(False, True), (False, False), (True, True)])
def test_of_a_gaussian_the_encoding_is_the_mean_over_its_points(unit, include):
    encoding = FrequencyEncoding(4, 2, include_input=include, unit=unit)
    x = torch.tensor([[0.4, 0.6], [0.52, 0.45]], dtype=torch.float64)
    deviation = torch.tensor([[0.02, 0.07], [0.005, 0.03]], dtype=torch.float64)
    points = x + deviation * torch.randn(400_000, 2, 2, dtype=torch.float64)
    expected = encoding(points.reshape(-1, 2)).reshape(400_000, 2, -1).mean(0)
    torch.testing.assert_close(encoding(x, deviation.square()), expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("include", [True, False])
def test_a_gaussian_of_no_width_is_its_point_exactly(include):
    encoding, x = FrequencyEncoding(10, 3, include_input=include, unit=True), torch.rand(50, 3)
    assert torch.equal(encoding(x, torch.zeros_like(x)), encoding(x))


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("variance", [1e3, 3e38, float("inf")])
def test_of_a_huge_gaussian_no_octave_is_left(variance, include):
    encoding, x = FrequencyEncoding(32, 3, include_input=include), torch.rand(50, 3)
    first = 3 * include
    found = encoding(x, torch.full_like(x, variance))
    assert torch.equal(found[:, :first], x[:, :first])
    assert bool((found[:, first:] == 0).all())


def test_gradients_reach_the_middle_and_the_variance():
    encoding = FrequencyEncoding(3, 2)
    x, variance = uniform(7, 2, low=-1).double().requires_grad_(), (1e-2 * torch.rand(7, 2)).double().requires_grad_()
    assert torch.autograd.gradcheck(encoding, (x, variance))
