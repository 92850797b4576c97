"""How does Muon move the matrices of a network? Along the orthogonal factor of their momentum.

Source: Jordan et al. 2024 ("Muon: an optimizer for hidden layers in neural networks"): momentum of Nesterov's form,
then five steps of a quintic Newton-Schulz iteration, which bring all singular values of the momentum near 1 (to between
.7 and 1.2). So directions in which gradients are small are learned as fast as the others. Steps are .2 sqrt(the larger
side) long, as long in root mean square as Adam's (Liu et al. 2025, arXiv 2502.16982), so that rates mean alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError

ITERATIONS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)
_SIZE = 0.2


class Matrix(NamedTuple):
    """Where a weight matrix lies in a parameter."""

    parameter: nn.Parameter
    first: int
    """Of its values in the flattened parameter."""
    shape: tuple[int, int]
    """(rows, columns), row-major."""

    def of(self, values: Tensor) -> Tensor:
        """The matrix as a view of `values`, contiguous and shaped as the parameter."""
        return values.view(-1)[self.first : self.first + math.prod(self.shape)].view(self.shape)


def orthogonalised(x: Tensor, *, precision: Literal["fp32", "bf16"] = "fp32") -> Tensor:
    """Matrices with the singular vectors of `x` (..., R, C) and singular values near 1; float32. Zero stays zero. No
    gradients. `precision` is that of the products."""
    wide = x.shape[-2] <= x.shape[-1]
    y = x if wide else x.mT
    y = y.reshape(-1, *y.shape[-2:]).to(torch.bfloat16 if precision == "bf16" else x.dtype)
    y = y / y.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-30)
    a, b, c = _QUINTIC
    for _ in range(ITERATIONS):
        square = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(square, square, square, beta=b, alpha=c), y, beta=a)
    return (y if wide else y.mT).reshape(x.shape).to(x.dtype)


@torch.no_grad()
def muon_(
    matrices: Iterable[Tensor],
    gradients: Tensor,
    momentum: Tensor,
    *,
    lr: float,
    decay: float = 0.95,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> None:
    """One step, in place on `matrices` and `momentum`.

    Args:
        matrices: B of shape (R, C), float32 or float64.
        gradients: (B, R, C); read only.
        momentum: (B, R, C), zeros before the first step.
        lr: learning rate, comparable to Adam's.
        decay: of the momentum, in [0, 1).
        precision: of the products of the iteration.

    Raises:
        ShapeError: gradients and momentum differ in shape.
        ConfigError: a number is out of range.

    No gradients.
    """
    if gradients.shape != momentum.shape:
        raise ShapeError(f"momentum must be like gradients, {tuple(gradients.shape)}; got {tuple(momentum.shape)}")
    if not (math.isfinite(lr) and lr >= 0 and 0 <= decay < 1):
        raise ConfigError(f"lr must be finite and at least 0, decay in [0, 1); got {lr} and {decay}")
    momentum.lerp_(gradients, 1 - decay)
    steps = orthogonalised(torch.lerp(momentum, gradients, 1 - decay), precision=precision)
    size = _SIZE * math.sqrt(max(gradients.shape[-2:]))
    for matrix, step in zip(matrices, steps, strict=True):
        matrix.sub_(step, alpha=lr * size)
