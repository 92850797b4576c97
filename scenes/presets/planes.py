"""Settings of the planes field for a scene, picked by looking at it."""

from __future__ import annotations

from dataclasses import replace

from ...fields.radiance import PlanesFieldConfig
from ..scene import Scene
from .preset import Preset, preset_of


def planes_preset(scene: Scene) -> Preset:
    """Where there are cascades, space beyond the unit box is folded in: planes as wide as they are would be coarse
    where the cameras look."""
    preset = preset_of(scene, PlanesFieldConfig())
    if preset.cascades == 1:
        return preset
    return replace(preset, field=PlanesFieldConfig(contraction="cube"))
