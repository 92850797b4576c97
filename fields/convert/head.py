"""What do features mean, where a student's colour network is not its teacher's? A translation is learned first.

A student learns its features fastest (`DistillWeights`), but only where both fields mean the same by them: where it
began with its teacher's colour network. Where it cannot, and always of a `GridField`, which has neither network nor
features, this makes it so: one linear map from what the teacher's colours depend on to the student's features and the
student's own colour network are learned together, from the teacher's colours at points. It takes seconds, since no
place is learned by it. Then the map stays, and what it makes of the teacher are the features to be learned everywhere.

Lego at 200x200, likeness to a grid teacher after 400 steps: tensor 33.6 dB without, 35.3 with; hash 34.6 and 36.9 dB. A
hidden layer of 64 units between was worse than none (34.2 for 34.7 dB); 200 steps of half the rate cost 0.3 dB.

Costly students do without: in one network what features say is bound to what it has learned of places, and steps are
few. After 250 steps cam had 24.7 dB with a head and 25.1 without, mlp 27.8 and 27.6 dB, a tenth of the time later.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..base import RadianceField
from .losses import weighted_huber
from .points import Points, TeacherPoints
from .teacher import Teacher, TeacherRays

STEPS = 300
BATCH = 1 << 13
"""Points of a step."""
POINTS = 1 << 15
"""Points of each of the pool's parts, from which batches are drawn."""
RATE = 2e-2
"""Adam's learning rate; it falls to a tenth."""
_DELTA = 0.1  # where Huber's function of colours becomes linear


class Examples(NamedTuple):
    """What the map and the network learn from, N points."""

    inputs: Tensor
    """(N, C) what the teacher's colours depend on."""
    directions: Tensor
    """(N, 3) unit."""
    positions: Tensor
    """(N, 3) scene frame."""
    rgb: Tensor
    """(N, 3)."""


def head_for(student: RadianceField, teacher: Teacher, seed: int) -> nn.Linear | None:
    """The map, not learned yet; None where there is nothing that it could map from or to, and of a costly student."""
    inputs = teacher.color_inputs
    if student.costly or not (
        inputs and student.feature_count and isinstance(getattr(student, "color", None), nn.Module)
    ):
        return None
    head = nn.Linear(inputs, student.feature_count)
    bound, generator = inputs**-0.5, torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in head.parameters():
            values.uniform_(-bound, bound, generator=generator)
    return head.to(teacher.model.occupancy.bits.device).requires_grad_(False)


def learn_head(head: nn.Linear, student: RadianceField, source: TeacherRays, seed: int) -> None:
    """Learn the map and the student's colour network. Nothing changes where the teacher shows nothing."""
    examples = _examples(source)
    if examples is None:
        return
    color = cast(nn.Module, student.color)
    head.requires_grad_(True)
    optimiser = torch.optim.Adam([*head.parameters(), *color.parameters()], lr=RATE)
    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RATE * 0.1 ** (step / STEPS)
        rows = torch.randint(len(examples.rgb), (BATCH,), generator=generator).to(examples.rgb.device)
        inputs, directions, positions, rgb = (values[rows] for values in examples)
        error = student.radiance(head(inputs), directions, x=positions).float() - rgb
        optimiser.zero_grad()
        weighted_huber(error, torch.ones_like(error[:, 0]), _DELTA).backward()
        optimiser.step()
    head.requires_grad_(False)
    for parameter in color.parameters():
        parameter.grad = None


@torch.no_grad()
def _examples(source: TeacherRays) -> Examples | None:
    """From the first pool of points; None where the teacher shows nothing."""
    points = TeacherPoints(source, samples=POINTS)
    parts: list[Points] = [points.batch(step) for step in range(points.steps)]
    seen = [slice(len(part.rgb)) for part in parts]
    positions = torch.cat([part.positions[rows] for part, rows in zip(parts, seen, strict=True)])
    if len(positions) == 0:
        return None
    inputs = source.teacher.inputs_at(positions)
    directions, rgb = (torch.cat([getattr(part, name) for part in parts]) for name in ("directions", "rgb"))
    return Examples(inputs, directions, positions, rgb)
