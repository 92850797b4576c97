"""The hash-grid radiance field: what a scene is when its features live in a multiresolution hash table."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..encodings import HashGridEncoding
from ..networks import MLP
from ..ops.hash_encode import HashGridSpec
from .encoded import EncodedField, EncodedFieldConfig, density_network


@dataclass(frozen=True, kw_only=True)
class HashFieldConfig(EncodedFieldConfig):
    """What a `HashField` is made of."""

    grid: HashGridSpec = field(default_factory=HashGridSpec)
    """The table: levels, channels, resolutions, size."""


class HashField(EncodedField):
    """Final. See the module."""

    config: HashFieldConfig
    encoding: HashGridEncoding
    density: MLP

    def __init__(self, config: HashFieldConfig | None = None, *, seed: int = 0) -> None:
        config = config or HashFieldConfig()
        generator = torch.Generator().manual_seed(seed)
        encoding = HashGridEncoding(config.grid, generator=generator, precision=config.precision)
        super().__init__(config, encoding, density_network(config, encoding.features, generator), generator)
