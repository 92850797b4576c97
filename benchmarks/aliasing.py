"""Does a field that integrates its encoding alias less away from the resolution that it was trained at?

    python benchmarks/aliasing.py SCENE --out FILE [--model mlp] [--steps 1000] [--downscale 8] [--seeds 0]

Trains `--network nerf` and `--network mip` for equally many steps, in processes of their own, and measures both on
held-out photos at twice, once, half and a quarter of the resolution of training (photos area-averaged). Every run is
one line of the file --out; what stands there is not trained again. Prints one JSON object and, on standard error, the
table. Quality at equal steps does not depend on the machine; the seconds do (see `quiet.py`; nothing is refused here).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from images import Results
from machine import facts
from quality import read_run, train

from polyfield.fields.model import Model
from polyfield.scenes.evaluate import evaluate
from polyfield.scenes.scene import load_scene

NETWORKS = ("nerf", "mip")
RESOLUTIONS = (2.0, 1.0, 0.5, 0.25)
"""Relative to that of training."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", help="a folder with posed photos, or 'demo'")
    parser.add_argument("--out", type=Path, required=True, help="results, a JSON object a line; continued if it exists")
    parser.add_argument("--model", choices=("mlp", "cam"), default="mlp")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--downscale", type=int, default=8, help="of the photos trained on; even")
    parser.add_argument("--views", type=int, default=25, help="held-out photos measured at each resolution")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    if options.downscale % 2:
        parser.error(f"--downscale must be even, so that photos of twice the resolution exist; got {options.downscale}")
    results = Results(options.out)
    for seed in options.seeds:
        for network in NETWORKS:
            run_once(results, network, seed, options)
    key = {"scene": Path(options.scene).name, "model": options.model, "steps": options.steps}
    rows = [line for line in results.lines if key.items() <= line.items()]
    print(table(rows), file=sys.stderr)
    json.dump({"machine": facts(), "runs": rows}, sys.stdout, indent=2)
    print()
    return 0


def run_once(results: Results, network: str, seed: int, options: argparse.Namespace) -> None:
    key = {
        "scene": Path(options.scene).name,
        "model": options.model,
        "network": network,
        "steps": options.steps,
        "downscale": options.downscale,
        "views": options.views,
        "seed": seed,
    }
    if results.find(**key) is not None:
        return
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "run"
        extra = {
            "--model": options.model,
            "--network": network,
            "--seed": seed,
            "--max-steps": options.steps,
            "--downscale": options.downscale,
            "--eval-images": 1,
        }
        train(options.scene, out, [str(x) for pair in extra.items() for x in pair])
        run, model = read_run(out), Model.load(out / "model.safetensors")
        found = {}
        for relative in RESOLUTIONS:
            scene = load_scene(options.scene, downscale=round(options.downscale / relative))
            seen = evaluate(model, scene, run["split"], limit=options.views)
            found[f"{relative:g}"] = {"psnr": seen.psnr, "ssim": seen.ssim, "seconds_per_frame": seen.seconds_per_frame}
    results.add(**key, precision=run["precision"], train_seconds=run["train_seconds"], at=found)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a row a run."""
    names = [f"x{relative:g}" for relative in RESOLUTIONS]
    lines = [f"| network | seed | {' | '.join(names)} | train s | s/frame |", "|---" * (4 + len(names)) + "|"]
    for row in rows:
        at = " | ".join(f"{row['at'][f'{relative:g}']['psnr']:.2f}" for relative in RESOLUTIONS)
        frame = row["at"]["1"]["seconds_per_frame"]
        lines.append(f"| {row['network']} | {row['seed']} | {at} | {row['train_seconds']:.0f} | {frame:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
