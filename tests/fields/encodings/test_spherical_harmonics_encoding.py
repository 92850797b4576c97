"""Spherical harmonics as a module."""

import pytest
import torch
from helpers.native_levels import uniform

from polyfield.fields.encodings import SphericalHarmonicsEncoding
from polyfield.fields.errors import ConfigError
from polyfield.fields.ops.spherical_harmonics import spherical_harmonics


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_the_module_is_the_operator(degree):
    encoding, directions = SphericalHarmonicsEncoding(degree), torch.nn.functional.normalize(uniform(9, 3), dim=1)
    assert encoding.features == degree**2
    assert torch.equal(encoding(directions), spherical_harmonics(directions, degree))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"must be 1, 2, 3 or 4; got 0"):
        SphericalHarmonicsEncoding(0)
