"""Settings of the MLP field for a scene, picked by looking at it."""

from __future__ import annotations

from dataclasses import replace

from ...fields.radiance import MlpFieldConfig
from ..scene import Scene
from .preset import Preset, preset_of


def mlp_preset(scene: Scene) -> Preset:
    """A step of 2^14 samples takes two cores about as long as one of 2^16 takes a hash field; cells of the occupancy
    grid are fewer, since looking at one costs as much as a sample."""
    preset = preset_of(scene, MlpFieldConfig())
    task = replace(preset.task, samples=1 << 14, first_rays=1024)
    contraction = "none" if preset.cascades == 1 else "cube"
    return replace(preset, field=MlpFieldConfig(contraction=contraction), task=task, resolution=64)
