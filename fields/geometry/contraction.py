"""How does unbounded space fit into a bounded domain?

"sphere" is the contraction of mip-NeRF 360 (Barron et al. 2022, arXiv 2111.12077, eq. 10): the unit ball stays, the
rest of space goes into the shell up to radius 2. "cube" is the same with the largest coordinate for the norm: [-1,
1]^3 stays, space fills [-2, 2]^3, so that no corner of a grid is wasted. "none" is the identity. Both are continuous
with continuous first derivatives across the seam along rays from the centre. Coordinates are clamped to +-1e18, where
squares still fit in float32, so that infinite samples have a place; NaN stays NaN. Gradients are finite everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_FAR = 1e18


def contract_sphere(x: Tensor) -> Tensor:
    """Points (..., 3) in scene units to the ball of radius 2: x within the unit ball, else (2 - 1/|x|) x/|x|."""
    x = x.clamp(-_FAR, _FAR)
    norm = x.square().sum(-1, keepdim=True).clamp_min(1).sqrt()
    return x * ((2 - 1 / norm) / norm)


def uncontract_sphere(y: Tensor) -> Tensor:
    """The inverse of `contract_sphere`; what lies at radius 2 or beyond goes to the largest distance that the dtype
    tells apart.
    """
    norm = y.square().sum(-1, keepdim=True).clamp_min(1).sqrt()
    return _expand(y, norm)


def contract_cube(x: Tensor) -> Tensor:
    """Points (..., 3) in scene units to [-2, 2]^3: x within [-1, 1]^3, else (2 - 1/n) x/n with n the largest
    |coordinate|.
    """
    x = x.clamp(-_FAR, _FAR)
    norm = x.abs().amax(-1, keepdim=True).clamp_min(1)
    return x * ((2 - 1 / norm) / norm)


def uncontract_cube(y: Tensor) -> Tensor:
    """The inverse of `contract_cube`; coordinates at 2 or beyond go to the largest distance that the dtype tells
    apart.
    """
    norm = y.abs().amax(-1, keepdim=True).clamp_min(1)
    return _expand(y, norm)


def _identity(x: Tensor) -> Tensor:
    return x


def _expand(y: Tensor, norm: Tensor) -> Tensor:
    # |y| = 2 - 1/|x|, so |x| = 1/(2 - |y|); below 2 the spacing of floats is eps, which bounds |x| by 1/eps.
    gap = (2 - norm).clamp_min(torch.finfo(y.dtype).eps)
    return y / (norm * gap)


CONTRACTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": _identity,
    "sphere": contract_sphere,
    "cube": contract_cube,
}
"""Scene positions to the bounded domain, by name; the domain of "sphere" and "cube" fits in [-2, 2]^3."""


def _slope_sphere(x: Tensor) -> tuple[Tensor, Tensor]:
    norm = x.square().sum(-1, keepdim=True).clamp_min(1).sqrt()
    return norm, x / norm


def _slope_cube(x: Tensor) -> tuple[Tensor, Tensor]:
    norm, axis = x.abs().max(-1, keepdim=True)
    return norm.clamp_min(1), torch.zeros_like(x).scatter(-1, axis, x.sign().gather(-1, axis))


_SLOPES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"sphere": _slope_sphere, "cube": _slope_cube}
"""Points (..., 3) to their norm (..., 1), at least 1, and its gradient (..., 3), which means nothing below 1."""

UNCONTRACTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": _identity,
    "sphere": uncontract_sphere,
    "cube": uncontract_cube,
}
"""The inverses, by the same names."""


def to_unit_cube(x: Tensor, contraction: str, extent: float) -> Tensor:
    """Scene positions (N, 3) to the [0, 1]^3 that a field covers: the cube of half side `extent` round the origin with
    contraction "none" (`extent` counts nothing else), or all of space."""
    if contraction == "none":
        return x * (0.5 / extent) + 0.5
    return CONTRACTIONS[contraction](x) * 0.25 + 0.5


def to_unit_cube_variance(x: Tensor, covariance: Tensor, contraction: str, extent: float) -> Tensor:
    """How far spread points reach along the axes of [0, 1]^3, after `to_unit_cube` of the same settings.

    The map is taken as linear around `x`: the result is the diagonal of J C J^T, J its Jacobian (as in mip-NeRF 360,
    eq. 9). A diagonal alone would not do for C: far out, where depth shrinks much more than width, it would mistake a
    slanting ray's depth for width.

    Args:
        x: (N, 3) means, scene units.
        covariance: (N, 3, 3) symmetric, scene units squared.

    Returns:
        (N, 3) variances, at least 0.
    """
    variance = covariance.diagonal(dim1=1, dim2=2)
    if contraction == "none":
        return variance * (0.5 / extent) ** 2
    x = x.clamp(-_FAR, _FAR)
    norm, slope = _SLOPES[contraction](x)
    # the map is g(n) x, g = (2 - 1/n) / n: J = g + x (g' slope)^T
    factor, turn = (2 - 1 / norm) / norm, slope * ((2 / norm - 2) / norm.square())
    shear = (covariance * turn[:, None]).sum(-1)
    folded = factor.square() * variance + 2 * factor * x * shear + x.square() * (shear * turn).sum(-1, keepdim=True)
    return folded.clamp_min(0) * 0.25**2
