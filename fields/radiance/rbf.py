"""The Gaussian field: what a scene is when units with centres among a hash grid's features say its density.

GNF (Bouzidi et al. 2025, arXiv 2503.06762): one layer of Gaussian units behind an encoding. Here it stands in place of
the density network; the colour network is this house's own (the paper's units give spherical harmonics as well).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import torch

from ..encodings import HashGridEncoding
from ..errors import ConfigError
from ..networks import RbfLayer
from ..ops.hash_encode import HashGridSpec
from .encoded import EncodedField, EncodedFieldConfig


@dataclass(frozen=True, kw_only=True)
class RbfFieldConfig(EncodedFieldConfig):
    """What an `RbfField` is made of."""

    grid: HashGridSpec = field(default_factory=HashGridSpec)
    """The table: levels, channels, resolutions, size."""
    weight_lr: float = 0.1
    """Adam's learning rate of what the units' answers are multiplied by, of the slope and of the bias: answers lie in 0
    to 1 and the raw density must leave 0 by several units. Lego at 200x200, held-out rays after 200 steps: 23.6 dB,
    with 0.02 21.9 dB."""
    units_lr: float = 1e-2
    """And of centres and sharpness."""
    density_width: int = 64
    """K, Gaussian units, 1 to 1024; they are one layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.density_width <= 1024:
            raise ConfigError(f"density_width must be 1 to 1024 Gaussian units; got {self.density_width}")
        if not (self.weight_lr > 0 and self.units_lr > 0):
            raise ConfigError(f"learning rates must be positive; got {self.weight_lr:g} and {self.units_lr:g}")
        if self.density_layers != 1 or self.density_skip is not None:
            raise ConfigError("Gaussian units are one layer: leave density_layers at 1 and density_skip at None")


@final
class RbfField(EncodedField):
    """See the module."""

    config: RbfFieldConfig
    density: RbfLayer

    def __init__(self, config: RbfFieldConfig | None = None, *, seed: int = 0) -> None:
        config = config or RbfFieldConfig()
        generator = torch.Generator().manual_seed(seed)
        encoding = HashGridEncoding(config.grid, generator=generator, precision=config.precision)
        units = RbfLayer(encoding.features, 1 + config.features, config.density_width, generator=generator)
        with torch.no_grad():  # the density begins as one everywhere, as a hash field's does
            units.weight[0] = 0
            units.slope[0] = 0
        super().__init__(config, encoding, units, generator)

    def parameter_groups(self) -> list[dict[str, Any]]:
        table, _, color = super().parameter_groups()
        units = dict(self.density.named_parameters())
        answers = [units["weight"], units["slope"], units["bias"]]
        return [
            table,
            {"name": "units", "params": [units["centres"], units["log_beta"]], "lr": self.config.units_lr},
            {"name": "density", "params": answers, "lr": self.config.weight_lr},
            color,
        ]
