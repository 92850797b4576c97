"""Editing a model: parts of its scene are erased, moved or recoloured, and what is rendered and saved follows.

Only a field in which every place has values of its own can be edited, the sparse grid; any other is converted to one
first, and the result on to what is wanted (`docs/conversion.md`).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .. import __version__  # pyright: ignore[reportMissingImports]
from ..fields.convert import Edit, apply_edit, follow_edit
from ..fields.errors import ConfigError
from ..fields.model import Model
from ..fields.radiance import GridField


class EditResult(NamedTuple):
    """What came out."""

    model: Model
    vertices: list[int]
    """Of each edit: how many dense vertices it erased or recoloured, or a move has filled."""


def edit(model: Model, edits: Sequence[Edit]) -> Model:
    """A model in which parts of the scene are erased, moved or recoloured.

    Args:
        model: of kind "grid"; it stays as it is.
        edits: what to do, in this order: `Erase`, `Move` and `Recolour` of `fields.convert`, in boxes and spheres of
            the model's scene frame. The provenance keeps their texts.

    Raises:
        ConfigError: no edits, a model of another kind or with values that are not finite, or an edit that finds
            nothing in its region or cannot be done (see `fields.convert.apply_edit`).
    """
    return edit_model(model, edits).model


def edit_model(model: Model, edits: Sequence[Edit]) -> EditResult:
    """`edit`, with what each edit has changed."""
    if not edits:
        raise ConfigError("there is nothing to do: give at least one edit")
    if not isinstance(model.representation, GridField):
        text = f"only models of kind grid can be edited; this is of kind {model.kind}"
        raise ConfigError(f"{text}: convert it with --to grid first")
    for name, rows in model.representation.named_parameters():
        if not bool(torch.isfinite(rows).all()):
            raise ConfigError(f"the model to edit is damaged: {name} holds values that are not finite")
    field, occupancy = copy.deepcopy(model.representation), model.occupancy
    reach, counts = 2.0 ** (occupancy.cascades - 1), []
    for one in edits:
        change = apply_edit(field, one, reach)
        occupancy = follow_edit(occupancy, field, change, model.march.step_size)
        counts.append(change.vertices)
    history = [*model.provenance.get("edits", []), *map(str, edits)]
    provenance = {**model.provenance, "polyfield": __version__, "torch": torch.__version__, "edits": history}
    edited = dataclasses.replace(model, representation=field, occupancy=occupancy, provenance=provenance)
    return EditResult(edited, counts)
