"""Which setting decides what detail a radiance field shows before it has learned anything, and what is to be tried?

Networks of sines, Fourier features and octaves have the frequency, and the candidates, of the same network in
`polyfield fit`. Gaussians and Gabor wavelets can be set but not compared: all of their eight layers are as fine as the
first, and an untrained network shows noise whatever their width is (lego and fern: distances of 6.3 to 6.8 for all
candidates, where sines that suit have 1 to 2). Fields behind a hash grid have the finest of its levels, here counted
across the unit box, however many cascades the table covers.

CAM's planes are not for FreSh to choose: they begin as scale 1 and shift 0, so that an untrained field shows the same
with any number of cells; of a `cam` it is the network's frequency. Planes and tensors grow while they train, and voxels
begin as one colour.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from ...fields.implicit import KINDS
from ...fields.radiance import FieldConfig, HashFieldConfig, MlpFieldConfig, RbfFieldConfig
from .preset import Preset


class Frequency(NamedTuple):
    """The setting of a field that says how fine its first pictures are."""

    name: str
    """Of the configuration: of the field's, or with a hash grid of the grid's."""
    candidates: tuple[float, ...]
    """To try, rising; none where they cannot be told apart."""


FINEST = Frequency("finest_resolution", tuple(float(2**k) for k in range(5, 13)))
"""Cells across the unit box: 32 to twice the preset's 2048, each twice the last, since levels are in equal ratios."""
_BY_ENCODING = {"octaves": "pe", "fourier": "fourier"}
_BY_ACTIVATION = {"sine": "siren", "finer": "finer"}


def frequency_of(field: FieldConfig) -> Frequency | None:
    """The frequency of a field; None where it has none."""
    if isinstance(field, HashFieldConfig | RbfFieldConfig):
        return FINEST
    if not isinstance(field, MlpFieldConfig):
        return None
    if field.activation in ("gauss", "wire"):
        return Frequency("scale", ())
    kind = _BY_ENCODING.get(field.encoding) or _BY_ACTIVATION.get(field.activation)
    if kind is None:  # ReLUs of plain coordinates
        return None
    name = KINDS[kind].frequency
    assert name is not None
    return Frequency(name, KINDS[kind].candidates)


def with_frequency(preset: Preset, value: float) -> Preset:
    """The preset with another frequency of its field, which must have one; whole settings are rounded.

    Raises:
        ConfigError: the value is out of the setting's range.
    """
    field, frequency = preset.field, frequency_of(preset.field)
    assert frequency is not None
    if isinstance(field, HashFieldConfig | RbfFieldConfig):
        grid = replace(field.grid, finest_resolution=round(value * field.extent))
        return replace(preset, field=replace(field, grid=grid))
    whole = type(getattr(field, frequency.name)) is int
    setting: dict[str, Any] = {frequency.name: round(value) if whole else float(value)}
    return replace(preset, field=replace(field, **setting))
