"""What colour has a point from a direction, when small grids over the viewing angle modulate the network?

CAM's grids of azimuth and elevation (Lee et al. 2024, arXiv 2311.14993, section 4), on the colour network alone: in the
paper they scale and shift the layers that density comes from too, which then is another from every side. A layer is
`ops.modulate` with a ReLU, as in `coordinate`. The azimuth wraps, and the rows of the poles are means over it, so that
colours are continuous on the whole sphere (the released code has a seam, and one value for all that looks up).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, final

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..ops.factored_encode import FactoredGridSpec, Term, factored_encode
from ..ops.modulate import modulate
from .coordinate import padded_rows, unmodulated

LEAST, MOST = (1, 2), 256
"""Cells of azimuth and elevation."""


@final
class ViewNetwork(nn.Module):
    """Features of points and directions to colours in [0, 1].

    Attributes:
        grids: (elevations, azimuths, 2, hidden_layers) scales and shifts; elevations from straight down to straight up,
            both included.
        precision: "bf16" multiplies in bfloat16. May be changed any time.
    """

    def __init__(
        self,
        inputs: int,
        cells: tuple[int, int],
        *,
        width: int,
        hidden_layers: int,
        precision: Literal["fp32", "bf16"] = "fp32",
        generator: torch.Generator | None = None,
    ) -> None:
        """
        Args:
            inputs: F, features of a point, the encoding of the direction included.
            cells: azimuths (1 to 256) and elevations (2 to 256).

        Raises:
            ConfigError: a number of cells is out of its range.
        """
        super().__init__()
        if not all(low <= n <= MOST for low, n in zip(LEAST, cells, strict=True)):
            raise ConfigError(f"view_cells must be {LEAST[0]} to {MOST} azimuths and {LEAST[1]} to {MOST} elevations")
        self.precision = precision
        azimuths, elevations = cells
        self.grids = nn.Parameter(unmodulated(elevations, azimuths, layers=hidden_layers))
        term = Term(factors=("xy",), channels=2 * hidden_layers, resolution=(azimuths + 1, elevations, 2))
        self._spec = FactoredGridSpec(terms=(term,))
        sizes = [inputs, *[width] * hidden_layers]
        self.layers = nn.ModuleList(nn.Linear(*shape) for shape in pairwise(sizes))
        self.head = nn.Linear(width, 3)
        with torch.no_grad():
            for layer in (*self.layers, self.head):
                nn.init.xavier_uniform_(layer.weight, generator=generator)  # type: ignore[arg-type]
                layer.bias.zero_()  # type: ignore[union-attr]

    def forward(self, features: Tensor, directions: Tensor) -> Tensor:
        """features (N, F), unit directions (N, 3) -> colours (N, 3). Gradients reach both; at the poles, where azimuth
        means nothing, that of directions is zero."""
        count, fast = len(features), self.precision == "bf16" and features.dtype == torch.float32
        if fast:
            features, directions = padded_rows(features), padded_rows(directions)
        by_layer = self._modulation(directions).permute(2, 1, 0).contiguous().unbind()
        h = features
        with torch.autocast(features.device.type, torch.bfloat16, enabled=fast):
            for layer, values in zip(self.layers, by_layer, strict=True):
                h = modulate(layer(h), *values, relu=True)
            return self.head(h).to(features.dtype)[:count].sigmoid()

    def _modulation(self, directions: Tensor) -> Tensor:
        """(N, 2, layers): scales and shifts."""
        mean = self.grids.mean(1, keepdim=True).expand_as(self.grids)
        grids = torch.cat([mean[:1], self.grids[1:-1], mean[-1:]])
        grids = torch.cat([grids, grids[:, :1]], 1)
        values = factored_encode(angles(directions), grids.reshape(-1), self._spec)
        return values.reshape(len(directions), 2, len(self.layers))


def angles(directions: Tensor) -> Tensor:
    """Unit directions (N, 3) -> (N, 3): azimuth in turns from -x by -y on, elevation from 0 (down) to 1 (up), and 0."""
    x, y, z = directions.unbind(1)
    radius2 = x * x + y * y
    pole = radius2 < 1e-12
    x, radius2 = torch.where(pole, 1.0, x), torch.where(pole, 1e-12, radius2)
    y = torch.where(pole, 0.0, y)
    azimuth = torch.atan2(y, x) / (2 * math.pi) + 0.5
    elevation = torch.atan2(z, radius2.sqrt()) / math.pi + 0.5
    return torch.stack([azimuth, elevation, torch.zeros_like(z)], 1)
