"""Settings of the fields that are refined within one box (tensor, planes, sparse grid) for a scene."""

from __future__ import annotations

from ...fields.radiance import GridFieldConfig, PlanesFieldConfig, TensorFieldConfig
from ..scene import Scene
from .preset import Preset, folded_preset


def tensor_preset(scene: Scene) -> Preset:
    """See `folded_preset`."""
    return folded_preset(scene, TensorFieldConfig())


def planes_preset(scene: Scene) -> Preset:
    """See `folded_preset`."""
    return folded_preset(scene, PlanesFieldConfig())


def grid_preset(scene: Scene) -> Preset:
    """See `folded_preset`."""
    return folded_preset(scene, GridFieldConfig())
