"""Fields whose octaves are means over footprints: what a footprint does, and what a point without one is."""

from __future__ import annotations

import pytest
import torch

from polyfield.fields import MarchConfig, Model, OccupancyGrid, Similarity
from polyfield.fields.errors import ConfigError
from polyfield.fields.geometry import to_unit_cube_variance
from polyfield.fields.radiance import FIELDS, MlpField

SMALL = {"octaves": 8, "density_width": 16, "density_layers": 3, "density_skip": 1}
KINDS = {"mlp": {}, "cam": {"modulation": 4}, "mlp in 8 bits": {"bits": 8}}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def make_field(kind: str, **changes) -> MlpField:
    cls, config = FIELDS[kind.split()[0]]
    field = cls(config(**SMALL | KINDS[kind] | changes), seed=1)
    assert isinstance(field, MlpField)
    return field


def round_footprints(deviation: float, count: int) -> torch.Tensor:
    return (deviation**2 * torch.eye(3)).expand(count, 3, 3)


@pytest.mark.parametrize("contraction", ["none", "cube", "sphere"])
def test_a_footprint_of_no_width_is_a_point_of_the_plain_field_exactly(kind, contraction):
    x = torch.randn(100, 3)
    plain = make_field(kind, contraction=contraction).geometry(x)
    found = make_field(kind, contraction=contraction, integrated=True).geometry(x, footprint=torch.zeros(100, 3, 3))
    assert torch.equal(found.density_raw, plain.density_raw)
    assert torch.equal(found.features, plain.features)


def test_detail_finer_than_its_footprint_is_not_seen(kind):
    field = make_field(kind, integrated=True, extent=2.0)
    if kind == "cam":  # its planes are read at points
        with torch.no_grad():
            field.density.grids[:, :, :, 0], field.density.grids[:, :, :, 1] = 1, 0  # type: ignore[index]
    x = torch.rand(200, 3) * 3.9 - 1.95
    near = x + 0.03  # nearly two waves of the finest octave, whose length is 4 / 2^8
    sharp, wide = (round_footprints(deviation, 200) for deviation in (1e-5, 0.3))

    def change(footprint):
        return (
            field.geometry(near, footprint=footprint).features - field.geometry(x, footprint=footprint).features
        ).std()

    assert float(change(wide).detach()) < 0.2 * float(change(sharp).detach())


@pytest.mark.parametrize(("contraction", "extent"), [("none", 1.0), ("none", 3.0), ("cube", 1.0)])
def test_a_point_without_footprint_is_as_wide_as_the_config_says(kind, contraction, extent):
    field = make_field(kind, integrated=True, point_deviation=0.05, contraction=contraction, extent=extent)
    x = torch.rand(50, 3) * 1.8 - 0.9  # where space is not folded
    found = field.geometry(x, footprint=round_footprints(0.05, 50)).density_raw
    torch.testing.assert_close(field.geometry(x).density_raw, found)
    assert not torch.equal(found, field.geometry(x, footprint=round_footprints(0.2, 50)).density_raw)


def test_footprints_are_folded_as_space_is():
    field, x = make_field("mlp", integrated=True, contraction="cube"), torch.randn(50, 3) * 4
    footprint = 1e-3 * torch.randn(50, 3, 1).square() * torch.eye(3)
    variance = to_unit_cube_variance(x, footprint, "cube", 1.0)
    found = field.density(field.encoding(field.to_unit(x), variance))[:, 0]
    assert torch.equal(field.geometry(x, footprint=footprint).density_raw, found)


def test_only_fields_that_integrate_look_at_footprints(kind):
    field, x = make_field(kind), torch.rand(20, 3)
    assert not field.integrates
    wide = field.geometry(x, footprint=round_footprints(0.5, 20)).density_raw
    assert torch.equal(wide, field.geometry(x).density_raw)
    assert make_field(kind, integrated=True).integrates
    assert [name for name, (cls, config) in FIELDS.items() if cls(config()).integrates] == []


@pytest.mark.parametrize("contraction", ["none", "sphere"])
def test_gradients_reach_every_parameter_and_the_position(kind, contraction):
    field = make_field(kind, integrated=True, contraction=contraction)
    x = (torch.rand(100, 3) * 2 - 1).requires_grad_()
    geometry = field.geometry(x, footprint=round_footprints(0.01, 100))
    (geometry.density_raw.sum() + geometry.features.sum()).backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in field.density.parameters())


def test_a_model_file_says_that_and_how_the_field_integrates(kind, tmp_path):
    field = make_field(kind, integrated=True, point_deviation=0.02)
    Model(field, OccupancyGrid(resolution=8), MarchConfig(), Similarity.identity()).save(tmp_path / "m.safetensors")
    loaded = Model.load(tmp_path / "m.safetensors").representation
    assert loaded.integrates
    assert loaded.config == field.config
    x, footprint = torch.rand(20, 3), round_footprints(0.04, 20)
    # a network in 8 bits is rounded once more as it is written
    torch.testing.assert_close(
        loaded.geometry(x, footprint=footprint).density_raw, field.geometry(x, footprint=footprint).density_raw
    )
    torch.testing.assert_close(loaded.geometry(x).density_raw, field.geometry(x).density_raw)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"encoding": "fourier", "density_skip": None}, "only octaves can be integrated over footprints; .* 'fourier'"),
        ({"point_deviation": -1.0}, "point_deviation must be 0 or more"),
        ({"point_deviation": float("nan")}, "point_deviation must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_named(changes, text):
    with pytest.raises(ConfigError, match=text):
        make_field("mlp", integrated=True, **changes)
