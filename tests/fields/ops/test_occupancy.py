"""Do packing, decay and the choice of cells follow the rules of the occupancy grid?"""

import math

import pytest
import torch
from helpers.packed_rays import generator
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.ops.occupancy import (
    decay_and_max_,
    decay_and_max_reference,
    pack_bitfield,
    pack_bitfield_reference,
    sample_cells,
    sample_cells_reference,
)

HALF = torch.tensor(0.5)


def values(cascades, resolution, share=0.1, seed=0):
    g = generator(seed)
    grid = (torch.rand(cascades, *[resolution] * 3, generator=g) < share).float()
    grid[torch.rand(grid.shape, generator=g) < 0.1] = -1
    return grid


def flags_of(bits, cascades, g):
    return ((bits[..., None].long() >> torch.arange(8)) & 1).bool().reshape(cascades, g, g, g)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([8, 16, 24, 40]), st.sampled_from([0.0, 0.001, 0.1, 1.0])
)
def test_packing_equals_reference(seed, cascades, resolution, share):
    grid = values(cascades, resolution, share, seed)
    for value, expected in zip(pack_bitfield(grid, HALF), pack_bitfield_reference(grid, HALF), strict=True):
        assert torch.equal(value, expected)


def test_bits_are_in_x_y_z_order():
    grid = torch.zeros(2, 16, 16, 16)
    grid[1, 3, 2, 9] = 1  # z = 3, y = 2, x = 9
    bits, _ = pack_bitfield(grid, HALF)
    i = 9 + 16 * (2 + 16 * 3)
    assert bits.nonzero().tolist() == [[1, i >> 3]]
    assert int(bits[1, i >> 3]) == 1 << (i & 7)


def test_finer_cells_show_in_coarser_cascades():
    grid = torch.zeros(3, 16, 16, 16)
    grid[0, 0, 5, 15] = 1
    flags = flags_of(pack_bitfield(grid, HALF)[0], 3, 16)
    assert flags[1].nonzero().tolist() == [[4 + 0, 4 + 2, 4 + 7]]
    assert flags[2].nonzero().tolist() == [[4 + 2, 4 + 3, 4 + 5]]


def test_coarse_mip_holds_block_distances():
    grid = torch.zeros(1, 64, 64, 64)
    assert pack_bitfield(grid, HALF)[1].unique().tolist() == [8]  # nothing anywhere
    grid[0, 17, 1, 63] = 1  # block (7, 0, 2) in x, y, z
    coarse = pack_bitfield(grid, HALF)[1].reshape(8, 8, 8)
    z, y, x = torch.meshgrid(*[torch.arange(8)] * 3, indexing="ij")
    expected = torch.stack([(z - 2).abs(), y.abs(), (x - 7).abs()]).amax(0)
    assert torch.equal(coarse.long(), expected)


def test_unseen_and_nan_cells_are_never_occupied():
    grid = torch.full((1, 8, 8, 8), -1.0)
    grid[0, 0, 0, 0] = math.nan
    grid[0, 0, 0, 1] = 0.0
    bits, _ = pack_bitfield(grid, torch.tensor(-2.0))
    assert flags_of(bits, 1, 8).nonzero().tolist() == [[0, 0, 0, 1]]


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 1000, 50000])
def test_decay_equals_reference(count):
    g = generator(count)
    grid = values(2, 16) * 0.7
    cells = torch.randint(-1, grid.numel(), (count,), generator=g)
    seen = torch.rand(count, generator=g)
    seen[::7] = math.nan
    expected = decay_and_max_reference(grid, cells, seen, 0.95)
    decay_and_max_(grid, cells, seen, 0.95)
    assert torch.equal(grid, expected)


def test_all_cells_decay_and_the_largest_look_counts():
    grid = torch.ones(1, 8, 8, 8)
    grid[0, 0, 0, 2] = -1
    decay_and_max_(grid, torch.tensor([0, 0, 1, 2, -1]), torch.tensor([3.0, 2.0, 0.1, 5.0, 9.0]), 0.5)
    assert grid[0, 0, 0, :4].tolist() == [3.0, 0.5, -1.0, 0.5]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 3000), st.integers(0, 3000))
def test_choice_equals_reference(seed, step, cascades, uniform, occupied):
    grid = values(cascades, 16, 0.05, step)
    bits, _ = pack_bitfield(grid, HALF)
    cells, positions = sample_cells(grid, bits, uniform=uniform, occupied=occupied, seed=seed, step=step)
    expected = sample_cells_reference(grid, bits, uniform, occupied, seed, step)
    assert torch.equal(cells, expected[0])
    assert torch.equal(positions, expected[1])


def test_chosen_points_lie_in_their_cells_and_cells_are_allowed():
    grid = values(3, 16, 0.05)
    bits, _ = pack_bitfield(grid, HALF)
    cells, positions = sample_cells(grid, bits, uniform=4000, occupied=4000, seed=1, step=2)
    assert bool((grid.reshape(-1)[cells] >= 0).all())
    assert bool(flags_of(bits, 3, 16).reshape(-1)[cells[4000:]].all())
    side = torch.exp2((cells // 16**3).float())[:, None]
    local = cells % 16**3
    index = torch.stack([local % 16, local // 16 % 16, local // 256], 1)
    inside = (positions / side + 1) * 8 - index
    assert float(inside.min()) > -1e-4
    assert float(inside.max()) < 1 + 1e-4
    assert (inside.mean(0) - 0.5).abs().max() < 0.03
    assert (inside.std(0) - 12**-0.5).abs().max() < 0.02


def test_as_many_samples_as_cells_choose_each_once():
    grid = values(2, 16)
    bits, _ = pack_bitfield(grid, HALF)
    allowed = (grid.reshape(-1) >= 0).nonzero()[:, 0]
    cells, _ = sample_cells(grid, bits, uniform=allowed.numel(), occupied=0, seed=5, step=0)
    assert torch.equal(cells, allowed)


def test_without_occupied_cells_all_are_looked_at_and_without_any_none():
    grid = torch.zeros(1, 8, 8, 8)
    bits, _ = pack_bitfield(grid, HALF)
    cells, _ = sample_cells(grid, bits, uniform=0, occupied=512, seed=1, step=1)
    assert torch.equal(cells, torch.arange(512))
    cells, positions = sample_cells(grid - 1, bits, uniform=3, occupied=3, seed=1, step=1)
    assert cells.tolist() == [-1] * 6
    assert not bool(positions.any())


def test_nothing_depends_on_the_thread_count():
    grid = values(2, 32)
    bits, coarse = pack_bitfield(grid, HALF)
    threads = torch.get_num_threads()
    found = []
    for count in (1, 3):
        torch.set_num_threads(count)
        cells, positions = sample_cells(grid, bits, uniform=40000, occupied=30000, seed=3, step=4)
        copy = grid.clone()
        decay_and_max_(copy, cells, positions[:, 0].contiguous(), 0.9)
        found.append((cells, positions, copy, *pack_bitfield(grid, HALF)))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert torch.equal(found[0][4], coarse)


def test_operators_are_registered_and_trace():
    grid = values(1, 8)
    bits, _ = pack_bitfield(grid, HALF)
    ops = torch.ops.polyfield
    torch.library.opcheck(ops.pack_bitfield.default, (grid, HALF))
    torch.library.opcheck(ops.sample_cells.default, (grid, bits, 20, 10, 1, 2))
    torch.library.opcheck(ops.decay_and_max_.default, (grid, torch.arange(5), torch.rand(5), 0.95))

    def refresh(grid, bits):
        cells, positions = sample_cells(grid, bits, uniform=50, occupied=50, seed=1, step=1)
        decay_and_max_(grid, cells, positions.norm(dim=1), 0.95)
        return pack_bitfield(grid, HALF)[0]

    eager, traced = grid.clone(), grid.clone()
    expected = refresh(eager, bits)
    assert torch.equal(torch.compile(refresh, fullgraph=True, backend="aot_eager")(traced, bits), expected)
    assert torch.equal(traced, eager)


def test_errors_name_what_is_wrong():
    grid, cells = torch.zeros(1, 8, 8, 8), torch.arange(3)
    bits, _ = pack_bitfield(grid, HALF)
    with pytest.raises(ShapeError, match=r"grid must be \(K, G, G, G\) float32 .* got \(1, 8, 8, 9\)"):
        pack_bitfield(torch.zeros(1, 8, 8, 9), HALF)
    with pytest.raises(ShapeError, match=r"threshold must be \(\) float32; got \(1,\)"):
        pack_bitfield(grid, HALF[None])
    with pytest.raises(ShapeError, match="grid is changed in place and must be contiguous"):
        decay_and_max_(grid.permute(0, 3, 2, 1), cells, torch.ones(3), 0.9)
    with pytest.raises(ShapeError, match=r"values must be \(3,\) float32; got \(2,\)"):
        decay_and_max_(grid, cells, torch.ones(2), 0.9)
    with pytest.raises(ConfigError, match=r"decay must be in \[0, 1\]; got 1.5"):
        decay_and_max_(grid, cells, torch.ones(3), 1.5)
    with pytest.raises(ConfigError, match="sample counts must not be negative"):
        sample_cells(grid, bits, uniform=-1, occupied=0, seed=0, step=0)
    with pytest.raises(ShapeError, match=r"bits must be \(1, 64\) uint8"):
        sample_cells(grid, bits[:, :5], uniform=1, occupied=0, seed=0, step=0)


@pytest.mark.usefixtures("reports_values")
def test_errors_name_which_cells_are_wrong():
    with pytest.raises(ShapeError, match="cells must be below the 512 cells of the grid; got 514"):
        decay_and_max_(torch.zeros(1, 8, 8, 8), torch.arange(3) + 512, torch.ones(3), 0.9)
