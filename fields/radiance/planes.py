"""The planes radiance field: what a scene is when its features are products of three planes, at several resolutions.

The static, hybrid form of K-Planes (Fridovich-Keil et al. 2023, arXiv 2301.10241): explicit planes, small networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..encodings.factored_grid import FactoredGridEncoding, k_planes
from ..errors import ConfigError
from .encoded import EncodedField, EncodedFieldConfig

INITIAL_TEXELS = 0.1, 0.5
"""Texels start uniform between these (K-Planes, released settings)."""


@dataclass(frozen=True, kw_only=True)
class PlanesFieldConfig(EncodedFieldConfig):
    """What a `PlanesField` is made of."""

    base_resolution: int = 128
    """Texels along each axis of the coarsest planes."""
    multipliers: tuple[int, ...] = (1, 2, 4)
    """Resolutions over the coarsest (K-Planes)."""
    channels: int = 16
    """Of each plane. K-Planes takes 32; half of it trains twice as fast."""
    lr: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.multipliers or min(self.multipliers) < 1:
            raise ConfigError(f"multipliers must be whole numbers from 1 on; got {self.multipliers}")


class PlanesField(EncodedField):
    """Final. See the module."""

    config: PlanesFieldConfig
    encoding: FactoredGridEncoding

    def __init__(self, config: PlanesFieldConfig | None = None, *, seed: int = 0) -> None:
        config = config or PlanesFieldConfig()
        generator = torch.Generator().manual_seed(seed)
        spec = k_planes(config.base_resolution, config.multipliers, config.channels)
        super().__init__(config, FactoredGridEncoding(spec, generator, *INITIAL_TEXELS), generator)
