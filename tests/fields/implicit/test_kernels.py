"""Kernels go where a signal changes, lie along its edges, and the same seed puts them in the same places."""

import math

import pytest
import torch

from polyfield.fields.geometry import make_icosphere
from polyfield.fields.implicit import GridSignal, make_mesh_signal
from polyfield.fields.implicit import kernels as kernels_module
from polyfield.fields.implicit.kernels import (
    SPREAD,
    KernelTree,
    inverse_factors,
    place_kernels,
    squared_gradients,
    weighted_kernels,
)
from polyfield.fields.implicit.signal import cell_centres


def placed(points, weights, count, seed=0, extents=None):
    extents = torch.full((points.shape[1],), 0.01) if extents is None else extents
    return weighted_kernels(points, weights, count, extents=extents, generator=torch.Generator().manual_seed(seed))


def matrices(kernels):
    """S of every kernel, from the factors of its inverse."""
    dimensions = kernels.centres.shape[1]
    factor = torch.zeros(len(kernels.centres), dimensions, dimensions, dtype=torch.float64)
    row, column = torch.tril_indices(dimensions, dimensions)
    factor[:, row, column] = kernels.factors.double()
    return torch.linalg.inv(factor.mT @ factor)


def test_one_kernel_is_the_mean_and_the_second_moments_of_everything():
    generator = torch.Generator().manual_seed(1)
    points, weights = torch.rand(500, 3, generator=generator), torch.rand(500, generator=generator)
    extents = torch.tensor([0.1, 0.2, 0.3])
    kernels = placed(points, weights, 1, extents=extents)
    share = (weights / weights.sum())[:, None]
    mean = (share * points).sum(0)
    moments = (points - mean).T @ (share * (points - mean)) + torch.diag(extents.square() / 12)
    torch.testing.assert_close(kernels.centres[0], mean)
    torch.testing.assert_close(matrices(kernels)[0].float(), SPREAD * moments, rtol=1e-4, atol=1e-6)


def test_no_kernel_lies_where_the_weights_are_zero():
    points = torch.rand(4000, 2, generator=torch.Generator().manual_seed(1))
    kernels = placed(points, (points[:, 0] > 0.5).float(), 40)
    assert float(kernels.centres[:, 0].min()) > 0.5
    heavy = placed(points, 1 + 20 * (points[:, 0] > 0.5).float(), 40)
    assert (heavy.centres[:, 0] > 0.5).sum() > 25


def test_kernels_move_to_the_middle_of_what_is_nearest():
    offsets = 0.02 * torch.randn(900, 2, generator=torch.Generator().manual_seed(1))
    middles = torch.tensor([[0.2, 0.2], [0.8, 0.3], [0.4, 0.9]]).repeat(300, 1)
    found = placed(middles + offsets, torch.ones(900), 12).centres
    assert torch.cdist(found, middles[:3]).amin(1).max() < 0.05
    first, last = (placed(middles + offsets, torch.ones(900), 12, seed=seed).centres for seed in (3, 3))
    assert torch.equal(first, last)
    assert not torch.equal(first, found)


def test_kernels_come_nearer_to_all_points_by_moving(monkeypatch):
    points = torch.rand(1000, 2, generator=torch.Generator().manual_seed(1))
    moved = placed(points, torch.ones(1000), 20).centres
    monkeypatch.setattr(kernels_module, "ROUNDS", 0)
    drawn = placed(points, torch.ones(1000), 20).centres
    squares = [torch.cdist(points, centres).amin(1).square().mean() for centres in (moved, drawn)]
    assert squares[0] < 0.75 * squares[1]


def test_where_no_weight_counts_all_points_count_alike():
    points = torch.rand(300, 2, generator=torch.Generator().manual_seed(1))
    for weights in (torch.zeros(300), torch.full((300,), math.nan)):
        found = placed(points, weights, 7)
        assert torch.equal(found.centres, placed(points, torch.ones(300), 7).centres)


@pytest.mark.parametrize("weights", [torch.ones(3), torch.tensor([0.0, 1.0, 0.0])])
def test_there_may_be_more_kernels_than_points(weights):
    points = torch.tensor([[0.1, 0.1], [0.5, 0.5], [0.9, 0.1]])
    kernels = placed(points, weights, 7)
    assert kernels.centres.shape == (7, 2)
    assert all(bool(t.isfinite().all()) for t in kernels)
    assert len(kernels.centres.unique(dim=0)) == 3  # every point before any is taken twice


def test_gradients_are_those_of_a_ramp_and_zero_on_a_constant():
    z, y, x = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), torch.arange(7.0), indexing="ij")
    signal = GridSignal("volume", torch.stack([2 * x, 3 * y - z], -1))
    inner = torch.tensor([2 * 42 + 2 * 7 + 3, 3 * 42 + 3 * 7 + 4])
    found = squared_gradients(signal, inner)
    torch.testing.assert_close(found, torch.full((2,), 32.0**2 * (4 + 9 + 1)))  # Sobel's weights sum to 2 * 4 * 4
    constant = GridSignal("image", torch.full((4, 4, 3), 77, dtype=torch.uint8))
    assert not squared_gradients(constant, torch.arange(16)).any()


def edge() -> GridSignal:
    values = torch.zeros(32, 48, 1)
    values[:, 24:] = 1
    return GridSignal("image", values)


def test_kernels_of_an_edge_lie_along_it():
    index = torch.arange(32 * 48)
    kernels = placed(cell_centres(index, (48, 32)), squared_gradients(edge(), index), 5)
    torch.testing.assert_close(kernels.centres[:, 0], torch.full((5,), 0.5), rtol=0, atol=1e-6)
    assert bool((matrices(kernels)[:, 1, 1] > 3 * matrices(kernels)[:, 0, 0]).all())


def test_most_kernels_of_an_edge_lie_at_it_and_some_beside_it():
    centres = place_kernels(edge(), 8).centres
    assert 4 <= int(((centres[:, 0] - 0.5).abs() < 1 / 48).sum()) < 8
    assert float(centres[:, 1].max()) < 32 / 48


def test_kernels_of_a_mesh_lie_at_its_surface():
    signal = make_mesh_signal(make_icosphere(2), points=2000)
    radius = (place_kernels(signal, 100).centres - 0.5).norm(dim=1)
    assert float((radius - 0.45).abs().mean()) < 0.03


def test_the_tree_finds_what_all_distances_find():
    generator = torch.Generator().manual_seed(0)
    centres, points = torch.rand(50, 3, generator=generator), torch.rand(200, 3, generator=generator)
    expected = torch.cdist(points, centres).topk(6, largest=False).indices
    tree = KernelTree(centres)
    assert torch.equal(tree.nearest(points, 6), expected)
    tree.tree = None  # what another device does
    assert torch.equal(tree.nearest(points, 6), expected)
    assert tree.nearest(points[:0], 6).shape == KernelTree(centres).nearest(points[:0], 6).shape == (0, 6)


def test_factors_are_those_of_the_inverse():
    root = torch.rand(20, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = root @ root.mT + torch.eye(3)
    factor = torch.zeros_like(matrix)
    row, column = torch.tril_indices(3, 3)
    factor[:, row, column] = inverse_factors(matrix)
    torch.testing.assert_close(factor.mT @ factor, torch.linalg.inv(matrix))
