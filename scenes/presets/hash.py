"""Settings of the fields behind a hash grid, hash and rbf, for a scene, picked by looking at it."""

from __future__ import annotations

from dataclasses import replace

from ...fields.ops.hash_encode import HashGridSpec
from ...fields.radiance import HashFieldConfig, RbfFieldConfig
from .preset import Preset, Surroundings, preset_of


def hash_preset(around: Surroundings) -> Preset:
    """See `_preset`."""
    return _preset(around, HashFieldConfig())


def rbf_preset(around: Surroundings) -> Preset:
    """See `_preset`. A sample costs several times what one of a hash field does: a run begins with few rays, and where
    there are cascades, all of them haze at first, their cells are larger."""
    preset = _preset(around, RbfFieldConfig())
    resolution = preset.resolution if preset.cascades == 1 else 64
    return replace(preset, task=replace(preset.task, first_rays=512), resolution=resolution)


def _preset(around: Surroundings, field: HashFieldConfig | RbfFieldConfig) -> Preset:
    """The table covers all cascades; its finest level is as fine in the unit box as without them."""
    preset = preset_of(around, field)
    grid = HashGridSpec(finest_resolution=int(2048 * preset.extent))
    return replace(preset, field=replace(field, grid=grid, extent=preset.extent))
