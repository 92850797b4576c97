"""How much of space does a sample of a pixel see? Gaussians in place of pieces of its cone.

After mip-NeRF (Barron et al. 2021, arXiv 2103.13415, section 3.1 and equations 7 and 8): the piece of a cone between
two distances has a mean on the axis and one variance along the axis and one across it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from .cameras import Rays


class Gaussians(NamedTuple):
    """Where N samples are and how far they reach."""

    means: Tensor
    """(N, 3) scene frame."""
    covariances: Tensor
    """(N, 3, 3) scene units squared, what fields take as footprint."""


def cone_gaussians(rays: Rays, ids: Tensor, distances: Tensor, deltas: Tensor) -> Gaussians:
    """Mean and covariance of pieces of the rays' cones, points of which count by volume.

    Args:
        rays: R rays with radii.
        ids: (N,) int64 ray of each piece.
        distances: (N,) positive, middle of the piece along the ray.
        deltas: (N,) its length, at most twice the distance.

    Gradients reach origins, directions, distances and deltas.

    Raises:
        ConfigError: the rays have no radii.
    """
    if rays.radii is None:
        raise ConfigError("these rays have no radii, without which a sample has no size; ask for rays with radii=True")
    middle, half = distances.square(), (deltas / 2).square()  # t_mu^2 and t_delta^2 of the paper
    total = 3 * middle + half
    mean = distances + 2 * distances * half / total
    along = half / 3 - (4 / 15) * half.square() * (12 * middle - half) / total.square()
    across = rays.radii[ids].square() * (middle / 4 + (5 / 12) * half - (4 / 15) * half.square() / total)
    directions = rays.directions[ids]
    outer = directions[:, :, None] * directions[:, None]
    eye = torch.eye(3, dtype=outer.dtype, device=outer.device)
    covariances = (along - across)[:, None, None] * outer + across[:, None, None] * eye
    return Gaussians(rays.origins[ids] + mean[:, None] * directions, covariances)
