"""`polyfield fit`: an image, a film, a volume or a mesh in, a field in one file with its measured quality out."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ...fields.errors import ConfigError
from ..fit import FitOptions
from .arguments import parse
from .errors import OK, Interrupted
from .machine import machine_facts, peak_memory_bytes
from .progress import clock, decibels, describe_choice, show_count, show_fit

TARGETS = {"sdf": "signed distance", "udf": "unsigned distance", "occupancy": "inside or outside"}

if TYPE_CHECKING:
    from ..fit import FitResult
    from ..signals import Input


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Fit a field to an image, a film, a volume or a mesh, and measure how well it was learned.

    The field is one file; 'polyfield render FILE --out picture.png' makes it an image again, at any size. Of a mesh it
    learns the signed distance (see --target); 'polyfield render FILE --out mesh.ply' makes it a mesh again. Before it
    learns, a network of coordinates is given the frequency at which it looks most like the signal (FreSh; see
    --frequency); what was compared is shown. Ctrl-C saves and stops; --resume goes on as if nothing had happened.

    Examples:
      polyfield fit photo.png --field siren --out photo.safetensors
      polyfield fit photo.png --field planes --out photo.safetensors --max-seconds 20
      polyfield fit film.mp4 --field planes --out film.safetensors --max-seconds 300
      polyfield fit statue.obj --out statue.safetensors
      polyfield fit open-scan.ply --target udf --out scan.safetensors
      polyfield fit scan.npy --field tensor --out scan.safetensors --json
    """

    input: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="INPUT")]
    """Image (PNG, JPEG, WebP, BMP, TIFF, EXR, HDR), film (MP4, MOV, MKV, WebM) or folder of frames, volume (.npy,
    .npz), mesh (PLY, OBJ, STL, OFF, GLB)."""
    out: Path
    """File to write, NAME.safetensors."""
    resume: bool = False
    """Continue the unfinished fit into --out."""
    json: bool = False
    """Print the whole result as JSON instead of one line."""
    fitting: tyro.conf.OmitArgPrefixes[FitOptions] = dataclasses.field(default_factory=FitOptions)

    def __post_init__(self) -> None:
        if self.out.suffix.lower() != ".safetensors":
            raise ConfigError(f"--out must end in .safetensors; got {self.out}")
        if self.out.is_dir():
            raise ConfigError(f"--out must be a file; {self.out} is a folder")


def run(arguments: Sequence[str]) -> int:
    """The command."""
    command = parse(Fit, arguments, "polyfield fit")
    from ..device import pick_device
    from ..fit import checkpoint_path, choose, fit_signal
    from ..signals import read_signal

    pick_device(command.fitting.device)
    source = read_signal(command.input, command.fitting.target)
    print(f"{command.input.name}: {describe(source)}", file=sys.stderr)
    if source.mesh is not None and not source.mesh.signed_distance_trusted and command.fitting.target != "udf":
        print(f"polyfield: warning: {command.input}: {source.mesh.explanation}", file=sys.stderr)
    for note in source.notes:
        print(f"polyfield: note: {command.input}: {note}", file=sys.stderr)
    saved = checkpoint_path(command.out)
    if saved.exists() and not command.resume:
        said = "is the state of an unfinished fit and will be replaced; --resume continues it"
        print(f"polyfield: warning: {saved} {said}", file=sys.stderr)
    command.out.parent.mkdir(parents=True, exist_ok=True)
    name = str(command.input.resolve())
    options, choice = command.fitting, None
    if options.chooses and not command.resume:
        with show_count("comparing spectra") as choosing:
            choice = choose(source, options, choosing)
        what = f"untrained {options.field} networks from the spectrum of the input"
        print(describe_choice(what, options.family.frequency, choice), file=sys.stderr)
    try:
        with show_fit() as (report, measuring):
            result = fit_signal(
                source,
                options,
                out=command.out,
                name=name,
                resume=command.resume,
                choice=choice,
                report=report,
                measuring=measuring,
            )
    except KeyboardInterrupt:
        if not saved.exists():
            raise Interrupted("nothing was learned yet") from None
        raise Interrupted(f"saved in {saved}; the same command with --resume continues") from None
    facts = result_of(command, source, result)
    print(json.dumps(facts, indent=2) if command.json else summary(command, facts))
    return OK


def describe(source: Input) -> str:
    """What was read, in a few words."""
    from ...fields.implicit import MeshSignal

    signal = source.signal
    if isinstance(signal, MeshSignal):
        triangles, points = len(signal.mesh.triangles), signal.cells
        return f"surface, {triangles} triangles, {points} points with their {TARGETS[signal.target]}"
    shape = "x".join(map(str, signal.size))
    return f"{signal.kind}, {shape}, {signal.channels} channels"


def result_of(command: Fit, source: Input, result: FitResult) -> dict[str, Any]:
    """The content of --json."""
    signal, bytes_ = source.signal, os.path.getsize(command.out)
    choice = None if result.choice is None else result.choice.as_dict()
    return {
        "format": "polyfield-fit",
        "version": 1,
        "input": str(command.input),
        "signal": signal.kind,
        "size": list(signal.size),
        "field": command.fitting.field,
        "notes": list(source.notes),
        "mesh": None if source.mesh is None else dataclasses.asdict(source.mesh),
        **result.quality._asdict(),
        "bytes": bytes_,
        "bits_per_cell": 8 * bytes_ / signal.cells if source.mesh is None else None,
        "parameters": result.parameters,
        "steps": result.steps,
        "fit_seconds": result.seconds,
        "skipped_steps": result.skipped_steps,
        "frequency": choice,
        "settings": dataclasses.asdict(command.fitting),
        "config": dataclasses.asdict(result.model.network.config),
        "out": str(command.out),
        "peak_memory_bytes": peak_memory_bytes(),
        "machine": machine_facts(),
    }


def summary(command: Fit, facts: dict[str, Any]) -> str:
    """One line about a fit."""
    found, size = describe_quality(facts, facts["settings"]["grid"]), describe_size(facts)
    skipped = f", {facts['skipped_steps']} skipped as not finite" if facts["skipped_steps"] else ""
    return f"{found}; {size}; {facts['steps']} steps{skipped} in {clock(facts['fit_seconds'])}; {command.out}"


def describe_quality(facts: dict[str, Any], grid: float | None) -> str:
    """What was measured, by what the signal is. grid: cells along each axis in which insides were compared."""
    if facts["iou"] is not None:
        where = "" if grid is None else f" on {grid:.0f}^3"
        angle = "" if facts["normal_error_deg"] is None else f", normals {facts['normal_error_deg']:.2f} degrees"
        apart = "no surface" if facts["chamfer"] is None else f"Chamfer {facts['chamfer']:.2e} of the cube"
        return f"IoU {facts['iou']:.5f}{where}{angle}, {apart}"
    if facts["distance_error"] is not None:
        return f"mean error of the distance {facts['distance_error']:.2e} of the cube"
    return f"PSNR {decibels(facts['psnr'])}" + ("" if facts["ssim"] is None else f", SSIM {facts['ssim']:.4f}")


def describe_size(facts: dict[str, Any]) -> str:
    """Of the file; a mesh has no cells to count its bits by."""
    unit = "cell" if facts["signal"] == "volume" else "pixel"
    bits = "" if facts["bits_per_cell"] is None else f", {facts['bits_per_cell']:.2f} bits per {unit}"
    return f"{facts['bytes'] / 1e3:.0f} kB{bits}"
