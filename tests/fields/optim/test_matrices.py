"""Muon and Adam share a network: each moves its part, and a checkpoint holds the state of both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.ball_model import MARCH, ball_model

from polyfield.fields import FIELDS, OccupancyGrid
from polyfield.fields.convert import DistillTask, Teacher, TeacherRays, orbit_cameras
from polyfield.fields.networks import MLP, CoordinateNetwork
from polyfield.fields.ops.fused_mlp import MlpSpec
from polyfield.fields.ops.muon import orthogonalised
from polyfield.fields.optim.field_task import RadianceTaskConfig
from polyfield.fields.optim.matrices import MatrixStacks
from polyfield.fields.radiance import CamFieldConfig, MlpField, MlpFieldConfig

SMALL = {"density_width": 16, "density_layers": 3, "density_skip": None, "octaves": 4, "color_width": 16}
KINDS = {"mlp": MlpFieldConfig(**SMALL), "cam": CamFieldConfig(**SMALL, modulation=4)}


def task_of(kind: str, **changes) -> DistillTask:
    teacher = Teacher(ball_model())
    rays = TeacherRays(teacher, orbit_cameras(teacher.model.occupancy.occupied_box()), rays=512, seed=0)
    field = FIELDS[kind][0](KINDS[kind])
    config = RadianceTaskConfig(samples=1024, first_rays=256)
    return DistillTask(field, OccupancyGrid(resolution=16), MARCH, rays, config, teacher, **changes)


def test_matrices_of_a_flat_parameter_are_moved_and_the_rest_is_not():
    network = MLP(MlpSpec(inputs=8, outputs=3, width=16, hidden_layers=3, bias=True))
    before = network.parameters_flat.detach().clone()
    stacks = MatrixStacks([(matrix, 0.01) for matrix in network.matrices()])
    assert {name: tuple(m.shape) for name, m in stacks.momentum.items()} == {"16x8": (1, 16, 8), "16x16": (2, 16, 16)}
    network.parameters_flat.grad = gradient = torch.randn(len(before), generator=torch.Generator().manual_seed(0))
    kept = gradient.clone()
    stacks.take_gradients()
    stacks.descend(0.5, "fp32")
    moved = network.parameters_flat.detach() - before
    rest = torch.ones(len(before), dtype=torch.bool)
    assert all(bool((matrix.of(before) != 0).all()) for matrix in network.matrices())  # biases begin as zeros
    for matrix in network.matrices():
        matrix.of(rest)[:] = False
        step = 0.05 * (1 + 0.95) * matrix.of(kept)  # of Nesterov's form, the first
        expected = -0.005 * 0.2 * 4 * orthogonalised(step)
        torch.testing.assert_close(matrix.of(moved), expected, atol=1e-6, rtol=1e-4)
        assert not bool(matrix.of(network.parameters_flat.grad).any())
    assert int(rest.sum()) == 3 * 16 + 3 * 17  # biases and the last layer
    assert not bool(moved[rest].any())
    assert torch.equal(network.parameters_flat.grad[rest], kept[rest])


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_moves_matrices_by_muon_and_the_rest_by_adam(kind):
    task = task_of(kind)
    field = task.field
    assert isinstance(field, MlpField)
    assert isinstance(field.density, MLP | CoordinateNetwork)
    assert len(field.density.matrices()) == 3
    before = {name: p.detach().clone() for name, p in task.field.named_parameters()}
    names = {id(p): name for name, p in task.field.named_parameters()}
    assert task.step(0, 0.1).finite
    for matrix in field.density.matrices():
        moved = matrix.of(matrix.parameter.detach()) - matrix.of(before[names[id(matrix.parameter)]])
        least = min(matrix.shape)
        length = 0.1 * 5e-3 * 0.2 * max(matrix.shape) ** 0.5
        assert 0.3 * length < float(torch.linalg.matrix_norm(moved, 2)) < 1.3 * length
        assert float(moved.norm()) < 1.3 * length * least**0.5
    assert isinstance(field.color, MLP)
    moved = (field.color.parameters_flat.detach() - before["color.parameters_flat"]).abs()
    assert float(moved.max()) == pytest.approx(0.1 * KINDS[kind].lr, rel=0.01)  # Adam's first step
    tensors = task.tensors()
    assert all(bool(tensors[f"momentum.{name}"].any()) for name in task.matrices.momentum)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_rate_of_their_own_adam_moves_matrices_too(kind, monkeypatch):
    monkeypatch.setitem(KINDS, kind, replace(KINDS[kind], matrix_lr=None))
    task = task_of(kind)
    assert task.matrices.momentum == {}
    field = task.field
    assert isinstance(field, MlpField)
    assert isinstance(field.density, MLP | CoordinateNetwork)
    matrix = field.density.matrices()[0]
    before = matrix.of(matrix.parameter.detach()).clone()
    task.step(0, 0.1)
    assert float((matrix.of(matrix.parameter.detach()) - before).abs().max()) == pytest.approx(
        0.1 * KINDS[kind].lr, rel=0.01
    )
