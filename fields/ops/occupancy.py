"""How is the occupancy grid kept: which cells are occupied, which are looked at next, and how do they change?

Cascade k spans [-2^k, 2^k]^3 of the scene frame with G^3 cells. Cell (x, y, z) has the flat index
x + G (y + G (z + G k)) over all cascades. Rules as instant-ngp (Mueller et al. 2022, appendix E.2): values decay and
are raised to what was seen; -1 marks cells no camera sees and never revives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from . import _cpu, _cuda, _library, _native
from ._random import CELL_STREAM, random_uniform
from .march import check_grid


def _check_values(grid: Tensor) -> None:
    square = grid.dim() == 4 and grid.shape[1] == grid.shape[2] == grid.shape[3] and grid.shape[3] % 8 == 0
    if not square or grid.dtype != torch.float32 or not 1 <= grid.shape[0] <= 16:
        text = "grid must be (K, G, G, G) float32 with K 1 to 16 and G a multiple of 8"
        raise ShapeError(f"{text}; got {tuple(grid.shape)} {grid.dtype}")


def pack_bitfield(grid: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Which cells are occupied, as bits and as a mip of blocks.

    Args:
        grid: (K, G, G, G) float32 values [cascade, z, y, x]; negative and NaN cells are never occupied by themselves.
        threshold: () float32; cells above it are occupied. A cell of a coarser cascade is occupied too where any of the
            eight finer cells it covers is.

    Returns:
        bits: (K, G^3 / 8) uint8; cell i of a cascade is bit i & 7 of byte i >> 3.
        coarse: (K, (G / 8)^3) uint8 for blocks of 8^3 cells: 0 where any of the block's cells is occupied, else the
            distance to the nearest such block of the cascade, in blocks and the maximum norm, at most
            min(G / 8, 255). Marching leaps over the cube that is known to be empty.

    No gradients.

    Raises:
        ShapeError: `grid` or `threshold` is not as above.
    """
    _check_values(grid)
    if threshold.dim() != 0 or threshold.dtype != torch.float32:
        raise ShapeError(f"threshold must be () float32; got {tuple(threshold.shape)} {threshold.dtype}")
    return _pack_bitfield(grid.detach(), threshold.detach())


def pack_bitfield_reference(grid: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """`pack_bitfield` in plain torch, any device."""
    cascades, g = grid.shape[0], grid.shape[1]
    full = (grid >= 0) & (grid > threshold)
    inner = slice(g // 4, 3 * (g // 4))
    for k in range(1, cascades):
        finer = full[k - 1].reshape(g // 2, 2, g // 2, 2, g // 2, 2).any(5).any(3).any(1)
        full[k, inner, inner, inner] |= finer
    weights = 2 ** torch.arange(8, device=grid.device)
    bits = (full.reshape(cascades, -1, 8) * weights).sum(2).to(torch.uint8)
    b = g // 8
    reached = full.reshape(cascades, 1, b, 8, b, 8, b, 8).any(7).any(5).any(3).float()
    distance = torch.zeros_like(reached)
    for _ in range(min(b, 255)):
        distance += 1 - reached
        reached = torch.nn.functional.max_pool3d(reached, 3, 1, 1)
    return bits, distance.reshape(cascades, -1).to(torch.uint8)


def _pack(grid: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    if not _native.usable(grid, threshold):
        return pack_bitfield_reference(grid, threshold)
    bits, coarse = _fake_pack(grid, threshold)
    sizes = (grid.shape[0], grid.shape[1])
    if _cuda.usable(grid):
        return _pack_on_cuda(grid.contiguous(), threshold, *sizes, bits, coarse)
    _cpu.call("pf_occupancy_pack_f32", grid.contiguous(), float(threshold), *sizes, bits, coarse)
    return bits, coarse


def _pack_on_cuda(
    grid: Tensor, threshold: Tensor, cascades: int, resolution: int, bits: Tensor, coarse: Tensor
) -> tuple[Tensor, Tensor]:
    blocks = resolution // 8
    for cascade in range(cascades):
        over = _cuda.one_thread_each(resolution**3 // 8)
        _cuda.call("pf_occupancy_bits_f32", over, grid, threshold, cascade, resolution, bits)
    over = _cuda.one_thread_each(coarse.numel())
    _cuda.call("pf_occupancy_blocks", over, bits, cascades, resolution, coarse)
    for axis in range(3):
        held, coarse = coarse, torch.empty_like(coarse)
        _cuda.call("pf_occupancy_spread", over, held, cascades, blocks, blocks**axis, coarse)
    return bits, coarse


def _fake_pack(grid: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    cascades, g = grid.shape[0], grid.shape[1]
    bits = grid.new_empty(cascades, g**3 // 8, dtype=torch.uint8)
    return bits, grid.new_empty(cascades, (g // 8) ** 3, dtype=torch.uint8)


def decay_and_max_(grid: Tensor, cells: Tensor, values: Tensor, decay: float) -> None:
    """Let all cells decay, then raise those that were looked at to what was seen, in place.

    Args:
        grid: (K, G, G, G) float32, contiguous. Cells below 0 stay as they are for ever.
        cells: (M,) int64 flat indices; any may repeat (the largest value counts), negative ones are skipped.
        values: (M,) float32; NaN is ignored.
        decay: factor in [0, 1] for every cell of value >= 0, looked at or not.

    No gradients. The result does not depend on the order of the cells.

    Raises:
        ShapeError: a shape or dtype is not as above, `grid` is not contiguous, or a cell is past the grid (on CUDA it
            is skipped).
        ConfigError: `decay` is not in [0, 1].
    """
    _check_values(grid)
    if not grid.is_contiguous():
        raise ShapeError(f"grid is changed in place and must be contiguous; got strides {grid.stride()}")
    if cells.dim() != 1 or cells.dtype != torch.int64:
        raise ShapeError(f"cells must be (M,) int64; got {tuple(cells.shape)} {cells.dtype}")
    if values.shape != cells.shape or values.dtype != torch.float32:
        raise ShapeError(f"values must be {tuple(cells.shape)} float32; got {tuple(values.shape)} {values.dtype}")
    if not 0 <= decay <= 1:
        raise ConfigError(f"decay must be in [0, 1]; got {decay}")
    _decay_and_max_(grid, cells, values.detach(), decay)


def decay_and_max_reference(grid: Tensor, cells: Tensor, values: Tensor, decay: float) -> Tensor:
    """The grid `decay_and_max_` would leave, in plain torch, any device; `grid` is not changed."""
    if cells.numel() and int(cells.max()) >= grid.numel():
        raise _bad_cells(cells, grid)
    decay = torch.tensor(decay, dtype=torch.float32).item()
    flat = torch.where(grid >= 0, grid * decay, grid).reshape(-1)
    used = (cells >= 0) & ~torch.isnan(values)
    cells, values = cells[used], values[used]
    raised = flat.scatter_reduce(0, cells, values, "amax", include_self=True)
    return torch.where(flat >= 0, raised, flat).reshape(grid.shape)


def _bad_cells(cells: Tensor, grid: Tensor) -> ShapeError:
    return ShapeError(f"cells must be below the {grid.numel()} cells of the grid; got {int(cells.max())}")


def _decay(grid: Tensor, cells: Tensor, values: Tensor, decay: float) -> None:
    if not _native.usable(grid, cells, values):
        grid.copy_(decay_and_max_reference(grid, cells, values, decay))
        return
    size = (cells.contiguous(), values.contiguous(), cells.shape[0])
    if _cuda.usable(grid):
        _cuda.call("pf_occupancy_decay_f32", _cuda.one_thread_each(grid.numel()), grid, grid.numel(), float(decay))
        _cuda.call("pf_occupancy_max_f32", _cuda.one_thread_each(cells.shape[0]), grid, grid.numel(), *size)
        return
    if _cpu.call("pf_occupancy_decay_max_f32", grid, grid.numel(), *size, float(decay)) != 0:
        raise _bad_cells(cells, grid)


def sample_cells(
    grid: Tensor, bits: Tensor, *, uniform: int, occupied: int, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Choose cells to look at, and a point in each.

    Both parts are stratified: their strata divide the list of candidate cells, in order of the flat index, into equal
    parts. With as many samples as candidates each is chosen exactly once. Draws depend on (seed, step, sample) alone.

    Args:
        grid: (K, G, G, G) float32; cells below 0 are never chosen.
        bits: (K, G^3 / 8) uint8, which cells are occupied.
        uniform: how many samples come from all cells.
        occupied: how many come from occupied cells (from all cells where none is occupied).
        seed, step: integers that name the draw.

    Returns:
        cells: (M,) int64 flat indices, M = uniform + occupied, the uniform part first; -1 where no cell may be chosen.
        positions: (M, 3) float32 uniform in the cell, scene frame; 0 where the cell is -1.

    No gradients.

    Raises:
        ShapeError: a shape or dtype is not as above.
        ConfigError: a count is negative.
    """
    _check_values(grid)
    check_grid(grid.shape[0], grid.shape[1], bits, bits.new_empty(grid.shape[0], (grid.shape[1] // 8) ** 3))
    if uniform < 0 or occupied < 0:
        raise ConfigError(f"sample counts must not be negative; got uniform {uniform}, occupied {occupied}")
    return _sample_cells(grid.detach(), bits, uniform, occupied, seed, step)


def sample_cells_reference(
    grid: Tensor, bits: Tensor, uniform: int, occupied: int, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """`sample_cells` in plain torch, any device."""
    g = grid.shape[1]
    flags = ((bits.reshape(-1, 1).long() >> torch.arange(8, device=bits.device)) & 1).reshape(-1).bool()
    seen = grid.reshape(-1) >= 0
    everything = seen.nonzero()[:, 0]
    full = (seen & flags).nonzero()[:, 0]
    draws = torch.arange(uniform + occupied, device=grid.device)
    parts = [
        _stratified(everything, draws[:uniform], 0, uniform, seed, step),
        _stratified(full if full.numel() else everything, draws[uniform:], uniform, occupied, seed, step),
    ]
    cells = torch.cat(parts)
    local, side = cells % g**3, torch.exp2((cells // g**3).float())
    index = torch.stack([local % g, local // g % g, local // g**2], 1).float()
    u = torch.stack([random_uniform(seed, step, draws, CELL_STREAM + 1 + a) for a in range(3)], 1)
    positions = ((index + u) * (2.0 / g) - 1.0) * side[:, None]
    return cells, torch.where(cells[:, None] >= 0, positions, 0.0)


def _stratified(choices: Tensor, draws: Tensor, first: int, strata: int, seed: int, step: int) -> Tensor:
    count = choices.shape[0]
    if count == 0 or strata == 0:
        return torch.full_like(draws, -1)
    u = random_uniform(seed, step, draws, CELL_STREAM).double()
    pick = ((draws - first).double() * float(count) / float(strata) + (float(count) / float(strata)) * u).long()
    return choices[pick.clamp(max=count - 1)]


def _sample(grid: Tensor, bits: Tensor, uniform: int, occupied: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    if not _native.usable(grid, bits):
        return sample_cells_reference(grid, bits, uniform, occupied, seed, step)
    cells, positions = _fake_sample(grid, bits, uniform, occupied, seed, step)
    if _cuda.usable(grid):
        return _sample_on_cuda(grid.contiguous(), bits.contiguous(), (uniform, occupied, seed, step), cells, positions)
    sizes = (grid.shape[0], grid.shape[1], uniform, occupied, seed, step)
    if _cpu.call("pf_occupancy_sample_f32", grid.contiguous(), bits.contiguous(), *sizes, cells, positions) != 0:
        raise MemoryError(f"no memory for the lists of {grid.numel()} occupancy cells")
    return cells, positions


def _sample_on_cuda(
    grid: Tensor, bits: Tensor, draw: tuple[int, ...], cells: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    count = grid.numel()
    flags = grid.new_empty(2, count, dtype=torch.uint8)
    _cuda.call("pf_occupancy_flags", _cuda.one_thread_each(count), grid, bits, count, flags)
    ranks, over = flags.cumsum(1, dtype=torch.int32), _cuda.one_thread_each(cells.shape[0])
    _cuda.call("pf_occupancy_sample_f32", over, ranks, count, grid.shape[1], *draw, cells, positions)
    return cells, positions


def _fake_sample(
    grid: Tensor, bits: Tensor, uniform: int, occupied: int, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    count = uniform + occupied
    return grid.new_empty(count, dtype=torch.int64), grid.new_empty(count, 3)


_pack_bitfield = _library.define("pack_bitfield(Tensor grid, Tensor threshold) -> (Tensor, Tensor)", _pack, _fake_pack)
_decay_and_max_ = _library.define(
    "decay_and_max_(Tensor(a!) grid, Tensor cells, Tensor values, float decay) -> ()",
    _decay,
    lambda grid, cells, values, decay: None,
)
_sample_cells = _library.define(
    "sample_cells(Tensor grid, Tensor bits, int uniform, int occupied, int seed, int step) -> (Tensor, Tensor)",
    _sample,
    _fake_sample,
)
