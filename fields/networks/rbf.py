"""How does a layer of Gaussian units turn features into values? GNF's decoder (Bouzidi et al. 2025, arXiv 2503.06762).

A unit k answers for features f by how near they are to its centre c_k, each channel i at a sharpness of its own, and
the values are weighted sums of what the units answer, beside a linear map of the features:

    phi_k(f) = exp(-1/2 sum_i beta_ki (f_i - c_ki)^2),   beta = exp(log_beta),   y = A phi(f) + B f + a

The linear map stands in a figure of the paper's first version and not in its released code. Through it every feature
learns from the first step, near a centre or not: armadillo after 400 steps has an IoU of .9963 with it, .9931 without.

The square is expanded, beta f^2 - 2 beta c f + beta c^2: two matrix products and no tensor of points x units x
channels. Terms that cancel must not be rounded coarsely, so all of it is float32 (or float64), also under autocast.

Start. The paper draws centres as near zero as the features of a hash grid begin (1e-4), with every beta 1: all units
answer 1 and pass gradients of 1e-4. Here centres are normal with deviation SPREAD, which Adam moves a feature in some
ten steps, and beta is log-normal around 1 / (n SPREAD^2), n channels. With all betas at that median, features near zero
would be about one deviation from every centre, where a Gaussian is steep. The wide law lets a unit look sharply at a
few channels and pass over the others, and gives units different reach: of those for 32 channels a quarter answers more
than 0.01 at zero, and the rest waits for features to come near.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError

SPREAD = 0.1
"""Deviation of the first centres. On a 256x256 crop of a Kodak image (hash features, 300 steps of 2^13 points, one
seed) 0.03, 0.1 and 0.2 gave 25.8, 25.2 and 24.3 dB, and the paper's start 22.1. On a mesh (armadillo, 200 steps of 2^13
points) 0.1, 0.2 and 0.3 had the sign of the distance right at 93 % of the points, 0.02 (and 2.5
below) at 61 %."""
SHARPNESS_DEVIATION = 3.0
"""Of log beta. On that crop 0 gave 22.9 dB and 3 gave 25.0."""
_RUN = 2048  # rows at a time without gradients, on a CPU


@final
class RbfLayer(nn.Module):
    """Features to values by Gaussian units.

    Attributes:
        centres: (K, n), c.
        log_beta: (K, n).
        weight: (outputs, K), A.
        slope: (outputs, n), B.
        bias: (outputs,), a.
    """

    def __init__(self, inputs: int, outputs: int, units: int = 64, *, generator: torch.Generator | None = None) -> None:
        """`inputs` is n, `units` K. `generator` (CPU) makes the start repeatable.

        Raises:
            ConfigError: one of the three is not positive.
        """
        super().__init__()
        if min(inputs, outputs, units) < 1:
            raise ConfigError(f"inputs, outputs and units must be positive; got {inputs}, {outputs} and {units}")
        self.centres = nn.Parameter(SPREAD * torch.randn(units, inputs, generator=generator))
        spread = SHARPNESS_DEVIATION * torch.randn(units, inputs, generator=generator)
        self.log_beta = nn.Parameter(spread - math.log(inputs * SPREAD**2))
        weight = torch.empty(outputs, units).uniform_(-1, 1, generator=generator) / math.sqrt(units)
        self.weight = nn.Parameter(weight)  # PyTorch's own law of linear layers
        slope = torch.empty(outputs, inputs).uniform_(-1, 1, generator=generator) / math.sqrt(inputs)
        self.slope = nn.Parameter(slope)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, n) of any floating dtype -> (N, outputs) in that of the parameters; gradients reach x and the
        parameters.

        Raises:
            ShapeError: x is not (N, n).
        """
        inputs = self.centres.shape[1]
        if x.ndim != 2 or x.shape[1] != inputs:
            raise ShapeError(f"x must be (N, {inputs}); got {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.centres.dtype)
            beta = self.log_beta.exp()
            pulled = beta * self.centres
            least = -0.5 * (pulled * self.centres).sum(1)

            def answer(rows: Tensor) -> Tensor:
                exponent = torch.addmm(least, rows, pulled.T)
                exponent = torch.addmm(exponent, rows.square(), beta.T, alpha=-0.5)
                # Rounding may leave it above 0.
                units = torch.addmm(self.bias, exponent.clamp(max=0).exp(), self.weight.T)
                return torch.addmm(units, rows, self.slope.T)

            if x.is_cuda or torch.is_grad_enabled():
                return answer(x)
            return torch.cat([answer(rows) for rows in x.split(_RUN)])  # the units of all rows would leave the cache

    def extra_repr(self) -> str:
        (units, inputs), outputs = self.centres.shape, len(self.bias)
        return f"inputs={inputs}, outputs={outputs}, units={units}"
