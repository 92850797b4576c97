"""The network is what its equation says, has the derivatives of it, and takes any signal, however small."""

import dataclasses
import math

import pytest
import torch

from polyfield.fields.errors import ConfigError
from polyfield.fields.implicit import KINDS, GridSignal, ImplicitModel, build, config_for
from polyfield.fields.implicit.grid import GridNetworkConfig
from polyfield.fields.implicit.neurbf import NeurbfConfig, NeurbfNetwork
from polyfield.fields.optim.fit import FitTask, measure_fit

RATES = {"lr": KINDS["neurbf"].lr, **KINDS["neurbf"].adam}
SMALL = {"kernels": 9, "neighbours": 3, "features": 5, "frequencies": (0.5, 4.0), "log2_table_size": 6}


def network_of(**settings) -> NeurbfNetwork:
    """Of random kernels and of values that are not near zero."""
    network = NeurbfNetwork(NeurbfConfig(**{**SMALL, **settings}), seed=1).double()
    generator = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network


def points_of(count: int, dimensions: int) -> torch.Tensor:
    return torch.rand(count, dimensions, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def by_all_kernels(network: NeurbfNetwork, x: torch.Tensor) -> torch.Tensor:
    """The definition, a kernel at a time, every kernel counting."""
    config, place = network.config, x * network.lengths
    dimensions, total, parts = config.inputs, 0.0, []
    for centre, factors in zip(network.centres, network.factors, strict=True):
        factor = torch.zeros(dimensions, dimensions, dtype=x.dtype)
        row, column = torch.tril_indices(dimensions, dimensions)
        factor[row, column] = factors
        offset = place - centre
        parts.append(1 / (1 + torch.einsum("pi,ij,pj->p", offset, factor.T @ factor, offset)))
        total = total + parts[-1]
    first, last = config.frequencies
    m = torch.tensor([first * (last / first) ** (f / (config.features - 1)) for f in range(config.features)])
    told = [torch.sin((part / total)[:, None] * m + network.phases) for part in parts]
    near = torch.stack([w * t for w, t in zip(network.weights, told, strict=True)]).sum(0)
    position = x if dimensions == 3 else torch.cat([x, torch.zeros(len(x), 1, dtype=x.dtype)], 1)
    hidden = torch.cat([near, network.grid(position)], 1) @ network.first.T + network.first_bias
    return network.network(torch.relu(hidden + torch.sin(hidden * network.head_multipliers)))


@pytest.mark.parametrize("aspect", [None, (1.0, 0.6), (0.4, 1.0, 0.7)])
@pytest.mark.parametrize("count", [0, 1, 31, 1000])
def test_with_every_kernel_near_it_is_the_sum_over_all(aspect, count):
    dimensions = len(aspect or (1, 1))
    network = network_of(inputs=dimensions, neighbours=9, aspect=aspect)
    x = points_of(count, dimensions)
    torch.testing.assert_close(network(x), by_all_kernels(network, x), rtol=1e-6, atol=1e-6)


def test_few_neighbours_are_those_with_the_nearest_centres_and_share_one():
    network = network_of()
    x = points_of(50, 2)
    index, phi = network.nearest(x)
    assert torch.equal(index, torch.cdist(x, network.centres).topk(3, largest=False).indices)
    torch.testing.assert_close(phi.sum(1), torch.ones(50, dtype=torch.float64))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_derivatives_are_those_of_the_function(dimensions):
    network = network_of(inputs=dimensions, levels=1, channels=1, features=3)
    learned = {n: p.detach().requires_grad_() for n, p in network.named_parameters() if p.requires_grad}
    del learned["network.parameters_flat"], learned["grid.table"]  # operators with tests of their own
    x = points_of(3, dimensions).requires_grad_()

    def value(x, *parameters):
        return torch.func.functional_call(network, dict(zip(learned, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(value, (x, *learned.values()), eps=1e-7, atol=1e-5, rtol=1e-4)


def test_centres_and_shapes_do_not_learn_and_all_else_does():
    signal = GridSignal("image", torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(0)))
    network = build("neurbf", config_for("neurbf", signal), signal=signal)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    FitTask(network, signal, batch=64, **RATES).step(0, 1.0)
    still = {n for n, p in network.named_parameters() if torch.equal(p, before[n])}
    assert still == {"centres", "factors"}


def test_what_is_remembered_of_points_is_of_these_points_and_kernels():
    network = network_of(kernels=40).float()
    others = network_of(kernels=40).float()
    x, moved = points_of(40, 2).float().split(20)
    first = network(x)
    assert network.nearest(x)[1] is network.nearest(x)[1]
    assert torch.equal(network(x), first)
    x.copy_(moved)
    assert torch.equal(network(x), others(moved))
    with torch.no_grad():
        others.centres.copy_(points_of(60, 2)[20:])
    expected = network_of(kernels=40).float()
    expected.load_state_dict(others.state_dict())
    assert torch.equal(others(moved), expected(moved))
    network.load_state_dict(expected.state_dict())
    assert torch.equal(network(x), expected(moved))


SIGNALS = {
    "one pixel": GridSignal("image", torch.full((1, 1, 3), 0.3)),
    "constant": GridSignal("image", torch.full((9, 13, 3), 128, dtype=torch.uint8)),
    "few pixels": GridSignal("image", torch.rand(2, 3, 4)),
    "a line": GridSignal("image", torch.rand(1, 40, 3)),
    "no number": GridSignal("image", torch.full((5, 5, 3), math.nan)),
    "film": GridSignal("video", torch.randint(0, 255, (3, 4, 5, 3), dtype=torch.uint8)),
    "volume": GridSignal("volume", torch.rand(4, 6, 5, 2)),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_any_signal_gets_kernels_and_is_learned(name):
    signal = SIGNALS[name]
    network = build("neurbf", config_for("neurbf", signal), signal=signal)
    assert isinstance(network, NeurbfNetwork)
    assert network.config.kernels <= signal.cells
    assert all(bool(p.isfinite().all()) for p in network.parameters())
    task = FitTask(network, signal, batch=signal.cells, **RATES)
    first = task.step(0, 1.0).loss
    for step in range(1, 30):
        task.step(step, 1.0)
    assert name == "no number" or task.step(30, 1.0).loss < first


@pytest.mark.parametrize("side", [64, 256])
def test_it_has_the_values_of_a_hash_field_of_the_signal(side):
    signal = GridSignal("image", torch.rand(side, side, 3))
    hashed, ours = config_for("hash", signal), config_for("neurbf", signal)
    assert isinstance(hashed, GridNetworkConfig)
    assert isinstance(ours, NeurbfConfig)
    values = [sum(p.numel() for p in build(k, c).parameters()) for k, c in (("hash", hashed), ("neurbf", ours))]
    assert 0 <= values[0] - values[1] < ours.kernel_values
    assert values[1] == ours.shared_values + ours.kernels * ours.kernel_values


def test_the_kernels_of_a_signal_are_better_than_kernels_anywhere():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    signal = GridSignal("image", ((x.square() + y.square()).sqrt() < 0.6).float()[..., None])
    config = NeurbfConfig(outputs=1, kernels=60, finest_resolution=32)
    found = []
    for placing in (signal, None):
        network = build("neurbf", config, signal=placing)
        task = FitTask(network, signal, batch=1024, **RATES)
        for step in range(60):
            task.step(step, 1.0)
        found.append(measure_fit(ImplicitModel("neurbf", network, "image", signal.size), signal).psnr or 0)
    assert found[0] > found[1] + 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"inputs": 1}, "inputs must be 2 or 3; got 1"),
        ({"kernels": 0}, "kernels must be 1 to 16777216; got 0"),
        ({"neighbours": 10}, "neighbours must be at most kernels = 9; got 10"),
        ({"frequencies": (2.0, 1.0)}, r"frequencies must be 0 < first <= last; got 2.0 and 1.0"),
        ({"frequencies": (1.0,)}, r"frequencies must be two numbers; got \(1.0,\)"),
        ({"head_frequencies": (1.0, "x")}, "head_frequencies must be two numbers"),
        ({"aspect": (1.0, 2.0)}, "aspect must be 2 lengths"),
        ({"log2_table_size": 3}, "log2_table_size must be 4 to 24"),
    ],
)
def test_settings_out_of_range_are_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        dataclasses.replace(NeurbfConfig(**SMALL), **change)
