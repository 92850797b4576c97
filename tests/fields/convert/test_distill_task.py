"""A step compares what it should, and empty and solid space come out true wherever the student starts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.ball_model import MARCH, ball_field, ball_model
from torch import Tensor

from polyfield.fields import FIELDS, ConfigError, Model, OccupancyGrid, RadianceField
from polyfield.fields.convert import (
    DistillTask,
    DistillWeights,
    Teacher,
    TeacherRays,
    inherit,
    orbit_cameras,
)
from polyfield.fields.convert.losses import density_error
from polyfield.fields.convert.points import POOLS
from polyfield.fields.convert.task import TRANSLATED, weights_for
from polyfield.fields.networks import MLP
from polyfield.fields.ops.composite import composite
from polyfield.fields.ops.hash_encode import HashGridSpec
from polyfield.fields.optim.field_task import RadianceTaskConfig
from polyfield.fields.optim.loop import LoopConfig, optimise
from polyfield.fields.radiance import (
    GridField,
    GridFieldConfig,
    HashField,
    HashFieldConfig,
    MlpField,
    MlpFieldConfig,
    PlanesFieldConfig,
    TensorField,
    TensorFieldConfig,
)
from polyfield.fields.render import render_rays

SMALL = {
    "tensor": TensorFieldConfig(first_voxels=8**3, final_voxels=8**3),
    "planes": PlanesFieldConfig(first_voxels=8**3, final_voxels=8**3),
    "grid": GridFieldConfig(first_cells=8),
}
RAYS_ONLY = DistillWeights(points_until=0.0)
GRID = HashGridSpec(levels=4, channels=2, base_resolution=8, finest_resolution=32, log2_table_size=12)


def task_of(field: RadianceField, teacher: Model, *, samples: int = 8192, **changes) -> DistillTask:
    """A task that marches rays from the first step, but for other `weights`."""
    asked = Teacher(teacher)
    rays = TeacherRays(asked, orbit_cameras(teacher.occupancy.occupied_box()), rays=1024, seed=0)
    config = RadianceTaskConfig(samples=samples, first_rays=256)
    occupancy = OccupancyGrid(cascades=1, resolution=16)
    return DistillTask(field, occupancy, MARCH, rays, config, asked, **{"weights": RAYS_ONLY, **changes})


def likeness(task: DistillTask) -> float:
    """PSNR of the student, by its own grid, against the teacher."""
    assert isinstance(task.source, TeacherRays)
    rays = task.source.rays(2000, -1)
    rgb, alpha = task.teacher.seen(rays)
    white = torch.ones(3)
    mine = render_rays(task.field, task.occupancy, rays, MARCH, white).rgb
    return float(-10 * (mine - rgb - (1 - alpha[:, None])).square().mean().log10())


def small_hash() -> HashField:
    return HashField(HashFieldConfig(grid=GRID, density_width=16, color_width=16))


@torch.no_grad()
def test_losses_are_the_sums_by_hand():
    task = task_of(small_hash(), ball_model(), samples=1024)
    batch = task.source.batch(0, 40)
    samples = task._samples(batch, 0, task.occupancy)
    losses, squared = task.losses(batch, samples, 0)
    field, teacher = task.field, task.teacher
    errors, density, color, total, total_taught = [], 0.0, 0.0, 0.0, 0.0
    for ray in range(40):
        rows = samples.rows[samples.offsets[ray] : samples.offsets[ray + 1]].long()
        x, delta = samples.positions[rows], samples.deltas[rows]
        d = batch.rays.directions[ray].expand(len(rows), 3)
        geometry, answers = field.geometry(x), teacher.at(x, d)
        rgb = field.radiance(geometry.features, d, x=x)
        mine, theirs = (weights(raw.exp() * delta) for raw in (geometry.density_raw, answers.density_raw))
        left = float(torch.exp(-(geometry.density_raw.exp() * delta).sum()))
        errors.append((mine[:, None] * rgb).sum(0) + left * batch.backgrounds[ray] - batch.targets[ray])
        apart = density_error(geometry.density_raw + delta.log(), answers.density_raw + delta.log())
        either = torch.maximum(mine, theirs)
        density += float((either * huber(apart, 1.0)).sum())
        color += float((theirs * huber(rgb - answers.rgb, 0.1).mean(1)).sum())
        total, total_taught = total + float(either.sum()), total_taught + float(theirs.sum())
    error = torch.stack(errors)
    assert total_taught > 1
    assert losses.pixels is not None
    assert losses.density is not None
    assert losses.color is not None
    assert float(losses.pixels) == pytest.approx(float(huber(error, 0.1).mean()), rel=1e-4)
    torch.testing.assert_close(squared, error.square().mean(1), rtol=1e-3, atol=1e-6)
    assert float(losses.density) == pytest.approx(density / total, rel=1e-3)
    assert float(losses.color) == pytest.approx(color / total_taught, rel=1e-3)
    assert losses.features is None
    assert losses.empty is not None
    assert float(losses.empty) == pytest.approx(math.log(MARCH.step_size / 1e-3) - 0.5, abs=0.05)  # a density of 1


def weights(x: Tensor) -> Tensor:
    return torch.exp(-(x.cumsum(0) - x)) * -torch.expm1(-x)


def huber(error: Tensor, delta: float) -> Tensor:
    return torch.where(error.abs() < delta, 0.5 * error * error / delta, error.abs() - 0.5 * delta)


def blocks_of(fine: Tensor) -> Tensor:
    """(1, 32, 32, 32) flags -> (1, 16, 16, 16): cells of which a part is set."""
    return fine.reshape(1, 16, 2, 16, 2, 16, 2).any(6).any(4).any(2)


def test_the_students_cells_are_those_that_hold_a_cell_of_the_teachers():
    teacher = ball_model()
    assert torch.equal(task_of(small_hash(), teacher).occupancy.flags(), blocks_of(teacher.occupancy.flags()))
    teacher = ball_model(resolution=8)
    flags = teacher.occupancy.flags()
    for axis in (1, 2, 3):
        flags = flags.repeat_interleave(2, axis)
    task = task_of(small_hash(), teacher)
    assert torch.equal(task.occupancy.flags(), flags)
    assert task.haze == 0


@torch.no_grad()
def test_haze_is_looked_for_in_cells_that_are_the_students_alone():
    teacher = ball_model()
    task = task_of(small_hash(), teacher)
    asked = []
    geometry = task.field.geometry
    task.field.geometry = lambda x: asked.append(x) or geometry(x)  # pyright: ignore[reportAttributeAccessIssue]
    mean = task._haze(3000, 5)
    (x,) = asked
    assert x.shape == (3000, 3)
    assert bool(task.occupancy.holds(x).all())
    assert not bool(teacher.occupancy.holds(x).any())
    assert task.haze == 1024
    assert mean is not None
    assert float(mean) == pytest.approx(math.log(MARCH.step_size / 1e-3) - 0.5, abs=0.05)  # a density of 1


def test_haze_goes():
    field, teacher = small_hash(), ball_model(radius=0.3)
    task = task_of(field, teacher)
    centres = teacher.occupancy.cell_centres()
    fine = blocks_of(teacher.occupancy.flags())
    for axis in (1, 2, 3):
        fine = fine.repeat_interleave(2, axis)
    beyond = centres[fine & ~teacher.occupancy.flags()]
    assert float(field.geometry(beyond).density_raw.min().detach()) > -0.5
    optimise(task, LoopConfig(max_steps=63))
    assert float(field.geometry(beyond).density_raw.median().detach()) < math.log(1e-3 / MARCH.step_size) + 1


def test_what_a_student_makes_of_the_teachers_empty_space_is_not_seen():
    task = task_of(ball_field(radius=0.9, density=200.0), ball_model(radius=0.4))
    task.finish(0)
    x = torch.tensor([[0.7, 0.0, 0.0], [0.0, -0.6, 0.3], [0.0, 0.0, 0.0]])
    assert task.occupancy.holds(x).tolist() == [False, False, True]
    assert bool((task.field.geometry(x).density_raw > 0).all())


@pytest.mark.slow
def test_a_student_that_is_empty_where_the_teacher_is_solid_fills_it():
    field = ball_field(radius=0.2, centre=-0.6)
    task = task_of(field, ball_model(radius=0.4), samples=2048)
    before = likeness(task)
    optimise(task, LoopConfig(max_steps=200))
    task.finish(200)
    assert likeness(task) > max(24, before + 8)
    assert float(field.geometry(torch.zeros(1, 3)).density_raw.detach()) > 2


def test_grids_of_other_reach_are_refused():
    asked = Teacher(ball_model())
    rays = TeacherRays(asked, orbit_cameras(torch.tensor([[-1.0] * 3, [1.0] * 3])), rays=64, seed=0)
    with pytest.raises(ConfigError, match="as many occupancy cascades as its teacher, 1; got 2"):
        DistillTask(small_hash(), OccupancyGrid(cascades=2), MARCH, rays, RadianceTaskConfig(), asked)


def test_the_weight_of_points_falls_and_stays():
    w = DistillWeights(points_until=0.0, fades_over=0.5, faded=0.1)
    assert [w.fading(p) for p in (0, 0.25, 0.5, 1)] == pytest.approx([1, 0.1**0.5, 0.1, 0.1])
    with pytest.raises(ConfigError, match="weights must not be negative"):
        DistillWeights(density=-1)


def test_what_counts_how_much_is_said_by_what_the_fields_cost_and_how_they_speak():
    cheap, costly = ball_model(), ball_model()
    costly.representation = MlpField(MlpFieldConfig())
    usual, early, student = DistillWeights(), DistillWeights(points_until=0.92), small_hash()
    assert weights_for(student, Teacher(cheap)) == usual
    assert weights_for(student, Teacher(costly)) == early
    half = replace(early, features=0.5 * usual.features)
    assert [weights_for(costly.representation, Teacher(model)) for model in (cheap, costly)] == [half, half]
    speaking = Teacher(cheap)
    speaking.head = torch.nn.Linear(3, 3)
    assert weights_for(student, speaking) == TRANSLATED != usual
    assert task_of(student, costly, weights=None).weights == early


def test_networks_of_one_layout_are_inherited_and_tables_are_not():
    teacher, student = small_hash(), TensorField(TensorFieldConfig(density_width=16, color_width=16))
    assert inherit(student, teacher) == ["color"]
    assert torch.equal(student.color.parameters_flat, teacher.color.parameters_flat)
    wide = TensorField(TensorFieldConfig(density_width=16, color_width=32))
    assert inherit(wide, teacher) == []
    student.color.spec = replace(student.color.spec, output_activation="none")
    assert inherit(student, teacher) == []
    other = HashField(HashFieldConfig(grid=GRID, density_width=16, color_width=16, lr=1e-3), seed=1)
    table = other.encoding.table.detach().clone()
    assert inherit(other, teacher) == ["density", "color"]
    assert torch.equal(other.encoding.table, table)


@pytest.mark.parametrize("kind", FIELDS)
def test_one_field_with_itself_shares_everything(kind):
    cls, config = FIELDS[kind]
    made = SMALL.get(kind, config())
    teacher, student = cls(made, seed=1), cls(made, seed=2)
    inherit(student, teacher)
    mine, theirs = student.state_dict(), teacher.state_dict()
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)


@pytest.mark.parametrize("wide", [False, True])
def test_features_are_compared_where_they_mean_the_same(wide):
    teacher = ball_model()
    teacher.representation = trained = small_hash()
    with torch.no_grad():
        trained.encoding.table.normal_(generator=torch.Generator().manual_seed(0)).mul_(30 if wide else 1)
    for same in (False, True):
        task = task_of(small_hash(), teacher, samples=1024, same_features=same)
        batch = task.source.batch(0, 30)
        losses, _ = task.losses(batch, task._samples(batch, 0, task.occupancy), 0)
        assert (losses.features is not None) == same
    samples = task._samples(batch, 0, task.occupancy)
    rows = samples.rows.long()
    x, ids = samples.positions[rows], samples.ray_ids()
    answers = task.teacher.at(x, batch.rays.directions[ids])
    packed = (samples.distances[rows], samples.deltas[rows], samples.offsets, None)
    taught = composite(answers.density_raw, answers.rgb, *packed, threshold=0.0).weights
    spread = (answers.features - answers.features.mean(0)).square().mean().sqrt()
    assert (spread > 2) == wide
    scale = 2 / spread if wide else 1
    apart = huber(scale * (task.field.geometry(x).features.detach() - answers.features), 1.0).mean(1)
    assert losses.features is not None
    assert float(losses.features) == pytest.approx(float((taught * apart).sum() / taught.sum()), rel=1e-4)


def test_cells_that_are_partly_full_are_kept_by_a_run_too_short_to_look_often():
    model = ball_model()
    task = task_of(ball_field(), model)
    task.finish(0)
    centres, grid = task.occupancy.cell_centres(), task.occupancy
    line = torch.linspace(-0.45, 0.45, 5) * 2 / grid.resolution
    x = centres.reshape(-1, 1, 3) + torch.cartesian_prod(line, line, line)
    dense = (
        model.representation.geometry(x.reshape(-1, 3)).density_raw.exp() * MARCH.step_size > grid.threshold
    ).float()
    share = dense.reshape(-1, 125).mean(1)
    partly = (share > 0.25) & (share < 0.75)
    assert int(partly.sum()) > 50
    assert float(grid.flags().flatten()[partly].float().mean()) > 0.9


def test_cells_that_the_student_has_emptied_go_where_they_are_few(monkeypatch):
    task = task_of(ball_field(radius=0.2), ball_model(radius=0.5))
    before = task.occupancy.flags()
    monkeypatch.setattr("polyfield.fields.convert.task.MOST_LOOKED_AT", int(before.sum()) - 1)
    task.finish(0)
    assert torch.equal(task.occupancy.flags(), before)
    monkeypatch.setattr("polyfield.fields.convert.task.MOST_LOOKED_AT", int(before.sum()))
    task.finish(0)
    after = task.occupancy.flags()
    assert not bool((after & ~before).any())
    assert int(after.sum()) < 0.5 * int(before.sum())


def test_a_task_takes_sparse_gradients_and_others_are_not_given_any():
    field = GridField(GridFieldConfig(first_cells=6, doublings=1))
    field.grow(1.0, pytest.fail)
    for weights in (RAYS_ONLY, DistillWeights()):
        task = task_of(field, ball_model(), samples=1024, weights=weights)
        before = field.harmonics.detach().clone()
        assert task.step(0, 1.0).finite
        assert field.harmonics.grad is not None
        assert field.harmonics.grad.is_sparse
        assert not field.sparse_gradients
        moved = (field.harmonics != before).any(1).nonzero()[:, 0]
        assert 0 < len(moved) < len(before)
        assert set(moved.tolist()) <= set(field.harmonics.grad._indices()[0].tolist())


def test_the_rates_are_factors_of_the_learning_rates():
    field = MlpFieldConfig(density_width=16, density_layers=2, density_skip=None, color_width=16)
    moved = []
    for rates in ((1.0, 1.0), (0.1, 0.5)):
        task = task_of(MlpField(field), ball_model(), rates=rates)
        student = task.field
        assert task.points.steps == POOLS[False, True]  # of a costly student
        assert isinstance(student, MlpField)
        assert isinstance(student.density, MLP)
        assert isinstance(student.color, MLP)
        matrix = student.density.matrices()[1]
        before = student.color.parameters_flat.detach().clone(), matrix.of(matrix.parameter.detach()).clone()
        task.step(0, 1.0)
        after = student.color.parameters_flat.detach(), matrix.of(matrix.parameter.detach())
        moved.append([b - a for a, b in zip(before, after, strict=True)])
    assert min(float(part.abs().max()) for part in moved[0]) > 5e-4
    torch.testing.assert_close(moved[1][0], 0.1 * moved[0][0], rtol=1e-2, atol=1e-7)
    torch.testing.assert_close(moved[1][1], 0.5 * moved[0][1], rtol=1e-2, atol=1e-7)
