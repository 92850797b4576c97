"""Every kind of field so small that it learns a ball within seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from polyfield.fields.ops.hash_encode import HashGridSpec
from polyfield.scenes.presets import PRESETS, Preset, Surroundings

_HASH = {"grid": HashGridSpec(levels=4, channels=2, base_resolution=8, finest_resolution=32, log2_table_size=12)}
_BOX = {"first_voxels": 16**3, "final_voxels": 24**3}
_NETWORK = {
    "density_width": 64,
    "density_layers": 3,
    "density_skip": None,
    "octaves": 4,
    "lr": 5e-3,
    "matrix_lr": 2.5e-2,
}
_FIELDS: dict[str, dict[str, Any]] = {
    "hash": _HASH,
    "rbf": {**_HASH, "density_width": 16},
    "tensor": _BOX,
    "planes": _BOX,
    "grid": {"first_cells": 12, "doublings": 1},
    "mlp": _NETWORK,
    "cam": {**_NETWORK, "modulation": 8},
}


def _small(kind: str, before: Callable[[Surroundings], Preset]) -> Callable[[Surroundings], Preset]:
    def preset(around: Surroundings) -> Preset:
        whole = before(around)
        march = replace(whole.march, step_size=0.03)
        task = replace(whole.task, first_rays=256)
        field = replace(whole.field, **_FIELDS[kind])
        return replace(whole, field=field, march=march, task=task, resolution=32, warmup_steps=10)

    return preset


def shrink_presets(monkeypatch: Any) -> None:
    """Put small presets in the place of all."""
    for kind, before in list(PRESETS.items()):
        monkeypatch.setitem(PRESETS, kind, _small(kind, before))
