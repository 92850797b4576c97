"""NeRF's field: what a scene is when one wide network holds all of it (Mildenhall et al. 2020, arXiv 2003.08934).

Positions in octaves of sines and cosines, eight layers of 256 with the encoding seen again half-way (figure 7), raw
density and features; then this house's colour network. Small (2 MB) and smooth, and slow: every sample passes half a
million weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from ..encodings import FrequencyEncoding
from .encoded import EncodedField, EncodedFieldConfig


@dataclass(frozen=True, kw_only=True)
class MlpFieldConfig(EncodedFieldConfig):
    """What an `MlpField` is made of."""

    octaves: int = 10
    """Of the positions, 1 to 32 (section 5.1 of the paper)."""
    density_width: int = 256
    density_layers: int = 8
    density_skip: int | None = 4
    """The fifth layer; NeRF's is the sixth, so that both halves here are equally deep."""
    color_width: int = 128
    color_layers: int = 1
    lr: float = 5e-4
    """Adam's learning rate (section 5.3)."""


@final
class MlpField(EncodedField):
    """See the module."""

    config: MlpFieldConfig

    def __init__(self, config: MlpFieldConfig | None = None, *, seed: int = 0) -> None:
        config = config or MlpFieldConfig()
        generator = torch.Generator().manual_seed(seed)
        super().__init__(config, FrequencyEncoding(config.octaves, unit=True), generator)
