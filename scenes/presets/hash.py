"""Settings of the hash-grid field for a scene, picked by looking at it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ...fields.ops.hash_encode import HashGridSpec
from ...fields.optim.radiance import RadianceTaskConfig
from ...fields.radiance.hash import HashFieldConfig
from ...fields.render import MarchConfig
from ..scene import Scene


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Everything that a training run is set up from."""

    field: HashFieldConfig
    march: MarchConfig
    task: RadianceTaskConfig
    cascades: int
    """Occupancy cascades: the outermost spans [-2^(cascades-1), 2^(cascades-1)]^3."""
    resolution: int = 128
    """Cells per axis of a cascade."""

    def for_reference(self) -> Preset:
        """Less work per step, for machines without the native library: torch's references are some 50 times slower."""
        task = replace(self.task, samples=1 << 14, first_rays=512, max_rays=1 << 13)
        return replace(self, task=task, resolution=64)

    def for_cuda(self) -> Preset:
        """Larger and fewer steps, with the settings of instant-ngp: a GPU is filled by 2^18 samples, not by 2^16."""
        task = replace(self.task, samples=1 << 18, max_rays=1 << 18)
        return replace(self, task=task, field=replace(self.field, lr=1e-2))


def hash_preset(scene: Scene) -> Preset:
    """Object captures fill the unit box; forward-facing and 360-degree captures get cascades around it, out to 8 times
    the distance of the farthest camera (at least to 4), with steps that grow with distance: faster than instant-ngp's
    1/256, since a ray through the haze that such a scene begins as must not use up the samples of ten others."""
    if scene.kind == "object":
        return Preset(field=HashFieldConfig(), march=MarchConfig(), task=RadianceTaskConfig(), cascades=1)
    reach = float(scene.cameras.centres().norm(dim=-1).max())
    cascades = min(5, max(3, 1 + math.ceil(math.log2(max(reach, 1e-3) * 4))))
    extent = float(2 ** (cascades - 1))
    return Preset(
        field=HashFieldConfig(grid=HashGridSpec(finest_resolution=int(2048 * extent)), extent=extent),
        march=MarchConfig(cone_angle=1 / 64 if scene.kind == "forward" else 1 / 128),
        task=RadianceTaskConfig(),
        cascades=cascades,
    )
