"""A model that nothing was trained for: a coloured ball, written into the vertices of a sparse grid."""

from __future__ import annotations

import math

import torch

from polyfield.fields import Model, Similarity
from polyfield.fields.radiance import GridField, GridFieldConfig
from polyfield.fields.radiance.grid import EMPTY, GAINS
from polyfield.fields.render import MarchConfig, OccupancyGrid

CELLS = 24
MARCH = MarchConfig(step_size=0.03)


def ball_field(radius: float = 0.5, density: float = 60.0, centre: float = 0.0) -> GridField:
    """Density `density` within `radius` of (centre, 0, 0), next to none outside; colours that grow with position."""
    field = GridField(GridFieldConfig(first_cells=CELLS, doublings=0))
    line = torch.linspace(-1, 1, CELLS + 1)
    x = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    inside = (x - torch.tensor([centre, 0.0, 0.0])).norm(dim=1) < radius
    with torch.no_grad():
        field.density[:, 0] = torch.where(inside, math.log(density) - EMPTY["exp"], 0.0)
        field.harmonics.zero_()
        field.harmonics[:, ::9] = torch.logit(0.5 + 0.4 * x.clamp(-1, 1)) / (GAINS[0] * 0.2820948)
    return field


def ball_model(radius: float = 0.5, density: float = 60.0, centre: float = 0.0, *, resolution: int = 32) -> Model:
    """The ball with its occupancy."""
    field = ball_field(radius, density, centre)
    occupancy = OccupancyGrid(resolution=resolution)
    for step in range(2):
        occupancy.update(
            lambda x: field.geometry(x).density_raw.detach(),
            activation="exp",
            step=step,
            seed=0,
            step_size=MARCH.step_size,
            warmup=True,
        )
    provenance = {"scene": "ball", "kind": "object"}
    return Model(field, occupancy, MARCH, Similarity.identity(), "white", provenance)
