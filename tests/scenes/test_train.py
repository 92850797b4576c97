"""Training: it learns, it is repeatable, it survives being killed, and its files say what happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny import tiny_scene

from polyfield.fields import Model
from polyfield.fields.errors import ConfigError, FormatError
from polyfield.fields.formats.model_file import read_tensors, write_tensors
from polyfield.fields.ops import _cpu
from polyfield.fields.radiance import GridFieldConfig
from polyfield.scenes import TrainOptions, train_scene
from polyfield.scenes.convert import ConvertOptions
from polyfield.scenes.presets import PRESETS, grid_preset, surroundings_of
from polyfield.scenes.train import preset_for

pytestmark = pytest.mark.skipif(_cpu.level() == "reference", reason="training by the torch references takes minutes")
FAST = {"samples": 4096, "evaluate_every": 20, "precision": "fp32"}


def run(folder: Path, steps: int, resume: bool = False, views: int = 12, **changes):
    return train_scene(tiny_scene(views), TrainOptions(max_steps=steps, **(FAST | changes)), run=folder, resume=resume)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_models(a: Path, b: Path) -> bool:
    x, y = (read_tensors(f / "model.safetensors", kind="model")[1] for f in (a, b))
    return set(x) == set(y) and all(torch.equal(x[k], y[k]) for k in x)


@pytest.fixture(autouse=True)
def few_voxels(monkeypatch):
    """A lattice as fine as pictures of 24 pixels can tell."""

    def preset(scene):
        return replace(grid_preset(scene), field=GridFieldConfig(first_cells=12))

    monkeypatch.setitem(PRESETS, "grid", preset)


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """Networks that learn such pictures within seconds."""
    small = {"density_width": 64, "density_layers": 3, "density_skip": None, "octaves": 4, "lr": 5e-3}
    for name in ("mlp", "cam"):
        before = PRESETS[name]

        def preset(scene, before=before):
            whole = before(scene)
            return replace(whole, field=replace(whole.field, **small), warmup_steps=20, resolution=32)

        monkeypatch.setitem(PRESETS, name, preset)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "steps", "least", "gain"),
    [
        # Ten views of 24 pixels do not determine the ball: held-out views score 15 to 21 dB by the luck of the seed.
        # Of 46 views it is learned to 29.7 to 32.9 dB for every seed and change tried; an all-white picture scores
        # about 11 dB.
        ({}, 150, 28, 10),
        ({"exposure": True}, 150, 28, 10),
        ({"distortion": 0.01}, 150, 28, 10),
        ({"refine_poses": True}, 150, 28, 10),
        ({"model": "tensor"}, 300, 22, 8),  # slower here than hash: 19.1 dB after 150 steps, 24.4 after 300, one seed
        ({"model": "planes"}, 300, 22, 8),
        ({"model": "rbf"}, 300, 22, 8),
        ({"model": "grid"}, 300, 22, 8),
        ({"model": "mlp"}, 300, 22, 8),
        ({"model": "cam", "bits": 8}, 300, 22, 8),
        ({"model": "mlp", "network": "mip"}, 300, 22, 8),
        ({"model": "cam", "network": "mip", "refine_poses": True}, 300, 22, 8),
    ],
    ids=str,
)
def test_a_ball_is_learned(tmp_path, changes, steps, least, gain):
    result = run(tmp_path / "run", steps, views=48, **changes)
    held_out = [line["heldout_psnr"] for line in lines(tmp_path / "run") if "heldout_psnr" in line]
    assert held_out[-1] > least
    assert held_out[-1] > held_out[0] + gain
    assert result.steps == steps
    assert result.skipped_steps == 0
    loaded = Model.load(result.model_path)
    x = torch.tensor([[0.0, 0.0, 0.5], [0.9, 0.9, 0.9]])
    inside, outside = loaded.representation.geometry(x).density_raw.tolist()
    assert inside > outside
    assert (tmp_path / "run" / "previews" / "final.png").exists()


@pytest.mark.slow
def test_fused_and_composed_training_agree(tmp_path, monkeypatch):
    import polyfield.fields.optim.radiance as radiance

    run(tmp_path / "fused", 30)
    monkeypatch.setattr(radiance, "native_available", lambda *_: False)
    run(tmp_path / "composed", 30)
    fused, composed = (lines(tmp_path / name) for name in ("fused", "composed"))
    for a, b in zip(fused, composed, strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=2e-2)


def test_two_runs_of_one_seed_are_identical_for_any_thread_count(tmp_path):
    before = torch.get_num_threads()
    try:
        for name, threads in (("a", 2), ("b", 1)):
            torch.set_num_threads(threads)
            run(tmp_path / name, 12)
    finally:
        torch.set_num_threads(before)
    assert same_models(tmp_path / "a", tmp_path / "b")


SCRIPT = """
import sys
sys.path[:0] = sys.argv[4:]
from pathlib import Path
from helpers.tiny import tiny_scene
from polyfield.scenes import TrainOptions, train_scene
folder, steps, resume = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "resume"
options = TrainOptions(max_steps=steps, samples=4096, evaluate_every=20, precision="fp32", checkpoint_every=10)
train_scene(tiny_scene(), options, run=folder, resume=resume)
"""


def start(folder: Path, steps: int, mode: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), str(steps), mode, *sys.path])


@pytest.mark.parametrize(
    "changes",
    [{"model": "tensor"}, {"model": "planes"}, {"model": "rbf"}, {"model": "grid"}, {"model": "cam", "bits": 8}],
    ids=lambda changes: changes["model"],
)
def test_a_run_of_another_kind_of_field_resumes_to_the_same_bits(tmp_path, changes):
    """Fields that have grown, and one that is rounded where it is stored but not in its checkpoint."""
    growing = {**changes, "checkpoint_every": 4}
    run(tmp_path / "whole", 16, **growing)
    with pytest.raises(KeyboardInterrupt):
        _interrupted_at(tmp_path / "cut", 6, 16, **growing)
    assert run(tmp_path / "cut", 16, resume=True, **growing).steps == 16
    assert same_models(tmp_path / "whole", tmp_path / "cut")


def _interrupted_at(folder: Path, step: int, steps: int, **changes) -> None:
    def report(progress) -> None:
        if progress.step >= step:
            signal.raise_signal(signal.SIGINT)

    train_scene(tiny_scene(), TrainOptions(max_steps=steps, **(FAST | changes)), run=folder, report=report)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    whole = start(tmp_path / "whole", 80, "new")
    assert whole.wait(timeout=120) == 0
    killed = start(tmp_path / "killed", 80, "new")
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    for _ in range(1200):
        if checkpoint.exists() or killed.poll() is not None:
            break
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert checkpoint.exists()
    assert start(tmp_path / "killed", 80, "resume").wait(timeout=120) == 0
    assert same_models(tmp_path / "whole", tmp_path / "killed")
    steps = [line["step"] for line in lines(tmp_path / "killed") if "loss" in line]
    assert steps == sorted(set(steps))


@pytest.mark.slow
def test_raising_the_steps_continues_a_finished_run(tmp_path):
    run(tmp_path / "run", 20)
    assert run(tmp_path / "run", 30, resume=True).steps == 30


def test_resuming_needs_a_checkpoint_with_the_same_settings(tmp_path):
    with pytest.raises(FormatError, match="nothing to resume"):
        run(tmp_path / "none", 5, resume=True)
    run(tmp_path / "run", 5)
    with pytest.raises(ConfigError, match="other settings \\(seed\\)"):
        run(tmp_path / "run", 10, resume=True, seed=1)


def test_a_checkpoint_with_another_header_is_refused(tmp_path):
    run(tmp_path / "run", 2, model="tensor")
    path = tmp_path / "run" / "checkpoint.safetensors"
    header, tensors = read_tensors(path, kind="checkpoint")
    kept = {k: v for k, v in header.items() if k not in ("format", "version")}
    box = [-1, -1, -1, 1, 1, 1]
    for growth in ({"stage": 99, "box": box}, {"stage": 1}, {"stage": 1, "box": 5}, {"stage": "x", "box": box}):
        write_tensors(path, kept | {"task": header["task"] | {"growth": growth}}, tensors)
        with pytest.raises(FormatError, match="header is not a checkpoint's"):
            run(tmp_path / "run", 4, resume=True, model="tensor")


def test_a_checkpoint_of_voxels_with_another_header_is_refused(tmp_path):
    run(tmp_path / "run", 2, model="grid")
    path = tmp_path / "run" / "checkpoint.safetensors"
    header, tensors = read_tensors(path, kind="checkpoint")
    kept = {k: v for k, v in header.items() if k not in ("format", "version")}
    good = {"doublings": 2, "stage": 1, "box": [0, 0, 0, 9, 9, 9], "rows": 900}
    for change in ({"rows": 1001}, {"rows": "x"}, {"box": 5}, {"box": [0, 0, 0, 9, 9, "9"]}, {"stage": 3}):
        write_tensors(path, kept | {"task": header["task"] | {"growth": good | change}}, tensors)
        with pytest.raises(FormatError, match="header is not a checkpoint's"):
            run(tmp_path / "run", 4, resume=True, model="grid")
    tensors["field.index"][0, 0, 0] = 2**31 - 1
    write_tensors(path, kept, tensors)
    with pytest.raises(FormatError, match="index must number the"):
        run(tmp_path / "run", 4, resume=True, model="grid")


def test_bf16_is_refused_where_there_are_no_networks(tmp_path):
    with pytest.raises(ConfigError, match="no networks to compute in bf16; leave out --precision"):
        run(tmp_path / "run", 2, model="grid", precision="bf16")


@pytest.mark.parametrize("changes", [{"bits": 8}, {"network": "siren"}, {"view_grids": True}], ids=str)
def test_settings_of_networks_are_refused_where_a_field_is_none(tmp_path, changes):
    with pytest.raises(ConfigError, match="--network, --view-grids and --bits are for the models mlp and cam"):
        run(tmp_path / "run", 2, **changes)


@pytest.mark.parametrize(
    ("model", "form", "has"),
    [
        ("tensor", "vm", ("form", "vm")),
        ("tensor", "cp", ("form", "cp")),
        ("planes", "product", ("combination", "product")),
        ("planes", "sum", ("combination", "sum")),
    ],
)
def test_a_grid_is_of_the_form_that_was_asked_for(model, form, has):
    around = surroundings_of(tiny_scene())
    assert getattr(preset_for(around, TrainOptions(model=model, form=form)).field, has[0]) == has[1]
    other = "planes" if model == "tensor" else "tensor"
    with pytest.raises(ConfigError, match=f"--form {form} is for --model {model}; leave it out"):
        preset_for(around, TrainOptions(model=other, form=form))


def test_three_lines_are_trained_and_read_again(tmp_path):
    result = run(tmp_path / "run", 30, model="tensor", form="cp")
    looks = [line["heldout_psnr"] for line in lines(tmp_path / "run") if "heldout_psnr" in line]
    assert looks[-1] > looks[0]
    config = Model.load(tmp_path / "run" / "model.safetensors").representation.config
    assert config == result.model.representation.config
    assert (tmp_path / "run" / "model.safetensors").stat().st_size < 2e6


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 2**31}, "--seed must be 0 to 2147483647; got 2147483648"),
        ({"samples": 0}, "--samples must be 1024 to 16777216; got 0"),
        ({"evaluate_every": -1}, "--evaluate-every must be 1 to 1000000000; got -1"),
        ({"checkpoint_every": 0}, "--checkpoint-every must be 1 to 1000000000; got 0"),
    ],
)
def test_numbers_out_of_range_are_named_before_anything_is_made(change, text):
    for options in (TrainOptions, ConvertOptions):
        with pytest.raises(ConfigError, match=text):
            options(**change)


def test_a_weight_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="--distortion must be 0 to 1000; got nan"):
        TrainOptions(distortion=float("nan"))


def test_steps_and_seconds_together_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="not both"):
        train_scene(tiny_scene(), TrainOptions(max_steps=5, max_seconds=5.0), run=tmp_path / "run")


def test_a_scene_without_held_out_frames_trains(tmp_path):
    scene = replace(tiny_scene(), splits={"train": torch.arange(12), "test": torch.zeros(0, dtype=torch.int64)})
    train_scene(scene, TrainOptions(max_steps=5, **FAST), run=tmp_path / "run")
    assert not any("heldout_psnr" in line for line in lines(tmp_path / "run"))


def test_masked_pixels_are_never_drawn():
    from polyfield.scenes.images import Images
    from polyfield.scenes.rays import SceneRays

    scene = tiny_scene()
    masks = [torch.zeros(24, 24, dtype=torch.uint8) for _ in range(12)]
    for mask in masks:
        mask[:12] = 255
    frames = [scene.images.image(k) for k in range(12)]
    scene = replace(scene, images=Images.from_frames(frames, masks))
    _, _, y = SceneRays(scene, scene.splits["train"])._pixels(2000, torch.Generator().manual_seed(0))
    assert int(y.max()) < 12
