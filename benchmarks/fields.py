"""How good, how large and how fast is every family on one scene? The table of docs/fields.md.

    python benchmarks/fields.py SCENE --out FILE [--models hash tensor ...] [--max-seconds 600] [--downscale 2]

Runs `polyfield train` once a family and seed, in a process of its own, and measures the result on held-out photos (25
of them, spread evenly; not counted as training time). Every run is one line of the file --out; what stands there is not
trained again, so that a table can be finished another day. Prints one JSON object and, on standard error, the table:
PSNR of the photos, PSNR of a fixed sample of held-out rays at shares of the time, size of the model file, training rays
a second, seconds a frame. `--pictures FOLDER` keeps each family's picture of the first held-out photo.

Exits with 3 when other work runs (see `quiet.py`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from images import Results
from machine import facts
from quality import read_run, train
from quiet import Watch, accept, demand_quiet

from polyfield.scenes.presets import PRESETS

SHARES = (0.25, 0.5, 1.0)
"""Of the training time, at which the held-out rays are looked at."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", help="a folder with posed photos, or 'demo'")
    parser.add_argument("--out", type=Path, required=True, help="results, a JSON object a line; continued if it exists")
    parser.add_argument("--models", nargs="+", default=list(PRESETS), help="families, as of polyfield train")
    parser.add_argument("--max-seconds", type=int, default=600, help="training time of each")
    parser.add_argument("--downscale", type=int, default=2)
    parser.add_argument("--views", type=int, default=25, help="held-out photos measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--bits", type=int, choices=(8, 32), default=32, help="of the weights of mlp and cam")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of every family")
    parser.add_argument("--force", action="store_true", help="run although the machine is not quiet; lines say so")
    options = parser.parse_args()
    results = Results(options.out)
    for seed in options.seeds:
        for model in options.models:
            run_once(results, model, seed, options)
    key = {"scene": Path(options.scene).name, "max_seconds": options.max_seconds}
    rows = [line for line in results.lines if key.items() <= line.items()]
    print(table(rows), file=sys.stderr)
    json.dump({"machine": facts(), "runs": rows}, sys.stdout, indent=2)
    print()
    return 0


def run_once(results: Results, model: str, seed: int, options: argparse.Namespace) -> None:
    key = {
        "scene": Path(options.scene).name,
        "model": model,
        "bits": options.bits if model in ("mlp", "cam") else 32,
        "seed": seed,
        "max_seconds": options.max_seconds,
        "downscale": options.downscale,
        "views": options.views,
    }
    if results.find(**key) is not None:
        return
    demand_quiet(options.force)
    with tempfile.TemporaryDirectory() as temporary, Watch() as watch:
        out = Path(temporary) / "run"
        extra = {
            "--model": model,
            "--bits": key["bits"],
            "--precision": "auto" if model == "grid" else options.precision,
            "--seed": seed,
            "--max-seconds": options.max_seconds,
            "--downscale": options.downscale,
            "--eval-images": options.views,
            "--evaluate-every": 100,
        }
        train(options.scene, out, [str(x) for pair in extra.items() for x in pair])
        run = read_run(out)
        size = (out / "model.safetensors").stat().st_size
        if options.pictures is not None:
            options.pictures.mkdir(parents=True, exist_ok=True)
            shutil.copy(out / "previews" / "final.png", options.pictures / f"{key['scene']}-{model}.png")
        rays = [json.loads(line).get("rays") for line in (out / "metrics.jsonl").read_text().splitlines()]
    over_time = run.pop("over_time")
    results.add(
        **{**run, **key},
        psnr_at=[_at(over_time, share * options.max_seconds) for share in SHARES],
        bytes=size,
        rays_per_second=statistics.mean([r for r in rays if r] or [0]) * run["steps"] / run["train_seconds"],
        quiet=accept(watch, options.force),
    )


def _at(over_time: list[dict[str, Any]], seconds: float) -> float | None:
    """The last look up to then."""
    seen = [look["psnr_of_held_out_rays"] for look in over_time if look["seconds"] <= seconds]
    return seen[-1] if seen else None


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a row a run."""
    at = " | ".join(f"rays at {share:.0%}" for share in SHARES)
    lines = [f"| field | bits | seed | PSNR | SSIM | {at} | MB | rays/s | s/frame | quiet |", "|---" * 12 + "|"]
    for row in rows:
        looks = " | ".join("" if psnr is None else f"{psnr:.2f}" for psnr in row["psnr_at"])
        lines.append(
            f"| {row['model']} | {row['bits']} | {row['seed']} | {row['psnr']:.2f} | {row['ssim']:.3f} | {looks} | "
            f"{row['bytes'] / 1e6:.2f} | {row['rays_per_second']:,.0f} | {row['seconds_per_frame']:.2f} | "
            f"{'yes' if row['quiet'] else 'no'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
