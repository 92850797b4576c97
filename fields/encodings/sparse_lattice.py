"""Which vertices does a sparse grid need, and what does a finer one hold? Pruning and halving the pitch.

A lattice is an index (X, Y, Z) int32 of rows, -1 where a vertex is empty and counts as zero (see `ops.sparse_grid`).
Its box is told by its first and last vertex within a cube of vertices 0 to `cells`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 1 << 18  # rows of one pass: their eight parents take some 250 MB at 27 channels


class Lattice(NamedTuple):
    """Vertices of a sparse grid."""

    row_of: Tensor
    """(X, Y, Z) int32: row of each vertex of the box, in order; -1 where there is none."""
    low: tuple[int, int, int]
    """The first vertex of the box."""
    parents: Tensor
    """(V, 3) int64: where each row lies, counted from the first vertex of the lattice that was refined, in half its
    pitch."""


def dilated(mask: Tensor) -> Tensor:
    """(X, Y, Z) bool: true where any of the 3^3 vertices round it is."""
    for axis in range(3):
        grown = mask.clone()
        count = mask.shape[axis] - 1
        grown.narrow(axis, 0, count).logical_or_(mask.narrow(axis, 1, count))
        grown.narrow(axis, 1, count).logical_or_(mask.narrow(axis, 0, count))
        mask = grown
    return mask


def halved(mask: Tensor) -> Tensor:
    """(2X-1, 2Y-1, 2Z-1) bool: vertices of half the pitch whose parents are all true; blends between those need no
    others."""
    for axis in range(3):
        count = mask.shape[axis]
        shape = list(mask.shape)
        shape[axis] = 2 * count - 1
        fine = mask.new_zeros(shape)
        even, odd = [slice(None)] * 3, [slice(None)] * 3
        even[axis], odd[axis] = slice(0, None, 2), slice(1, None, 2)
        fine[tuple(even)] = mask
        fine[tuple(odd)] = mask.narrow(axis, 0, count - 1) & mask.narrow(axis, 1, count - 1)
        mask = fine
    return mask


def refined(keep: Tensor, low: tuple[int, ...], cells: int) -> Lattice:
    """The lattice of half the pitch within the vertices to be kept, its box drawn in round them.

    A ring of empty vertices stays round them, but not beyond the cube, so that beyond the box there is nothing.

    Args:
        keep: (X, Y, Z) bool, not all false.
        low: the first vertex of the box of `keep`.
        cells: of the cube, at the present pitch.
    """
    fine = halved(keep)
    parents = fine.nonzero()
    first = torch.tensor(low, device=keep.device) * 2
    lowest = (parents.amin(0) + first - 1).clamp(min=0)
    highest = (parents.amax(0) + first + 1).clamp(max=2 * cells)
    index = torch.full(tuple((highest - lowest + 1).tolist()), -1, dtype=torch.int32, device=keep.device)
    at = parents + first - lowest
    index[at[:, 0], at[:, 1], at[:, 2]] = torch.arange(len(parents), dtype=torch.int32, device=keep.device)
    x, y, z = (int(v) for v in lowest)
    return Lattice(index, (x, y, z), parents)


def rows_between(rows: Tensor, index: Tensor, parents: Tensor) -> Tensor:
    """(V', C) what the rows (V, C) of a lattice say at `Lattice.parents`: means of up to eight of them, exact to
    rounding."""
    padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])  # -1 is the last of these
    parts = []
    for chunk in parents.split(_CHUNK):
        sides = [(c // 2, (c + 1) // 2) for c in chunk.unbind(1)]
        corners = [(x, y, z) for x in sides[0] for y in sides[1] for z in sides[2]]
        parts.append(sum(padded[index[corner].long()] for corner in corners) / 8)
    return torch.cat(parts)
