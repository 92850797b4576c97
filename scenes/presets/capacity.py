"""How small can a field be made, and in which steps? Each kind's ladder of settings, from its preset down.

A rung says of some settings the most that they may be; what the preset has smaller stays, so that ladders serve any
preset. Each is about two thirds as large as the last. Occupancy bits are no rung: they follow from the limit.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ...fields.radiance import FieldConfig, HashFieldConfig, RbfFieldConfig
from ...fields.radiance.factored import STAGES, FactoredFieldConfig
from .preset import Preset

Settings = dict[str, Any]
"""Name -> value: settings of a field's configuration, those of its hash grid among them, and `Preset.resolution`."""
LEAST_RESOLUTION = 16
"""Cells along each axis of the smallest occupancy grid that is taken: 512 bytes a cascade."""
BITS_SHARE = 0.25
"""Most of a limit that the occupancy's bits may take: finer grids are halved along each axis. 128 cells take 0.26 MB a
cascade, 64 cells 0.03 MB."""


FIRST_SHARE = 8
"""Of a box's last voxels, one in so many at the start: half as many along each axis. Lego at 200x200, hash to tensor,
120 steps, 8 components in 90^3 voxels at the end: 27.9 dB to the teacher, 26.6 dB with as many from the start."""


def _ladder(names: str, *rows: tuple[int | None, ...]) -> tuple[Settings, ...]:
    return tuple(dict(zip(names.split(), row, strict=True)) for row in rows)


_HASH = _ladder(
    "log2_table_size levels finest_resolution density_width color_width",
    (19, 16, 2048, 64, 64),
    (18, 16, 2048, 64, 64),
    (17, 16, 2048, 64, 64),
    (16, 16, 2048, 64, 64),
    (15, 16, 1024, 64, 64),
    (15, 14, 1024, 64, 64),
    (14, 16, 1024, 64, 64),
    (14, 14, 1024, 64, 64),
    (13, 16, 512, 64, 64),
    (13, 14, 512, 64, 64),
    (12, 16, 256, 64, 64),
    (12, 14, 256, 64, 64),
    (11, 16, 256, 64, 64),
    (11, 14, 256, 64, 64),
    (10, 16, 256, 64, 64),
    (10, 12, 128, 64, 64),
    (10, 12, 128, 32, 32),
    (9, 12, 128, 32, 32),
    (9, 8, 64, 32, 32),
    (9, 8, 64, 16, 16),
    (8, 8, 64, 16, 16),
    (8, 4, 32, 16, 16),
)
"""Lego at 200x200, hash to hash, 200 steps, likeness to the teacher: tables of about 1 MB, 16 levels of 2^13 entries up
to 512 cells 29.9 dB, up to 2048 29.6, 8 levels of 2^14 29.3, 4 of 2^15 28.7. Levels are worth more than entries: 16 of
2^12 (0.56 MB) 29.7 dB, 12 of 2^13 (0.80 MB) 29.5; so they go last, but for some in the steps between."""
LADDERS: dict[str, tuple[Settings, ...]] = {
    "hash": _HASH,
    "rbf": _HASH,
    "tensor": _ladder(
        "components final_voxels density_width color_width",
        (24, 300**3, 64, 64),
        (24, 240**3, 64, 64),
        (24, 192**3, 64, 64),
        (24, 160**3, 64, 64),
        (24, 128**3, 64, 64),
        (24, 104**3, 64, 64),
        (24, 88**3, 64, 64),
        (24, 72**3, 64, 64),
        (16, 72**3, 64, 64),
        (16, 64**3, 64, 64),
        (16, 56**3, 64, 64),
        (12, 56**3, 64, 64),
        (12, 48**3, 64, 64),
        (8, 48**3, 64, 64),
        (8, 40**3, 64, 64),
        (8, 40**3, 32, 32),
        (6, 36**3, 32, 32),
        (4, 32**3, 32, 32),
        (4, 32**3, 16, 16),
        (2, 24**3, 16, 16),
        (2, 16**3, 16, 16),
        (1, 12**3, 16, 16),
    ),
    "planes": _ladder(
        "channels scales final_voxels density_width color_width",
        (16, 3, 300**3, 64, 64),
        (16, 3, 240**3, 64, 64),
        (16, 3, 192**3, 64, 64),
        (16, 3, 160**3, 64, 64),
        (16, 3, 128**3, 64, 64),
        (16, 3, 104**3, 64, 64),
        (16, 3, 84**3, 64, 64),
        (16, 3, 68**3, 64, 64),
        (16, 3, 56**3, 64, 64),
        (16, 3, 45**3, 64, 64),
        (16, 3, 36**3, 64, 64),
        (16, 3, 30**3, 32, 32),
        (8, 3, 30**3, 32, 32),
        (8, 2, 24**3, 16, 16),
        (4, 2, 20**3, 16, 16),
        (2, 2, 16**3, 16, 16),
        (1, 1, 12**3, 16, 16),
    ),
    "grid": _ladder(
        "first_cells doublings sh_bands",
        (64, 2, 3),
        (56, 2, 3),
        (48, 2, 3),
        (48, 2, 2),
        (40, 2, 2),
        (40, 2, 1),
        (32, 2, 1),
        (28, 2, 1),
        (24, 2, 1),
        (20, 2, 1),
        (16, 2, 1),
        (14, 2, 1),
        (12, 2, 1),
        (10, 2, 1),
        (8, 2, 1),
        (6, 2, 1),
        (4, 2, 1),
        (4, 1, 1),
        (4, 0, 1),
    ),
    "mlp": _ladder(
        "density_width density_layers density_skip color_width",
        (256, 8, 4, 128),
        (256, 6, 3, 128),
        (256, 4, 2, 128),
        (128, 8, 4, 128),
        (128, 6, 3, 128),
        (128, 4, 2, 64),
        (64, 8, 4, 64),
        (64, 4, 2, 64),
        (32, 6, 3, 32),
        (32, 4, 2, 32),
        (16, 4, 2, 16),
        (16, 2, None, 16),
    ),
    "cam": _ladder(
        "density_width density_layers density_skip modulation color_width",
        (128, 8, 4, 90, 128),
        (128, 8, 4, 72, 128),
        (128, 8, 4, 56, 128),
        (128, 8, 4, 40, 128),
        (128, 6, 3, 32, 64),
        (64, 8, 4, 32, 64),
        (64, 6, 3, 28, 64),
        (64, 4, 2, 24, 64),
        (32, 4, 2, 24, 32),
        (32, 4, 2, 16, 32),
        (16, 4, 2, 12, 16),
        (16, 2, None, 8, 16),
    ),
}
"""Kind -> the most of its settings, from the preset down. What goes first, and what it costs, by likeness to a teacher
of lego at 200x200:

- tensor, 0.8 MB, 120 steps, all voxels from the start: 4 components in 128^3 voxels 23.0 dB, 8 in 90^3 26.6, 16 in 64^3
  28.2, 24 in 52^3 27.9.
- planes, 0.8 to 0.9 MB, 120 steps: three scales of 16 channels up to 58^3 voxels 27.3 dB, of 8 up to 80^3 and of 4 up
  to 112^3 27.0; two scales of 16 26.6, one 26.8.
- grid, as it begins: 16 cells doubled twice with 9 harmonics a colour (2.7 MB) 25.2 dB, 20 with 4 (2.5 MB) 26.6, 24
  with one (1.8 MB) 28.4, 28 with one (3.0 MB) 29.2.
- mlp and cam: not compared; networks that are narrow or shallow learn sooner, which short runs show and nothing else.
"""


def rungs(kind: str, preset: Preset) -> list[Preset]:
    """The preset itself, then on every rung of its kind's ladder, from the largest to the smallest; none twice."""
    found = [preset]
    for most in LADDERS[kind]:
        lowered = with_settings(preset, {name: _lower(preset, name, value) for name, value in most.items()})
        if lowered not in found and differing(preset, lowered).keys() != {"first_voxels"}:
            found.append(lowered)
    return found


def with_settings(preset: Preset, settings: Settings) -> Preset:
    """The preset with other values of these settings."""
    names = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}  # JSON knows no tuples
    resolution, field = names.pop("resolution", preset.resolution), preset.field
    if isinstance(field, HashFieldConfig | RbfFieldConfig):
        own = {f.name for f in dataclasses.fields(field)}
        grid = {name: names.pop(name) for name in list(names) if name not in own}
        names["grid"] = dataclasses.replace(field.grid, **grid)
    if isinstance(field, FactoredFieldConfig) and "final_voxels" in names:
        last: Any = names["final_voxels"]
        names.setdefault("first_voxels", max(8, min(field.first_voxels, last // FIRST_SHARE)))
    return dataclasses.replace(preset, field=dataclasses.replace(field, **names), resolution=resolution)


def differing(before: Preset, after: Preset) -> Settings:
    """What `with_settings` makes `after` of `before`; both are of one kind."""
    old, new = _settings(before), _settings(after)
    return {name: value for name, value in new.items() if value != old[name]}


def held_box(preset: Preset, occupied: list[list[float]]) -> Preset:
    """The preset of planes or lines within what is occupied, a lower and an upper corner, scene frame; others as they
    are. Their voxels are as many as the configuration says, but the longer their box, the more texels they take."""
    field = preset.field
    if not isinstance(field, FactoredFieldConfig) or field.contraction != "none":
        return preset
    low, high = ([max(-1.0, min(1.0, v / field.extent)) for v in corner] for corner in occupied)
    if not all(a < b for a, b in zip(low, high, strict=True)):
        return preset
    return dataclasses.replace(preset, field=dataclasses.replace(field, box=(*low, *high)))


def fully_grown(preset: Preset) -> Preset:
    """The preset of planes or lines as it is after their last refinement; others as they are."""
    if not isinstance(preset.field, FactoredFieldConfig):
        return preset
    return dataclasses.replace(preset, field=dataclasses.replace(preset.field, stage=len(STAGES)))


def resolution_within(preset: Preset, limit: int) -> int:
    """Cells along each axis of the finest occupancy grid whose bits take no more than their share of a file."""
    resolution = preset.resolution
    while preset.cascades * resolution**3 / 8 > BITS_SHARE * limit and resolution >= 2 * LEAST_RESOLUTION:
        resolution = resolution // 16 * 8  # a multiple of 8
    return resolution


def _lower(preset: Preset, name: str, most: int | None) -> int | None:
    """What a rung makes of a setting."""
    now = _settings(preset)[name]
    if now is None or most is None:
        return None
    if name == "finest_resolution":  # counted across the table, which all cascades share
        most = round(most * preset.extent)
    return min(now, most)


def _settings(preset: Preset) -> Settings:
    field: FieldConfig = preset.field
    flat = {f.name: getattr(field, f.name) for f in dataclasses.fields(field)}
    if isinstance(field, HashFieldConfig | RbfFieldConfig):
        del flat["grid"]
        flat |= dataclasses.asdict(field.grid)
    return {**flat, "resolution": preset.resolution}
