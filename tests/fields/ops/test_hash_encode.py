"""The hash grid encoding: against its reference, its derivatives, and what a blend of lattice entries must satisfy."""

import math

import pytest
import torch
from helpers.native_levels import SIZES, TOLERANCE, each_level, on_reference, threads, uniform
from helpers.packed_rays import generator
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.ops import hash_encode as module
from polyfield.fields.ops.hash_encode import (
    HashGridSpec,
    hash_encode,
    hash_encode_reference,
    hash_value_and_jacobian,
    hash_value_and_jacobian_reference,
)

SMALL = HashGridSpec(levels=5, channels=2, base_resolution=4, finest_resolution=64, log2_table_size=10)
FLAT = HashGridSpec(levels=6, channels=2, base_resolution=4, finest_resolution=99, log2_table_size=10, dimensions=2)


def spec_with(channels: int, levels: int = 5) -> HashGridSpec:
    return HashGridSpec(levels=levels, channels=channels, base_resolution=4, finest_resolution=64, log2_table_size=10)


def table_of(spec: HashGridSpec, dtype: torch.dtype, seed: int = 1) -> torch.Tensor:
    return uniform(spec.entries, spec.channels, seed=seed, dtype=dtype, low=-1)


# --- the rule of levels


def test_default_levels_are_those_of_instant_ngp():
    table = HashGridSpec().level_table()
    assert [level.hashed for level in table] == [False] * 5 + [True] * 11
    assert table[0].scale == 15
    assert table[-1].scale == pytest.approx(2047, abs=1e-3)
    growth = (table[9].scale + 1) / (table[8].scale + 1)
    assert growth == pytest.approx(math.exp(math.log(128) / 15), rel=1e-6)
    assert HashGridSpec().entries == table[-1].offset + table[-1].size
    assert HashGridSpec().features == 32


def test_levels_follow_each_other_without_gaps_and_in_multiples_of_16():
    for spec in (HashGridSpec(), SMALL, FLAT, spec_with(1, levels=1)):
        offset = 0
        for level in spec.level_table():
            assert level.offset == offset
            assert level.size % 16 == 0
            assert level.size >= level.resolution**spec.dimensions or level.hashed
            offset += level.size


def test_level_tensor_holds_the_level_table_exactly():
    for spec in (SMALL, FLAT):
        for row, level in zip(spec.level_tensor().tolist(), spec.level_table(), strict=True):
            assert row == [level.scale, level.resolution, level.offset, level.size, level.hashed + 2 * level.flat]


def test_a_flat_grid_is_the_bilinear_blend_of_its_lattices():
    """Against `grid_sample` on the dense levels; hashed ones below against the reference."""
    x, table = uniform(200, 3, seed=1, dtype=torch.float32), table_of(FLAT, torch.float32)
    found = hash_encode(x, table, FLAT)
    dense = [(k, level) for k, level in enumerate(FLAT.level_table()) if not level.hashed]
    assert 2 <= len(dense) < FLAT.levels
    for k, level in dense:
        rows = table[level.offset : level.offset + level.resolution**2]
        lattice = rows.reshape(1, level.resolution, level.resolution, 2).movedim(3, 1)
        where = 2 * (x[:, :2] * level.scale + 0.5) / (level.resolution - 1) - 1
        expected = torch.nn.functional.grid_sample(lattice, where[None, None], align_corners=True)[0, :, 0].T
        torch.testing.assert_close(found[:, 2 * k : 2 * k + 2], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n", SIZES)
def test_a_flat_grid_equals_the_reference_and_knows_no_z(n):
    x = uniform(n, 3, seed=n, dtype=torch.float32, low=-0.1, high=1.1).requires_grad_()
    table = table_of(FLAT, torch.float32).requires_grad_()
    ours, jacobian = hash_value_and_jacobian(x, table, FLAT)
    value, expected = hash_value_and_jacobian_reference(x, table, FLAT)
    torch.testing.assert_close(ours, value, **TOLERANCE[torch.float32])
    rates = {"rtol": TOLERANCE[torch.float32]["rtol"], "atol": 100 * TOLERANCE[torch.float32]["atol"]}  # of scale 98
    torch.testing.assert_close(jacobian[:, :2], expected[:, :2], **rates)
    assert jacobian[:, 2].detach().abs().sum() < 1e-5 * max(1.0, float(jacobian.detach().abs().sum()))
    elsewhere = torch.cat([x[:, :2], torch.full((n, 1), 0.9)], 1)
    torch.testing.assert_close(hash_encode(elsewhere, table, FLAT), hash_encode(x, table, FLAT), rtol=1e-5, atol=1e-6)
    cotangent = uniform(*ours.shape, seed=5, dtype=torch.float32, low=-1)
    mine = torch.autograd.grad(hash_encode(x, table, FLAT), (x, table), cotangent)
    theirs = torch.autograd.grad(hash_encode_reference(x, table, FLAT), (x, table), cotangent)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, **rates)


# --- against the reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 2, 4, 8])
@pytest.mark.parametrize("n", SIZES)
def test_value_and_gradients_equal_the_reference(n, channels, dtype):
    spec = spec_with(channels, levels=9 if n == 33 else 5)
    x = uniform(n, 3, seed=n, dtype=dtype, low=-0.1, high=1.1).requires_grad_()
    table = table_of(spec, dtype).requires_grad_()
    ours, reference = hash_encode(x, table, spec), hash_encode_reference(x, table, spec)
    torch.testing.assert_close(ours, reference, **TOLERANCE[dtype])
    cotangent = uniform(*ours.shape, seed=5, dtype=dtype, low=-1)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (x, table), cotangent),
        torch.autograd.grad(reference, (x, table), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=TOLERANCE[dtype]["rtol"], atol=100 * TOLERANCE[dtype]["atol"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 2, 4, 8])
@pytest.mark.parametrize("n", SIZES)
def test_jacobian_and_gradients_equal_the_reference(n, channels, dtype):
    spec = spec_with(channels)
    x = uniform(n, 3, seed=n, dtype=dtype, low=-0.1, high=1.1).requires_grad_()
    table = table_of(spec, dtype).requires_grad_()
    ours, reference = hash_value_and_jacobian(x, table, spec), hash_value_and_jacobian_reference(x, table, spec)
    cotangents = [uniform(*t.shape, seed=k, dtype=dtype, low=-1) for k, t in enumerate(ours)]
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=TOLERANCE[dtype]["rtol"], atol=100 * TOLERANCE[dtype]["atol"])
    for mine, theirs in zip(
        torch.autograd.grad(ours, (x, table), cotangents),
        torch.autograd.grad(reference, (x, table), cotangents),
        strict=True,
    ):
        # Sums of terms up to scale^2 = 4096.
        torch.testing.assert_close(mine, theirs, rtol=TOLERANCE[dtype]["rtol"], atol=20000 * TOLERANCE[dtype]["atol"])


def test_the_default_grid_equals_the_reference_over_several_runs():
    spec = HashGridSpec()
    x, table = uniform(5000, 3, dtype=torch.float32), table_of(spec, torch.float32).requires_grad_()
    ours, reference = hash_encode(x, table, spec), hash_encode_reference(x, table, spec)
    torch.testing.assert_close(ours, reference, **TOLERANCE[torch.float32])
    cotangent = uniform(*ours.shape, seed=2, dtype=torch.float32, low=-1)
    (mine,), (theirs,) = (torch.autograd.grad(y, table, cotangent) for y in (ours, reference))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)


def test_batches_beyond_the_scratch_equal_one_batch():
    spec = HashGridSpec(levels=16, channels=8, base_resolution=4, finest_resolution=8, log2_table_size=8)
    n = (1 << 23) // spec.features + 77  # one sample more than the level-major scratch holds, and then some
    x, table = uniform(n, 3, dtype=torch.float32), table_of(spec, torch.float32).requires_grad_()
    whole = hash_encode(x, table, spec)
    assert torch.equal(whole[-100:], hash_encode(x[-100:], table, spec))
    cotangent = torch.zeros_like(whole)
    cotangent[-100:] = 1
    (gradient,) = torch.autograd.grad(whole, table, cotangent)
    (tail,) = torch.autograd.grad(hash_encode(x[-100:], table, spec), table, cotangent[-100:])
    torch.testing.assert_close(gradient, tail, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4, 8])
@pytest.mark.parametrize("n", SIZES)
def test_a_float16_table_reads_as_its_float32_copy(n, channels):
    spec = spec_with(channels)
    x = uniform(n, 3, seed=2, dtype=torch.float32).requires_grad_()
    table = table_of(spec, torch.float32)
    table[::7] *= 1e-6  # subnormal in float16
    half = table.half().requires_grad_()
    copy = half.detach().float().requires_grad_()
    mine, theirs = hash_encode(x, half, spec), hash_encode(x, copy, spec)
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(mine, hash_encode_reference(x, half, spec), rtol=1e-5, atol=1e-6)
    weights = uniform(n, spec.features, seed=3, dtype=torch.float32)
    grads = [torch.autograd.grad((y * weights).sum(), [x, t]) for y, t in ((mine, half), (theirs, copy))]
    torch.testing.assert_close(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1].half())


def test_every_bit_pattern_of_float16_is_read_right():
    # One level of one channel whose corners all hold the same entry reads that entry; NaN stays NaN.
    spec = HashGridSpec(levels=1, channels=8, base_resolution=2, finest_resolution=2, log2_table_size=6)
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16).reshape(-1, 8)
    x = torch.full((1, 3), 0.25)
    for rows in values[torch.randperm(len(values), generator=generator(0))[:200]]:
        read = hash_encode(x, rows.expand(spec.entries, 8).contiguous(), spec)[0]
        finite = rows.isfinite()
        assert torch.equal(read[finite], rows[finite].float())
        assert not read[~finite].isfinite().any()


def test_operators_answer_without_the_native_library():
    x, table = uniform(40, 3).requires_grad_(), table_of(SMALL, torch.float64).requires_grad_()

    def everything():
        value, (features, jacobian) = hash_encode(x, table, SMALL), hash_value_and_jacobian(x, table, SMALL)
        loss = (value * features).sum() + jacobian.square().sum()
        return value, jacobian, *torch.autograd.grad(loss, (x, table))

    native = everything()
    with on_reference():
        for mine, theirs in zip(native, everything(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-8)


# --- derivatives


def inside_cells(n: int, spec: HashGridSpec) -> torch.Tensor:
    """Positions at least 1e-3 of a cell away from every cell face of every level, where derivatives jump."""
    x = uniform(400 * n, 3, seed=9, low=0.02, high=0.98)
    clear = torch.ones(len(x), dtype=torch.bool)
    for level in spec.level_table():
        fraction = (x * level.scale + 0.5).remainder(1)
        clear &= ((fraction > 1e-3) & (fraction < 1 - 1e-3)).all(1)
    return x[clear][:n].clone()


@pytest.mark.parametrize("channels", [1, 2])
def test_gradcheck_of_value(channels):
    spec = HashGridSpec(levels=3, channels=channels, base_resolution=2, finest_resolution=8, log2_table_size=5)
    x, table = inside_cells(5, spec).requires_grad_(), table_of(spec, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: hash_encode(x, t, spec), (x, table), eps=1e-6)


def test_gradcheck_of_value_and_jacobian():
    spec = HashGridSpec(levels=3, channels=2, base_resolution=2, finest_resolution=8, log2_table_size=5)
    x, table = inside_cells(4, spec).requires_grad_(), table_of(spec, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: hash_value_and_jacobian(x, t, spec), (x, table), eps=1e-6)


def test_jacobian_is_the_derivative_of_the_value():
    x, table = inside_cells(20, SMALL), table_of(SMALL, torch.float64)
    value, jacobian = hash_value_and_jacobian(x, table, SMALL)
    assert torch.equal(value, hash_encode(x, table, SMALL))
    for axis in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[axis] = 1e-6
        slope = (hash_encode(x + step, table, SMALL) - hash_encode(x - step, table, SMALL)) / 2e-6
        torch.testing.assert_close(jacobian[:, axis], slope, rtol=1e-6, atol=1e-6)


def test_only_what_needs_a_gradient_gets_one():
    x, table = uniform(10, 3).requires_grad_(), table_of(SMALL, torch.float64)
    hash_encode(x, table, SMALL).sum().backward()
    assert x.grad is not None
    assert table.grad is None


def test_gradients_do_not_depend_on_the_memory_layout():
    x, table = uniform(3, 50).T, table_of(SMALL, torch.float64).requires_grad_()
    assert not x.is_contiguous()  # torch sums a strided batch in another order
    value = hash_encode(x, table, SMALL)
    torch.testing.assert_close(value, hash_encode(x.contiguous(), table, SMALL), rtol=1e-13, atol=1e-14)
    (expanded,) = torch.autograd.grad(value.sum(), table)  # its cotangent has stride 0
    (dense,) = torch.autograd.grad(hash_encode(x, table, SMALL), table, torch.ones_like(value))
    torch.testing.assert_close(expanded, dense, rtol=1e-13, atol=1e-14)


# --- torch's own rules


@pytest.mark.parametrize("name", ["hash_encode", "hash_jacobian"])
def test_opcheck(name):
    spec = HashGridSpec(levels=2, channels=2, base_resolution=2, finest_resolution=4, log2_table_size=5)
    x, table = uniform(5, 3).requires_grad_(), table_of(spec, torch.float64).requires_grad_()
    numbers = spec.numbers
    torch.library.opcheck(getattr(torch.ops.polyfield, name).default, (x, table, *numbers))
    features = torch.ones(5, spec.features, dtype=torch.float64)
    grads = (features,) if name == "hash_encode" else (features, torch.ones(5, 3, spec.features, dtype=torch.float64))
    backward = getattr(torch.ops.polyfield, f"{name}_backward").default
    torch.library.opcheck(backward, (*grads, x.detach(), table.detach(), *numbers, True, True))
    if name == "hash_encode":
        rounded = (x.detach().float().requires_grad_(), table.detach().half().requires_grad_())
        torch.library.opcheck(getattr(torch.ops.polyfield, name).default, (*rounded, *numbers))


def test_compiles_into_one_graph():
    x, table = uniform(40, 3), table_of(SMALL, torch.float64).requires_grad_()

    def loss(x, table):
        features, jacobian = hash_value_and_jacobian(x, table, SMALL)
        return (hash_encode(x, table, SMALL) * features).sum() + jacobian.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (mine,), (theirs,) = (torch.autograd.grad(f(x, table), table) for f in (compiled, loss))
    torch.testing.assert_close(mine, theirs)


# --- properties


def test_results_are_bit_equal_on_one_and_two_threads():
    spec = HashGridSpec(levels=6, base_resolution=4, finest_resolution=64, log2_table_size=12)
    x = uniform(5000, 3, dtype=torch.float32).requires_grad_()
    table = table_of(spec, torch.float32).requires_grad_()

    def everything():
        value, (features, jacobian) = hash_encode(x, table, spec), hash_value_and_jacobian(x, table, spec)
        first = torch.autograd.grad(value.square().sum(), (x, table))
        return value, features, jacobian, *first, *torch.autograd.grad(jacobian.square().sum(), (x, table))

    with threads(1):
        one = everything()
    with threads(2):
        two = everything()
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_levels_of_the_native_library_agree():
    x = uniform(1000, 3, dtype=torch.float32).requires_grad_()
    spec = HashGridSpec(log2_table_size=12)
    table = table_of(spec, torch.float32).requires_grad_()
    first = None
    for _level in each_level():
        value = hash_encode(x, table, spec)
        results = (value, *torch.autograd.grad(value.square().sum(), (x, table)))
        first = first or results
        for mine, theirs in zip(results, first, strict=True):
            scale = float(theirs.detach().abs().max())
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-6 * scale)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-2, 3, width=32), min_size=3, max_size=3), st.integers(0, 3))
def test_a_constant_table_encodes_to_the_constant(position, log2_channels):
    spec = spec_with(1 << log2_channels)
    x = torch.tensor([position], dtype=torch.float32)
    table = torch.full((spec.entries, spec.channels), 0.7)
    features, jacobian = hash_value_and_jacobian(x, table, spec)
    torch.testing.assert_close(features, torch.full_like(features, 0.7))
    assert jacobian.abs().max() < 1e-4
    (gradient,) = torch.autograd.grad(hash_encode(x, table.requires_grad_(), spec).sum(), table)
    assert gradient.sum().item() == pytest.approx(spec.features, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
    st.integers(2, 500),
    st.integers(1, 500),
    st.integers(4, 20),
)
def test_corners_lie_in_their_level(position, base, more, log2_size):
    spec = HashGridSpec(levels=4, base_resolution=base, finest_resolution=base + more, log2_table_size=log2_size)
    x = torch.tensor([position, [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float32)
    for level in spec.level_table():
        cell = module._cell(x, level)
        assert cell.rows.min() >= level.offset
        assert cell.rows.max() < level.offset + level.size
        torch.testing.assert_close(cell.weight.sum(1), torch.ones(3))


def test_kernels_touch_no_entry_of_another_level():
    x, table = uniform(500, 3, low=-1, high=2), table_of(SMALL, torch.float64).requires_grad_()
    value = hash_encode(x, table, SMALL)
    for number, level in enumerate(SMALL.level_table()):
        columns = value[:, number * SMALL.channels : (number + 1) * SMALL.channels]
        (gradient,) = torch.autograd.grad(columns.sum(), table, retain_graph=True)
        gradient[level.offset : level.offset + level.size] = 0
        assert not gradient.any()


def test_values_are_continuous_across_cells():
    table = table_of(SMALL, torch.float64)
    for level in SMALL.level_table():
        whole = torch.arange(1, int(level.scale), dtype=torch.float64)  # positions in the lattice
        face = (whole - 0.5) / level.scale
        x = torch.stack([face, torch.full_like(face, 0.4), torch.full_like(face, 0.7)], 1)
        step = torch.tensor([1e-9, 0, 0], dtype=torch.float64)
        apart = hash_encode(x + step, table, SMALL) - hash_encode(x - step, table, SMALL)
        assert apart.abs().max() < 1e-6


def test_positions_outside_are_clamped_with_zero_derivative():
    table = table_of(SMALL, torch.float64)
    x = torch.tensor([[1.5, 0.3, -2.0], [0.2, math.inf, -math.inf]], dtype=torch.float64).requires_grad_()
    value, jacobian = hash_value_and_jacobian(x, table, SMALL)
    assert torch.equal(value, hash_encode(x.detach().clamp(0, 1), table, SMALL))
    assert not jacobian[0, 0].any()
    assert not jacobian[0, 2].any()
    assert jacobian[0, 1].any()
    (gradient,) = torch.autograd.grad(hash_encode(x, table, SMALL).sum(), x)
    assert (gradient != 0).tolist() == [[False, True, False], [True, False, False]]


def test_nan_counts_as_zero():
    table = table_of(SMALL, torch.float32)
    x = torch.tensor([[math.nan, 0.3, 0.4], [math.nan] * 3]).requires_grad_()
    value = hash_encode(x, table, SMALL)
    assert torch.equal(value, hash_encode(x.detach().nan_to_num(0), table, SMALL))
    torch.testing.assert_close(value, hash_encode_reference(x, table, SMALL))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient.isfinite().all()
    assert gradient[0, 0] == 0
    assert not gradient[1].any()


# --- errors


def test_error_texts():
    table = table_of(SMALL, torch.float32)
    with pytest.raises(ShapeError, match=r"x must be \(N, 3\) positions in the unit cube; got \(5, 2\)"):
        hash_encode(torch.zeros(5, 2), table, SMALL)
    with pytest.raises(ShapeError, match=r"table must be .*; got \(7, 2\); build it from spec.entries"):
        hash_encode(torch.zeros(5, 3), torch.zeros(7, 2), SMALL)
    with pytest.raises(ShapeError, match=r"or float32 and float16; got torch.float64 and torch.float32"):
        hash_encode(torch.zeros(5, 3).double(), table, SMALL)
    with pytest.raises(ShapeError, match=r"on one device; got meta and cpu"):
        hash_encode(torch.zeros(5, 3, device="meta"), table, SMALL)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"levels": 0}, r"levels must be 1 to 32; got 0"),
        ({"channels": 3}, r"channels must be one of \(1, 2, 4, 8\); got 3"),
        ({"base_resolution": 4096}, r"got 4096 and 2048"),
        ({"log2_table_size": 25}, r"log2_table_size must be 4 to 24; got 25"),
        ({"dimensions": 4}, r"dimensions must be 2 or 3; got 4"),
    ],
)
def test_settings_out_of_range_are_refused(setting, text):
    with pytest.raises(ConfigError, match=text):
        HashGridSpec(**setting)
