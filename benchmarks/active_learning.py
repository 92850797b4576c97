"""Does a student learn more when it looks again where it was wrong? PVD-AL's three levels, each alone and together.

    python benchmarks/active_learning.py SCENE --teachers hash=RUN planes=RUN --out FILE [--steps 250] [--seeds 0 1 2]

Converts by `scenes.convert_model` for as many steps with no level, with each, and with all three: pairs hash to tensor,
hash to planes, planes to hash and planes to tensor. The likeness is measured on the 4096 rays that no step sees, and on
the held-out photos of SCENE. Every run is one line of the file --out; what stands there is not run again. Prints one
JSON object and, on standard error, the table of docs/conversion.md: the gain over no level in dB, mean and range over
the seeds, and the time of a step over that without. Quality does not depend on the machine; the times do (nothing is
refused here).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from images import Results
from machine import facts

from polyfield.fields.convert import Level
from polyfield.fields.model import Model
from polyfield.scenes.convert import ConvertOptions, convert_model, scene_cameras
from polyfield.scenes.evaluate import evaluate, held_out_split
from polyfield.scenes.scene import load_scene
from polyfield.scenes.train import Kind

PAIRS: tuple[tuple[Kind, Kind], ...] = (
    ("hash", "tensor"),
    ("hash", "planes"),
    ("planes", "hash"),
    ("planes", "tensor"),
)
LEVELS: dict[str, tuple[Level, ...]] = {
    "none": (),
    "cameras": ("cameras",),
    "rays": ("rays",),
    "points": ("points",),
    "all": ("cameras", "rays", "points"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", help="a folder with posed photos, or 'demo'")
    parser.add_argument(
        "--teachers", nargs="+", required=True, metavar="KIND=RUN", help="run folders of trained models"
    )
    parser.add_argument("--out", type=Path, required=True, help="results, a JSON object a line; continued if it exists")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS))
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--downscale", type=int, default=4)
    parser.add_argument("--views", type=int, default=5, help="held-out photos measured")
    options = parser.parse_args()
    results = Results(options.out)
    scene = load_scene(options.scene, downscale=options.downscale)
    teachers = {kind: Path(run) / "model.safetensors" for kind, run in (t.split("=", 1) for t in options.teachers)}
    for seed in options.seeds:
        for teacher, to in (pair for pair in PAIRS if pair[0] in teachers):
            for level in options.levels:
                key = {"teacher": teacher, "to": to, "level": level, "seed": seed, "steps": options.steps}
                if results.find(**key) is not None:
                    continue
                model = Model.load(teachers[teacher])
                asked = ConvertOptions(to=to, max_steps=options.steps, seed=seed, active=LEVELS[level])
                result = convert_model(model, asked, cameras=scene_cameras(model, scene))
                split = held_out_split(scene)
                quality = None if split is None else evaluate(result.model, scene, split, limit=options.views).psnr
                results.add(**key, to_teacher=result.psnr_to_teacher, psnr=quality, seconds=result.seconds)
    rows = gains(results.lines)
    print(table(rows), file=sys.stderr)
    json.dump({"machine": facts(), "gains": rows, "runs": results.lines}, sys.stdout, indent=2)
    print()
    return 0


def gains(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each pair and level over no level, seed by seed."""
    at = {(x["teacher"], x["to"], x["level"], x["seed"], x["steps"]): x for x in lines}
    out = []
    for teacher, to in PAIRS:
        for level in LEVELS:
            found = [
                (x, plain)
                for x in lines
                if (x["teacher"], x["to"], x["level"]) == (teacher, to, level)
                and (plain := at.get((teacher, to, "none", x["seed"], x["steps"]))) is not None
            ]
            if not found:
                continue
            apart = [x["to_teacher"] - plain["to_teacher"] for x, plain in found]
            row: dict[str, Any] = {"teacher": teacher, "to": to, "level": level, "seeds": len(found)}
            row |= {"to_teacher": statistics.mean(x["to_teacher"] for x, _ in found), "gains": apart}
            if all(x["psnr"] is not None for x, _ in found):
                row["gain_on_photos"] = statistics.mean(x["psnr"] - plain["psnr"] for x, plain in found)
            row["time"] = statistics.median(x["seconds"] / plain["seconds"] for x, plain in found)
            out.append(row)
    return out


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a row a pair and level."""
    lines = [
        "| pair | level | seeds | to the teacher | gain | smallest, largest | on photos | time |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        mean, photos = statistics.mean(row["gains"]), row.get("gain_on_photos")
        lines.append(
            f"| {row['teacher']} to {row['to']} | {row['level']} | {row['seeds']} | {row['to_teacher']:.2f} dB | "
            f"{mean:+.2f} | {min(row['gains']):+.2f}, {max(row['gains']):+.2f} | "
            f"{'' if photos is None else f'{photos:+.2f}'} | {row['time']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
