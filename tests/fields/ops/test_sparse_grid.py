"""The sparse grid: against the reference, against torch's grid_sample, its derivatives and its total variation."""

import contextlib
import math

import pytest
import torch
from helpers.native_levels import SIZES, TOLERANCE, each_level, on_reference, threads, uniform
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ShapeError
from polyfield.fields.ops.sparse_grid import (
    add_variation_gradient_,
    sparse_grid_sample,
    sparse_grid_sample_reference,
    total_variation_reference,
)

SHAPE = (5, 4, 7)
CHANNELS = (1, 3, 16, 27, 28)


def lattice(share: float = 0.6, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """An index of rows in order, at about `share` of the vertices."""
    there = uniform(math.prod(shape), seed=7) < share
    return torch.where(there, there.cumsum(0) - 1, -1).int().reshape(shape)


def make(n: int, channels: int, dtype: torch.dtype = torch.float64, share: float = 0.6):
    """Positions, some outside the unit cube, and rows, both wanting gradients; index."""
    index = lattice(share)
    x = uniform(n, 3, seed=n, dtype=dtype, low=-0.2, high=1.2)
    rows = uniform(int(index.max()) + 1, channels, seed=1, dtype=dtype, low=-1)
    return x.requires_grad_(), rows.requires_grad_(), index


def everything(x, rows, index, sample=sparse_grid_sample):
    """Values and gradients."""
    out = sample(x, rows, index)
    cotangent = uniform(*out.shape, seed=2, dtype=x.dtype, low=-1)
    return out, *torch.autograd.grad(out, (x, rows), cotangent)


def variation(rows, index, first, count, weight=0.5):
    gradient = uniform(*rows.shape, seed=3, dtype=rows.dtype)
    before = gradient.clone()
    cells = (index.flatten() >= 0).nonzero()[:, 0].int()
    add_variation_gradient_(gradient, rows.detach(), index, cells, first=first, count=count, weight=weight)
    return gradient, gradient - before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("n", [*SIZES, 5000])
def test_values_and_gradients_equal_the_reference(n, channels, dtype):
    x, rows, index = make(n, channels, dtype)
    size = 50 if dtype == torch.float32 else 1  # gradients are sums of up to hundreds of products
    limits = {"rtol": size * TOLERANCE[dtype]["rtol"], "atol": size * TOLERANCE[dtype]["atol"]}
    theirs = everything(x, rows, index, sparse_grid_sample_reference)
    for mine, other in zip(everything(x, rows, index), theirs, strict=True):
        torch.testing.assert_close(mine, other, **limits)


def test_a_full_grid_is_read_as_torch_reads_volumes():
    x, rows, index = make(200, 4, share=2.0)
    volume = rows.reshape(*SHAPE, 4).permute(3, 2, 1, 0)[None]  # torch's depth is its last coordinate
    at = (x * 2 - 1)[None, None, None]
    expected = torch.nn.functional.grid_sample(volume, at, padding_mode="border", align_corners=True)[0, :, 0, 0].T
    torch.testing.assert_close(sparse_grid_sample(x, rows, index), expected)


def test_empty_vertices_are_zero():
    x, rows, index = make(300, 27)
    full = torch.arange(index.numel(), dtype=torch.int32).reshape(SHAPE)
    dense = torch.zeros(index.numel(), 27, dtype=rows.dtype)
    dense[index.flatten() >= 0] = rows.detach()
    torch.testing.assert_close(sparse_grid_sample(x, rows, index), sparse_grid_sample(x, dense, full))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(2, 9), st.integers(1, 40), st.floats(-2, 2))
def test_equal_rows_give_their_value_everywhere(a, b, c, channels, value):
    index = torch.arange(a * b * c, dtype=torch.int32).reshape(a, b, c)
    rows = torch.full((a * b * c, channels), value, dtype=torch.float64)
    expected = torch.full((50, channels), value, dtype=torch.float64)
    torch.testing.assert_close(sparse_grid_sample(uniform(50, 3, low=-1, high=2), rows, index), expected)


@pytest.mark.parametrize("channels", [1, 9])
def test_gradcheck(channels):
    x, rows, index = make(4, channels)
    x = (x.detach() * 0.6 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, r: sparse_grid_sample(x, r, index), (x, rows))


def test_gradients_only_where_they_are_wanted():
    x, rows, index = make(100, 5)
    both = everything(x, rows, index)[1:]
    cotangent = uniform(100, 5, seed=2, low=-1)
    alone = sparse_grid_sample(x, rows.detach(), index), sparse_grid_sample(x.detach(), rows, index)
    for out, leaf, expected in zip(alone, (x, rows), both, strict=True):
        assert torch.equal(torch.autograd.grad(out, leaf, cotangent)[0], expected)


@pytest.mark.parametrize("channels", [1, 5, 27])
def test_sparse_gradients_are_the_rows_that_were_touched_to_the_bit(channels):
    x, rows, index = make(60, channels, torch.float32)
    cotangent = uniform(60, channels, seed=2, dtype=torch.float32, low=-1)

    def gradients(sparse: bool) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(sparse_grid_sample(x, rows, index, sparse=sparse), (x, rows), cotangent)

    for _backend in (contextlib.nullcontext(), on_reference()):
        with _backend:
            (x_dense, dense), (x_sparse, sparse) = gradients(False), gradients(True)
        assert torch.equal(x_dense, x_sparse)
        touched = sparse._indices()[0]
        assert (touched.diff() > 0).all()
        assert 0 < len(touched) < rows.shape[0]
        torch.sparse_coo_tensor(sparse._indices(), sparse._values(), sparse.shape, check_invariants=True)
        assert torch.equal(sparse.to_dense(), dense)


def test_sparse_gradients_only_where_they_are_wanted():
    x, rows, index = make(20, 3)
    out = sparse_grid_sample(x, rows.detach(), index, sparse=True)
    assert torch.autograd.grad(out.sum(), x)[0].shape == (20, 3)
    out = sparse_grid_sample(x.detach(), rows, index, sparse=True)
    assert torch.autograd.grad(out.sum(), rows)[0].is_sparse
    assert torch.equal(out, sparse_grid_sample(x, rows, index))


def test_sparse_gradients_of_several_uses_add_up():
    x, rows, index = make(50, 3)
    used = [sparse_grid_sample(part, rows, index, sparse=True) for part in x.detach().split(20)]
    (found,) = torch.autograd.grad(torch.cat(used).square().sum(), rows)
    (dense,) = torch.autograd.grad(sparse_grid_sample(x.detach(), rows, index).square().sum(), rows)
    assert found.is_sparse
    torch.testing.assert_close(found.to_dense(), dense)


def test_no_position_touches_no_row():
    _, rows, index = make(0, 3)
    out = sparse_grid_sample(uniform(0, 3), rows, index, sparse=True)
    assert torch.autograd.grad(out.sum(), rows)[0]._indices().shape == (1, 0)


def test_positions_outside_are_taken_at_the_border_and_have_no_slope_there():
    x = torch.tensor([[-3.0, 0.4, 7.0], [math.nan, 0.4, math.inf]], dtype=torch.float64).requires_grad_()
    _, rows, index = make(1, 3, share=2.0)
    out = sparse_grid_sample(x, rows, index)
    border = torch.tensor([[0.0, 0.4, 1.0]], dtype=torch.float64).expand(2, 3)
    torch.testing.assert_close(out, sparse_grid_sample(border, rows, index))
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert (slope[:, [0, 2]] == 0).all()
    assert (slope[:, 1] != 0).all()


def test_an_index_that_names_no_row_counts_as_empty():
    x, rows, index = make(300, 5)
    foreign = torch.where(index < 0, 2**31 - 1, index).int()
    foreign[0, 0, 0] = -(2**31)
    empty = torch.where(foreign == 2**31 - 1, -1, foreign).clamp(min=-1)
    for mine, theirs in zip(everything(x, rows, foreign), everything(x, rows, empty), strict=True):
        assert torch.equal(mine, theirs)
    with on_reference():
        for mine, theirs in zip(everything(x, rows, foreign), everything(x, rows, empty), strict=True):
            assert torch.equal(mine, theirs)


def test_no_rows_are_nothing():
    index = torch.full(SHAPE, -1, dtype=torch.int32)
    x, rows = uniform(20, 3).requires_grad_(), torch.zeros(0, 3, dtype=torch.float64).requires_grad_()
    for found in everything(x, rows, index), everything(x, rows, index, sparse_grid_sample_reference):
        assert all(bool((t == 0).all()) for t in found)
    assert variation(rows, index, 0, 0)[1].shape == (0, 3)


def test_answers_without_the_native_library():
    x, rows, index = make(50, 5)
    native = *everything(x, rows, index), variation(rows, index, 3, 40)[0]
    with on_reference():
        for mine, theirs in zip(native, (*everything(x, rows, index), variation(rows, index, 3, 40)[0]), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_levels_of_the_native_library_agree():
    x, rows, index = make(1000, 27, torch.float32)
    first = None
    for _level in each_level():
        found = *everything(x, rows, index), variation(rows, index, 3, 40)[0]
        first = first or found
        for a, b in zip(found, first, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_results_are_bit_equal_on_one_and_two_threads():
    x, rows, index = make(7000, 27, torch.float32)
    results = []
    for count in (1, 2):
        with threads(count):
            results.append((*everything(x, rows, index), variation(rows, index, 0, rows.shape[0])[0]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("first", "share"), [(0, 1.0), (60, 0.5), (0, 0.0)])
def test_the_variations_gradient_is_that_of_autograd(first, share, dtype):
    _, rows, index = make(0, 5, dtype)
    count = int(rows.shape[0] * share)
    chosen = (torch.arange(count) + first) % rows.shape[0]
    expected = torch.zeros_like(rows)
    (slope,) = torch.autograd.grad(total_variation_reference(rows, index), rows)
    expected[chosen] = 0.5 * slope[chosen]
    torch.testing.assert_close(variation(rows, index, first, count)[1], expected, rtol=1e-4, atol=1e-5)


def test_constant_rows_do_not_vary():
    index = lattice()
    rows = torch.full((int(index.max()) + 1, 3), 0.7, dtype=torch.float64)
    assert float(variation(rows, index, 0, rows.shape[0])[1].abs().max()) < 1e-12


def test_the_variation_of_a_ramp_is_its_slope():
    index = torch.arange(8**3, dtype=torch.int32).reshape(8, 8, 8)
    ramp = torch.linspace(0, 7, 8, dtype=torch.float64)[:, None, None].expand(8, 8, 8).reshape(-1, 1)
    assert float(total_variation_reference(ramp, index)) == pytest.approx(7 * 64, rel=1e-4)
    slope = variation(ramp, index, 0, 512, weight=1.0)[1].reshape(8, 8, 8)
    torch.testing.assert_close(slope[0], -torch.ones(8, 8, dtype=torch.float64))
    torch.testing.assert_close(slope[7], torch.ones(8, 8, dtype=torch.float64))
    assert float(slope[1:7].abs().max()) < 1e-9


def test_opcheck():
    x, rows, index = make(5, 3)
    torch.library.opcheck(torch.ops.polyfield.sparse_grid_sample.default, (x, rows, index))
    given = (uniform(5, 3), x.detach(), rows.detach(), index, True, True)
    torch.library.opcheck(torch.ops.polyfield.sparse_grid_sample_backward.default, given)
    given = (uniform(5, 3), x.detach(), rows.detach(), index)
    torch.library.opcheck(torch.ops.polyfield.sparse_grid_rows_backward.default, given)
    cells = (index.flatten() >= 0).nonzero()[:, 0].int()
    given = (torch.zeros_like(rows).detach(), rows.detach(), index, cells, 2, 9, 0.5)
    torch.library.opcheck(torch.ops.polyfield.add_variation_gradient_.default, given)


def test_compiles_into_one_graph():
    x, rows, index = make(5, 3)
    f = lambda x, r: sparse_grid_sample(x, r, index).square().sum()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    mine, theirs = (torch.autograd.grad(g(x, rows), (x, rows)) for g in (compiled, f))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_error_texts():
    x, rows, index = make(4, 3)
    with pytest.raises(ShapeError, match=r"x must be \(N, 3\) float32 or float64; got \(4,\) torch.float64"):
        sparse_grid_sample(x[:, 0], rows, index)
    with pytest.raises(ShapeError, match=r"rows must be torch.float64 as x is; got torch.float32"):
        sparse_grid_sample(x, rows.float(), index)
    with pytest.raises(ShapeError, match=r"rows must be \(V, C\) with C at least 1 and V below 2\^31; got \(5,\)"):
        sparse_grid_sample(x, rows[:5, 0], index)
    with pytest.raises(ShapeError, match=r"index must be \(X, Y, Z\) int32, contiguous, each at least 2; got \(5, 4"):
        sparse_grid_sample(x, rows, index[:, :, :1].contiguous())
    with pytest.raises(ShapeError, match=r"index must be .* got \(5, 4, 7\) torch.int64"):
        sparse_grid_sample(x, rows, index.long())
    cells = torch.zeros(rows.shape[0], dtype=torch.int32)
    good = {"first": 0, "count": 1, "weight": 1.0}
    with pytest.raises(ShapeError, match=r"gradient must be \(\d+, 3\) torch.float64, contiguous, as rows is; got \(4"):
        add_variation_gradient_(rows[:4].detach(), rows, index, cells, **good)
    with pytest.raises(ShapeError, match=r"cells must be \(\d+,\) int32, contiguous; got \(2,\) torch.int32"):
        add_variation_gradient_(torch.zeros_like(rows), rows, index, cells[:2], **good)
    with pytest.raises(ShapeError, match=r"first must be one of \d+ rows and count at most as many; got 0 and 1000"):
        add_variation_gradient_(torch.zeros_like(rows), rows, index, cells, **(good | {"count": 1000}))
