"""Which sines and cosines encode an input, as in NeRF's positional encoding?

Source: Mildenhall et al. 2020, "NeRF" (arXiv 2003.08934), equation 4. Columns for D inputs and K octaves:
[x (D, if included), sin(2^0 pi x) (D), cos(2^0 pi x) (D), sin(2^1 pi x) (D), cos(2^1 pi x) (D), ...], so
D * (include_input + 2 K) in all. The encoding of one input has period 2 in x, the input itself aside.

The native kernel reduces the angle exactly before it multiplies by pi, so that high octaves are as accurate as low
ones.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from . import _cpu, _library, _native


def frequency_encode(x: Tensor, octaves: int, include_input: bool = True) -> Tensor:
    """Encode inputs.

    Args:
        x: (N, D) inputs, any range (positions are usually in [-1, 1]), float32 or float64. NaN and infinity give NaN.
        octaves: K, 0 to 32.
        include_input: whether the first D columns are `x` itself.

    Returns:
        (N, D * (include_input + 2 K)), columns as in the module's docstring.

    Gradients reach `x`.

    Raises:
        ShapeError: `x` is not (N, D) floating point with D at least 1.
        ConfigError: `octaves` is out of range, or the encoding would be empty.
    """
    _check(x, octaves, include_input)
    return _frequency_encode(x, octaves, include_input)


def frequency_value_and_jacobian(x: Tensor, octaves: int, include_input: bool = True) -> tuple[Tensor, Tensor]:
    """Encode inputs, and differentiate the encoding.

    Arguments and errors as `frequency_encode`.

    Returns:
        features (N, F) and jacobian (N, D, F), d features / d x.

    Gradients reach `x` from both results.
    """
    _check(x, octaves, include_input)
    return _frequency_jacobian(x, octaves, include_input)


def frequency_features(inputs: int, octaves: int, include_input: bool = True) -> int:
    """F, the number of columns for D inputs."""
    return inputs * (int(include_input) + 2 * octaves)


def frequency_encode_reference(x: Tensor, octaves: int, include_input: bool = True) -> Tensor:
    """`frequency_encode` in plain torch, differentiable, any device."""
    columns = [x] if include_input else []
    for octave in range(octaves):
        angle = _angle(x, octave)
        columns += [angle.sin(), angle.cos()]
    return torch.cat(columns, 1)


def frequency_value_and_jacobian_reference(
    x: Tensor, octaves: int, include_input: bool = True
) -> tuple[Tensor, Tensor]:
    """`frequency_value_and_jacobian` in plain torch, differentiable, any device."""
    slopes = [torch.ones_like(x)] if include_input else []
    for octave in range(octaves):
        angle, rate = _angle(x, octave), math.pi * 2**octave
        slopes += [rate * angle.cos(), -rate * angle.sin()]
    jacobian = torch.cat([torch.diag_embed(slope) for slope in slopes], 2)
    return frequency_encode_reference(x, octaves, include_input), jacobian


def _angle(x: Tensor, octave: int) -> Tensor:
    turns = x * 2**octave  # half turns; exact, and so is what is left of them after whole turns
    return math.pi * (turns - 2 * (turns.detach() / 2).round())


def _backward_reference(
    grad: Tensor, jacobian_grad: Tensor | None, x: Tensor, octaves: int, include_input: bool
) -> Tensor:
    d = x.shape[1]
    x_grad = grad[:, :d].clone() if include_input else torch.zeros_like(x)
    for octave in range(octaves):
        angle, rate = _angle(x, octave), math.pi * 2**octave
        sine, cosine = angle.sin(), angle.cos()
        column = d * (int(include_input) + 2 * octave)
        x_grad += rate * (grad[:, column : column + d] * cosine - grad[:, column + d : column + 2 * d] * sine)
        if jacobian_grad is not None:
            of_sine = jacobian_grad[:, :, column : column + d].diagonal(0, 1, 2)
            of_cosine = jacobian_grad[:, :, column + d : column + 2 * d].diagonal(0, 1, 2)
            x_grad -= rate * rate * (of_sine * sine + of_cosine * cosine)
    return x_grad


def _check(x: Tensor, octaves: int, include_input: bool) -> None:
    if x.dim() != 2 or x.shape[1] < 1:
        raise ShapeError(f"x must be (N, D) with D at least 1; got {tuple(x.shape)}")
    if x.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"x must be float32 or float64; got {x.dtype}")
    if not 0 <= octaves <= 32:
        raise ConfigError(f"octaves must be 0 to 32; got {octaves}")
    if octaves == 0 and not include_input:
        raise ConfigError("octaves is 0 and include_input is False: nothing is left to encode; change one of them")


# --- operators ------------------------------------------------------------------------------------------------------


def _forward(x: Tensor, octaves: int, include_input: bool) -> Tensor:
    if not _native.usable(x):
        return frequency_encode_reference(x, octaves, include_input).clone()
    x = x.contiguous()
    out = x.new_empty(x.shape[0], frequency_features(x.shape[1], octaves, include_input))
    name = f"pf_frequency_encode_forward_{_cpu.suffix_of(x)}"
    _native.call(name, x, *x.shape, octaves, include_input, out, None, over=x.numel())
    return out


def _jacobian(x: Tensor, octaves: int, include_input: bool) -> tuple[Tensor, Tensor]:
    if not _native.usable(x):
        features, jacobian = frequency_value_and_jacobian_reference(x, octaves, include_input)
        return features.clone(), jacobian
    x = x.contiguous()
    width = frequency_features(x.shape[1], octaves, include_input)
    out, jacobian = x.new_empty(x.shape[0], width), x.new_empty(*x.shape, width)
    name = f"pf_frequency_encode_forward_{_cpu.suffix_of(x)}"
    _native.call(name, x, *x.shape, octaves, include_input, out, jacobian, over=x.numel())
    return out, jacobian


def _backward(grad: Tensor, jacobian_grad: Tensor | None, x: Tensor, octaves: int, include_input: bool) -> Tensor:
    if not _native.usable(x, grad, jacobian_grad):
        return _backward_reference(grad, jacobian_grad, x, octaves, include_input)
    x, grad = x.contiguous(), grad.contiguous()
    jacobian_grad = None if jacobian_grad is None else jacobian_grad.contiguous()
    out = torch.empty_like(x)
    name = f"pf_frequency_encode_backward_{_cpu.suffix_of(x)}"
    _native.call(name, x, *x.shape, octaves, include_input, grad, jacobian_grad, out, over=x.numel())
    return out


def _forward_fake(x: Tensor, octaves: int, include_input: bool) -> Tensor:
    return x.new_empty(x.shape[0], frequency_features(x.shape[1], octaves, include_input))


def _jacobian_fake(x: Tensor, octaves: int, include_input: bool) -> tuple[Tensor, Tensor]:
    width = frequency_features(x.shape[1], octaves, include_input)
    return x.new_empty(x.shape[0], width), x.new_empty(x.shape[0], x.shape[1], width)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, ctx.octaves, ctx.include_input = inputs
    ctx.save_for_backward(x)


def _autograd(ctx: Any, grad: Tensor, jacobian_grad: Tensor | None = None) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    return _frequency_encode_backward(grad, jacobian_grad, x, ctx.octaves, ctx.include_input), None, None


_frequency_encode_backward = _library.define(
    "frequency_encode_backward(Tensor grad, Tensor? jacobian_grad, Tensor x, int octaves, bool include_input)"
    " -> Tensor",
    _backward,
    lambda grad, jacobian_grad, x, octaves, include_input: x.new_empty(x.shape),
)
_frequency_encode = _library.define(
    "frequency_encode(Tensor x, int octaves, bool include_input) -> Tensor",
    _forward,
    _forward_fake,
    setup_context=_setup,
    backward=_autograd,
)
_frequency_jacobian = _library.define(
    "frequency_jacobian(Tensor x, int octaves, bool include_input) -> (Tensor, Tensor)",
    _jacobian,
    _jacobian_fake,
    setup_context=_setup,
    backward=_autograd,
)
