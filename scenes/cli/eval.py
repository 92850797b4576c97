"""`polyfield eval`: how close is a trained model to photos it has not seen?"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .arguments import parse
from .errors import OK
from .progress import decibels, show_count


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Compare a trained model with the photos of a scene: PSNR, SSIM and the protocol that makes them comparable.

    Examples:
      polyfield eval runs/lego-hash-1 data/lego
      polyfield eval runs/lego-hash-1 data/lego --split val --json > val.json
    """

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """Model file, or the run folder that holds one."""
    scene: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SCENE")]
    """Folder with posed photos, or 'demo'."""
    split: Literal["train", "val", "test"] = "test"
    """Which of the scene's frames."""
    downscale: int | None = None
    """Shrink photos by this whole factor. None: as in training if MODEL is a run folder, else 1."""
    images: int | None = None
    """At most this many frames, spread evenly. None: all."""
    json: bool = False
    """Print one JSON object with the figures of every image instead of text."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to render; auto takes an NVIDIA GPU where it works."""


def run(arguments: Sequence[str]) -> int:
    """The command."""
    command = parse(Eval, arguments, "polyfield eval")
    from ...fields.model import Model
    from ..device import pick_device
    from ..evaluate import evaluate
    from ..scene import load_scene
    from . import run_folder

    path = run_folder.model_file(command.model)
    model = Model.load(path, device=pick_device(command.device))
    downscale = command.downscale or run_folder.trained_downscale(command.model)
    scene = load_scene(command.scene, downscale=downscale)
    for warning in scene.warnings:
        print(f"polyfield: warning: {warning}", file=sys.stderr)
    with show_count("evaluating") as report:
        result = evaluate(model, scene, command.split, limit=command.images, report=report)
    if command.json:
        print(json.dumps(_plain({**result._asdict(), "model": str(path), "scene": scene.name}), indent=2))
        return OK
    quality = f"PSNR {decibels(result.psnr)}" + ("" if result.ssim is None else f"  SSIM {result.ssim:.4f}")
    print(f"{quality}  {result.seconds_per_frame:.2f} s per frame")
    protocol = result.protocol
    print(
        f"{protocol['images']} {command.split} images of {scene.name}, {protocol['resolution']}, "
        f"background: {protocol['background']}"
    )
    return OK


def _plain(value: Any) -> Any:
    """JSON values only: NaN and infinity become null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
