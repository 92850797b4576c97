"""A student's colour network, and what a teacher's colours depend on as that network's features."""

from __future__ import annotations

import pytest
import torch
from helpers.ball_model import MARCH, ball_model

from polyfield.fields import OccupancyGrid, RadianceField
from polyfield.fields.convert import DistillTask, Teacher, TeacherRays, head_for, learn_head, orbit_cameras
from polyfield.fields.convert import head as head_module
from polyfield.fields.convert.head import _examples
from polyfield.fields.ops.hash_encode import HashGridSpec
from polyfield.fields.optim.field_task import RadianceTaskConfig
from polyfield.fields.radiance import (
    GridField,
    GridFieldConfig,
    HashField,
    HashFieldConfig,
    TensorField,
    TensorFieldConfig,
)

GRID = HashGridSpec(levels=4, channels=2, base_resolution=8, finest_resolution=32, log2_table_size=12)


def colourful() -> Teacher:
    """A ball of many colours, which look another way from everywhere."""
    model = ball_model()
    field = model.representation
    assert isinstance(field, GridField)
    with torch.no_grad():
        field.harmonics.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.5)
    return Teacher(model)


def source_of(teacher: Teacher, box: torch.Tensor | None = None) -> TeacherRays:
    box = teacher.model.occupancy.occupied_box() if box is None else box
    return TeacherRays(teacher, orbit_cameras(box), rays=512, seed=0)


def new_head(student: RadianceField, teacher: Teacher, seed: int = 0) -> torch.nn.Linear:
    head = head_for(student, teacher, seed)
    assert head is not None
    return head


def small_hash(seed: int = 0) -> HashField:
    return HashField(HashFieldConfig(grid=GRID, density_width=16, color_width=32), seed=seed)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(head_module, "POINTS", 2048)
    monkeypatch.setattr(head_module, "BATCH", 2048)


def psnr(student: HashField, head: torch.nn.Linear, examples: head_module.Examples) -> float:
    """Of the student's colours by what the head makes of a teacher."""
    inputs, directions, positions, rgb = examples
    with torch.no_grad():
        error = student.radiance(head(inputs), directions, x=positions).float() - rgb
    return float(-10 * error.square().mean().log10())


def test_the_students_network_learns_to_say_the_teachers_colours(short):
    student, source = small_hash(), source_of(colourful())
    head = new_head(student, source.teacher)
    others = {k: v.clone() for k, v in student.state_dict().items() if not k.startswith("color.")}
    unseen = _examples(TeacherRays(source.teacher, source.cameras, rays=512, seed=1))
    assert unseen is not None
    before = psnr(student, head, unseen)
    learn_head(head, student, source, 0)
    assert psnr(student, head, unseen) > max(28, before + 12)
    after = student.state_dict()
    assert all(torch.equal(after[k], v) for k, v in others.items())
    assert all(p.requires_grad and p.grad is None for p in student.parameters())
    assert not any(p.requires_grad for p in head.parameters())


def test_one_seed_one_head(short):
    made = []
    for seed in (0, 0, 1):
        student, source = small_hash(), source_of(colourful())
        head = new_head(student, source.teacher, seed)
        learn_head(head, student, source, seed)
        made.append(torch.cat([head.weight.flatten(), student.color.parameters_flat.detach()]))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_a_teacher_with_a_head_answers_in_its_features_and_in_the_same_colours():
    plain, with_head = colourful(), colourful()
    with_head.head = head = new_head(small_hash(), with_head)
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    directions = torch.nn.functional.normalize(x + 2, dim=1)
    a, b = plain.at(x, directions), with_head.at(x, directions)
    assert (plain.feature_count, with_head.feature_count) == (0, 15)
    assert torch.equal(a.density_raw, b.density_raw)
    assert torch.equal(a.rgb, b.rgb)
    assert torch.equal(a.rgb, plain.field.radiance(x.new_empty(50, 0), directions, x=x))
    assert torch.equal(b.features, head(with_head.inputs_at(x)).detach())


def test_the_features_of_a_field_with_features_are_what_its_colours_depend_on():
    model = ball_model()
    model.representation = field = small_hash()
    x = torch.rand(9, 3)
    assert torch.equal(Teacher(model).inputs_at(x), field.geometry(x).features.detach())
    assert new_head(small_hash(), Teacher(model)).weight.shape == (15, 15)


def test_there_is_no_head_where_the_student_has_no_features_or_is_costly():
    assert head_for(GridField(GridFieldConfig(first_cells=8)), colourful(), 0) is None
    student = small_hash()
    assert head_for(student, colourful(), 0) is not None
    student.costly = True
    assert head_for(student, colourful(), 0) is None


def test_nothing_is_learned_where_the_teacher_shows_nothing(short):
    away = torch.tensor([[9.0, 9.0, 9.0], [9.5, 9.5, 9.5]])
    student, source = small_hash(), source_of(colourful(), away)
    head = new_head(student, source.teacher)
    weight, color = head.weight.clone(), student.color.parameters_flat.detach().clone()
    learn_head(head, student, source, 0)
    assert torch.equal(head.weight, weight)
    assert torch.equal(student.color.parameters_flat, color)


def test_a_checkpoint_holds_the_head_and_points_compare_its_features():
    source, student = source_of(colourful()), TensorField(TensorFieldConfig(first_voxels=8**3, final_voxels=8**3))
    source.teacher.head = head = new_head(student, source.teacher)
    config, occupancy = RadianceTaskConfig(samples=1024, first_rays=64), OccupancyGrid(cascades=1, resolution=16)
    task = DistillTask(student, occupancy, MARCH, source, config, source.teacher, same_features=True)
    assert task.tensors()["head.weight"].data_ptr() == head.weight.data_ptr()
    points = task.points.batch(0)
    assert points.features.shape == (len(points.rgb), 15)
    assert task.point_losses(points, 0).features is not None
