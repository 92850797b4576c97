"""Tensors and planes grow: finer, into the box that is occupied, and what they say there stays what it was."""

from __future__ import annotations

import pytest
import torch

from polyfield.fields.errors import ConfigError
from polyfield.fields.radiance import FIELDS, PlanesField, PlanesFieldConfig, TensorField
from polyfield.fields.radiance.factored import STAGES

BOX = torch.tensor([[-0.5, -0.25, -1.0], [0.5, 0.75, 0.1]])
KINDS = {
    "vm": ("tensor", {"form": "vm", "components": 5}),
    "cp": ("tensor", {"form": "cp", "components": 5}),
    "product": ("planes", {"combination": "product", "channels": 4, "scales": 2}),
    "sum": ("planes", {"combination": "sum", "channels": 4, "scales": 2}),
}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def make_field(kind: str, **changes) -> TensorField | PlanesField:
    name, config = KINDS[kind]
    cls, config_class = FIELDS[name]
    made = cls(config_class(**{"first_voxels": 30**3, "final_voxels": 60**3, **config, **changes}), seed=1)
    assert isinstance(made, TensorField | PlanesField)
    return made


def test_a_refined_field_says_nearly_what_it_said(kind):
    field = make_field(kind)
    with torch.no_grad():  # smooth, so that finer texels can say the same
        for factor in field.encoding.spec.factors():
            b, a, c = factor.shape
            first = factor.first // c
            u, v = torch.linspace(0, 1, a)[None, :, None], torch.linspace(0, 1, b)[:, None, None]
            values = (3 * u + torch.arange(c)).sin() + (2 * v + torch.arange(c)).cos()
            field.encoding.table[first : first + a * b] = values.reshape(-1, c)
    x = BOX[0] + torch.rand(500, 3) * (BOX[1] - BOX[0])
    before = field.geometry(x)
    assert field.grow(1.0, lambda: BOX)
    after = field.geometry(x)
    torch.testing.assert_close(after.density_raw, before.density_raw, atol=0.02, rtol=0.02)
    torch.testing.assert_close(after.features, before.features, atol=0.02, rtol=0.02)


def test_it_grows_once_a_stage_and_draws_in_its_box(kind):
    field = make_field(kind)
    sizes = [field.encoding.table.shape[0]]
    for k, at in enumerate(STAGES):
        assert not field.grow(at - 0.01, lambda: BOX)
        assert field.grow(at, lambda: BOX)
        assert field.config.stage == k + 1
        assert not field.grow(at, lambda: BOX)
        sizes.append(field.encoding.table.shape[0])
    assert sizes == sorted(sizes)
    low, high = torch.tensor(field.config.box).view(2, 3)
    assert bool((low <= BOX[0]).all() and (high >= BOX[1]).all())
    assert bool((high - low < torch.tensor([1.2, 1.2, 1.3])).all())
    assert torch.tensor(field.config.resolution).prod() == pytest.approx(60**3, rel=0.05)


def test_nothing_occupied_leaves_the_box_alone(kind):
    field = make_field(kind)
    assert field.grow(1.0, lambda: torch.tensor([[-1.0] * 3, [1.0] * 3]))
    assert field.config.box == (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)


def test_a_field_takes_the_shape_that_another_has_grown_to(kind):
    grown, other = make_field(kind), make_field(kind)
    grown.grow(0.1, lambda: BOX)
    other.regrow(grown.growth())
    other.load_state_dict(grown.state_dict())
    x = torch.rand(50, 3) * 2 - 1
    assert torch.equal(other.geometry(x).density_raw, grown.geometry(x).density_raw)
    again = type(grown)(grown.config)  # type: ignore[arg-type]
    again.load_state_dict(grown.state_dict())
    assert torch.equal(again.geometry(x).density_raw, grown.geometry(x).density_raw)


@pytest.mark.parametrize(("combination", "features", "terms"), [("product", 12, 3), ("sum", 36, 9)])
def test_scales_lie_side_by_side_each_half_as_fine_as_the_next(combination, features, terms):
    spec = PlanesFieldConfig(combination=combination, channels=4, scales=3, first_voxels=64**3).spec
    assert spec.features == features
    assert [term.resolution[0] for term in spec.terms][:: terms // 3] == [16, 32, 64]
    assert {name for term in spec.terms for name in term.factors} == {"xy", "xz", "yz"}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"first_voxels": 7}, "first_voxels <= final_voxels"),
        ({"first_voxels": 70**3}, "first_voxels <= final_voxels"),
        ({"stage": 6}, "stage must be 0 to 5; got 6"),
        ({"box": (0.0, 0.0, 0.0, 1.0, 1.0, 0.0)}, r"box must be a lower and an upper corner within \[-1, 1\]\^3"),
    ],
)
def test_settings_out_of_range_are_named(kind, changes, text):
    with pytest.raises(ConfigError, match=text):
        make_field(kind, **changes)


def test_settings_of_planes_out_of_range_are_named():
    with pytest.raises(ConfigError, match="scales must be 1 to 6; got 0"):
        PlanesFieldConfig(scales=0)
    with pytest.raises(ConfigError, match="combination must be product or sum; got 'mean'"):
        PlanesFieldConfig(combination="mean")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="variation must not be negative; got -1"):
        PlanesFieldConfig(variation=-1)


@pytest.mark.parametrize("combination", ["product", "sum"])
def test_planes_begin_as_a_thin_haze_for_every_seed(combination):
    x = torch.rand(100, 3) * 2 - 1
    for seed in range(8):
        config = PlanesFieldConfig(combination=combination, first_voxels=16**3)
        raw = PlanesField(config, seed=seed).geometry(x).density_raw
        assert float(raw.detach().abs().max()) < 1
