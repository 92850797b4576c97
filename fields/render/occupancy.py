"""Where in the scene may there be density? The occupancy grid that marching consults and training keeps up to date.

After instant-ngp (Mueller et al. 2022, appendix E.2): nested cascades of cells hold the largest optical thickness of
one step seen lately; it decays at every refresh, and cells above a threshold are occupied. Until the first refresh
every cell is occupied.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ..ops.activations import density_from_raw
from ..ops.occupancy import decay_and_max_, pack_bitfield, sample_cells

# One step of thickness 32 lets exp(-32) ~ 1e-14 of the light through: nothing is thicker. Keeps means finite where
# density overflows, and lets wrong density fade within (log(32 / 0.01) / log(1 / 0.95)) ~ 160 refreshes.
_OPAQUE = 32.0
_BELOW = 1 - 1e-6  # what of a mean counts, so that equal values are above their rounded mean
_CHUNK = 1 << 18  # points of one density query: a few hundred megabytes of activations at most


class OccupancyGrid(nn.Module):
    """Occupancy of the scene frame.

    Attributes:
        grid: (K, G, G, G) float32 [cascade, z, y, x], optical thickness of one step; -1 where no camera looks.
        bits: (K, G^3 / 8) uint8 and
        coarse: (K, (G / 8)^3) uint8: see `ops.occupancy.pack_bitfield`; what `ops.march.march_rays` takes.
    """

    grid: Tensor
    bits: Tensor
    coarse: Tensor

    def __init__(
        self, *, cascades: int = 1, resolution: int = 128, decay: float = 0.95, threshold: float = 0.01
    ) -> None:
        """
        Args:
            cascades: K, 1 to 16; cascade k spans [-2^k, 2^k]^3.
            resolution: G cells along each axis of a cascade, a multiple of 8 (instant-ngp: 128); K G^3 < 2^31.
            decay: factor of a refresh, in [0, 1] (instant-ngp: 0.95).
            threshold: largest thickness of a step that may count as empty (instant-ngp: 0.01).

        Raises:
            ConfigError: a value is not as above.
        """
        super().__init__()
        if not 1 <= cascades <= 16 or resolution < 8 or resolution % 8 or cascades * resolution**3 >= 2**31:
            text = "cascades must be 1 to 16, resolution a positive multiple of 8 and all cells fewer than 2^31"
            raise ConfigError(f"{text}; got {cascades} and {resolution}")
        if not (0 <= decay <= 1 and threshold >= 0):
            raise ConfigError(f"decay must be in [0, 1] and threshold >= 0; got {decay} and {threshold}")
        self.cascades, self.resolution, self.decay, self.threshold = cascades, resolution, decay, threshold
        cells = resolution**3
        self.register_buffer("grid", torch.zeros(cascades, resolution, resolution, resolution))
        self.register_buffer("bits", torch.full((cascades, cells // 8), 255, dtype=torch.uint8))
        self.register_buffer("coarse", torch.zeros(cascades, cells // 512, dtype=torch.uint8))

    @property
    def cell_count(self) -> int:
        """K G^3, over all cascades."""
        return self.grid.numel()

    @torch.no_grad()
    def update(
        self,
        density_raw: Callable[[Tensor], Tensor],
        *,
        activation: str,
        step: int,
        seed: int,
        step_size: float,
        warmup: bool = False,
        samples: int | None = None,
    ) -> None:
        """Refresh: look at some cells, let all decay, decide again which are occupied.

        Args:
            density_raw: positions (n, 3), scene frame -> raw density (n,); called without gradients on at most 2^18
                points at a time.
            activation: a key of `ops.activations.DENSITY_ACTIVATIONS`.
            step, seed: name the random draw; a refresh repeats exactly for equal values.
            step_size: smallest marching step, scene units: thickness = density * step_size in every cascade.
            warmup: look at every cell once (instant-ngp: during the first 256 steps). Else half of the samples come
                from all cells and half from occupied ones, both stratified.
            samples: how many points to look at; None means every cell at warmup, later an eighth as many.

        Cost is `samples` density queries and a few passes over the grid. Thickness is cut at 32; NaN is ignored.

        Raises:
            ShapeError: `density_raw` does not answer with (n,).
        """
        if samples is None:
            samples = self.cell_count if warmup else self.cell_count // 8
        uniform = samples if warmup else (samples + 1) // 2
        cells, positions = sample_cells(
            self.grid, self.bits, uniform=uniform, occupied=samples - uniform, seed=seed, step=step
        )
        parts = [self._thickness(density_raw, p, activation, step_size) for p in positions.split(_CHUNK) if len(p)]
        decay_and_max_(self.grid, cells, torch.cat([positions.new_zeros(0), *parts]), self.decay)
        self.refresh_bits()

    @torch.no_grad()
    def look_again(
        self,
        density_raw: Callable[[Tensor], Tensor],
        *,
        activation: str,
        step: int,
        seed: int,
        step_size: float,
        looks: int = 8,
    ) -> None:
        """Forget how thick occupied cells were and look at each of them `looks` times: what has thinned out since goes
        at once. Arguments as of `update`; empty cells stay empty.
        """
        count = looks * int(self.flags().sum())
        if count == 0:
            return
        cells, positions = sample_cells(self.grid, self.bits, uniform=0, occupied=count, seed=seed, step=step)
        parts = [self._thickness(density_raw, p, activation, step_size) for p in positions.split(_CHUNK)]
        self.grid.copy_(torch.where(self.grid >= 0, 0.0, self.grid))
        decay_and_max_(self.grid, cells, torch.cat(parts), self.decay)
        self.refresh_bits()

    @staticmethod
    def _thickness(
        density_raw: Callable[[Tensor], Tensor], positions: Tensor, activation: str, step_size: float
    ) -> Tensor:
        raw = density_raw(positions)
        if raw.shape != positions.shape[:1]:
            text = f"the density function must return one value a point, {tuple(positions.shape[:1])}"
            raise ShapeError(f"{text}; got {tuple(raw.shape)}")
        return (density_from_raw(raw.float(), activation) * step_size).clamp(max=_OPAQUE)

    @torch.no_grad()
    def refresh_bits(self) -> None:
        """Decide anew which cells are occupied: those above min(threshold, mean of the values >= 0). Where all values
        are the same and not 0, every cell is."""
        seen = self.grid >= 0
        mean = torch.where(seen, self.grid, 0.0).sum(dtype=torch.float64) / seen.sum().clamp(min=1)
        bits, coarse = pack_bitfield(self.grid, (mean * _BELOW).clamp(max=self.threshold).float())
        self.bits.copy_(bits)
        self.coarse.copy_(coarse)

    @torch.no_grad()
    def take_bits(self, bits: Tensor) -> None:
        """Become what the bits of another grid of this shape say. How thick an occupied cell is they do not tell: it
        starts at the threshold.

        Raises:
            ShapeError: `bits` is not (K, G^3 / 8) uint8.
        """
        if bits.shape != self.bits.shape or bits.dtype != torch.uint8:
            raise ShapeError(f"bits must be {tuple(self.bits.shape)} uint8; got {tuple(bits.shape)} {bits.dtype}")
        self.bits.copy_(bits)
        self.take_flags(self.flags())

    @torch.no_grad()
    def take_flags(self, flags: Tensor) -> None:
        """Become what `flags` (K, G, G, G) bool [cascade, z, y, x] say, as `take_bits` does.

        Raises:
            ShapeError: `flags` is not as above.
        """
        if flags.shape != self.grid.shape or flags.dtype != torch.bool:
            raise ShapeError(f"flags must be {tuple(self.grid.shape)} bool; got {tuple(flags.shape)} {flags.dtype}")
        values = flags.float()
        self.grid.copy_(values * self.threshold)
        bits, coarse = pack_bitfield(values, values.new_tensor(0.5))
        self.bits.copy_(bits)
        self.coarse.copy_(coarse)

    @torch.no_grad()
    def mark_invisible(self, visible: Tensor) -> None:
        """Cells that no camera sees are never occupied, looked at or revived.

        Args:
            visible: (K, G, G, G) bool [cascade, z, y, x]. Cells marked before stay marked.

        Raises:
            ShapeError: `visible` is not as above.
        """
        if visible.shape != self.grid.shape or visible.dtype != torch.bool:
            expected = f"{tuple(self.grid.shape)} bool"
            raise ShapeError(f"visible must be {expected}; got {tuple(visible.shape)} {visible.dtype}")
        self.grid.masked_fill_(~visible, -1.0)
        flags = self.flags() & (self.grid >= 0)
        bits, coarse = pack_bitfield(flags.float(), self.grid.new_tensor(0.5))
        self.bits.copy_(bits)
        self.coarse.copy_(coarse)

    @torch.no_grad()
    def reset(self) -> None:
        """Forget what was seen: every cell that a camera sees is occupied again."""
        self.grid.copy_(torch.where(self.grid >= 0, 0.0, self.grid))
        bits, coarse = pack_bitfield(torch.where(self.grid >= 0, 1.0, self.grid), self.grid.new_tensor(0.5))
        self.bits.copy_(bits)
        self.coarse.copy_(coarse)

    def cell_centres(self) -> Tensor:
        """(K, G, G, G, 3) float32 scene-frame centres [cascade, z, y, x]."""
        line = (torch.arange(self.resolution, device=self.grid.device) + 0.5) * (2.0 / self.resolution) - 1.0
        z, y, x = torch.meshgrid(line, line, line, indexing="ij")
        unit = torch.stack([x, y, z], -1)
        return torch.stack([unit * 2.0**k for k in range(self.cascades)])

    def flags(self) -> Tensor:
        """(K, G, G, G) bool [cascade, z, y, x]: the bits, which cells are occupied."""
        shifts = torch.arange(8, device=self.bits.device)
        return ((self.bits[..., None].long() >> shifts) & 1).bool().reshape(self.grid.shape)

    def flags_at(self, resolution: int) -> Tensor:
        """(K, R, R, R) bool: of a grid of R cells along each axis, those that touch an occupied one of this."""
        return torch.nn.functional.adaptive_max_pool3d(self.flags().float(), resolution).bool()

    def holds(self, x: Tensor) -> Tensor:
        """(N,) bool: whether positions (N, 3), scene frame, lie in occupied cells, each in the smallest cascade that
        contains it. Positions beyond the outermost cascade, and NaN, do not."""
        reach = x.abs().amax(1)
        inside = reach <= 2.0 ** (self.cascades - 1)
        cascade = torch.where(inside, reach, 1.0).clamp(min=1).log2().ceil().long()
        unit = x * torch.exp2(-cascade.float())[:, None] * 0.5 + 0.5
        cell = torch.where(inside[:, None], unit * self.resolution, 0.0).long().clamp(0, self.resolution - 1)
        flat = ((cascade * self.resolution + cell[:, 2]) * self.resolution + cell[:, 1]) * self.resolution + cell[:, 0]
        return inside & ((self.bits.view(-1)[flat >> 3] >> (flat & 7).byte()) & 1).bool()

    def occupied_box(self) -> Tensor:
        """(2, 3) lower and upper corner, scene frame, of the occupied cells of all cascades; of all of space that the
        grid covers where none is."""
        flags, reach = self.flags(), float(2 ** (self.cascades - 1))
        low, high = flags.new_full((3,), reach, dtype=torch.float32), flags.new_full((3,), -reach, dtype=torch.float32)
        for cascade, cells in enumerate(flags):
            size = 2.0 ** (cascade + 1) / self.resolution
            for axis, others in enumerate(((0, 1), (0, 2), (1, 2))):  # x lies last in the grid
                hit = cells.any(others[1]).any(others[0]).nonzero()
                if len(hit):
                    low[axis] = torch.minimum(low[axis], hit.min() * size - 2.0**cascade)
                    high[axis] = torch.maximum(high[axis], (hit.max() + 1) * size - 2.0**cascade)
        empty = (low > high).any()
        return torch.stack([torch.where(empty, -reach, low), torch.where(empty, reach, high)])

    def occupied_fraction(self) -> float:
        """Share of the cells, over all cascades, that are occupied; in [0, 1]."""
        table = torch.tensor([bin(k).count("1") for k in range(256)], device=self.bits.device)
        return int(table[self.bits.long()].sum()) / self.cell_count
