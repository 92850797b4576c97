"""How far is a ray's weight spread? The distortion loss of mip-NeRF 360 (Barron et al. 2022, eq. 15), in O(N)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _cpu, _cuda, _library, _native
from ._packed import bad_offsets, check_first, check_offsets, check_samples, padded


def distortion_loss(weights: Tensor, distances: Tensor, deltas: Tensor, offsets: Tensor) -> Tensor:
    """sum_ij w_i w_j |t_i - t_j| + 1/3 sum_i w_i^2 delta_i of every ray.

    Args:
        weights: (N,) compositing weights, float32 or float64.
        distances: (N,) midpoints t of the samples' intervals, ascending within a ray (what marching gives). In any
            unit: the paper's normalised distance s is the caller's to compute.
        deltas: (N,) lengths of the intervals, same unit.
        offsets: (R + 1,) int32; samples of no ray do not count.

    Returns:
        (R,), zero for rays without samples. NaN stays within its ray.

    Gradients reach `weights` alone.

    Raises:
        ShapeError: a shape or dtype is not as above, or the offsets do not ascend within [0, N].
    """
    check_first("weights", weights)
    check_samples("distances", distances, weights)
    check_samples("deltas", deltas, weights)
    check_offsets(offsets)
    return _distortion_loss(weights, distances.detach(), deltas.detach(), offsets)


def distortion_loss_reference(weights: Tensor, distances: Tensor, deltas: Tensor, offsets: Tensor) -> Tensor:
    """`distortion_loss` in plain torch by the definition, O(R S^2), differentiable, any device."""
    index, mask = padded(offsets, weights.shape[0])
    w, t, delta = _matrices(index, mask, weights, distances, deltas)
    pairs = w[:, :, None] * w[:, None, :] * (t[:, :, None] - t[:, None, :]).abs()
    return pairs.sum((1, 2)) + (w * w * delta).sum(1) / 3


def _matrices(index: Tensor, mask: Tensor, *values: Tensor) -> list[Tensor]:
    if not index.numel():
        return [v[:0].sum().expand(index.shape) for v in values]  # no samples, but still of the graph
    return [torch.where(mask, v[index], 0.0) for v in values]


def _backward_reference(grad: Tensor, weights: Tensor, distances: Tensor, deltas: Tensor, offsets: Tensor) -> Tensor:
    index, mask = padded(offsets, weights.shape[0])
    out = weights.new_zeros(weights.shape[0])
    if not index.numel():
        return out
    w, t, delta = _matrices(index, mask, weights, distances, deltas)
    per_sample = 2 * ((t[:, :, None] - t[:, None, :]).abs() * w[:, None, :]).sum(2) + w * delta * (2 / 3)
    out[index[mask]] = (per_sample * grad[:, None])[mask]
    return out


def _forward(weights: Tensor, distances: Tensor, deltas: Tensor, offsets: Tensor) -> Tensor:
    if not _native.usable(weights, distances, deltas, offsets):
        return distortion_loss_reference(weights, distances, deltas, offsets)
    rays, samples = offsets.shape[0] - 1, weights.shape[0]
    out = weights.new_empty(rays)
    inputs = [t.contiguous() for t in (weights, distances, deltas, offsets)]
    name = f"pf_distortion_forward_{_cpu.suffix_of(weights)}"
    if _native.call(name, *inputs, rays, samples, out, over=_cuda.warp_each(rays)) != 0:
        raise bad_offsets(offsets, samples)
    return out


def _backward(grad: Tensor, weights: Tensor, distances: Tensor, deltas: Tensor, offsets: Tensor) -> Tensor:
    if not _native.usable(grad, weights, distances, deltas, offsets):
        return _backward_reference(grad, weights, distances, deltas, offsets)
    rays, samples = offsets.shape[0] - 1, weights.shape[0]
    out = weights.new_empty(samples)
    inputs = [t.contiguous() for t in (weights, distances, deltas, offsets, grad)]
    name = f"pf_distortion_backward_{_cpu.suffix_of(weights)}"
    if _native.call(name, *inputs, rays, samples, out, over=_cuda.warp_each(rays)) != 0:
        raise bad_offsets(offsets, samples)
    return out


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _distortion_loss_backward(grad, *ctx.saved_tensors), None, None, None


_distortion_loss_backward = _library.define(
    "distortion_loss_backward(Tensor grad, Tensor weights, Tensor distances, Tensor deltas, Tensor offsets) -> Tensor",
    _backward,
    lambda grad, weights, distances, deltas, offsets: weights.new_empty(weights.shape[0]),
)
_distortion_loss = _library.define(
    "distortion_loss(Tensor weights, Tensor distances, Tensor deltas, Tensor offsets) -> Tensor",
    _forward,
    lambda weights, distances, deltas, offsets: weights.new_empty(offsets.shape[0] - 1),
    setup_context=_setup,
    backward=_autograd,
)
