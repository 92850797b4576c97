"""Spherical harmonics of viewing directions as a module (see `fields.ops.spherical_harmonics` for order and signs)."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import ConfigError
from ..ops.spherical_harmonics import spherical_harmonics


class SphericalHarmonicsEncoding(nn.Module):
    """Unit directions to degree * degree basis values. No parameters.

    Args:
        degree: number of bands, 1 to 4.
    """

    features: int
    """Width of the encoding."""

    def __init__(self, degree: int = 4) -> None:
        super().__init__()
        if degree not in (1, 2, 3, 4):
            raise ConfigError(f"degree (number of bands) must be 1, 2, 3 or 4; got {degree}")
        self.degree = degree
        self.features = degree * degree

    def forward(self, directions: Tensor) -> Tensor:
        """(N, 3) unit vectors -> (N, features)."""
        return spherical_harmonics(directions, self.degree)

    def extra_repr(self) -> str:
        return f"degree={self.degree}"
