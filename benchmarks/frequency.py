"""Does FreSh help radiance fields? What it chooses against the default and against half and twice of the choice.

    python benchmarks/frequency.py SCENE... --out FILE [--downscale 4] [--steps 300] [--fields siren fourier nerf hash]

Every field is trained on every scene by `train_scene` for as many steps, of one seed, and measured on a fixed sample of
8192 held-out rays. Networks are small, four layers of 128, and sines learn as fast as in `polyfield fit` (5e-4), so
that the whole takes minutes: it is for comparing frequencies, not for the quality of the fields. Of octaves three fewer
and three more stand for half and twice. Every run is one line of the file --out; what stands there is not trained
again. Prints one JSON object and, on standard error, the table of docs/fields.md. Quality does not depend on the
machine; the seconds do (nothing is refused here).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from images import Results
from machine import facts

from polyfield.fields.radiance import MlpFieldConfig
from polyfield.scenes import TrainOptions, train_scene
from polyfield.scenes.presets import NETWORKS, Preset, Surroundings, frequency_of, surroundings_of
from polyfield.scenes.scene import Scene, load_scene
from polyfield.scenes.train import PRESETS, choose, preset_for

FIELDS: dict[str, dict[str, Any]] = {
    "siren": {"model": "mlp", "network": "siren"},
    "finer": {"model": "mlp", "network": "finer"},
    "fourier": {"model": "mlp", "network": "fourier"},
    "nerf": {"model": "mlp", "network": "nerf"},
    "cam": {"model": "cam"},
    "hash": {"model": "hash"},
    "rbf": {"model": "rbf"},
}
SAMPLES = {"mlp": 1 << 12, "cam": 1 << 12, "hash": 1 << 14, "rbf": 1 << 14}
"""Of a step, by model."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="+", type=Path, help="folders with posed photos")
    parser.add_argument("--out", type=Path, required=True, help="results, a JSON object a line; continued if it exists")
    parser.add_argument("--fields", nargs="+", choices=FIELDS, default=["siren", "fourier", "nerf", "hash"])
    parser.add_argument("--downscale", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for model in ("mlp", "cam"):
        PRESETS[model] = smaller(PRESETS[model])
    for network in ("siren", "finer"):
        NETWORKS[network] = {**NETWORKS[network], "lr": 5e-4}
    results, rows = Results(options.out), []
    for path in options.scenes:
        scene = load_scene(path, downscale=options.downscale)
        for name in options.fields:
            rows.append(compare(results, scene, name, options))
    print(table(rows), file=sys.stderr)
    json.dump({"machine": facts(), "steps": options.steps, "compared": rows}, sys.stdout, indent=2)
    print()
    return 0


def smaller(preset: Callable[[Surroundings], Preset]) -> Callable[[Surroundings], Preset]:
    """The preset with a network that learns something within some hundred steps."""

    def of(around: Surroundings) -> Preset:
        whole = preset(around)
        field = replace(whole.field, density_width=128, density_layers=4, density_skip=None)
        return replace(whole, field=field, warmup_steps=20, resolution=32)

    return of


def compare(results: Results, scene: Scene, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Choose, then train with the choice, the default, half and twice."""
    train = TrainOptions(
        **FIELDS[name],
        max_steps=options.steps,
        samples=SAMPLES[FIELDS[name]["model"]],
        seed=options.seed,
        evaluate_every=options.steps,
    )
    key = {
        "scene": scene.name,
        "field": name,
        "downscale": options.downscale,
        "steps": options.steps,
        "seed": options.seed,
    }
    found = results.find(choice=True, **key)
    if found is None:
        found = results.add(choice=True, **key, **choose(scene, train).as_dict())
    field = preset_for(surroundings_of(scene), train).field
    frequency = frequency_of(field)
    assert frequency is not None
    default = float(getattr(field, frequency.name, None) or 0) if isinstance(field, MlpFieldConfig) else 2048.0
    chosen = found["chosen"]
    around = (chosen - 3, chosen + 3) if frequency.name == "octaves" else (chosen / 2, chosen * 2)
    psnr = {}
    for value in sorted({default, chosen, *(v for v in around if v >= 1 or chosen == 0)}):
        line = results.find(value=value, **key)
        if line is None:
            line = results.add(value=value, **key, **train_once(scene, replace(train, frequency=str(value))))
        psnr[value] = line["psnr"]
    rest = {"setting": frequency.name, "default": default, "chosen": chosen, "seconds": found["seconds"]}
    return {"scene": scene.name, "field": name, **rest, "psnr": psnr, "gain": psnr[chosen] - psnr[default]}


def train_once(scene: Scene, train: TrainOptions) -> dict[str, Any]:
    """PSNR of held-out rays at the end, dB."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as run:
        train_scene(scene, train, run=run)
        looks = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    psnr = [look["heldout_psnr"] for look in looks if "heldout_psnr" in look]
    return {"psnr": psnr[-1] if psnr else math.nan, "seconds": time.perf_counter() - begin}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a row a scene and field."""
    lines = ["| scene | field | default | FreSh | others | gain | took |", "|---" * 7 + "|"]
    for row in rows:
        shown = {value: f"{value:g}: {psnr:.2f}" for value, psnr in row["psnr"].items()}
        others = ", ".join(text for value, text in shown.items() if value not in (row["default"], row["chosen"]))
        lines.append(
            f"| {row['scene']} | `{row['field']}`, {row['setting']} | {shown[row['default']]} | "
            f"{shown[row['chosen']]} | {others} | {row['gain']:+.2f} dB | {row['seconds']:.1f} s |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
