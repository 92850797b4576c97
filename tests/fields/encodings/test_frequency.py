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
