"""The module over the fused network: one flat parameter, repeatable weights, precisions, saving."""

import pytest
import torch

from polyfield.fields.errors import ConfigError
from polyfield.fields.networks import MLP
from polyfield.fields.ops.fused_mlp import MlpSpec, fused_mlp_reference, mlp_value_and_jacobian_reference

SPEC = MlpSpec(inputs=6, outputs=2, width=32, hidden_layers=2, hidden_activation="softplus", bias=True)


def make(seed: int = 0, **options) -> MLP:
    return MLP(SPEC, generator=torch.Generator().manual_seed(seed), **options)


def test_it_is_the_fused_network_over_one_flat_parameter():
    network, x = make(), torch.randn(50, 6)
    assert [name for name, _ in network.named_parameters()] == ["parameters_flat"]
    assert network.parameters_flat.shape == (SPEC.parameter_count,)
    torch.testing.assert_close(network(x), fused_mlp_reference(x, network.parameters_flat, SPEC), rtol=1e-4, atol=1e-5)


def test_a_generator_makes_the_weights_repeatable():
    assert torch.equal(make(1).parameters_flat, make(1).parameters_flat)
    assert not torch.equal(make(1).parameters_flat, make(2).parameters_flat)


def test_value_and_jacobian_reach_the_parameters():
    network, x, tangents = make().double(), torch.randn(9, 6).double(), torch.randn(9, 3, 6).double()
    value, jacobian = network.value_and_jacobian(x, tangents)
    expected = mlp_value_and_jacobian_reference(x, tangents, network.parameters_flat, SPEC)
    torch.testing.assert_close((value, jacobian), expected)
    jacobian.square().sum().backward()
    assert network.parameters_flat.grad is not None
    assert network.parameters_flat.grad.norm() > 0


def test_precision_may_change_any_time_and_float64_stays_exact():
    network, x = make(precision="bf16"), torch.randn(50, 6)
    rounded = network(x)
    network.precision = "fp32"
    exact = network(x)
    assert 1e-5 < ((rounded - exact).norm() / exact.norm()).item() < 3e-2
    network.precision = "bf16"
    torch.testing.assert_close(network.double()(x.double()).float(), exact, rtol=1e-4, atol=1e-5)


def test_a_network_learns():
    network, x = make(), torch.rand(256, 6, generator=torch.Generator().manual_seed(1))
    target = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        loss = (network(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_state_dict_round_trip():
    first, second, x = make(1), make(2), torch.randn(5, 6)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_an_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match="precision must be one of fp32, bf16; got 'tf32'"):
        make(precision="tf32")


def test_repr_names_shape_and_precision():
    text = repr(make())
    assert "width=32" in text
    assert "precision='fp32'" in text
