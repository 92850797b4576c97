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
