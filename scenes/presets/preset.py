"""Everything that a training run is set up from, and what of it depends on the capture alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ...fields.errors import ConfigError
from ...fields.geometry import CaptureKind
from ...fields.optim.field_task import RadianceTaskConfig
from ...fields.radiance import EncodedFieldConfig, FieldConfig, MlpFieldConfig
from ...fields.render import MarchConfig

if TYPE_CHECKING:
    from ..scene import Scene


class Surroundings(NamedTuple):
    """What of a scene, or of a model of it, its settings depend on."""

    kind: CaptureKind
    cascades: int
    """Occupancy cascades: the outermost spans [-2^(cascades-1), 2^(cascades-1)]^3."""


def surroundings_of(scene: Scene) -> Surroundings:
    """Object captures fill the unit box; forward-facing and 360-degree captures get cascades around it, out to 8 times
    the distance of the farthest camera (at least to 4)."""
    if scene.kind == "object":
        return Surroundings("object", 1)
    reach = float(scene.cameras.centres().norm(dim=-1).max())
    return Surroundings(scene.kind, min(5, max(3, 1 + math.ceil(math.log2(max(reach, 1e-3) * 4)))))


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Everything that a training run is set up from."""

    field: FieldConfig
    march: MarchConfig
    task: RadianceTaskConfig
    cascades: int
    """Occupancy cascades: the outermost spans [-2^(cascades-1), 2^(cascades-1)]^3."""
    resolution: int = 128
    """Cells per axis of a cascade."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises."""

    @property
    def extent(self) -> float:
        """Half side of the outermost cascade, scene units."""
        return float(2 ** (self.cascades - 1))

    def for_reference(self) -> Preset:
        """Less work per step, for machines without the native library: torch's references are some 50 times slower."""
        task = replace(self.task, samples=1 << 14, first_rays=512, max_rays=1 << 13)
        return replace(self, task=task, resolution=64)

    def for_cuda(self) -> Preset:
        """Larger and fewer steps, with the settings of instant-ngp: a GPU is filled by 2^18 samples, not by 2^16."""
        task = replace(self.task, samples=1 << 18, max_rays=1 << 18)
        if not isinstance(self.field, EncodedFieldConfig) or isinstance(self.field, MlpFieldConfig):
            return replace(self, task=task)
        return replace(self, task=task, field=replace(self.field, lr=1e-2))

    @property
    def has_networks(self) -> bool:
        """Whether the field has networks to be multiplied in one precision or another."""
        return isinstance(self.field, EncodedFieldConfig)

    def with_precision(self, precision: Literal["fp32", "bf16"]) -> Preset:
        """With the networks' multiplications in that precision.

        Raises:
            ConfigError: bf16 is asked of a field without networks.
        """
        if isinstance(self.field, EncodedFieldConfig):
            return replace(self, field=replace(self.field, precision=precision))
        if precision == "bf16":
            raise ConfigError("this kind of field has no networks to compute in bf16; leave out --precision")
        return self

    def with_colors_of(self, field: FieldConfig) -> Preset:
        """With a colour network laid out like another field's, so that it can be taken over: where both have one and
        the other's is not modulated by the view."""
        plain = isinstance(field, EncodedFieldConfig) and getattr(field, "view_cells", None) is None
        if not plain or not isinstance(self.field, EncodedFieldConfig):
            return self
        names = ("features", "color_width", "color_layers", "sh_bands")
        return replace(self, field=replace(self.field, **{name: getattr(field, name) for name in names}))

    def with_network(self, **settings: Any) -> Preset:
        """With another network of coordinates.

        Raises:
            ConfigError: the field has none.
        """
        if not isinstance(self.field, MlpFieldConfig):
            raise ConfigError("--network, --view-grids and --bits are for the models mlp and cam; leave them out")
        return replace(self, field=replace(self.field, **settings))


def preset_of(around: Surroundings, field: FieldConfig) -> Preset:
    """Settings that depend on how the scene was captured.

    Where there are cascades, steps grow with distance: faster than instant-ngp's 1/256, since a ray through the haze
    that such a scene begins as must not use up the samples of ten others.
    """
    cone_angle = {"object": 0.0, "forward": 1 / 64, "unbounded": 1 / 128}[around.kind]
    march = MarchConfig(cone_angle=cone_angle)
    return Preset(field=field, march=march, task=RadianceTaskConfig(), cascades=around.cascades)


def folded_preset(around: Surroundings, field: FieldConfig) -> Preset:
    """As `preset_of`, but where there are cascades, space beyond the unit box is folded into the field's: a field as
    wide as they are would be coarse where the cameras look."""
    preset = preset_of(around, field)
    return preset if preset.cascades == 1 else replace(preset, field=replace(field, contraction="cube"))
