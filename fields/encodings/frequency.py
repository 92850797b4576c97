"""NeRF's positional encoding as a module (see `fields.ops.frequency_encode` for columns and source)."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import ConfigError
from ..ops.frequency_encode import frequency_encode, frequency_features, frequency_value_and_jacobian


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

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, features)."""
        return frequency_encode(2 * x.clamp(0, 1) - 1 if self.unit else x, self.octaves, self.include_input)

    def value_and_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, inputs) -> features (N, features) and d features / d x (N, inputs, features)."""
        if not self.unit:
            return frequency_value_and_jacobian(x, self.octaves, self.include_input)
        value, jacobian = frequency_value_and_jacobian(2 * x.clamp(0, 1) - 1, self.octaves, self.include_input)
        slope = 2.0 * ((x >= 0) & (x <= 1)).to(x.dtype)
        return value, slope[:, :, None] * jacobian

    def extra_repr(self) -> str:
        return f"octaves={self.octaves}, inputs={self.inputs}, include_input={self.include_input}, unit={self.unit}"
