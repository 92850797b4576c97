"""How does a model hold a small fully connected network? As one flat parameter over the fused operators."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..ops.fused_mlp import PRECISIONS, MlpSpec, fused_mlp, initial_parameters, mlp_value_and_jacobian
from ..ops.muon import Matrix


@final
class MLP(nn.Module):
    """A network of 1 to 8 hidden layers of equal width, with a skip connection where the spec has one.

    Attributes:
        spec: its shape.
        precision: "fp32" or "bf16" (products rounded to bfloat16, parameters and sums in float32); may be changed any
            time. A float64 network always computes in float64, and `value_and_jacobian` in the parameters' dtype.
        parameters_flat: (spec.parameter_count,), see `ops.fused_mlp` for the order.
    """

    def __init__(
        self,
        spec: MlpSpec,
        *,
        precision: Literal["fp32", "bf16"] = "fp32",
        generator: torch.Generator | None = None,
    ) -> None:
        """Raises ConfigError where `precision` is unknown. `generator` (CPU) makes the initial weights repeatable."""
        super().__init__()
        if precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
        self.spec = spec
        self.precision: Literal["fp32", "bf16"] = precision
        self.parameters_flat = nn.Parameter(initial_parameters(spec, generator))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, inputs) -> (N, outputs); gradients reach x and the parameters. Errors as `fused_mlp`."""
        precision = "fp32" if self.parameters_flat.dtype == torch.float64 else self.precision
        return fused_mlp(x, self.parameters_flat, self.spec, precision=precision)

    def value_and_jacobian(self, x: Tensor, x_tangents: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, inputs) and x_tangents (N, 3, inputs) = d x / d position -> value (N, outputs) and jacobian
        (N, 3, outputs) = d value / d position; gradients and errors as `mlp_value_and_jacobian`."""
        return mlp_value_and_jacobian(x, x_tangents, self.parameters_flat, self.spec)

    def matrices(self) -> list[Matrix]:
        """The weights of the hidden layers."""
        found, first = [], 0
        for out, size in self.spec.layer_shapes[:-1]:
            found.append(Matrix(self.parameters_flat, first, (out, size)))
            first += out * (size + self.spec.bias)
        return found

    def extra_repr(self) -> str:
        return f"{self.spec}, precision={self.precision!r}"
