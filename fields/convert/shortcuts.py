"""Which students can be made from a teacher without learning, at least to begin with?

A lattice asks the teacher at its vertices: the density there, and the spherical harmonics that come nearest to the
colours seen along some directions, the logarithms of their odds being compared (ridge regression). Between samplings
the lattice is refined round what is dense, as in training, so that it begins as fine as it may become.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..base import RadianceField
from ..ops.activations import log_density
from ..radiance.grid import STAGES, GridField, GridFieldConfig
from ..render.occupancy import OccupancyGrid
from .teacher import Teacher

DIRECTIONS = 16
"""Along which a vertex is looked at."""
RIDGE = 0.01
"""Weight of the squared harmonics, of a direction's squared error 1."""
SHORTCUT_RATES = {False: 0.3, True: 0.08}
"""Whether the teacher is costly -> factor of the learning rates of a student that begins so. Lego at 200x200, likeness
to the teacher after 60 seconds: hash to grid 37.7 dB with 0.15, 38.0 with 0.3 and with 0.6; mlp to grid 38.9 with 0.08,
37.9 with 0.15, 37.5 with 0.3, 35.6 with 0.6. The same points of a costly teacher serve many steps in turn, and a row
that few of them touch follows each."""
FINER = 1.25
"""How many times as fine the lattice of a student may become as one that is trained. Its teacher answers everywhere, so
that it learns no noise between the photos. Lego at 200x200, held-out PSNR: hash to grid in 60 seconds 32.6 dB with 1,
33.1 with 1.25 and with 1.5; from photos in ten minutes 33.4 with 1 and 32.8 with 1.25."""
EXPECTED_ROWS = 0.75
"""Share of the rows that a lattice may have. Where the finer one would need more, as its teacher's occupied cells tell,
it is not made: with too many rows it would stay at half of its pitch."""
DARKEST = 1 / 512
"""Of a channel whose odds are taken: half a step of 8 bits; the brightest is as far from 1."""
_CHUNK = 1 << 16


def finer(config: GridFieldConfig, teacher: Teacher) -> GridFieldConfig:
    """The settings of a student, from those of training. They stay where the teacher is such a lattice itself, where
    space has no end, and where much is occupied."""
    if isinstance(teacher.field, GridField) or config.contraction != "none":
        return config
    cells = int(FINER * config.first_cells)
    occupied = float(teacher.model.occupancy.flags().float().mean())
    rows = occupied * (cells << config.doublings) ** 3
    return config if rows > EXPECTED_ROWS * config.most_rows else replace(config, first_cells=cells)


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
