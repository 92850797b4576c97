"""Planes and lines of features as a module (see `fields.ops.factored_encode`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..ops import _cpu
from ..ops.factored_encode import FactoredGridSpec, Term, factored_encode


def vector_matrix(resolution: tuple[int, int, int], channels: int) -> FactoredGridSpec:
    """xy * z, xz * y and yz * x, `channels` components each (TensoRF VM; Chen et al. 2022, equation 3)."""
    pairs = (("xy", "z"), ("xz", "y"), ("yz", "x"))
    return FactoredGridSpec(terms=tuple(Term(factors=p, channels=channels, resolution=resolution) for p in pairs))


def vectors(resolution: tuple[int, int, int], channels: int) -> FactoredGridSpec:
    """x * y * z, `channels` components (TensoRF CP)."""
    return FactoredGridSpec(terms=(Term(factors=("x", "y", "z"), channels=channels, resolution=resolution),))


class FactoredGridEncoding(nn.Module):
    """Positions in the unit cube to features. All terms have equal numbers of channels."""

    features: int
    """Width of the encoding."""

    def __init__(
        self,
        spec: FactoredGridSpec,
        generator: torch.Generator | None,
        low: float,
        high: float,
        *,
        origin: float = 0.0,
    ) -> None:
        """Texels start uniform between `low` and `high`; `origin` is subtracted from the features. ConfigError where
        channels differ between terms."""
        super().__init__()
        channels = {term.channels for term in spec.terms}
        if len(channels) > 1:
            raise ConfigError(f"all terms must have equal channels; got {sorted(channels)}")
        self.spec, self.features, self.origin = spec, spec.features, origin
        table = torch.empty(spec.parameter_count // max(channels), max(channels))
        _cpu.advise_huge_pages(table)
        self.table = nn.Parameter(table.uniform_(low, high, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) positions in [0, 1] (clamped) -> (N, features)."""
        features = factored_encode(x, self.table.reshape(-1), self.spec)
        return features.sub_(self.origin) if self.origin else features

    @torch.no_grad()
    def add_variation_gradient_(self, weight: float) -> None:
        """Add to the table's gradient that of `weight` times the sum, over all factors and their axes, of the squared
        differences between neighbouring texels, divided by the factor's number of values (the total
        variation of K-Planes, Fridovich-Keil et al. 2023)."""
        assert self.table.grad is not None
        table, grad = self.table.view(-1), self.table.grad.view(-1)
        for factor in self.spec.factors():
            size = math.prod(factor.shape)
            values, sums = (flat[factor.first : factor.first + size].view(factor.shape) for flat in (table, grad))
            for axis in range(2):
                slope = values.diff(dim=axis)
                sums.narrow(axis, 1, slope.shape[axis]).add_(slope, alpha=2 * weight / size)
                sums.narrow(axis, 0, slope.shape[axis]).sub_(slope, alpha=2 * weight / size)

    @torch.no_grad()
    def resampled(self, spec: FactoredGridSpec, low: Tensor, high: Tensor) -> FactoredGridEncoding:
        """What this encoding says within a box of the unit cube, as an encoding of other resolutions whose unit cube is
        that box.

        Args:
            spec: with the same terms but for the resolutions.
            low, high: (3,) corners of the box, in [0, 1].
        """
        out = FactoredGridEncoding(spec, None, 0.0, 0.0, origin=self.origin).to(self.table.device)
        singles = [
            FactoredGridSpec(terms=(Term(factors=(name,), channels=term.channels, resolution=term.resolution),))
            for term in self.spec.terms
            for name in term.factors
        ]
        parts = []
        for single, before, after in zip(singles, self.spec.factors(), spec.factors(), strict=True):
            axes = (after.axis_a, after.axis_b)
            x = torch.zeros(after.resolution_b, after.resolution_a, 3, device=self.table.device)
            for axis, count, view in ((axes[0], after.resolution_a, (1, -1)), (axes[1], after.resolution_b, (-1, 1))):
                if axis >= 0:
                    line = torch.linspace(0, 1, count, device=x.device)
                    x[..., axis] = (low[axis] + line * (high[axis] - low[axis])).view(view)
            first = before.first // before.channels
            values = self.table[first : first + before.resolution_a * before.resolution_b].reshape(-1)
            parts.append(factored_encode(x.reshape(-1, 3), values, single))
        out.table.copy_(torch.cat(parts))
        return out

    def extra_repr(self) -> str:
        return repr(self.spec)
