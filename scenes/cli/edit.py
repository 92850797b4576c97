"""`polyfield edit`: parts of a scene erased, moved or recoloured, and the words in which a user says which."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ... import __version__  # pyright: ignore[reportMissingImports]
from ...fields.errors import ConfigError
from . import run_folder
from .arguments import parse
from .errors import OK
from .machine import machine_facts

if TYPE_CHECKING:
    from ...fields.convert import Box, Edit, Sphere
    from ...fields.model import Model
    from ..edit import EditResult


@dataclass(frozen=True, kw_only=True)
class EditCommand:
    """Erase, move or recolour parts of a scene, in a model of kind grid ('polyfield convert --to grid' makes one).

    REGION is box:X0,Y0,Z0,X1,Y1,Z1 (two corners) or sphere:X,Y,Z,RADIUS, in the model's scene frame: z is up,
    and what was trained on lies round the origin. Options may be repeated; edits are done in the order given.

    Examples:
      polyfield edit lego-grid.safetensors --out b.safetensors --erase sphere:0.2,0,0.1,0.15
      polyfield edit a.safetensors --out b.safetensors --move box:-1,-1,0,0,1,1=0.5,0,0 --recolour sphere:0,0,0,1=1,0,0
    """

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """Model file, or the run folder that holds one."""
    out: Path
    """File to write, NAME.safetensors."""
    erase: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="REGION")] = ()
    """Leave nothing in REGION."""
    move: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="REGION=DX,DY,DZ[,SCALE]")] = ()
    """Move what is in REGION by a vector, scaled about the region's centre; REGION is left empty. What it lands on
    gives way to it."""
    recolour: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="REGION=R,G,B")] = ()
    """Shift the colours in REGION so that their mean is R,G,B, each 0 to 1; light and dark stay."""
    json: bool = False
    """Print the whole result as JSON instead of one line."""

    def __post_init__(self) -> None:
        if self.out.suffix.lower() != ".safetensors":
            raise ConfigError(f"--out must end in .safetensors; got {self.out}")
        if not self.erase + self.move + self.recolour:
            raise ConfigError("there is nothing to do: give --erase, --move or --recolour; see 'polyfield edit --help'")


def run(arguments: Sequence[str]) -> int:
    """The command."""
    command = parse(EditCommand, arguments, "polyfield edit")
    from ...fields.model import Model
    from .. import edit_model

    edits = read_edits(command, arguments)
    if command.out.exists():
        raise ConfigError(f"{command.out} exists; choose another --out")
    path = run_folder.model_file(command.model)
    model = Model.load(path)
    result = edit_model(model, edits)
    result.model.save(command.out)
    facts = result_of(command, path, model, edits, result)
    print(json.dumps(facts, indent=2) if command.json else summary(facts))
    return OK


def read_edits(command: EditCommand, arguments: Sequence[str]) -> list[Edit]:
    """What a user has typed, in the order of `arguments`, which `command` was parsed from.

    Raises:
        ConfigError: an unknown region, or numbers too few, too many or out of range.
    """
    from ...fields.convert import Erase, Move, Recolour

    typed = {"--erase": iter(command.erase), "--move": iter(command.move), "--recolour": iter(command.recolour)}
    edits: list[Edit] = []
    for option in (argument.split("=")[0] for argument in arguments):
        if option not in typed:
            continue
        text = next(typed[option])
        place, given, values = text.partition("=")
        region = _read_region(f"{option} {text}", place)
        if option == "--erase":
            if given:
                raise ConfigError(f"{option} {text}: expected a region alone, without '='")
            edits.append(Erase(region))
        elif option == "--move":
            x, y, z, *scale = _read_numbers(f"{option} {text}", values, "DX,DY,DZ or DX,DY,DZ,SCALE after '='", 3, 4)
            edits.append(Move(region, (x, y, z), *scale))
        else:
            r, g, b = _read_numbers(f"{option} {text}", values, "R,G,B after '='", 3)
            edits.append(Recolour(region, (r, g, b)))
    return edits


def _read_region(where: str, text: str) -> Box | Sphere:
    from ...fields.convert import Box, Sphere

    kind, _, numbers = text.partition(":")
    if kind == "box":
        a, b, c, d, e, f = _read_numbers(where, numbers, "box:X0,Y0,Z0,X1,Y1,Z1", 6)
        return Box((a, b, c), (d, e, f))
    if kind == "sphere":
        x, y, z, radius = _read_numbers(where, numbers, "sphere:X,Y,Z,RADIUS", 4)
        return Sphere((x, y, z), radius)
    raise ConfigError(f"{where}: expected a region, box:X0,Y0,Z0,X1,Y1,Z1 or sphere:X,Y,Z,RADIUS; got {text!r}")


def _read_numbers(where: str, text: str, expected: str, *counts: int) -> list[float]:
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts:
        raise ConfigError(f"{where}: expected {expected}; got {text!r}")
    return numbers


def result_of(
    command: EditCommand, path: Path, model: Model, edits: Sequence[Edit], result: EditResult
) -> dict[str, Any]:
    """What --json prints."""
    rows = [m.representation.state_dict()["density"].shape[0] for m in (model, result.model)]
    return {
        "format": "polyfield-edit",
        "version": 1,
        "model": str(path),
        "out": str(command.out),
        "edits": [{"edit": str(e), "vertices": n} for e, n in zip(edits, result.vertices, strict=True)],
        "model_rows": rows[0],
        "rows": rows[1],
        "model_bytes": os.path.getsize(path),
        "bytes": os.path.getsize(command.out),
        "program": f"polyfield {__version__}",
        "machine": machine_facts(),
    }


def summary(facts: dict[str, Any]) -> str:
    """One line about the edits."""
    done = ", ".join(f"{one['edit']}: {one['vertices']} vertices" for one in facts["edits"])
    return f"{done}; {facts['rows']} rows, {facts['bytes'] / 1e6:.2f} MB; {facts['out']}"
