"""Which students can be made from a teacher without learning, at least to begin with?

A lattice asks the teacher at its vertices: the density there, and the spherical harmonics that come nearest to the
colours seen along some directions, the logarithms of their odds being compared (ridge regression). Between samplings
the lattice is refined round what is dense, as in training, so that it begins as fine as it may become.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..base import RadianceField
from ..ops.activations import log_density
from ..radiance.grid import STAGES, GridField
from ..render.occupancy import OccupancyGrid
from .teacher import Teacher

DIRECTIONS = 16
"""Along which a vertex is looked at."""
RIDGE = 0.01
"""Weight of the squared harmonics, of a direction's squared error 1."""
SHORTCUT_RATE = 0.6
"""Factor of the learning rates of a student that begins so. Lego at 200x200, hash to grid, likeness to the teacher
after 60 seconds: 36.6 dB with 0.1, 37.2 with 0.3, 37.6 with 0.6 and with 1."""
DARKEST = 1 / 512
"""Of a channel whose odds are taken: half a step of 8 bits; the brightest is as far from 1."""
_CHUNK = 1 << 16


@torch.no_grad()
def sample_grid(student: GridField, teacher: Teacher, directions: Tensor) -> None:
    """Fill a new lattice.

    Args:
        directions: (D, 3) unit, scene frame, along which the scene was seen.
    """
    near = _near(teacher.model.occupancy)
    for progress in STAGES:
        student.set_log_density(_log_density(teacher, student.vertices(), near))
        student.grow(progress, teacher.model.occupancy.occupied_box)
    x = student.vertices()
    student.set_log_density(_log_density(teacher, x, near))
    chosen = directions[torch.linspace(0, len(directions) - 1, min(DIRECTIONS, len(directions))).long()]
    basis = student.basis(chosen)
    fit = torch.linalg.solve(basis.T @ basis + RIDGE * torch.eye(basis.shape[1]).to(basis), basis.T)  # (B, D)
    for begin in range(0, len(x), _CHUNK):
        rows = slice(begin, begin + _CHUNK)
        odds = _log_odds(teacher, x[rows], chosen)
        student.harmonics[rows] = torch.einsum("bd,dnc->ncb", fit, odds).flatten(1)


def _near(occupancy: OccupancyGrid) -> OccupancyGrid:
    """One with the neighbours of occupied cells too: a vertex counts in the cells on all sides of it."""
    near = OccupancyGrid(cascades=occupancy.cascades, resolution=occupancy.resolution).to(occupancy.bits.device)
    near.take_flags(torch.nn.functional.max_pool3d(occupancy.flags().float(), 3, stride=1, padding=1).bool())
    return near


def _log_density(teacher: Teacher, x: Tensor, near: OccupancyGrid) -> Tensor:
    """(V,) natural logarithms, -infinity where the teacher is empty and no neighbour of its grid's cell is not."""
    field, found = teacher.field, []
    for part in x.split(_CHUNK):
        values = log_density(field.geometry(part).density_raw.float(), field.density_activation)
        found.append(torch.where(near.holds(part), values, -torch.inf))
    return torch.cat(found)


def _log_odds(teacher: Teacher, x: Tensor, directions: Tensor) -> Tensor:
    """(D, N, 3) of the colours of positions (N, 3), seen along each direction (D, 3)."""
    features = teacher.field.geometry(x).features
    colours = [teacher.field.radiance(features, direction.expand_as(x), x=x) for direction in directions]
    return torch.stack(colours).float().logit(DARKEST)


SHORTCUTS: dict[type[RadianceField], Callable[[Any, Teacher, Tensor], None]] = {GridField: sample_grid}
"""Kind of student -> how it begins, of any teacher."""
