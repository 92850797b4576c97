"""The frequency encoding: against the reference, against exact angles, and its derivatives."""

import math

import pytest
import torch
from helpers.native_levels import SIZES, TOLERANCE, each_level, on_reference, threads, uniform
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.ops.frequency_encode import (
    frequency_encode,
    frequency_encode_reference,
    frequency_features,
    frequency_value_and_jacobian,
    frequency_value_and_jacobian_reference,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("inputs", "octaves", "include"), [(3, 10, True), (1, 1, False), (2, 0, True), (5, 4, True)])
@pytest.mark.parametrize("n", SIZES)
def test_values_and_gradients_equal_the_reference(n, inputs, octaves, include, dtype):
    x = uniform(n, inputs, seed=n, dtype=dtype, low=-3, high=3).requires_grad_()
    ours = frequency_value_and_jacobian(x, octaves, include)
    theirs = frequency_value_and_jacobian_reference(x, octaves, include)
    assert torch.equal(ours[0], frequency_encode(x, octaves, include))
    assert ours[0].shape == (n, frequency_features(inputs, octaves, include))
    largest = math.pi * 2.0 ** max(octaves - 1, 0)
    for mine, other, size in zip(ours, theirs, (1, largest), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=size * 4 * torch.finfo(dtype).eps)
    cotangents = [uniform(*t.shape, seed=k, dtype=dtype, low=-1) for k, t in enumerate(ours)]
    if octaves:  # else the reference's Jacobian is a constant
        (mine,), (other,) = (torch.autograd.grad(y, x, cotangents) for y in (ours, theirs))
        torch.testing.assert_close(mine, other, rtol=0, atol=largest**2 * 16 * torch.finfo(dtype).eps)


def test_columns_are_input_then_sines_and_cosines_per_octave():
    x = torch.tensor([[0.25, -0.5]], dtype=torch.float64)
    r = math.sqrt(0.5)
    expected = [0.25, -0.5, r, -1, r, 0, 1, 0, 0, -1]
    torch.testing.assert_close(frequency_encode(x, 2)[0], torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(frequency_encode(x, 2, False)[0], torch.tensor(expected[2:], dtype=torch.float64))


def test_float_is_accurate_at_every_octave():
    x = uniform(500, 3, dtype=torch.float32, low=-1)
    exact = frequency_encode_reference(x.double(), 24, False)  # angles reduced exactly, in double
    # Half an ulp of an angle near pi (1.2e-7), the rounding of pi in it (up to 0.9e-7) and of the sine (0.3e-7).
    assert (frequency_encode(x, 24, False).double() - exact).abs().max() < 2.5e-7


def test_double_equals_torch_sines():
    x = uniform(500, 1, low=-1)
    encoded = frequency_encode(x, 1, False)
    torch.testing.assert_close(encoded, torch.cat([(math.pi * x).sin(), (math.pi * x).cos()], 1), rtol=0, atol=5e-16)


@settings(max_examples=50, deadline=None)
@given(st.floats(-100, 100), st.integers(1, 12))
def test_sine_and_cosine_lie_on_the_unit_circle_and_have_period_two(value, octaves):
    x = torch.tensor([[value]], dtype=torch.float64)
    encoded = frequency_encode(x, octaves, False).reshape(octaves, 2)
    torch.testing.assert_close(encoded.square().sum(1), torch.ones(octaves, dtype=torch.float64))
    torch.testing.assert_close(frequency_encode(x + 2, octaves, False).reshape(octaves, 2), encoded, rtol=0, atol=1e-8)


def test_doubling_formula_links_octaves():
    encoded = frequency_encode(uniform(100, 1, low=-1), 8, False).reshape(100, 8, 2)
    sine, cosine = encoded.unbind(-1)
    torch.testing.assert_close(sine[:, 1:], 2 * sine[:, :-1] * cosine[:, :-1])
    torch.testing.assert_close(cosine[:, 1:], cosine[:, :-1] ** 2 - sine[:, :-1] ** 2)


def test_gradcheck():
    x = uniform(4, 3, low=-1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: frequency_encode(x, 3), (x,))
    assert torch.autograd.gradcheck(lambda x: frequency_value_and_jacobian(x, 3, False), (x,))


def test_operators_answer_without_the_native_library():
    x = uniform(20, 3, low=-1).requires_grad_()

    def everything():
        value, jacobian = frequency_value_and_jacobian(x, 4)
        return (
            value,
            jacobian,
            *torch.autograd.grad((frequency_encode(x, 4) * value).sum() + jacobian.square().sum(), x),
        )

    native = everything()
    with on_reference():
        for mine, theirs in zip(native, everything(), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_levels_of_the_native_library_agree():
    x, first = uniform(1000, 3, dtype=torch.float32, low=-1), None
    for _level in each_level():
        encoded = frequency_encode(x, 10)
        first = encoded if first is None else first
        torch.testing.assert_close(encoded, first, **TOLERANCE[torch.float32])


def test_opcheck():
    x = uniform(5, 3).requires_grad_()
    torch.library.opcheck(torch.ops.polyfield.frequency_encode.default, (x, 2, True))
    torch.library.opcheck(torch.ops.polyfield.frequency_jacobian.default, (x, 2, True))
    backward = torch.ops.polyfield.frequency_encode_backward.default
    grad = torch.ones(5, 15, dtype=torch.float64)
    torch.library.opcheck(backward, (grad, None, x.detach(), 2, True))
    torch.library.opcheck(backward, (grad, torch.ones(5, 3, 15, dtype=torch.float64), x.detach(), 2, True))


def test_compiles_into_one_graph():
    x = uniform(5, 3).requires_grad_()
    f = lambda x: frequency_encode(x, 4).sum() + frequency_value_and_jacobian(x, 2)[1].square().sum()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    (mine,), (theirs,) = (torch.autograd.grad(g(x), x) for g in (compiled, f))
    torch.testing.assert_close(mine, theirs)


def test_results_are_bit_equal_on_one_and_two_threads():
    x = uniform(5000, 3, dtype=torch.float32).requires_grad_()
    results = []
    for count in (1, 2):
        with threads(count):
            value, jacobian = frequency_value_and_jacobian(x, 6)
            results.append((value, jacobian, *torch.autograd.grad(jacobian.sum() + value.sum(), x)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_nan_and_infinity_become_nan_in_their_own_columns():
    x = torch.tensor([[0.5, math.nan, math.inf]])
    encoded = frequency_encode(x, 3)[0, 3:].reshape(6, 3)
    assert encoded[:, 0].isfinite().all()
    assert encoded[:, 1:].isnan().all()


def test_error_texts():
    with pytest.raises(ShapeError, match=r"x must be \(N, D\) with D at least 1; got \(4,\)"):
        frequency_encode(torch.zeros(4), 2)
    with pytest.raises(ShapeError, match=r"x must be float32 or float64; got torch.float16"):
        frequency_encode(torch.zeros(4, 3, dtype=torch.float16), 2)
    with pytest.raises(ConfigError, match=r"octaves must be 0 to 32; got 33"):
        frequency_encode(torch.zeros(4, 3), 33)
    with pytest.raises(ConfigError, match=r"nothing is left to encode"):
        frequency_encode(torch.zeros(4, 3), 0, include_input=False)
