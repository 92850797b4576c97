"""The hash grid as a module: a table of features that positions look up (see `fields.ops.hash_encode` for the rule)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import _cpu
from ..ops.hash_encode import HashGridSpec, hash_encode, hash_value_and_jacobian

INITIAL_RANGE = 1e-4
"""Entries start uniform in plus or minus this (Mueller et al. 2022, section 4)."""


class HashGridEncoding(nn.Module):
    """Positions in the unit cube to features, by a multiresolution hash grid.

    Args:
        spec: shape of the grid.
        generator: randomness of the initial table; torch's global generator where None.
    """

    features: int
    """Width of the encoding."""

    def __init__(self, spec: HashGridSpec | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.spec = spec or HashGridSpec()
        self.features = self.spec.features
        table = torch.empty(self.spec.entries, self.spec.channels)
        _cpu.advise_huge_pages(table)
        self.table = nn.Parameter(table.uniform_(-INITIAL_RANGE, INITIAL_RANGE, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) positions in [0, 1] (clamped) -> (N, features)."""
        return hash_encode(x, self.table, self.spec)

    def value_and_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3) positions -> features (N, features) and d features / d x (N, 3, features)."""
        return hash_value_and_jacobian(x, self.table, self.spec)

    def extra_repr(self) -> str:
        return repr(self.spec)
