"""What does a ray see? Volume compositing of packed samples over a background (NeRF, Mildenhall et al. 2020, eq. 3).

With x_i = density_i delta_i: alpha_i = 1 - exp(-x_i), T_i = exp(-sum_(j<i) x_j), w_i = T_i alpha_i. A ray stops after
the sample that brings its optical depth to -log(threshold); later samples have weight 0 and no gradient.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from . import _cpu, _cuda, _library, _native, _nerfacc
from ._packed import bad_offsets, check_first, check_offsets, check_samples, padded, stopped
from .activations import DENSITY_ACTIVATIONS, density_code, density_derivative, density_from_raw

_NAMES = {code: name for name, code in DENSITY_ACTIVATIONS.items()}


class Composited(NamedTuple):
    """What R rays see."""

    rgb: Tensor
    """(R, 3) sum of w_i rgb_i, plus what is left of the background."""
    alpha: Tensor
    """(R,) sum of the weights, in [0, 1]."""
    depth: Tensor
    """(R,) expected distance, sum of w_i t_i. Not divided by alpha."""
    median_depth: Tensor
    """(R,) distance at which transmittance falls to 1/2, within the interval t +- delta / 2; +infinity where it never
    does. No gradient."""
    weights: Tensor
    """(N,) w_i; 0 after a ray has stopped and for samples of no ray."""


def optical_limit(threshold: float) -> float:
    """-log(threshold): the optical depth at which a ray stops; infinity for 0.

    Raises:
        ConfigError: not in [0, 1).
    """
    if not 0 <= threshold < 1:
        raise ConfigError(f"threshold must be a transmittance in [0, 1), 0 to never stop; got {threshold}")
    return -math.log(threshold) if threshold > 0 else math.inf


def composite(
    density_raw: Tensor,
    rgb: Tensor,
    distances: Tensor,
    deltas: Tensor,
    offsets: Tensor,
    background: Tensor | None,
    *,
    activation: str = "exp",
    threshold: float = 1e-4,
    backend: Literal["polyfield", "nerfacc"] = "polyfield",
) -> Composited:
    """Composite packed samples, near to far.

    Args:
        density_raw: (N,) float32 or float64, before `activation`.
        rgb: (N, 3) colours, any range.
        distances: (N,) along the ray, scene units, ascending within a ray.
        deltas: (N,) interval lengths, scene units, not negative.
        offsets: (R + 1,) int32; samples of ray r are the rows offsets[r] to offsets[r + 1] - 1.
        background: (R, 3) colour behind each ray, or None for black.
        activation: a key of `activations.DENSITY_ACTIVATIONS`; density is per scene unit.
        threshold: transmittance below which a ray stops (instant-ngp trains with 1e-4); 0 never stops.
        backend: "nerfacc" calls that package, where it is installed, on CUDA; every sample must belong to a ray then.
            Experimental.

    Returns:
        See `Composited`. NaN and infinity stay within their ray.

    Gradients reach `density_raw` (exp's clamped, see `activations`), `rgb` and `background`, from all results but the
    median depth; none reach `distances` and `deltas`.

    Raises:
        ShapeError: a shape or dtype is not as above, or the offsets do not ascend within [0, N].
        ConfigError: `activation`, `threshold` or `backend` is not as above, or nerfacc is not installed.
    """
    check_first("density_raw", density_raw)
    check_samples("rgb", rgb, density_raw, 3)
    check_samples("distances", distances, density_raw)
    check_samples("deltas", deltas, density_raw)
    rays = check_offsets(offsets)
    if background is not None and (tuple(background.shape) != (rays, 3) or background.dtype != density_raw.dtype):
        came = f"{tuple(background.shape)} {background.dtype}"
        raise ShapeError(f"background must be {(rays, 3)} {density_raw.dtype} or None (black); got {came}")
    code, limit = density_code(activation), optical_limit(threshold)
    distances, deltas = distances.detach(), deltas.detach()
    if backend == "nerfacc":
        packed = (density_raw, rgb, distances, deltas, offsets, background)
        return Composited(*_nerfacc.composite(*packed, activation, threshold))
    if backend != "polyfield":
        raise ConfigError(f"backend must be 'polyfield' or 'nerfacc'; got {backend!r}")
    return Composited(*_composite(density_raw, rgb, distances, deltas, offsets, background, code, limit))


def composite_reference(
    density_raw: Tensor,
    rgb: Tensor,
    distances: Tensor,
    deltas: Tensor,
    offsets: Tensor,
    background: Tensor | None,
    *,
    activation: str = "exp",
    threshold: float = 1e-4,
) -> Composited:
    """`composite` in plain torch on a padded matrix, differentiable, any device."""
    rays, samples = offsets.shape[0] - 1, density_raw.shape[0]
    index, mask = padded(offsets, samples)
    if not index.numel():
        nothing = density_raw[:0].sum() + rgb[:0].sum()  # zero, but still of the graph
        zero = density_raw.new_zeros(rays) + nothing
        color = zero[:, None].expand(rays, 3) + (0.0 if background is None else background)
        weights = density_raw.new_zeros(samples) + nothing
        return Composited(color, zero, zero.clone(), torch.full_like(zero, torch.inf).detach(), weights)
    x = torch.where(mask, density_from_raw(density_raw, activation)[index] * deltas[index], 0.0)
    before = _optical_before(x)
    live = mask & ~stopped(before, optical_limit(threshold))
    transmittance = torch.exp(-before)
    w = torch.where(live, transmittance * -torch.expm1(-x), 0.0)
    remaining = torch.exp(-torch.where(live, x, 0.0).sum(1))
    t = torch.where(mask, distances[index], 0.0)
    color = (w[..., None] * torch.where(mask[..., None], rgb[index], 0.0)).sum(1)
    if background is not None:
        color = color + remaining[:, None] * background
    weights = density_raw.new_zeros(samples).index_put((index[mask],), w[mask])
    crosses = live & (transmittance * torch.exp(-x) <= 0.5)
    first = crosses.byte().argmax(1, keepdim=True)
    inside = t + deltas[index] * (torch.log(2 * transmittance) / x - 0.5)
    median = torch.where(crosses.any(1), inside.gather(1, first)[:, 0], torch.inf).detach()
    return Composited(color, w.sum(1), (w * t).sum(1), median, weights)


def _optical_before(x: Tensor) -> Tensor:
    """Exclusive sums along the rows, without the subtraction that infinity would turn into NaN."""
    return torch.cat([x.new_zeros(x.shape[0], 1), x[:, :-1]], 1).cumsum(1)


def _composite_backward_reference(
    density_raw: Tensor,
    rgb: Tensor,
    distances: Tensor,
    deltas: Tensor,
    offsets: Tensor,
    background: Tensor | None,
    grad_rgb: Tensor | None,
    grad_alpha: Tensor | None,
    grad_depth: Tensor | None,
    grad_weights: Tensor | None,
    activation: int,
    limit: float,
) -> tuple[Tensor, Tensor, Tensor]:
    name = _NAMES[activation]
    rays, samples = offsets.shape[0] - 1, density_raw.shape[0]
    index, mask = padded(offsets, samples)
    d_raw, d_rgb = torch.zeros_like(density_raw), torch.zeros_like(rgb)
    behind = density_raw.new_zeros(rays)
    if not index.numel():
        d_background = d_rgb.new_zeros(rays, 3) if grad_rgb is None else grad_rgb.clone()
        return d_raw, d_rgb, d_background if background is not None else d_rgb.new_zeros(0)
    x = torch.where(mask, density_from_raw(density_raw, name)[index] * deltas[index], 0.0)
    before = _optical_before(x)
    live = mask & ~stopped(before, limit)
    w = torch.where(live, torch.exp(-before) * -torch.expm1(-x), 0.0)
    remaining = torch.exp(-torch.where(live, x, 0.0).sum(1))
    value = torch.zeros_like(x)  # d loss / d w_i
    if grad_alpha is not None:
        value = value + grad_alpha[:, None]
    if grad_depth is not None:
        value = value + grad_depth[:, None] * torch.where(mask, distances[index], 0.0)
    if grad_weights is not None:
        value = value + grad_weights[index]
    if grad_rgb is not None:
        value = value + (rgb[index] * grad_rgb[:, None]).sum(2)
        d_rgb[index[mask]] = (w[..., None] * grad_rgb[:, None])[mask]
        if background is not None:
            behind = remaining * (grad_rgb * background).sum(1)
    tail = torch.where(live, w * value, 0.0).flip(1)
    tail = _optical_before(tail).flip(1)  # sum over later samples
    d_x = torch.where(live, torch.exp(-before - x) * value - tail - behind[:, None], 0.0)
    d_raw[index[mask]] = (d_x * deltas[index])[mask]
    d_raw = d_raw * density_derivative(density_raw, name)
    if background is None:
        return d_raw, d_rgb, d_rgb.new_zeros(0)
    return d_raw, d_rgb, (remaining[:, None] * grad_rgb if grad_rgb is not None else torch.zeros_like(background))


def _forward(
    density_raw: Tensor,
    rgb: Tensor,
    distances: Tensor,
    deltas: Tensor,
    offsets: Tensor,
    background: Tensor | None,
    activation: int,
    limit: float,
) -> tuple[Tensor, ...]:
    packed = (density_raw, rgb, distances, deltas, offsets, background)
    if not _native.usable(*packed):
        return composite_reference(*packed, activation=_NAMES[activation], threshold=math.exp(-limit))
    rays, samples = offsets.shape[0] - 1, density_raw.shape[0]
    inputs = [None if t is None else t.contiguous() for t in packed]
    outputs = [density_raw.new_empty(s) for s in ((rays, 3), (rays,), (rays,), (rays,), (samples,))]
    name = f"pf_composite_forward_{_cpu.suffix_of(density_raw)}"
    sizes = (rays, samples, activation, limit)
    if _native.call(name, *inputs, *sizes, *outputs, over=_cuda.warp_each(rays)) != 0:
        raise bad_offsets(offsets, samples)
    return tuple(outputs)


def _fake(
    density_raw: Tensor,
    rgb: Tensor,
    distances: Tensor,
    deltas: Tensor,
    offsets: Tensor,
    background: Tensor | None,
    activation: int,
    limit: float,
) -> tuple[Tensor, ...]:
    rays = offsets.shape[0] - 1
    return tuple(density_raw.new_empty(s) for s in ((rays, 3), (rays,), (rays,), (rays,), density_raw.shape))


def _backward(
    density_raw: Tensor,
    rgb: Tensor,
    distances: Tensor,
    deltas: Tensor,
    offsets: Tensor,
    background: Tensor | None,
    grad_rgb: Tensor | None,
    grad_alpha: Tensor | None,
    grad_depth: Tensor | None,
    grad_weights: Tensor | None,
    activation: int,
    limit: float,
) -> tuple[Tensor, Tensor, Tensor]:
    packed = (density_raw, rgb, distances, deltas, offsets, background, grad_rgb, grad_alpha, grad_depth, grad_weights)
    if not _native.usable(*packed):
        return _composite_backward_reference(*packed, activation, limit)
    rays, samples = offsets.shape[0] - 1, density_raw.shape[0]
    inputs = [None if t is None else t.contiguous() for t in packed]
    d_raw, d_rgb = density_raw.new_empty(samples), density_raw.new_empty(samples, 3)
    d_background = density_raw.new_empty((rays, 3) if background is not None else (0,))
    name = f"pf_composite_backward_{_cpu.suffix_of(density_raw)}"
    outputs = (d_raw, d_rgb, d_background if background is not None else None)
    sizes = (rays, samples, activation, limit)
    if _native.call(name, *inputs, *sizes, *outputs, over=_cuda.warp_each(rays)) != 0:
        raise bad_offsets(offsets, samples)
    return d_raw, d_rgb, d_background


def _fake_backward(density_raw: Tensor, rgb: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    background = rest[3]
    d_background = rgb.new_empty(0) if background is None else rgb.new_empty(background.shape)
    return density_raw.new_empty(density_raw.shape), rgb.new_empty(rgb.shape), d_background


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    density_raw, rgb, distances, deltas, offsets, background, ctx.activation, ctx.limit = inputs
    ctx.save_for_backward(density_raw, rgb, distances, deltas, offsets, background)
    ctx.mark_non_differentiable(output[3])
    ctx.set_materialize_grads(False)


def _autograd(
    ctx: Any, rgb: Tensor | None, alpha: Tensor | None, depth: Tensor | None, median: None, weights: Tensor | None
) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    d_raw, d_rgb, d_background = _composite_backward(*saved, rgb, alpha, depth, weights, ctx.activation, ctx.limit)
    return d_raw, d_rgb, None, None, None, d_background if saved[5] is not None else None, None, None


_INPUTS = "Tensor density_raw, Tensor rgb, Tensor distances, Tensor deltas, Tensor offsets, Tensor? background"
_composite_backward = _library.define(
    f"composite_backward({_INPUTS}, Tensor? grad_rgb, Tensor? grad_alpha, Tensor? grad_depth, Tensor? grad_weights, "
    "int activation, float limit) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_composite = _library.define(
    f"composite({_INPUTS}, int activation, float limit) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    setup_context=_setup,
    backward=_autograd,
)
