"""A lattice that asks its teacher at the vertices looks like it before it has learned anything."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.ball_model import MARCH, ball_model

from polyfield.fields import Model
from polyfield.fields.convert import SHORTCUTS, Teacher, TeacherRays, finer, orbit_cameras
from polyfield.fields.convert.shortcuts import sample_grid
from polyfield.fields.ops.activations import density_from_raw, log_density, raw_of_log_density
from polyfield.fields.radiance import GridField, GridFieldConfig, HashField
from polyfield.fields.radiance.grid import EMPTY
from polyfield.fields.render import render_rays


def directions(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)


@pytest.mark.parametrize("activation", ["exp", "softplus", "relu"])
def test_raw_values_are_those_of_a_density(activation):
    values = torch.linspace(-2, 8, 41).double()
    raw = raw_of_log_density(values, activation)
    torch.testing.assert_close(density_from_raw(raw, activation), values.exp())
    torch.testing.assert_close(log_density(raw, activation), values)
    nothing = raw_of_log_density(torch.tensor([-math.inf, -20.0]), activation)
    assert float(density_from_raw(nothing, activation).max()) <= 1e-8
    assert bool((raw_of_log_density(torch.tensor([60.0]), activation)).isfinite())


@pytest.mark.parametrize(("contraction", "extent"), [("none", 1.0), ("none", 2.5), ("cube", 1.0), ("sphere", 1.0)])
def test_vertices_lie_where_the_field_reads_its_rows(contraction, extent):
    field = GridField(GridFieldConfig(first_cells=8, doublings=0, contraction=contraction, extent=extent))
    unit = field.to_unit(field.vertices()) * 8
    inside = (unit > 0.5) & (unit < 7.5)  # a contraction's border is at infinity, and a ball's corners beyond
    if contraction == "sphere":
        inside &= ((unit / 8 - 0.5).norm(dim=1) < 0.49)[:, None]
    rows = inside.all(1)
    expected = (field.index >= 0).nonzero().float()
    torch.testing.assert_close(unit[rows], expected[rows], atol=2e-4, rtol=0)
    field.set_log_density(torch.linspace(-5, 5, len(unit)))
    raw = field.geometry(field.vertices()[rows]).density_raw
    torch.testing.assert_close(raw, torch.linspace(-5, 5, len(unit))[rows], atol=2e-2, rtol=0)


def test_a_sampled_lattice_looks_like_its_teacher():
    model = ball_model()
    teacher = Teacher(model)
    student = GridField(GridFieldConfig(first_cells=12, doublings=1))
    sample_grid(student, teacher, directions(40))
    assert student.config.cells == 24  # the teacher's vertices
    rays = TeacherRays(teacher, orbit_cameras(model.occupancy.occupied_box()), rays=16, seed=0).rays(3000, 0)
    white = torch.ones(3)
    mine, theirs = (render_rays(f, model.occupancy, rays, MARCH, white).rgb for f in (student, teacher.field))
    assert float((mine - theirs).abs().max()) < 0.02
    assert len(student.density) < 24**3  # what is empty is not stored


def test_colours_that_depend_on_the_direction_are_kept():
    model = ball_model()
    field = model.representation
    assert isinstance(field, GridField)
    with torch.no_grad():
        field.harmonics.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.3)
    student = GridField(GridFieldConfig(first_cells=24, doublings=0))
    sample_grid(student, Teacher(model), directions(400))
    x, d = torch.rand(500, 3) - 0.5, directions(500)
    features = torch.empty(500, 0)
    mine, theirs = (f.radiance(features, d, x=x) for f in (student, field))
    assert float((mine - theirs).square().mean().sqrt()) < 0.1 * float(theirs.std())


def test_empty_space_of_the_teacher_is_empty_in_the_lattice():
    model = ball_model()
    with torch.no_grad():
        model.representation.density.add_(3.0)  # type: ignore[operator]  # fog where the occupancy grid says nothing is
    student = GridField(GridFieldConfig(first_cells=24, doublings=0))
    sample_grid(student, Teacher(model), directions(16))
    raw = student.geometry(torch.tensor([[0.9, 0.9, 0.9], [0.0, 0.0, 0.0]])).density_raw
    assert float(raw[0]) == pytest.approx(EMPTY["exp"])
    assert float(raw[1]) == pytest.approx(math.log(60.0) + 3.0, abs=1e-3)


def test_a_lattice_is_finer_where_its_teacher_leaves_room_for_it():
    model = ball_model()
    rows = float(model.occupancy.flags().float().mean()) * 160**3
    config = GridFieldConfig(first_cells=32, most_rows=int(1.35 * rows))
    hashed = Teacher(Model(HashField(), model.occupancy, MARCH, model.to_dataset))
    assert finer(config, hashed) == replace(config, first_cells=40)
    assert finer(replace(config, most_rows=int(1.3 * rows)), hashed).first_cells == 32
    assert finer(replace(config, contraction="cube"), hashed).first_cells == 32
    assert finer(config, Teacher(model)) == config


def test_the_table_names_fields_of_scenes(tmp_path):
    assert set(SHORTCUTS) == {GridField}
    model = ball_model()
    student = GridField(GridFieldConfig(first_cells=12, doublings=1))
    sample_grid(student, Teacher(model), directions(16))
    Model(student, model.occupancy, MARCH, model.to_dataset).save(tmp_path / "m.safetensors")
    assert Model.load(tmp_path / "m.safetensors").representation.config == student.config
