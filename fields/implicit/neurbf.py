"""How do radial basis functions that lie where the signal changes answer for a point? NeuRBF (Chen et al. 2023).

A kernel of centre c and matrix S says phi = 1 / (1 + (x - c)^T S^-1 (x - c)). At a point the K kernels with the nearest
centres count, their phi divided by their sum; each gives its weights w (F,) times sin(phi m + b), where the multipliers
m are fixed and the phases b learned, and these are added up. A small grid of features stands beside them: the set of
the nearest changes abruptly, the grid does not. The first layer of the network that decodes both is h + sin(h m'), with
multipliers m' of its own.

Centres and matrices do not learn. They come from a signal (`kernels.place_kernels`) or at random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from ..encodings import HashGridEncoding, HashGridSpec
from ..errors import ConfigError, ShapeError
from ..networks import MLP
from ..ops.fused_mlp import MlpSpec
from .kernels import Kernels, KernelTree, inverse_factors

WIDTH = 64
"""Of the network's two hidden layers (the paper's)."""
MOST_KERNELS = 1 << 24
GRID_SHARE = 0.4
"""Of a field's values, that its grid takes. With a quarter a fit is 1.3 dB worse after 250 steps (kodim23, 128x128);
with .6 it is .6 dB better yet, but placing the kernels by the signal gives 1.0 in place of 1.5 dB."""
INITIAL_WEIGHT = 1e-3
"""Weights start uniform in plus or minus this. With .1 a fit is 2 dB worse after 250 steps (kodim23)."""


@dataclass(frozen=True, kw_only=True)
class NeurbfConfig:
    """Shape and frequencies. Defaults: the paper's for images."""

    inputs: int = 2
    """D, dimensions of the points, 2 or 3."""
    outputs: int = 3
    """Values per point, 1 to 16."""
    kernels: int = 3000
    """N, 1 to 2^24."""
    neighbours: int = 4
    """K, kernels that count at a point, 1 to 64 and at most N."""
    features: int = 32
    """F, weights of a kernel, 1 to 256."""
    frequencies: tuple[float, float] = (2.0**-3, 2.0**12)
    """First and last of the F multipliers of phi, in equal ratios."""
    head_frequencies: tuple[float, float] = (1.0, 10.0)
    """First and last of the multipliers in the network's first layer; with the released (10, 100) a fit has lost 5 dB
    after 250 steps (kodim23)."""
    levels: int = 2
    """Of the grid, 1 to 16."""
    channels: int = 2
    """Of a level: 1, 2, 4 or 8."""
    base_resolution: int = 16
    """Texels along the longest axis at the grid's coarsest level."""
    finest_resolution: int = 64
    """Texels along the longest axis at the grid's finest level."""
    log2_table_size: int = 12
    """A level holds at most 2**this entries, 4 to 24."""
    aspect: tuple[float, ...] | None = None
    """Length of each axis relative to the longest, in (0, 1]; None: all 1."""

    def __post_init__(self) -> None:
        if self.inputs not in (2, 3):
            raise ConfigError(f"inputs must be 2 or 3; got {self.inputs}")
        limits = {"outputs": 16, "kernels": MOST_KERNELS, "neighbours": 64, "features": 256, "levels": 16}
        for name, most in limits.items():
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} must be 1 to {most}; got {getattr(self, name)}")
        if self.neighbours > self.kernels:
            raise ConfigError(f"neighbours must be at most kernels = {self.kernels}; got {self.neighbours}")
        for name in ("frequencies", "head_frequencies"):
            ends = getattr(self, name)
            if len(ends) != 2 or not all(type(end) in (int, float) for end in ends):
                raise ConfigError(f"{name} must be two numbers; got {ends}")
            first, last = ends
            if not 0 < first <= last < math.inf:
                raise ConfigError(f"{name} must be 0 < first <= last; got {first} and {last}")
        if self.aspect is not None and (len(self.aspect) != self.inputs or not all(0 < a <= 1 for a in self.aspect)):
            raise ConfigError(f"aspect must be {self.inputs} lengths in (0, 1]; got {self.aspect}")
        _ = self.spec  # whatever the grid itself refuses

    @property
    def spec(self) -> HashGridSpec:
        """The grid."""
        return HashGridSpec(
            levels=self.levels,
            channels=self.channels,
            base_resolution=self.base_resolution,
            finest_resolution=self.finest_resolution,
            log2_table_size=self.log2_table_size,
            dimensions=self.inputs,
        )

    @property
    def kernel_values(self) -> int:
        """Values that one kernel takes: weights, centre and half of its matrix."""
        return self.features + self.inputs + self.inputs * (self.inputs + 1) // 2

    @property
    def shared_values(self) -> int:
        """Values of phases, grid and network."""
        spec, columns = self.spec, self.features + self.spec.features
        return self.features + spec.entries * spec.channels + WIDTH * (columns + 1 + WIDTH + self.outputs)

    def with_values(self, values: int, *, most: int) -> NeurbfConfig:
        """The same with a grid and kernels that make it hold `values` values in all, at most `most` grid points and
        `most` kernels."""
        entries = max(min(GRID_SHARE * values / self.channels, most), 4.0**self.inputs)
        finest = int(entries ** (1 / self.inputs))
        grid = {"finest_resolution": finest, "base_resolution": max(2, finest // 3), "levels": 2}
        sized = replace(self, **grid, log2_table_size=min(max(math.ceil(math.log2(finest**self.inputs)), 4), 24))
        return sized.with_kernels(values, most=most)

    def with_kernels(self, values: int, *, most: int) -> NeurbfConfig:
        """The same with the kernels that make it hold `values` values in all, 1 to `most` of them."""
        kernels = max(1, min((values - self.shared_values) // self.kernel_values, most, MOST_KERNELS))
        return replace(self, kernels=kernels, neighbours=min(self.neighbours, kernels))


@final
class NeurbfNetwork(nn.Module):
    """Points to values by kernels, a grid and a network (see the module's text)."""

    lengths: Tensor
    multipliers: Tensor
    head_multipliers: Tensor

    def __init__(self, config: NeurbfConfig, *, seed: int = 0, kernels: Kernels | None = None) -> None:
        """
        Args:
            kernels: `config.kernels` of them; None: anywhere, round, of the size at which so many fill the space.
        """
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.tensor(config.aspect or (1.0,) * config.inputs)
        self.register_buffer("lengths", lengths, persistent=False)
        self.register_buffer("multipliers", _ratios(config.frequencies, config.features), persistent=False)
        self.register_buffer("head_multipliers", _ratios(config.head_frequencies, WIDTH), persistent=False)
        kernels = kernels or _random_kernels(config.kernels, lengths, generator)
        self.centres = nn.Parameter(kernels.centres, requires_grad=False)
        self.factors = nn.Parameter(kernels.factors, requires_grad=False)
        columns = config.features + config.spec.features
        self.weights = nn.Parameter(
            torch.empty(config.kernels, config.features).uniform_(-INITIAL_WEIGHT, INITIAL_WEIGHT, generator=generator)
        )
        self.phases = nn.Parameter(torch.zeros(config.features))
        self.grid = HashGridEncoding(config.spec, generator)
        bound = math.sqrt(6 / (columns + WIDTH))
        self.first = nn.Parameter(torch.empty(WIDTH, columns).uniform_(-bound, bound, generator=generator))
        self.first_bias = nn.Parameter(torch.zeros(WIDTH))
        shape = MlpSpec(inputs=WIDTH, outputs=config.outputs, width=WIDTH, hidden_layers=1)
        self.network = MLP(shape, generator=generator)
        self._tree: KernelTree | None = None
        self._kept: tuple[Tensor, int, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (N, D) in [0, 1] (clamped) -> (N, outputs).

        Raises:
            ShapeError: x is not (N, D).
        """
        inputs = self.config.inputs
        if x.ndim != 2 or x.shape[1] != inputs:
            raise ShapeError(f"x must be (N, {inputs}); got {tuple(x.shape)}")
        nearest, phi = self.nearest(x)
        told = torch.addcmul(self.phases, phi[..., None], self.multipliers).sin()
        near = (told * nn.functional.embedding(nearest, self.weights)).sum(1)
        # The grid has equal cells along all axes, so that none of it lies outside of an oblong signal.
        position = x.clamp(0, 1) if inputs == 3 else torch.cat([x.clamp(0, 1), x.new_zeros(len(x), 1)], 1)
        hidden = nn.functional.linear(torch.cat([near, self.grid(position)], 1), self.first, self.first_bias)
        return self.network((hidden + torch.sin(hidden * self.head_multipliers)).relu())

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The K nearest kernels (N, K) int64 and their phi (N, K), sum 1 at every point. Of points given again (the
        same tensor, as in a fit of whole images) they are remembered."""
        tree, kept = self._tree, self._kept
        if tree is None or tree.centres.data_ptr() != self.centres.data_ptr() or tree.version != self.centres._version:
            tree = self._tree = KernelTree(self.centres)
            kept = None
        if kept is not None and kept[0] is x and kept[1] == x._version:
            return kept[2:]
        place = x.clamp(0, 1) * self.lengths
        index = tree.nearest(place, self.config.neighbours)
        offset = place[:, None] - self.centres[index]
        factors, distance, row = self.factors[index], torch.zeros_like(offset[..., 0]), 0
        for last in range(1, self.config.inputs + 1):
            distance = distance + (factors[..., row : row + last] * offset[..., :last]).sum(-1).square()
            row += last
        phi = 1 / (1 + distance)
        phi = phi / phi.sum(1, keepdim=True)
        self._kept = None if x.requires_grad else (x, x._version, index, phi)
        return index, phi

    def extra_repr(self) -> str:
        return repr(self.config)


def _ratios(ends: tuple[float, float], count: int) -> Tensor:
    first, last = (math.log2(end) for end in ends)
    return torch.linspace(first, last, count).exp2()


def _random_kernels(count: int, lengths: Tensor, generator: torch.Generator) -> Kernels:
    variance = float(lengths.prod() / count) ** (2 / len(lengths)) / 12  # of a cube that a kernel has for itself
    centres = torch.rand(count, len(lengths), generator=generator) * lengths
    matrix = 2.0 * variance * torch.eye(len(lengths))
    return Kernels(centres, inverse_factors(matrix[None]).repeat(count, 1))
