"""The grid field grows: half the pitch round what is dense, and there it says what it said; its files are checked."""

from __future__ import annotations

import json

import pytest
import torch

from polyfield.fields import Model, Similarity
from polyfield.fields.encodings.sparse_lattice import dilated, halved
from polyfield.fields.errors import ConfigError, FormatError, ShapeError
from polyfield.fields.formats.model_file import read_tensors, write_tensors
from polyfield.fields.geometry import Rays
from polyfield.fields.ops.activations import density_from_raw
from polyfield.fields.radiance import GridField, GridFieldConfig
from polyfield.fields.radiance.grid import FIRST_DENSITY, LEAST_THICKNESS, STAGES
from polyfield.fields.render import MarchConfig, OccupancyGrid, render_rays

CELLS = 16
CENTRE, RADIUS = torch.tensor([0.2, -0.1, 0.0]), 0.45


def make_field(**changes) -> GridField:
    return GridField(GridFieldConfig(**({"first_cells": CELLS} | changes)), seed=1)  # type: ignore[arg-type]


def ball(**changes) -> GridField:
    """Dense within a ball, nearly empty outside it; random colours."""
    field = make_field(**changes)
    with torch.no_grad():
        inside = (vertices(field) - CENTRE).norm(dim=1) < RADIUS
        field.density.copy_(torch.where(inside, 12.0, 0.5)[:, None])
        field.harmonics.copy_(torch.randn(field.harmonics.shape, generator=torch.Generator().manual_seed(1)))
    return field


def vertices(field: GridField) -> torch.Tensor:
    """(V, 3) scene positions of the stored vertices, by row."""
    config = field.config
    at = (field.index >= 0).nonzero() + torch.tensor(config.corners[0])
    return (at / config.cells * 2 - 1) * config.extent


def model_of(field: GridField) -> Model:
    return Model(field, OccupancyGrid(resolution=16), MarchConfig(), Similarity.identity())


def near(points: torch.Tensor, distance: float) -> torch.Tensor:
    return points[(points - CENTRE).norm(dim=1) < distance]


def answers(field: GridField, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    directions = torch.nn.functional.normalize(x + 3, dim=1)
    geometry = field.geometry(x)
    return geometry.density_raw, field.radiance(geometry.features, directions, x=x)


def test_a_refined_field_says_what_it_said_where_it_is_dense():
    field = ball(extent=1.5).double()  # positions too must not be rounded
    edge = 2 * 1.5 / (2 * CELLS)  # at the second refinement
    x = torch.cat([torch.rand(20000, 3) * 3 - 1.5, vertices(field)]).double()
    x = x[density_from_raw(field.geometry(x).density_raw, "exp") * edge > LEAST_THICKNESS]
    assert len(x) > 100
    before = answers(field, x)
    assert field.grow(1.0, pytest.fail)
    assert field.config.stage == 2
    for new, old in zip(answers(field, x), before, strict=True):
        torch.testing.assert_close(new, old, atol=1e-9, rtol=0)


def test_a_refined_field_is_empty_far_from_what_is_dense_and_draws_in_its_box():
    field = ball()
    assert field.grow(STAGES[0], pytest.fail)
    assert 0 < field.config.rows < field.index.numel() < (2 * CELLS + 1) ** 3
    low, high = (torch.tensor(corner) / field.config.cells * 2 - 1 for corner in field.config.corners)
    reach = RADIUS + 3 * 2 / CELLS  # a vertex for the blend, one for the dilation, the ring of empty ones
    assert bool((low >= CENTRE - reach).all() and (low < CENTRE - RADIUS).all())
    assert bool((high <= CENTRE + reach).all() and (high > CENTRE + RADIUS).all())
    far = torch.rand(1000, 3) * 2 - 1
    far = far[((far < low) | (far > high)).any(1)]
    assert len(far) > 100
    assert bool((field.geometry(far).density_raw == -8).all())


def test_pruning_keeps_what_is_rendered():
    field = ball()
    angle = torch.linspace(0, 6, 300)
    origins = torch.stack([3 * angle.cos(), 3 * angle.sin(), angle / 6 - 0.5], 1)
    rays = Rays(origins, torch.nn.functional.normalize(CENTRE + 0.2 * angle.sin()[:, None] - origins, dim=1))
    occupancy, march = OccupancyGrid(resolution=16), MarchConfig(step_size=0.02)
    before = render_rays(field, occupancy, rays, march, torch.ones(3))
    field.grow(STAGES[0], pytest.fail)
    after = render_rays(field, occupancy, rays, march, torch.ones(3))
    assert float(before.alpha.min()) > 0.99
    torch.testing.assert_close(after.rgb, before.rgb, atol=2e-3, rtol=0)  # what was thinner than the threshold is gone


def test_it_grows_once_a_stage():
    field = ball()
    for k, at in enumerate(STAGES):
        assert not field.grow(at - 0.01, pytest.fail)
        assert field.grow(at, pytest.fail)
        assert field.config.stage == k + 1
        assert not field.grow(at, pytest.fail)
        assert field.density.shape[0] == field.harmonics.shape[0] == field.config.rows
        field.check()


def test_where_nothing_is_dense_nothing_is_given_up():
    field = make_field()
    assert field.grow(STAGES[0], pytest.fail)
    assert field.config.box == (0, 0, 0, 32, 32, 32)
    assert field.config.rows == 33**3


def test_too_many_rows_end_the_growth():
    field = ball(most_rows=1000)
    assert not field.grow(1.0, pytest.fail)
    assert (field.config.stage, field.config.doublings) == (0, 0)


def test_vertices_are_dilated_and_halved():
    mask = torch.zeros(5, 6, 7, dtype=torch.bool)
    mask[0, 2, 3] = mask[4, 5, 6] = True
    expected = torch.nn.functional.max_pool3d(mask[None].float(), 3, stride=1, padding=1)[0] > 0
    assert torch.equal(dilated(mask), expected)
    fine = halved(expected)
    assert fine.shape == (9, 11, 13)
    assert torch.equal(fine[::2, ::2, ::2], expected)
    assert torch.equal(fine[1::2, ::2, ::2], expected[1:] & expected[:-1])
    assert torch.equal(fine[::2, 1::2, 1::2], halved(expected)[::2, 1::2, 1::2])
    both = expected[:, 1:] & expected[:, :-1]
    assert torch.equal(fine[::2, 1::2, 1::2], both[:, :, 1:] & both[:, :, :-1])


def test_a_field_takes_the_shape_that_another_has_grown_to():
    grown, other = ball(), make_field()
    grown.grow(STAGES[0], pytest.fail)
    other.regrow(json.loads(json.dumps(grown.growth())))
    other.load_state_dict(grown.state_dict())
    other.check()
    x = near(torch.randn(2000, 3), 1)
    assert all(torch.equal(a, b) for a, b in zip(answers(grown, x), answers(other, x), strict=True))


def test_the_prior_smooths_and_ends_with_the_last_refinement():
    field = ball(density_variation=1e-3, color_variation=1e-3)

    def prior(step: int) -> torch.Tensor:
        for parameter in field.parameters():
            parameter.grad = torch.zeros_like(parameter)
        field.add_prior_gradients(step, seed=3)
        assert field.density.grad is not None
        assert field.harmonics.grad is not None
        return torch.cat([field.density.grad, field.harmonics.grad], 1)

    touched = [(prior(step) != 0).any(1) for step in range(3)]
    assert all(0 < int(t.sum()) <= 0.01 * len(t) for t in touched)
    assert not torch.equal(touched[0], touched[1])
    assert torch.equal(prior(0), prior(0))
    field.grow(1.0, pytest.fail)
    assert not bool(prior(0).any())


def test_colours_need_positions():
    with pytest.raises(ShapeError, match="give x"):
        make_field().radiance(torch.zeros(2, 0), torch.eye(3)[:2])


def test_a_model_file_keeps_what_has_grown(tmp_path):
    field = ball()
    field.grow(STAGES[0], pytest.fail)
    model_of(field).save(tmp_path / "m.safetensors")
    loaded = Model.load(tmp_path / "m.safetensors")
    assert loaded.kind == "grid"
    assert loaded.representation.config == field.config
    assert isinstance(loaded.representation, GridField)
    x = near(torch.randn(2000, 3), 1)
    assert all(torch.equal(a, b) for a, b in zip(answers(field, x), answers(loaded.representation, x), strict=True))


def _rewritten(path, config: dict, tensors: dict) -> None:
    header, held = read_tensors(path, kind="model")
    header = {k: v for k, v in header.items() if k not in ("format", "version")}
    write_tensors(path, header | {"config": header["config"] | config}, held | tensors)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"rows": 10**12}, "rows must be at most the vertices of the box"),
        ({"rows": -1}, "rows must be at most the vertices of the box"),
        ({"box": [0, 0, 0, 33, 4, 4]}, "box must be a first and a last vertex from 0 to 32; got"),
        ({"box": [0, 0, 4]}, "box must be a first and a last vertex"),
        ({"box": [0, 0, 0, 4.5, 4, 4]}, "box must be a first and a last vertex"),
        ({"box": 7}, "box must be a first and a last vertex"),
        ({"stage": 3}, "0 <= stage <= doublings <= 2 must hold; got 3 and 2"),
        ({"first_cells": 1 << 20}, "first_cells must be 4 to 512"),
        ({"first_cells": 512, "stage": 2, "box": [], "rows": 9}, "rows must be at most"),
        ({"most_rows": 1 << 40, "rows": 1 << 35}, "most_rows must be"),
        ({"rows": 77}, "must be"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path, config, text):
    field = ball()
    field.grow(STAGES[0], pytest.fail)
    path = tmp_path / "m.safetensors"
    model_of(field).save(path)
    _rewritten(path, config, {})
    with pytest.raises(FormatError, match=text):
        Model.load(path)


@pytest.mark.parametrize("value", [2**31 - 1, -7, 0])
def test_an_index_that_contradicts_the_rows_is_refused(tmp_path, value):
    field = ball()
    field.grow(STAGES[0], pytest.fail)
    path = tmp_path / "m.safetensors"
    model_of(field).save(path)
    index = field.index.clone()
    index[tuple((index == index.max()).nonzero()[0])] = value
    _rewritten(path, {}, {"representation.index": index})
    with pytest.raises(FormatError, match="index must number the"):
        Model.load(path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"contraction": "cone"}, "contraction must be one of"),
        ({"extent": 0.0}, "extent must be positive"),
        ({"sh_bands": 5}, "sh_bands must be 1 to 4"),
        ({"density_activation": "cube"}, "density_activation must be one of exp, softplus, relu; got 'cube'"),
        ({"doublings": 3}, "0 <= stage <= doublings <= 2 must hold"),
        ({"most_rows": 1 << 30}, "most_rows must be"),
    ],
)
def test_settings_out_of_range_are_named(changes, text):
    with pytest.raises(ConfigError, match=text):
        make_field(**changes)


@pytest.mark.parametrize("count", [0, 1, 33])
def test_shapes_are_those_of_the_contract(count):
    field = ball()
    x, d = torch.rand(count, 3) * 2 - 1, torch.nn.functional.normalize(torch.randn(count, 3), dim=1)
    geometry = field.geometry(x)
    assert geometry.density_raw.shape == (count,)
    assert geometry.features.shape == (count, field.feature_count) == (count, 0)
    rgb = field.radiance(geometry.features, d, x=x)
    assert rgb.shape == (count, 3)
    assert bool(((rgb >= 0) & (rgb <= 1)).all())


@pytest.mark.parametrize("activation", ["exp", "softplus", "relu"])
def test_it_begins_as_a_haze_of_the_density_stated(activation):
    field = make_field(density_activation=activation)
    raw = field.geometry(torch.rand(100, 3) * 2 - 1).density_raw
    torch.testing.assert_close(density_from_raw(raw, activation), torch.full((100,), FIRST_DENSITY))


def test_outside_its_bounds_it_answers_as_at_the_nearest_point():
    field = ball(extent=2.0)
    x = torch.randn(200, 3) * 6
    torch.testing.assert_close(field.geometry(x).density_raw, field.geometry(x.clamp(-2, 2)).density_raw)


def test_contraction_covers_all_of_space():
    unit = make_field(contraction="cube").to_unit(torch.randn(500, 3) * torch.logspace(-3, 6, 500)[:, None])
    assert bool(((unit >= 0) & (unit <= 1)).all())
    assert float(unit.amax()) > 0.99


def test_gradients_reach_every_parameter_and_the_position():
    field = ball()
    x = (torch.rand(100, 3) * 2 - 1).requires_grad_()
    raw, rgb = answers(field, x)
    (raw.sum() + rgb.sum()).backward()
    assert x.grad is not None
    assert bool((x.grad != 0).any(1).all())
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in field.parameters())


def test_harmonics_have_sparse_gradients_for_who_takes_them_once_nothing_smooths_the_field():
    field = ball()
    x = near(torch.randn(500, 3, generator=torch.Generator().manual_seed(2)), RADIUS)

    def gradient() -> torch.Tensor:
        field.harmonics.grad = None
        answers(field, x)[1].square().sum().backward()
        assert field.harmonics.grad is not None
        return field.harmonics.grad

    field.sparse_gradients = True
    assert not gradient().is_sparse
    field.grow(1.0, pytest.fail)
    found = gradient()
    assert found.is_sparse
    field.sparse_gradients = False
    assert torch.equal(found.to_dense(), gradient())
