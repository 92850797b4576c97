"""The fused train step of grid-encoded radiance fields, the one sanctioned fusion.

`radiance_step_` does what the composed operators do one by one (hash_encode, fused_mlp, spherical_harmonics, fused_mlp,
composite, loss, their backward passes, lazy_adam_) for packed samples of rays, with activations that never leave the
cache. `radiance_gradients` stops before the update. `radiance_reference` is the plain-torch form of both, the oracle.

On the CPU it is one kernel. On CUDA the operators run one after the other without autograd; what is encoded already is
not encoded again, and the host waits once, for the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, NativeError, ShapeError
from . import _cpu, _native
from .activations import DENSITY_ACTIVATIONS
from .adam import lazy_adam_
from .composite import composite, optical_limit
from .fused_mlp import HIDDEN_ACTIVATIONS, MlpSpec, fused_mlp_reference, shape_numbers
from .hash_encode import HashGridSpec, hash_encode_reference
from .spherical_harmonics import spherical_harmonics, spherical_harmonics_reference

LOSSES = {"mse": 0, "huber": 1}


@dataclass(frozen=True, kw_only=True)
class RadianceSpec:
    """The field that the step trains, and its loss."""

    grid: HashGridSpec
    """The table."""
    density: MlpSpec
    """Density network: grid.features -> 1 raw density + F features; no biases, no output activation."""
    color: MlpSpec
    """Colour network: F + sh_bands^2 -> 3, sigmoid; no biases."""
    sh_bands: int = 4
    """Bands of spherical harmonics of the direction."""
    density_activation: str = "exp"
    """Key of `DENSITY_ACTIVATIONS`."""
    loss: Literal["mse", "huber"] = "mse"
    """Mean over rays and channels of the squared error, or of Huber's function."""
    huber: float = 0.1
    """Where Huber's function turns linear (instant-ngp)."""
    stop: float = 1e-4
    """Transmittance below which a ray's later samples do not count."""

    def __post_init__(self) -> None:
        if self.density.bias or self.color.bias:
            raise ConfigError("the fused step has no biases; set bias=False or use the composed operators")
        if self.grid.dimensions != 3:
            raise ConfigError(f"the fused step wants a grid of 3 dimensions; got {self.grid.dimensions}")
        if self.density.skip or self.color.skip:
            raise ConfigError("the fused step has no skip connections; set skip=None or use the composed operators")
        if self.density.hidden_activation != self.color.hidden_activation:
            raise ConfigError("both networks of the fused step must have the same hidden activation")
        if self.density.output_activation != "none" or self.color.output_activation != "sigmoid":
            raise ConfigError("the fused step wants output activations 'none' (density) and 'sigmoid' (colour)")
        expected = self.density.outputs - 1 + self.sh_bands**2
        if self.density.inputs != self.grid.features or self.color.inputs != expected or self.color.outputs != 3:
            raise ConfigError(
                f"networks must map {self.grid.features} -> 1 + F and {expected} -> 3; got {self.density.inputs} -> "
                f"{self.density.outputs} and {self.color.inputs} -> {self.color.outputs}"
            )
        if self.loss not in LOSSES:
            raise ConfigError(f"loss must be one of {', '.join(LOSSES)}; got {self.loss!r}")


class RadianceBatch(NamedTuple):
    """Packed samples and what their rays should see."""

    positions: Tensor
    """(M, 3) float32 in [0, 1]^3."""
    deltas: Tensor
    """(M,) interval lengths, scene units."""
    offsets: Tensor
    """(R+1,) int32: samples of ray r are offsets[r] .. offsets[r+1]-1."""
    directions: Tensor
    """(R, 3) unit."""
    targets: Tensor
    """(R, 3) colours, composited on `backgrounds`."""
    backgrounds: Tensor
    """(R, 3) what lies behind."""
    rows: Tensor | None = None
    """(N,) int32 row of each sample in positions, deltas and features; None where sample i is row i."""
    features: Tensor | None = None
    """(M, L*C) encoded positions, where they are known already; encoded here otherwise."""


class RadianceParameters(NamedTuple):
    """Parameters, or their gradients or moments."""

    table: Tensor
    """(entries, C)."""
    density: Tensor
    """Flat, see `MlpSpec`."""
    color: Tensor
    """Flat."""


class RadianceOutput(NamedTuple):
    """What a step saw."""

    loss: float
    """Mean over rays and channels."""
    finite: bool
    """False: loss or gradients were not finite; parameters and moments are unchanged."""
    rgb: Tensor
    """(R, 3) rendered colours."""
    alpha: Tensor
    """(R,) rendered opacities."""


class AdamRates(NamedTuple):
    """Settings of the update."""

    table_lr: float
    network_lr: float
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-15


def native_available(*tensors: Tensor) -> bool:
    """True where native kernels can run the step: all in float32, on the CPU or on one CUDA device."""
    return _native.usable(*tensors) and all(t.dtype == torch.float32 for t in tensors)


def radiance_step_(
    batch: RadianceBatch,
    parameters: RadianceParameters,
    first_moments: RadianceParameters,
    second_moments: RadianceParameters,
    spec: RadianceSpec,
    rates: AdamRates,
    *,
    step: int,
    precision: Literal["fp32", "bf16"] = "fp32",
    table_rounded: Tensor | None = None,
) -> RadianceOutput:
    """Forward, backward and lazy Adam in place.

    Table rows that no sample touched keep value and moments (the rule of `lazy_adam_`).

    Args:
        parameters, first_moments, second_moments: contiguous float32; changed in place.
        step: number of this update, from 1 (bias correction).
        precision: of the networks' multiplications.
        table_rounded: (entries, C) float16 copy of the table, which stays one: rounded as `Tensor.half` rounds.

    Raises:
        ShapeError: shapes, dtypes or layouts do not fit.
        NativeError: no native kernels serve the tensors (use the composed operators).
    """
    if step < 1:
        raise ConfigError(f"step counts from 1; got {step}")
    scratch = RadianceParameters(torch.empty(0), *(torch.empty_like(p) for p in parameters[1:]))
    update = _Update(first_moments, second_moments, rates, step, table_rounded)
    out = _run(batch, parameters, update, scratch, spec, precision)
    torch.autograd.graph.increment_version([*parameters, *first_moments, *second_moments])
    return out


def radiance_gradients(
    batch: RadianceBatch,
    parameters: RadianceParameters,
    spec: RadianceSpec,
    *,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> tuple[RadianceOutput, RadianceParameters]:
    """Loss and gradients of `radiance_step_` without the update. Raises as it does."""
    gradients = RadianceParameters(*(torch.empty_like(p) for p in parameters))
    return _run(batch, parameters, None, gradients, spec, precision), gradients


def radiance_reference(
    batch: RadianceBatch, parameters: RadianceParameters, spec: RadianceSpec
) -> tuple[RadianceOutput, RadianceParameters]:
    """Loss and gradients by plain torch under autograd, in the dtype of the parameters (float64 for a ground truth)."""
    leaves = RadianceParameters(*(p.detach().clone().requires_grad_() for p in parameters))
    dtype = leaves.table.dtype
    chosen = slice(None) if batch.rows is None else batch.rows.long()
    counts = (batch.offsets[1:] - batch.offsets[:-1]).long()
    directions = batch.directions.to(dtype).repeat_interleave(counts, 0)
    head = hash_encode_reference(batch.positions[chosen].to(dtype), leaves.table, spec.grid)
    head = fused_mlp_reference(head, leaves.density, spec.density)
    basis = spherical_harmonics_reference(directions, spec.sh_bands)
    rgb = fused_mlp_reference(torch.cat([head[:, 1:], basis], 1), leaves.color, spec.color)
    deltas = batch.deltas[chosen].to(dtype)
    out = composite(
        head[:, 0].contiguous(),
        rgb,
        torch.zeros_like(deltas),
        deltas,
        batch.offsets,
        batch.backgrounds.to(dtype),
        activation=spec.density_activation,
        threshold=spec.stop,
    )
    error = out.rgb - batch.targets.to(dtype)
    if spec.loss == "mse":
        loss = error.square().mean()
    else:
        size = error.abs()
        loss = torch.where(size < spec.huber, 0.5 * size * size / spec.huber, size - 0.5 * spec.huber).mean()
    loss.backward()
    gradients = RadianceParameters(*(p.grad if p.grad is not None else torch.zeros_like(p) for p in leaves))
    return RadianceOutput(loss.item(), bool(torch.isfinite(loss)), out.rgb.detach(), out.alpha.detach()), gradients


class _Update(NamedTuple):
    """What a step changes besides the parameters, and how."""

    first_moments: RadianceParameters
    second_moments: RadianceParameters
    rates: AdamRates
    step: int
    table_rounded: Tensor | None


def _run(
    batch: RadianceBatch,
    parameters: RadianceParameters,
    update: _Update | None,
    gradients: RadianceParameters,
    spec: RadianceSpec,
    precision: str,
) -> RadianceOutput:
    table_rounded = update.table_rounded if update else None
    samples, rays = _check(batch, parameters, spec, precision, table_rounded)
    if not _in_one_kernel(parameters):
        return _run_by_operators(batch, parameters, update, gradients, spec, precision)
    rates, step = (update.rates, update.step) if update else (AdamRates(0.0, 0.0), 1)
    sizes = torch.tensor(
        [
            samples,
            rays,
            spec.grid.levels,
            spec.grid.channels,
            spec.sh_bands,
            DENSITY_ACTIVATIONS[spec.density_activation],
            LOSSES[spec.loss],
            HIDDEN_ACTIVATIONS[spec.density.hidden_activation],
            spec.density.width,
            spec.density.hidden_layers,
            spec.density.outputs,
            spec.color.width,
            spec.color.hidden_layers,
            int(precision == "bf16"),
            step,
        ]
    )
    scalars = torch.tensor(
        [spec.huber, spec.stop, rates.table_lr, rates.network_lr, rates.beta1, rates.beta2, rates.epsilon],
        dtype=torch.float64,
    )
    loss = torch.zeros(1, dtype=torch.float64)
    rgb, alpha = torch.empty(rays, 3), torch.empty(rays)
    state = [
        tensor
        for k in range(3)
        for tensor in (
            parameters[k].detach(),
            *((update.first_moments[k], update.second_moments[k]) if update else (None, None)),
        )
    ]
    state.insert(3, table_rounded)
    failed = _cpu.call(
        "pf_radiance_step_f32",
        batch.positions,
        batch.deltas,
        batch.features,
        batch.rows,
        batch.offsets,
        batch.directions,
        batch.targets,
        batch.backgrounds,
        sizes,
        scalars,
        spec.grid.level_tensor(),
        *state,
        None if update else gradients.table,
        gradients.density,
        gradients.color,
        loss,
        rgb,
        alpha,
    )
    return RadianceOutput(float(loss), not failed, rgb, alpha)


def _in_one_kernel(parameters: RadianceParameters) -> bool:
    return parameters.table.device.type == "cpu"


def _run_by_operators(
    batch: RadianceBatch,
    parameters: RadianceParameters,
    update: _Update | None,
    gradients: RadianceParameters,
    spec: RadianceSpec,
    precision: str,
) -> RadianceOutput:
    """`_run` on any device."""
    loss, found, rgb, alpha = _gradients_by_operators(batch, parameters, spec, precision)
    finite = bool(torch.stack([loss.isfinite(), *(gradient.isfinite().all() for gradient in found)]).all())
    if update is None:
        for kept, gradient in zip(gradients, found, strict=True):
            kept.copy_(gradient)
    elif finite:
        _apply(update, parameters, found)
    return RadianceOutput(float(loss), finite, rgb, alpha)


def _gradients_by_operators(
    batch: RadianceBatch, parameters: RadianceParameters, spec: RadianceSpec, precision: str
) -> tuple[Tensor, RadianceParameters, Tensor, Tensor]:
    """Loss (), gradients, and what the rays see, (R, 3) and (R,)."""
    ops, bf16 = torch.ops.polyfield, precision == "bf16"
    table, density, color = (p.detach() for p in parameters)
    grid = spec.grid.numbers
    density_shape, color_shape = shape_numbers(spec.density), shape_numbers(spec.color)
    rows = slice(None) if batch.rows is None else batch.rows.long()
    positions, deltas = batch.positions[rows], batch.deltas[rows]
    features = ops.hash_encode(positions, table, *grid) if batch.features is None else batch.features[rows]
    head = ops.fused_mlp(features, density, density_shape, bf16)
    counts = (batch.offsets[1:] - batch.offsets[:-1]).long()
    basis = spherical_harmonics(batch.directions, spec.sh_bands)
    basis = basis.repeat_interleave(counts, 0, output_size=positions.shape[0])
    seen = torch.cat([head[:, 1:], basis], 1)
    rgb = ops.fused_mlp(seen, color, color_shape, bf16)
    rays = (head[:, 0].contiguous(), rgb, torch.zeros_like(deltas), deltas, batch.offsets, batch.backgrounds)
    rule = (DENSITY_ACTIVATIONS[spec.density_activation], optical_limit(spec.stop))
    pixels, alpha, *_ = ops.composite(*rays, *rule)
    error = pixels - batch.targets
    if spec.loss == "mse":
        loss, slope = error.square().mean(), 2 * error
    else:
        size = error.abs()
        loss = torch.where(size < spec.huber, 0.5 * size * size / spec.huber, size - 0.5 * spec.huber).mean()
        slope = (error / spec.huber).clamp(-1, 1)
    d_raw, d_rgb, _ = ops.composite_backward(*rays, slope / max(error.numel(), 1), None, None, None, *rule)
    d_seen, d_color = ops.fused_mlp_backward(d_rgb, seen, color, color_shape, bf16, True, True)
    d_head = torch.cat([d_raw[:, None], d_seen[:, : head.shape[1] - 1]], 1)
    d_features, d_density = ops.fused_mlp_backward(d_head, features, density, density_shape, bf16, True, True)
    _, d_table = ops.hash_encode_backward(d_features, positions, table, *grid, False, True)
    return loss, RadianceParameters(d_table, d_density, d_color), pixels, alpha


def _apply(update: _Update, parameters: RadianceParameters, gradients: RadianceParameters) -> None:
    rates = update.rates
    for k, gradient in enumerate(gradients):
        lazy_adam_(
            parameters[k].detach(),
            gradient,
            update.first_moments[k],
            update.second_moments[k],
            step=update.step,
            lr=rates.network_lr if k else rates.table_lr,
            betas=(rates.beta1, rates.beta2),
            eps=rates.epsilon,
            skip_untouched=k == 0,
        )
    if update.table_rounded is not None:
        update.table_rounded.copy_(parameters.table.detach())


def _check(
    batch: RadianceBatch, parameters: RadianceParameters, spec: RadianceSpec, precision: str, rounded: Tensor | None
) -> tuple[int, int]:
    rays = batch.directions.shape[0]
    stored = batch.positions.shape[0]
    samples = stored if batch.rows is None else batch.rows.shape[0]
    wanted: dict[str, tuple[Tensor, tuple[int, ...], torch.dtype]] = {
        "positions": (batch.positions, (stored, 3), torch.float32),
        "deltas": (batch.deltas, (stored,), torch.float32),
        "offsets": (batch.offsets, (rays + 1,), torch.int32),
        "directions": (batch.directions, (rays, 3), torch.float32),
        "targets": (batch.targets, (rays, 3), torch.float32),
        "backgrounds": (batch.backgrounds, (rays, 3), torch.float32),
        "table": (parameters.table, (spec.grid.entries, spec.grid.channels), torch.float32),
        "density": (parameters.density, (spec.density.parameter_count,), torch.float32),
        "color": (parameters.color, (spec.color.parameter_count,), torch.float32),
    }
    if batch.rows is not None:
        wanted["rows"] = (batch.rows, (samples,), torch.int32)
    if batch.features is not None:
        wanted["features"] = (batch.features, (stored, spec.grid.features), torch.float32)
    if rounded is not None:
        wanted["table_rounded"] = (rounded, (spec.grid.entries, spec.grid.channels), torch.float16)
    for name, (tensor, shape, dtype) in wanted.items():
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or not tensor.is_contiguous():
            raise ShapeError(f"{name} must be contiguous {shape} {dtype}; got {tuple(tensor.shape)} {tensor.dtype}")
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision must be 'fp32' or 'bf16'; got {precision!r}")
    if not native_available(*(tensor for tensor, _, dtype in wanted.values() if dtype == torch.float32)):
        raise NativeError("no native kernels serve these tensors; use the composed operators instead")
    on_cpu = parameters.table.device.type == "cpu"
    if on_cpu and rays and int(batch.offsets[-1]) != samples:
        raise ShapeError(f"offsets end at {int(batch.offsets[-1])} but there are {samples} samples")
    return samples, rays
