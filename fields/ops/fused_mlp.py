"""What does a small fully connected network say of a batch of rows, and what are its derivatives?

`fused_mlp` runs the whole network tile by tile in cache, after the fully fused networks of Mueller et al. 2021 (arXiv
2106.12372, section 4); its backward recomputes the forward, so nothing but x is kept, up to a width of 128. A wider
network's activations cost less to keep than to recompute (on a CPU). `mlp_value_and_jacobian` carries three tangents
along, which is what a signed distance with an eikonal loss (Gropp et al. 2020, arXiv 2002.10099) needs: its first-order
backward contains the second derivatives of the activations.

Parameters are one flat tensor: layer after layer, weight (outputs, inputs) row-major, then bias (outputs,) if any. The
hidden layer with the skip connection (Mildenhall et al. 2020, arXiv 2003.08934, figure 7) has width + inputs of the
network inputs, in this order. Softplus has beta = 100. ReLU has slope 0 at 0 and no curvature.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from . import _cpu, _cuda, _library
from ._mlp_cuda import TensorCoreNetwork

HIDDEN_ACTIVATIONS = {"none": 0, "relu": 1, "softplus": 2, "sine": 3}
"""Name -> code, as `enum HiddenActivation` of polyfield/activations.h."""
OUTPUT_ACTIVATIONS = {"none": 0, "sigmoid": 1, "exp": 2}
"""Name -> code, as `enum OutputActivation` of polyfield/activations.h."""
PRECISIONS = ("fp32", "bf16")
WIDTHS = (16, 32, 64, 128, 256)
KEEPING_WIDTH = 256
"""From this width on activations are kept for the backward pass, as torch keeps them: 4 or 2 bytes a hidden unit and
row. Measured at 8 layers: forward and backward take 3/4 of the time. Narrower networks recompute."""
TILE_ROWS = 48
"""Rows that the CPU kernels take at once (`kTileRows` of mlp_products.h); activations are kept for multiples of it."""
MAX_HIDDEN_LAYERS = 8
SOFTPLUS_BETA = 100.0
FIRST_ORDER_ONLY = (
    "{} has first derivatives only, and a derivative of its derivative was asked for; "
    "use mlp_value_and_jacobian to put derivatives with respect to positions into a loss"
)


@dataclass(frozen=True, kw_only=True)
class MlpSpec:
    """Shape of a network."""

    inputs: int
    """Columns of x, any number from 1."""
    outputs: int
    """Columns of the result, any number from 1."""
    width: int = 64
    """Columns of every hidden layer: 16, 32, 64, 128 or 256."""
    hidden_layers: int = 1
    """1 to 8."""
    hidden_activation: str = "relu"
    """Key of `HIDDEN_ACTIVATIONS`."""
    output_activation: str = "none"
    """Key of `OUTPUT_ACTIVATIONS`."""
    bias: bool = False
    """Whether every layer adds a bias."""
    skip: int | None = None
    """The hidden layer, counted from 0 and 1 to hidden_layers - 1, that is given [previous activations, network
    inputs]; None: no layer is."""

    def __post_init__(self) -> None:
        if self.inputs < 1 or self.outputs < 1:
            raise ConfigError(f"inputs and outputs must be at least 1; got {self.inputs} and {self.outputs}")
        if self.width not in WIDTHS:
            raise ConfigError(f"width must be one of {WIDTHS}; got {self.width}")
        if not 1 <= self.hidden_layers <= MAX_HIDDEN_LAYERS:
            raise ConfigError(f"hidden_layers must be 1 to {MAX_HIDDEN_LAYERS}; got {self.hidden_layers}")
        if self.hidden_activation not in HIDDEN_ACTIVATIONS:
            known = ", ".join(HIDDEN_ACTIVATIONS)
            raise ConfigError(f"hidden_activation must be one of {known}; got {self.hidden_activation!r}")
        if self.output_activation not in OUTPUT_ACTIVATIONS:
            known = ", ".join(OUTPUT_ACTIVATIONS)
            raise ConfigError(f"output_activation must be one of {known}; got {self.output_activation!r}")
        if self.skip is not None and not 1 <= self.skip < self.hidden_layers:
            raise ConfigError(
                f"skip must be None or the number of a hidden layer after the first, 1 to hidden_layers - 1 = "
                f"{self.hidden_layers - 1}; got {self.skip}"
            )

    @property
    def layer_shapes(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of every layer, first to last."""
        sizes = [self.inputs, *[self.width] * self.hidden_layers, self.outputs]
        shapes = [(out, size) for size, out in itertools.pairwise(sizes)]
        if self.skip is not None:
            shapes[self.skip] = (self.width, self.width + self.inputs)
        return shapes

    @property
    def parameter_count(self) -> int:
        """P, length of the flat parameter tensor."""
        return sum(out * (size + self.bias) for out, size in self.layer_shapes)


def initial_parameters(spec: MlpSpec, generator: torch.Generator | None = None) -> Tensor:
    """Flat float32 parameters (P,) on the CPU: weights uniform in +-sqrt(6 / (inputs + outputs)) of their layer (Glorot
    and Bengio 2010, equation 16), biases zero."""
    parts = []
    for out, size in spec.layer_shapes:
        bound = math.sqrt(6 / (size + out))
        parts.append((torch.rand(out * size, generator=generator) * 2 - 1) * bound)
        if spec.bias:
            parts.append(torch.zeros(out))
    return torch.cat(parts)


def fused_mlp(x: Tensor, parameters: Tensor, spec: MlpSpec, *, precision: Literal["fp32", "bf16"] = "fp32") -> Tensor:
    """Run the network.

    Args:
        x: (N, spec.inputs) float32 or float64, any values; NaN and Inf reach the results of their own row and, by way
            of a gradient, the parameters.
        parameters: (spec.parameter_count,), same dtype and device; see the module for the order.
        spec: shape of the network.
        precision: "bf16" rounds weights, activations and their gradients to bfloat16 and sums in float32; it wants
            float32 tensors. Parameters and their gradient stay float32.

    Returns:
        (N, spec.outputs), after the output activation.

    Gradients reach `x` and `parameters`, first order only. They are the same for any number of threads.

    Raises:
        ShapeError: a shape, dtype or device is not as above.
        ConfigError: `precision` is unknown, does not fit the dtype, or a second derivative is asked for.
    """
    _check(x, parameters, spec)
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    if precision == "bf16" and x.dtype != torch.float32:
        raise ConfigError(f"precision 'bf16' takes float32 tensors; got {x.dtype}; use precision='fp32'")
    if spec.width >= KEEPING_WIDTH and torch.is_grad_enabled() and (x.requires_grad or parameters.requires_grad):
        return _fused_mlp_keeping(x, parameters, shape_numbers(spec), precision == "bf16")[0]
    return _fused_mlp(x, parameters, shape_numbers(spec), precision == "bf16")


def mlp_value_and_jacobian(x: Tensor, x_tangents: Tensor, parameters: Tensor, spec: MlpSpec) -> tuple[Tensor, Tensor]:
    """Run the network and differentiate it along three directions.

    Args:
        x: (N, spec.inputs) float32 or float64.
        x_tangents: (N, 3, spec.inputs), d x / d position, same dtype and device.
        parameters: (spec.parameter_count,), same dtype and device.
        spec: shape of the network; its output activation must be "none".

    Returns:
        value (N, spec.outputs) and jacobian (N, 3, spec.outputs), d value / d position.

    Gradients reach `x`, `x_tangents` and `parameters` from both results, first order only.

    Raises:
        ShapeError: a shape, dtype or device is not as above.
        ConfigError: the network has an output activation, or a second derivative is asked for.
    """
    _check(x, parameters, spec)
    if spec.output_activation != "none":
        raise ConfigError(
            f"mlp_value_and_jacobian wants output_activation 'none'; got {spec.output_activation!r}; "
            "apply it to the value yourself and multiply the jacobian by its derivative"
        )
    wanted = (x.shape[0], 3, spec.inputs)
    if x_tangents.shape != wanted or x_tangents.dtype != x.dtype or x_tangents.device != x.device:
        raise ShapeError(
            f"x_tangents must be {wanted} {x.dtype} on {x.device}, d x / d position; "
            f"got {tuple(x_tangents.shape)} {x_tangents.dtype} on {x_tangents.device}"
        )
    return _mlp_jacobian(x, x_tangents, parameters, shape_numbers(spec))


def fused_mlp_reference(
    x: Tensor, parameters: Tensor, spec: MlpSpec, *, precision: Literal["fp32", "bf16"] = "fp32"
) -> Tensor:
    """`fused_mlp` in plain torch, differentiable any number of times, any device. With "bf16" values are rounded as in
    `fused_mlp`, the gradients that autograd makes of them are not."""
    out, _ = _run(x[None], layers_of(parameters, spec), spec, rounding(precision == "bf16"))
    return activate_output(out[0], spec)


def mlp_value_and_jacobian_reference(
    x: Tensor, x_tangents: Tensor, parameters: Tensor, spec: MlpSpec
) -> tuple[Tensor, Tensor]:
    """`mlp_value_and_jacobian` in plain torch, differentiable, any device."""
    out, _ = _run(_stacked(x, x_tangents), layers_of(parameters, spec), spec, rounding(False))
    return out[0], out[1:].movedim(0, 1)


# --- reference --------------------------------------------------------------------------------------------------------
# Values and tangents run together as blocks (B, N, columns): block 0 the values, blocks 1 to 3 the tangents, if any.


class _Layer(NamedTuple):
    weight: Tensor  # (outputs, inputs)
    bias: Tensor | None


class _Kept(NamedTuple):
    before: Tensor  # (B, N, width): sums before the activation
    after: Tensor  # (B, N, width)


def layers_of(parameters: Tensor, spec: MlpSpec) -> list[_Layer]:
    layers, at = [], 0
    for out, size in spec.layer_shapes:
        weight = parameters[at : at + out * size].view(out, size)
        at += out * size
        layers.append(_Layer(weight, parameters[at : at + out] if spec.bias else None))
        at += out * spec.bias
    return layers


def rounding(bf16: bool) -> Callable[[Tensor], Tensor]:
    """Rounds to bfloat16, or not; the derivative is taken as 1."""
    return (lambda t: t + (t.to(torch.bfloat16).to(t.dtype) - t).detach()) if bf16 else (lambda t: t)


def _stacked(values: Tensor, tangents: Tensor) -> Tensor:
    return torch.cat([values[None], tangents.movedim(1, 0)])


def _value_slope_curvature(z: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    if activation == "relu":
        return torch.relu(z), (z > 0).to(z.dtype), torch.zeros_like(z)
    if activation == "softplus":
        slope = torch.sigmoid(SOFTPLUS_BETA * z)
        value = -torch.nn.functional.logsigmoid(-SOFTPLUS_BETA * z) / SOFTPLUS_BETA
        return value, slope, SOFTPLUS_BETA * slope * (1 - slope)
    if activation == "sine":
        return z.sin(), z.cos(), -z.sin()
    return z, torch.ones_like(z), torch.zeros_like(z)


def activate_output(out: Tensor, spec: MlpSpec) -> Tensor:
    return {"none": lambda t: t, "sigmoid": torch.sigmoid, "exp": torch.exp}[spec.output_activation](out)


def _output_slope(activated: Tensor, spec: MlpSpec) -> Tensor | float:
    return {"none": 1.0, "sigmoid": activated * (1 - activated), "exp": activated}[spec.output_activation]


def _linear(h: Tensor, layer: _Layer, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    sums = h @ rounded(layer.weight).T
    return sums if layer.bias is None else torch.cat([sums[:1] + layer.bias, sums[1:]])


def _run(
    h: Tensor, layers: list[_Layer], spec: MlpSpec, rounded: Callable[[Tensor], Tensor]
) -> tuple[Tensor, list[_Kept]]:
    inputs, kept = rounded(h), []
    h = inputs
    for number, layer in enumerate(layers[:-1]):
        if number and number == spec.skip:
            h = torch.cat([h, inputs], -1)
        z = _linear(h, layer, rounded)
        value, slope, _ = _value_slope_curvature(z[0], spec.hidden_activation)
        h = rounded(torch.cat([value[None], slope * z[1:]]))
        kept.append(_Kept(z, h))
    return _linear(h, layers[-1], rounded), kept


def _run_backward(
    grad: Tensor, x: Tensor, parameters: Tensor, spec: MlpSpec, bf16: bool, kept: list[_Kept]
) -> tuple[Tensor, Tensor]:
    """Gradients (B, N, inputs) of the stacked input and (P,) of the parameters. Written out, since autograd does not
    work inside an operator's implementation."""
    rounded, layers = rounding(bf16), layers_of(parameters, spec)
    grad, parts, skipped = rounded(grad), [], 0.0
    for number in reversed(range(len(layers))):
        before = kept[number - 1].after if number else rounded(x)
        if number and number == spec.skip:
            before = torch.cat([before, rounded(x)], -1)
        bias = [grad[0].sum(0)] if spec.bias else []
        parts = [torch.einsum("bno,bni->oi", grad, before).flatten(), *bias, *parts]
        grad = grad @ rounded(layers[number].weight)
        if number and number == spec.skip:
            grad, skipped = grad[..., : spec.width], grad[..., spec.width :]
        if number:
            z = kept[number - 1].before
            _, slope, curvature = _value_slope_curvature(z[0], spec.hidden_activation)
            coupled = curvature * (grad[1:] * z[1:]).sum(0)
            grad = rounded(torch.cat([(slope * grad[0] + coupled)[None], slope * grad[1:]]))
    return grad + skipped, torch.cat(parts)


# --- operators --------------------------------------------------------------------------------------------------------


def shape_numbers(spec: MlpSpec) -> list[int]:
    """The spec as operators and kernels are given it: `MlpShape` of polyfield/mlp.h."""
    return [
        spec.inputs,
        spec.outputs,
        spec.width,
        spec.hidden_layers,
        HIDDEN_ACTIVATIONS[spec.hidden_activation],
        OUTPUT_ACTIVATIONS[spec.output_activation],
        int(spec.bias),
        spec.skip or 0,
    ]


def _spec_of(numbers: Sequence[int]) -> MlpSpec:
    inputs, outputs, width, hidden_layers, hidden, output, bias, skip = numbers
    return MlpSpec(
        inputs=inputs,
        outputs=outputs,
        width=width,
        hidden_layers=hidden_layers,
        hidden_activation=list(HIDDEN_ACTIVATIONS)[hidden],
        output_activation=list(OUTPUT_ACTIVATIONS)[output],
        bias=bool(bias),
        skip=skip or None,
    )


def _check(x: Tensor, parameters: Tensor, spec: MlpSpec) -> None:
    if x.dim() != 2 or x.shape[1] != spec.inputs:
        raise ShapeError(f"x must be (N, inputs) = (N, {spec.inputs}) for this spec; got {tuple(x.shape)}")
    if parameters.shape != (spec.parameter_count,):
        raise ShapeError(
            f"parameters must be ({spec.parameter_count},) for this spec; got {tuple(parameters.shape)}; "
            "see initial_parameters"
        )
    if x.dtype not in (torch.float32, torch.float64) or parameters.dtype != x.dtype:
        raise ShapeError(f"x and parameters must both be float32 or both float64; got {x.dtype} and {parameters.dtype}")
    if x.device != parameters.device:
        raise ShapeError(f"x and parameters must be on one device; got {x.device} and {parameters.device}")


def native_suffix(x: Tensor, bf16: bool) -> str:
    return "bf16" if bf16 else _cpu.suffix_of(x)


def _forward(x: Tensor, parameters: Tensor, numbers: list[int], bf16: bool) -> Tensor:
    on_tensor_cores = _on_tensor_cores(bf16, x, parameters)
    if not on_tensor_cores and not _cpu.usable(x, parameters):
        spec = _spec_of(numbers)
        return fused_mlp_reference(x, parameters, spec, precision="bf16" if bf16 else "fp32").clone()
    x, parameters = x.contiguous(), parameters.contiguous()
    y = x.new_empty(x.shape[0], numbers[1])
    if on_tensor_cores:
        network = TensorCoreNetwork(parameters, _spec_of(numbers), numbers)
        network.pack().run()
        network.forward(x, y).run()
        return y
    _cpu.call(f"pf_fused_mlp_forward_{native_suffix(x, bf16)}", x, parameters, y, None, x.shape[0], *numbers)
    return y


def _forward_fake(x: Tensor, parameters: Tensor, numbers: list[int], bf16: bool) -> Tensor:
    return x.new_empty(x.shape[0], numbers[1])


def _forward_keeping(x: Tensor, parameters: Tensor, numbers: list[int], bf16: bool) -> tuple[Tensor, Tensor]:
    """The result, and bytes for `_backward` (none where another backend than the CPU library computes)."""
    y, kept = _forward_keeping_fake(x, parameters, numbers, bf16)
    if not kept.shape[1]:
        return _forward(x, parameters, numbers, bf16), kept
    _cpu.advise_huge_pages(kept)
    x, parameters = x.contiguous(), parameters.contiguous()
    _cpu.call(f"pf_fused_mlp_forward_{native_suffix(x, bf16)}", x, parameters, y, kept, x.shape[0], *numbers)
    return y, kept


def _forward_keeping_fake(x: Tensor, parameters: Tensor, numbers: list[int], bf16: bool) -> tuple[Tensor, Tensor]:
    a_tile = 0
    if _cpu.usable(x, parameters) and not _on_tensor_cores(bf16, x, parameters):
        a_tile = _cpu.call(f"pf_fused_mlp_kept_bytes_{native_suffix(x, bf16)}", 1, *numbers)
    tiles = (x.shape[0] + TILE_ROWS - 1) // TILE_ROWS
    return x.new_empty(x.shape[0], numbers[1]), x.new_empty(tiles, a_tile, dtype=torch.uint8)


def _backward(
    grad: Tensor,
    x: Tensor,
    parameters: Tensor,
    numbers: list[int],
    bf16: bool,
    need_x: bool,
    need_parameters: bool,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and parameters; empty tensors for those not needed. `kept`: from `_forward_keeping`."""
    on_tensor_cores = _on_tensor_cores(bf16, grad, x, parameters)
    if not on_tensor_cores and not _cpu.usable(grad, x, parameters):
        spec = _spec_of(numbers)
        out, run = _run(x[None], layers_of(parameters, spec), spec, rounding(bf16))
        grad = grad * _output_slope(activate_output(out[0], spec), spec)
        x_grad, parameter_grad = _run_backward(grad[None], x[None], parameters, spec, bf16, run)
        return x_grad[0].clone() if need_x else x.new_empty(0), parameter_grad if need_parameters else x.new_empty(0)
    x, parameters, grad = x.contiguous(), parameters.contiguous(), grad.contiguous()
    x_grad = torch.empty_like(x) if need_x else None
    parameter_grad = torch.empty_like(parameters) if need_parameters else None
    if on_tensor_cores:
        _backward_on_cuda(x, parameters, grad, x_grad, parameter_grad, numbers)
        return _or_empty(x_grad, x), _or_empty(parameter_grad, x)
    kept = kept if kept is not None and kept.numel() else None
    name = f"pf_fused_mlp_backward_{native_suffix(x, bf16)}"
    _cpu.call(name, x, parameters, grad, x_grad, parameter_grad, kept, x.shape[0], *numbers)
    return _or_empty(x_grad, x), _or_empty(parameter_grad, x)


def _on_tensor_cores(bf16: bool, *tensors: Tensor) -> bool:
    # In full precision on CUDA the torch expressions run, on cuBLAS.
    return bf16 and _cuda.usable(*tensors) and _cuda.architecture_of(tensors[0]) >= 80


def _backward_on_cuda(
    x: Tensor,
    parameters: Tensor,
    grad: Tensor,
    x_grad: Tensor | None,
    parameter_grad: Tensor | None,
    numbers: list[int],
) -> None:
    if x.shape[0] == 0:
        if parameter_grad is not None:
            parameter_grad.zero_()
        return
    network = TensorCoreNetwork(parameters, _spec_of(numbers), numbers)
    for launch in [network.pack(), *network.backward(x, grad, x_grad, parameter_grad)]:
        launch.run()


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    parameters: Tensor,
    numbers: list[int],
    bf16: bool,
    need_x: bool,
    need_parameters: bool,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if need_x else 0), x.new_empty(parameters.shape if need_parameters else 0)


def _jacobian(x: Tensor, tangents: Tensor, parameters: Tensor, numbers: list[int]) -> tuple[Tensor, Tensor]:
    if not _cpu.usable(x, tangents, parameters):
        value, jacobian = mlp_value_and_jacobian_reference(x, tangents, parameters, _spec_of(numbers))
        return value.clone(), jacobian.contiguous()
    x, tangents, parameters = x.contiguous(), tangents.contiguous(), parameters.contiguous()
    value, jacobian = _jacobian_fake(x, tangents, parameters, numbers)
    name = f"pf_fused_mlp_jacobian_{_cpu.suffix_of(x)}"
    _cpu.call(name, x, tangents, parameters, value, jacobian, x.shape[0], *numbers)
    return value, jacobian


def _jacobian_fake(x: Tensor, tangents: Tensor, parameters: Tensor, numbers: list[int]) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], numbers[1]), x.new_empty(x.shape[0], 3, numbers[1])


def _jacobian_backward(
    value_grad: Tensor,
    jacobian_grad: Tensor,
    x: Tensor,
    tangents: Tensor,
    parameters: Tensor,
    numbers: list[int],
    need: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, tangents and parameters; empty tensors where `need` says no."""
    given = (x, tangents, parameters)
    if not _cpu.usable(value_grad, jacobian_grad, *given):
        spec, stack = _spec_of(numbers), _stacked(x, tangents)
        _, kept = _run(stack, layers_of(parameters, spec), spec, rounding(False))
        grads, parameter_grad = _run_backward(_stacked(value_grad, jacobian_grad), stack, parameters, spec, False, kept)
        results = (grads[0].clone(), grads[1:].movedim(0, 1).contiguous(), parameter_grad)
        return tuple(g if n else x.new_empty(0) for g, n in zip(results, need, strict=True))  # type: ignore[return-value]
    x, tangents, parameters = (t.contiguous() for t in given)
    x_grad, tangents_grad, parameter_grad = (
        torch.empty_like(t) if n else None for t, n in zip((x, tangents, parameters), need, strict=True)
    )
    grads = (value_grad.contiguous(), jacobian_grad.contiguous(), x_grad, tangents_grad, parameter_grad)
    name = f"pf_fused_mlp_jacobian_backward_{_cpu.suffix_of(x)}"
    _cpu.call(name, x, tangents, parameters, *grads, x.shape[0], *numbers)
    return _or_empty(x_grad, x), _or_empty(tangents_grad, x), _or_empty(parameter_grad, x)


def _jacobian_backward_fake(
    value_grad: Tensor,
    jacobian_grad: Tensor,
    x: Tensor,
    tangents: Tensor,
    parameters: Tensor,
    numbers: list[int],
    need: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = [t.shape if n else (0,) for t, n in zip((x, tangents, parameters), need, strict=True)]
    return x.new_empty(sizes[0]), x.new_empty(sizes[1]), x.new_empty(sizes[2])


def _or_empty(grad: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if grad is None else grad


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], None if isinstance(output, Tensor) else output[1])
    ctx.numbers, ctx.bf16 = inputs[2], inputs[3]
    ctx.set_materialize_grads(False)  # zeros for what is kept would be as large


def _differentiate(
    ctx: Any, grad: Tensor | None, *_kept: Tensor | None
) -> tuple[Tensor | None, Tensor | None, None, None]:
    if grad is None:
        return None, None, None, None
    need_x, need_parameters = ctx.needs_input_grad[:2]
    x, parameters, kept = ctx.saved_tensors
    grads = _fused_mlp_backward(grad, x, parameters, ctx.numbers, ctx.bf16, need_x, need_parameters, kept)
    return grads[0] if need_x else None, grads[1] if need_parameters else None, None, None


def _save_jacobian(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.numbers = inputs[3]


def _differentiate_jacobian(ctx: Any, value_grad: Tensor, jacobian_grad: Tensor) -> tuple[Tensor | None, ...]:
    need = list(ctx.needs_input_grad[:3])
    grads = _mlp_jacobian_backward(value_grad, jacobian_grad, *ctx.saved_tensors, ctx.numbers, need)
    return (*(g if n else None for g, n in zip(grads, need, strict=True)), None)


def _refuse(name: str) -> Callable[..., Any]:
    def refuse(ctx: Any, *grads: Tensor) -> Any:
        raise ConfigError(FIRST_ORDER_ONLY.format(name))

    return refuse


_fused_mlp = _library.define(
    "fused_mlp(Tensor x, Tensor parameters, int[] spec, bool bf16) -> Tensor",
    _forward,
    _forward_fake,
    setup_context=_save,
    backward=_differentiate,
)
_fused_mlp_keeping = _library.define(
    "fused_mlp_keeping(Tensor x, Tensor parameters, int[] spec, bool bf16) -> (Tensor, Tensor)",
    _forward_keeping,
    _forward_keeping_fake,
    setup_context=_save,
    backward=_differentiate,
)
_fused_mlp_backward = _library.define(
    "fused_mlp_backward(Tensor grad, Tensor x, Tensor parameters, int[] spec, bool bf16, bool need_x,"
    " bool need_parameters, Tensor? kept=None) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
    backward=_refuse("fused_mlp"),
)
_mlp_jacobian = _library.define(
    "mlp_jacobian(Tensor x, Tensor tangents, Tensor parameters, int[] spec) -> (Tensor, Tensor)",
    _jacobian,
    _jacobian_fake,
    setup_context=_save_jacobian,
    backward=_differentiate_jacobian,
)
_mlp_jacobian_backward = _library.define(
    "mlp_jacobian_backward(Tensor value_grad, Tensor jacobian_grad, Tensor x, Tensor tangents, Tensor parameters,"
    " int[] spec, bool[] need) -> (Tensor, Tensor, Tensor)",
    _jacobian_backward,
    _jacobian_backward_fake,
    backward=_refuse("mlp_value_and_jacobian"),
)
