"""The planes radiance field: what a scene is when its features are those of three planes, at several scales.

The static, hybrid form of K-Planes (Fridovich-Keil et al. 2023, arXiv 2301.10241, section 3): at each scale the product
of what three planes say, scale beside scale; or tri-planes, which the first layer of the density network adds up, each
with weights of its own. Refined and drawn in while it trains (`factored`), which K-Planes is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from ..ops.factored_encode import FactoredGridSpec, Term
from .factored import FactoredField, FactoredFieldConfig

COMBINATIONS = {"product": (("xy", "xz", "yz"),), "sum": (("xy",), ("xz",), ("yz",))}
"""The terms of a scale."""
FIRST_TEXELS = {"product": (0.9, 1.1), "sum": (-0.1, 0.1)}
"""Texels start uniform between these."""
MOST_SCALES = 6


@dataclass(frozen=True, kw_only=True)
class PlanesFieldConfig(FactoredFieldConfig):
    """What a `PlanesField` is made of, and what it has grown to."""

    combination: Literal["product", "sum"] = "product"
    """Of the three planes of a scale: multiplied together, or side by side for the density network to add up
    (tri-planes)."""
    scales: int = 3
    """Resolutions, each half as fine as the next (K-Planes: 3)."""
    channels: int = 16
    """Of each plane (K-Planes: 32)."""
    variation: float = 1e-3
    """Weight of the planes' total variation; see `FactoredGridEncoding.add_variation_gradient_`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.combination not in COMBINATIONS:
            raise ConfigError(f"combination must be {' or '.join(COMBINATIONS)}; got {self.combination!r}")
        if not 1 <= self.scales <= MOST_SCALES:
            raise ConfigError(f"scales must be 1 to {MOST_SCALES}; got {self.scales}")
        if not self.variation >= 0:
            raise ConfigError(f"variation must not be negative; got {self.variation}")

    @property
    def spec(self) -> FactoredGridSpec:
        terms = []
        for halvings in reversed(range(self.scales)):
            x, y, z = (max(2, round(texels / 2**halvings)) for texels in self.resolution)
            terms += [
                Term(factors=factors, channels=self.channels, resolution=(x, y, z))
                for factors in COMBINATIONS[self.combination]
            ]
        return FactoredGridSpec(terms=tuple(terms))


class PlanesField(FactoredField):
    """Final. See the module."""

    config: PlanesFieldConfig

    def __init__(self, config: PlanesFieldConfig | None = None, *, seed: int = 0) -> None:
        config = config or PlanesFieldConfig()
        super().__init__(config, *FIRST_TEXELS[config.combination], seed)

    def add_prior_gradients(self, step: int, seed: int) -> None:
        if self.config.variation > 0:
            self.encoding.add_variation_gradient_(self.config.variation)
