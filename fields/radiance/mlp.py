"""NeRF's field: what a scene is when one wide network holds all of it (Mildenhall et al. 2020, arXiv 2003.08934).

Positions in octaves of sines and cosines, eight layers of 256 with the encoding seen again half-way (figure 7), raw
density and features; then this house's colour network. Small (2 MB, or half of one in 8 bits) and smooth, and slow:
every sample passes half a million weights. Other encodings and activations (SIREN, FINER, WIRE, Gauss, random Fourier
features; see `fields.networks.coordinate`) and an hourglass of residual blocks are settings. The plain form runs as one
fused operator.

With `integrated` the octaves are those of mip-NeRF (Barron et al. 2021, arXiv 2103.13415): the mean over what a pixel
sees of a sample in place of the value at its middle, so that detail finer than a pixel fades instead of aliasing. Where
space is folded, footprints go through the fold's Jacobian. Of mip-NeRF this is all: it also samples otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..base import Geometry
from ..encodings import FrequencyEncoding
from ..errors import ConfigError
from ..geometry import to_unit_cube_variance
from ..networks import MLP, CoordinateNetwork, CoordinateNetworkConfig, ViewNetwork
from ..networks.coordinate import Activation
from ..networks.coordinate import Encoding as NetworkEncoding
from ..ops.spherical_harmonics import spherical_harmonics
from .encoded import EncodedField, EncodedFieldConfig, density_network


@dataclass(frozen=True, kw_only=True)
class MlpFieldConfig(EncodedFieldConfig):
    """What an `MlpField` is made of. Frequencies are those for positions in [-1, 1]."""

    encoding: NetworkEncoding = "octaves"
    activation: Activation = "relu"
    octaves: int = 10
    """Of the positions, 1 to 32 (section 5.1 of the paper)."""
    integrated: bool = False
    """Whether octaves are means over the samples' footprints (mip-NeRF)."""
    point_deviation: float = 1 / 192
    """Standard deviation, along each axis, of points that come without a footprint to an integrated encoding: those of
    occupancy grids, meshes and conversions. Folded scene units, so that far points are wider. By default that of a step
    of NeRF's length, 2 sqrt(3) / 192, as in marching: octaves that samples never show are not learned, so that at
    points of no width the field would answer with noise."""
    sigma: float = 5.0
    """Deviation of random Fourier frequencies (encoding "fourier")."""
    first_omega: float = 30.0
    """Of the first layer's waves (activations "sine", "finer", "wire")."""
    hidden_omega: float = 30.0
    first_bias: float | None = None
    """Half-width of the first layer's bias (FINER's k); None: as any linear layer."""
    scale: float = 30.0
    """Inverse width of Gaussians (activations "gauss", "wire")."""
    density_width: int = 256
    density_layers: int = 8
    density_skip: int | None = 4
    """The fifth layer; NeRF's is the sixth, so that both halves here are equally deep."""
    density_activation: Literal["exp", "softplus", "relu"] = "softplus"
    """As mip-NeRF's: behind an exponential the whole of space empties within a few steps and does not come back."""
    color_width: int = 128
    color_layers: int = 1
    density_narrow: int | None = None
    """Channels inside the blocks of an hourglass (`density_layers` of them, without skip); None: plain layers."""
    modulation: int | None = None
    """Cells along each axis of CAM's three planes of scales and shifts (`CamField`)."""
    view_cells: tuple[int, int] | None = None
    """Azimuths and elevations of CAM's grids over the viewing angle, which modulate the colour network."""
    bits: Literal[8, 32] = 32
    """Of a stored weight or cell; with 8 the network is trained as it will be stored."""
    lr: float = 1e-3
    """Adam's learning rate, twice NeRF's: runs are shorter."""
    matrix_lr: float | None = 5e-3
    """Muon's learning rate of the weights of the density network's hidden layers; None: Adam moves them too, with
    `lr`."""
    grid_lr: float = 1e-2
    """Of the planes: ten times that of the weights (Lee et al. 2024)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.integrated and self.encoding != "octaves":
            raise ConfigError(f"only octaves can be integrated over footprints; the encoding is {self.encoding!r}")
        if not 0 <= self.point_deviation < math.inf:
            raise ConfigError(f"point_deviation must be 0 or more (scene units); got {self.point_deviation}")
        _ = self.network  # refuses what is out of its range, also for the fused form, which is one of its kind

    @property
    def is_fused(self) -> bool:
        """Whether the network is one that `ops.fused_mlp` knows."""
        plain = self.encoding == "octaves" and self.activation == "relu"
        return plain and self.density_narrow is None and self.modulation is None and self.bits == 32

    @property
    def network(self) -> CoordinateNetworkConfig:
        """The density network; where it is fused, one that says the same."""
        return CoordinateNetworkConfig(
            inputs=3,
            outputs=1 + self.features,
            activation=self.activation,
            encoding=self.encoding,
            width=self.density_width,
            hidden_layers=self.density_layers,
            first_omega=self.first_omega,
            hidden_omega=self.hidden_omega,
            first_bias=self.first_bias,
            scale=self.scale,
            sigma=self.sigma,
            octaves=self.octaves,
            skip=self.density_skip,
            narrow=self.density_narrow,
            modulation=self.modulation,
            modulated_by="xyz",
            bits=self.bits,
        )


class MlpField(EncodedField):
    """See the module."""

    config: MlpFieldConfig
    color: MLP | ViewNetwork
    costly = True

    def __init__(self, config: MlpFieldConfig | None = None, *, seed: int = 0) -> None:
        config = config or MlpFieldConfig()
        generator = torch.Generator().manual_seed(seed)
        if config.is_fused:
            encoding = FrequencyEncoding(config.octaves, unit=True)
            density = _fused(config, encoding.features, generator)
        else:
            encoding, density = nn.Identity(), _composed(config, seed)
        super().__init__(config, encoding, density, generator)
        self.integrates = config.integrated
        if config.view_cells is not None:
            self.color = ViewNetwork(
                config.features + config.sh_bands**2,
                config.view_cells,
                width=config.color_width,
                hidden_layers=config.color_layers,
                precision=config.precision,
                generator=generator,
            )

    def to_unit(self, x: Tensor) -> Tensor:
        """Scene positions (N, 3) to [0, 1]^3."""
        return super().to_unit(x).clamp(0, 1)

    def geometry(self, x: Tensor, *, time: Tensor | None = None, footprint: Tensor | None = None) -> Geometry:
        if not self.integrates:
            return super().geometry(x)
        unit, variance = self.to_unit(x), self._unit_variance(x, footprint)
        fused = self.config.is_fused
        out = self.density(self.encoding(unit, variance)) if fused else self.density(unit, variance)
        return Geometry(out[:, 0], out[:, 1:])

    def _unit_variance(self, x: Tensor, footprint: Tensor | None) -> Tensor:
        """(N, 3) squares of the unit cube's sides."""
        c = self.config
        if footprint is not None:
            return to_unit_cube_variance(x, footprint, c.contraction, c.extent)
        side = 2 * c.extent if c.contraction == "none" else 4.0
        return torch.full_like(x, (c.point_deviation / side) ** 2)

    def radiance(
        self,
        features: Tensor,
        directions: Tensor,
        *,
        x: Tensor | None = None,
        normals: Tensor | None = None,
        appearance: Tensor | None = None,
    ) -> Tensor:
        if not isinstance(self.color, ViewNetwork):
            return super().radiance(features, directions)
        basis = spherical_harmonics(directions, self.config.sh_bands)
        return self.color(torch.cat([features, basis], dim=-1), directions)

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups, c = super().parameter_groups(), self.config
        grids = [p for name, p in self.named_parameters() if name.endswith(".grids")]
        if grids:
            learned_so = {id(p) for p in grids}
            for group in groups:
                group["params"] = [p for p in group["params"] if id(p) not in learned_so]
            groups.append({"name": "grids", "params": grids, "lr": c.grid_lr})
        if c.matrix_lr is not None:
            assert isinstance(self.density, MLP | CoordinateNetwork)
            groups.append({"name": "matrices", "params": [], "lr": c.matrix_lr, "matrices": self.density.matrices()})
        return groups


# Weights before ReLUs begin as He et al. (2015, equation 10) draw them, uniform in +-sqrt(6 / inputs): from smaller
# ones what comes in would fade from layer to layer.


def _fused(config: MlpFieldConfig, inputs: int, generator: torch.Generator) -> MLP:
    network = density_network(config, inputs, generator, bias=True)
    with torch.no_grad():
        network.parameters_flat.mul_(math.sqrt(2))  # from Glorot's, inputs and outputs being equally many
    return network


def _composed(config: MlpFieldConfig, seed: int) -> CoordinateNetwork:
    network = CoordinateNetwork(config.network, seed=seed, precision=config.precision)
    if config.activation == "relu":
        with torch.no_grad():
            for layer in network.layers:
                assert isinstance(layer, nn.Linear)
                layer.weight.mul_(math.sqrt(6))  # from +-sqrt(1 / inputs)
                layer.bias.zero_()
    return network
