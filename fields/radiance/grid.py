"""The sparse-grid radiance field: what a scene is when every voxel near a surface holds its own density and colours.

Plenoxels (Fridovich-Keil and Yu et al. 2022, arXiv 2112.05131): at the vertices of a lattice a density and spherical
harmonics of the colour, blended trilinearly; no network. Coarse to fine: now and then the vertices far from everything
dense are given up and the lattice is halved in pitch, so that the finer field says what the coarser one said; the
total variation of random vertices is kept small until the last refinement. Unlike the paper's optimiser, Adam.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..base import Geometry, RadianceField
from ..encodings.sparse_lattice import dilated, refined, rows_between
from ..errors import ConfigError, ShapeError
from ..geometry import CONTRACTIONS, UNCONTRACTIONS, to_unit_cube
from ..ops import _cpu
from ..ops.activations import density_from_raw, raw_of_log_density
from ..ops.sparse_grid import add_variation_gradient_, sparse_grid_sample
from ..ops.spherical_harmonics import spherical_harmonics

STAGES = (0.12, 0.28)
"""Shares of the training after which the lattice is refined; the last lies before the share, 0.35, after which
`LoopConfig` plans the rest by the speed of the steps."""
EMPTY = {"exp": -8.0, "softplus": -8.0, "relu": 0.0}
"""Raw density where no row is: next to nothing."""
FIRST_DENSITY = 0.1
"""Per scene unit: the cube begins as a haze that lets most light through (Plenoxels: 0.1)."""
LEAST_THICKNESS = 0.05
"""Optical thickness of an edge of the lattice below which a vertex counts as empty: five times that of
`OccupancyGrid`, so that haze does not keep vertices alive; dilation keeps what is thin next to what is dense."""
GAINS = (4.0, 0.4)
"""Of the first harmonic and of the others: how far a step of Adam moves a colour's mean and how far what depends on the
direction. With 1 for all, colours were pale (lego's held-out train views, 250 steps: 22.6 dB, with these 23.0); with 4
for all, directions explained the images by haze (19.9 dB after 300 steps)."""
VARIATION_SHARE = 0.01
"""Of the rows whose variation a step looks at (Plenoxels: 1 %)."""
MOST_VERTICES = 2**30
"""Of a box: an index of 4 GiB."""
MOST_ROWS = 2**26
"""Of a field: 7 GiB with nine values a colour (Plenoxels: 44 million)."""


@dataclass(frozen=True, kw_only=True)
class GridFieldConfig:
    """What a `GridField` is made of, and what it has grown to."""

    extent: float = 1.0
    """Half side of the cube around the origin that the lattice covers, scene units (ignored with a contraction)."""
    contraction: str = "none"
    """How space beyond the unit region is folded into it: a key of `CONTRACTIONS`; "none" clips at the cube."""
    first_cells: int = 64
    """Cells along each side of the cube at the start."""
    doublings: int = 2
    """How often their number doubles, at `STAGES`."""
    most_rows: int = 1 << 22
    """A refinement that would need more vertices than this does not take place. Training takes some 800 bytes a row:
    values, gradients, two moments and a copy to fall back to."""
    sh_bands: int = 3
    """Bands of the spherical harmonics of colour (Plenoxels: 3, nine values a channel)."""
    density_activation: Literal["exp", "softplus", "relu"] = "exp"
    """Applied in compositing; see `ops.activations`."""
    density_lr: float = 0.3
    """Adam's learning rate of raw densities."""
    color_lr: float = 5e-2
    """Adam's learning rate of spherical harmonics."""
    density_variation: float = 1e-5
    """Weight of the total variation of raw densities, until the last refinement (Plenoxels: 1e-5)."""
    color_variation: float = 1e-3
    """And of spherical harmonics (Plenoxels: 1e-3)."""
    stage: int = 0
    """How often it has been refined."""
    box: tuple[int, ...] = ()
    """First and last vertex of what the lattice covers, counted along x, y and z from the lower corner of the cube at
    the present pitch; all of the cube where empty."""
    rows: int = 0
    """Vertices that are stored; all of the box where 0."""

    def __post_init__(self) -> None:
        if self.contraction not in CONTRACTIONS:
            raise ConfigError(f"contraction must be one of {', '.join(CONTRACTIONS)}; got {self.contraction!r}")
        if not self.extent > 0:
            raise ConfigError(f"extent must be positive (scene units); got {self.extent}")
        if self.density_activation not in EMPTY:
            raise ConfigError(f"density_activation must be one of {', '.join(EMPTY)}; got {self.density_activation!r}")
        if not 1 <= self.sh_bands <= 4:
            raise ConfigError(f"sh_bands must be 1 to 4; got {self.sh_bands}")
        if not 0 <= self.doublings <= len(STAGES) or not 0 <= self.stage <= self.doublings:
            text = f"0 <= stage <= doublings <= {len(STAGES)} must hold"
            raise ConfigError(f"{text}; got {self.stage} and {self.doublings}")
        if not 1 <= self.most_rows <= MOST_ROWS:
            raise ConfigError(f"most_rows must be 1 to {MOST_ROWS}; got {self.most_rows}")
        if not 4 <= self.first_cells <= 512:
            raise ConfigError(f"first_cells must be 4 to 512; got {self.first_cells}")
        whole = isinstance(self.box, tuple) and len(self.box) in (0, 6) and all(type(v) is int for v in self.box)
        if not whole or not all(0 <= a < b <= self.cells for a, b in zip(*self.corners, strict=True)):
            raise ConfigError(f"box must be a first and a last vertex from 0 to {self.cells}; got {self.box}")
        vertices = math.prod(self.shape)
        small = vertices <= (MOST_VERTICES if self.rows else MOST_ROWS)
        if not small or not 0 <= self.rows <= min(vertices, self.most_rows):
            text = f"rows must be at most the vertices of the box, {self.shape}, and most_rows ({self.most_rows})"
            raise ConfigError(f"{text}; got {self.rows}")

    @property
    def cells(self) -> int:
        """Along each side of the cube, at the present pitch."""
        return self.first_cells << self.stage

    @property
    def corners(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """First and last vertex of the box."""
        return (self.box[:3], self.box[3:]) if self.box else ((0,) * 3, (self.cells,) * 3)

    @property
    def shape(self) -> tuple[int, ...]:
        """Vertices of the box along x, y and z."""
        return tuple(high - low + 1 for low, high in zip(*self.corners, strict=True))


class GridField(RadianceField):
    """Final. See the module. Parameters: `density` (V, 1) and `harmonics` (V, 3 sh_bands^2), colour by colour; buffer:
    `index` (X, Y, Z) int32, the row of each vertex of the box, -1 where there is none. `config` says what it has grown
    to."""

    config: GridFieldConfig
    index: Tensor

    def __init__(self, config: GridFieldConfig | None = None, *, seed: int = 0) -> None:
        """`seed` changes nothing: every vertex begins alike."""
        super().__init__()
        self.config = config = config or GridFieldConfig()
        self.density_activation = config.density_activation
        self.contraction = config.contraction
        self.feature_count = 0
        reach = config.extent if config.contraction == "none" else float("inf")
        self.bounds = torch.tensor([[-reach] * 3, [reach] * 3])
        self._cells: Tensor | None = None
        self._allocate("cpu")
        first = math.log(FIRST_DENSITY) if self.density_activation == "exp" else FIRST_DENSITY
        if self.density_activation == "softplus":
            first = math.log(math.expm1(FIRST_DENSITY)) + 1
        with torch.no_grad():
            self.density.fill_(first - EMPTY[self.density_activation])

    def _allocate(self, device: torch.device | str) -> None:
        """Parameters and index of the shape that `config` says; only a full lattice has an index of any sense."""
        rows = self.config.rows or math.prod(self.config.shape)
        self.density = nn.Parameter(torch.zeros(rows, 1, device=device))
        self.harmonics = nn.Parameter(torch.zeros(rows, 3 * self.config.sh_bands**2, device=device))
        index = torch.zeros(self.config.shape, dtype=torch.int32, device=device)
        if rows == index.numel():
            torch.arange(rows, dtype=torch.int32, out=index.view(-1))
        self._take(index)

    def _take(self, index: Tensor) -> None:
        self.register_buffer("index", index)
        self._cells = None
        for tensor in (self.density.detach(), self.harmonics.detach(), index):
            _cpu.advise_huge_pages(tensor)

    def to_unit(self, x: Tensor) -> Tensor:
        """Scene positions (N, 3) to the box's [0, 1]^3."""
        low, high = (torch.tensor(corner, dtype=x.dtype) for corner in self.config.corners)
        scale, shift = self.config.cells / (high - low), -low / (high - low)
        if self.contraction == "none":  # the two maps in one pass
            scale, shift = scale * (0.5 / self.config.extent), shift + 0.5 * scale
        else:
            x = to_unit_cube(x, self.contraction, self.config.extent)
        return torch.addcmul(shift.to(x.device), x, scale.to(x.device))

    def geometry(self, x: Tensor, *, time: Tensor | None = None, footprint: Tensor | None = None) -> Geometry:
        raw = sparse_grid_sample(self.to_unit(x), self.density, self.index)[:, 0]
        return Geometry(raw + EMPTY[self.density_activation], x.new_empty(x.shape[0], 0))

    def radiance(
        self,
        features: Tensor,
        directions: Tensor,
        *,
        x: Tensor | None = None,
        normals: Tensor | None = None,
        appearance: Tensor | None = None,
    ) -> Tensor:
        """As the contract says; `features` may be the harmonics themselves, see `color_inputs_at`."""
        basis, values = self.basis(directions), features
        if features.shape[1] == 0:
            if x is None:
                raise ShapeError("the colours of a grid field depend on the positions: give x (N, 3)")
            values = self._harmonics_at(x)
        return torch.sigmoid((values.unflatten(1, (3, -1)) * basis[:, None]).sum(2))

    @property
    def color_inputs(self) -> int:
        return 3 * self.config.sh_bands**2

    def color_inputs_at(self, x: Tensor, geometry: Geometry) -> Tensor:
        return self._harmonics_at(x)

    def _harmonics_at(self, x: Tensor) -> Tensor:
        """(N, 3 sh_bands^2), colour by colour."""
        sparse = self.sparse_gradients and self._finest and x.device.type == "cpu"
        return sparse_grid_sample(self.to_unit(x), self.harmonics, self.index, sparse=sparse)

    def basis(self, directions: Tensor) -> Tensor:
        """(N, sh_bands^2): what the harmonics of a colour are multiplied with, seen along unit directions (N, 3)."""
        basis = spherical_harmonics(directions, self.config.sh_bands)
        return torch.cat([basis[:, :1] * GAINS[0], basis[:, 1:] * GAINS[1]], 1)

    # -- values of the vertices -------------------------------------------------------------------------------------

    def vertices(self) -> Tensor:
        """(V, 3) scene positions of the rows; those at the end of a contraction lie very far away."""
        low = torch.tensor(self.config.corners[0], device=self.index.device)
        at = ((self.index >= 0).nonzero() + low) / self.config.cells
        if self.contraction == "none":
            return (2 * at - 1) * self.config.extent
        return UNCONTRACTIONS[self.contraction](4 * at - 2)

    @torch.no_grad()
    def set_log_density(self, values: Tensor) -> None:
        """Take natural logarithms of densities (V,); what is below `EMPTY` is empty."""
        empty = EMPTY[self.density_activation]
        self.density.copy_(raw_of_log_density(values, self.density_activation).clamp(min=empty)[:, None] - empty)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"name": "density", "params": [self.density], "lr": self.config.density_lr, "lazy": True},
            {"name": "harmonics", "params": [self.harmonics], "lr": self.config.color_lr, "lazy": True},
        ]

    # -- total variation --------------------------------------------------------------------------------------------

    @property
    def _finest(self) -> bool:
        """Whether it has grown and will not again: total variation has no part in it then."""
        return self.config.stage == self.config.doublings > 0

    def add_prior_gradients(self, step: int, seed: int) -> None:
        if self._finest:
            return
        rows = self.density.shape[0]
        count = max(1, int(VARIATION_SHARE * rows))
        first = random.Random(f"{seed} {step}").randrange(rows)
        if self._cells is None:
            self._cells = (self.index.flatten() >= 0).nonzero()[:, 0].int()
        weights = (self.density, self.config.density_variation), (self.harmonics, self.config.color_variation)
        for parameter, weight in weights:
            if weight > 0 and parameter.grad is not None:
                given = (parameter.grad, parameter.detach(), self.index, self._cells)
                add_variation_gradient_(*given, first=first, count=count, weight=weight / count)

    # -- growth -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def grow(self, progress: float, occupied: Callable[[], Tensor]) -> bool:
        stage = min(self.config.doublings, sum(progress >= at for at in STAGES))
        if stage <= self.config.stage:
            return False
        changed = False
        while self.config.stage < min(stage, self.config.doublings):
            changed = self._refine() or changed
        return changed

    def _refine(self) -> bool:
        """Halve the pitch round what is dense; False where that takes too many rows, and then never again."""
        config, index = self.config, self.index
        there = index >= 0
        edge = 2 * (config.extent if config.contraction == "none" else 2.0) / config.cells
        density = density_from_raw(self.density[:, 0] + EMPTY[self.density_activation], self.density_activation)
        dense = torch.zeros_like(there)
        dense[there] = (density * edge > LEAST_THICKNESS)[index[there].long()]
        keep = dilated(dense) if bool(dense.any()) else there
        low, _ = config.corners
        lattice = refined(keep, low, config.cells)
        if len(lattice.parents) > config.most_rows:
            self.config = dataclasses.replace(config, doublings=config.stage)
            return False
        high = tuple(first + count - 1 for first, count in zip(lattice.low, lattice.row_of.shape, strict=True))
        grown = {"stage": config.stage + 1, "box": (*lattice.low, *high), "rows": len(lattice.parents)}
        self.density = nn.Parameter(rows_between(self.density, index, lattice.parents))
        self.harmonics = nn.Parameter(rows_between(self.harmonics, index, lattice.parents))
        self.config = dataclasses.replace(config, **grown)
        self._take(lattice.row_of)
        return True

    def growth(self) -> dict[str, Any]:
        config = self.config
        return {
            "doublings": config.doublings,
            "stage": config.stage,
            "box": list(config.box),
            "rows": config.rows,
        }

    def regrow(self, growth: dict[str, Any]) -> None:
        numbers = {name: int(growth[name]) for name in ("doublings", "stage", "rows")}
        self.config = dataclasses.replace(self.config, box=tuple(growth["box"]), **numbers)
        self._allocate(self.index.device)

    def check(self) -> None:
        self._cells = None
        stored = self.index.flatten()[self.index.flatten() >= 0]
        expected = torch.arange(self.density.shape[0], dtype=torch.int32, device=stored.device)
        if not torch.equal(stored, expected):
            rows = self.density.shape[0]
            raise ConfigError(f"index must number the {rows} rows one after the other; it names {len(stored)}")
