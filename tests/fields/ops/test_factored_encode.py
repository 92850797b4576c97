"""The factored grid: against the reference, against torch's grid_sample, and its derivatives."""

import math

import pytest
import torch
from helpers.native_levels import SIZES, TOLERANCE, each_level, on_reference, threads, uniform
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.ops.factored_encode import (
    FactoredGridSpec,
    Term,
    factored_encode,
    factored_encode_reference,
)

K_PLANES = FactoredGridSpec(
    terms=(
        Term(factors=("xy", "xz", "yz"), channels=5, resolution=(4, 5, 6)),
        Term(factors=("xy", "xz", "yz"), channels=16, resolution=(9, 8, 7)),
    )
)
TENSOR = FactoredGridSpec(
    terms=tuple(Term(factors=f, channels=c, resolution=(7, 8, 9)) for f, c in ((("xy", "z"), 17), (("xz", "y"), 3)))
)
CP = FactoredGridSpec(terms=(Term(factors=("x", "y", "z"), channels=33, resolution=(2, 30, 11)),))
TRI_PLANES = FactoredGridSpec(terms=tuple(Term(factors=(f,), channels=8, resolution=(6, 6, 6)) for f in ("xy", "yz")))
SPECS = {"k-planes": K_PLANES, "tensor": TENSOR, "cp": CP, "tri-planes": TRI_PLANES}


def make(spec: FactoredGridSpec, n: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions, some outside the unit cube, and parameters, both wanting gradients."""
    x = uniform(n, 3, seed=n, dtype=dtype, low=-0.2, high=1.2)
    parameters = uniform(spec.parameter_count, seed=1, dtype=dtype, low=-1)
    return x.requires_grad_(), parameters.requires_grad_()


def everything(x, parameters, spec, encode=factored_encode):
    """Encoding and gradients."""
    out = encode(x, parameters, spec)
    cotangent = uniform(*out.shape, seed=2, dtype=x.dtype, low=-1)
    return out, *torch.autograd.grad(out, (x, parameters), cotangent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("n", [*SIZES, 5000])
def test_values_and_gradients_equal_the_reference(n, spec, dtype):
    x, parameters = make(spec, n, dtype)
    size = 50 if dtype == torch.float32 else 1  # gradients are sums of up to thousands of products
    limits = {"rtol": size * TOLERANCE[dtype]["rtol"], "atol": size * TOLERANCE[dtype]["atol"]}
    theirs = everything(x, parameters, spec, factored_encode_reference)
    for mine, other in zip(everything(x, parameters, spec), theirs, strict=True):
        torch.testing.assert_close(mine, other, **limits)


def test_fine_planes_lose_nothing_to_rounded_places():
    spec = FactoredGridSpec(terms=(Term(factors=("xy", "z"), channels=2, resolution=(1500, 1500, 1500)),))
    x, parameters = (v.detach() for v in make(spec, 500, torch.float32))
    truth = factored_encode_reference(x.double(), parameters.double(), spec)
    for _level in each_level():
        mine = factored_encode(x, parameters, spec)
        assert (mine - truth).norm() < 1e-6 * truth.norm()


def test_planes_are_read_as_torch_reads_images():
    spec = FactoredGridSpec(terms=(Term(factors=("xz",), channels=4, resolution=(5, 2, 7)),))
    x, parameters = make(spec, 200)
    image = parameters.reshape(7, 5, 4).permute(2, 0, 1)[None]
    at = (x[:, [0, 2]] * 2 - 1)[None, None]
    expected = torch.nn.functional.grid_sample(image, at, padding_mode="border", align_corners=True)[0, :, 0].T
    torch.testing.assert_close(factored_encode(x, parameters, spec), expected)


def test_terms_lie_side_by_side_and_are_products():
    x, parameters = make(TENSOR, 40)
    factors = TENSOR.factors()
    singles = []
    for factor in factors:
        name = "xyz"[factor.axis_a] + ("xyz"[factor.axis_b] if factor.axis_b >= 0 else "")
        alone = FactoredGridSpec(terms=(Term(factors=(name,), channels=factor.channels, resolution=(7, 8, 9)),))
        values = parameters[factor.first : factor.first + math.prod(factor.shape)]
        singles.append(factored_encode(x, values, alone))
    expected = torch.cat([singles[0] * singles[1], singles[2] * singles[3]], 1)
    torch.testing.assert_close(factored_encode(x, parameters, TENSOR), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 20), st.floats(-1, 2))
def test_constant_texels_give_constant_products(width, height, channels, value):
    spec = FactoredGridSpec(terms=(Term(factors=("xy", "z"), channels=channels, resolution=(width, height, 3)),))
    parameters = torch.full((spec.parameter_count,), value, dtype=torch.float64)
    expected = torch.full((50, channels), value * value, dtype=torch.float64)
    torch.testing.assert_close(factored_encode(uniform(50, 3, low=-1, high=2), parameters, spec), expected)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_gradcheck(spec):
    x, parameters = make(spec, 4)
    x = (x.detach() * 0.6 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, p: factored_encode(x, p, spec), (x, parameters))


def test_gradients_only_where_they_are_wanted():
    x, parameters = make(TENSOR, 100)
    both = everything(x, parameters, TENSOR)[1:]
    cotangent = uniform(100, 20, seed=2, low=-1)
    alone = factored_encode(x, parameters.detach(), TENSOR), factored_encode(x.detach(), parameters, TENSOR)
    for out, leaf, expected in zip(alone, (x, parameters), both, strict=True):
        assert torch.equal(torch.autograd.grad(out, leaf, cotangent)[0], expected)


def test_positions_outside_are_taken_at_the_border_and_have_no_slope_there():
    x = torch.tensor([[-3.0, 0.5, 7.0], [math.nan, 0.5, math.inf]], dtype=torch.float64).requires_grad_()
    _, parameters = make(K_PLANES, 1)
    out = factored_encode(x, parameters, K_PLANES)
    border = torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.float64).expand(2, 3)
    torch.testing.assert_close(out, factored_encode(border, parameters, K_PLANES))
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert (slope[:, [0, 2]] == 0).all()
    assert (slope[:, 1] != 0).all()


def test_answers_without_the_native_library():
    x, parameters = make(K_PLANES, 50)
    native = everything(x, parameters, K_PLANES)
    with on_reference():
        for mine, theirs in zip(native, everything(x, parameters, K_PLANES), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_levels_of_the_native_library_agree():
    x, parameters = make(K_PLANES, 1000, torch.float32)
    first = None
    for _level in each_level():
        found = everything(x, parameters, K_PLANES)
        first = first or found
        for a, b in zip(found, first, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_results_are_bit_equal_on_one_and_two_threads():
    x, parameters = make(TENSOR, 7000, torch.float32)
    results = []
    for count in (1, 2):
        with threads(count):
            results.append(everything(x, parameters, TENSOR))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_opcheck():
    x, parameters = make(TENSOR, 5)
    layout = [number for factor in TENSOR.factors() for number in factor]
    torch.library.opcheck(torch.ops.polyfield.factored_encode.default, (x, parameters, layout))
    given = (uniform(5, 20), x.detach(), parameters.detach(), layout, True, True)
    torch.library.opcheck(torch.ops.polyfield.factored_encode_backward.default, given)


def test_compiles_into_one_graph():
    x, parameters = make(TENSOR, 5)
    f = lambda x, p: factored_encode(x, p, TENSOR).square().sum()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    mine, theirs = (torch.autograd.grad(g(x, parameters), (x, parameters)) for g in (compiled, f))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_error_texts():
    x, parameters = make(TENSOR, 4)
    with pytest.raises(ShapeError, match=r"x must be \(N, 3\) float32 or float64; got \(4,\) torch.float64"):
        factored_encode(x[:, 0], parameters, TENSOR)
    with pytest.raises(ShapeError, match=r"parameters must be \(\d+,\) torch.float64 for this spec; got \(7,\)"):
        factored_encode(x, parameters[:7], TENSOR)
    with pytest.raises(ConfigError, match=r"factors must be 1 to 3 of xy, xz, yz, x, y, z; got \('yx',\)"):
        Term(factors=("yx",), channels=1, resolution=(2, 2, 2))
    with pytest.raises(ConfigError, match="channels must be 1 to 256; got 0"):
        Term(factors=("xy",), channels=0, resolution=(2, 2, 2))
    with pytest.raises(ConfigError, match="resolution must be three numbers of texels from 2 to 16384; got"):
        Term(factors=("xy",), channels=1, resolution=(2, 1, 2))
    with pytest.raises(ConfigError, match=r"fewer than 2\^31 values; this one asks for"):
        FactoredGridSpec(terms=(Term(factors=("xy",), channels=256, resolution=(16384, 16384, 2)),))
    with pytest.raises(ConfigError, match="at least one term"):
        FactoredGridSpec(terms=())
