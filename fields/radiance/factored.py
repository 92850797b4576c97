"""What radiance fields of planes and lines have in common: how they grow.

Coarse to fine, and with the box drawn in round what turns out to be occupied, as TensoRF does (Chen et al. 2022, arXiv
2203.09517). Unlike TensoRF's, the density is not the plain sum of components: a small network decodes them, as in the
other fields here.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..encodings.factored_grid import FactoredGridEncoding
from ..errors import ConfigError
from ..ops.factored_encode import FactoredGridSpec
from .encoded import EncodedField, EncodedFieldConfig, density_network

STAGES = (0.04, 0.07, 0.10, 0.14, 0.19)
"""Shares of the training after which the grid is refined; TensoRF's, at 2000 to 7000 of 30,000 steps, are 0.07 to
0.23."""
MARGIN = 2
"""Texels that the box keeps round what is occupied."""


@dataclass(frozen=True, kw_only=True)
class FactoredFieldConfig(EncodedFieldConfig, ABC):
    """What a `FactoredField` is made of, and what it has grown to."""

    first_voxels: int = 128**3
    """Voxels of the box at the start."""
    final_voxels: int = 300**3
    """And after the last stage (TensoRF: 300^3)."""
    stage: int = 0
    """How often it has been refined."""
    box: tuple[float, ...] = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
    """Lower and upper corner of what the grid covers, in units of the cube that the field covers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 8 <= self.first_voxels <= self.final_voxels <= 4096**3:
            text = "8 <= first_voxels <= final_voxels <= 4096^3 must hold"
            raise ConfigError(f"{text}; got {self.first_voxels} and {self.final_voxels}")
        if not 0 <= self.stage <= len(STAGES):
            raise ConfigError(f"stage must be 0 to {len(STAGES)}; got {self.stage}")
        box = self.box
        if len(box) != 6 or not all(-1 <= low < high <= 1 for low, high in zip(box[:3], box[3:], strict=True)):
            raise ConfigError(f"box must be a lower and an upper corner within [-1, 1]^3; got {box}")

    @property
    def resolution(self) -> tuple[int, int, int]:
        """Texels along the axes: voxels as nearly cubic as they can be."""
        share = self.stage / len(STAGES)
        voxels = math.exp((1 - share) * math.log(self.first_voxels) + share * math.log(self.final_voxels))
        sizes = [high - low for low, high in zip(self.box[:3], self.box[3:], strict=True)]
        edge = (math.prod(sizes) / voxels) ** (1 / 3)
        x, y, z = (max(2, round(size / edge)) for size in sizes)
        return x, y, z

    @property
    @abstractmethod
    def spec(self) -> FactoredGridSpec:
        """Shape of the grid."""


class FactoredField(EncodedField):
    """Concrete fields say how texels start. `config` says what it has grown to."""

    encoding: FactoredGridEncoding

    def __init__(self, config: FactoredFieldConfig, low: float, high: float, *, origin: float = 0.0, seed: int) -> None:
        """Texels start uniform between `low` and `high`; `origin` is subtracted from the features."""
        generator = torch.Generator().manual_seed(seed)
        encoding = FactoredGridEncoding(config.spec, generator, low, high, origin=origin)
        super().__init__(config, encoding, density_network(config, encoding.features, generator), generator)

    def to_unit(self, x: Tensor) -> Tensor:
        """Scene positions (N, 3) to the box's [0, 1]^3."""
        low, high = x.new_tensor(self.config.box).view(2, 3)
        return (super().to_unit(x) * 2 - 1 - low) / (high - low)

    def grow(self, progress: float, occupied: Callable[[], Tensor]) -> bool:
        stage = sum(progress >= at for at in STAGES)
        if stage <= self.config.stage:
            return False
        before = torch.tensor(self.config.box).view(2, 3)
        box = before if self.contraction != "none" else self._drawn_in(occupied(), before)
        config = dataclasses.replace(self.config, stage=stage, box=tuple(box.flatten().tolist()))
        low, high = ((corner - before[0]) / (before[1] - before[0]) for corner in box)
        device = self.encoding.table.device
        self.encoding = self.encoding.resampled(config.spec, low.to(device), high.to(device))
        self.config = config
        return True

    def growth(self) -> dict[str, Any]:
        return {"stage": self.config.stage, "box": list(self.config.box)}

    def regrow(self, growth: dict[str, Any]) -> None:
        self.config = dataclasses.replace(self.config, stage=int(growth["stage"]), box=tuple(growth["box"]))
        encoding = FactoredGridEncoding(self.config.spec, None, 0.0, 0.0, origin=self.encoding.origin)
        self.encoding = encoding.to(self.encoding.table.device)

    def _drawn_in(self, occupied: Tensor, box: Tensor) -> Tensor:
        """(2, 3) the part of the box that holds what is occupied, with a margin."""
        margin = MARGIN * (box[1] - box[0]) / torch.tensor(self.config.resolution)
        inside = occupied.cpu() / self.config.extent + torch.stack([-margin, margin])
        low, high = torch.maximum(inside[0], box[0]), torch.minimum(inside[1], box[1])
        return torch.stack([low, high]) if bool((high - low > margin).all()) else box
