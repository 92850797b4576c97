"""How far is a student from its teacher at points? Means with stated weights, where PVD has norms of whole batches.

Densities are compared as logarithms of the optical thickness of a sample, log(density delta), by what can be seen of
them. Below `EMPTY` there is nothing and above `OPAQUE` nothing comes through: where the teacher is empty the student
need only be empty too, and where it is opaque, opaque. So there is no clamp in the forward pass (PVD's own, at a
density of exp(-2), leaves fog in empty space) and no pull between values that look alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EMPTY = 1e-3
"""Optical thickness of a sample that counts as nothing: a tenth of what `OccupancyGrid` calls empty."""
OPAQUE = 8.0
"""And as solid: exp(-8) of the light comes through, a tenth of what can change an 8-bit channel."""

SPREAD = 2.0
"""Standard deviation above which features count in its units. Those of a `hash` field of lego have 1.8, of an `mlp`
4.9: beside these a student learned no density (mlp to cam, 400 steps, likeness 22.6 dB; so 26.1, and 27.8 with half the
weight, as costly students have it; mlp to hash, 500 steps, 36.1 and 37.2 dB)."""


def density_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Difference of log thicknesses (N,), 0 where both are empty or both opaque. Gradients reach `student`."""
    low, high = math.log(EMPTY), math.log(OPAQUE)
    error = student - teacher.clamp(low, high)
    error = torch.where(teacher <= low, error.clamp(min=0), error)
    return torch.where(teacher >= high, error.clamp(max=0), error)


def weighted_huber(error: Tensor, weights: Tensor, delta: float) -> Tensor:
    """Mean of Huber's function of `error`, (N,) or (N, C), weighted by `weights` (N,); slope 1 beyond `delta`. 0 where
    all weights are."""
    size = error.abs()
    value = torch.where(size < delta, 0.5 * size * size / delta, size - 0.5 * delta)
    value = value if value.dim() == 1 else value.mean(1)
    return (weights * value).sum() / weights.sum().clamp(min=1e-6)


def feature_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Difference of features (N, F), no larger than of a teacher whose features spread by `SPREAD`. Gradients reach
    `student`."""
    spread = teacher.var(0, correction=0).mean().sqrt()
    return (student - teacher) * (SPREAD / spread.clamp(min=SPREAD))
