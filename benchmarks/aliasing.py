"""Does a field that integrates its encoding alias less away from the resolution that it was trained at?

    python benchmarks/aliasing.py SCENE --out FILE [--steps 2500] [--downscale 8] [--seeds 0] [--full]

Trains `--model mlp` with `--network nerf` and `--network mip` for equally many steps, and measures both on held-out
photos at twice, once, half and a quarter of the resolution of training (photos area-averaged). The network is narrow
(four layers of 128) unless `--full` is given. `averaged` is what the resolution of training would give at a quarter:
pictures drawn there and averaged over 16 pixels, as costly as that sounds.

Every run is one line of the file --out; what stands there is not trained again. Prints one JSON object and, on standard
error, the table. Quality at equal steps does not depend on the machine; the seconds do (see `quiet.py`; nothing is
refused here).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from images import Results
from machine import facts

from polyfield.fields.model import Model
from polyfield.fields.optim.metrics import psnr
from polyfield.fields.render import render
from polyfield.scenes import TrainOptions, train_scene
from polyfield.scenes.evaluate import cameras_for, evaluate, ground_truth, held_out_split
from polyfield.scenes.presets import Preset, Surroundings, mlp_preset
from polyfield.scenes.scene import Scene, load_scene
from polyfield.scenes.train import PRESETS

NETWORKS = ("nerf", "mip")
RESOLUTIONS = (2.0, 1.0, 0.5, 0.25)
"""Relative to that of training."""
NARROW = {"density_width": 128, "density_layers": 4, "density_skip": 2}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", help="a folder with posed photos, or 'demo'")
    parser.add_argument("--out", type=Path, required=True, help="results, a JSON object a line; continued if it exists")
    parser.add_argument("--full", action="store_true", help="the network as `polyfield train` takes it")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--downscale", type=int, default=8, help="of the photos trained on; even")
    parser.add_argument("--views", type=int, default=20, help="held-out photos measured at each resolution")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    if options.downscale % 2:
        parser.error(f"--downscale must be even, so that photos of twice the resolution exist; got {options.downscale}")
    if not options.full:
        PRESETS["mlp"] = narrow_preset
    results = Results(options.out)
    rows = [run_once(results, network, seed, options) for seed in options.seeds for network in NETWORKS]
    print(table(rows), file=sys.stderr)
    json.dump({"machine": facts(), "runs": rows}, sys.stdout, indent=2)
    print()
    return 0


def narrow_preset(around: Surroundings) -> Preset:
    whole = mlp_preset(around)
    return replace(whole, field=replace(whole.field, **NARROW))  # type: ignore[type-var]


def run_once(results: Results, network: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    key = {
        "scene": Path(options.scene).name,
        "network": network,
        "full": options.full,
        "steps": options.steps,
        "downscale": options.downscale,
        "views": options.views,
        "seed": seed,
    }
    if (known := results.find(**key)) is not None:
        return known
    scenes = {r: load_scene(options.scene, downscale=round(options.downscale / r)) for r in RESOLUTIONS}
    split = held_out_split(scenes[1.0])
    if split is None:
        raise SystemExit(f"{options.scene} has no held-out photos")
    chosen = TrainOptions(
        model="mlp",
        network=network,  # type: ignore[arg-type]
        max_steps=options.steps,
        seed=seed,
        evaluate_every=options.steps,
    )
    with tempfile.TemporaryDirectory() as temporary:
        trained = train_scene(scenes[1.0], chosen, run=Path(temporary) / "run")
    found, frames = {}, []
    for relative, scene in scenes.items():
        seen = evaluate(trained.model, scene, split, limit=options.views)
        found[f"{relative:g}"] = {"psnr": seen.psnr, "ssim": seen.ssim, "seconds_per_frame": seen.seconds_per_frame}
        frames = [image["frame"] for image in seen.per_image]
    averaged = averaged_psnr(trained.model, scenes[1.0], scenes[0.25], frames)
    return results.add(
        **key, precision=trained.precision, train_seconds=trained.train_seconds, at=found, averaged=averaged
    )


@torch.no_grad()
def averaged_psnr(model: Model, fine: Scene, coarse: Scene, frames: list[int]) -> float:
    """Of pictures drawn at the resolution of `fine` and averaged to that of `coarse`, a quarter of it."""
    cameras, found = cameras_for(model, fine), []
    for frame in frames:
        truth, mask = ground_truth(coarse, frame, coarse.background)
        height, width = truth.shape[:2]
        picture = render(model, cameras[frame], background=coarse.background).rgb[: 4 * height, : 4 * width]
        small = picture.reshape(height, 4, width, 4, 3).mean((1, 3)).cpu()
        found.append(float(psnr(small, truth, mask=mask)))
    return statistics.mean(found)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a row a run."""
    names = [f"x{relative:g}" for relative in RESOLUTIONS]
    lines = [
        f"| network | seed | {' | '.join(names)} | averaged | train s | s/frame |",
        "|---" * (5 + len(names)) + "|",
    ]
    for row in rows:
        at = " | ".join(f"{row['at'][f'{relative:g}']['psnr']:.2f}" for relative in RESOLUTIONS)
        rest = f"{row['averaged']:.2f} | {row['train_seconds']:.0f} | {row['at']['1']['seconds_per_frame']:.2f}"
        lines.append(f"| {row['network']} | {row['seed']} | {at} | {rest} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
