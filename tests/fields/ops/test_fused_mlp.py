"""The fused network: against plain torch for all its shapes, its derivatives, and that neither threads, batches nor
processor levels change what it says.
"""

import functools
import itertools
import math

import pytest
import torch
from helpers.native_levels import SIZES, each_level, on_reference, threads
from helpers.packed_rays import generator
from helpers.tolerances import RELATIVE_L2, assert_near, relative_l2
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.ops import _cpu
from polyfield.fields.ops import fused_mlp as module
from polyfield.fields.ops.fused_mlp import (
    HIDDEN_ACTIVATIONS,
    OUTPUT_ACTIVATIONS,
    WIDTHS,
    MlpSpec,
    fused_mlp,
    fused_mlp_reference,
    initial_parameters,
    mlp_value_and_jacobian,
    mlp_value_and_jacobian_reference,
)

HIDDEN, OUTPUT = list(HIDDEN_ACTIVATIONS), list(OUTPUT_ACTIVATIONS)
DENSITY = MlpSpec(inputs=32, outputs=16)
COLOR = MlpSpec(inputs=32, outputs=3, hidden_layers=2, output_activation="sigmoid")
SURFACE = MlpSpec(inputs=35, outputs=16, hidden_layers=2, hidden_activation="softplus", bias=True)
WIDE = MlpSpec(inputs=39, outputs=5, width=256, hidden_layers=3, skip=2, hidden_activation="softplus", bias=True)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal float64 numbers that float32 holds exactly, so that all precisions start alike."""
    return torch.randn(*shape, generator=generator(seed)).double()


def parameters_of(spec: MlpSpec) -> Tensor:
    flat = initial_parameters(spec, generator(1)).double()
    return flat + 0.05 * numbers(spec.parameter_count, seed=2).float().double() if spec.bias else flat


def gradient_of(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def evaluate(
    function, spec: MlpSpec, n: int, dtype: torch.dtype, grad: Tensor | None = None, **options
) -> dict[str, Tensor]:
    """Result and gradients of `fused_mlp` or its reference."""
    x, flat = (t.to(dtype, copy=True).requires_grad_() for t in (numbers(n, spec.inputs), parameters_of(spec)))
    y = function(x, flat, spec, **options)
    y.backward((numbers(n, spec.outputs, seed=3) if grad is None else grad).to(dtype))
    return {"y": y.detach(), "x": gradient_of(x), "parameters": gradient_of(flat)}


def evaluate_jacobian(function, spec: MlpSpec, n: int, dtype: torch.dtype) -> dict[str, Tensor]:
    given = (numbers(n, spec.inputs), numbers(n, 3, spec.inputs, seed=4), parameters_of(spec))
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in given]
    value, jacobian = function(*leaves, spec)
    cotangents = (numbers(n, spec.outputs, seed=3), numbers(n, 3, spec.outputs, seed=5))
    torch.autograd.backward([value, jacobian], [c.to(dtype) for c in cotangents])
    grads = {name: gradient_of(leaf) for name, leaf in zip(("x", "tangents", "parameters"), leaves, strict=True)}
    return {"value": value.detach(), "jacobian": jacobian.detach(), **grads}


def small_specs() -> list[MlpSpec]:
    """Every width, depth, activation, and bias, and awkward sizes; not every combination."""
    sizes = itertools.cycle([(32, 16), (3, 3), (50, 17), (1, 1), (16, 64), (100, 2), (48, 13)])
    biases, outputs = itertools.cycle([False, True]), itertools.cycle(OUTPUT)
    return [
        MlpSpec(
            inputs=inputs,
            outputs=out,
            width=width,
            hidden_layers=layers,
            hidden_activation=hidden,
            output_activation=next(outputs),
            bias=next(biases),
        )
        for (width, layers, hidden), (inputs, out) in zip(
            itertools.product(WIDTHS, (1, 2, 3, 4), HIDDEN), sizes, strict=False
        )
    ]


def deep_specs() -> list[MlpSpec]:
    """Five layers and more, and skip connections: near either end, odd and even inputs, all activations."""
    return [
        MlpSpec(inputs=63, outputs=16, width=256, hidden_layers=8, skip=4),
        WIDE,
        MlpSpec(inputs=3, outputs=2, width=16, hidden_layers=2, skip=1, hidden_activation="softplus", bias=True),
        MlpSpec(
            inputs=50,
            outputs=17,
            width=32,
            hidden_layers=5,
            skip=4,
            hidden_activation="sine",
            output_activation="sigmoid",
        ),
        MlpSpec(inputs=17, outputs=3, width=64, hidden_layers=6, skip=5, output_activation="exp", bias=True),
        MlpSpec(inputs=1, outputs=1, width=128, hidden_layers=7, hidden_activation="none"),
        MlpSpec(inputs=100, outputs=4, width=16, hidden_layers=8, skip=1, bias=True),
    ]


def without_output(spec: MlpSpec) -> MlpSpec:
    return MlpSpec(**{**vars(spec), "output_activation": "none"})


# --- against the reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spec", small_specs()[::2] + small_specs()[1::4] + deep_specs(), ids=str)
def test_every_shape_equals_the_reference(spec, dtype):
    expected = evaluate(fused_mlp_reference, spec, 100, torch.float64)
    assert_near(evaluate(fused_mlp, spec, 100, dtype), expected, dtype)


@pytest.mark.parametrize("spec", small_specs()[::3] + deep_specs(), ids=str)
def test_every_shape_has_the_jacobian_of_the_reference(spec):
    spec = without_output(spec)
    expected = evaluate_jacobian(mlp_value_and_jacobian_reference, spec, 60, torch.float64)
    assert_near(evaluate_jacobian(mlp_value_and_jacobian, spec, 60, torch.float64), expected, torch.float64)
    # Softplus with beta = 100 multiplies the rounding of its argument by 100.
    times = 4 if spec.hidden_activation == "softplus" else 1
    assert_near(
        evaluate_jacobian(mlp_value_and_jacobian, spec, 60, torch.float32), expected, torch.float32, times=times
    )


@pytest.mark.parametrize("n", [*SIZES, 48, 49])
@pytest.mark.parametrize("spec", [DENSITY, COLOR, SURFACE, WIDE], ids=["density", "color", "surface", "wide"])
def test_every_batch_size_equals_the_reference(spec, n):
    expected = evaluate(fused_mlp_reference, spec, n, torch.float64)
    assert_near(evaluate(fused_mlp, spec, n, torch.float32), expected, torch.float32)
    plain = without_output(spec)
    expected = evaluate_jacobian(mlp_value_and_jacobian_reference, plain, n, torch.float64)
    assert_near(evaluate_jacobian(mlp_value_and_jacobian, plain, n, torch.float32), expected, torch.float32, times=4)


@pytest.mark.parametrize("spec", [DENSITY, COLOR, SURFACE], ids=["density", "color", "surface"])
def test_bf16_is_near_float64(spec):
    """The gradient is that of a squared error. Rounding moves about one ReLU in a thousand across zero, which changes
    the input's gradient in that row by a lot; in the parameters' sums it drowns."""
    x, flat = numbers(2000, spec.inputs), parameters_of(spec)
    target = (x[:, :1] * torch.arange(1, spec.outputs + 1) / spec.outputs).sin()
    grad = fused_mlp_reference(x, flat, spec) - target
    expected = evaluate(fused_mlp_reference, spec, 2000, torch.float64, grad)
    ours = evaluate(fused_mlp, spec, 2000, torch.float32, grad, precision="bf16")
    by_row = (ours["x"] - expected["x"]).norm(dim=1) / expected["x"].norm(dim=1)
    assert by_row.quantile(0.8) < RELATIVE_L2[torch.bfloat16]
    if spec.hidden_activation == "relu":
        assert relative_l2(ours.pop("x"), expected.pop("x")) < 0.1
    assert_near(ours, expected, torch.bfloat16)


@pytest.mark.parametrize("spec", small_specs()[::3] + deep_specs()[:4], ids=str)
def test_bf16_rounds_where_the_reference_rounds(spec):
    ours = evaluate(fused_mlp, spec, 100, torch.float32, precision="bf16")
    with on_reference():
        theirs = evaluate(fused_mlp, spec, 100, torch.float32, precision="bf16")
    for name, result in ours.items():
        # Sums in another order now and then round, or pass a ReLU, the other way; and the kernels round slopes too.
        bound = 1e-3 if spec.hidden_activation in ("none", "relu") or name == "y" else 1.5e-2
        assert relative_l2(result, theirs[name]) < bound, name


@pytest.mark.parametrize("hidden", HIDDEN)
def test_activations_hold_over_their_whole_range(hidden):
    """A network that is its activation: one weight of 1 in, one out."""
    spec = MlpSpec(inputs=1, outputs=1, width=16, hidden_activation=hidden)
    flat = torch.zeros(32)
    flat[0] = flat[16] = 1.0
    z = torch.cat([torch.linspace(-10, 10, 20001), torch.tensor([0.0, 1e-30, -1e-30, 1e3, -1e3, 2e4, -7e5, 3e7])])
    x, exact = z[:, None].clone().requires_grad_(), z[:, None].double().requires_grad_()
    y, expected = fused_mlp(x, flat, spec), fused_mlp_reference(exact, flat.double(), spec)
    y.sum().backward()
    expected.sum().backward()
    scale = z[:, None].double().abs().clamp(min=1)
    assert ((y - expected).abs() / scale).max() < 3e-7
    assert (gradient_of(x) - gradient_of(exact)).abs().max() < 5e-6


@pytest.mark.parametrize("output", OUTPUT)
def test_output_activations_hold_over_their_whole_range(output):
    spec = MlpSpec(inputs=1, outputs=1, width=16, hidden_activation="none", output_activation=output)
    flat = torch.zeros(32)
    flat[0] = flat[16] = 1.0
    x = torch.cat([torch.linspace(-86, 88, 5001), torch.tensor([-1e4, -200.0, 200.0, 1e4, math.nan])])
    y = fused_mlp(x[:, None], flat, spec)
    expected = {"none": x, "sigmoid": x.double().sigmoid(), "exp": x.double().exp()}[output]
    torch.testing.assert_close(y[:, 0], expected.float(), rtol=1e-6, atol=1e-30, equal_nan=True)


# --- derivatives


@pytest.mark.parametrize("native", [True, False], ids=["native", "reference"])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_gradcheck(hidden, native):
    for spec in (
        MlpSpec(inputs=3, outputs=2, width=16, hidden_layers=2, hidden_activation=hidden, bias=True),
        MlpSpec(inputs=2, outputs=3, width=16, hidden_activation=hidden, output_activation="sigmoid"),
        MlpSpec(inputs=2, outputs=1, width=16, hidden_activation=hidden, output_activation="exp"),
        MlpSpec(inputs=3, outputs=2, width=16, hidden_layers=5, skip=2, hidden_activation=hidden, bias=True),
    ):
        x = numbers(3, spec.inputs).requires_grad_()
        flat = (parameters_of(spec) * 0.3).requires_grad_()
        with on_reference() if not native else threads(1):
            assert torch.autograd.gradcheck(functools.partial(fused_mlp, spec=spec), (x, flat), fast_mode=True)


@pytest.mark.parametrize("native", [True, False], ids=["native", "reference"])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_gradcheck_of_value_and_jacobian(hidden, native):
    for layers, bias, skip in ((1, False, None), (3, True, None), (3, True, 1)):
        spec = MlpSpec(
            inputs=3, outputs=2, width=16, hidden_layers=layers, hidden_activation=hidden, bias=bias, skip=skip
        )
        given = (numbers(3, 3), numbers(3, 3, 3, seed=1), parameters_of(spec) * 0.3)
        leaves = [t.detach().requires_grad_() for t in given]
        with on_reference() if not native else threads(1):
            function = functools.partial(mlp_value_and_jacobian, spec=spec)
            assert torch.autograd.gradcheck(function, tuple(leaves), fast_mode=True)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_jacobian_is_the_derivative_of_the_value(hidden):
    spec = MlpSpec(inputs=5, outputs=4, width=32, hidden_layers=2, hidden_activation=hidden, bias=True)
    x, tangents, flat = numbers(7, 5), numbers(7, 3, 5, seed=1), parameters_of(spec)
    value, jacobian = mlp_value_and_jacobian(x, tangents, flat, spec)
    torch.testing.assert_close(value, fused_mlp(x, flat, spec))
    for k in range(3):
        derivative = torch.func.jvp(lambda t: fused_mlp_reference(t, flat, spec), (x,), (tangents[:, k],))[1]
        torch.testing.assert_close(jacobian[:, k], derivative)


@pytest.mark.parametrize("spec", [SURFACE, WIDE], ids=["surface", "wide"])
def test_only_the_gradients_that_are_needed_are_made(spec):
    both = evaluate(fused_mlp, spec, 60, torch.float64)
    for wanted in ("x", "parameters"):
        x, flat = numbers(60, spec.inputs), parameters_of(spec)
        leaf = (x if wanted == "x" else flat).requires_grad_()
        fused_mlp(x, flat, spec).backward(numbers(60, spec.outputs, seed=3))
        assert torch.equal(gradient_of(leaf), both[wanted])
    every = evaluate_jacobian(mlp_value_and_jacobian, spec, 60, torch.float64)
    given = [numbers(60, spec.inputs), numbers(60, 3, spec.inputs, seed=4), parameters_of(spec)]
    for position, name in enumerate(("x", "tangents", "parameters")):
        leaves = [t.detach().requires_grad_(k == position) for k, t in enumerate(given)]
        value, jacobian = mlp_value_and_jacobian(leaves[0], leaves[1], leaves[2], spec)
        cotangents = [numbers(60, spec.outputs, seed=3), numbers(60, 3, spec.outputs, seed=5)]
        torch.autograd.backward([value, jacobian], cotangents)
        assert torch.equal(gradient_of(leaves[position]), every[name])


def test_a_loss_on_one_of_value_and_jacobian_alone_works():
    x, tangents = numbers(9, 35), numbers(9, 3, 35, seed=4)
    for index in (0, 1):
        flat, other = (parameters_of(SURFACE).requires_grad_() for _ in range(2))
        mlp_value_and_jacobian(x, tangents, flat, SURFACE)[index].square().sum().backward()
        mlp_value_and_jacobian_reference(x, tangents, other, SURFACE)[index].square().sum().backward()
        torch.testing.assert_close(flat.grad, other.grad)


def test_a_second_derivative_is_refused():
    x = numbers(4, 32).requires_grad_()
    (first,) = torch.autograd.grad(fused_mlp(x, parameters_of(DENSITY), DENSITY).sum(), x, create_graph=True)
    with pytest.raises(ConfigError, match=r"first derivatives only.*use mlp_value_and_jacobian"):
        first.sum().backward()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("output", OUTPUT)
def test_what_a_wide_network_keeps_is_what_it_would_recompute(output, precision):
    spec = MlpSpec(**{**vars(WIDE), "output_activation": output})
    numbers_of_spec, bf16 = module.shape_numbers(spec), precision == "bf16"
    x, flat = numbers(130, spec.inputs).float(), parameters_of(spec).float()
    y, kept = torch.ops.polyfield.fused_mlp_keeping(x, flat, numbers_of_spec, bf16)
    assert torch.equal(y, fused_mlp(x, flat, spec, precision=precision))
    given = (numbers(130, spec.outputs, seed=3).float(), x, flat, numbers_of_spec, bf16, True, True)
    pairs = zip(
        torch.ops.polyfield.fused_mlp_backward(*given, kept),
        torch.ops.polyfield.fused_mlp_backward(*given),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)


def test_what_is_kept_is_as_large_as_the_library_says():
    if not _cpu.usable():
        pytest.skip("no native library")
    for spec, n in itertools.product([WIDE, COLOR], [0, 1, 48, 49, 1000]):
        shape = module.shape_numbers(spec)
        for dtype, bf16, suffix in (
            (torch.float32, False, "f32"),
            (torch.float32, True, "bf16"),
            (torch.float64, False, "f64"),
        ):
            x, flat = torch.zeros(n, spec.inputs, dtype=dtype), torch.zeros(spec.parameter_count, dtype=dtype)
            _, kept = module._forward_keeping_fake(x, flat, shape, bf16)
            assert kept.numel() in (0, _cpu.call(f"pf_fused_mlp_kept_bytes_{suffix}", n, *shape))


# --- what must not matter


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("spec", [DENSITY, COLOR, SURFACE, WIDE], ids=["density", "color", "surface", "wide"])
def test_results_are_bit_equal_on_one_and_two_threads(spec, precision):
    if spec is WIDE and _cpu.level() == "reference":
        pytest.skip("torch's own wide products depend on the threads")
    results = []
    for count in (1, 2):
        with threads(count):
            results.append(evaluate(fused_mlp, spec, 5000, torch.float32, precision=precision))
            plain = without_output(spec)
            results[-1].update(evaluate_jacobian(mlp_value_and_jacobian, plain, 1000, torch.float32))
    for name, first in results[0].items():
        assert torch.equal(first, results[1][name]), name


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(0, 199), st.sampled_from([DENSITY, COLOR, SURFACE, WIDE]), st.booleans())
def test_a_row_does_not_depend_on_its_neighbours(n, row, spec, bf16):
    x, flat = numbers(n, spec.inputs).float(), parameters_of(spec).float()
    precision = "bf16" if bf16 else "fp32"
    row %= n
    alone = fused_mlp(x[row : row + 1], flat, spec, precision=precision)
    among = fused_mlp(x, flat, spec, precision=precision)[row : row + 1]
    if _cpu.level() == "reference":  # torch.matmul picks its kernel by the batch
        assert relative_l2(among, alone) < RELATIVE_L2[torch.bfloat16 if bf16 else torch.float32]
    else:
        assert torch.equal(among, alone)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(WIDTHS), st.integers(1, 8), st.floats(0.01, 100))
def test_a_relu_network_without_bias_is_positively_homogeneous(inputs, outputs, width, layers, factor):
    spec = MlpSpec(inputs=inputs, outputs=outputs, width=width, hidden_layers=layers, skip=layers // 2 or None)
    x, flat = numbers(5, inputs), parameters_of(spec)
    torch.testing.assert_close(fused_mlp(x * factor, flat, spec), fused_mlp(x, flat, spec) * factor)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(WIDTHS), st.integers(1, 8))
def test_a_network_without_activations_is_the_product_of_its_weights(inputs, outputs, width, layers):
    spec = MlpSpec(inputs=inputs, outputs=outputs, width=width, hidden_layers=layers, hidden_activation="none")
    x, flat = numbers(5, inputs), parameters_of(spec)
    at, product = 0, torch.eye(inputs, dtype=torch.float64)
    for out, size in spec.layer_shapes:
        product = flat[at : at + out * size].view(out, size) @ product
        at += out * size
    torch.testing.assert_close(fused_mlp(x, flat, spec), x @ product.T)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.sampled_from(WIDTHS), st.integers(2, 8), st.data())
def test_a_skip_connection_without_weights_is_none(inputs, width, layers, data):
    skip = data.draw(st.integers(1, layers - 1))
    spec = MlpSpec(inputs=inputs, outputs=3, width=width, hidden_layers=layers, skip=skip)
    plain = MlpSpec(inputs=inputs, outputs=3, width=width, hidden_layers=layers)
    flat, parts, at = parameters_of(spec), [], 0
    for out, size in spec.layer_shapes:
        weight = flat[at : at + out * size].view(out, size)
        if size == width + inputs:
            weight[:, width:] = 0
            weight = weight[:, :width]
        parts.append(weight.flatten())
        at += out * size
    x = numbers(5, inputs)
    torch.testing.assert_close(fused_mlp(x, flat, spec), fused_mlp(x, torch.cat(parts), plain))


def test_strides_do_not_matter():
    x, flat = numbers(40, 64)[:, ::2], parameters_of(COLOR)
    assert torch.equal(fused_mlp(x, flat, COLOR), fused_mlp(x.contiguous(), flat, COLOR))
    wide = numbers(3, 40, 32).movedim(0, 1)
    spec = without_output(COLOR)
    pairs = zip(
        mlp_value_and_jacobian(x, wide, flat, spec),
        mlp_value_and_jacobian(x, wide.contiguous(), flat, spec),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)


def test_gradients_that_are_expanded_or_transposed_work():
    x, flat = numbers(70, 32).requires_grad_(), parameters_of(DENSITY)
    fused_mlp(x, flat, DENSITY).sum().backward()
    expected = numbers(70, 32).requires_grad_()
    fused_mlp_reference(expected, flat, DENSITY).sum().backward()
    torch.testing.assert_close(x.grad, expected.grad)


def test_levels_of_the_native_library_agree():
    exact = evaluate(fused_mlp_reference, COLOR, 1000, torch.float64)
    for _level in each_level():
        assert_near(evaluate(fused_mlp, COLOR, 1000, torch.float32), exact, torch.float32)
        for spec in small_specs()[::5] + deep_specs()[1:5]:
            expected = evaluate(fused_mlp_reference, spec, 100, torch.float64)
            assert_near(evaluate(fused_mlp, spec, 100, torch.float32), expected, torch.float32)
            assert_near(evaluate(fused_mlp, spec, 100, torch.float64), expected, torch.float64)
        for plain in (SURFACE, WIDE):
            expected = evaluate_jacobian(mlp_value_and_jacobian_reference, plain, 100, torch.float64)
            assert_near(
                evaluate_jacobian(mlp_value_and_jacobian, plain, 100, torch.float32), expected, torch.float32, times=4
            )


def test_levels_of_the_native_library_round_bf16_alike():
    results = []
    for _level in each_level():
        results.append(evaluate(fused_mlp, DENSITY, 1000, torch.float32, precision="bf16"))
        for name, first in results[0].items():
            assert relative_l2(results[-1][name], first) < 0.1 * RELATIVE_L2[torch.bfloat16], name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("spec", "surface"), [(COLOR, SURFACE), (WIDE, WIDE)], ids=["narrow", "wide"])
def test_the_fallback_computes_the_same(spec, surface, precision):
    native = evaluate(fused_mlp, spec, 100, torch.float32, precision=precision)
    native_jacobian = evaluate_jacobian(mlp_value_and_jacobian, surface, 100, torch.float64)
    with on_reference():
        fallback = evaluate(fused_mlp, spec, 100, torch.float32, precision=precision)
        assert_near(fallback, native, torch.float32 if precision == "fp32" else torch.bfloat16)
        fallback = evaluate_jacobian(mlp_value_and_jacobian, surface, 100, torch.float64)
        assert_near(fallback, native_jacobian, torch.float64)


# --- NaN, Inf


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("spec", [DENSITY, COLOR, SURFACE, WIDE], ids=["density", "color", "surface", "wide"])
def test_a_bad_input_spoils_its_row_only(spec, bad, precision):
    x, flat = numbers(100, spec.inputs).float(), parameters_of(spec).float()
    good = fused_mlp(x, flat, spec, precision=precision)
    x[50, 1] = bad
    y = fused_mlp(x, flat, spec, precision=precision)
    kept = torch.arange(100) != 50
    assert torch.equal(y[kept], good[kept])
    if math.isnan(bad):
        assert y[50].isnan().all()


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_nan_parameter_is_not_hidden(hidden):
    spec = MlpSpec(inputs=4, outputs=2, width=16, hidden_activation=hidden)
    flat = parameters_of(spec).float()
    flat[5] = math.nan
    assert fused_mlp(numbers(50, 4).float(), flat, spec).isnan().all()


# --- torch


def test_opcheck():
    spec = module.shape_numbers(SURFACE)
    x, tangents = numbers(5, 35).requires_grad_(), numbers(5, 3, 35, seed=4).requires_grad_()
    flat = parameters_of(SURFACE).requires_grad_()
    check = torch.library.opcheck
    ops = torch.ops.polyfield
    check(ops.fused_mlp.default, (x, flat, spec, False))
    check(ops.fused_mlp.default, (x.detach().float(), flat.detach().float(), spec, True))
    check(ops.mlp_jacobian.default, (x, tangents, flat, spec))
    x, tangents, flat = x.detach(), tangents.detach(), flat.detach()
    grad, jacobian_grad = numbers(5, 16), numbers(5, 3, 16)
    for need in ((True, True, True), (False, True, False)):
        check(ops.fused_mlp_backward.default, (grad, x, flat, spec, False, *need[:2]))
        args = (grad, jacobian_grad, x, tangents, flat, spec, list(need))
        check(ops.mlp_jacobian_backward.default, args)


def test_opcheck_of_a_wide_network():
    spec = module.shape_numbers(WIDE)
    x, flat = numbers(50, 39).requires_grad_(), parameters_of(WIDE).requires_grad_()
    check, ops = torch.library.opcheck, torch.ops.polyfield
    check(ops.fused_mlp_keeping.default, (x, flat, spec, False))
    x, flat = x.detach(), flat.detach()
    _, kept = ops.fused_mlp_keeping(x, flat, spec, False)
    check(ops.fused_mlp_backward.default, (numbers(50, 5), x, flat, spec, False, True, True, kept))
    check(ops.mlp_jacobian.default, (x, numbers(50, 3, 39, seed=4), flat, spec))
    check(ops.fused_mlp_keeping.default, (x.float(), flat.float(), spec, True))


@pytest.mark.parametrize("spec", [SURFACE, WIDE], ids=["surface", "wide"])
def test_compiles_into_one_graph(spec):
    def loss(x, tangents, flat):
        value, jacobian = mlp_value_and_jacobian(x, tangents, flat, spec)
        eikonal = (jacobian[..., 0].norm(dim=1) - 1).square().mean()
        return fused_mlp(x, flat, spec).square().mean() + value.square().mean() + eikonal

    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        flat = parameters_of(spec).requires_grad_()
        function(numbers(33, spec.inputs), numbers(33, 3, spec.inputs, seed=4), flat).backward()
        grads.append(flat.grad)
    torch.testing.assert_close(*grads)


def test_initial_parameters_follow_glorot_and_the_generator():
    spec = MlpSpec(inputs=30, outputs=5, width=64, hidden_layers=3, bias=True, skip=2)
    flat = initial_parameters(spec, generator(3))
    assert torch.equal(flat, initial_parameters(spec, generator(3)))
    assert flat.shape == (spec.parameter_count,) == (64 * 31 + 64 * 65 + 64 * (64 + 31) + 5 * 65,)
    at = 0
    for out, size in spec.layer_shapes:
        bound = math.sqrt(6 / (out + size))
        weight = flat[at : at + out * size]
        assert bound * 0.97 < weight.abs().max() <= bound
        assert abs(weight.mean()) < bound * 0.15
        assert flat[at + out * size : at + out * (size + 1)].eq(0).all()
        at += out * (size + 1)


# --- errors


def test_error_texts():
    x, flat = torch.zeros(4, 32), torch.zeros(DENSITY.parameter_count)
    with pytest.raises(ShapeError, match=r"x must be \(N, inputs\) = \(N, 32\) for this spec; got \(4, 31\)"):
        fused_mlp(x[:, 1:], flat, DENSITY)
    with pytest.raises(ShapeError, match=r"parameters must be \(3072,\) for this spec; got \(3071,\); see initial_"):
        fused_mlp(x, flat[1:], DENSITY)
    with pytest.raises(ShapeError, match=r"both be float32 or both float64; got torch.float32 and torch.float64"):
        fused_mlp(x, flat.double(), DENSITY)
    with pytest.raises(ShapeError, match=r"both be float32 or both float64; got torch.float16"):
        fused_mlp(x.half(), flat.half(), DENSITY)
    with pytest.raises(ShapeError, match=r"must be on one device; got cpu and meta"):
        fused_mlp(x, flat.to("meta"), DENSITY)
    with pytest.raises(ConfigError, match=r"precision must be one of fp32, bf16; got 'fp8'"):
        fused_mlp(x, flat, DENSITY, precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"precision 'bf16' takes float32 tensors; got torch.float64; use precision="):
        fused_mlp(x.double(), flat.double(), DENSITY, precision="bf16")
    with pytest.raises(ShapeError, match=r"x_tangents must be \(4, 3, 32\) torch.float32.*got \(4, 32\)"):
        mlp_value_and_jacobian(x, x, flat, DENSITY)
    color = torch.zeros(COLOR.parameter_count)
    with pytest.raises(ConfigError, match=r"wants output_activation 'none'; got 'sigmoid'; apply it to the value"):
        mlp_value_and_jacobian(x, x[:, None].expand(4, 3, 32), color, COLOR)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"width": 48}, r"width must be one of \(16, 32, 64, 128, 256\); got 48"),
        ({"hidden_layers": 0}, r"hidden_layers must be 1 to 8; got 0"),
        ({"hidden_layers": 9}, r"hidden_layers must be 1 to 8; got 9"),
        ({"hidden_layers": 3, "skip": 3}, r"skip must be None or the number of a hidden layer .* = 2; got 3"),
        ({"hidden_layers": 3, "skip": 0}, r"skip must be None or the number of a hidden layer .* = 2; got 0"),
        ({"hidden_layers": 1, "skip": 1}, r"skip must be None or .*after the first, 1 to hidden_layers - 1 = 0; got 1"),
        ({"inputs": 0}, r"inputs and outputs must be at least 1; got 0 and 3"),
        ({"hidden_activation": "gelu"}, r"hidden_activation must be one of none, relu, softplus, sine; got 'gelu'"),
        ({"output_activation": "relu"}, r"output_activation must be one of none, sigmoid, exp; got 'relu'"),
    ],
)
def test_a_spec_says_what_is_wrong_with_it(wrong, text):
    with pytest.raises(ConfigError, match=text):
        MlpSpec(**{"inputs": 3, "outputs": 3, **wrong})
