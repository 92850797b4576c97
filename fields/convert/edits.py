"""How is a part of a scene taken away, moved or given another colour, where every voxel holds its own?

An edit changes the rows of a `GridField`: those at vertices in a region, a box or a ball of the scene frame. What
counts as dense is what the lattice itself keeps when it is refined (`LEAST_THICKNESS`). A moved part keeps its optical
thickness: scaled by s, its density is divided by s. What an edit has changed is told vertex by vertex, so that the
occupancy grid can follow there and stay as it is elsewhere.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..encodings.sparse_lattice import dilated
from ..errors import ConfigError
from ..ops.activations import density_from_raw
from ..ops.activations import raw_of_log_density as raw_of
from ..ops.sparse_grid import sparse_grid_sample
from ..radiance.grid import EMPTY, LEAST_THICKNESS, MOST_VERTICES, GridField
from ..render.occupancy import OccupancyGrid
from .shortcuts import DARKEST

_SNAP = 1e-4  # pitches: a place nearer to a vertex is the vertex, whatever float32 makes of positions
_HALVINGS = 40  # of an interval of 64: to a float32's rounding
_LOOKS = 4  # along each side of an occupancy cell, its faces included
_CHUNK = 1 << 18  # points of one pass

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Box:
    """All between two corners, scene units."""

    low: Vector
    high: Vector

    def __post_init__(self) -> None:
        _check_numbers(self, *self.low, *self.high)
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise ConfigError(f"{self} is empty: its second corner must lie beyond the first along x, y and z")

    def __str__(self) -> str:
        return f"box:{_listed(*self.low, *self.high)}"

    @property
    def centre(self) -> Vector:
        """What a move scales about."""
        x, y, z = ((low + high) / 2 for low, high in zip(self.low, self.high, strict=True))
        return x, y, z

    def holds(self, x: Tensor) -> Tensor:
        """(N,) bool: whether positions (N, 3) lie in it."""
        return ((x >= x.new_tensor(self.low)) & (x <= x.new_tensor(self.high))).all(1)


@dataclass(frozen=True)
class Sphere:
    """All within `radius` of `centre`, scene units."""

    centre: Vector
    radius: float

    def __post_init__(self) -> None:
        _check_numbers(self, *self.centre, self.radius)
        if self.radius <= 0:
            raise ConfigError(f"{self} is empty: its radius must be positive")

    def __str__(self) -> str:
        return f"sphere:{_listed(*self.centre, self.radius)}"

    def holds(self, x: Tensor) -> Tensor:
        """(N,) bool: whether positions (N, 3) lie in it."""
        return (x - x.new_tensor(self.centre)).norm(dim=1) <= self.radius


@dataclass(frozen=True)
class Erase:
    """No density in the region. The colours of its vertices stay, unseen: neighbours are blended with them."""

    region: Box | Sphere

    def __str__(self) -> str:
        return f"erase {self.region}"


@dataclass(frozen=True)
class Recolour:
    """The odds of each channel, c / (1 - c), are multiplied by one factor in the region, such that the mean over its
    dense vertices, seen from all sides, becomes `rgb`: light and dark, texture and gloss stay."""

    region: Box | Sphere
    rgb: Vector
    """In [0, 1]; at most 1/512 from its ends is reached."""

    def __post_init__(self) -> None:
        _check_numbers(self, *self.rgb)
        if not all(0 <= c <= 1 for c in self.rgb):
            raise ConfigError(f"a colour must be red, green and blue from 0 to 1; got {_listed(*self.rgb)}")

    def __str__(self) -> str:
        return f"recolour {self.region}={_listed(*self.rgb)}"


@dataclass(frozen=True)
class Move:
    """What is dense in the region, scaled about its centre, then moved; the region is left empty. Where it lands on
    something, it takes its place."""

    region: Box | Sphere
    by: Vector
    """Scene units."""
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_numbers(self, *self.by, self.scale)
        if self.scale <= 0:
            raise ConfigError(f"the scale of a move must be positive; got {self.scale:g}")

    def __str__(self) -> str:
        return f"move {self.region}={_listed(*self.by, *(() if self.scale == 1 else (self.scale,)))}"


Edit = Erase | Recolour | Move


class Change(NamedTuple):
    """What an edit has done, by the rows that the field has now."""

    vertices: int
    """Dense ones that were erased or recoloured; that a move has filled."""
    gone: Tensor
    """(V,) bool: density was taken away here."""
    come: Tensor
    """(V,) bool: a move has landed here."""


def _check_numbers(edit: object, *numbers: float) -> None:
    if not all(math.isfinite(v) for v in numbers):
        raise ConfigError(f"{edit}: numbers must be finite")


def _listed(*numbers: float) -> str:
    return ",".join(f"{v:.12g}" for v in numbers)


@torch.no_grad()
def apply_edit(field: GridField, edit: Edit, reach: float = math.inf) -> Change:
    """Change a lattice in place.

    Args:
        reach: half side of the cube around the origin beyond which nothing is seen; a move must end within it.

    Raises:
        ConfigError: nothing dense lies in the region, or a move ends outside the lattice's cube or `reach`, needs more
            vertices than the field may have, is too small to hit a vertex, or the field is contracted. The field is
            as it was.
    """
    inside = edit.region.holds(field.vertices())
    dense = _dense(field, field.density[:, 0])
    count = int((inside & dense).sum())
    if count == 0:
        raise ConfigError(f"{edit}: no vertex with density lies in {edit.region}")
    if isinstance(edit, Move):
        return _move(field, edit, inside, dense, reach)
    nowhere = torch.zeros_like(inside)
    if isinstance(edit, Recolour):
        _recolour(field, edit.rgb, inside, dense)
        return Change(count, nowhere, nowhere)
    field.density[inside] = 0
    return Change(count, inside, nowhere)


@torch.no_grad()
def follow_edit(occupancy: OccupancyGrid, field: GridField, change: Change, step_size: float) -> OccupancyGrid:
    """The grid of an edited field: cells that a changed vertex reaches are looked at anew, 64 times each; others stay.
    What a model was not seen to hold, such as haze in empty cells, stays unseen: only what has landed adds cells."""
    new = OccupancyGrid(cascades=occupancy.cascades, resolution=occupancy.resolution).to(occupancy.bits.device)
    centres, before = occupancy.cell_centres().flatten(0, 3), occupancy.flags().flatten()
    size = 2.0 ** (torch.arange(occupancy.cascades, device=centres.device) + 1) / occupancy.resolution
    size = size.repeat_interleave(occupancy.resolution**3)
    after, looked = before.clone(), before.clone()
    if bool(change.come.any()):
        x, margin = field.vertices()[change.come], 2 * field.config.extent / field.config.cells
        gap = torch.maximum(x.amin(0) - centres, centres - x.amax(0)).amax(1)
        looked |= gap <= margin + size / 2
    line = torch.linspace(-0.5, 0.5, _LOOKS, device=centres.device)
    offsets = torch.cartesian_prod(line, line, line)
    reached = torch.stack([change.gone, change.come], 1).float()
    for cells in looked.nonzero()[:, 0].split(_CHUNK // len(offsets)):
        x = (centres[cells, None] + offsets * size[cells, None, None]).flatten(0, 1)
        gone, come = (sparse_grid_sample(field.to_unit(x), reached, field.index) > 0).view(len(cells), -1, 2).unbind(2)
        density = density_from_raw(field.geometry(x).density_raw, field.density_activation).view(gone.shape)
        holds = (density * step_size > occupancy.threshold).any(1) & (before[cells] | come.any(1))
        after[cells] = torch.where((gone | come).any(1), holds, before[cells])
    new.take_flags(after.view(occupancy.grid.shape))
    return new


def _dense(field: GridField, rows: Tensor) -> Tensor:
    """Whether rows of density stop light: by the rule of `GridField`'s refinement."""
    edge = 2 * (field.config.extent if field.contraction == "none" else 2.0) / field.config.cells
    raw = rows + EMPTY[field.density_activation]
    return density_from_raw(raw, field.density_activation) * edge > LEAST_THICKNESS


def _recolour(field: GridField, rgb: Vector, inside: Tensor, dense: Tensor) -> None:
    constant = float(field.basis(field.density.new_tensor([[0.0, 0.0, 1.0]]))[0, 0])
    channels = field.harmonics.unflatten(1, (3, -1))
    odds = channels[inside & dense, :, 0] * constant
    target = odds.new_tensor(rgb).clamp(DARKEST, 1 - DARKEST)
    low = target.logit() - odds.amax(0)  # as far up as this, no vertex is brighter than the target
    high = target.logit() - odds.amin(0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        dark = (odds + middle).sigmoid().mean(0) < target
        low, high = torch.where(dark, middle, low), torch.where(dark, high, middle)
    channels[:, :, 0] += torch.where(inside[:, None], (low + high) / 2 / constant, 0.0)


# -- moves -------------------------------------------------------------------------------------------------------------


class _Target(NamedTuple):
    at: Tensor  # (L, 3) int64 vertices of the cube that are written to
    density: Tensor  # (L,) rows
    harmonics: Tensor  # (L, 3B)
    dense: Tensor  # (L,) bool; the others are the ring round these, whose colours are blended with theirs


def _move(field: GridField, edit: Move, inside: Tensor, dense: Tensor, reach: float) -> Change:
    if field.contraction != "none":
        text = f"a field that folds far space in (contraction {field.contraction!r}) has no vertices to carry it far"
        raise ConfigError(f"{edit}: {text}; only erase and recolour work on it")
    target = _moved(field, edit, inside, inside & dense, reach)
    there = _rows_at(field, target.at)
    staying = (there >= 0) & (dense & ~inside)[there.clamp(min=0)]
    target = _Target(*(part[target.dense | ~staying] for part in target))
    former = _make_room(field, edit, target.at)
    gone, come = torch.zeros(2, len(field.density), dtype=torch.bool, device=inside.device)
    gone[former] = inside
    field.density[gone] = 0
    rows = _rows_at(field, target.at)
    come[rows] = True
    fuller = torch.maximum(target.density, field.density[rows, 0])
    field.density[rows, 0] = torch.where(target.dense, target.density, fuller)
    field.harmonics[rows] = target.harmonics
    return Change(int(target.dense.sum()), gone, come)


def _moved(field: GridField, edit: Move, inside: Tensor, dense: Tensor, reach: float) -> _Target:
    """What the region says at the vertices round where its dense ones go to, nothing dense being beside it. Colours are
    blended with those beside it, as they were when it lay there, but not with the grey of vertices without a row."""
    cells, extent, scale = field.config.cells, field.config.extent, edit.scale
    per_unit, low = cells / (2 * extent), torch.tensor(field.config.corners[0], device=inside.device)
    centre = (torch.tensor(edit.region.centre, dtype=torch.float64, device=inside.device) + extent) * per_unit
    goal = centre + centre.new_tensor(edit.by) * per_unit
    at = ((field.index >= 0).nonzero() + low)[dense]
    first, last = (goal + scale * (end - centre) for end in (at.amin(0), at.amax(0)))
    limit = min(extent, reach)
    margin = (extent - limit) * per_unit - _SNAP
    if bool((first < margin).any() or (last > cells - margin).any()):
        raise ConfigError(f"{edit}: it ends outside [-{limit:g}, {limit:g}]^3, all that the model can show")
    begin = ((first - scale).floor().long() - 1).clamp(min=0)
    shape = tuple(int(n) for n in ((last + scale).ceil().long() + 2).clamp(max=cells + 1) - begin)

    def blend(ids: Tensor, rows: Tensor) -> Tensor:
        parts = [rows.new_zeros(0, rows.shape[1])]
        for some in ids.split(_CHUNK):
            p = (torch.stack(torch.unravel_index(some, shape), 1) + begin - goal) / scale + centre - low
            parts.append(_blend(torch.where((p - p.round()).abs() < _SNAP, p.round(), p), rows, field.index))
        return torch.cat(parts)

    everywhere = torch.arange(math.prod(shape), device=inside.device)
    alone = torch.where(inside[:, None], field.density, 0)
    density, weight = blend(everywhere, torch.cat([alone, torch.ones_like(alone)], 1)).unbind(1)
    if scale != 1:
        empty, kind = EMPTY[field.density_activation], field.density_activation
        thinner = raw_of(density_from_raw(density + empty, kind).log() - math.log(scale), kind) - empty
        density = torch.where(density > 0, thinner.clamp(min=0), density)
    solid = _dense(field, density)
    if not bool(solid.any()):
        raise ConfigError(f"{edit}: nothing is left of it between vertices {1 / per_unit:.3g} apart; scale it less")
    ids = (dilated(solid.view(shape)).flatten() & (weight > 0)).nonzero()[:, 0]
    harmonics = blend(ids, field.harmonics) / weight[ids, None]
    return _Target(torch.stack(torch.unravel_index(ids, shape), 1) + begin, density[ids], harmonics, solid[ids])


def _make_room(field: GridField, edit: Move, at: Tensor) -> Tensor:
    """Give vertices `at` (L, 3) rows too, empty ones; (V,) int64 where the former rows lie now."""
    config, old = field.config, field.index >= 0
    first, last = (at.new_tensor(corner) for corner in config.corners)
    low = torch.minimum(at.amin(0) - 1, first).clamp(min=0)  # beyond a ring of empty vertices there is nothing
    high = torch.maximum(at.amax(0) + 1, last).clamp(max=config.cells)
    shape = tuple((high - low + 1).tolist())
    new = int((_rows_at(field, at) < 0).sum())
    if new == 0:
        return torch.arange(len(field.density), device=at.device)
    count = len(field.density) + new
    if count > config.most_rows or math.prod(shape) > MOST_VERTICES:
        limits = f"most_rows is {config.most_rows}, and a box holds at most {MOST_VERTICES}"
        raise ConfigError(f"{edit}: it needs {count} vertices in a box of {'x'.join(map(str, shape))}; {limits}")
    there = torch.zeros(shape, dtype=torch.bool, device=at.device)
    window = tuple(slice(a, a + n) for a, n in zip((first - low).tolist(), old.shape, strict=True))
    there[window] = old
    there[(at - low).unbind(1)] = True
    index = torch.full(shape, -1, dtype=torch.int32, device=at.device)
    index[there] = torch.arange(count, dtype=torch.int32, device=at.device)
    former = index[window][old].long()
    values = [rows.new_zeros(count, rows.shape[1]).index_copy(0, former, rows) for rows in field.parameters()]
    field.regrow({**field.growth(), "box": [*low.tolist(), *high.tolist()], "rows": count})
    for rows, value in zip(field.parameters(), values, strict=True):
        rows.copy_(value)
    field.index.copy_(index)
    field.check()
    return former


def _rows_at(field: GridField, at: Tensor) -> Tensor:
    """(L,) int64 rows of vertices (L, 3) of the cube, -1 where there is none."""
    return _look_up(field.index, at - at.new_tensor(field.config.corners[0]))


def _look_up(index: Tensor, at: Tensor) -> Tensor:
    within = ((at >= 0) & (at < at.new_tensor(index.shape))).all(1)
    return torch.where(within, index[torch.where(within[:, None], at, 0).unbind(1)], -1).long()


def _blend(p: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """(N, C) rows blended trilinearly at places (N, 3) float64, in vertices of the index; nothing beyond it. Exactly a
    row's values at a vertex, for which `sparse_grid_sample` rounds too much."""
    low = p.floor()
    ahead, total = p - low, rows.new_zeros(len(p), rows.shape[1])
    for corner in itertools.product((0, 1), repeat=3):
        found = _look_up(index, low.long() + low.new_tensor(corner).long())
        sides = torch.where(low.new_tensor(corner).bool(), ahead, 1 - ahead)
        weight = torch.where(found >= 0, sides.prod(1), 0).to(rows.dtype)
        total += rows[found.clamp(min=0)] * weight[:, None]
    return total
