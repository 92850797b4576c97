"""How does a plain network answer for a point of space? The family of coordinate networks, by encoding and activation.

A layer is z = W h + b, y = act(z); the input is the point itself or its Fourier features:

- SIREN (Sitzmann et al. 2020): sin(w z), with weights drawn so that every layer keeps the same distribution;
- FINER (Liu et al. 2024): sin(w (|z| + 1) z), the factor (|z| + 1) without gradient, as released;
- Gauss (Ramasinghe & Lucey 2022): exp(-(s z)^2);
- WIRE in its real form (Saragadam et al. 2023): cos(w z) exp(-(s v)^2), where v is a second linear map of h;
- ReLU behind random Fourier features (Tancik et al. 2020) or behind the octaves of NeRF (Mildenhall et al. 2020).

CAM (Lee et al. 2024, arXiv 2311.14993) modulates any of them: z is brought to mean 0 and variance 1 over the channels
of its point, then scaled and shifted by two values of the layer that small grids over a line or plane of coordinates
hold; of three planes the scales are multiplied and the shifts added. Points outside a grid pass through it: scale 1 and
shift 0. Grids over the viewing angle are in `view`.

The hourglass (Chen et al. 2025, arXiv 2510.01796) turns the layers into residual blocks that are narrow inside:
z <- z + W2 act(W1 norm(z)), where z has the full width and starts as a linear map of the encoded point.

Octaves may be those of a Gaussian in place of a point, as mip-NeRF integrates them (Barron et al. 2021).

On a CPU networks of ReLUs or sines, and of modulated ReLUs, run as one operator (`ops.fused_mlp`, `ops.modulated_mlp`);
layer by layer they run elsewhere, with other activations, and where gradients of points are wanted, which may be
differentiated again.

With `bits=8` the network computes with weights and grids as 8 bits hold them (`quantised`), and is stored so.

Points lie in [0, 1]^D; inside they are scaled to [-1, 1], the shorter axes of a signal by its aspect less, so that a
frequency means the same along every axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, final

import torch
from torch import Tensor, nn

from ..encodings.frequency import octaves_left
from ..errors import ConfigError, ShapeError
from ..ops.factored_encode import FactoredGridSpec, Term, factored_encode
from ..ops.fused_mlp import MAX_HIDDEN_LAYERS, WIDTHS, MlpSpec, fused_mlp
from ..ops.modulate import EPSILON, modulate
from ..ops.modulated_mlp import is_native, modulated_mlp
from ..ops.muon import Matrix
from .quantised import as_stored, store_in_8_bits

Activation = Literal["relu", "sine", "finer", "gauss", "wire"]
Encoding = Literal["none", "fourier", "octaves"]
ModulatedBy = Literal["x", "xy", "xyz", "time"]
GRIDS: dict[ModulatedBy, tuple[str, ...]] = {
    "x": ("x",),
    "xy": ("xy",),
    "xyz": ("xy", "xz", "yz"),
    "time": ("z",),
}
"""Coordinates that modulate -> factors of the grid (`ops.factored_encode`)."""

NORMALISED_OVER = 30.0
"""What modulated layers have hidden_omega and scale divided by. Those are made for a z of about a thirtieth (SIREN's
law); a normalised z is about 1, and thirty times as much is noise: siren behind grids, 128x128 pixels of kodim05, comes
to 11.8 dB in 150 steps and so to 27.0 dB."""
PADDED_TO = 512
"""Rows that batches are filled up to a multiple of, in bfloat16 on a CPU: oneDNN, which multiplies there, compiles code
for every number of rows that it has not seen lately, and marching gives another number every time."""


@dataclass(frozen=True, kw_only=True)
class CoordinateNetworkConfig:
    """Shape and frequencies of a coordinate network. Widths of frequencies are those for inputs in [-1, 1]."""

    inputs: int = 2
    """D, dimensions of the points, 1 to 3."""
    outputs: int = 3
    """Values per point."""
    activation: Activation = "sine"
    encoding: Encoding = "none"
    width: int = 256
    """Channels of the hidden layers."""
    hidden_layers: int = 4
    """Layers with an activation, the first included (SIREN's "3 hidden" are 4 here)."""
    first_omega: float = 30.0
    """w of the first layer (sine, finer, wire)."""
    hidden_omega: float = 30.0
    """w of the others; modulated layers take a thirtieth (`NORMALISED_OVER`)."""
    first_bias: float | None = None
    """Half-width of the first layer's uniform bias (FINER's k); None: as any linear layer, 1 / sqrt(inputs)."""
    scale: float = 30.0
    """s of gauss and wire; modulated layers take a thirtieth."""
    sigma: float = 5.0
    """Standard deviation of random Fourier frequencies, cycles per unit (half of the [0, 1] papers')."""
    frequencies: int = 256
    """Random Fourier frequencies; twice as many features."""
    octaves: int = 10
    """Of sines and cosines of 2^k pi x."""
    output: Literal["none", "centred", "sigmoid"] = "none"
    """Behind the last linear layer: nothing, (y + 1) / 2, or the logistic function."""
    aspect: tuple[float, ...] | None = None
    """Length of each axis relative to the longest, in (0, 1]; None: all 1."""
    narrow: int | None = None
    """Channels inside the blocks of an hourglass, whose `hidden_layers` are blocks; None: plain layers."""
    skip: int | None = None
    """Layer, from 1, that sees the encoded point again beside what the layer before says; None: none."""
    modulation: int | None = None
    """Cells along each axis of CAM's grids, 2 to 4096; None: no modulation."""
    modulated_by: ModulatedBy = "xy"
    """Coordinates of the grids: the first, the first two, three planes, or the time of a film (its third)."""
    bits: Literal[8, 32] = 32
    """Of a stored weight or cell; see `quantised`."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("inputs", 1, 3),
            ("outputs", 1, 1024),
            ("width", 1, 4096),
            ("hidden_layers", 1, 64),
            ("frequencies", 1, 65536),
            ("octaves", 1, 32),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must be {low} to {high}; got {getattr(self, name)}")
        for name in ("first_omega", "hidden_omega", "scale", "sigma"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be positive; got {getattr(self, name):g}")
        if self.first_bias is not None and not 0 <= self.first_bias < math.inf:
            raise ConfigError(f"first_bias must be 0 or more; got {self.first_bias:g}")
        if self.aspect is not None and (len(self.aspect) != self.inputs or not all(0 < a <= 1 for a in self.aspect)):
            raise ConfigError(f"aspect must be {self.inputs} lengths in (0, 1]; got {self.aspect}")
        if self.modulation is not None and not 2 <= self.modulation <= 4096:
            raise ConfigError(f"modulation must be 2 to 4096 cells; got {self.modulation}")
        least = 3 if self.modulated_by == "time" else len(self.modulated_by)
        if self.modulation is not None and self.inputs < least:
            what = f"modulation by {self.modulated_by} needs points of at least {least} dimensions"
            raise ConfigError(f"{what}; got {self.inputs}")
        if self.skip is not None and not 1 <= self.skip < self.hidden_layers:
            raise ConfigError(f"skip must be 1 to {self.hidden_layers - 1}, a later hidden layer; got {self.skip}")
        if self.narrow is not None and (self.narrow < 1 or self.skip is not None):
            raise ConfigError(f"narrow must be positive, and skip None with it; got {self.narrow} and {self.skip}")

    @property
    def features(self) -> int:
        """Width of what the first layer sees."""
        return {"none": 1, "octaves": 1 + 2 * self.octaves}.get(self.encoding, 0) * self.inputs or 2 * self.frequencies


@final
class CoordinateNetwork(nn.Module):
    """Points to values by layers alone (see the module's text).

    Attributes:
        grids: (planes, cells, cells, 2, layers) scales and shifts [plane, later axis, earlier axis], of a line
            (1, 1, cells, 2, layers), or None.
        precision: "bf16" multiplies in bfloat16 where the activation is ReLU. The others are waves of large angles, of
            which bfloat16 would leave noise: they stay float32. May be changed any time.
    """

    aspect: Tensor
    projection: Tensor
    grids: nn.Parameter | None

    def __init__(
        self, config: CoordinateNetworkConfig, *, seed: int = 0, precision: Literal["fp32", "bf16"] = "fp32"
    ) -> None:
        super().__init__()
        self.config = c = config
        self.precision = precision
        generator = torch.Generator().manual_seed(seed)
        aspect = torch.tensor(c.aspect or (1.0,) * c.inputs)
        self.register_buffer("aspect", aspect, persistent=False)
        if c.encoding == "fourier":
            self.register_buffer("projection", c.sigma * torch.randn(c.inputs, c.frequencies, generator=generator))
        maps = 2 if c.activation == "wire" else 1
        sizes = [c.features, *[c.width] * c.hidden_layers]
        again = [c.features if index == c.skip else 0 for index in range(c.hidden_layers)]
        if c.narrow is None:
            shapes = [(a + more, maps * b) for (a, b), more in zip(pairwise(sizes), again, strict=True)]
            outer = []
        else:
            shapes = [(c.width, maps * c.narrow)] * c.hidden_layers
            outer = [nn.Linear(c.features, c.width), *(nn.Linear(c.narrow, c.width) for _ in range(c.hidden_layers))]
        self.layers = nn.ModuleList(nn.Linear(*shape) for shape in shapes)
        self.outer = nn.ModuleList(outer)
        self.head = nn.Linear(c.width, c.outputs)
        for index, layer in enumerate([*self.layers, self.head, *self.outer]):
            self._initialise(layer, index, generator)  # type: ignore[arg-type]
        self.grids = None
        if c.modulation is not None:
            factors, cells = GRIDS[c.modulated_by], c.modulation
            later = cells if len(factors[0]) == 2 else 1
            self.grids = nn.Parameter(unmodulated(len(factors), later, cells, layers=c.hidden_layers))
            channels, resolution = 2 * c.hidden_layers, (cells, cells, cells)
            terms = (Term(factors=(f,), channels=channels, resolution=resolution) for f in factors)
            self._grid_spec = FactoredGridSpec(terms=tuple(terms))
        self._fused_spec = _fused_spec(c)
        self._rounded: dict[Tensor, tuple[int, Tensor]] = {}
        if c.bits == 8:
            names = [name for name, _ in self.named_parameters() if name.endswith(("weight", "grids"))]
            store_in_8_bits(self, names)

    def matrices(self) -> list[Matrix]:
        """The weights of the hidden layers."""
        weights = [w for name, w in self.named_parameters() if name.endswith("weight") and not name.startswith("head")]
        return [Matrix(w, 0, (w.shape[0], w.shape[1])) for w in weights]

    def forward(self, x: Tensor, variance: Tensor | None = None) -> Tensor:
        """x (N, D) in [0, 1] (beyond it the network goes on, its grids do not) -> (N, outputs).

        With `variance` (N, D), in squares of the unit of x, the octaves that the network sees are their means over
        Gaussians around x (`encodings.FrequencyEncoding`); grids are read at x.

        Raises:
            ShapeError: x is not (N, D), or variance not as x.
            ConfigError: variance is given and the encoding has no octaves.
        """
        c = self.config
        if x.ndim != 2 or x.shape[1] != c.inputs:
            raise ShapeError(f"x must be (N, {c.inputs}); got {tuple(x.shape)}")
        if variance is not None and variance.shape != x.shape:
            raise ShapeError(f"variance must be {tuple(x.shape)} as x is; got {tuple(variance.shape)}")
        if variance is not None and c.encoding != "octaves":
            raise ConfigError(f"only octaves can be integrated over a variance; the encoding is {c.encoding!r}")
        fast = self.precision == "bf16" and c.activation == "relu" and x.dtype == torch.float32
        fused, count = self._runs_as_one(x, variance), len(x)
        if fast and not fused:
            x = padded_rows(x)
            variance = None if variance is None else padded_rows(variance)
        modulation = self._modulation(x)
        spread = None if variance is None else variance * (2 * self.aspect).square()
        encoded = self._encode((2 * x - 1) * self.aspect, spread)
        y = (self._fused if fused else self._layered)(encoded, modulation, fast)[:count].to(x.dtype)
        return {"none": lambda: y, "centred": lambda: (y + 1) / 2, "sigmoid": lambda: y.sigmoid()}[c.output]()

    def _runs_as_one(self, x: Tensor, variance: Tensor | None) -> bool:
        positions_learn = x.requires_grad or (variance is not None and variance.requires_grad)
        once = self.grids is not None or not positions_learn  # what modulates has first derivatives only, either way
        return once and self._fused_spec is not None and is_native(x, self.head.weight)

    def _fused(self, encoded: Tensor, modulation: Tensor | None, fast: bool) -> Tensor:
        """All layers as one operator. A sine of w z is that of a layer w times as large."""
        assert self._fused_spec is not None
        c, parts = self.config, []
        for index, layer in enumerate([*self.layers, self.head]):
            assert isinstance(layer, nn.Linear)
            weight, bias = self._stored(layer.weight), layer.bias
            if c.activation == "sine" and layer is not self.head:
                omega = c.first_omega if index == 0 else c.hidden_omega
                weight, bias = omega * weight, omega * bias
            parts += [weight.flatten(), bias]
        precision = "bf16" if fast else "fp32"
        if modulation is None:
            return fused_mlp(encoded, torch.cat(parts), self._fused_spec, precision=precision)
        return modulated_mlp(encoded, torch.cat(parts), modulation, self._fused_spec, precision=precision)

    def _layered(self, encoded: Tensor, modulation: Tensor | None, fast: bool) -> Tensor:
        """Layer by layer, differentiable any number of times where nothing modulates."""
        c, relu, h = self.config, self.config.activation == "relu", encoded
        by_layer = () if modulation is None else modulation.permute(2, 1, 0).contiguous().unbind()
        with torch.autocast(encoded.device.type, torch.bfloat16, enabled=fast):
            if c.narrow is not None:
                h = self._linear(self.outer[0], h)
            for index, layer in enumerate(self.layers):
                enters = h if c.narrow is None else _normalised(h)
                z = self._linear(layer, torch.cat([h, encoded.to(h.dtype)], 1) if index == c.skip else enters)
                if by_layer:
                    z = modulate(z, *by_layer[index], relu=relu)
                over = NORMALISED_OVER if by_layer else 1.0
                omega = c.first_omega if index == 0 else c.hidden_omega / over
                y = z if by_layer and relu else self._activate(z, omega, c.scale / over)
                h = y if c.narrow is None else h + self._linear(self.outer[1 + index], y)
            return self._linear(self.head, h)

    def _linear(self, layer: nn.Module, h: Tensor) -> Tensor:
        assert isinstance(layer, nn.Linear)
        return nn.functional.linear(h, self._stored(layer.weight), layer.bias)

    def _stored(self, values: Tensor) -> Tensor:
        """Weights as they will be stored; without gradients (marching, rendering) the same are not rounded again."""
        if self.config.bits == 32:
            return values
        if torch.is_grad_enabled():
            return as_stored(values)
        version, rounded = self._rounded.get(values, (-1, values))
        if (version, rounded.device, rounded.dtype) != (values._version, values.device, values.dtype):
            rounded = as_stored(values)
            self._rounded[values] = (values._version, rounded)
        return rounded

    def _encode(self, x: Tensor, variance: Tensor | None = None) -> Tensor:
        c = self.config
        if c.encoding == "none":
            return x
        if c.encoding == "fourier":
            angles = 2 * math.pi * (x @ self.projection)
            return torch.cat([angles.sin(), angles.cos()], 1)
        powers = math.pi * 2.0 ** torch.arange(c.octaves, device=x.device, dtype=x.dtype)
        angles = (x[:, :, None] * powers).flatten(1)
        if variance is None:
            return torch.cat([x, angles.sin(), angles.cos()], 1)
        left = octaves_left(variance, c.octaves).transpose(1, 2).flatten(1)
        return torch.cat([x, angles.sin() * left, angles.cos() * left], 1)

    def _activate(self, z: Tensor, omega: float, scale: float) -> Tensor:
        match self.config.activation:
            case "sine":
                return torch.sin(omega * z)
            case "finer":
                return torch.sin(omega * (z.detach().abs() + 1) * z)
            case "gauss":
                return torch.exp(-(scale * z).square())
            case "wire":
                wave, envelope = z.chunk(2, 1)
                return torch.cos(omega * wave) * torch.exp(-(scale * envelope).square())
            case _:
                return torch.relu(z)

    def _modulation(self, x: Tensor) -> Tensor | None:
        """(N, 2, layers): scales and shifts at the points."""
        if self.grids is None:
            return None
        point = nn.functional.pad(x, (0, 3 - x.shape[1]))
        factors = GRIDS[self.config.modulated_by]
        values = factored_encode(point, self._stored(self.grids).reshape(-1), self._grid_spec)
        values = values.reshape(len(x), len(factors), 2, self.config.hidden_layers)
        within = (point >= 0) & (point <= 1)
        inside = torch.stack([within[:, ["xyz".index(axis) for axis in factor]].all(1) for factor in factors], 1)
        if not is_native(x) or not bool(inside.all()):  # (a GPU would wait for the answer)
            values = torch.where(inside[:, :, None, None], values, values.new_tensor([[1.0], [0.0]]))
        if len(factors) == 1:
            return values[:, 0]
        a, b, c = values.unbind(1)
        return torch.stack([a[:, 0] * b[:, 0] * c[:, 0], a[:, 1] + b[:, 1] + c[:, 1]], 1)

    @torch.no_grad()
    def _initialise(self, layer: nn.Linear, index: int, generator: torch.Generator) -> None:
        """SIREN's law for sines; PyTorch's own for the others, whose papers use it. Both are uniform."""
        c, inputs = self.config, layer.in_features
        weight = bias = 1 / math.sqrt(inputs)
        if c.activation in ("sine", "finer"):
            weight = 1 / inputs if index == 0 else math.sqrt(6 / inputs) / c.hidden_omega
        if index == 0 and c.first_bias is not None:
            bias = c.first_bias
        layer.weight.uniform_(-weight, weight, generator=generator)
        layer.bias.uniform_(-bias, bias, generator=generator)

    def extra_repr(self) -> str:
        return repr(self.config)


def _fused_spec(c: CoordinateNetworkConfig) -> MlpSpec | None:
    """The network as `ops.fused_mlp` or, modulated, `ops.modulated_mlp` computes it; None: as neither does."""
    known = c.activation == "relu" or (c.activation == "sine" and c.modulation is None)
    if not known or c.narrow is not None or c.width not in WIDTHS or c.hidden_layers > MAX_HIDDEN_LAYERS:
        return None
    return MlpSpec(
        inputs=c.features,
        outputs=c.outputs,
        width=c.width,
        hidden_layers=c.hidden_layers,
        hidden_activation=c.activation,
        bias=True,
        skip=c.skip,
    )


def padded_rows(x: Tensor) -> Tensor:
    """x (N, C) on a CPU with rows of zeros behind it, up to a multiple of `PADDED_TO`; elsewhere as it is."""
    return nn.functional.pad(x, (0, 0, 0, -len(x) % PADDED_TO)) if x.device.type == "cpu" else x


def unmodulated(*cells: int, layers: int) -> Tensor:
    """(*cells, 2, layers): scales of 1 and shifts of 0, as grids begin."""
    return torch.tensor([[1.0], [0.0]]).expand(*cells, 2, layers).clone()


def _normalised(z: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the channels of each point."""
    return nn.functional.layer_norm(z, z.shape[1:], eps=EPSILON)
