"""What does a sparse grid of voxels say of a position, and how rough is it?

Rows of C channels lie at vertices of a lattice, most of which may be empty; an index tells which row is where, and an
empty vertex is zero. Positions are blended trilinearly (Fridovich-Keil and Yu et al. 2022, Plenoxels, arXiv 2112.05131,
section 3.2); the total variation of such a grid is what Plenoxels are smoothed by (section 3.4).

Vertices lie on the ends of the unit interval: x in [0, 1] is at x (resolution - 1). Outside [0, 1] a position is taken
at the nearest point of the cube, with derivative zero along that axis; NaN counts as 0. An index that names no row
counts as empty.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ShapeError
from . import _cpu, _cuda, _library, _native

VARIATION_FLOOR = 1e-9
"""Added to the squared differences under the root (`kVariationFloor` of polyfield/sparse_grid.h)."""


def sparse_grid_sample(x: Tensor, rows: Tensor, index: Tensor, *, sparse: bool = False) -> Tensor:
    """Blend the rows round positions.

    Args:
        x: (N, 3) positions in [0, 1] (clamped), float32 or float64.
        rows: (V, C) values of the dtype of `x`, C at least 1.
        index: (X, Y, Z) int32, contiguous, at least 2 along each axis: the row of each vertex, -1 where it is empty.
        sparse: the gradient of `rows` is a sparse tensor of the rows that positions touch, as that of
            `torch.nn.Embedding` may be. It costs what N positions cost, however large V; `lazy_adam_` takes it.

    Returns:
        (N, C).

    Gradients reach `x` (piecewise: the blend is continuous, its slope jumps at vertices) and `rows`. The sums of the
    latter repeat exactly on the CPU, for any number of threads; on CUDA with `torch.use_deterministic_algorithms`.

    Raises:
        ShapeError: a shape, dtype or device is not as above.
    """
    if x.dim() != 2 or x.shape[1] != 3 or x.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"x must be (N, 3) float32 or float64; got {tuple(x.shape)} {x.dtype}")
    if rows.dtype != x.dtype:
        raise ShapeError(f"rows must be {x.dtype} as x is; got {rows.dtype}")
    _check(rows, index)
    if x.device != rows.device:
        raise ShapeError(f"x and rows must be on one device; got {x.device} and {rows.device}")
    return _OfTouchedRows.apply(x, rows, index) if sparse else _sparse_grid_sample(x, rows, index)


def add_variation_gradient_(
    gradient: Tensor, rows: Tensor, index: Tensor, cells: Tensor, *, first: int, count: int, weight: float
) -> None:
    """Add the derivative of `weight` times the total variation by some of the rows, in place.

    The total variation is the sum over rows and channels of sqrt(1e-9 + dx^2 + dy^2 + dz^2) with the differences to
    the next vertices along the axes; there is none towards empty vertices. Costs of the order of `count`, whatever V.

    Args:
        gradient: (V, C), contiguous; added to.
        rows, index: as `sparse_grid_sample` takes them.
        cells: (V,) int32, contiguous: the vertex that each row lies at, as a place in the flattened `index`.
        first, count: rows `first` to `first + count - 1`, 0 to V of them; row 0 follows the last one.
        weight: factor.

    Raises:
        ShapeError: a shape, dtype, device or range is not as above.

    No gradients.
    """
    _check(rows, index)
    if rows.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"rows must be float32 or float64; got {rows.dtype}")
    if gradient.shape != rows.shape or gradient.dtype != rows.dtype or not gradient.is_contiguous():
        wanted = f"{tuple(rows.shape)} {rows.dtype}, contiguous"
        raise ShapeError(f"gradient must be {wanted}, as rows is; got {tuple(gradient.shape)} {gradient.dtype}")
    if cells.shape != rows.shape[:1] or cells.dtype != torch.int32 or not cells.is_contiguous():
        raise ShapeError(f"cells must be ({rows.shape[0]},) int32, contiguous; got {tuple(cells.shape)} {cells.dtype}")
    if not (gradient.device == cells.device == rows.device):
        devices = f"{gradient.device}, {cells.device} and {rows.device}"
        raise ShapeError(f"gradient, cells and rows must be on one device; got {devices}")
    if not 0 <= count <= rows.shape[0] or not 0 <= first < max(1, rows.shape[0]):
        text = f"first must be one of {rows.shape[0]} rows and count at most as many"
        raise ShapeError(f"{text}; got {first} and {count}")
    with torch.no_grad():
        _variation_op(gradient, rows, index, cells, first, count, weight)


def sparse_grid_sample_reference(x: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """`sparse_grid_sample` in plain torch, differentiable, any device."""
    padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])  # -1 is the last of these
    parts = [padded[found] * weight[:, None] for found, weight in _corners(x, index, rows.shape[0])]
    return torch.stack(parts).sum(0)


def total_variation_reference(rows: Tensor, index: Tensor) -> Tensor:
    """The total variation of all rows (see `add_variation_gradient_`), in plain torch, differentiable."""
    there, _, length = _changes(rows, index)
    return length[there].sum()


def _changes(rows: Tensor, index: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """Which vertices have a row (X, Y, Z), how far the next along each axis is from it (X, Y, Z, C), 0 where one of the
    two has none, and the length of the three (X, Y, Z, C)."""
    there = (index >= 0) & (index < rows.shape[0])
    values = torch.where(there[..., None], rows[torch.where(there, index, 0).long()], 0)
    changes = []
    for axis in range(3):
        both = there.narrow(axis, 1, there.shape[axis] - 1) & there.narrow(axis, 0, there.shape[axis] - 1)
        change = torch.where(both[..., None], values.diff(dim=axis), 0)
        changes.append(torch.nn.functional.pad(change, [0] * (2 * (3 - axis)) + [0, 1]))
    squares = changes[0].square() + changes[1].square() + changes[2].square()
    return there, changes, (squares + VARIATION_FLOOR).sqrt()


def _variation_slope(rows: Tensor, index: Tensor) -> Tensor:
    """(V, C) derivative of `total_variation_reference`. Written out, since autograd does not work inside an operator's
    implementation."""
    there, changes, length = _changes(rows, index)
    slope = torch.zeros_like(length)
    for axis, change in enumerate(changes):
        share, count = change / length, slope.shape[axis] - 1
        slope -= share
        slope.narrow(axis, 1, count).add_(share.narrow(axis, 0, count))
    return torch.zeros_like(rows).index_add_(0, index[there].long(), slope[there])


def _check(rows: Tensor, index: Tensor) -> None:
    if rows.dim() != 2 or rows.shape[1] < 1 or rows.shape[0] >= 2**31:
        raise ShapeError(f"rows must be (V, C) with C at least 1 and V below 2^31; got {tuple(rows.shape)}")
    if index.dim() != 3 or min(index.shape) < 2 or index.dtype != torch.int32 or not index.is_contiguous():
        wanted = "(X, Y, Z) int32, contiguous, each at least 2"
        raise ShapeError(f"index must be {wanted}; got {tuple(index.shape)} {index.dtype}")
    if index.device != rows.device:
        raise ShapeError(f"index and rows must be on one device; got {index.device} and {rows.device}")


def _place(x: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    p = torch.nan_to_num(x.clamp(0, 1), nan=0.0) * (resolution - 1)
    low = p.detach().floor().long().clamp(max=resolution - 2)
    return low, p - low


def _corners(x: Tensor, index: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Row (N,), -1 where there is none, and weight (N,) of the eight vertices round each position."""
    places = [_place(x[:, axis], index.shape[axis]) for axis in range(3)]
    out = []
    for k in range(8):
        ahead = (k >> 2, k >> 1 & 1, k & 1)
        found = index[tuple(low + a for (low, _), a in zip(places, ahead, strict=True))].long()
        parts = [fraction if a else 1 - fraction for (_, fraction), a in zip(places, ahead, strict=True)]
        out.append((torch.where((found >= 0) & (found < count), found, -1), parts[0] * parts[1] * parts[2]))
    return out


def _backward_reference(grad: Tensor, x: Tensor, rows: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    x_grad, row_grad = torch.zeros_like(x), torch.zeros_like(rows)
    if rows.shape[0] == 0:
        return x_grad, row_grad
    sizes = x.new_tensor(index.shape) - 1
    places = [_place(x[:, axis], index.shape[axis])[1] for axis in range(3)]
    slope = ((x >= 0) & (x <= 1)).to(x.dtype) * sizes
    for k, (found, weight) in enumerate(_corners(x, index, rows.shape[0])):
        there = found >= 0
        at, ahead = found[there], (k >> 2, k >> 1 & 1, k & 1)
        row_grad.index_add_(0, at, grad[there] * weight[there, None])
        dots = torch.zeros_like(weight)
        dots[there] = (rows[at] * grad[there]).sum(1)
        parts = [fraction if a else 1 - fraction for fraction, a in zip(places, ahead, strict=True)]
        for axis in range(3):
            sign = slope[:, axis] if ahead[axis] else -slope[:, axis]
            x_grad[:, axis] += dots * sign * parts[(axis + 1) % 3] * parts[(axis + 2) % 3]
    return x_grad, row_grad


# --- operators --------------------------------------------------------------------------------------------------------


_LOOPS = 1 << 14
"""Most blocks of launches that loop."""


def _sample(x: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    if not _native.usable(x, rows, index):
        return sparse_grid_sample_reference(x, rows, index).clone()
    x, rows = x.contiguous(), rows.contiguous()
    out = _native.new_empty(x, x.shape[0], rows.shape[1])
    name = f"pf_sparse_grid_forward_{_cpu.suffix_of(x)}"
    _native.call(name, x, x.shape[0], rows, *rows.shape, index, *index.shape, out, over=out.numel(), most_blocks=_LOOPS)
    return out


def _sample_backward(
    grad: Tensor, x: Tensor, rows: Tensor, index: Tensor, need_x: bool, need_rows: bool
) -> tuple[Tensor, Tensor]:
    if not _native.usable(grad, x, rows, index):
        x_grad, row_grad = _backward_reference(grad, x, rows, index)
        return x_grad if need_x else x.new_empty(0), row_grad if need_rows else x.new_empty(0)
    grad, x, rows = grad.contiguous(), x.contiguous(), rows.contiguous()
    x_grad = torch.empty_like(x) if need_x else None
    row_grad = _native.new_empty(rows, *rows.shape).zero_() if need_rows else None
    given = (x, x.shape[0], rows, *rows.shape, index, *index.shape, grad)
    suffix = _cpu.suffix_of(x)
    if _cuda.usable(x):
        _backward_on_cuda(given, x_grad, row_grad, suffix)
    else:
        _cpu.call(f"pf_sparse_grid_backward_{suffix}", *given, x_grad, row_grad, None)
    return x.new_empty(0) if x_grad is None else x_grad, x.new_empty(0) if row_grad is None else row_grad


def _backward_of_touched(grad: Tensor, x: Tensor, rows: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    marks = torch.zeros(rows.shape[0], dtype=torch.uint8, device=rows.device)
    if _cuda.usable(grad, x, rows, index) or not _cpu.usable(grad, x, rows, index):
        for found, _ in _corners(x, index, rows.shape[0]):
            marks[found[found >= 0]] = 1
        touched = marks.nonzero()[:, 0]
        return touched, _sample_backward(grad, x, rows, index, False, True)[1][touched]
    grad, x, rows = grad.contiguous(), x.contiguous(), rows.contiguous()
    suffix = _cpu.suffix_of(x)
    _cpu.call(f"pf_sparse_grid_touched_{suffix}", x, x.shape[0], rows.shape[0], index, *index.shape, marks)
    touched = marks.nonzero()[:, 0]
    slots = torch.empty(rows.shape[0], dtype=torch.int32)
    slots[touched] = torch.arange(len(touched), dtype=torch.int32)
    out = _native.new_empty(rows, len(touched), rows.shape[1]).zero_()
    given = (x, x.shape[0], rows, *rows.shape, index, *index.shape, grad)
    _cpu.call(f"pf_sparse_grid_backward_{suffix}", *given, None, out, slots)
    return touched, out


def _backward_on_cuda(given: tuple[Any, ...], x_grad: Tensor | None, row_grad: Tensor | None, suffix: str) -> None:
    n, grad = given[1], given[-1]
    if x_grad is not None:
        _cuda.call(f"pf_sparse_grid_position_gradient_{suffix}", _cuda.one_thread_each(n), *given, x_grad)
    if row_grad is None:
        return
    grid = _cuda.one_thread_each(grad.numel(), _LOOPS)
    if not torch.are_deterministic_algorithms_enabled():
        _cuda.call(f"pf_sparse_grid_scatter_{suffix}", grid, *given, row_grad)
        return
    if n == 0:
        return
    # No sum of 8 N gradients with weights of at most 1 leaves 63 bits; NaN where any is.
    scale = 2.0**62 / (8 * n) / grad.abs().amax().double().clamp(min=1e-250)
    sums = torch.zeros_like(row_grad, dtype=torch.int64)
    _cuda.call(f"pf_sparse_grid_scatter_fixed_{suffix}", grid, *given, sums, scale)
    row_grad.copy_(sums / scale)


def _add_variation(
    gradient: Tensor, rows: Tensor, index: Tensor, cells: Tensor, first: int, count: int, weight: float
) -> None:
    if count == 0:
        return
    if not _native.usable(gradient, rows, index, cells):
        slope = _variation_slope(rows, index)
        chosen = (torch.arange(count, device=rows.device) + first) % rows.shape[0]
        gradient[chosen] += weight * slope[chosen]
        return
    rows = rows.contiguous()
    given = (rows, *rows.shape, index, *index.shape, cells, first, count, float(weight), gradient)
    name = f"pf_sparse_variation_{_cpu.suffix_of(rows)}"
    _native.call(name, *given, over=count * rows.shape[1], most_blocks=_LOOPS)
    torch.autograd.graph.increment_version(gradient)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    need_x, need_rows = ctx.needs_input_grad[:2]
    x_grad, row_grad = _sparse_grid_sample_backward(grad, *ctx.saved_tensors, need_x, need_rows)
    return x_grad if need_x else None, row_grad if need_rows else None, None


class _OfTouchedRows(torch.autograd.Function):
    """`sparse_grid_sample` with a sparse gradient of the rows, which no operator's autograd may give."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(x, rows, index)
        return _sparse_grid_sample(x, rows, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        need_x, need_rows = ctx.needs_input_grad[:2]
        saved = ctx.saved_tensors
        x_grad = _sparse_grid_sample_backward(grad, *saved, True, False)[0] if need_x else None
        if not need_rows:
            return x_grad, None, None
        touched, values = _backward_of_touched_op(grad, *saved)
        shape = saved[1].shape
        row_grad = torch.sparse_coo_tensor(touched[None], values, shape, is_coalesced=True, check_invariants=False)
        return x_grad, row_grad, None


def _fake_touched(grad: Tensor, x: Tensor, rows: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return x.new_empty(count, dtype=torch.int64), rows.new_empty(count, rows.shape[1])


_backward_of_touched_op = _library.define(
    "sparse_grid_rows_backward(Tensor grad, Tensor x, Tensor rows, Tensor index) -> (Tensor, Tensor)",
    _backward_of_touched,
    _fake_touched,
)
_sparse_grid_sample_backward = _library.define(
    "sparse_grid_sample_backward(Tensor grad, Tensor x, Tensor rows, Tensor index, bool need_x, bool need_rows)"
    " -> (Tensor, Tensor)",
    _sample_backward,
    lambda grad, x, rows, index, need_x, need_rows: (
        x.new_empty(x.shape if need_x else 0),
        x.new_empty(rows.shape if need_rows else 0),
    ),
)
_sparse_grid_sample = _library.define(
    "sparse_grid_sample(Tensor x, Tensor rows, Tensor index) -> Tensor",
    _sample,
    lambda x, rows, index: x.new_empty(x.shape[0], rows.shape[1]),
    setup_context=_setup,
    backward=_autograd,
)
_variation_op = _library.define(
    "add_variation_gradient_(Tensor(a!) gradient, Tensor rows, Tensor index, Tensor cells, int first, int count,"
    " float weight) -> ()",
    _add_variation,
    lambda *arguments: None,
)
