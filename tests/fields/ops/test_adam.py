"""Adam on rows: against torch.optim.Adam where all rows move, and the rule for rows that nothing touched."""

import math
from typing import Any

import pytest
import torch
from helpers.native_levels import SIZES, each_level, on_reference, threads, uniform
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.ops.adam import lazy_adam_, lazy_adam_reference

CLOSE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 2e-5, "atol": 1e-7},
    torch.float64: {"rtol": 1e-11, "atol": 1e-13},
}


def state_of(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, touched: float = 0.5) -> list[torch.Tensor]:
    """parameter, gradient, m, v; a row's gradient is nonzero with probability `touched`."""
    parameter, gradient, m = (uniform(*shape, seed=seed + k, dtype=dtype, low=-1) for k in range(3))
    v = uniform(*shape, seed=seed + 3, dtype=dtype)
    rows = uniform(shape[0], seed=seed + 4) < touched
    return [parameter, gradient * rows.reshape(-1, *[1] * (len(shape) - 1)).to(dtype), m, v]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("row", [(), (1,), (2,), (4,), (8,), (16,), (3,), (5, 7)])
@pytest.mark.parametrize("n", SIZES)
def test_a_step_equals_the_reference(n, row, skip, dtype):
    ours = state_of((n, *row), dtype)
    theirs = [t.clone() for t in ours]
    for step in (1, 2, 100):
        lazy_adam_(*ours, step=step, lr=1e-2, skip_untouched=skip)
        lazy_adam_reference(*theirs, step=step, lr=1e-2, skip_untouched=skip)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE[dtype])


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_steps_equal_torch_adam(dtype, decay):
    parameter = uniform(77, 3, dtype=dtype, low=-1)
    other = torch.nn.Parameter(parameter.clone())
    optimizer = torch.optim.Adam([other], lr=3e-3, betas=(0.8, 0.95), eps=1e-9, weight_decay=decay)
    m, v = torch.zeros_like(parameter), torch.zeros_like(parameter)
    for step in range(1, 20):
        gradient = uniform(77, 3, seed=step, dtype=dtype, low=-1)
        other.grad = gradient
        optimizer.step()
        lazy_adam_(
            parameter,
            gradient,
            m,
            v,
            step=step,
            lr=3e-3,
            betas=(0.8, 0.95),
            eps=1e-9,
            weight_decay=decay,
            skip_untouched=False,
        )
    torch.testing.assert_close(parameter, other.detach(), rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-7)


def test_touched_rows_move_as_if_all_were_touched():
    state = state_of((200, 2), torch.float64)
    touched = (state[1] != 0).any(1)
    dense = [t.clone() for t in state]
    before = [t.clone() for t in state]
    lazy_adam_(*state, step=7, lr=1e-2)
    lazy_adam_(*dense, step=7, lr=1e-2, skip_untouched=False)
    for mine, full, old in zip(state, dense, before, strict=True):
        torch.testing.assert_close(mine[touched], full[touched], rtol=1e-14, atol=0)
        assert torch.equal(mine[~touched], old[~touched])
    assert torch.equal(state[1], before[1])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, 1e-30]), min_size=1, max_size=60),
    st.sampled_from([1, 2, 3, 4, 8, 16]),
    st.booleans(),
)
def test_a_row_stays_exactly_when_its_gradient_is_all_zero(values, channels, double):
    rows = -(-len(values) // channels)
    values = values + [0.0] * (rows * channels - len(values))
    gradient = torch.tensor(values, dtype=torch.float64 if double else torch.float32).reshape(rows, channels)
    parameter, m, v = torch.ones_like(gradient), torch.full_like(gradient, 0.5), torch.full_like(gradient, 0.25)
    lazy_adam_(parameter, gradient, m, v, step=1, lr=0.1)
    moved = (parameter != 1).all(1)
    assert torch.equal(moved, (gradient != 0).any(1))
    assert torch.equal((m == 0.5).all(1), ~moved)
    assert torch.equal((v == 0.25).all(1), ~moved)


def test_nan_is_not_zero():
    parameter = torch.ones(40, 2)
    gradient = torch.zeros(40, 2)
    gradient[3, 1] = math.nan
    lazy_adam_(parameter, gradient, torch.zeros(40, 2), torch.zeros(40, 2), step=1, lr=0.1)
    assert parameter[3, 1].isnan()
    assert parameter[3, 0] == 1
    assert parameter[4:].eq(1).all()


def test_a_first_step_moves_by_the_learning_rate():
    parameter, gradient = torch.zeros(100, 2), uniform(100, 2, dtype=torch.float32, low=1e-6)
    lazy_adam_(parameter, gradient, torch.zeros(100, 2), torch.zeros(100, 2), step=1, lr=0.25)
    torch.testing.assert_close(parameter, torch.full_like(parameter, -0.25))


def test_a_leaf_that_requires_grad_is_updated_and_its_version_counted():
    parameter = torch.nn.Parameter(torch.ones(4, 2))
    before = parameter._version
    lazy_adam_(parameter, torch.ones(4, 2), torch.zeros(4, 2), torch.zeros(4, 2), step=1, lr=0.5)
    torch.testing.assert_close(parameter.detach(), torch.full((4, 2), 0.5))
    assert parameter._version > before
    assert parameter.is_leaf


def test_gradients_may_have_any_strides():
    gradient = uniform(2, 30, dtype=torch.float32).T
    strided, dense = (state_of((30, 2), torch.float32) for _ in range(2))
    lazy_adam_(strided[0], gradient, strided[2], strided[3], step=1, lr=0.1)
    lazy_adam_(dense[0], gradient.contiguous(), dense[2], dense[3], step=1, lr=0.1)
    assert torch.equal(strided[0], dense[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("row", [(1,), (2,), (27,), (5, 7)])
def test_a_sparse_gradient_moves_its_rows_as_a_dense_one_does(row, dtype):
    dense = state_of((400, *row), dtype, touched=0.2)
    sparse = [t.clone() for t in dense]
    rows = (dense[1].flatten(1) != 0).any(1).nonzero()[:, 0]
    gradient = torch.sparse_coo_tensor(
        rows[None], dense[1][rows], dense[1].shape, is_coalesced=True, check_invariants=True
    )
    for step in (1, 2):
        lazy_adam_(*dense, step=step, lr=1e-2)
        lazy_adam_(sparse[0], gradient, *sparse[2:], step=step, lr=1e-2)
    for k in (0, 2, 3):
        torch.testing.assert_close(sparse[k], dense[k], **CLOSE[dtype])
        assert row != (27,) or torch.equal(sparse[k], dense[k])
    with on_reference():
        plain = state_of((400, *row), dtype, touched=0.2)
        lazy_adam_(plain[0], gradient, *plain[2:], step=1, lr=1e-2)
        lazy_adam_(plain[0], gradient, *plain[2:], step=2, lr=1e-2)
    for k in (0, 2, 3):
        torch.testing.assert_close(plain[k], dense[k], **CLOSE[dtype])


def test_a_sparse_gradient_may_name_rows_twice_or_give_them_zero():
    parameter, m, v = torch.ones(5, 2), torch.full((5, 2), 0.5), torch.full((5, 2), 0.25)
    rows = torch.tensor([[3, 1, 3, 2]])
    values = torch.tensor([[1.0, 2.0], [0.0, 0.0], [-1.0, 3.0], [4.0, 0.0]])
    gradient = torch.sparse_coo_tensor(rows, values, (5, 2), check_invariants=True)
    dense = [t.clone() for t in (parameter, m, v)]
    lazy_adam_(parameter, gradient, m, v, step=1, lr=0.1)
    lazy_adam_(dense[0], gradient.to_dense(), *dense[1:], step=1, lr=0.1)
    for mine, other in zip((parameter, m, v), dense, strict=True):
        assert torch.equal(mine, other)
    assert torch.equal((parameter != 1).all(1), torch.tensor([False, False, True, True, False]))


def test_a_row_that_there_is_not_is_left_out():
    parameter, m, v = torch.ones(5, 2), torch.zeros(5, 2), torch.zeros(5, 2)
    gradient = torch.sparse_coo_tensor(
        torch.tensor([[-3, 1, 5]]), torch.ones(3, 2), (5, 2), is_coalesced=True, check_invariants=False
    )
    lazy_adam_(parameter, gradient, m, v, step=1, lr=0.5)
    assert torch.equal((parameter != 1).any(1), torch.tensor([False, True, False, False, False]))


@pytest.mark.parametrize("skip", [True, False])
def test_results_are_bit_equal_on_one_and_two_threads(skip):
    results = []
    for count in (1, 2):
        state = state_of((70000, 2), torch.float32)
        with threads(count):
            lazy_adam_(*state, step=3, lr=0.1, skip_untouched=skip)
        results.append(state)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_levels_of_the_native_library_agree():
    first = None
    for _level in each_level():
        state = state_of((1000, 2), torch.float32)
        lazy_adam_(*state, step=3, lr=0.1)
        first = first or state
        for mine, other in zip(state, first, strict=True):
            torch.testing.assert_close(mine, other, **CLOSE[torch.float32])


def test_opcheck():
    state = state_of((5, 2), torch.float64)
    numbers = (3, 0.1, 0.9, 0.99, 1e-15, 0.0, True)
    torch.library.opcheck(torch.ops.polyfield.lazy_adam_.default, (*state, *numbers))


def test_compiles_into_one_graph():
    def step(parameter, gradient, m, v):
        lazy_adam_(parameter, gradient, m, v, step=2, lr=0.1)
        return parameter * 2

    state, other = state_of((33, 2), torch.float64), state_of((33, 2), torch.float64)
    doubled = torch.compile(step, fullgraph=True, backend="aot_eager")(*state)
    torch.testing.assert_close(doubled, step(*other))
    torch.testing.assert_close(state[0], other[0])


def test_error_texts():
    state = state_of((6, 2), torch.float32)
    with pytest.raises(ConfigError, match=r"weight_decay \(0.1\) pulls on every row"):
        lazy_adam_(*state, step=1, lr=0.1, weight_decay=0.1)
    with pytest.raises(ConfigError, match=r"weight_decay must be at least 0; got -1"):
        lazy_adam_(*state, step=1, lr=0.1, weight_decay=-1, skip_untouched=False)
    with pytest.raises(ConfigError, match=r"step counts from 1; got 0"):
        lazy_adam_(*state, step=0, lr=0.1)
    with pytest.raises(ConfigError, match=r"betas must be in \[0, 1\); got \(0.9, 1.0\)"):
        lazy_adam_(*state, step=1, lr=0.1, betas=(0.9, 1.0))
    parameter, gradient, *moments = state
    with pytest.raises(ConfigError, match=r"a sparse gradient must be of rows .*, and only with skip_untouched"):
        lazy_adam_(parameter, gradient.to_sparse(1), *moments, step=1, lr=0.1, skip_untouched=False)
    with pytest.raises(ConfigError, match=r"a sparse gradient must be of rows \(one sparse dimension; got 2\)"):
        lazy_adam_(parameter, gradient.to_sparse(), *moments, step=1, lr=0.1)
    with pytest.raises(ConfigError, match=r"lr and eps must be finite and at least 0; got lr=nan"):
        lazy_adam_(*state, step=1, lr=math.nan)
    with pytest.raises(ShapeError, match=r"gradient must be like parameter, \(6, 2\).*got \(5, 2\)"):
        lazy_adam_(state[0], state[1][:5], *state[2:], step=1, lr=0.1)
    with pytest.raises(ShapeError, match=r"m is written in place and must be contiguous; got strides \(1, 6\)"):
        lazy_adam_(state[0], state[1], torch.zeros(2, 6).T, state[3], step=1, lr=0.1)
    with pytest.raises(ShapeError, match=r"parameter must be float32 or float64; got torch.float16"):
        lazy_adam_(*[t.half() for t in state], step=1, lr=0.1)
