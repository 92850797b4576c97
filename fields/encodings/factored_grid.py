"""Planes of features as a module (see `fields.ops.factored_encode`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..ops import _cpu
from ..ops.factored_encode import FactoredGridSpec, Term, factored_encode


def k_planes(base_resolution: int, multipliers: tuple[int, ...], channels: int) -> FactoredGridSpec:
    """xy * xz * yz at several resolutions (Fridovich-Keil et al. 2023, sections 3.1 and 3.2)."""
    resolutions = [(base_resolution * m,) * 3 for m in multipliers]
    terms = (Term(factors=("xy", "xz", "yz"), channels=channels, resolution=r) for r in resolutions)
    return FactoredGridSpec(terms=tuple(terms))


class FactoredGridEncoding(nn.Module):
    """Positions in the unit cube to features. All terms have equal numbers of channels."""

    features: int
    """Width of the encoding."""

    def __init__(self, spec: FactoredGridSpec, generator: torch.Generator | None, low: float, high: float) -> None:
        """Texels start uniform between `low` and `high`. ConfigError where channels differ between terms."""
        super().__init__()
        channels = {term.channels for term in spec.terms}
        if len(channels) > 1:
            raise ConfigError(f"all terms must have equal channels; got {sorted(channels)}")
        self.spec, self.features = spec, spec.features
        table = torch.empty(spec.parameter_count // max(channels), max(channels))
        _cpu.advise_huge_pages(table)
        self.table = nn.Parameter(table.uniform_(low, high, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) positions in [0, 1] (clamped) -> (N, features)."""
        return factored_encode(x, self.table.reshape(-1), self.spec)

    def extra_repr(self) -> str:
        return repr(self.spec)
