"""NeRF's positional encoding as a module (see `fields.ops.frequency_encode` for columns and source), of points or, as
mip-NeRF integrates it, of Gaussians.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..ops.frequency_encode import frequency_encode, frequency_features, frequency_value_and_jacobian


def octaves_left(variance: Tensor, octaves: int) -> Tensor:
    """What is left of sines and cosines of 2^k pi x where x is spread as a Gaussian: their mean is that of the middle
    times exp(-(2^k pi)^2 variance / 2) (mip-NeRF, Barron et al. 2021, equation 11).

    Args:
        variance: (N, D), at least 0.

    Returns:
        (N, octaves, D) in [0, 1]: 1 where the variance is 0. Gradients reach `variance`.
    """
    rates = (0.5 * math.pi**2) * 4.0 ** torch.arange(octaves, device=variance.device, dtype=variance.dtype)
    return torch.exp(-variance[:, None] * rates[:, None])


class FrequencyEncoding(nn.Module):
    """Inputs to sines and cosines of doubling frequency. No parameters.

    Args:
        octaves: number of frequencies, 1 to 32; NeRF uses 10 for positions and 4 for directions.
        inputs: D, width of the input.
        include_input: whether the input itself comes first.
        unit: whether inputs come in [0, 1] (clamped, with derivative zero outside) and are taken to [-1, 1] first.
    """

    features: int
    """Width of the encoding."""

    def __init__(self, octaves: int = 10, inputs: int = 3, include_input: bool = True, unit: bool = False) -> None:
        super().__init__()
        if not 1 <= octaves <= 32 or inputs < 1:
            raise ConfigError(f"octaves must be 1 to 32 and inputs at least 1; got {octaves} and {inputs}")
        self.octaves, self.inputs, self.include_input, self.unit = octaves, inputs, include_input, unit
        self.features = frequency_features(inputs, octaves, include_input)

    def forward(self, x: Tensor, variance: Tensor | None = None) -> Tensor:
        """(N, inputs) -> (N, features).

        With `variance` (N, inputs), in squares of the unit of x, what comes out is the mean over Gaussians around `x`:
        octaves finer than they are wide fade to zero. Zero variance changes nothing.
        """
        features = frequency_encode(2 * x.clamp(0, 1) - 1 if self.unit else x, self.octaves, self.include_input)
        if variance is None:
            return features
        left = octaves_left(4 * variance if self.unit else variance, self.octaves)
        first = self.inputs * self.include_input
        waves = features[:, first:] * torch.cat([left, left], 2).flatten(1)
        return torch.cat([features[:, :first], waves], 1)

    def value_and_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, inputs) -> features (N, features) and d features / d x (N, inputs, features)."""
        if not self.unit:
            return frequency_value_and_jacobian(x, self.octaves, self.include_input)
        value, jacobian = frequency_value_and_jacobian(2 * x.clamp(0, 1) - 1, self.octaves, self.include_input)
        slope = 2.0 * ((x >= 0) & (x <= 1)).to(x.dtype)
        return value, slope[:, :, None] * jacobian

    def extra_repr(self) -> str:
        return f"octaves={self.octaves}, inputs={self.inputs}, include_input={self.include_input}, unit={self.unit}"
