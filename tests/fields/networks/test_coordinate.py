"""Coordinate networks say what their papers' formulas say, start as they should, and pass gradients."""

import dataclasses
import math

import pytest
import torch

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.networks import CoordinateNetwork, CoordinateNetworkConfig

ACTIVATIONS = ("relu", "sine", "finer", "gauss", "wire")


def small(**changes) -> CoordinateNetworkConfig:
    defaults = {"width": 8, "hidden_layers": 2, "frequencies": 4, "octaves": 3, "first_omega": 3.0, "hidden_omega": 2.0}
    return CoordinateNetworkConfig(**{**defaults, "scale": 1.5, **changes})


def linear(network, index, h):
    state = dict(network.named_parameters())
    return h @ state[f"layers.{index}.weight"].T + state[f"layers.{index}.bias"]


def activated(activation, z, omega, scale=1.5):
    return {
        "relu": lambda: z.clamp(min=0),
        "sine": lambda: torch.sin(omega * z),
        "finer": lambda: torch.sin(omega * (z.detach().abs() + 1) * z),
        "gauss": lambda: torch.exp(-((scale * z) ** 2)),
        "wire": lambda: torch.cos(omega * z[:, :8]) * torch.exp(-((scale * z[:, 8:]) ** 2)),
    }[activation]()


def values_of(network):
    return sum(p.numel() for p in network.parameters())


def test_numbers_of_parameters_are_the_papers():
    ffn = CoordinateNetworkConfig(activation="relu", encoding="fourier", hidden_layers=3)
    assert values_of(CoordinateNetwork(ffn)) == 263_683  # FFN of CAM's image experiments
    assert values_of(CoordinateNetwork(dataclasses.replace(ffn, modulation=32))) == 269_827  # with three pairs of grids
    assert values_of(CoordinateNetwork(CoordinateNetworkConfig())) == 198_915  # SIREN of FreSh, "198.9K"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layers_follow_the_formula(activation):
    network = CoordinateNetwork(small(activation=activation)).double()
    x = torch.rand(5, 2, dtype=torch.float64)
    h = 2 * x - 1
    for index, omega in enumerate((3.0, 2.0)):
        h = activated(activation, linear(network, index, h), omega)
    expected = h @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


FUSED = {
    "relu": {"activation": "relu", "encoding": "fourier", "output": "sigmoid"},
    "octaves": {"activation": "relu", "encoding": "octaves", "skip": 1, "hidden_layers": 3, "inputs": 3},
    "siren": {"output": "centred"},
    "cam": {"activation": "relu", "modulation": 5, "skip": 1, "inputs": 3, "modulated_by": "xyz"},
    "cam in 8 bits": {"activation": "relu", "modulation": 5, "bits": 8},
}


@pytest.mark.parametrize("settings", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
def test_one_operator_says_what_the_layers_say(settings, precision):
    c = small(**{"width": 16, **settings})
    network = CoordinateNetwork(c, seed=1, precision="bf16" if precision == "bf16" else "fp32")
    dtype = torch.float64 if precision == "fp64" else torch.float32
    if network.grids is not None:
        torch.nn.init.normal_(network.grids, std=0.3, generator=torch.Generator().manual_seed(0))
    network.to(dtype)
    x = 1.2 * torch.rand(100, c.inputs, dtype=dtype, generator=torch.Generator().manual_seed(1)) - 0.1
    assert network._fused_spec is not None
    found = []
    for spec in (network._fused_spec, None):
        network._fused_spec = spec
        y = network(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), tuple(network.parameters()))))
    limit = {"fp64": 1e-12, "fp32": 1e-4, "bf16": 0.15}[precision]  # a unit or two on the other side of its ReLU
    for name, fused, layered in zip(["y", *dict(network.named_parameters())], *found, strict=True):
        error = float((fused - layered).detach().norm() / layered.detach().norm())
        assert error <= limit, f"{name}: {error}"


def test_gradients_of_points_can_be_differentiated_again():
    network = CoordinateNetwork(small(width=16)).double()
    x = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(network, (x,))


def test_encodings_follow_the_formula():
    x = torch.rand(5, 2, dtype=torch.float64)
    p = 2 * x - 1
    octaves = CoordinateNetwork(small(encoding="octaves", activation="relu")).double()
    waves = [f(2.0**k * math.pi * p[:, d]) for f in (torch.sin, torch.cos) for d in (0, 1) for k in range(3)]
    torch.testing.assert_close(octaves._encode(p), torch.stack([p[:, 0], p[:, 1], *waves], 1))
    fourier = CoordinateNetwork(small(encoding="fourier", activation="relu")).double()
    angles = 2 * math.pi * p @ fourier.projection
    torch.testing.assert_close(fourier._encode(p), torch.cat([angles.sin(), angles.cos()], 1))


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a != "finer"])
@pytest.mark.parametrize("modulation", [None, 3])
def test_gradients_are_those_of_finite_differences(activation, modulation):
    network = CoordinateNetwork(small(activation=activation, modulation=modulation, width=4)).double()
    names = [name for name, _ in network.named_parameters()]
    x = torch.rand(3, 2, dtype=torch.float64)

    def values(*parameters):
        return torch.func.functional_call(network, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(values, tuple(p.detach().requires_grad_() for p in network.parameters()))


def test_the_factor_of_finer_passes_no_gradient():
    network = CoordinateNetwork(small(activation="finer", hidden_layers=1)).double()
    x = torch.rand(4, 2, dtype=torch.float64)
    network(x).sum().backward()
    z = linear(network, 0, 2 * x - 1)
    factor = 3.0 * (z.abs() + 1)
    expected = network.head.weight.sum(0) * torch.cos(factor * z) * factor
    bias = dict(network.named_parameters())["layers.0.bias"]
    torch.testing.assert_close(bias.grad, expected.sum(0).detach())


def test_sines_keep_their_distribution_from_layer_to_layer():
    network = CoordinateNetwork(CoordinateNetworkConfig(hidden_layers=5))
    h = 2 * torch.rand(4096, 2) - 1
    for index, layer in enumerate(network.layers):
        h = torch.sin(30.0 * layer(h))
        if index > 0:
            assert 0.6 < float(h.detach().std()) < 0.8  # an arcsine law has 1 / sqrt(2)


def test_modulation_starts_as_the_normalised_network():
    network = CoordinateNetwork(small(activation="relu", modulation=4, hidden_layers=1))
    x = torch.rand(6, 2)
    z = network.layers[0](2 * x - 1)
    z = (z - z.mean(1, keepdim=True)) / (z.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(network(x), network.head(z.relu()))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layers_are_normalised_scaled_and_shifted_before_they_are_activated(activation):
    network = CoordinateNetwork(small(activation=activation, modulation=3)).double()
    assert network.grids is not None
    with torch.no_grad():
        network.grids.uniform_(-1, 2)
    x = torch.rand(5, 2, dtype=torch.float64)
    modulation, h = network._modulation(x), 2 * x - 1
    assert modulation is not None
    for index, omega in enumerate((3.0, 2.0 / 30)):
        z = linear(network, index, h)
        z = torch.nn.functional.layer_norm(z, z.shape[1:])
        h = activated(activation, modulation[:, 0, index, None] * z + modulation[:, 1, index, None], omega, 1.5 / 30)
    expected = h @ network.head.weight.T + network.head.bias
    parameters = list(network.parameters())
    for mine, theirs in zip(
        (network(x), *torch.autograd.grad(network(x).square().sum(), parameters)),
        (expected, *torch.autograd.grad(expected.square().sum(), parameters)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_modulation_in_bfloat16_is_near_float32():
    network = CoordinateNetwork(small(activation="relu", width=64, modulation=4))
    x, answers = torch.rand(200, 2), []
    for network.precision in ("fp32", "bf16"):
        y = network(x)
        answers.append((y, *torch.autograd.grad(y.square().sum(), list(network.parameters()))))
    for exact, near in zip(*answers, strict=True):
        assert near.dtype == torch.float32
        assert 0 < (near - exact).norm() < 0.02 * exact.norm()  # a value rounded is 2^-9 off


def test_points_outside_the_grid_are_not_modulated():
    plain = CoordinateNetwork(small(activation="sine", modulation=4))
    changed = CoordinateNetwork(small(activation="sine", modulation=4))
    assert changed.grids is not None
    with torch.no_grad():
        changed.grids.uniform_(-2, 2)
    outside = torch.tensor([[1.2, 0.5], [0.5, -0.1], [-3.0, 7.0]])
    torch.testing.assert_close(changed(outside), plain(outside))
    inside = torch.tensor([[0.3, 0.6]])
    assert not torch.allclose(changed(inside), plain(inside))


def test_modulation_blends_its_cells_with_ends_on_the_border():
    network = CoordinateNetwork(small(modulation=2, hidden_layers=1))
    assert network.grids is not None
    with torch.no_grad():
        network.grids.zero_()
        network.grids[0, 1, 0, 0] = 1.0  # (plane, row, column, scale or shift, layer): at y = 1, x = 0
    found = network._modulation(torch.tensor([[0.0, 1.0], [0.25, 0.5], [1.0, 1.0]]))
    assert found is not None
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([1.0, 0.375, 0.0]))


@pytest.mark.parametrize(("modulated_by", "inputs", "axis"), [("x", 1, 0), ("x", 3, 0), ("time", 3, 2)])
def test_a_line_modulates_by_one_coordinate_alone(modulated_by, inputs, axis):
    network = CoordinateNetwork(small(inputs=inputs, modulation=3, modulated_by=modulated_by))
    assert network.grids is not None
    assert network.grids.shape == (1, 1, 3, 2, 2)
    with torch.no_grad():
        network.grids[0, 0, :, 0, 1] = torch.tensor([1.0, 3.0, 7.0])
    x = torch.rand(4, inputs)
    x[:, axis] = torch.tensor([0.0, 0.25, 0.75, 1.5])  # the last lies outside
    found = network._modulation(x)
    assert found is not None
    torch.testing.assert_close(found[:, 0, 1], torch.tensor([1.0, 2.0, 5.0, 1.0]))
    torch.testing.assert_close(found[:, 0, 0], torch.ones(4))
    torch.testing.assert_close(found[:, 1], torch.zeros(4, 2))


def test_three_planes_multiply_scales_and_add_shifts():
    network = CoordinateNetwork(small(inputs=3, modulation=3, modulated_by="xyz"))
    plain = CoordinateNetwork(small(inputs=3))
    assert network.grids is not None
    assert network.grids.shape == (3, 3, 3, 2, 2)
    x = torch.rand(7, 3)
    scales = torch.tensor([2.0, 3.0, 0.5])
    with torch.no_grad():
        network.grids[:, :, :, 0, 1] = scales[:, None, None]
        network.grids[:, :, :, 1, 1] = scales[:, None, None]
    found = network._modulation(x)
    assert found is not None
    torch.testing.assert_close(found[:, :, 0], torch.tensor([1.0, 0.0]).expand(7, 2))
    torch.testing.assert_close(found[:, :, 1], torch.tensor([3.0, 5.5]).expand(7, 2))
    outside = torch.tensor([[0.5, 0.5, 1.5]])  # outside of xz and yz, not of xy
    found = network._modulation(outside)
    assert found is not None
    torch.testing.assert_close(found[0, :, 1], torch.tensor([2.0, 2.0]))
    assert plain._modulation(x) is None


def test_the_layer_of_the_skip_sees_the_encoded_point_again():
    network = CoordinateNetwork(small(encoding="octaves", activation="relu", hidden_layers=3, skip=2)).double()
    x = torch.rand(5, 2, dtype=torch.float64)
    encoded = network._encode(2 * x - 1)
    h = linear(network, 1, linear(network, 0, encoded).relu()).relu()
    h = linear(network, 2, torch.cat([h, encoded], 1)).relu()
    torch.testing.assert_close(network(x), network.head(h))


def test_an_hourglass_adds_what_narrow_blocks_say():
    network = CoordinateNetwork(small(activation="relu", narrow=3)).double()
    x = torch.rand(5, 2, dtype=torch.float64)
    state = dict(network.named_parameters())

    def outer(index, h):
        return h @ state[f"outer.{index}.weight"].T + state[f"outer.{index}.bias"]

    z = outer(0, 2 * x - 1)
    assert z.shape == (5, 8)
    for index in range(2):
        inside = linear(network, index, torch.nn.functional.layer_norm(z, (8,), eps=1e-5)).relu()
        assert inside.shape == (5, 3)
        z = z + outer(index + 1, inside)
    torch.testing.assert_close(network(x), network.head(z))


def test_bfloat16_is_for_networks_of_relus():
    x = torch.rand(64, 2)
    for activation, differs in (("relu", True), ("sine", False)):
        config = small(activation=activation, width=64)
        exact, fast = (CoordinateNetwork(config, precision=p)(x) for p in ("fp32", "bf16"))
        assert fast.dtype == torch.float32
        assert torch.equal(exact, fast) != differs
        torch.testing.assert_close(fast, exact, rtol=3e-2, atol=3e-2)


def test_one_seed_one_network():
    a, b, c = (CoordinateNetwork(small(encoding="fourier"), seed=s)(torch.full((1, 2), 0.3)) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_shorter_axis_has_the_same_frequency():
    wide = CoordinateNetwork(small(aspect=(1.0, 0.5)))
    square = CoordinateNetwork(small())
    torch.testing.assert_close(wide(torch.tensor([[0.7, 0.9]])), square(torch.tensor([[0.7, 0.7]])))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"inputs": 4}, "inputs must be 1 to 3; got 4"),
        ({"width": 0}, "width must be 1 to 4096; got 0"),
        ({"sigma": -1.0}, "sigma must be positive; got -1"),
        ({"first_bias": -1.0}, "first_bias must be 0 or more; got -1"),
        ({"aspect": (1.0,)}, "aspect must be 2 lengths"),
        ({"modulation": 1}, "modulation must be 2 to 4096 cells; got 1"),
        ({"modulation": 8, "inputs": 1}, "modulation by xy needs points of at least 2 dimensions; got 1"),
        ({"modulation": 8, "modulated_by": "xyz"}, "modulation by xyz needs points of at least 3 dimensions; got 2"),
        ({"narrow": 0}, "narrow must be positive"),
        ({"narrow": 4, "skip": 1}, "and skip None with it; got 4 and 1"),
        ({"skip": 4}, "skip must be 1 to 3, a later hidden layer; got 4"),
    ],
)
def test_settings_out_of_range_are_refused(change, text):
    with pytest.raises(ConfigError, match=text.replace("(", r"\(")):
        CoordinateNetworkConfig(**change)


def test_points_of_other_dimensions_are_refused():
    with pytest.raises(ShapeError, match=r"x must be \(N, 2\); got \(3, 3\)"):
        CoordinateNetwork(small())(torch.rand(3, 3))
    assert CoordinateNetwork(small())(torch.rand(0, 2)).shape == (0, 3)


@pytest.mark.parametrize("changes", [{}, {"skip": 1}, {"narrow": 8}, {"modulation": 4}], ids=str)
def test_gaussians_of_no_width_are_points_exactly(changes):
    network = CoordinateNetwork(small(encoding="octaves", activation="relu", **changes))
    x = torch.rand(33, 2)
    assert torch.equal(network(x, torch.zeros_like(x)), network(x))


def test_octaves_of_a_gaussian_are_means_over_its_points():
    network = CoordinateNetwork(small(encoding="octaves", activation="relu")).double()
    p, deviation = torch.tensor([[0.3, -0.6]]).double(), torch.tensor([[0.03, 0.1]]).double()
    expected = network._encode(p + deviation * torch.randn(400_000, 2, dtype=torch.float64)).mean(0, keepdim=True)
    torch.testing.assert_close(network._encode(p, deviation.square()), expected, rtol=0, atol=5e-3)


def test_widths_of_gaussians_are_in_the_unit_of_the_points():
    network = CoordinateNetwork(small(encoding="octaves", activation="relu", aspect=(1.0, 0.5))).double()
    x, variance = torch.rand(5, 2).double(), torch.rand(5, 2).double() * 1e-2
    encoded = network._encode((2 * x - 1) * network.aspect, variance * torch.tensor([4.0, 1.0]))
    h = encoded
    for layer in network.layers:
        h = layer(h).relu()
    torch.testing.assert_close(network(x, variance), network.head(h))


def test_rounding_up_the_rows_does_not_change_what_gaussians_give():
    config = small(encoding="octaves", activation="relu")
    single, half = (CoordinateNetwork(config, precision=precision) for precision in ("fp32", "bf16"))
    x, variance = torch.rand(700, 2), torch.rand(700, 2) * 1e-2
    torch.testing.assert_close(half(x, variance), single(x, variance), rtol=0, atol=2e-2)


def test_what_cannot_be_integrated_is_refused():
    x = torch.rand(5, 2)
    with pytest.raises(ConfigError, match="only octaves can be integrated over a variance; the encoding is 'none'"):
        CoordinateNetwork(small())(x, x)
    with pytest.raises(ShapeError, match=r"variance must be \(5, 2\) as x is; got \(5, 3\)"):
        CoordinateNetwork(small(encoding="octaves"))(x, torch.rand(5, 3))
