"""How does a grid of features with a small network answer for a point of an image or a volume?

`hash`: hash tables of growing resolution (Mueller et al. 2022), flat ones in two dimensions. `planes`: dense planes of
growing resolution side by side; in three dimensions each level is the product of its three planes (K-Planes,
Fridovich-Keil et al. 2023). `lines`: one product of a line per axis (TensoRF's CP form, Chen et al. 2022), which says
much with few values where the signal follows its axes. The network decodes what they say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from ..encodings import FactoredGridEncoding, FactoredGridSpec, HashGridEncoding, HashGridSpec
from ..errors import ConfigError, ShapeError
from ..networks import MLP, RbfLayer
from ..ops.factored_encode import Term
from ..ops.fused_mlp import MlpSpec


@dataclass(frozen=True, kw_only=True)
class GridNetworkConfig:
    """Shape of a grid network."""

    inputs: int = 2
    """D, dimensions of the points, 2 or 3."""
    outputs: int = 3
    """Values per point, 1 to 16."""
    layout: Literal["hash", "planes", "lines"] = "planes"
    levels: int = 6
    """Resolutions, from base to finest in equal ratios; lines have one, the finest."""
    base_resolution: int = 16
    """Texels along the longest axis at the coarsest level, 2 to 16384."""
    finest_resolution: int = 256
    """Texels along the longest axis at the finest level, 2 to 16384."""
    channels: int = 4
    """Per level, 1 to 256; with hash 1, 2, 4 or 8."""
    log2_table_size: int = 13
    """With hash: a level holds at most 2**this entries, 4 to 24."""
    decoder: Literal["mlp", "rbf"] = "mlp"
    """What turns features into values: a fully connected network, or one layer of Gaussian units (`networks.rbf`)."""
    units: int = 64
    """Of the Gaussian layer, 1 to 1024."""
    width: Literal[16, 32, 64, 128] = 64
    """Of the network's hidden layers."""
    hidden_layers: int = 2
    """Of the network, 1 to 4."""
    aspect: tuple[float, ...] | None = None
    """Length of each axis relative to the longest, in (0, 1]; None: all 1."""

    def __post_init__(self) -> None:
        if self.inputs not in (2, 3):
            raise ConfigError(f"inputs must be 2 or 3; got {self.inputs}")
        for name, low, high in (
            ("outputs", 1, 16),
            ("levels", 1, 16),
            ("channels", 1, 256),
            ("hidden_layers", 1, 4),
            ("units", 1, 1024),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must be {low} to {high}; got {getattr(self, name)}")
        if not 2 <= self.base_resolution <= self.finest_resolution <= 16384:
            raise ConfigError(
                "resolutions must be 2 <= base_resolution <= finest_resolution <= 16384; got "
                f"{self.base_resolution} and {self.finest_resolution}"
            )
        if self.aspect is not None and (len(self.aspect) != self.inputs or not all(0 < a <= 1 for a in self.aspect)):
            raise ConfigError(f"aspect must be {self.inputs} lengths in (0, 1]; got {self.aspect}")
        _ = self.spec  # whatever the grid itself refuses

    @property
    def spec(self) -> FactoredGridSpec | HashGridSpec:
        """The grid."""
        flat = self.inputs == 2
        if self.layout == "hash":
            return HashGridSpec(
                levels=self.levels,
                channels=self.channels,
                base_resolution=self.base_resolution,
                finest_resolution=self.finest_resolution,
                log2_table_size=self.log2_table_size,
                dimensions=self.inputs,
            )
        lines, planes = (("x", "y"), ("xy",)) if flat else (("x", "y", "z"), ("xy", "xz", "yz"))
        if self.layout == "lines":
            return FactoredGridSpec(terms=(self._term(lines, self.finest_resolution),))
        ratio = (self.finest_resolution / self.base_resolution) ** (1 / max(1, self.levels - 1))
        sizes = [round(self.base_resolution * ratio**level) for level in range(self.levels)]
        return FactoredGridSpec(terms=tuple(self._term(planes, size) for size in sizes))

    @property
    def mlp(self) -> MlpSpec:
        """The network, where it is the decoder."""
        return MlpSpec(
            inputs=self.spec.features, outputs=self.outputs, width=self.width, hidden_layers=self.hidden_layers
        )

    @property
    def values(self) -> int:
        """Values of grid and decoder."""
        spec = self.spec
        stored = spec.entries * spec.channels if isinstance(spec, HashGridSpec) else spec.parameter_count
        if self.decoder == "rbf":
            return stored + self.units * (2 * spec.features + self.outputs) + self.outputs * (spec.features + 1)
        return stored + self.mlp.parameter_count

    def _term(self, factors: tuple[str, ...], size: int) -> Term:
        x, y, z = (*(max(2, round(size * a)) for a in self.aspect or (1.0,) * self.inputs), 2)[:3]
        return Term(factors=factors, channels=self.channels, resolution=(x, y, z))


@final
class GridNetwork(nn.Module):
    """Points to values by a grid and a network (see the module's text)."""

    lengths: Tensor

    def __init__(self, config: GridNetworkConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        spec, lengths = config.spec, config.aspect or (1.0,) * config.inputs
        # A hash grid has one resolution for all axes: shorter ones fill less of its cube. Factors have their own.
        self.register_buffer("lengths", torch.tensor(lengths), persistent=False)
        # A single plane starts near zero, as hash grids do; factors of a product must not, or no gradient passes:
        # lines of mixed sign (TensoRF), planes between .1 and .5 (K-Planes, section 3.1).
        alone = config.layout == "planes" and config.inputs == 2
        low, high = (-1e-4, 1e-4) if alone else (-0.5, 0.5) if config.layout == "lines" else (0.1, 0.5)
        if isinstance(spec, HashGridSpec):
            self.encoding = HashGridEncoding(spec, generator)
        else:
            self.encoding = FactoredGridEncoding(spec, generator, low, high)
        if config.decoder == "rbf":
            self.network = RbfLayer(spec.features, config.outputs, config.units, generator=generator)
        else:
            self.network = MLP(config.mlp, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, D) in [0, 1] (clamped) -> (N, outputs).

        Raises:
            ShapeError: x is not (N, D).
        """
        inputs = self.config.inputs
        if x.ndim != 2 or x.shape[1] != inputs:
            raise ShapeError(f"x must be (N, {inputs}); got {tuple(x.shape)}")
        x = x.clamp(0, 1) * self.lengths if self.config.layout == "hash" else x
        position = x if inputs == 3 else torch.cat([x, x.new_zeros(len(x), 1)], 1)
        return self.network(self.encoding(position))

    def extra_repr(self) -> str:
        return repr(self.config)
