"""Settings of the sparse-grid field for a scene, picked by looking at it."""

from __future__ import annotations

from dataclasses import replace

from ...fields.radiance import GridFieldConfig
from ..scene import Scene
from .preset import Preset, preset_of


def grid_preset(scene: Scene) -> Preset:
    """Where there are cascades, space beyond the unit box is folded in, as for tensors."""
    preset = preset_of(scene, GridFieldConfig())
    if preset.cascades == 1:
        return preset
    return replace(preset, field=GridFieldConfig(contraction="cube"))
