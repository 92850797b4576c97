"""CAM's field: what a scene is when small grids modulate the layers of NeRF's network (Lee et al. 2024, arXiv
2311.14993).

Every layer is normalised over the channels of its point, so that the density of a point depends on that point alone,
and scaled and shifted by values on three planes. The paper's own form for static scenes normalises over all samples of
a ray and lets the planes span viewing angles: that is no field (its density changes with the view).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from ..errors import ConfigError
from .mlp import MlpField, MlpFieldConfig


@dataclass(frozen=True, kw_only=True)
class CamFieldConfig(MlpFieldConfig):
    """What a `CamField` is made of."""

    density_width: int = 128
    """Half of NeRF's: modulated layers learn more in the time that the narrower ones leave."""
    modulation: int | None = 90
    """Cells along each axis of the planes; with 90 the field takes half a megabyte in 8 bits."""
    lr: float = 2e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modulation is None:
            raise ConfigError("modulation must be 2 to 4096 cells; got None: the field without is 'mlp'")


@final
class CamField(MlpField):
    """See the module."""

    def __init__(self, config: CamFieldConfig | None = None, *, seed: int = 0) -> None:
        super().__init__(config or CamFieldConfig(), seed=seed)
