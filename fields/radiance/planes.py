"""The planes radiance field: what a scene is when its features are those of three planes, at several scales.

The static, hybrid form of K-Planes (Fridovich-Keil et al. 2023, arXiv 2301.10241, section 3): at each scale the product
of what three planes say, scale beside scale; or tri-planes, which the first layer of the density network adds up, each
with weights of its own. Refined and drawn in while it trains (`factored`), which K-Planes is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ConfigError
from ..ops.factored_encode import FactoredGridSpec, Term
from .factored import FactoredField, FactoredFieldConfig

COMBINATIONS = {"product": (("xy", "xz", "yz"),), "sum": (("xy",), ("xz",), ("yz",))}
"""The terms of a scale."""
ORIGIN = {"product": 1.0, "sum": 0.0}
"""About which texels start, and what is subtracted from the features. A factor of a product starts near one, so that
what the others learn passes through it: between K-Planes' 0.1 and 0.5 products are some hundredths (lego at 400x400,
held-out views after 300 steps of 2^14 samples: 19.3 dB, so 20.7 dB). Subtracted, lest a scene begin with the random
density that the network makes of ones: of seeds 0, 1 and 3 the last emptied itself (11.8 dB after 100 steps; so, with
texels at twice the rate, 19.3 dB). Where that does not happen it costs: seed 0, 1200 steps, variation now and then,
27.2 dB without (every 8th step), so 26.1 dB (every 4th). All other figures in this file are without."""
SPREAD = 0.1
"""Of the first texels; with 0.01 channels are too alike (20.5 dB for 20.7), with 0.5 noise stays (21.2 for 21.8)."""
TEXEL_RATE = 2.0
"""Adam's rate of texels over that of the networks. Held-out views of lego at 400x400 after 1200 steps of 2^14 samples:
28.0 dB; with 1, 26.7 dB; 25.7 and 26.7 dB with both rates at 4e-2 and with texels alone, neither with variation."""
MOST_SCALES = 6


@dataclass(frozen=True, kw_only=True)
class PlanesFieldConfig(FactoredFieldConfig):
    """What a `PlanesField` is made of, and what it has grown to."""

    combination: Literal["product", "sum"] = "product"
    """Of the three planes of a scale: multiplied together, or side by side for the density network to add up
    (tri-planes). Held-out views after those steps, without variation: 26.7 and 24.7 dB."""
    scales: int = 3
    """Resolutions, each half as fine as the next (K-Planes: 3)."""
    channels: int = 16
    """Of each plane (K-Planes: 32)."""
    variation: float = 1e-3
    """Weight of the planes' total variation; see `FactoredGridEncoding.add_variation_gradient_`. Held-out views after
    1200 steps as at `TEXEL_RATE`: 26.7 dB with 0, 28.0 with 1e-3, 28.1 with 1e-2, 26.9 with 0.1."""

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
        origin = ORIGIN[config.combination]
        super().__init__(config, origin - SPREAD, origin + SPREAD, origin=origin, seed=seed)

    def parameter_groups(self) -> list[dict[str, Any]]:
        texels, *networks = super().parameter_groups()
        return [texels | {"lr": TEXEL_RATE * self.config.lr}, *networks]

    def add_prior_gradients(self, step: int, seed: int) -> None:
        if self.config.variation > 0:
            self.encoding.add_variation_gradient_(self.config.variation)
