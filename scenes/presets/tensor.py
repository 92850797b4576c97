"""Settings of the tensor field for a scene, picked by looking at it."""

from __future__ import annotations

from dataclasses import replace

from ...fields.radiance import TensorFieldConfig
from ..scene import Scene
from .preset import Preset, preset_of


def tensor_preset(scene: Scene) -> Preset:
    """Where there are cascades, space beyond the unit box is folded in: a tensor as wide as they are would be coarse
    where the cameras look."""
    preset = preset_of(scene, TensorFieldConfig())
    if preset.cascades == 1:
        return preset
    return replace(preset, field=TensorFieldConfig(contraction="cube"))
