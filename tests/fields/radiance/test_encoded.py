"""Fields of an encoding and two networks keep the contract of radiance fields."""

from __future__ import annotations

import pytest
import torch

from polyfield.fields.errors import ConfigError
from polyfield.fields.ops.hash_encode import HashGridSpec
from polyfield.fields.radiance import FIELDS, EncodedField, EncodedFieldConfig, HashFieldConfig, RbfFieldConfig

SMALL = {
    "hash": {"grid": HashGridSpec(levels=4, base_resolution=4, finest_resolution=32, log2_table_size=10)},
    "tensor": {"components": 6, "first_voxels": 12**3, "final_voxels": 30**3},
    "planes": {"channels": 6, "first_voxels": 12**3, "final_voxels": 30**3},
    "rbf": {
        "grid": HashGridSpec(levels=4, base_resolution=4, finest_resolution=32, log2_table_size=10),
        "density_width": 16,
    },
    "mlp": {"octaves": 3, "density_width": 16, "density_layers": 3, "density_skip": 1},
    "cam": {"octaves": 3, "density_width": 16, "density_layers": 3, "density_skip": 1, "modulation": 4},
}
SCALE = {"hash": 3e3, "tensor": 5.0, "planes": 1.0, "rbf": 1e3}
"""What makes the features of an untrained table matter."""


@pytest.fixture(params=SMALL)
def kind(request) -> str:
    return request.param


def make_field(kind: str, seed: int = 1, **changes) -> EncodedField:
    cls, config = FIELDS[kind]
    field = cls(config(**SMALL[kind], **changes), seed=seed)  # type: ignore[call-arg]
    assert isinstance(field, EncodedField)
    with torch.no_grad():
        for table in field.encoding.parameters():
            table.mul_(SCALE[kind])
    return field


def test_every_such_field_is_tested_here():
    assert set(SMALL) == {name for name, (_, config) in FIELDS.items() if issubclass(config, EncodedFieldConfig)}


@pytest.mark.parametrize("count", [0, 1, 33])
def test_shapes_are_those_of_the_contract(kind, count):
    field = make_field(kind)
    x, d = torch.rand(count, 3) * 2 - 1, torch.nn.functional.normalize(torch.randn(count, 3), dim=1)
    geometry = field.geometry(x)
    assert geometry.density_raw.shape == (count,)
    assert geometry.features.shape == (count, field.feature_count)
    rgb = field.radiance(geometry.features, d)
    assert rgb.shape == (count, 3)
    assert bool(((rgb >= 0) & (rgb <= 1)).all())


def test_density_does_not_depend_on_direction_and_colour_does(kind):
    field = make_field(kind)
    features = field.geometry(torch.rand(50, 3) * 2 - 1).features
    a = torch.nn.functional.normalize(torch.randn(50, 3), dim=1)
    assert float((field.radiance(features, a) - field.radiance(features, -a)).detach().abs().max()) > 1e-4


@pytest.mark.parametrize("extent", [1.0, 4.0])
def test_outside_its_bounds_a_field_answers_as_at_the_nearest_point(kind, extent):
    field = make_field(kind, extent=extent)
    x = torch.randn(200, 3) * 3 * extent
    inside = x.clamp(-extent, extent)
    torch.testing.assert_close(field.geometry(x).density_raw, field.geometry(inside).density_raw)


def test_contraction_covers_all_of_space(kind):
    field = make_field(kind, contraction="sphere")
    unit = field.to_unit(torch.randn(500, 3) * torch.logspace(-3, 6, 500)[:, None])
    assert bool(((unit >= 0) & (unit <= 1)).all())


def test_gradients_reach_every_parameter_and_the_position(kind):
    field = make_field(kind)
    x = (torch.rand(100, 3) * 2 - 1).requires_grad_()
    geometry = field.geometry(x)
    loss = geometry.density_raw.sum() + field.radiance(geometry.features, torch.eye(3)[torch.arange(100) % 3]).sum()
    loss.backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in field.parameters())


def test_one_seed_gives_one_field(kind):
    a, b, c = (make_field(kind, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"contraction": "cone"}, "contraction must be one of"),
        ({"extent": 0.0}, "extent must be positive"),
        ({"features": 16}, "features must be 1 to 15"),
        ({"sh_bands": 5}, "sh_bands must be 1 to 4"),
    ],
)
def test_settings_out_of_range_are_named(changes, text):
    with pytest.raises(ConfigError, match=text):
        HashFieldConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"density_width": 0}, "density_width must be 1 to 1024 Gaussian units; got 0"),
        ({"density_layers": 2}, "Gaussian units are one layer"),
        ({"density_skip": 1}, "Gaussian units are one layer"),
        ({"weight_lr": 0.0}, "learning rates must be positive; got 0 and 0.01"),
    ],
)
def test_settings_that_no_gaussian_layer_has_are_named(changes, text):
    with pytest.raises(ConfigError, match=text):
        RbfFieldConfig(**changes)


def test_a_scene_of_gaussian_units_begins_with_density_one_everywhere():
    geometry = make_field("rbf").geometry(torch.rand(50, 3) * 2 - 1)
    assert torch.equal(geometry.density_raw, torch.zeros(50))
    assert float(geometry.features.std()) > 0.01
