"""Can every kind of field become every other? Teachers from photos, conversions without, in a table of all pairs.

    python benchmarks/conversion_matrix.py SCENE --out FOLDER [--kinds hash tensor ...] [--round-trips]

Trains a teacher of every kind (`--teacher-seconds`), the same kind from photos for as long as a conversion takes
(`--seconds`), and converts every teacher to every other kind by `polyfield convert`, without photos, each in a process
of its own. `--round-trips` converts every student back to its teacher's kind. `--steps` takes steps instead of seconds
for all but the teachers, which then does not depend on the machine. Everything is one line of FOLDER/results.jsonl;
what stands there is not run again, and the teachers stay in FOLDER, so that a table can be finished another day.

Prints one JSON object and, on standard error, the table: held-out PSNR of the student, in brackets its likeness to the
teacher. `wins`: pairs in which the teacher is at least 1 dB above the student's kind from photos, and how many of these
are above it after converting. `near`: students within .5 dB (mlp and cam: 1 dB) of the lower of teacher and of their
own kind's teacher.

Exits with 3 when other work runs (see `quiet.py`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from images import Results
from machine import facts
from quality import read_run, train
from quiet import Watch, accept, demand_quiet

from polyfield.scenes.presets import PRESETS

NEAR = {"mlp": 1.0, "cam": 1.0}
"""dB that a student may lose; .5 for the others."""
AHEAD = 1.0
"""dB by which a teacher must be above the photo run for the pair to count among those that converting is to win."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", help="a folder with posed photos, or 'demo'")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results and the teachers")
    parser.add_argument("--kinds", nargs="+", choices=list(PRESETS), default=list(PRESETS), help="of students")
    parser.add_argument("--teachers", nargs="+", choices=list(PRESETS), help="kinds of teachers; the same by default")
    parser.add_argument("--teacher-seconds", type=int, default=600)
    parser.add_argument("--seconds", type=int, default=60, help="of a conversion, and of a run from photos beside it")
    parser.add_argument("--steps", type=int, help="of these, in place of --seconds")
    parser.add_argument("--downscale", type=int, default=4)
    parser.add_argument("--views", type=int, default=25, help="held-out photos measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round-trips", action="store_true", help="also convert every student back")
    parser.add_argument("--force", action="store_true", help="run although the machine is not quiet; lines say so")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    matrix = Matrix(options)
    teachers = options.teachers or options.kinds
    for kind in dict.fromkeys([*teachers, *options.kinds]):
        matrix.teacher(kind)
    for kind in options.kinds:
        matrix.from_photos(kind)
    pairs = [(a, b) for a in teachers for b in options.kinds if a != b]
    for a, b in pairs:
        matrix.convert(a, b, back=options.round_trips)
    rows = [row for a, b in pairs for row in matrix.found("student", teacher=a, kind=b)]
    ceilings = {row["kind"]: row["psnr"] for row in matrix.found("teacher")}
    photos = {row["kind"]: row["psnr"] for row in matrix.found("photos")}
    report = {
        "machine": facts(),
        "teachers": matrix.found("teacher"),
        "photos": matrix.found("photos"),
        "students": rows,
        "summary": summary(rows, ceilings, photos),
    }
    if options.round_trips:
        report["round trips"] = [row for a, b in pairs for row in matrix.found("back", kind=a, by=b)]
    print(table(teachers, options.kinds, rows, ceilings, photos), file=sys.stderr)
    json.dump(report, sys.stdout, indent=2)
    print()
    return 0


class Matrix:
    """What was run, and how the next is."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.results = Results(options.out / "results.jsonl")
        self.key = {"scene": Path(options.scene).name, "downscale": options.downscale, "seed": options.seed}
        self.length = {"steps": options.steps} if options.steps else {"seconds": options.seconds}

    def found(self, what: str, **key: Any) -> list[dict[str, Any]]:
        length = {"seconds": self.options.teacher_seconds} if what == "teacher" else self.length
        wanted = {"what": what, **self.key, **length, "views": self.options.views, **key}
        return [line for line in self.results.lines if wanted.items() <= line.items()]

    def model(self, kind: str) -> Path:
        return self.options.out / f"{self.key['scene']}-{kind}"

    def teacher(self, kind: str) -> None:
        out = self.model(kind)
        if self.found("teacher", kind=kind) and out.exists():
            return
        shutil.rmtree(out, ignore_errors=True)
        self._train("teacher", kind, out, {"seconds": self.options.teacher_seconds})

    def from_photos(self, kind: str) -> None:
        if not self.found("photos", kind=kind):
            with tempfile.TemporaryDirectory() as temporary:
                self._train("photos", kind, Path(temporary) / "run", self.length)

    def convert(self, teacher: str, kind: str, *, back: bool) -> None:
        needed = [("student", {"teacher": teacher, "kind": kind})]
        if back:
            needed.append(("back", {"kind": teacher, "by": kind}))
        if all(self.found(what, **key) for what, key in needed):
            return
        with tempfile.TemporaryDirectory() as temporary:
            made = self.model(teacher)
            for what, key in needed:
                out = Path(temporary) / f"{what}.safetensors"
                self._convert(what, made, out, key)
                made = out

    def _train(self, what: str, kind: str, out: Path, length: dict[str, int]) -> None:
        o = self.options
        demand_quiet(o.force)
        with Watch() as watch:
            views = ["--eval-images", str(o.views), "--downscale", str(o.downscale), "--seed", str(o.seed)]
            train(o.scene, out, ["--model", kind, *_limit(length), *views])
        run = read_run(out)
        figures = {"psnr": run["psnr"], "steps_done": run["steps"], "train_seconds": run["train_seconds"]}
        self._add(what, length, {"kind": kind}, figures, watch)

    def _convert(self, what: str, model: Path, out: Path, key: dict[str, str]) -> None:
        o = self.options
        demand_quiet(o.force)
        with Watch() as watch:
            command = [sys.executable, "-m", "polyfield", "convert", str(model), "--to", key["kind"], "--out", str(out)]
            measured = [
                "--scene",
                o.scene,
                "--finish",
                "0",
                "--downscale",
                str(o.downscale),
                "--eval-images",
                str(o.views),
            ]
            given = [*command, *_limit(self.length), *measured, "--seed", str(o.seed)]
            subprocess.run(given, check=True, stdout=sys.stderr)
        result = json.loads((out.with_suffix("") / "result.json").read_text())
        figures = {
            "psnr": result["psnr"],
            "teacher_psnr": result["teacher_psnr"],
            "psnr_to_teacher": result["psnr_to_teacher"],
            "steps_done": result["steps"],
            "convert_seconds": result["convert_seconds"],
            "bytes": result["bytes"],
        }
        self._add(what, self.length, key, figures, watch)

    def _add(
        self, what: str, length: dict[str, int], key: dict[str, str], figures: dict[str, Any], watch: Watch
    ) -> None:
        quiet = accept(watch, self.options.force)
        self.results.add(what=what, **self.key, **length, views=self.options.views, **key, **figures, quiet=quiet)


def _limit(length: dict[str, int]) -> list[str]:
    [(unit, value)] = length.items()
    return [f"--max-{unit}", str(value)]


def summary(rows: list[dict[str, Any]], ceilings: dict[str, float], photos: dict[str, float]) -> dict[str, Any]:
    """See the module's text."""
    counted = [row for row in rows if row["teacher_psnr"] >= photos[row["kind"]] + AHEAD]
    lost = {
        f"{row['teacher']} to {row['kind']}": min(row["teacher_psnr"], ceilings[row["kind"]]) - row["psnr"]
        for row in rows
    }
    near = [row for row in rows if lost[f"{row['teacher']} to {row['kind']}"] <= NEAR.get(row["kind"], 0.5)]
    won = [row for row in counted if row["psnr"] > photos[row["kind"]]]
    return {
        "wins": {"of": len(counted), "won": len(won)},
        "near": {"of": len(rows), "near": len(near)},
        "decibels lost": lost,
    }


def table(
    teachers: list[str],
    kinds: list[str],
    rows: list[dict[str, Any]],
    ceilings: dict[str, float],
    photos: dict[str, float],
) -> str:
    """Markdown, a row a teacher."""
    at = {(row["teacher"], row["kind"]): row for row in rows}
    lines = [f"| from (its PSNR) | {' | '.join(kinds)} |", "|---" * (1 + len(kinds)) + "|"]
    for a in teachers:
        cells = [f"{row['psnr']:.1f} ({row['psnr_to_teacher']:.1f})" if (row := at.get((a, b))) else "" for b in kinds]
        lines.append(f"| {a} ({ceilings[a]:.1f}) | {' | '.join(cells)} |")
    lines.append(f"| photos | {' | '.join(f'{photos[b]:.1f}' for b in kinds)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
