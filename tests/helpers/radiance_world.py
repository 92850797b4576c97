"""A small field with an optimiser, and rays to train it on, for tests of the GPU's train step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from polyfield.fields.ops.fused_mlp import MlpSpec, initial_parameters
from polyfield.fields.ops.hash_encode import HashGridSpec
from polyfield.fields.ops.radiance_step import AdamRates, RadianceParameters, RadianceSpec
from polyfield.fields.optim.radiance_program import RadianceProgram
from polyfield.fields.render.march import MarchConfig
from polyfield.fields.render.occupancy import OccupancyGrid

GRID = HashGridSpec(levels=4, channels=2, base_resolution=4, finest_resolution=64, log2_table_size=10)
RATES = AdamRates(1e-2, 1e-3)
EXTENT = 2.0
WAVES = (16, 1024)
MARCH = MarchConfig(step_size=0.05, waves=WAVES)


def make_spec(**changes) -> RadianceSpec:
    grid, bands, width = changes.pop("grid", GRID), changes.get("sh_bands", 4), changes.pop("width", 16)
    density = MlpSpec(inputs=grid.features, outputs=16, width=width, hidden_layers=1)
    color = MlpSpec(inputs=15 + bands**2, outputs=3, width=width, hidden_layers=2, output_activation="sigmoid")
    return RadianceSpec(grid=grid, density=density, color=color, stop=MARCH.stop, **changes)


class World(NamedTuple):
    """A field, its optimiser and where it may have density."""

    spec: RadianceSpec
    parameters: RadianceParameters
    first: RadianceParameters
    second: RadianceParameters
    rounded: Tensor
    occupancy: OccupancyGrid

    def program(self, **changes) -> RadianceProgram:
        settings = {"extent": EXTENT, "samples": 1 << 13, "max_rays": 300, "seed": 5, "waves": WAVES} | changes
        return RadianceProgram(*self[:5], self.occupancy, MARCH, RATES, **settings)


def make_world(device: str, seed: int = 0, **changes) -> World:
    """The same for equal seeds. `changes`: of the `RadianceSpec`; `grid` and `width` too."""
    spec, g = make_spec(**changes), torch.Generator().manual_seed(seed)
    with torch.device("cpu"):
        table = 4 * (torch.rand(spec.grid.entries, spec.grid.channels, generator=g) - 0.5)
        networks = [4 * initial_parameters(spec.density, g), initial_parameters(spec.color, g)]
        parameters = RadianceParameters(*(t.to(device) for t in (table, *networks)))
        occupancy = OccupancyGrid(cascades=2, resolution=16)
        occupancy.grid.copy_(torch.rand(occupancy.grid.shape, generator=g) - 0.3)
        occupancy.refresh_bits()
    first, second = (RadianceParameters(*(torch.zeros_like(p) for p in parameters)) for _ in range(2))
    return World(spec, parameters, first, second, parameters.table.half(), occupancy.to(device))


def make_rays(count: int, device: str, seed: int = 0) -> tuple[Tensor, ...]:
    """Origins, directions, targets, backgrounds."""
    g = torch.Generator().manual_seed(seed)
    with torch.device("cpu"):
        origins = 3 * torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1)
        to = torch.rand(count, 3, generator=g) * 3 - 1.5
        directions = torch.nn.functional.normalize(to - origins, dim=1)
        colors = torch.rand(2, count, 3, generator=g)
    return tuple(t.to(device) for t in (origins, directions, *colors))
