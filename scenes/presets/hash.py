"""Settings of the hash-grid field for a scene, picked by looking at it."""

from __future__ import annotations

from dataclasses import replace

from ...fields.ops.hash_encode import HashGridSpec
from ...fields.radiance import HashFieldConfig
from ..scene import Scene
from .preset import Preset, preset_of


def hash_preset(scene: Scene) -> Preset:
    """The table covers all cascades; its finest level is as fine in the unit box as without them."""
    preset = preset_of(scene, HashFieldConfig())
    return replace(preset, field=HashFieldConfig(grid=hash_grid(preset.extent), extent=preset.extent))


def hash_grid(extent: float) -> HashGridSpec:
    """A table that covers a cube of half side `extent`."""
    return HashGridSpec(finest_resolution=int(2048 * extent))
