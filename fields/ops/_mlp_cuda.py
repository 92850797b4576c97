"""Which kernels does a bf16 network take on CUDA, and with which buffers? The launches of `cuda/gpu/mlp.cu`, for the
operators of `fused_mlp` and for larger programs that hold networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _cuda

if TYPE_CHECKING:
    from .fused_mlp import MlpSpec


def _padded(count: int) -> int:
    return (count + 15) // 16 * 16


class TensorCoreNetwork:
    """The launches of a bf16 network on CUDA, and the buffers that they need. Final."""

    def __init__(self, parameters: Tensor, spec: MlpSpec, numbers: list[int]) -> None:
        """Args: parameters: (P,) float32. numbers: the spec as `shape_numbers` gives it."""
        self.parameters, self.numbers, self.spec = parameters, numbers, spec
        # "wide" kernels share 64 rows among the 8 warps of a block
        self.kind = "wide" if spec.width > 128 or spec.skip else str(spec.width)
        count = sum(_padded(out) * _padded(size) for out, size in self.spec.layer_shapes)
        self.packed = parameters.new_empty(2 * count, dtype=torch.bfloat16)

    def pack(self) -> _cuda.Launch:
        """Weights in bfloat16 as the tensor cores read them, for both directions; before anything else."""
        grid = _cuda.one_thread_each(self.packed.numel() // 4)
        return _cuda.Launch("pf_mlp_pack_bf16", grid, (self.parameters, self.packed, *self.numbers))

    def forward(self, x: Tensor, y: Tensor, rows: _cuda.Held | None = None) -> _cuda.Launch:
        """y (N, outputs) of x (N, inputs); of the first `rows` of them where given."""
        each = 8 if self.kind == "wide" else 16 if self.spec.width == 128 else 32  # rows of a warp
        grid = _cuda.one_thread_each(32 * -(-x.shape[0] // each))
        arguments = (x, self.parameters, self.packed, y, x.shape[0] if rows is None else rows, *self.numbers)
        return _cuda.Launch(f"pf_mlp_forward_bf16_{self.kind}", grid, arguments)

    def backward(
        self, x: Tensor, grad: Tensor, x_grad: Tensor | None, gradient: Tensor | None, rows: _cuda.Held | None = None
    ) -> list[_cuda.Launch]:
        """x_grad (N, inputs) and gradient (P,) from grad (N, outputs), N > 0."""
        spec, tiles, shapes = self.spec, -(-x.shape[0] // 16), self.spec.layer_shapes
        columns = sum(_padded(out) for out, _ in shapes)  # deltas
        columns += _padded(spec.inputs) + spec.width * spec.hidden_layers  # what enters each layer
        columns += spec.width * spec.hidden_layers * (spec.hidden_activation in ("softplus", "sine"))  # slopes
        scratch = x.new_empty(16 * tiles * columns, dtype=torch.bfloat16)
        count = x.shape[0] if rows is None else rows
        grid = _cuda.one_thread_each(32 * (2 if self.kind == "wide" else 1) * tiles)
        given = (x, self.parameters, self.packed, grad, x_grad, scratch, count, *self.numbers)
        back = _cuda.Launch(f"pf_mlp_backward_bf16_{self.kind}", grid, given)
        if gradient is None:
            return [back]
        slots = max(1, min(256, tiles // 16))
        tasks = sum(_padded(out) // 16 * -(-size // 64) for out, size in shapes)
        partials = x.new_empty(slots, sum(_padded(out) * (_padded(size) + spec.bias) for out, size in shapes))
        grid = _cuda.one_thread_each(32 * slots * tasks)
        sums = (scratch, partials, slots, tasks, count, *self.numbers)
        total = (partials, slots, gradient, *self.numbers)
        return [
            back,
            _cuda.Launch("pf_mlp_weight_gradient_bf16", grid, sums),
            _cuda.Launch("pf_mlp_reduce", _cuda.one_thread_each(gradient.numel()), total),
        ]
