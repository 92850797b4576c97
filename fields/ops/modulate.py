"""What is a layer of CAM, once the point's scale and shift are known?

The channels of a row are brought to mean 0 and variance 1, then scaled and shifted by two values of the row, and a ReLU
may follow (Lee et al. 2024, arXiv 2311.14993, section 3, per point):

    zhat = (z - mean) / sqrt(variance + 1e-5),  y = scale zhat + shift,  y = max(y, 0)

One pass over memory each way, where the four steps in torch are four.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from . import _cpu, _cuda, _library, _native

EPSILON = 1e-5
"""Added to the variance (`kVarianceEpsilon`)."""


def modulate(z: Tensor, scales: Tensor, shifts: Tensor, *, relu: bool) -> Tensor:
    """Normalise the channels of each row, scale and shift them.

    Args:
        z: (N, C) float32, float64 or bfloat16, C at least 1; a row with NaN or infinity becomes NaN, no other does.
        scales: (N,) float32; float64 where `z` is.
        shifts: as `scales`.
        relu: what is below 0 becomes 0.

    Returns:
        (N, C) of the dtype of `z`. All arithmetic is float32 (float64), rounded once.

    Gradients reach all three tensors, first order only. They are the same for any number of threads.

    Raises:
        ShapeError: a shape, dtype or device is not as above.
    """
    if z.dim() != 2 or z.shape[1] < 1 or z.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        wanted = "(N, C) float32, float64 or bfloat16 with C at least 1"
        raise ShapeError(f"z must be {wanted}; got {tuple(z.shape)} {z.dtype}")
    for name, of_rows in (("scales", scales), ("shifts", shifts)):
        if of_rows.shape != z.shape[:1] or of_rows.dtype != _wide(z):
            wanted = f"({z.shape[0]},) {_wide(z)} for this z"
            raise ShapeError(f"{name} must be {wanted}; got {tuple(of_rows.shape)} {of_rows.dtype}")
        if of_rows.device != z.device:
            raise ShapeError(f"z and {name} must be on one device; got {z.device} and {of_rows.device}")
    return _modulate(z, scales, shifts, relu)[0]


def modulate_reference(z: Tensor, scales: Tensor, shifts: Tensor, *, relu: bool) -> Tensor:
    """`modulate` in plain torch, differentiable any number of times, any device."""
    normalised = torch.nn.functional.layer_norm(z.to(scales.dtype), z.shape[1:], eps=EPSILON)
    y = scales[:, None] * normalised + shifts[:, None]
    return (torch.relu(y) if relu else y).to(z.dtype)


def _wide(z: Tensor) -> torch.dtype:
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def _forward(z: Tensor, scales: Tensor, shifts: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """The result, and (N, 2) means and inverses of deviations."""
    if not _native.usable(z, scales, shifts):
        wide = z.to(scales.dtype)
        mean = wide.mean(1, keepdim=True)
        variance = (wide - mean).square().mean(1, keepdim=True)
        moments = torch.cat([mean, (variance + EPSILON).rsqrt()], 1)
        return modulate_reference(z, scales, shifts, relu=relu).clone(), moments
    z, scales, shifts = z.contiguous(), scales.contiguous(), shifts.contiguous()
    y, moments = _forward_fake(z, scales, shifts, relu)
    name = f"pf_modulate_forward_{_cpu.suffix_of(z)}"
    _native.call(name, z, *z.shape, scales, shifts, relu, y, moments, over=_cuda.warp_each(z.shape[0]))
    return y, moments


def _forward_fake(z: Tensor, scales: Tensor, shifts: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), scales.new_empty(z.shape[0], 2)


def _backward(
    grad: Tensor, z: Tensor, scales: Tensor, shifts: Tensor, relu: bool, moments: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if not _native.usable(grad, z, scales, shifts):
        return _backward_reference(grad, z, scales, shifts, relu, moments)
    grad, z, scales, shifts = (t.contiguous() for t in (grad, z, scales, shifts))
    grads = _backward_fake(grad, z, scales, shifts, relu, moments)
    name = f"pf_modulate_backward_{_cpu.suffix_of(z)}"
    given = (grad, z, *z.shape, scales, shifts, relu, moments.contiguous())
    _native.call(name, *given, *grads, over=_cuda.warp_each(z.shape[0]))
    return grads


def _backward_reference(
    grad: Tensor, z: Tensor, scales: Tensor, shifts: Tensor, relu: bool, moments: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    mean, inverse_deviation = moments[:, :1], moments[:, 1:]
    normalised = (z.to(scales.dtype) - mean) * inverse_deviation
    g = grad.to(scales.dtype)
    if relu:
        g = torch.where(scales[:, None] * normalised + shifts[:, None] <= 0, 0, g)
    d_scales, d_shifts = (g * normalised).sum(1), g.sum(1)
    rest = g - d_shifts[:, None] / z.shape[1] - normalised * d_scales[:, None] / z.shape[1]
    return (scales[:, None] * inverse_deviation * rest).to(z.dtype), d_scales, d_shifts


def _backward_fake(
    grad: Tensor, z: Tensor, scales: Tensor, shifts: Tensor, relu: bool, moments: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return z.new_empty(z.shape), scales.new_empty(scales.shape), shifts.new_empty(shifts.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    z, scales, shifts, ctx.relu = inputs
    ctx.save_for_backward(z, scales, shifts, output[1])
    ctx.mark_non_differentiable(output[1])


def _autograd(ctx: Any, grad: Tensor, _moments: Tensor | None) -> tuple[Tensor | None, ...]:
    z, scales, shifts, moments = ctx.saved_tensors
    grads = _modulate_backward(grad, z, scales, shifts, ctx.relu, moments)
    return *(g if need else None for g, need in zip(grads, ctx.needs_input_grad[:3], strict=True)), None


def _refuse(ctx: Any, *grads: Tensor) -> Any:
    raise ConfigError("modulate has first-order gradients only; use modulate_reference for more")


_modulate_backward = _library.define(
    "modulate_backward(Tensor grad, Tensor z, Tensor scales, Tensor shifts, bool relu, Tensor moments)"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    backward=_refuse,
)
_modulate = _library.define(
    "modulate(Tensor z, Tensor scales, Tensor shifts, bool relu) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    setup_context=_setup,
    backward=_autograd,
)
