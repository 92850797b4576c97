"""Settings of the networks of coordinates, plain and modulated, for a scene, picked by looking at it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...fields.radiance import CamFieldConfig, MlpFieldConfig
from .preset import Preset, Surroundings, folded_preset

NETWORKS: dict[str, dict[str, Any]] = {
    "nerf": {},
    "mip": {"integrated": True},
    "hourglass": {"density_narrow": 64, "density_skip": None},
    "siren": {"encoding": "none", "activation": "sine", "density_skip": None, "lr": 1e-4, "matrix_lr": None},
    "finer": {"encoding": "none", "activation": "finer", "density_skip": None, "lr": 1e-4, "matrix_lr": None},
    "wire": {
        "encoding": "none",
        "activation": "wire",
        "density_width": 181,
        "density_skip": None,
        "first_omega": 10.0,
        "hidden_omega": 10.0,
        "scale": 10.0,
        "matrix_lr": None,
    },
    "gauss": {"encoding": "none", "activation": "gauss", "density_skip": None, "matrix_lr": None},
    "fourier": {"encoding": "fourier", "density_skip": None},
}
"""Kind of network -> what differs from NeRF's. FreSh's learning rate for sines (Kania et al. 2025)."""


VIEW_CELLS = (12, 7)
"""Azimuths and elevations of `--view-grids`: one every 30 degrees."""


def mlp_preset(around: Surroundings) -> Preset:
    """NeRF's network. See `_preset`."""
    return _preset(around, MlpFieldConfig())


def cam_preset(around: Surroundings) -> Preset:
    """NeRF's network with CAM's planes. See `_preset`."""
    return _preset(around, CamFieldConfig())


def _preset(around: Surroundings, field: MlpFieldConfig) -> Preset:
    """Every sample costs a thousand times what one of a hash field does, so there are few: steps as long as NeRF's (192
    along the diagonal), 2^13 samples a step, and an occupancy grid of fewer cells, since looking at one is a sample."""
    preset = folded_preset(around, field)
    task = replace(preset.task, samples=1 << 13, first_rays=256)
    march = replace(preset.march, step_size=4 * preset.march.step_size)
    return replace(preset, task=task, march=march, resolution=64, warmup_steps=200)
