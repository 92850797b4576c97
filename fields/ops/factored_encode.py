"""What do planes and lines of features say of a position, multiplied together?

A factor is a plane (axes "xy", "xz" or "yz") or a line ("x", "y", "z") of texels with C channels each; a term is the
product of up to three factors, channel by channel; the encoding is the terms side by side. So a term is

- xy * xz * yz of K-Planes (Fridovich-Keil et al. 2023, arXiv 2301.10241, section 3.1),
- xy * z (and xz * y, yz * x) of TensoRF's vector-matrix form (Chen et al. 2022, arXiv 2203.09517, equation 3),
- x * y * z of its CP form, and xy alone of tri-planes.

Texels lie on the ends of the unit interval: x in [0, 1] is at x (resolution - 1), blended linearly between neighbours.
Outside [0, 1] a position is taken at the nearest point of the cube, with derivative zero along that axis; NaN counts
as 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from . import _cpu, _cuda, _library, _native

AXES = "xyz"
MOST_FACTORS = 3
"""Of a term (`kMostFactors`)."""


class Factor(NamedTuple):
    """A plane or a line of a `FactoredGridSpec` (`GridFactor` of polyfield/factored_grid.h)."""

    axis_a: int
    """0, 1 or 2; the axis along which neighbouring texels lie."""
    axis_b: int
    """The other axis of a plane, -1 for a line."""
    resolution_a: int
    resolution_b: int
    """Texels along the axes; `resolution_b` is 1 for a line."""
    first: int
    """Of its values in the parameters."""
    channels: int
    column: int
    """Of its term in the encoding."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(resolution_b, resolution_a, channels) of its part of the parameters."""
        return self.resolution_b, self.resolution_a, self.channels


@dataclass(frozen=True, kw_only=True)
class Term:
    """A product of planes and lines."""

    factors: tuple[str, ...]
    """1 to 3 of "xy", "xz", "yz", "x", "y", "z"."""
    channels: int
    """C, 1 to 256."""
    resolution: tuple[int, int, int]
    """Texels along x, y and z, 2 to 16384 each."""

    def __post_init__(self) -> None:
        known = all(f in ("xy", "xz", "yz", *AXES) for f in self.factors)
        if not known or not 1 <= len(self.factors) <= MOST_FACTORS:
            raise ConfigError(f"factors must be 1 to 3 of xy, xz, yz, x, y, z; got {self.factors}")
        if not 1 <= self.channels <= 256:
            raise ConfigError(f"channels must be 1 to 256; got {self.channels}")
        if len(self.resolution) != 3 or not all(2 <= r <= 16384 for r in self.resolution):
            raise ConfigError(f"resolution must be three numbers of texels from 2 to 16384; got {self.resolution}")


@dataclass(frozen=True, kw_only=True)
class FactoredGridSpec:
    """Shape of a factored grid."""

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ConfigError("a factored grid needs at least one term")
        if self.parameter_count >= 2**31:
            raise ConfigError(f"a factored grid holds fewer than 2^31 values; this one asks for {self.parameter_count}")

    @property
    def features(self) -> int:
        """Width of the encoding."""
        return sum(term.channels for term in self.terms)

    @property
    def parameter_count(self) -> int:
        """P."""
        return sum(math.prod(factor.shape) for factor in self.factors())

    def factors(self) -> tuple[Factor, ...]:
        """All factors, term after term, as they lie in the parameters."""
        out: list[Factor] = []
        first = column = 0
        for term in self.terms:
            for name in term.factors:
                a, b = AXES.index(name[0]), AXES.index(name[1]) if len(name) == 2 else -1
                sizes = (term.resolution[a], 1 if b < 0 else term.resolution[b])
                out.append(Factor(a, b, *sizes, first, term.channels, column))
                first += math.prod(out[-1].shape)
            column += term.channels
        return tuple(out)


def factored_encode(x: Tensor, parameters: Tensor, spec: FactoredGridSpec) -> Tensor:
    """Encode positions.

    Args:
        x: (N, 3) positions in [0, 1] (clamped), float32 or float64.
        parameters: (P,) of the dtype of `x`: factor after factor, each (resolution_b, resolution_a, C); see
            `FactoredGridSpec.factors`.
        spec: shape of the grid.

    Returns:
        (N, features), terms side by side.

    Gradients reach `x` (piecewise: the blend is continuous, its slope jumps at texels) and `parameters`. The sums of
    the latter repeat exactly on the CPU; on CUDA with `torch.use_deterministic_algorithms`.

    Raises:
        ShapeError: a shape or dtype is not as above.
    """
    if x.dim() != 2 or x.shape[1] != 3 or x.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"x must be (N, 3) float32 or float64; got {tuple(x.shape)} {x.dtype}")
    if parameters.shape != (spec.parameter_count,) or parameters.dtype != x.dtype:
        wanted = f"({spec.parameter_count},) {x.dtype} for this spec"
        raise ShapeError(f"parameters must be {wanted}; got {tuple(parameters.shape)} {parameters.dtype}")
    if x.device != parameters.device:
        raise ShapeError(f"x and parameters must be on one device; got {x.device} and {parameters.device}")
    return _factored_encode(x, parameters, [number for factor in spec.factors() for number in factor])


def factored_encode_reference(x: Tensor, parameters: Tensor, spec: FactoredGridSpec) -> Tensor:
    """`factored_encode` in plain torch, differentiable, any device."""
    return _encode_reference(x, parameters, spec.factors())


class _Read(NamedTuple):
    """How a factor is read at N positions."""

    places: Tensor
    """(corners, N) texels of the factor."""
    weights: Tensor
    """(corners, N)."""
    along: tuple[Tensor, ...]
    """d weights / d position along the factor's axes, (corners, N) each."""


def _place(x: Tensor, resolution: int) -> tuple[Tensor, Tensor, Tensor]:
    p = torch.nan_to_num(x.clamp(0, 1), nan=0.0) * (resolution - 1)
    low = p.detach().floor().long().clamp(max=resolution - 2)
    slope = ((x >= 0) & (x <= 1)).to(x.dtype) * (resolution - 1)
    return low, p - low, slope.detach()


def _read_at(x: Tensor, factor: Factor) -> _Read:
    low_a, fraction_a, slope_a = _place(x[:, factor.axis_a], factor.resolution_a)
    weights_a, along_a = torch.stack([1 - fraction_a, fraction_a]), torch.stack([-slope_a, slope_a])
    places_a = torch.stack([low_a, low_a + 1])
    if factor.axis_b < 0:
        return _Read(places_a, weights_a, (along_a,))
    low_b, fraction_b, slope_b = _place(x[:, factor.axis_b], factor.resolution_b)
    weights_b, along_b = torch.stack([1 - fraction_b, fraction_b]), torch.stack([-slope_b, slope_b])
    places_b = torch.stack([low_b, low_b + 1])

    def grid(of_a: Tensor, of_b: Tensor) -> Tensor:
        return (of_b[:, None] * of_a[None]).flatten(0, 1)

    places = (places_b[:, None] * factor.resolution_a + places_a[None]).flatten(0, 1)
    return _Read(places, grid(weights_a, weights_b), (grid(along_a, weights_b), grid(weights_a, along_b)))


def _texels(parameters: Tensor, factor: Factor) -> Tensor:
    return parameters[factor.first : factor.first + math.prod(factor.shape)].reshape(-1, factor.channels)


def _terms(factors: Sequence[Factor]) -> list[list[Factor]]:
    out: list[list[Factor]] = []
    for factor in factors:
        if out and out[-1][0].column == factor.column:
            out[-1].append(factor)
        else:
            out.append([factor])
    return out


def _encode_reference(x: Tensor, parameters: Tensor, factors: Sequence[Factor]) -> Tensor:
    columns = []
    for term in _terms(factors):
        values = []
        for factor in term:
            read, texels = _read_at(x, factor), _texels(parameters, factor)
            values.append((texels[read.places] * read.weights[..., None]).sum(0))
        columns.append(math.prod(values[1:], start=values[0]))
    return torch.cat(columns, 1)


def _backward_reference(
    grad: Tensor, x: Tensor, parameters: Tensor, factors: Sequence[Factor]
) -> tuple[Tensor, Tensor]:
    x_grad, parameter_grad = torch.zeros_like(x), torch.zeros_like(parameters)
    for term in _terms(factors):
        reads = [_read_at(x, factor) for factor in term]
        corners = [_texels(parameters, f)[r.places] for f, r in zip(term, reads, strict=True)]
        values = [(c * r.weights[..., None]).sum(0) for c, r in zip(corners, reads, strict=True)]
        g = grad[:, term[0].column : term[0].column + term[0].channels]
        for k, (factor, read) in enumerate(zip(term, reads, strict=True)):
            others = [value for other, value in enumerate(values) if other != k]
            mine = math.prod(others, start=g)
            spread = (read.weights[..., None] * mine).flatten(0, 1)
            _texels(parameter_grad, factor).index_add_(0, read.places.flatten(), spread)
            for axis, along in zip((factor.axis_a, factor.axis_b), read.along, strict=False):
                x_grad[:, axis] += ((corners[k] * along[..., None]).sum(0) * mine).sum(1)
    return x_grad, parameter_grad


# --- operators --------------------------------------------------------------------------------------------------------


def _factors_of(layout: Sequence[int]) -> tuple[Factor, ...]:
    width = len(Factor._fields)
    return tuple(Factor(*layout[k : k + width]) for k in range(0, len(layout), width))


@functools.lru_cache(maxsize=64)
def _layout_tensor(layout: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(layout, dtype=torch.int64, device=device)


def _shape(layout: Sequence[int], device: torch.device) -> tuple[Tensor, int, int]:
    """Layout on the device, number of factors, width of the encoding."""
    last = _factors_of(layout)[-1]
    return _layout_tensor(tuple(layout), device), len(layout) // len(Factor._fields), last.column + last.channels


_LOOPS = 1 << 14
"""Most blocks of launches that loop."""


def _encode(x: Tensor, parameters: Tensor, layout: list[int]) -> Tensor:
    if not _native.usable(x, parameters):
        return _encode_reference(x, parameters, _factors_of(layout)).clone()
    x, parameters, shape = x.contiguous(), parameters.contiguous(), _shape(layout, x.device)
    out = _native.new_empty(x, x.shape[0], shape[2])
    name = f"pf_factored_encode_forward_{_cpu.suffix_of(x)}"
    _native.call(name, x, x.shape[0], parameters, *shape, out, over=out.numel(), most_blocks=_LOOPS)
    return out


def _encode_fake(x: Tensor, parameters: Tensor, layout: list[int]) -> Tensor:
    last = _factors_of(layout)[-1]
    return x.new_empty(x.shape[0], last.column + last.channels)


def _encode_backward(
    grad: Tensor, x: Tensor, parameters: Tensor, layout: list[int], need_x: bool, need_parameters: bool
) -> tuple[Tensor, Tensor]:
    if not _native.usable(grad, x, parameters):
        x_grad, parameter_grad = _backward_reference(grad, x, parameters, _factors_of(layout))
        return x_grad if need_x else x.new_empty(0), parameter_grad if need_parameters else x.new_empty(0)
    grad, x, parameters = grad.contiguous(), x.contiguous(), parameters.contiguous()
    x_grad = torch.empty_like(x) if need_x else None
    parameter_grad = _native.new_empty(parameters, *parameters.shape).zero_() if need_parameters else None
    given = (x, x.shape[0], parameters, *_shape(layout, x.device), grad)
    suffix = _cpu.suffix_of(x)
    if _cuda.usable(x):
        _backward_on_cuda(given, x_grad, parameter_grad, suffix)
    else:
        _cpu.call(f"pf_factored_encode_backward_{suffix}", *given, x_grad, parameter_grad)
    return x.new_empty(0) if x_grad is None else x_grad, x.new_empty(0) if parameter_grad is None else parameter_grad


def _backward_on_cuda(
    given: tuple[Any, ...], x_grad: Tensor | None, parameter_grad: Tensor | None, suffix: str
) -> None:
    _x, n, parameters, _layout, _factors, width, grad = given
    if x_grad is not None:
        _cuda.call(f"pf_factored_position_gradient_{suffix}", _cuda.one_thread_each(n), *given, x_grad)
    if parameter_grad is None:
        return
    grid = _cuda.one_thread_each(n * width, _LOOPS)
    if not torch.are_deterministic_algorithms_enabled():
        _cuda.call(f"pf_factored_scatter_{suffix}", grid, *given, parameter_grad)
        return
    if n == 0:
        return
    # No sum of 4 N gradients times two features leaves 63 bits; NaN where any is.
    largest = grad.abs().amax().double() * parameters.abs().amax().double().clamp(min=1) ** (MOST_FACTORS - 1)
    scale = 2.0**62 / (4 * n) / largest.clamp(min=1e-250)
    sums = torch.zeros_like(parameter_grad, dtype=torch.int64)
    _cuda.call(f"pf_factored_scatter_fixed_{suffix}", grid, *given, sums, scale)
    parameter_grad.copy_(sums / scale)


def _encode_backward_fake(
    grad: Tensor, x: Tensor, parameters: Tensor, layout: list[int], need_x: bool, need_parameters: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if need_x else 0), x.new_empty(parameters.shape if need_parameters else 0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, parameters, ctx.layout = inputs
    ctx.save_for_backward(x, parameters)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, parameters = ctx.saved_tensors
    need_x, need_parameters = ctx.needs_input_grad[:2]
    x_grad, parameter_grad = _factored_encode_backward(grad, x, parameters, ctx.layout, need_x, need_parameters)
    return x_grad if need_x else None, parameter_grad if need_parameters else None, None


_factored_encode_backward = _library.define(
    "factored_encode_backward(Tensor grad, Tensor x, Tensor parameters, int[] layout, bool need_x,"
    " bool need_parameters) -> (Tensor, Tensor)",
    _encode_backward,
    _encode_backward_fake,
)
_factored_encode = _library.define(
    "factored_encode(Tensor x, Tensor parameters, int[] layout) -> Tensor",
    _encode,
    _encode_fake,
    setup_context=_setup,
    backward=_autograd,
)
