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
