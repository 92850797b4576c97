"""Which density activations are there? Their names, their codes in the native kernels, and their values in torch.

- "exp": exp(x). Its derivative is taken as exp(clamp(x, -15, 15)), as instant-ngp's (Mueller et al. 2022); the value is
  not clamped.
- "softplus": log(1 + exp(x - 1)), the shifted softplus of mip-NeRF (Barron et al. 2021).
- "relu": max(x, 0).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError

DENSITY_ACTIVATIONS: dict[str, int] = {"exp": 0, "softplus": 1, "relu": 2}
"""Name -> code, as `enum DensityActivation` of polyfield/density.h."""

EXP_GRADIENT_CLAMP = 15.0
_RELU_FLOOR = 0.1


def density_code(activation: str) -> int:
    """Code of a density activation.

    Raises:
        ConfigError: no activation has this name.
    """
    if activation not in DENSITY_ACTIVATIONS:
        names = ", ".join(DENSITY_ACTIVATIONS)
        raise ConfigError(f"density activation must be one of {names}; got {activation!r}")
    return DENSITY_ACTIVATIONS[activation]


class _Exp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, raw: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(raw)
        return raw.exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (raw,) = ctx.saved_tensors
        return grad * raw.clamp(-EXP_GRADIENT_CLAMP, EXP_GRADIENT_CLAMP).exp()


def density_from_raw(raw: Tensor, activation: str) -> Tensor:
    """Density per scene unit.

    Args:
        raw: any shape, floating point: what a field's density head gives.
        activation: a key of `DENSITY_ACTIVATIONS`.

    Returns:
        Shape and dtype of `raw`, at least 0; infinity where exp overflows, NaN where `raw` is NaN.

    Gradients reach `raw`; that of "exp" is clamped (see the module).

    Raises:
        ConfigError: no activation has this name.
    """
    code = density_code(activation)
    if code == 0:
        return _Exp.apply(raw)  # pyright: ignore[reportReturnType]
    return torch.nn.functional.softplus(raw - 1) if code == 1 else torch.relu(raw)


def log_density(raw: Tensor, activation: str) -> Tensor:
    """Natural logarithm of `density_from_raw`, finite for every finite `raw`, with gradients that do not vanish: fields
    of different activations are compared by it.

    Args:
        raw: any shape, floating point.
        activation: a key of `DENSITY_ACTIVATIONS`. Of "relu" the logarithm ends at 0.1 per scene unit and goes on as
            its tangent there, so that a density of 0 can rise again.

    Raises:
        ConfigError: no activation has this name.
    """
    code = density_code(activation)
    if code == 0:
        return raw
    if code == 1:  # log(1 + e^x) is e^x to seven digits below -15
        x = raw - 1
        return torch.where(x < -15, x, torch.nn.functional.softplus(x.clamp(min=-15)).log())
    return torch.where(
        raw > _RELU_FLOOR, raw.clamp(min=_RELU_FLOOR).log(), math.log(_RELU_FLOOR) - 1 + raw / _RELU_FLOOR
    )


def raw_of_log_density(values: Tensor, activation: str) -> Tensor:
    """Raw values whose densities have these natural logarithms: where these are above the tangent of "relu", the
    inverse of `log_density`. -infinity for a density of 0, and 0 for "relu".

    Raises:
        ConfigError: no activation has this name.
    """
    code = density_code(activation)
    if code == 0:
        return values
    if code == 1:  # the inverse of log(1 + e^x) is x + log(1 - e^-x)
        density = values.exp()
        return torch.where(density < 1e-6, values, density + torch.log(-torch.expm1(-density))) + 1
    return values.exp()


def density_derivative(raw: Tensor, activation: str) -> Tensor:
    """d density / d raw as `density_from_raw` defines it, for backward passes written by hand."""
    code = density_code(activation)
    if code == 0:
        return raw.clamp(-EXP_GRADIENT_CLAMP, EXP_GRADIENT_CLAMP).exp()
    return torch.sigmoid(raw - 1) if code == 1 else (raw > 0).to(raw.dtype)
