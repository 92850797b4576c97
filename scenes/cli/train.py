"""`polyfield train`: photos in, a run folder with a trained model and its measured quality out."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ... import __version__  # pyright: ignore[reportMissingImports]
from ...fields.errors import ConfigError
from ...fields.formats import write_json
from ..presets import frequency_of, surroundings_of
from ..train import TrainOptions, preset_for
from . import run_folder
from .arguments import parse
from .errors import OK, Interrupted
from .machine import machine_facts, peak_memory_bytes
from .progress import clock, decibels, describe_choice, show_count, show_training, size

if TYPE_CHECKING:
    from ..evaluate import EvalResult
    from ..scene import Scene
    from ..train import TrainResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Train a field from posed photos and measure it on photos held out.

    The run folder receives model.safetensors (the result), result.json (its quality, and how that was measured),
    metrics.jsonl (how it got there), previews/*.png, config.json, cameras.json and checkpoint.safetensors. Ctrl-C saves
    and stops; --resume goes on as if nothing had happened.

    Examples:
      polyfield train demo
      polyfield train data/lego --max-seconds 120
      polyfield train photos/ --downscale 4 --out runs/garden
      polyfield train photos/ --out runs/garden --resume --max-steps 20000
    """

    scene: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SCENE")]
    """Folder with posed photos in any known layout (see 'polyfield info SCENE'), or 'demo' for the built-in scene."""
    out: Path | None = None
    """Run folder; it must be new or empty. None: the next free runs/SCENE-MODEL-N."""
    resume: bool = False
    """Continue the run in --out (None: the newest) with the options it was started with; --max-steps may be raised."""
    downscale: int = 1
    """Shrink photos by this whole factor (area average). 2 to 8 for photos straight from a camera."""
    strict: bool = False
    """Refuse a scene with absent photos instead of leaving them out with a warning."""
    memory_gb: float | None = None
    """Memory for photos, GB (1e9 bytes); beyond it they stay on disk, memory-mapped. None: chosen by this machine's."""
    eval_images: int | None = None
    """Held-out photos to measure on at the end, spread evenly. None: all of them."""
    training: tyro.conf.OmitArgPrefixes[TrainOptions] = dataclasses.field(default_factory=TrainOptions)

    def __post_init__(self) -> None:
        if self.downscale < 1:
            raise ConfigError(f"--downscale must be a whole number of at least 1; got {self.downscale}")
        if self.memory_gb is not None and not 0 < self.memory_gb < math.inf:
            raise ConfigError(f"--memory-gb must be positive (GB); got {self.memory_gb}")
        if self.eval_images is not None and self.eval_images < 1:
            raise ConfigError(f"--eval-images must be at least 1; got {self.eval_images}")

    def settings(self) -> dict[str, Any]:
        """What `config.json` keeps, and `--resume` compares."""
        scene = self.scene if self.scene == "demo" else str(Path(self.scene).resolve())
        data = {"downscale": self.downscale, "strict": self.strict, "memory_gb": self.memory_gb}
        return {
            "scene": scene,
            "data": data,
            "training": dataclasses.asdict(self.training),
            "evaluation": {"eval_images": self.eval_images},
        }


def run(arguments: Sequence[str]) -> int:
    """The command."""
    command = parse(Train, arguments, "polyfield train")
    if command.resume:
        out = command.out or run_folder.newest(command.scene, command.training.model)
        stored = run_folder.read_config(out)
        command = parse(Train, arguments, "polyfield train", default=_stored_command(out, stored))
        training = run_folder.prefer_steps(command.training, stored["training"])
        command = dataclasses.replace(command, training=training)
        _check(command)
        scene = _load(command)
        run_folder.continue_run(out, command.settings(), stored)
    else:
        out = command.out or run_folder.next_free(command.scene, command.training.model)
        _check(command)
        run_folder.check_free(out)
        scene = _load(command)
        preset_for(surroundings_of(scene), command.training)  # refuses what does not go together before it writes
        run_folder.claim(out, {"program": f"polyfield {__version__}", **command.settings()})
    _write_cameras(out, scene)
    result = _train(command, scene, out)
    quality = _evaluate(command, scene, result)
    write_json(out / run_folder.RESULT, result_of(command, scene, result, quality))
    _summary(command, out, result, quality)
    return OK


def _check(command: Train) -> None:
    """Contradicting options, and a device that is not there, are found before anything is loaded or written."""
    from ..device import pick_device

    command.training.loop()
    pick_device(command.training.device)


def _stored_command(out: Path, stored: dict[str, Any]) -> Train:
    """The command that started a run, as the defaults of the one that resumes it."""
    try:
        known = {f.name for f in dataclasses.fields(TrainOptions)}
        training = TrainOptions(**{k: v for k, v in stored["training"].items() if k in known})
        return Train(
            scene=stored["scene"], training=training, out=out, resume=True, **stored["data"], **stored["evaluation"]
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{out / run_folder.CONFIG} is not the configuration of a training run: {error}") from error


def _load(command: Train) -> Scene:
    from ..scene import load_scene

    budget = None if command.memory_gb is None else round(command.memory_gb * 1e9)
    scene = load_scene(command.scene, downscale=command.downscale, strict=command.strict, byte_budget=budget)
    for warning in scene.warnings:
        print(f"polyfield: warning: {warning}", file=sys.stderr)
    if len(scene.splits.get("train", ())) == 0:
        raise ConfigError(f"scene {scene.name} has no frames to train on")
    counts = ", ".join(f"{len(frames)} {name}" for name, frames in scene.splits.items() if len(frames) > 0)
    resolution = f"{int(scene.cameras.width[0])}x{int(scene.cameras.height[0])}"
    print(f"{scene.name}: {counts} frames, {resolution}, {scene.kind} capture", file=sys.stderr)
    return scene


def _write_cameras(out: Path, scene: Scene) -> None:
    """Keep the training cameras: `render` takes its paths from them when the photos have gone elsewhere."""
    from ..camera_paths import write_cameras

    frames = scene.splits["train"]
    cameras = scene.cameras[frames].transformed(scene.to_scene.inverse())
    names = [f"frame_{int(i):05d}.png" for i in frames]
    write_cameras(out / run_folder.CAMERAS, cameras, names, kind=scene.kind)


def _train(command: Train, scene: Scene, out: Path) -> TrainResult:
    from ..device import describe
    from ..train import choose, train_scene

    print(f"training {describe(command.training.device)}", file=sys.stderr)
    again = command.resume and (out / run_folder.CHECKPOINT).exists()
    if not again:  # killed before the first checkpoint: the run starts anew, and so does its log
        (out / "metrics.jsonl").unlink(missing_ok=True)
    options, choice = command.training, None
    if options.chooses and not again:
        with show_count("comparing spectra") as choosing:
            choice = choose(scene, options, choosing)
        setting = frequency_of(preset_for(surroundings_of(scene), options).field)
        what = f"untrained {options.model} fields from the spectra of training photos"
        print(describe_choice(what, setting and setting.name, choice), file=sys.stderr)
    try:
        with show_training() as report:
            return train_scene(scene, options, run=out, resume=again, choice=choice, report=report)
    except KeyboardInterrupt:
        saved = (out / run_folder.CHECKPOINT).exists()
        where = f"saved in {out}" if saved else f"nothing was learned yet in {out}"
        raise Interrupted(f"{where}; continue with: polyfield train {command.scene} --out {out} --resume") from None


def _evaluate(command: Train, scene: Scene, result: TrainResult) -> EvalResult | None:
    from ..evaluate import evaluate, held_out_split

    split = held_out_split(scene)
    if split is None:
        return None
    with show_count("evaluating") as report:
        return evaluate(result.model, scene, split, limit=command.eval_images, report=report)


def result_of(command: Train, scene: Scene, result: TrainResult, quality: EvalResult | None) -> dict[str, Any]:
    """The content of `result.json`. Figures that do not exist (no held-out photos) are null."""
    facts: dict[str, Any] = {"psnr": None, "ssim": None, "split": None, "protocol": None}
    if quality is not None:
        facts = {
            "psnr": _finite(quality.psnr),
            "ssim": quality.ssim,
            "split": quality.protocol["split"],
            "protocol": quality.protocol,
        }
    return {
        "format": "polyfield-result",
        "version": 1,
        "scene": scene.name,
        "model": command.training.model,
        **facts,
        "train_seconds": result.train_seconds,
        "steps": result.steps,
        "skipped_steps": result.skipped_steps,
        "precision": result.precision,
        "peak_memory_bytes": peak_memory_bytes(),
        "seconds_per_frame": None if quality is None else quality.seconds_per_frame,
        "per_image": [] if quality is None else [{**r, "psnr": _finite(r["psnr"])} for r in quality.per_image],
        "seed": command.training.seed,
        "frequency": None if result.choice is None else result.choice.as_dict(),
        "settings": result.settings,
        "program": f"polyfield {__version__}",
        "machine": machine_facts(),
    }


def _summary(command: Train, out: Path, result: TrainResult, quality: EvalResult | None) -> None:
    if quality is None:
        print("no held-out photos: quality was not measured")
    else:
        found = f"PSNR {decibels(quality.psnr)}" + ("" if quality.ssim is None else f", SSIM {quality.ssim:.4f}")
        print(f"{found} on {quality.protocol['images']} {quality.protocol['split']} images", end="; ")
        print(f"{quality.seconds_per_frame:.2f} s per {quality.protocol['resolution']} frame")
    skipped = f", {result.skipped_steps} skipped as not finite" if result.skipped_steps else ""
    peak = peak_memory_bytes()
    memory = f"; peak memory {size(peak)}" if peak else ""
    print(f"{result.steps} steps in {clock(result.train_seconds)} ({result.precision}{skipped}){memory}")
    print(f"model: {result.model_path}   figures: {out / run_folder.RESULT}   pictures: {out / 'previews'}")
    print(f"next:  polyfield render {out} --orbit 120 --out {out / 'orbit.mp4'}")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
