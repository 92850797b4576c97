"""Which spherical harmonics does a viewing direction have?

Real spherical harmonics in the order and with the signs of 3D Gaussian splatting (Kerbl et al. 2023): bands 0 to 3,
within band l the orders m = -l to l, each with the Condon-Shortley phase (-1)^m, so that band 1 is
0.4886 * (-y, z, -x). On the unit sphere they are orthonormal: the integral of Y_i Y_j is 1 where i = j and else 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from . import _cpu, _library, _native


def spherical_harmonics(directions: Tensor, degree: int = 4) -> Tensor:
    """Evaluate the basis.

    Args:
        directions: (N, 3) unit vectors, float32 or float64. They are not normalised here: off the sphere the values are
            those of the polynomials as written (`spherical_harmonics_reference`), and NaN gives NaN.
        degree: number of bands, 1 to 4 (what 3DGS calls its degree, plus one).

    Returns:
        (N, degree * degree).

    Gradients reach `directions`: those of the polynomials, not projected onto the sphere.

    Raises:
        ShapeError: `directions` is not (N, 3) floating point.
        ConfigError: `degree` is not 1 to 4.
    """
    if directions.dim() != 2 or directions.shape[1] != 3:
        raise ShapeError(f"directions must be (N, 3) unit vectors; got {tuple(directions.shape)}")
    if directions.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"directions must be float32 or float64; got {directions.dtype}")
    if degree not in (1, 2, 3, 4):
        raise ConfigError(f"degree (number of bands) must be 1, 2, 3 or 4; got {degree}")
    return _spherical_harmonics(directions, degree)


def spherical_harmonics_reference(directions: Tensor, degree: int = 4) -> Tensor:
    """`spherical_harmonics` in plain torch, differentiable, any device."""
    x, y, z = directions.unbind(1)
    xx, yy, zz = x * x, y * y, z * z
    basis = [
        0.28209479177387814 + 0 * x,
        -0.4886025119029199 * y,
        0.4886025119029199 * z,
        -0.4886025119029199 * x,
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.31539156525252005 * (3 * zz - 1),
        -1.0925484305920792 * x * z,
        0.5462742152960396 * (xx - yy),
        -0.5900435899266435 * y * (3 * xx - yy),
        2.890611442640554 * x * y * z,
        -0.4570457994644658 * y * (5 * zz - 1),
        0.3731763325901154 * z * (5 * zz - 3),
        -0.4570457994644658 * x * (5 * zz - 1),
        1.445305721320277 * z * (xx - yy),
        -0.5900435899266435 * x * (xx - 3 * yy),
    ]
    return torch.stack(basis[: degree * degree], 1)


def _backward_reference(grad: Tensor, directions: Tensor, degree: int) -> Tensor:
    x, y, z = directions.unbind(1)
    g = torch.nn.functional.pad(grad, (0, 16 - degree * degree)).unbind(1)
    xx, yy, five = x * x, y * y, 5 * z * z - 1
    a, b, c, d, e = 0.4886025119029199, 1.0925484305920792, 0.5900435899266435, 2.890611442640554, 0.4570457994644658
    gx = -a * g[3] + b * (y * g[4] - z * g[7] + x * g[8]) - 6 * c * x * y * g[9] + d * y * z * g[10]
    gx = gx - e * five * g[13] + d * z * x * g[14] - 3 * c * (xx - yy) * g[15]
    gy = -a * g[1] + b * (x * g[4] - z * g[5] - y * g[8]) - 3 * c * (xx - yy) * g[9] + d * x * z * g[10]
    gy = gy - e * five * g[11] - d * z * y * g[14] + 6 * c * x * y * g[15]
    gz = a * g[2] - b * (y * g[5] + x * g[7]) + 6 * 0.31539156525252005 * z * g[6] + d * x * y * g[10]
    gz = gz + 0.3731763325901154 * (15 * z * z - 3) * g[12] - 10 * e * z * (y * g[11] + x * g[13])
    return torch.stack([gx, gy, gz + 0.5 * d * (xx - yy) * g[14]], 1)


def _forward(directions: Tensor, degree: int) -> Tensor:
    if not _native.usable(directions):
        return spherical_harmonics_reference(directions, degree)
    directions = directions.contiguous()
    out = directions.new_empty(directions.shape[0], degree * degree)
    name = f"pf_spherical_harmonics_forward_{_cpu.suffix_of(directions)}"
    _native.call(name, directions, directions.shape[0], degree, out, over=directions.shape[0])
    return out


def _backward(grad: Tensor, directions: Tensor, degree: int) -> Tensor:
    if not _native.usable(directions, grad):
        return _backward_reference(grad, directions, degree)
    directions, grad = directions.contiguous(), grad.contiguous()
    out = torch.empty_like(directions)
    name = f"pf_spherical_harmonics_backward_{_cpu.suffix_of(directions)}"
    _native.call(name, directions, directions.shape[0], degree, grad, out, over=directions.shape[0])
    return out


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    directions, ctx.degree = inputs
    ctx.save_for_backward(directions)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _spherical_harmonics_backward(grad, *ctx.saved_tensors, ctx.degree), None


_spherical_harmonics_backward = _library.define(
    "spherical_harmonics_backward(Tensor grad, Tensor directions, int degree) -> Tensor",
    _backward,
    lambda grad, directions, degree: directions.new_empty(directions.shape),
)
_spherical_harmonics = _library.define(
    "spherical_harmonics(Tensor directions, int degree) -> Tensor",
    _forward,
    lambda directions, degree: directions.new_empty(directions.shape[0], degree * degree),
    setup_context=_setup,
    backward=_autograd,
)
