"""Settings of the Gaussian field for a scene, picked by looking at it."""

from __future__ import annotations

from dataclasses import replace

from ...fields.radiance import RbfFieldConfig
from ..scene import Scene
from .hash import hash_grid
from .preset import Preset, preset_of


def rbf_preset(scene: Scene) -> Preset:
    """The table is that of a hash field."""
    preset = preset_of(scene, RbfFieldConfig())
    return replace(preset, field=RbfFieldConfig(grid=hash_grid(preset.extent), extent=preset.extent))
