"""Eight bits hold what a network computes with, and training sees them."""

import pytest
import torch

from polyfield.fields.networks import CoordinateNetwork, CoordinateNetworkConfig
from polyfield.fields.networks.quantised import as_stored, in_8_bits

SMALL = {"inputs": 3, "width": 16, "hidden_layers": 2, "modulation": 4, "modulated_by": "xyz"}


@pytest.mark.parametrize(("shape", "scales"), [((5, 7), (5, 1)), ((3, 4, 4, 2, 6), (1, 1, 1, 2, 6))])
def test_rounding_is_to_the_nearest_of_255_levels_of_the_largest_value(shape, scales):
    values = torch.randn(shape)
    integers, found = in_8_bits(values)
    assert integers.dtype == torch.int8
    assert tuple(found.shape) == scales
    assert int(integers.max()) == 127 or int(integers.min()) == -127
    assert bool(((integers * found - values).abs() <= found / 2 * (1 + 1e-5)).all())
    again, same = in_8_bits(integers * found)
    assert torch.equal(again, integers)
    torch.testing.assert_close(same, found)


def test_zeros_stay_zeros():
    integers, scales = in_8_bits(torch.zeros(2, 3))
    assert not integers.any()
    assert torch.equal(scales, torch.ones(2, 1))


def test_the_gradient_passes_as_if_nothing_were_rounded():
    values = torch.randn(4, 5, requires_grad=True)
    grad = torch.randn(4, 5)
    as_stored(values).backward(grad)
    assert values.grad is not None
    assert torch.equal(values.grad, grad)


def test_a_network_computes_with_what_it_stores():
    config = CoordinateNetworkConfig(**SMALL, bits=8)
    network, other = CoordinateNetwork(config, seed=1), CoordinateNetwork(config, seed=2)
    state = network.state_dict()
    assert state["layers.0.weight"].dtype == state["grids"].dtype == torch.int8
    assert state["layers.0.bias"].dtype == torch.float32
    other.load_state_dict({k: v.clone() for k, v in state.items()})
    x = torch.rand(9, 3)
    torch.testing.assert_close(other(x), network(x), rtol=1e-5, atol=1e-6)
    exact = CoordinateNetwork(CoordinateNetworkConfig(**SMALL), seed=1)
    assert not torch.allclose(exact(x), network(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(exact(x), network(x), rtol=0, atol=0.1)


def test_rounded_weights_are_kept_until_the_weights_change():
    network = CoordinateNetwork(CoordinateNetworkConfig(**SMALL, bits=8), seed=1)
    x = torch.rand(9, 3)
    with torch.no_grad():
        before = network(x)
        assert torch.equal(network(x), before)
        for parameter in network.parameters():
            parameter.mul_(1.5)
        after = network(x)
    assert not torch.equal(after, before)
    torch.testing.assert_close(network(x), after)
