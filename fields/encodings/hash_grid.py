"""The hash grid as a module: a table of features that positions look up (see `fields.ops.hash_encode` for the rule)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..ops import _cpu, _native
from ..ops.hash_encode import HashGridSpec, hash_encode, hash_value_and_jacobian

INITIAL_RANGE = 1e-4
"""Entries start uniform in plus or minus this (Mueller et al. 2022, section 4)."""


class HashGridEncoding(nn.Module):
    """Positions in the unit cube to features, by a multiresolution hash grid.

    Args:
        spec: shape of the grid.
        generator: randomness of the initial table; torch's global generator where None.
        precision: with "bf16" `forward` without gradients reads a float16 copy of the table where native kernels
            serve it: three bits finer than the bf16 networks behind it see, at half the memory traffic.
    """

    features: int
    """Width of the encoding."""

    def __init__(
        self,
        spec: HashGridSpec | None = None,
        generator: torch.Generator | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        super().__init__()
        self.spec = spec or HashGridSpec()
        self.features = self.spec.features
        table = torch.empty(self.spec.entries, self.spec.channels)
        _cpu.advise_huge_pages(table)
        self.table = nn.Parameter(table.uniform_(-INITIAL_RANGE, INITIAL_RANGE, generator=generator))
        self.precision = precision
        self._rounded: Tensor | None = None
        self._rounded_version = -1

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) positions in [0, 1] (clamped) -> (N, features)."""
        float32 = x.dtype == self.table.dtype == torch.float32
        reads_only = self.precision == "bf16" and not torch.is_grad_enabled()
        rounded = reads_only and float32 and _native.usable(x, self.table)
        return hash_encode(x, self.rounded_table() if rounded else self.table, self.spec)

    def rounded_table(self) -> Tensor:
        """(entries, channels) float16 copy of the table as it is now; kept until the table changes."""
        table = self.table.detach()
        if self._rounded is None or self._rounded.shape != table.shape or self._rounded.device != table.device:
            self._rounded = torch.empty_like(table, dtype=torch.float16)
            _cpu.advise_huge_pages(self._rounded)
            self._rounded_version = -1
        if self._rounded_version != table._version:
            self._rounded.copy_(table)
            self._rounded_version = table._version
        return self._rounded

    def keep_rounded(self) -> None:
        """Say that what changed the table changed the copy with it (`ops.radiance_step_`)."""
        self._rounded_version = self.table._version

    def value_and_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3) positions -> features (N, features) and d features / d x (N, 3, features)."""
        return hash_value_and_jacobian(x, self.table, self.spec)

    def extra_repr(self) -> str:
        return repr(self.spec)
