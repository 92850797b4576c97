"""What is an image, a film or a volume to a field? Values on a regular grid, and the points where they stand.

Axes are x (columns), y (rows) and, for volumes, z (slices), for films t (frames). Cell i of n has its centre at
(i + 0.5) / n of the unit interval.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError

SignalKind = Literal["image", "video", "volume", "surface"]
DIMENSIONS: dict[SignalKind, int] = {"image": 2, "video": 3, "volume": 3, "surface": 3}


def grid_points(size: tuple[int, ...], first: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """(count, D) centres of the cells first .. first + count of a grid, x running fastest.

    Args:
        size: cells along x, y and, with three dimensions, z.
    """
    return cell_centres(torch.arange(first, first + count, device=device), size)


def cell_centres(index: Tensor, size: tuple[int, ...]) -> Tensor:
    """(N,) int64 cell numbers, x running fastest -> (N, D) float32 centres in [0, 1]."""
    columns = []
    for cells in size:
        columns.append((index % cells + 0.5) / cells)
        index = index // cells
    return torch.stack(columns, 1).float()


@dataclass(frozen=True)
class GridSignal:
    """Values on a regular grid."""

    kind: SignalKind
    values: Tensor
    """(H, W, C) for images, (T, H, W, C) or (Z, Y, X, C) otherwise; uint8 (sRGB-encoded, 255 is 1) or float32."""

    def __post_init__(self) -> None:
        dimensions = DIMENSIONS[self.kind]
        if self.values.ndim != dimensions + 1 or self.values.numel() == 0:
            raise ConfigError(
                f"signals of kind {self.kind} have {dimensions + 1} axes, none empty; got {tuple(self.values.shape)}"
            )
        if self.values.dtype not in (torch.uint8, torch.float32):
            raise ConfigError(f"values must be uint8 or float32; got {self.values.dtype}")

    @property
    def size(self) -> tuple[int, ...]:
        """Cells along x, y (and z or t)."""
        return tuple(reversed(self.values.shape[:-1]))

    @property
    def channels(self) -> int:
        return self.values.shape[-1]

    @property
    def cells(self) -> int:
        return self.values.numel() // self.channels

    @property
    def aspect(self) -> tuple[float, ...]:
        """Length of each axis relative to the longest; a film's time counts as long as its longer side."""
        space = self.size[:2] if self.kind == "video" else self.size
        lengths = tuple(n / max(space) for n in space)
        return (*lengths, 1.0) if self.kind == "video" else lengths

    @property
    def device(self) -> torch.device:
        return self.values.device

    def to(self, device: torch.device | str) -> GridSignal:
        """The same on another device."""
        return GridSignal(self.kind, self.values.to(device))

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) cell numbers -> points (N, D) and values (N, C)."""
        return cell_centres(index, self.size), self.at(index)

    def at(self, index: Tensor) -> Tensor:
        """(N,) cell numbers, x running fastest -> (N, C) float32; uint8 values over 255."""
        values = self.values.reshape(-1, self.channels)[index]
        return values.float() / 255 if values.dtype == torch.uint8 else values

    def blocks(self, cells: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(points, values) of all cells in order, at most `cells` at a time."""
        for first in range(0, self.cells, cells):
            yield self.take(torch.arange(first, min(first + cells, self.cells), device=self.device))
