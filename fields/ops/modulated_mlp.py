"""What does a network of CAM say of a batch of rows, once the scales and shifts of its layers are known?

Every hidden layer is normalised over the channels of its row and modulated, as `ops.modulate` does it (Lee et al. 2024,
arXiv 2311.14993, section 3, per point), and a ReLU follows:

    z = W h + b,  zhat = (z - mean) / sqrt(variance + 1e-5),  h = max(scale zhat + shift, 0)

The last layer is linear, with the spec's output activation. As `ops.fused_mlp`, whose parameters and tiles these are,
the whole network runs in cache; what stays of a row for the backward pass is zhat of every layer. This is an operator
of CPUs: elsewhere the reference computes, and `networks.CoordinateNetwork` goes layer by layer, over `ops.modulate`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from . import _cpu, _library
from .fused_mlp import (
    PRECISIONS,
    TILE_ROWS,
    MlpSpec,
    activate_output,
    layers_of,
    native_suffix,
    rounding,
    shape_numbers,
)
from .modulate import modulate_reference


def modulated_mlp(
    x: Tensor, parameters: Tensor, moduli: Tensor, spec: MlpSpec, *, precision: Literal["fp32", "bf16"] = "fp32"
) -> Tensor:
    """Run the network.

    Args:
        x: (N, spec.inputs) float32 or float64; NaN and Inf reach the results of their own row and, by way of a
            gradient, the parameters.
        parameters: (spec.parameter_count,), same dtype and device, in the order of `ops.fused_mlp`.
        moduli: (N, 2, spec.hidden_layers) scales and shifts, same dtype and device.
        spec: shape of the network; its hidden activation must be "relu".
        precision: "bf16" rounds weights, activations and their gradients to bfloat16 and sums in float32, moments of
            rows included; it wants float32 tensors.

    Returns:
        (N, spec.outputs), after the output activation.

    Gradients reach x, parameters and moduli; first order only where `is_native`, any order where the reference
    computes. They are the same for any number of threads.

    Raises:
        ShapeError: a shape, dtype or device is not as above.
        ConfigError: `precision` is unknown or does not fit the dtype, the activation is none that is modulated, or a
            second derivative is asked for.
    """
    _check(x, parameters, moduli, spec, precision)
    if not is_native(x, parameters, moduli):
        return modulated_mlp_reference(x, parameters, moduli, spec, precision=precision)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, parameters, moduli))
    return _modulated_mlp(x, parameters, moduli, shape_numbers(spec), precision == "bf16", keep)[0]


def is_native(*tensors: Tensor) -> bool:
    """Whether the fused form computes: the library is there, and all of these are on the CPU. Where `torch.compile`
    traces, it is torch that fuses."""
    return not torch.compiler.is_compiling() and _cpu.usable(*tensors)


def modulated_mlp_reference(
    x: Tensor, parameters: Tensor, moduli: Tensor, spec: MlpSpec, *, precision: Literal["fp32", "bf16"] = "fp32"
) -> Tensor:
    """`modulated_mlp` in plain torch, differentiable any number of times, any device. With "bf16" values are rounded
    as there, the gradients that autograd makes of them are not."""
    rounded = rounding(precision == "bf16")
    h = inputs = rounded(x)
    *hidden, last = layers_of(parameters, spec)
    for number, layer in enumerate(hidden):
        if number and number == spec.skip:
            h = torch.cat([h, inputs], 1)
        z = torch.nn.functional.linear(h, rounded(layer.weight), layer.bias)
        one = torch.ones_like(z[:, 0])
        zhat = rounded(modulate_reference(z, one, torch.zeros_like(one), relu=False))
        h = rounded(torch.relu(moduli[:, 0, number, None] * zhat + moduli[:, 1, number, None]))
    return activate_output(torch.nn.functional.linear(h, rounded(last.weight), last.bias), spec)


def _check(x: Tensor, parameters: Tensor, moduli: Tensor, spec: MlpSpec, precision: str) -> None:
    if x.dim() != 2 or x.shape[1] != spec.inputs or x.dtype not in (torch.float32, torch.float64):
        wanted = f"(N, {spec.inputs}) float32 or float64"
        raise ShapeError(f"x must be {wanted} for this spec; got {tuple(x.shape)} {x.dtype}")
    given = {
        "parameters": (parameters, (spec.parameter_count,)),
        "moduli": (moduli, (x.shape[0], 2, spec.hidden_layers)),
    }
    for name, (tensor, shape) in given.items():
        if tensor.shape != shape or tensor.dtype != x.dtype or tensor.device != x.device:
            got = f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
            raise ShapeError(f"{name} must be {shape} {x.dtype} on {x.device} for this x and spec; got {got}")
    if spec.hidden_activation != "relu":
        raise ConfigError(f"a modulated network's hidden_activation must be 'relu'; got {spec.hidden_activation!r}")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    if precision == "bf16" and x.dtype != torch.float32:
        raise ConfigError(f"precision 'bf16' takes float32 tensors; got {x.dtype}; use precision='fp32'")


def _forward(
    x: Tensor, parameters: Tensor, moduli: Tensor, numbers: list[int], bf16: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    """The result, and bytes for `_backward` where they are to be kept."""
    y, kept = _forward_fake(x, parameters, moduli, numbers, bf16, keep)
    if keep:
        _cpu.advise_huge_pages(kept, in_use=False)
    x, parameters, moduli = x.contiguous(), parameters.contiguous(), moduli.contiguous()
    name = f"pf_modulated_mlp_forward_{native_suffix(x, bf16)}"
    _cpu.call(name, x, parameters, moduli, y, kept if keep else None, x.shape[0], *numbers)
    return y, kept


def _forward_fake(
    x: Tensor, parameters: Tensor, moduli: Tensor, numbers: list[int], bf16: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    a_tile = _cpu.call(f"pf_modulated_mlp_kept_bytes_{native_suffix(x, bf16)}", 1, *numbers) if keep else 0
    tiles = (x.shape[0] + TILE_ROWS - 1) // TILE_ROWS
    return x.new_empty(x.shape[0], numbers[1]), x.new_empty(tiles, a_tile, dtype=torch.uint8)


def _backward(
    grad: Tensor,
    x: Tensor,
    parameters: Tensor,
    moduli: Tensor,
    y: Tensor,
    kept: Tensor,
    numbers: list[int],
    bf16: bool,
    need: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, parameters and moduli; empty tensors where `need` says no."""
    x, parameters, moduli = x.contiguous(), parameters.contiguous(), moduli.contiguous()
    grads = _backward_fake(grad, x, parameters, moduli, y, kept, numbers, bf16, need)
    d_x, d_parameters, d_moduli = (g if n else None for g, n in zip(grads, need, strict=True))
    name = f"pf_modulated_mlp_backward_{native_suffix(x, bf16)}"
    given = (x, parameters, moduli, y.contiguous(), grad.contiguous())
    _cpu.call(name, *given, d_x, d_moduli, d_parameters, kept, x.shape[0], *numbers)
    return grads


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    parameters: Tensor,
    moduli: Tensor,
    y: Tensor,
    kept: Tensor,
    numbers: list[int],
    bf16: bool,
    need: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    given = zip((x, parameters, moduli), need, strict=True)
    d_x, d_parameters, d_moduli = (t.new_empty(t.shape if n else 0) for t, n in given)
    return d_x, d_parameters, d_moduli


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, parameters, moduli, ctx.numbers, ctx.bf16, _ = inputs
    ctx.save_for_backward(x, parameters, moduli, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # of what is kept none comes, and zeros of it would be 100 MB


def _autograd(ctx: Any, grad: Tensor | None, _kept: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    need = list(ctx.needs_input_grad[:3])
    grads = _modulated_mlp_backward(grad, *ctx.saved_tensors, ctx.numbers, ctx.bf16, need)
    return *(g if n else None for g, n in zip(grads, need, strict=True)), None, None, None


def _refuse(ctx: Any, *grads: Tensor) -> Any:
    raise ConfigError("modulated_mlp has first derivatives only; use modulated_mlp_reference for more")


_modulated_mlp_backward = _library.define(
    "modulated_mlp_backward(Tensor grad, Tensor x, Tensor parameters, Tensor moduli, Tensor y, Tensor kept, int[] spec,"
    " bool bf16, bool[] need) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    backward=_refuse,
)
_modulated_mlp = _library.define(
    "modulated_mlp(Tensor x, Tensor parameters, Tensor moduli, int[] spec, bool bf16, bool keep) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    setup_context=_setup,
    backward=_autograd,
)
