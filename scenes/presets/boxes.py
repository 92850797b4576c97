"""Settings of the fields that are refined within one box (tensor, planes, sparse grid) for a scene."""

from __future__ import annotations

from ...fields.radiance import GridFieldConfig, PlanesFieldConfig, TensorFieldConfig
from .preset import Preset, Surroundings, folded_preset


def tensor_preset(around: Surroundings) -> Preset:
    """See `folded_preset`."""
    return folded_preset(around, TensorFieldConfig())


def planes_preset(around: Surroundings) -> Preset:
    """See `folded_preset`."""
    return folded_preset(around, PlanesFieldConfig())


def grid_preset(around: Surroundings) -> Preset:
    """See `folded_preset`."""
    return folded_preset(around, GridFieldConfig())
