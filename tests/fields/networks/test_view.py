"""Networks of features and directions, modulated by the viewing angle: the sphere has no seam and no special poles."""

from __future__ import annotations

import math

import pytest
import torch

from polyfield.fields import MarchConfig, Model, OccupancyGrid, Similarity
from polyfield.fields.errors import ConfigError
from polyfield.fields.networks import ViewNetwork
from polyfield.fields.networks.view import angles
from polyfield.fields.radiance import CamField, CamFieldConfig


def make(cells=(4, 3), layers=2, seed=0) -> ViewNetwork:
    generator = torch.Generator().manual_seed(seed)
    network = ViewNetwork(5, cells, width=8, hidden_layers=layers, generator=generator)
    with torch.no_grad():
        network.grids.uniform_(-1, 2, generator=generator)
    return network


def direction(azimuth: float, elevation: float) -> torch.Tensor:
    """(1, 3), of degrees."""
    a, e = math.radians(azimuth), math.radians(elevation)
    return torch.tensor([[math.cos(a) * math.cos(e), math.sin(a) * math.cos(e), math.sin(e)]])


def test_layers_are_normalised_scaled_and_shifted():
    network = make().double()
    features, d = torch.rand(6, 5).double(), torch.nn.functional.normalize(torch.randn(6, 3).double(), dim=1)
    h, values = features, network._modulation(d)
    for index, layer in enumerate(network.layers):
        z = torch.nn.functional.layer_norm(layer(h), (8,))
        h = torch.relu(values[:, 0, index, None] * z + values[:, 1, index, None])
    torch.testing.assert_close(network(features, d), network.head(h).sigmoid())


def test_cells_are_blended_along_azimuth_and_elevation():
    network = make((4, 5), layers=1)  # azimuths -180, -90, 0, 90; elevations -90, -45, 0, 45, 90
    grid = network.grids[:, :, 0, 0]
    for azimuth, elevation, expected in (
        (0, 0, grid[2, 2]),
        (90, 45, grid[3, 3]),
        (45, 0, (grid[2, 2] + grid[2, 3]) / 2),
        (0, -22.5, (grid[2, 2] + grid[1, 2]) / 2),
        (135, 0, (grid[2, 3] + grid[2, 0]) / 2),
    ):
        torch.testing.assert_close(network._modulation(direction(azimuth, elevation))[0, 0, 0], expected)


def test_the_azimuth_has_no_seam():
    network = make()
    before, behind = (network._modulation(direction(azimuth, 20)) for azimuth in (179.999, -179.999))
    torch.testing.assert_close(before, behind, atol=1e-3, rtol=0)
    assert float((network._modulation(direction(150, 20)) - before).detach().abs().max()) > 0.05


@pytest.mark.parametrize("cells", [(4, 3), (4, 2), (1, 2)])
@pytest.mark.parametrize("pole", [-90, 90])
def test_a_pole_has_one_value(cells, pole):
    network = make(cells)
    straight = network._modulation(torch.tensor([[0.0, 0.0, math.copysign(1.0, pole)]]))
    for azimuth in (0, 77, 201):
        near = network._modulation(direction(azimuth, pole - math.copysign(0.01, pole)))
        torch.testing.assert_close(near, straight, atol=2e-3, rtol=0)


def test_gradients_are_those_of_finite_differences_and_zero_at_the_poles():
    network = make().double()
    names = [name for name, _ in network.named_parameters()]
    features = torch.rand(4, 5).double()
    d = torch.nn.functional.normalize(torch.tensor([[1, 2, 3], [-1, 0.4, -2], [3, -1, 0.2], [1, 1, -0.5]]).double())

    def values(features, d, *parameters):
        return torch.func.functional_call(network, dict(zip(names, parameters, strict=True)), (features, d))

    inputs = (features, d, *network.parameters())
    assert torch.autograd.gradcheck(values, tuple(t.detach().requires_grad_() for t in inputs))
    poles = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]], requires_grad=True)
    angles(poles).sum().backward()
    assert poles.grad is not None
    assert bool((poles.grad[:, :2] == 0).all())
    assert bool(poles.grad.isfinite().all())


def test_bfloat16_is_near_float32_for_any_number_of_rows():
    network = make()
    features, d = torch.rand(37, 5), torch.nn.functional.normalize(torch.randn(37, 3), dim=1)
    exact = network(features, d)
    network.precision = "bf16"
    near = network(features, d)
    assert near.shape == (37, 3)
    assert near.dtype == torch.float32
    assert 0 < float((near - exact).detach().abs().max()) < 0.02
    assert network(features[:0], d[:0]).shape == (0, 3)


def test_a_field_so_modulated_is_stored_learned_and_refused_like_any_other(tmp_path):
    small = {"octaves": 3, "density_width": 16, "density_layers": 2, "density_skip": None, "modulation": 4}
    field = CamField(CamFieldConfig(**small, view_cells=(6, 3)), seed=1)
    assert isinstance(field.color, ViewNetwork)
    with torch.no_grad():
        field.color.grids.uniform_(0, 2)
    groups = {group["name"]: group for group in field.parameter_groups()}
    assert [p.shape for p in groups["grids"]["params"]] == [(3, 4, 4, 2, 2), (3, 6, 2, 1)]
    assert sum(len(group["params"]) for group in groups.values()) == len(list(field.parameters()))
    model = Model(field, OccupancyGrid(resolution=8), MarchConfig(), Similarity.identity())
    model.save(tmp_path / "model.safetensors")
    again = Model.load(tmp_path / "model.safetensors").representation
    x, d = torch.rand(9, 3) - 0.5, torch.nn.functional.normalize(torch.randn(9, 3), dim=1)
    features = field.geometry(x).features
    torch.testing.assert_close(again.radiance(features, d), field.radiance(features, d), rtol=0, atol=0)
    with pytest.raises(ConfigError, match="view_cells must be 1 to 256 azimuths and 2 to 256 elevations"):
        CamField(CamFieldConfig(**small, view_cells=(6, 1)))
