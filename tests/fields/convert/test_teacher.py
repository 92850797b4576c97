"""What the teacher says is what its model shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.ball_model import ball_model

from polyfield.fields import ConfigError, Model, OccupancyGrid
from polyfield.fields.convert import Teacher, TeacherRays, orbit_cameras
from polyfield.fields.convert.teacher import NOTHING, POOL_STEPS
from polyfield.fields.radiance import GridField, MlpField, MlpFieldConfig
from polyfield.fields.render import render


def grid_of(model: Model) -> GridField:
    assert isinstance(model.representation, GridField)
    return model.representation


def source(rays: int = 512, seed: int = 0) -> TeacherRays:
    model = ball_model()
    return TeacherRays(Teacher(model), orbit_cameras(model.occupancy.occupied_box()), rays=rays, seed=seed)


def test_where_the_occupancy_is_empty_so_is_the_teacher_whatever_its_field_says():
    model = ball_model()
    with torch.no_grad():
        grid_of(model).density.add_(6)  # fog of density exp(-2), which the grid does not know
    x = torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.9, 0.9]])
    fog = float(model.representation.geometry(x).density_raw[1])
    answers = Teacher(model).at(x, torch.nn.functional.normalize(x + 1, dim=1))
    assert fog == pytest.approx(-2)
    assert float(answers.density_raw[1]) == NOTHING
    assert float(answers.density_raw[0]) > 4
    torch.testing.assert_close(answers.rgb[0], torch.full((3,), 0.5), atol=1e-3, rtol=0)


def test_rays_see_what_is_rendered():
    model = ball_model()
    camera = orbit_cameras(model.occupancy.occupied_box(), 3, size=20)[1:2]
    rgb, alpha = Teacher(model).seen(camera.image_rays(0))
    frame = render(model, camera, background="black", stop=model.march.stop)
    torch.testing.assert_close(rgb.clamp(0, 1), frame.rgb.reshape(-1, 3))
    torch.testing.assert_close(alpha, frame.alpha.reshape(-1))


def test_a_batch_depends_on_step_and_count_alone():
    first, second = source(), source()
    for step in (0, 5, POOL_STEPS):
        first.batch(step, 100)
    for step in (POOL_STEPS + 3, 2):
        a, b = first.batch(step, 77), second.batch(step, 77)
        assert torch.equal(a.targets, b.targets)
        assert torch.equal(a.rays.directions, b.rays.directions)
    other = source(seed=1).batch(2, 77)
    assert not torch.equal(other.targets, b.targets)


def test_targets_are_on_the_batchs_backgrounds():
    batch = source(rays=2000).batch(0, 2000)
    alpha = Teacher(ball_model()).seen(batch.rays)[1]
    through = alpha == 0
    assert 100 < int(through.sum()) < 1900
    torch.testing.assert_close(batch.targets[through], batch.backgrounds[through])
    assert not torch.equal(batch.targets[~through], batch.backgrounds[~through])


def test_a_teacher_that_is_damaged_or_empty_is_refused():
    model = ball_model()
    nothing = OccupancyGrid(resolution=32)
    nothing.take_flags(torch.zeros_like(nothing.flags()))
    with pytest.raises(ConfigError, match="the model to convert is empty"):
        Teacher(replace(model, occupancy=nothing))
    with torch.no_grad():
        grid_of(model).density[3] = float("nan")
    with pytest.raises(ConfigError, match="damaged: density holds values that are not finite"):
        Teacher(model)


def test_a_teacher_that_integrates_is_seen_through_the_cones_of_pixels():
    model = ball_model()
    field = MlpField(MlpFieldConfig(integrated=True, density_width=16, density_layers=2, density_skip=None))
    teacher = Teacher(replace(model, representation=field))
    rays = TeacherRays(teacher, orbit_cameras(model.occupancy.occupied_box(), size=8), rays=64, seed=0).rays(64, 0)
    assert rays.radii is not None
    assert source().rays(64, 0).radii is None
    wide, lines = (teacher.seen(rays._replace(radii=radii))[0] for radii in (4 * rays.radii, None))
    assert float((wide - lines).abs().max()) > 1e-3


def test_radii_are_nothing_to_a_field_that_does_not_integrate():
    teacher, rays = Teacher(ball_model()), source().rays(64, 0)
    for a, b in zip(teacher.seen(rays), teacher.seen(rays._replace(radii=torch.ones(64))), strict=True):
        assert torch.equal(a, b)
