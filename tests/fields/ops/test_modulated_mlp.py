"""The fused network of CAM: against the reference and the layers one by one, and its derivatives."""

import math

import pytest
import torch
from helpers.native_levels import SIZES, TOLERANCE, each_level, on_reference, threads, uniform

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.ops import _cpu
from polyfield.fields.ops import modulated_mlp as module
from polyfield.fields.ops.fused_mlp import MlpSpec, fused_mlp, initial_parameters
from polyfield.fields.ops.modulate import modulate
from polyfield.fields.ops.modulated_mlp import modulated_mlp, modulated_mlp_reference

RADIANCE = MlpSpec(inputs=63, outputs=17, width=128, hidden_layers=8, bias=True, skip=4)
IMAGE = MlpSpec(inputs=32, outputs=3, width=256, hidden_layers=3, bias=True, output_activation="sigmoid")
SMALL = MlpSpec(inputs=5, outputs=20, width=16, hidden_layers=2, output_activation="exp", skip=1)
ONE = MlpSpec(inputs=1, outputs=1, width=32, bias=True)
SPECS = {"radiance": RADIANCE, "image": IMAGE, "small": SMALL, "one": ONE}
needs_library = pytest.mark.skipif(_cpu.library() is None, reason="needs the native library")
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def make(spec, n, dtype=torch.float64):
    """x, parameters and moduli, wanting gradients; scales of both signs."""
    x = uniform(n, spec.inputs, seed=n, dtype=dtype, low=-1)
    flat = initial_parameters(spec, torch.Generator().manual_seed(1)).double()
    flat += 0.1 * uniform(spec.parameter_count, seed=2, low=-1)
    moduli = uniform(n, 2, spec.hidden_layers, seed=3, dtype=dtype, low=-1)
    moduli[:, 0] += moduli[:, 0].sign() / 2
    return x.requires_grad_(), flat.to(dtype).requires_grad_(), moduli.requires_grad_()


def everything(given, spec, f=modulated_mlp, **options):
    """Values and gradients of x, parameters and moduli."""
    y = f(*given, spec, **options)
    cotangent = uniform(*y.shape, seed=4, dtype=y.dtype, low=-1)
    return y, *torch.autograd.grad(y, given, cotangent)


def near(mine, theirs, limit):
    """Within `limit` of the norm, tensor by tensor."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(mine, theirs, strict=True)]
    return all(float((a - b).norm()) <= limit * float(b.norm()) for a, b in pairs)


@each_spec
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", SIZES)
def test_values_and_gradients_equal_the_reference(n, dtype, spec):
    given = make(spec, n, dtype)
    mine, theirs = everything(given, spec), everything(given, spec, modulated_mlp_reference)
    assert near(mine, theirs, 1e-5 if dtype == torch.float32 else 1e-12)


@each_spec
def test_bfloat16_is_the_reference_that_rounds(spec):
    """To full precision both are as far: a unit near zero falls on the other side of its ReLU."""
    given = make(spec, 333, torch.float32)
    mine = everything(given, spec, precision="bf16")
    assert near(mine, everything(given, spec, modulated_mlp_reference, precision="bf16"), 1e-2)
    assert not near(mine[:1], everything(given, spec)[:1], 1e-4)


def test_it_is_layers_that_modulate():
    x, flat, moduli = make(IMAGE, 100)
    h, rest = x, flat
    for index, (out, size) in enumerate(IMAGE.layer_shapes):
        weight, bias, rest = rest.split([out * size, out, len(rest) - out * (size + 1)])
        h = torch.nn.functional.linear(h, weight.view(out, size), bias)
        if index < IMAGE.hidden_layers:
            h = modulate(h, moduli[:, 0, index].contiguous(), moduli[:, 1, index].contiguous(), relu=True)
    torch.testing.assert_close(modulated_mlp(x, flat, moduli, IMAGE), h.sigmoid())


@pytest.mark.parametrize("spec", [SMALL, ONE], ids=["small", "one"])
def test_gradcheck(spec):
    assert torch.autograd.gradcheck(lambda *given: modulated_mlp(*given, spec=spec), make(spec, 5), fast_mode=True)


@each_spec
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_kept_changes_nothing(precision, spec):
    given = make(spec, 100, torch.float32)
    with torch.no_grad():
        alone = modulated_mlp(*given, spec=spec, precision=precision)
    assert torch.equal(alone, modulated_mlp(*given, spec=spec, precision=precision))


def test_gradients_only_where_they_are_wanted():
    given = make(RADIANCE, 100)
    _, *all_of_them = everything(given, RADIANCE)
    for k in range(3):
        alone = [t if i == k else t.detach() for i, t in enumerate(given)]
        y = modulated_mlp(*alone, spec=RADIANCE)
        (mine,) = torch.autograd.grad(y, alone[k], uniform(*y.shape, seed=4, low=-1))
        assert torch.equal(mine, all_of_them[k])


@needs_library
@pytest.mark.parametrize("keeping", [modulated_mlp, fused_mlp], ids=["modulated", "wide"])
def test_no_zeros_stand_for_gradients_of_what_is_kept(keeping):
    """They would be as large: 100 MB for 32768 rows."""
    x, flat, moduli = make(IMAGE, 1000, torch.float32)
    y = keeping(x, flat, moduli, IMAGE) if keeping is modulated_mlp else keeping(x, flat, IMAGE)
    with torch.profiler.profile(profile_memory=True) as profile:
        torch.autograd.grad(y, flat, torch.ones_like(y))
    assert sum(e.self_cpu_memory_usage for e in profile.events() or () if e.self_cpu_memory_usage > 0) < 2 * flat.nbytes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_not_a_number_stays_in_its_row(precision):
    x, flat, moduli = (t.detach() for t in make(RADIANCE, 100, torch.float32))
    good = modulated_mlp(x, flat, moduli, RADIANCE, precision=precision)
    x[50, 3] = moduli[51, 1, 2] = math.nan
    y = modulated_mlp(x, flat, moduli, RADIANCE, precision=precision)
    assert y[50:52].isnan().all()
    rows = torch.tensor([r not in (50, 51) for r in range(100)])
    assert torch.equal(y[rows], good[rows])


def test_results_are_bit_equal_on_one_and_two_threads():
    given, results = make(RADIANCE, 3000, torch.float32), []
    for count in (1, 2):
        with threads(count):
            results.append(everything(given, RADIANCE))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_levels_of_the_native_library_agree(precision):
    given, first = make(RADIANCE, 100, torch.float32), None
    for _level in each_level():
        found = everything(given, RADIANCE, precision=precision)
        first = first or found
        assert near(found, first, 1e-5 if precision == "fp32" else 3e-2)


def test_answers_without_the_native_library():
    given = make(SMALL, 50)
    native = everything(given, SMALL)
    with on_reference():
        for mine, theirs in zip(native, everything(given, SMALL), strict=True):
            torch.testing.assert_close(mine, theirs, **TOLERANCE[torch.float64])


def test_takes_strided_tensors():
    x, flat, moduli = make(SMALL, 64)
    sideways, spread = x.detach().T.contiguous().T, moduli.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0)
    torch.testing.assert_close(modulated_mlp(sideways, flat, spread, SMALL), modulated_mlp(x, flat, moduli, SMALL))


@needs_library
def test_opcheck():
    check, ops, numbers = torch.library.opcheck, torch.ops.polyfield, module.shape_numbers(SMALL)
    given = make(SMALL, 50)
    check(ops.modulated_mlp.default, (*given, numbers, False, True))
    plain = [t.detach() for t in given]
    y, kept = ops.modulated_mlp(*plain, numbers, False, True)
    for need in ([True, True, True], [False, True, False]):
        check(ops.modulated_mlp_backward.default, (torch.ones_like(y), *plain, y, kept, numbers, False, need))


def test_compiles_into_one_graph():
    given = make(SMALL, 50)
    f = lambda *given: modulated_mlp(*given, spec=SMALL).square().sum()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    mine, theirs = (torch.autograd.grad(g(*given), given) for g in (compiled, f))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_error_texts():
    x, flat, moduli = make(SMALL, 4, torch.float32)
    with pytest.raises(ShapeError, match=r"x must be \(N, 5\) float32 or float64 for this spec; got \(4, 4\)"):
        modulated_mlp(x[:, 1:], flat, moduli, SMALL)
    with pytest.raises(ShapeError, match=r"x must be .* got \(4, 5\) torch.float16"):
        modulated_mlp(x.half(), flat, moduli, SMALL)
    with pytest.raises(ShapeError, match=r"parameters must be \(736,\) torch.float32 on cpu .* got \(735,\)"):
        modulated_mlp(x, flat[1:], moduli, SMALL)
    with pytest.raises(ShapeError, match=r"moduli must be \(4, 2, 2\) .* got \(3, 2, 2\) torch.float32 on cpu"):
        modulated_mlp(x, flat, moduli[1:], SMALL)
    sines = MlpSpec(inputs=5, outputs=20, width=16, hidden_layers=2, hidden_activation="sine", skip=1)
    with pytest.raises(ConfigError, match="hidden_activation must be 'relu'; got 'sine'"):
        modulated_mlp(x, flat, moduli, sines)
    with pytest.raises(ConfigError, match="precision must be one of fp32, bf16; got 'fp16'"):
        modulated_mlp(x, flat, moduli, SMALL, precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'bf16' takes float32 tensors; got torch\.float64"):
        modulated_mlp(x.double(), flat.double(), moduli.double(), SMALL, precision="bf16")
    if _cpu.library() is not None:
        y = modulated_mlp(x, flat, moduli, SMALL)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        with pytest.raises(ConfigError, match="modulated_mlp has first derivatives only"):
            slope.sum().backward()
