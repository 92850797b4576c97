"""Modulated normalisation: against the reference, against torch's layer_norm, and its derivatives."""

import math

import pytest
import torch
from helpers.native_levels import SIZES, TOLERANCE, each_level, on_reference, threads, uniform

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.ops.modulate import modulate, modulate_reference

CHANNELS = (1, 7, 8, 256, 257)
# A value rounded to bfloat16 on either side of a tie is 2^-8 of itself off; gradients are of values so rounded.
LIMITS = {**TOLERANCE, torch.bfloat16: {"rtol": 2**-7, "atol": 1e-4}}


def make(n, channels, dtype=torch.float64):
    """z of a mean beside 0, scales and shifts, wanting gradients."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    z = uniform(n, channels, seed=n, dtype=dtype, low=-1, high=3)
    scales, shifts = (uniform(n, seed=k, dtype=wide, low=-1) for k in (1, 2))
    return z.requires_grad_(), scales.requires_grad_(), shifts.requires_grad_()


def everything(z, scales, shifts, relu, f=modulate):
    """Values and gradients."""
    y = f(z, scales, shifts, relu=relu)
    cotangent = uniform(*y.shape, seed=3, dtype=y.dtype, low=-1)
    return y, *torch.autograd.grad(y, (z, scales, shifts), cotangent)


def composed(z, scales, shifts, *, relu):
    """What the operator replaces."""
    y = torch.nn.functional.layer_norm(z, z.shape[1:])
    y = scales[:, None] * y + shifts[:, None]
    return torch.relu(y) if relu else y


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("n", SIZES)
def test_values_and_gradients_equal_the_reference(n, channels, dtype, relu):
    given = make(n, channels, dtype)
    # Without variance 1 / deviation is 316, and so many times larger is what rounding leaves of a difference.
    size = 1 if dtype == torch.bfloat16 else 1e3 if channels == 1 else 20
    limits = {key: size * value for key, value in LIMITS[dtype].items()}
    theirs = everything(*given, relu, modulate_reference)
    for mine, other in zip(everything(*given, relu), theirs, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, **limits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_layer_norm_scaled_and_shifted(dtype):
    given = make(33, 256, dtype)
    for mine, theirs in zip(everything(*given, True), everything(*given, True, composed), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_float32_rounded_once():
    z, scales, shifts = make(100, 256, torch.bfloat16)
    exact = modulate(z.float(), scales, shifts, relu=False)
    mine = modulate(z, scales, shifts, relu=False)
    assert torch.equal(mine, exact.bfloat16())


def test_rows_far_from_zero_keep_their_variance():
    z = (1e4 + uniform(9, 256, dtype=torch.float32)).requires_grad_()
    _, scales, shifts = make(9, 256, torch.float32)
    mine = modulate(z, scales, shifts, relu=False)
    theirs = modulate_reference(z.double(), scales.double(), shifts.double(), relu=False)
    torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=1e-2)  # 256 sums near 1e4 round the mean by 1e-3


def test_equal_channels_become_the_shift():
    scales, shifts = torch.tensor([3.0, -2.0]), torch.tensor([0.5, -0.5])
    y = modulate(torch.full((2, 50), 0.25), scales, shifts, relu=False)
    assert torch.equal(y, shifts[:, None].expand(2, 50))
    assert torch.equal(modulate(torch.full((2, 50), 0.25), scales, shifts, relu=True), y.clamp(min=0))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("channels", [2, 7, 19])
def test_gradcheck(channels, relu):
    assert torch.autograd.gradcheck(lambda *given: modulate(*given, relu=relu), make(4, channels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_row(bad, dtype):
    clean = make(40, 37, dtype)
    z, scales, shifts = (t.detach().clone() for t in clean)
    z[7, 35] = z[8, 2] = scales[21] = bad
    dirty = z.requires_grad_(), scales.requires_grad_(), shifts.requires_grad_()
    rows = torch.tensor([r not in (7, 8, 21) for r in range(40)])
    for relu in (True, False):
        spoilt = everything(*dirty, relu)
        for mine, theirs in zip(spoilt, everything(*clean, relu), strict=True):
            assert torch.equal(mine[rows], theirs[rows])
        assert spoilt[0][7:9].isnan().all()
        assert not spoilt[0][21].isfinite().any() or relu


def test_bfloat16_is_rounded_to_the_nearest_even():
    shifts = torch.tensor([3.4e38, -3.3e38, -0.0, math.inf, 1.0 + 2**-8, 1.0 + 3 * 2**-8])
    zeros = torch.zeros(6, 33, dtype=torch.bfloat16)
    y = modulate(zeros, torch.ones(6), shifts, relu=False)
    assert torch.equal(y, shifts.bfloat16()[:, None].expand(6, 33))


def test_takes_strided_tensors():
    z, scales, shifts = make(32, 16, torch.float32)
    both = torch.stack([scales, shifts], 1).detach()
    sideways = z.detach().T.contiguous().T
    for relu in (True, False):
        mine = modulate(sideways, both[:, 0], both[:, 1], relu=relu)
        assert torch.equal(mine, modulate(z, scales, shifts, relu=relu))


def test_gradients_only_where_they_are_wanted():
    given = make(33, 20)
    all_of_them = everything(*given, True)[1:]
    cotangent = uniform(33, 20, seed=3, low=-1)
    for k in range(3):
        alone = [t if i == k else t.detach() for i, t in enumerate(given)]
        (mine,) = torch.autograd.grad(modulate(*alone, relu=True), alone[k], cotangent)
        assert torch.equal(mine, all_of_them[k])


def test_autocast_leaves_it_alone():
    z, scales, shifts = make(40, 32, torch.bfloat16)
    with torch.autocast(z.device.type, torch.bfloat16):
        inside = everything(z, scales, shifts, True)
    for a, b in zip(inside, everything(z, scales, shifts, True), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_answers_without_the_native_library(dtype):
    given = make(50, 19, dtype)
    native = everything(*given, True)
    with on_reference():
        for mine, theirs in zip(native, everything(*given, True), strict=True):
            torch.testing.assert_close(mine, theirs, **LIMITS[dtype] if dtype == torch.bfloat16 else {})


def test_levels_of_the_native_library_agree():
    given = make(1000, 257, torch.bfloat16)
    first = None
    for _level in each_level():
        found = everything(*given, True)
        first = first or found
        for a, b in zip(found, first, strict=True):
            torch.testing.assert_close(a, b, **LIMITS[torch.bfloat16])


def test_results_are_bit_equal_on_one_and_two_threads():
    given = make(1000, 256, torch.float32)
    results = []
    for count in (1, 2):
        with threads(count):
            results.append(everything(*given, True))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck(dtype):
    z, scales, shifts = make(5, 9, dtype)
    torch.library.opcheck(torch.ops.polyfield.modulate.default, (z, scales, shifts, True))
    plain = [t.detach() for t in (z, scales, shifts)]
    moments = torch.ones(5, 2, dtype=scales.dtype)
    torch.library.opcheck(torch.ops.polyfield.modulate_backward.default, (plain[0], *plain, True, moments))


def test_compiles_into_one_graph():
    given = make(5, 9)
    f = lambda *given: modulate(*given, relu=True).square().sum()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    mine, theirs = (torch.autograd.grad(g(*given), given) for g in (compiled, f))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_error_texts():
    z, scales, shifts = make(4, 3, torch.bfloat16)
    with pytest.raises(
        ShapeError, match=r"z must be \(N, C\) float32, float64 or bfloat16 with C at least 1; got \(4,\)"
    ):
        modulate(z[:, 0], scales, shifts, relu=True)
    with pytest.raises(ShapeError, match=r"with C at least 1; got \(4, 0\) torch.bfloat16"):
        modulate(z[:, :0], scales, shifts, relu=True)
    with pytest.raises(ShapeError, match=r"z must be .* got \(4, 3\) torch.float16"):
        modulate(z.half(), scales, shifts, relu=True)
    with pytest.raises(ShapeError, match=r"scales must be \(4,\) torch.float32 for this z; got \(4,\) torch.bfloat16"):
        modulate(z, scales.bfloat16(), shifts, relu=True)
    with pytest.raises(ShapeError, match=r"shifts must be \(4,\) torch.float64 for this z; got \(3,\) torch.float64"):
        modulate(z.double(), scales.double(), shifts.double()[:3], relu=True)
    again = make(4, 3)
    (first,) = torch.autograd.grad(modulate(*again, relu=False).square().sum(), again[0], create_graph=True)
    with pytest.raises(ConfigError, match="first-order gradients only"):
        first.sum().backward()
