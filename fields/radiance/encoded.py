"""What encoded radiance fields have in common: an encoding of positions, then two networks.

After instant-ngp (Mueller et al. 2022, arXiv 2201.05989, section 5.4): encoding -> density network (one hidden layer)
-> raw density and F features; features and spherical harmonics of the direction -> colour network -> sigmoid. One
difference: the raw density itself is not an input of the colour network, so that block 2 sees what other fields can
provide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..base import Geometry, RadianceField
from ..encodings import FactoredGridEncoding, FrequencyEncoding, HashGridEncoding
from ..errors import ConfigError
from ..geometry import CONTRACTIONS, to_unit_cube
from ..networks import MLP, CoordinateNetwork, RbfLayer
from ..ops.fused_mlp import MlpSpec
from ..ops.spherical_harmonics import spherical_harmonics

Encoding = HashGridEncoding | FactoredGridEncoding | FrequencyEncoding | nn.Identity
"""From positions in the unit cube (N, 3) to (N, features); what it learns, if anything, is in `table`."""


@dataclass(frozen=True, kw_only=True)
class EncodedFieldConfig:
    """What all `EncodedField`s are made of, besides the encoding."""

    extent: float = 1.0
    """Half side of the cube around the origin that the encoding covers, scene units (ignored with a contraction)."""
    contraction: str = "none"
    """How space beyond the unit region is folded into it: a key of `CONTRACTIONS`; "none" clips at the cube."""
    features: int = 15
    """F, the features that block 1 hands to block 2 (PVD's number)."""
    density_width: int = 64
    """Width of the density network (16, 32, 64, 128 or 256)."""
    density_layers: int = 1
    """Hidden layers of the density network (1 to 8)."""
    density_skip: int | None = None
    """Hidden layer of the density network that sees the encoding again; see `ops.fused_mlp.MlpSpec`."""
    color_width: int = 64
    """Width of the colour network."""
    color_layers: int = 2
    """Hidden layers of the colour network (1 to 8)."""
    sh_bands: int = 4
    """Bands of spherical harmonics of the direction: sh_bands^2 values."""
    density_activation: Literal["exp", "softplus", "relu"] = "exp"
    """Applied in compositing; see `ops.activations`."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the networks' multiplications, and of table reads that need no gradients (float16); parameters and sums stay
    float32."""
    lr: float = 2e-2
    """Adam's learning rate of table and networks; twice instant-ngp's, whose batches are larger and runs longer."""

    def __post_init__(self) -> None:
        if self.contraction not in CONTRACTIONS:
            raise ConfigError(f"contraction must be one of {', '.join(CONTRACTIONS)}; got {self.contraction!r}")
        if not self.extent > 0:
            raise ConfigError(f"extent must be positive (scene units); got {self.extent}")
        if not 1 <= self.features <= 15:
            raise ConfigError(f"features must be 1 to 15; got {self.features}")
        if not 1 <= self.sh_bands <= 4:
            raise ConfigError(f"sh_bands must be 1 to 4; got {self.sh_bands}")


def density_network(config: EncodedFieldConfig, inputs: int, generator: torch.Generator, *, bias: bool = False) -> MLP:
    """The density network that the config describes, behind an encoding of that width."""
    spec = MlpSpec(
        inputs=inputs,
        outputs=1 + config.features,
        width=config.density_width,
        hidden_layers=config.density_layers,
        skip=config.density_skip,
        bias=bias,
    )
    return MLP(spec, precision=config.precision, generator=generator)


class EncodedField(RadianceField):
    """Concrete fields give the encoding. Parameters: `encoding.table` if there is one, `density.parameters_flat`,
    `color.parameters_flat`."""

    def __init__(
        self,
        config: EncodedFieldConfig,
        encoding: Encoding,
        density: MLP | CoordinateNetwork | RbfLayer,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config = config
        self.density_activation = config.density_activation
        self.contraction = config.contraction
        self.feature_count = config.features
        reach = config.extent if config.contraction == "none" else float("inf")
        self.bounds = torch.tensor([[-reach] * 3, [reach] * 3])
        self.encoding = encoding
        self.density = density
        self.color = MLP(
            MlpSpec(
                inputs=config.features + config.sh_bands**2,
                outputs=3,
                width=config.color_width,
                hidden_layers=config.color_layers,
                output_activation="sigmoid",
            ),
            precision=config.precision,
            generator=generator,
        )

    def to_unit(self, x: Tensor) -> Tensor:
        """Scene positions (N, 3) to the grid's [0, 1]^3."""
        return to_unit_cube(x, self.contraction, self.config.extent)

    def geometry(self, x: Tensor, *, time: Tensor | None = None, footprint: Tensor | None = None) -> Geometry:
        out = self.density(self.encoding(self.to_unit(x)))
        return Geometry(out[:, 0], out[:, 1:])

    def radiance(
        self,
        features: Tensor,
        directions: Tensor,
        *,
        x: Tensor | None = None,
        normals: Tensor | None = None,
        appearance: Tensor | None = None,
    ) -> Tensor:
        basis = spherical_harmonics(directions, self.config.sh_bands)
        return self.color(torch.cat([features, basis], dim=-1))

    def parameter_groups(self) -> list[dict[str, Any]]:
        lr = self.config.lr
        table = list(self.encoding.parameters())
        return [
            *([{"name": "table", "params": table, "lr": lr, "lazy": True}] if table else []),
            {"name": "density", "params": list(self.density.parameters()), "lr": lr},
            {"name": "color", "params": list(self.color.parameters()), "lr": lr},
        ]
