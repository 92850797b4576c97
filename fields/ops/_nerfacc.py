"""Compositing by nerfacc (Li et al. 2023, arXiv 2305.04966), where it is installed: a second opinion in tests and an
opponent in benchmarks, not a dependency. Experimental until it has run on a GPU.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .activations import density_from_raw


def _module() -> Any:
    try:
        return importlib.import_module("nerfacc")
    except ImportError as error:
        raise ConfigError(f"backend 'nerfacc' is not installed ({error}); run 'pip install nerfacc'") from None


def composite(
    density_raw: Tensor,
    rgb: Tensor,
    distances: Tensor,
    deltas: Tensor,
    offsets: Tensor,
    background: Tensor | None,
    activation: str,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `composite.composite` returns, by nerfacc's functions; samples of no ray must not be there."""
    nerfacc, rays = _module(), offsets.shape[0] - 1
    ids = torch.repeat_interleave((offsets[1:] - offsets[:-1]).long(), output_size=density_raw.shape[0])
    density = density_from_raw(density_raw, activation)
    starts, ends = distances - 0.5 * deltas, distances + 0.5 * deltas
    weights, before, alphas = nerfacc.render_weight_from_density(starts, ends, density, ray_indices=ids, n_rays=rays)
    weights = torch.where(before > threshold, weights, 0.0)  # nerfacc itself does not stop
    color = nerfacc.accumulate_along_rays(weights, rgb, ray_indices=ids, n_rays=rays)
    alpha = nerfacc.accumulate_along_rays(weights, None, ray_indices=ids, n_rays=rays)[:, 0]
    depth = nerfacc.accumulate_along_rays(weights, distances[:, None], ray_indices=ids, n_rays=rays)[:, 0]
    if background is not None:
        color = color + (1 - alpha)[:, None] * background
    with torch.no_grad():
        half = (before > 0.5) & (before * (1 - alphas) <= 0.5)  # constant density inside the interval
        inside = distances + deltas * (torch.log(2 * before) / (density * deltas) - 0.5)
        median = torch.full_like(alpha, torch.inf).scatter_reduce(0, ids[half], inside[half], "amin")
    return color, alpha, depth, median, weights
