"""`polyfield convert`: a model in, a model of another kind out, with its likeness to the first measured."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ... import __version__  # pyright: ignore[reportMissingImports]
from ...fields.errors import ConfigError
from ...fields.formats import write_json
from ..convert import ConvertOptions
from . import run_folder
from .arguments import parse
from .errors import OK, Interrupted
from .machine import machine_facts, peak_memory_bytes
from .progress import clock, decibels, show_count, show_training

if TYPE_CHECKING:
    from ...fields.geometry import Cameras
    from ...fields.model import Model
    from ..convert import ConvertResult
    from ..evaluate import EvalResult
    from ..rays import SceneRays
    from ..scene import Scene


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Make a field of another kind that looks like a trained model. No photos are needed.

    The new field learns from the old one, along rays from where its scene was seen: between the training cameras where
    MODEL is a run folder or SCENE is given, else from all around an object. Beside --out NAME.safetensors the folder
    NAME receives result.json, metrics.jsonl, config.json, cameras.json and checkpoint.safetensors. Ctrl-C saves and
    stops; --resume goes on as if nothing had happened.

    Examples:
      polyfield convert runs/lego-hash-1 --to tensor --out lego-tensor.safetensors
      polyfield convert runs/lego-hash-1 --to cam --bits 8 --out lego-cam.safetensors --max-seconds 300
      polyfield convert runs/lego-hash-1 --to planes --out p.safetensors --scene data/lego
      polyfield convert runs/lego-hash-1 --to hash --out small.safetensors --size-limit 1MB
    """

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """Model file, or the run folder that holds one."""
    out: Path
    """File to write, NAME.safetensors."""
    scene: str | None = None
    """What MODEL was trained on: a folder with posed photos, or 'demo'. The new model learns from its training photos
    towards the end, and both are measured on its held-out ones."""
    downscale: int | None = None
    """Shrink SCENE's photos by this whole factor. None: as in training if MODEL is a run folder, else 1."""
    eval_images: int | None = None
    """Held-out photos to measure on, spread evenly. None: all of them."""
    resume: bool = False
    """Continue the conversion into --out."""
    json: bool = False
    """Print the whole result as JSON instead of one line."""
    converting: tyro.conf.OmitArgPrefixes[ConvertOptions] = dataclasses.field(default_factory=ConvertOptions)

    def __post_init__(self) -> None:
        if self.out.suffix.lower() != ".safetensors":
            raise ConfigError(f"--out must end in .safetensors; got {self.out}")
        if self.out.is_dir():
            raise ConfigError(f"--out must be a file; {self.out} is a folder")
        if self.downscale is not None and self.downscale < 1:
            raise ConfigError(f"--downscale must be a whole number of at least 1; got {self.downscale}")
        if self.eval_images is not None and self.eval_images < 1:
            raise ConfigError(f"--eval-images must be at least 1; got {self.eval_images}")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out.with_suffix("")

    def settings(self, teacher: Path) -> dict[str, Any]:
        """What `config.json` keeps, and `--resume` compares."""
        scene = self.scene if self.scene in (None, "demo") else str(Path(self.scene).resolve())
        return {
            "scene": scene,
            "teacher": str(teacher.resolve()),
            "teacher_sha256": hashlib.sha256(teacher.read_bytes()).hexdigest(),
            "converting": dataclasses.asdict(self.converting),
            "evaluation": {"downscale": self.downscale, "eval_images": self.eval_images},
            "data": {"downscale": self.downscale or run_folder.trained_downscale(self.model)},
        }


def run(arguments: Sequence[str]) -> int:
    """The command."""
    command = parse(Convert, arguments, "polyfield convert")
    from ...fields.model import Model
    from ..convert import scene_photos
    from ..device import describe, pick_device

    stored: dict[str, Any] = {}
    if command.resume:
        stored = run_folder.read_config(command.folder)
        command = parse(Convert, arguments, "polyfield convert", default=_stored_command(command, stored))
        converting = run_folder.prefer_steps(command.converting, stored["converting"])
        command = dataclasses.replace(command, converting=converting)
    command.converting.loop()
    path, out = run_folder.model_file(command.model), command.folder
    settings = command.settings(path)
    if command.resume:
        run_folder.continue_run(out, settings, stored)
    elif command.out.exists():
        raise ConfigError(f"{command.out} exists; choose another --out or continue it with --resume")
    else:
        run_folder.check_free(out)
    model = Model.load(path, device=pick_device(command.converting.device))
    scene = None if command.scene is None else _load(command)
    cameras = _cameras(command, model, scene)
    if not command.resume:
        run_folder.claim(out, {"program": f"polyfield {__version__}", **settings})
    if cameras is not None:
        _write_cameras(out, cameras.transformed(model.to_dataset), str(model.provenance.get("kind", "object")))
    print(f"converting {model.kind} to {command.converting.to} {describe(command.converting.device)}", file=sys.stderr)
    photos = None if scene is None else scene_photos(model, scene, command.converting)
    if scene is not None and photos is None and command.converting.finish > 0:
        print("the model was edited: photos, which would undo that, only measure", file=sys.stderr)
    result = _convert(command, model, cameras, photos)
    result.model.save(command.out)
    quality = None if scene is None else _evaluate(command, scene, {"teacher": model, "student": result.model})
    facts = result_of(command, path, model, result, quality)
    write_json(out / run_folder.RESULT, facts)
    print(json.dumps(facts, indent=2) if command.json else summary(command, facts))
    return OK


def _stored_command(command: Convert, stored: dict[str, Any]) -> Convert:
    """The command that started a conversion, as the defaults of the one that resumes it."""
    try:
        converting = ConvertOptions(**stored["converting"])
        given = {"model": command.model, "out": command.out, "scene": stored["scene"], "resume": True}
        return Convert(converting=converting, **given, **stored["evaluation"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{command.folder / run_folder.CONFIG} is not that of a conversion: {error}") from error


def _load(command: Convert) -> Scene:
    from ..scene import load_scene

    assert command.scene is not None
    downscale = command.downscale or run_folder.trained_downscale(command.model)
    scene = load_scene(command.scene, downscale=downscale)
    for warning in scene.warnings:
        print(f"polyfield: warning: {warning}", file=sys.stderr)
    return scene


def _cameras(command: Convert, model: Model, scene: Scene | None) -> Cameras | None:
    """From where the scene was seen, scene frame; None where nothing says so."""
    from ..camera_paths import read_cameras
    from ..convert import scene_cameras

    if scene is not None:
        return scene_cameras(model, scene)
    file = run_folder.cameras_file(command.model)
    return None if file is None else read_cameras(file).transformed(model.to_dataset.inverse())


def _write_cameras(out: Path, cameras: Cameras, kind: str) -> None:
    from ..camera_paths import write_cameras

    names = [f"frame_{index:05d}.png" for index in range(len(cameras))]
    write_cameras(out / run_folder.CAMERAS, cameras, names, kind=kind)


def _convert(command: Convert, model: Model, cameras: Cameras | None, photos: SceneRays | None) -> ConvertResult:
    from ..convert import convert_model

    out = command.folder
    again = command.resume and (out / run_folder.CHECKPOINT).exists()
    if not again:  # killed before the first checkpoint: the run starts anew, and so does its log
        (out / "metrics.jsonl").unlink(missing_ok=True)
    try:
        with show_training("as teacher") as report:
            return convert_model(
                model,
                command.converting,
                cameras=cameras,
                photos=photos,
                run=out,
                resume=again,
                report=report,
                chosen=lambda capacity: print(capacity.text(command.converting.to), file=sys.stderr),
            )
    except KeyboardInterrupt:
        saved = (out / run_folder.CHECKPOINT).exists()
        where = f"saved in {out}" if saved else f"nothing was learned yet in {out}"
        raise Interrupted(f"{where}; the same command with --resume continues") from None
    except ConfigError:
        if not (out / run_folder.CHECKPOINT).exists():  # refused before anything was learned: the name stays free
            for name in (run_folder.CONFIG, run_folder.CAMERAS):
                (out / name).unlink(missing_ok=True)
            out.rmdir()
        raise


def _evaluate(command: Convert, scene: Scene, models: dict[str, Model]) -> dict[str, EvalResult] | None:
    from ..evaluate import evaluate, held_out_split

    split = held_out_split(scene)
    if split is None:
        return None
    results = {}
    for name, model in models.items():
        with show_count(f"evaluating the {name}") as report:
            results[name] = evaluate(model, scene, split, limit=command.eval_images, report=report)
    return results


def result_of(
    command: Convert, path: Path, model: Model, result: ConvertResult, quality: dict[str, EvalResult] | None
) -> dict[str, Any]:
    """The content of `result.json`. Figures that do not exist (no photos) are null."""
    student, teacher = (None if quality is None else quality[name] for name in ("student", "teacher"))
    return {
        "format": "polyfield-conversion",
        "version": 1,
        "model": str(path),
        "from": model.kind,
        "to": command.converting.to,
        "out": str(command.out),
        "bytes": os.path.getsize(command.out),
        "teacher_bytes": os.path.getsize(path),
        "psnr_to_teacher": _finite(result.psnr_to_teacher),
        "psnr": None if student is None else _finite(student.psnr),
        "teacher_psnr": None if teacher is None else _finite(teacher.psnr),
        "protocol": None if student is None else student.protocol,
        "seconds_per_frame": None if student is None else student.seconds_per_frame,
        "teacher_seconds_per_frame": None if teacher is None else teacher.seconds_per_frame,
        "steps": result.steps,
        "convert_seconds": result.seconds,
        "skipped_steps": result.skipped_steps,
        "precision": result.precision,
        "capacity": None if result.capacity is None else result.capacity._asdict(),
        "inherited": result.inherited,
        "seed": command.converting.seed,
        "settings": result.settings,
        "peak_memory_bytes": peak_memory_bytes(),
        "program": f"polyfield {__version__}",
        "machine": machine_facts(),
    }


def summary(command: Convert, facts: dict[str, Any]) -> str:
    """One line about a conversion."""
    found = f"{facts['from']} to {facts['to']}: {decibels(facts['psnr_to_teacher'])} to the teacher"
    if facts["psnr"] is not None:
        images = f"{facts['protocol']['images']} {facts['protocol']['split']} images"
        found += f", {decibels(facts['psnr'])} on {images} (teacher {decibels(facts['teacher_psnr'])})"
    sizes = f"{facts['bytes'] / 1e6:.2f} MB (teacher {facts['teacher_bytes'] / 1e6:.2f} MB)"
    return f"{found}; {sizes}; {facts['steps']} steps in {clock(facts['convert_seconds'])}; {command.out}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
