"""How good does a scene get, and when? Trains it by the command line and prints quality over time. (Bars 2 to 5.)

    python benchmarks/quality.py SCENE --max-seconds 120 [--downscale K] [--runs 3] [--first-seed 0]

Runs `polyfield train` in a process of its own, once a seed, and reads what it wrote. Besides the run's own figures:

- `cold_start_seconds`: the whole process, imports, data and evaluation included (bar 5);
- `seconds_per_live_sample`, over that of the fused fp32 step measured here: what the loop adds (bar 1);
- `frame_over_step`: seconds per held-out frame, over those of that step (bar 4);
- `depth_total_variation`: mean change of depth between neighbouring opaque pixels of held-out frames, over the frame's
  median depth (bar 3: lower is smoother);
- `opacity_in_free_space`: mean opacity along a radius of balls round the training cameras, half as large as the way
  to the next camera. Cameras were there, so it was empty: what is found are floaters (bar 3).

Prints one JSON object. Exits with 3 when other work runs (see `quiet.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import facts
from quiet import Watch, accept, demand_quiet
from train_step import PER_RAY, RAYS, fused_step_seconds

from polyfield.fields.model import Model
from polyfield.fields.ops.activations import density_from_raw
from polyfield.fields.render import render
from polyfield.scenes.evaluate import cameras_for, held_out_split
from polyfield.scenes.scene import Scene, load_scene

SHAPE_FRAMES = 4
"""Held-out frames whose depth is looked at."""


def train(scene: str, out: Path, extra: list[str]) -> float:
    """Seconds from start to end of the process."""
    command = [sys.executable, "-m", "polyfield", "train", scene, "--out", str(out), *extra]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr)
    return time.perf_counter() - start


def read_run(out: Path) -> dict[str, Any]:
    """Figures of a finished run folder."""
    result = json.loads((out / "result.json").read_text())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    live = [line["live"] for line in lines if line.get("live")]
    keys = ("psnr", "ssim", "split", "protocol", "train_seconds", "steps", "precision", "peak_memory_bytes", "seed")
    return {
        **{key: result.get(key) for key in keys},
        "seconds_per_frame": result.get("seconds_per_frame"),
        "seconds_per_live_sample": result["train_seconds"] / (statistics.mean(live) * result["steps"])
        if live
        else None,
        "over_time": [
            {"seconds": line["seconds"], "step": line["step"], "psnr_of_held_out_rays": line["heldout_psnr"]}
            for line in lines
            if line.get("heldout_psnr") is not None
        ],
    }


@torch.no_grad()
def depth_total_variation(model: Model, scene: Scene) -> float | None:
    """See the module's text; None where no frame has opaque neighbours."""
    split = held_out_split(scene)
    frames = scene.splits[split].tolist() if split else []
    cameras, found = cameras_for(model, scene), []
    for frame in frames[:: max(1, len(frames) // SHAPE_FRAMES)][:SHAPE_FRAMES]:
        depth = render(model, cameras[frame : frame + 1]).depth
        solid = torch.isfinite(depth)
        if not bool(solid.any()):
            continue
        changes = [
            (depth[:, 1:] - depth[:, :-1])[solid[:, 1:] & solid[:, :-1]],
            (depth[1:] - depth[:-1])[solid[1:] & solid[:-1]],
        ]
        found.append(float(torch.cat(changes).abs().mean() / depth[solid].median()))
    return statistics.mean(found) if found else None


@torch.no_grad()
def opacity_in_free_space(model: Model, scene: Scene, points_a_camera: int = 256) -> float:
    """See the module's text."""
    centres = cameras_for(model, scene).centres()[scene.splits["train"]]
    apart = torch.cdist(centres, centres) + torch.eye(len(centres)) * 1e9
    radius = 0.5 * apart.amin(1)
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(
        torch.randn(len(centres), points_a_camera, 3, generator=generator), dim=-1
    )
    share = torch.rand(len(centres), points_a_camera, 1, generator=generator) ** (1 / 3)
    points = (centres[:, None] + radius[:, None, None] * share * direction).reshape(-1, 3)
    raw = model.representation.geometry(points).density_raw.float()
    density = density_from_raw(raw, model.representation.density_activation) * _occupied(model, points)
    return float((1 - torch.exp(-density * radius.repeat_interleave(points_a_camera))).mean())


def _occupied(model: Model, points: torch.Tensor) -> torch.Tensor:
    """(N,) whether a ray would take a sample there: the finest cascade that holds the point decides."""
    grid = model.occupancy
    cells = grid.resolution
    largest = points.abs().amax(1)
    cascade = largest.clamp_min(1e-9).log2().ceil().clamp_min(0).long()
    inside = cascade < grid.cascades
    cascade = cascade.clamp_max(grid.cascades - 1)
    unit = points / (2.0**cascade)[:, None] * 0.5 + 0.5
    x, y, z = (unit * cells).long().clamp(0, cells - 1).unbind(1)
    index = (z * cells + y) * cells + x
    byte = grid.bits[cascade, index >> 3].long()
    return inside & ((byte >> (index & 7)) & 1).bool()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", help="a folder with posed photos, or 'demo'")
    parser.add_argument("--model", default="hash", help="kind of field, as of polyfield train")
    parser.add_argument("--max-seconds", type=float, default=120.0)
    parser.add_argument("--max-steps", type=int, help="instead of --max-seconds")
    parser.add_argument("--downscale", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--runs", type=int, default=1, help="separate runs, each with the next seed")
    parser.add_argument("--first-seed", type=int, default=0, help="goes on where earlier runs ended (default 0)")
    parser.add_argument("--keep", type=Path, help="folder for the run folders; they are deleted otherwise")
    parser.add_argument(
        "--force", action="store_true", help="run although the machine is not quiet; the result says so"
    )
    options = parser.parse_args()
    length = ["--max-seconds", str(options.max_seconds)]
    if options.max_steps is not None:
        length = ["--max-steps", str(options.max_steps)]
    demand_quiet(options.force)
    runs = []
    with tempfile.TemporaryDirectory() as temporary, Watch() as watch:
        folder = options.keep or Path(temporary)
        step_seconds = fused_step_seconds(torch.get_num_threads())
        scene = None
        for seed in range(options.first_seed, options.first_seed + options.runs):
            out = folder / f"run-{seed}"
            extra = [
                *length,
                "--model",
                options.model,
                "--downscale",
                str(options.downscale),
                "--precision",
                options.precision,
            ]
            cold = train(options.scene, out, [*extra, "--device", options.device, "--seed", str(seed)])
            run = {"cold_start_seconds": cold, **read_run(out)}
            scene = scene or load_scene(options.scene, downscale=options.downscale)
            model = Model.load(out / "model.safetensors")
            run["depth_total_variation"] = depth_total_variation(model, scene)
            run["opacity_in_free_space"] = opacity_in_free_space(model, scene)
            if run["seconds_per_frame"]:
                run["frame_over_step"] = run["seconds_per_frame"] / step_seconds
            if run["seconds_per_live_sample"]:
                run["loop_over_step"] = run["seconds_per_live_sample"] / (step_seconds / (RAYS * PER_RAY))
            runs.append(run)
    report = {
        "machine": facts(),
        "scene": options.scene,
        "quiet": accept(watch, options.force),
        "foreign_share": watch.foreign,
        "fused_fp32_step_seconds": step_seconds,
        "psnr_mean": statistics.mean(r["psnr"] for r in runs) if all(r["psnr"] is not None for r in runs) else None,
        "psnr_lowest": min((r["psnr"] for r in runs if r["psnr"] is not None), default=None),
        "runs": runs,
    }
    json.dump(report, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
