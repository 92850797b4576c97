"""`polyfield convert` as a user types it: files, exit codes and texts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from helpers.ball_model import ball_model
from helpers.small_presets import shrink_presets
from helpers.tiny import tiny_scene

from polyfield.fields import Model
from polyfield.fields.convert import DistillTask
from polyfield.fields.ops import _cpu
from polyfield.fields.radiance import GridField
from polyfield.scenes.cli import main, run_folder

pytestmark = pytest.mark.skipif(_cpu.level() == "reference", reason="converting by the torch references takes minutes")
BASE = ["--precision", "fp32", "--samples", "2048", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shrink_presets(monkeypatch)
    ball_model().save("ball.safetensors")
    return tmp_path


def convert(*more: str, model: str = "ball.safetensors", to: str = "hash", out: str = "b.safetensors") -> int:
    return main(["convert", model, "--to", to, "--out", out, *BASE, *more])


def error(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("polyfield: error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("polyfield: error: ")


def test_a_model_becomes_another_with_a_line_about_it(folder, capsys):
    assert convert("--max-steps", "20") == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert "grid to hash: " in out
    assert "dB to the teacher" in out
    assert "20 steps in" in out
    assert "converting grid to hash" in err
    assert "as teacher" in err
    assert Model.load(folder / "b.safetensors").kind == "hash"
    facts = json.loads((folder / "b/result.json").read_text())
    assert facts["format"] == "polyfield-conversion"
    assert facts["psnr"] is None
    assert facts["bytes"] == (folder / "b.safetensors").stat().st_size
    assert {"config.json", "metrics.jsonl", "checkpoint.safetensors"} <= {p.name for p in (folder / "b").iterdir()}


def test_with_a_scene_both_are_measured_on_its_photos_and_its_cameras_are_kept(folder, capsys, monkeypatch):
    monkeypatch.setattr("polyfield.scenes.scene.load_scene", lambda *_, **__: tiny_scene())
    assert convert("--max-steps", "2", "--scene", "tiny", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["psnr"] > 5
    assert facts["teacher_psnr"] > 5
    assert facts["protocol"]["images"] == 2
    cameras = json.loads((folder / "b/cameras.json").read_text())
    assert len(cameras["frames"]) == 10
    assert convert("--max-steps", "2", model="b.safetensors", to="planes", out="c.safetensors") == 0
    again = json.loads((folder / "c/cameras.json").read_text())
    poses = [torch.tensor([f["transform_matrix"] for f in c["frames"]]) for c in (cameras, again)]
    torch.testing.assert_close(*poses)
    assert convert("--max-steps", "2", "--scene", "tiny", "--downscale", "3", out="d.safetensors") == 0
    assert run_folder.trained_downscale(folder / "d") == 3  # what is done with it next is done at that size


def test_an_interrupted_conversion_says_how_to_go_on(folder, capsys, monkeypatch):
    assert convert("--max-steps", "6", out="whole.safetensors") == 0
    step = DistillTask.step

    def stopped(self, index, scale):
        if index == 3:
            raise KeyboardInterrupt
        return step(self, index, scale)

    monkeypatch.setattr(DistillTask, "step", stopped)
    assert convert("--max-steps", "6") == 130
    assert "saved in b; the same command with --resume continues" in capsys.readouterr().err
    monkeypatch.setattr(DistillTask, "step", step)
    assert convert("--max-steps", "6", "--seed", "4", "--resume") == 2
    assert "was started with --seed 0, now it is 4" in error(capsys)
    assert main(["convert", "ball.safetensors", "--out", "b.safetensors", "--resume"]) == 0
    a, b = (Model.load(folder / name).representation.state_dict() for name in ("whole.safetensors", "b.safetensors"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_size_limit_is_kept_to_and_what_was_chosen_is_told(folder, capsys):
    assert convert("--max-steps", "4", "--size-limit", "40KB") == 0
    err = capsys.readouterr().err
    facts = json.loads((folder / "b/result.json").read_text())
    assert facts["bytes"] == (folder / "b.safetensors").stat().st_size <= facts["capacity"]["most_bytes"] <= 40_000
    size, chosen = facts["capacity"]["most_bytes"], facts["capacity"]["settings"]
    line = next(line for line in err.splitlines() if line.startswith("hash with log2_table_size "))
    assert line.startswith(f"hash with log2_table_size {chosen['log2_table_size']}, ")
    assert line.endswith(f": at most {-(-size // 100) / 10:.1f} KB")
    assert facts["capacity"]["fps"] is None
    assert facts["settings"]["options"]["size_limit"] == "40KB"
    assert convert("--max-steps", "1", out="c.safetensors") == 0
    assert json.loads((folder / "c/result.json").read_text())["capacity"] is None
    assert (folder / "c.safetensors").stat().st_size > 40_000


def test_a_target_of_frames_is_told_with_what_was_measured(folder, capsys):
    assert convert("--max-steps", "1", "--fps-target", "0.001", "--size-limit", "1MB", "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["capacity"]
    assert found["picture"] == [400, 400]
    assert found["fps"] > 0.001
    assert f"about {found['fps']:.3g} frames a second of 400x400 pixels" in err


def test_what_is_too_small_or_too_quick_says_what_is_possible(folder, capsys):
    assert convert("--max-steps", "1", "--size-limit", "1KB") == 2
    assert re.match(r"a hash model of this scene takes at least \d+ bytes; got a size limit of 1000: ", error(capsys))
    assert convert("--max-steps", "1", "--fps-target", "1e9") == 2
    text = (
        r"the fastest hash makes about \S+ frames a second of 400x400 pixels on the CPU, .*; got --fps-target 1e\+09: "
    )
    assert re.match(text, error(capsys))
    for wrong in ("1TB", "much", ""):
        assert convert("--max-steps", "1", f"--size-limit={wrong}") == 2
        expected = f"--size-limit must be a size such as 1MB, 600KB, 0.6MiB or 500000 (bytes); got {wrong!r}"
        assert error(capsys).startswith(expected)
    assert convert("--max-steps", "1", "--fps-target", "0") == 2
    assert error(capsys).startswith("--fps-target must be a positive number of pictures a second; got 0")
    assert not Path("b").exists()


def test_a_resumed_conversion_keeps_its_capacity_without_measuring(folder, capsys, monkeypatch):
    wishes = ["--size-limit", "40KB", "--fps-target", "0.001"]
    assert convert("--max-steps", "4", *wishes) == 0
    first = json.loads((folder / "b/result.json").read_text())["capacity"]
    monkeypatch.setattr("polyfield.scenes.capacity.Pace.fps", lambda *_: 0.0)  # as if it were ever so slow now
    assert convert("--max-steps", "4", *wishes, out="c.safetensors") == 2
    assert "the fastest hash within 40.0 KB makes about 0 frames" in error(capsys)
    assert main(["convert", "ball.safetensors", "--out", "b.safetensors", "--resume", "--max-steps", "6"]) == 0
    assert json.loads((folder / "b/result.json").read_text())["capacity"] == first
    assert convert("--max-steps", "8", *wishes, "--size-limit", "50KB", "--resume") == 2
    assert "was started with --size-limit 40KB, now it is 50KB" in error(capsys)


def test_another_model_does_not_continue_it(folder, capsys):
    assert convert("--max-steps", "2") == 0
    ball_model(radius=0.3).save("ball.safetensors")
    assert convert("--max-steps", "4", "--resume") == 2
    assert "a model whose SHA-256 is" in error(capsys)


def test_what_exists_is_not_overwritten(folder, capsys):
    Path("b.safetensors").write_bytes(b"mine")
    assert convert("--max-steps", "2") == 2
    assert error(capsys) == "b.safetensors exists; choose another --out or continue it with --resume"
    Path("c").mkdir()
    Path("c/notes.txt").write_text("mine")
    assert convert("--max-steps", "2", out="c.safetensors") == 2
    assert "c is not empty and holds no run" in error(capsys)
    assert Path("b.safetensors").read_bytes() == b"mine"


def test_bad_input_is_one_line_and_leaves_nothing(folder, capsys):
    whole = Path("ball.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(whole[: len(whole) // 2])
    Path("foreign.safetensors").write_bytes(b"PK" + whole[:200])
    for name, why in (("cut", "is cut short"), ("foreign", "is not a safetensors file"), ("absent", "no such")):
        assert convert("--max-steps", "2", model=f"{name}.safetensors") == 2
        assert why in error(capsys)
    from PIL import Image

    Image.new("RGB", (8, 8)).save("a.png")
    assert main(["fit", "a.png", "--out", "fit.safetensors", "--max-steps", "1"]) == 0
    capsys.readouterr()
    assert convert("--max-steps", "2", model="fit.safetensors") == 2
    assert "holds a 'implicit', not a 'model'" in error(capsys)
    for kind in ("splat", "sdf", "HASH"):
        assert convert("--max-steps", "2", to=kind) == 2
        assert "hash" in error(capsys)
    assert convert("--max-steps", "2", "--max-seconds", "2") == 2
    assert "not both" in error(capsys)
    assert convert("--max-steps", "2", out="b.ply") == 2
    assert "--out must end in .safetensors" in error(capsys)
    assert convert("--max-steps", "2", "--bits", "8") == 2
    assert "for the models mlp and cam" in error(capsys)
    assert not Path("b").exists()


@pytest.mark.parametrize(
    ("fault", "why"), [("nan", "is damaged: density holds values"), ("empty", "is empty: none of")]
)
def test_a_teacher_without_sense_is_refused_and_the_name_stays_free(folder, capsys, fault, why):
    model = ball_model()
    assert isinstance(model.representation, GridField)
    with torch.no_grad():
        model.representation.density.mul_(float("nan") if fault == "nan" else 0)
    model.save("bad.safetensors")
    assert convert("--max-steps", "2", model="bad.safetensors") == 2
    assert why in error(capsys)
    assert not Path("b").exists()
    assert not Path("b.safetensors").exists()
