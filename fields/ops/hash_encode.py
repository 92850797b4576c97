"""What does the multiresolution hash grid say of a position, and how do its table and the position get gradients?

Source: Mueller et al. 2022, "Instant Neural Graphics Primitives with a Multiresolution Hash Encoding" (arXiv
2201.05989), section 3; level scales as in its published code. Level l has scale s_l = base * g^l - 1, g the growth that
leads from `base_resolution` to `finest_resolution`; a position x in [0, 1]^3 lies at p = x * s_l + 0.5 of the level's
lattice and takes the trilinear blend of the eight entries around it. A level whose whole lattice fits is stored
densely, others address `2**log2_table_size` entries by x ^ (y * 2654435761) ^ (z * 805459861).

Outside [0, 1] a position is taken at the nearest point of the cube, and its derivative along that axis is zero; NaN
counts as 0. First derivatives jump at cell faces (the blend is continuous); second ones are those inside the cell.
"""

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from . import _cpu, _cuda, _library, _native

PRIME_Y = 2654435761
PRIME_Z = 805459861
CHANNELS = (1, 2, 4, 8)


class HashLevel(NamedTuple):
    """One level of a `HashGridSpec`."""

    scale: float
    """Lattice steps across the unit interval; exact in float32."""
    resolution: int
    """Lattice points per axis, one more than a position can reach."""
    offset: int
    """First entry in the table."""
    size: int
    """Number of entries: a multiple of 16, a power of two where hashed."""
    hashed: bool
    flat: bool = False
    """Whether z makes no difference: a grid of an image."""


@dataclass(frozen=True, kw_only=True)
class HashGridSpec:
    """Shape of a hash grid. Defaults: Mueller et al. 2022, table 1, for scenes."""

    levels: int = 16
    """L, 1 to 32."""
    channels: int = 2
    """C per entry: 1, 2, 4 or 8."""
    base_resolution: int = 16
    """Lattice steps of the coarsest level, plus one."""
    finest_resolution: int = 2048
    """Lattice steps of the finest level, plus one."""
    log2_table_size: int = 19
    """A level holds at most 2**this entries, 4 to 24."""
    dimensions: int = 3
    """3, or 2 for images: z then makes no difference and has derivative zero."""
    _levels: ClassVar[tuple[HashLevel, ...]]  # set on the instance: no field, takes no part in comparing or in files

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 32:
            raise ConfigError(f"levels must be 1 to 32; got {self.levels}")
        if self.channels not in CHANNELS:
            raise ConfigError(f"channels must be one of {CHANNELS}; got {self.channels}")
        if not 2 <= self.base_resolution <= self.finest_resolution <= 1 << 20:
            raise ConfigError(
                "resolutions must satisfy 2 <= base_resolution <= finest_resolution <= 1048576; "
                f"got {self.base_resolution} and {self.finest_resolution}"
            )
        if not 4 <= self.log2_table_size <= 24:
            raise ConfigError(f"log2_table_size must be 4 to 24; got {self.log2_table_size}")
        if self.dimensions not in (2, 3):
            raise ConfigError(f"dimensions must be 2 or 3; got {self.dimensions}")
        # Kept, since every call asks for it.
        object.__setattr__(self, "_levels", tuple(self._compute_levels()))

    @property
    def features(self) -> int:
        """Width of the encoding, L * C."""
        return self.levels * self.channels

    @property
    def entries(self) -> int:
        """Rows of the table, over all levels."""
        last = self._levels[-1]
        return last.offset + last.size

    @property
    def numbers(self) -> tuple[int, int, int, int, int]:
        """What the operators are given beside the table, whose width is `channels`."""
        return self.levels, self.base_resolution, self.finest_resolution, self.log2_table_size, self.dimensions

    def level_table(self) -> list[HashLevel]:
        """The levels, coarse to fine."""
        return list(self._levels)

    def _compute_levels(self) -> list[HashLevel]:
        """The one place where scales and sizes are computed: kernels and reference are given the result."""
        steps = max(self.levels - 1, 1)
        growth = math.exp((math.log(self.finest_resolution) - math.log(self.base_resolution)) / steps)
        table, offset, limit = [], 0, 1 << self.log2_table_size
        for level in range(self.levels):
            # Rounded to float32 here, so that float32 kernels, float64 kernels and the reference see one lattice.
            scale = ctypes.c_float(self.base_resolution * growth**level - 1).value
            resolution = math.ceil(scale) + 2  # the upper corner of x = 1, whichever way its position rounds
            dense = resolution**self.dimensions
            hashed = dense > limit
            size = limit if hashed else (dense + 15) // 16 * 16
            table.append(HashLevel(scale, resolution, offset, size, hashed, self.dimensions == 2))
            offset += size
        return table

    def level_tensor(self) -> Tensor:
        """What kernels are given: `level_table` as (L, 5) float64 rows [scale, resolution, offset, size, kind], kind 1
        where hashed, plus 2 where flat."""
        rows = [(*map(float, level[:4]), float(level.hashed + 2 * level.flat)) for level in self.level_table()]
        return torch.tensor(rows, dtype=torch.float64)


@functools.cache
def _level_tensor(spec: HashGridSpec, device: torch.device) -> Tensor:
    return spec.level_tensor().to(device)


def hash_encode(x: Tensor, table: Tensor, spec: HashGridSpec) -> Tensor:
    """Encode positions.

    Args:
        x: (N, 3) positions in the unit cube, float32 or float64; outside and NaN see the module's docstring.
        table: (spec.entries, spec.channels), dtype and device of `x`; float16 with float32 `x` reads half the memory.
        spec: shape of the grid.

    Returns:
        (N, L * C) in the dtype of `x`, level by level, coarse to fine.

    Gradients reach `x` and `table`. The table's gradient is dense, and the same for any number of threads; that of a
    float16 table is summed in float32 and rounded. On CUDA the order of its sums varies from run to run, unless
    `torch.use_deterministic_algorithms` is on: then they are summed as 64-bit integers, which is slower and takes twice
    the memory.

    Raises:
        ShapeError: a shape, dtype or device is not as above.
    """
    _check(x, table, spec)
    return _hash_encode(x, table, *spec.numbers)


def hash_value_and_jacobian(x: Tensor, table: Tensor, spec: HashGridSpec) -> tuple[Tensor, Tensor]:
    """Encode positions, and differentiate the encoding.

    Arguments and errors as `hash_encode`.

    Returns:
        features (N, L * C) and jacobian (N, 3, L * C), d features / d x (per unit of the unit cube).

    Gradients reach `x` and `table` from both results; those to `x` use the mixed second derivatives of the blend (the
    pure ones vanish inside a cell).
    """
    _check(x, table, spec)
    return _hash_jacobian(x, table.to(x.dtype), *spec.numbers)


def hash_encode_reference(x: Tensor, table: Tensor, spec: HashGridSpec) -> Tensor:
    """`hash_encode` in plain torch, differentiable, any device."""
    features = []
    for level in spec.level_table():
        cell = _cell(x, level)
        features.append((cell.weight[..., None] * table[cell.rows]).sum(1))
    return torch.cat(features, 1)


def hash_value_and_jacobian_reference(x: Tensor, table: Tensor, spec: HashGridSpec) -> tuple[Tensor, Tensor]:
    """`hash_value_and_jacobian` in plain torch, differentiable, any device."""
    features, jacobians = [], []
    for level in spec.level_table():
        cell = _cell(x, level)
        corners = table[cell.rows]
        features.append((cell.weight[..., None] * corners).sum(1))
        jacobians.append(torch.einsum("nak,nkc->nac", cell.slope, corners))
    return torch.cat(features, 1), torch.cat(jacobians, 2)


class _Cell(NamedTuple):
    rows: Tensor  # (N, 8) entries of the table
    weight: Tensor  # (N, 8) blend
    slope: Tensor  # (N, 3, 8) d weight / d x
    mixed: Tensor  # (N, 3, 3, 8) d^2 weight / d x_a d x_b, zero where a = b


def _cell(x: Tensor, level: HashLevel) -> _Cell:
    position = torch.where(x.isnan(), 0.0, x).clamp(0, 1)
    # Rounded once, as a fused multiply-add does.
    position = (position.double() * level.scale + 0.5).to(x.dtype)
    low = position.detach().floor()
    fraction = position - low
    slope = ((x >= 0) & (x <= 1)).to(x.dtype) * level.scale
    bits = torch.tensor([[c & 1, c >> 1 & 1, c >> 2] for c in range(8)], device=x.device)
    corner = low.long()[:, None, :] + bits
    if level.flat:
        corner[..., 2] = 0
    if level.hashed:
        hashed = corner[..., 0] ^ (corner[..., 1] * PRIME_Y) ^ (corner[..., 2] * PRIME_Z)
        index = hashed & (level.size - 1)
    else:
        index = corner[..., 0] + level.resolution * (corner[..., 1] + level.resolution * corner[..., 2])
    factor = torch.where(bits.bool(), fraction[:, None, :], 1 - fraction[:, None, :])  # (N, 8, 3)
    rate = slope[:, None, :] * (2 * bits - 1)  # d factor / d x
    fx, fy, fz = factor.unbind(-1)
    rx, ry, rz = rate.unbind(-1)
    xy, xz, yz, zero = rx * ry * fz, rx * fy * rz, fx * ry * rz, torch.zeros_like(fx)
    mixed = torch.stack([zero, xy, xz, xy, zero, yz, xz, yz, zero], 1).unflatten(1, (3, 3))
    return _Cell(index + level.offset, fx * fy * fz, torch.stack([rx * fy * fz, fx * ry * fz, fx * fy * rz], 1), mixed)


def _reference_backward(
    grad: Tensor, jacobian_grad: Tensor | None, x: Tensor, table: Tensor, spec: HashGridSpec
) -> tuple[Tensor, Tensor]:
    x_grad, table_grad = torch.zeros_like(x), torch.zeros_like(table)
    for number, level in enumerate(spec.level_table()):
        cell = _cell(x, level)
        columns = slice(number * spec.channels, (number + 1) * spec.channels)
        g, corners = grad[:, columns], table[cell.rows]
        on_corners = cell.weight[..., None] * g[:, None, :]
        x_grad += torch.einsum("nak,nkc,nc->na", cell.slope, corners, g)
        if jacobian_grad is not None:
            h = jacobian_grad[:, :, columns]
            on_corners = on_corners + torch.einsum("nak,nac->nkc", cell.slope, h)
            x_grad += torch.einsum("nabk,nkc,nbc->na", cell.mixed, corners, h)
        table_grad.index_add_(0, cell.rows.flatten(), on_corners.flatten(0, 1))
    return x_grad, table_grad


def _spec_of(table: Tensor, numbers: tuple[int, int, int, int, int]) -> HashGridSpec:
    levels, base, finest, log2_size, dimensions = numbers
    return HashGridSpec(
        levels=levels,
        channels=table.shape[1],
        base_resolution=base,
        finest_resolution=finest,
        log2_table_size=log2_size,
        dimensions=dimensions,
    )


def _check(x: Tensor, table: Tensor, spec: HashGridSpec) -> None:
    if x.dim() != 2 or x.shape[1] != 3:
        raise ShapeError(f"x must be (N, 3) positions in the unit cube; got {tuple(x.shape)}")
    if table.dim() != 2 or table.shape[0] != spec.entries or table.shape[1] != spec.channels:
        raise ShapeError(
            f"table must be (entries, channels) = ({spec.entries}, {spec.channels}) for this spec; "
            f"got {tuple(table.shape)}; build it from spec.entries and spec.channels"
        )
    rounded = (x.dtype, table.dtype) == (torch.float32, torch.float16)
    if x.dtype not in (torch.float32, torch.float64) or not (table.dtype == x.dtype or rounded):
        text = "x and table must both be float32 or both float64, or float32 and float16"
        raise ShapeError(f"{text}; got {x.dtype} and {table.dtype}")
    if x.device != table.device:
        raise ShapeError(f"x and table must be on one device; got {x.device} and {table.device}")


# --- operators ------------------------------------------------------------------------------------------------------

_SPEC = "int levels, int base_resolution, int finest_resolution, int log2_table_size, int dimensions"


def _encode(x: Tensor, table: Tensor, *numbers: int) -> Tensor:
    spec = _spec_of(table, numbers)  # type: ignore[arg-type]
    if not _native.usable(x, table):
        return hash_encode_reference(x, table, spec)
    x, table = x.contiguous(), table.contiguous()
    out = x.new_empty(x.shape[0], spec.features)
    levels = _level_tensor(spec, x.device)
    name = f"pf_hash_encode_forward_{_cpu.suffix_of(table)}"
    over = x.shape[0] * spec.levels
    _native.call(name, x, x.shape[0], table, levels, spec.levels, spec.channels, out, over=over)
    return out


def _encode_fake(x: Tensor, table: Tensor, levels: int, *_: int) -> Tensor:
    return x.new_empty(x.shape[0], levels * table.shape[1])


def _backward(
    grad: Tensor,
    jacobian_grad: Tensor | None,
    x: Tensor,
    table: Tensor,
    numbers: tuple[int, ...],
    need_x: bool,
    need_table: bool,
) -> tuple[Tensor, Tensor]:
    spec = _spec_of(table, numbers)  # type: ignore[arg-type]
    nothing = x.new_empty(0)
    if not _native.usable(x, table, grad, jacobian_grad):
        x_grad, table_grad = _reference_backward(grad, jacobian_grad, x, table.to(x.dtype), spec)
        return x_grad if need_x else nothing, (table_grad if need_table else x.new_empty(0)).to(table.dtype)
    dtype, x, table, grads = table.dtype, x.contiguous(), table.to(x.dtype).contiguous(), [grad.contiguous()]
    if jacobian_grad is not None:
        grads.append(jacobian_grad.contiguous())
    x_grad = torch.empty_like(x) if need_x else None
    table_grad = torch.empty_like(table) if need_table else None
    levels, suffix = _level_tensor(spec, x.device), _cpu.suffix_of(x)
    if _cuda.usable(x):
        _backward_on_cuda(x, table, levels, spec, grads, table_grad, x_grad, suffix)
    else:
        name = "pf_hash_encode_backward" if jacobian_grad is None else "pf_hash_jacobian_backward"
        shape = (spec.levels, spec.channels)
        _cpu.call(f"{name}_{suffix}", x, x.shape[0], table, levels, *shape, *grads, table_grad, x_grad)
    nothing_of_table = table.new_empty(0, dtype=dtype)
    return nothing if x_grad is None else x_grad, nothing_of_table if table_grad is None else table_grad.to(dtype)


def _backward_on_cuda(
    x: Tensor,
    table: Tensor,
    levels: Tensor,
    spec: HashGridSpec,
    grads: list[Tensor],
    table_grad: Tensor | None,
    x_grad: Tensor | None,
    suffix: str,
) -> None:
    n, shape = x.shape[0], (spec.levels, spec.channels)
    features_grad, jacobian_grad = grads if len(grads) == 2 else (*grads, None)
    if table_grad is not None:
        given = (x, n, levels, *shape, features_grad, jacobian_grad)
        grid = _cuda.one_thread_each(n * spec.levels)
        if torch.are_deterministic_algorithms_enabled():
            scale = _fixed_point_scale(features_grad, jacobian_grad, spec)
            sums = torch.zeros_like(table_grad, dtype=torch.int64)
            _cuda.call(f"pf_hash_scatter_fixed_{suffix}", grid, *given, sums, scale)
            table_grad.copy_(sums / scale)
        else:
            _cuda.call(f"pf_hash_scatter_{suffix}", grid, *given, table_grad.zero_())
    if x_grad is not None:
        name, grid = f"pf_hash_position_gradient_{suffix}", _cuda.one_thread_each(n)
        _cuda.call(name, grid, x, n, table, levels, *shape, features_grad, jacobian_grad, x_grad)


def _fixed_point_scale(features_grad: Tensor, jacobian_grad: Tensor | None, spec: HashGridSpec) -> Tensor:
    """() float64: what gradients are multiplied by so that no sum of 8 N of them leaves 63 bits. NaN where any is."""
    if features_grad.shape[0] == 0:
        return features_grad.new_ones((), dtype=torch.float64)
    largest = features_grad.abs().amax().double()
    if jacobian_grad is not None:
        largest = largest + 3 * max(level.scale for level in spec.level_table()) * jacobian_grad.abs().amax().double()
    return 2.0**62 / (8 * features_grad.shape[0]) / largest.clamp(min=1e-250)


def _encode_backward(grad: Tensor, x: Tensor, table: Tensor, *rest: int) -> tuple[Tensor, Tensor]:
    *numbers, need_x, need_table = rest
    return _backward(grad, None, x, table, tuple(numbers), bool(need_x), bool(need_table))


def _encode_backward_fake(grad: Tensor, x: Tensor, table: Tensor, *rest: int) -> tuple[Tensor, Tensor]:
    *_, need_x, need_table = rest
    return x.new_empty(x.shape if need_x else 0), table.new_empty(table.shape if need_table else 0)


def _jacobian(x: Tensor, table: Tensor, *numbers: int) -> tuple[Tensor, Tensor]:
    spec = _spec_of(table, numbers)  # type: ignore[arg-type]
    if not _native.usable(x, table):
        return hash_value_and_jacobian_reference(x, table, spec)
    x, table = x.contiguous(), table.contiguous()
    features, jacobian = x.new_empty(x.shape[0], spec.features), x.new_empty(x.shape[0], 3, spec.features)
    levels = _level_tensor(spec, x.device)
    name = f"pf_hash_jacobian_forward_{_cpu.suffix_of(x)}"
    over = x.shape[0] * spec.levels
    _native.call(name, x, x.shape[0], table, levels, spec.levels, spec.channels, features, jacobian, over=over)
    return features, jacobian


def _jacobian_fake(x: Tensor, table: Tensor, levels: int, *_: int) -> tuple[Tensor, Tensor]:
    width = levels * table.shape[1]
    return x.new_empty(x.shape[0], width), x.new_empty(x.shape[0], 3, width)


def _jacobian_backward(
    grad: Tensor, jacobian_grad: Tensor, x: Tensor, table: Tensor, *rest: int
) -> tuple[Tensor, Tensor]:
    *numbers, need_x, need_table = rest
    return _backward(grad, jacobian_grad, x, table, tuple(numbers), bool(need_x), bool(need_table))


def _jacobian_backward_fake(grad: Tensor, jacobian_grad: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _encode_backward_fake(grad, *rest)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, table, *ctx.numbers = inputs
    ctx.save_for_backward(x, table)


def _autograd(ctx: Any, grad: Tensor, jacobian_grad: Tensor | None = None) -> tuple[Any, ...]:
    x, table = ctx.saved_tensors
    need_x, need_table = ctx.needs_input_grad[:2]
    if jacobian_grad is None:
        x_grad, table_grad = _hash_encode_backward(grad, x, table, *ctx.numbers, need_x, need_table)
    else:
        x_grad, table_grad = _hash_jacobian_backward(grad, jacobian_grad, x, table, *ctx.numbers, need_x, need_table)
    return x_grad if need_x else None, table_grad if need_table else None, None, None, None, None, None


_hash_encode_backward = _library.define(
    f"hash_encode_backward(Tensor grad, Tensor x, Tensor table, {_SPEC}, bool need_x, bool need_table)"
    " -> (Tensor, Tensor)",
    _encode_backward,
    _encode_backward_fake,
)
_hash_jacobian_backward = _library.define(
    f"hash_jacobian_backward(Tensor grad, Tensor jacobian_grad, Tensor x, Tensor table, {_SPEC}, bool need_x,"
    " bool need_table) -> (Tensor, Tensor)",
    _jacobian_backward,
    _jacobian_backward_fake,
)
_hash_encode = _library.define(
    f"hash_encode(Tensor x, Tensor table, {_SPEC}) -> Tensor",
    _encode,
    _encode_fake,
    setup_context=_setup,
    backward=_autograd,
)
_hash_jacobian = _library.define(
    f"hash_jacobian(Tensor x, Tensor table, {_SPEC}) -> (Tensor, Tensor)",
    _jacobian,
    _jacobian_fake,
    setup_context=_setup,
    backward=_autograd,
)
