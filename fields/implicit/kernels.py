"""Where do kernels go, so that they are many and thin where a signal changes? By weighted k-means (NeuRBF, 2023).

Cells of a signal count by the square of its gradient there (Sobel's), points near a surface by the inverse of their
distance. Kernels start at cells drawn by these weights, move to the weighted mean of the points nearest to them, ten
times, and take the weighted second moments of these points for their shape, so that they lie along edges.

The paper weighs by the gradient itself. With its square what k-means makes small, the sum of weights times squared
distances, is to first order the error of a signal that is constant round every kernel. And flat cells count a little
here: a kernel says the same on both sides of its centre, so that where all lie on an edge its two sides look alike.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from .signal import GridSignal, cell_centres
from .surface import OFFSETS, MeshSignal

ROUNDS = 10
"""Of k-means; the paper's number."""
SPREAD = 2.0
"""A kernel's matrix over the second moments of its points: 1 / alpha of the paper's images and surfaces."""
MOST_POINTS = 1 << 20
"""A signal with more points is represented by so many, drawn at random: half a second of k-means a round."""
FLAT = 0.1
"""Weight of a flat cell, over the mean of the weights. A disk of 64x64 pixels is learned 3 to 5 dB better with it."""
SURFACE_FLOOR = 1e-9
"""Added to a distance before it is inverted (the released value); distances are in sides of the cube."""


class Kernels(NamedTuple):
    """Where and of what shape N kernels are."""

    centres: Tensor
    """(N, D)."""
    factors: Tensor
    """(N, D (D + 1) / 2): rows of the lower triangle of the L for which L^T L is the inverse of the kernel's matrix."""


def place_kernels(signal: GridSignal | MeshSignal, count: int, *, seed: int = 0) -> Kernels:
    """Kernels for a signal, float32 on the CPU, the longest axis of the signal being [0, 1]; one seed, one result."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(signal.cells, device=signal.device)
    if signal.cells > MOST_POINTS:
        index = torch.randint(signal.cells, (MOST_POINTS,), generator=generator).to(signal.device)
    if isinstance(signal, MeshSignal):
        points, distances = signal.take(index)
        weights = 1 / (distances[:, 0].abs() + SURFACE_FLOOR)
        extents = torch.full((3,), OFFSETS[-1][1])
    else:
        aspect = torch.tensor(signal.aspect)
        points = cell_centres(index, signal.size) * aspect.to(signal.device)
        weights = squared_gradients(signal, index)
        weights = weights + FLAT * weights.nanmean()
        extents = aspect / torch.tensor(signal.size)
    return weighted_kernels(points.cpu(), weights.cpu(), count, extents=extents, generator=generator)


def squared_gradients(signal: GridSignal, index: Tensor) -> Tensor:
    """(N,) squares of Sobel's gradient, summed over axes and channels, at cells (N,); borders are repeated outwards."""
    size = signal.size
    strides = [math.prod(size[:axis]) for axis in range(len(size))]
    places = [index // stride % cells for stride, cells in zip(strides, size, strict=True)]
    slopes = torch.zeros(len(size), len(index), signal.channels, device=signal.device)
    middle = signal.at(index)  # less which a constant signal has slopes of exactly 0
    for offset in itertools.product((-1, 0, 1), repeat=len(size)):
        there = torch.zeros_like(index)
        for place, step, cells, stride in zip(places, offset, size, strides, strict=True):
            there += (place + step).clamp(0, cells - 1) * stride
        value = signal.at(there) - middle
        for axis, sign in enumerate(offset):
            smooth = math.prod(2 - abs(o) for other, o in enumerate(offset) if other != axis)
            slopes[axis] += sign * smooth * value
    return slopes.square().sum((0, 2))


def weighted_kernels(
    points: Tensor, weights: Tensor, count: int, *, extents: Tensor, generator: torch.Generator
) -> Kernels:
    """Weighted k-means.

    Args:
        points: (P, D) float32.
        weights: (P,), not negative; what is not finite counts as 0, and if all are 0 all count alike. Kernels start at
            points of weight 0 only when there are more kernels than others.
        count: N; where it exceeds P, kernels coincide.
        extents: (D,) lengths of the boxes that points stand for; a kernel of a single point has their shape.
    """
    weights = weights.double().nan_to_num(0, 0, 0)
    weights = weights if bool(weights.any()) else torch.ones_like(weights)
    points = points.double()
    # A race of exponential variables draws without repetition, each by its weight among those left; zeros come last.
    times = torch.empty_like(weights).exponential_(generator=generator).log()
    order = (times - weights.clamp(min=1e-300).log()).argsort(stable=True)
    centres = points[order[torch.arange(count) % len(points)]]
    for _ in range(ROUNDS):
        nearest = nearest_kernels(centres, points, 1)[:, 0]
        mass = torch.zeros(count, dtype=torch.float64).index_add_(0, nearest, weights)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, nearest, weights[:, None] * points)
        centres = torch.where(mass > 0, sums / mass, centres)
    nearest = nearest_kernels(centres, points, 1)[:, 0]
    offsets = points - centres[nearest]
    squares = weights[:, None, None] * offsets[:, :, None] * offsets[:, None]
    mass = torch.zeros(count, dtype=torch.float64).index_add_(0, nearest, weights)[:, None, None]
    moments = torch.zeros(count, *squares.shape[1:], dtype=torch.float64).index_add_(0, nearest, squares)
    moments = torch.where(mass > 0, moments / mass, 0) + torch.diag(extents.double().square() / 12)
    return Kernels(centres.float(), inverse_factors(SPREAD * moments).float())


def inverse_factors(matrices: Tensor) -> Tensor:
    """(N, D, D) symmetric, positive -> (N, D (D + 1) / 2): rows of the inverse of the lower Cholesky factor."""
    dimensions = matrices.shape[-1]
    identity = torch.eye(dimensions, dtype=matrices.dtype).expand_as(matrices)
    inverse = torch.linalg.solve_triangular(torch.linalg.cholesky(matrices), identity, upper=False)
    row, column = torch.tril_indices(dimensions, dimensions)
    return inverse[:, row, column]


def nearest_kernels(centres: Tensor, points: Tensor, k: int) -> Tensor:
    """(P, k) int64 numbers of the kernels (N, D) nearest to points (P, D), k at most N; of two as near, either."""
    return KernelTree(centres).nearest(points, k)


class KernelTree:
    """Finds the kernels near points: by a k-d tree on a CPU, by all distances elsewhere."""

    def __init__(self, centres: Tensor) -> None:
        self.centres = centres.detach()
        self.version = centres._version
        self.tree = None
        if centres.device.type == "cpu":
            from scipy.spatial import KDTree

            self.tree = KDTree(self.centres.numpy())

    def nearest(self, points: Tensor, k: int) -> Tensor:
        """As `nearest_kernels`."""
        points = points.detach()
        if self.tree is None:
            block = max(1, (1 << 26) // len(self.centres))  # distances at a time: 256 MB
            rows = [torch.cdist(part, self.centres).topk(k, largest=False).indices for part in points.split(block)]
            return torch.cat(rows) if rows else points.new_zeros(0, k, dtype=torch.int64)
        found = self.tree.query(points.numpy(), k, workers=torch.get_num_threads())[1]
        return torch.as_tensor(found).reshape(-1, k).long()
