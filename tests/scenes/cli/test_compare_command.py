"""`polyfield compare` as a user types it: figures, files, exit codes and texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.ball_model import ball_model
from helpers.tiny import tiny_scene
from PIL import Image

from polyfield.fields import Similarity
from polyfield.scenes.camera_paths import write_cameras
from polyfield.scenes.cli import main

SMALL = ("--views", "2", "--size", "32x24")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two balls as model files, the second smaller."""
    monkeypatch.chdir(tmp_path)
    ball_model().save("a.safetensors")
    ball_model(radius=0.4).save("b.safetensors")
    return tmp_path


@pytest.fixture
def scene(monkeypatch):
    """Stands for the photos that --scene names; the options it was loaded with are in `loads`."""
    whole, loads = tiny_scene(), []
    monkeypatch.setattr("polyfield.scenes.scene.load_scene", lambda *_, **options: loads.append(options) or whole)
    whole.protocol["loads"] = loads
    return whole


def compare(*more: str, a: str = "a.safetensors", b: str = "b.safetensors") -> int:
    return main(["compare", a, b, "--device", "cpu", *more])


def make_run(name: str, downscale: int = 1) -> None:
    """A run folder with what `compare` reads of one."""
    Path(name).mkdir()
    ball_model().save(f"{name}/model.safetensors")
    cameras = tiny_scene().cameras
    write_cameras(Path(name, "cameras.json"), cameras, [f"{i}.png" for i in range(len(cameras))])
    Path(name, "config.json").write_text(json.dumps({"version": 1, "data": {"downscale": downscale}}))


def test_the_last_line_sums_up_and_nothing_is_written_unasked(folder, capsys):
    before = sorted(folder.iterdir())
    assert compare(*SMALL) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    for part in ("grid and grid: ", " dB, SSIM 0.", "% apart, 2 views; ", " MB; ", " s per frame"):
        assert part in out
    assert "photos" not in out
    assert "comparing 2/2" in err
    assert sorted(folder.iterdir()) == before


def test_pictures_and_figures_are_written_where_asked(folder, capsys):
    assert compare(*SMALL, "--out", "new/alike") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 pictures and compare.json in new/alike"
    assert sorted(p.name for p in Path("new/alike").iterdir()) == ["00000.png", "00001.png", "compare.json"]
    pixels = np.asarray(Image.open("new/alike/00000.png"))
    assert pixels.shape == (24, 96, 3)
    assert pixels[:, :64].std() > 10
    facts = json.loads(Path("new/alike/compare.json").read_text())
    assert facts["format"] == "polyfield-comparison"
    assert facts["a"]["model"] == "a.safetensors"
    assert facts["a"]["kind"] == "grid"
    assert facts["b"]["bytes"] == Path("b.safetensors").stat().st_size
    assert facts["a"]["psnr"] is None
    assert facts["protocol"]["seen"] == "from all around the object"
    assert f"{facts['psnr']:.2f} dB, SSIM {facts['ssim']:.4f}" in lines[-1]


def test_json_is_alone_on_standard_output(folder, capsys):
    assert compare(*SMALL, "--json", "--out", "alike") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(Path("alike/compare.json").read_text())
    assert "2 pictures and compare.json in alike" in err


def test_a_scene_measures_both_against_its_photos(folder, scene, capsys):
    assert compare("--scene", "tiny", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["a"]["psnr"] > 5
    assert facts["b"]["psnr"] > 5
    assert facts["a"]["psnr"] != facts["b"]["psnr"]
    assert facts["protocol"]["views"] == 2
    assert compare("--scene", "tiny", "--downscale", "2") == 0
    assert " dB on the photos; " in capsys.readouterr().out
    make_run("run", downscale=4)
    assert compare("--scene", "tiny", b="run") == 0
    assert [options["downscale"] for options in scene.protocol["loads"]] == [1, 2, 4]


def test_the_cameras_of_a_run_are_looked_between(folder, capsys):
    make_run("run")
    assert compare("--views", "2", "--json", b="run") == 0
    protocol = json.loads(capsys.readouterr().out)["protocol"]
    assert protocol["seen"] == "between the training cameras"
    assert protocol["resolution"] == "24x24"
    assert compare(*SMALL, "--json", a="run") == 0
    assert json.loads(capsys.readouterr().out)["protocol"]["resolution"] == "32x24"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--views", "0"], "the number of views must be 1 to 100; got 0"),
        (["--scene", "tiny", "--views", "3"], "must be 1 to 2 (the test photos of tiny); got 3"),
        (["--size", "big"], "--size must be WIDTHxHEIGHT"),
        (["--size", "20x8"], "at least 11x11 pixels; got 8x20"),
        (["--scene", "tiny", "--size", "32x24"], "--size goes without --scene"),
        (["--downscale", "2"], "--downscale shrinks the photos of --scene"),
        (["--scene", "tiny", "--downscale", "0"], "--downscale must be a whole number of at least 1; got 0"),
        (["--out", "a.safetensors"], "a.safetensors is a file; --out must be a folder"),
        (["--out", "."], ". is not empty and holds no run; choose another --out"),
    ],
)
def test_bad_options_are_one_line_and_code_2(folder, scene, capsys, arguments, text):
    check_refused(folder, capsys, text, "--out", "alike", *arguments)


def check_refused(folder, capsys, text, *arguments, b="b.safetensors"):
    before = sorted(folder.rglob("*"))
    assert compare(*arguments, b=b) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
    assert err.startswith("polyfield: error: ")
    assert err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_bad_models_are_one_line_and_code_2(folder, capsys):
    whole = Path("b.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(whole[: len(whole) // 2])
    Path("foreign.safetensors").write_bytes(b"PK" + whole[:200])
    other = ball_model()
    other.to_dataset = Similarity(2.0, torch.eye(3), torch.zeros(3))
    other.save("other.safetensors")
    for name, why in (
        ("cut", "is cut short"),
        ("foreign", "is not a safetensors file"),
        ("absent", "no such model file or run folder"),
        ("other", "the two models are not of one scene: their frames are 0.5 apart"),
    ):
        check_refused(folder, capsys, why, "--out", "alike", b=f"{name}.safetensors")


def test_a_scene_without_held_out_photos_is_one_line_and_code_2(folder, scene, capsys):
    scene.splits["test"] = torch.zeros(0, dtype=torch.int64)
    check_refused(folder, capsys, "scene tiny has no held-out photos", "--scene", "tiny", "--out", "alike")


def test_a_full_disk_leaves_nothing(folder, capsys, monkeypatch):
    def save(self, path, *_, **__):
        if "00001" in str(path):
            raise OSError(28, "No space left on device")
        Path(path).write_bytes(b"")

    monkeypatch.setattr(Image.Image, "save", save)
    assert compare(*SMALL, "--out", "alike") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "polyfield: error: alike could not be written: No space left on device"
    assert not Path("alike").exists()
    Path("mine").mkdir()
    assert compare(*SMALL, "--out", "mine") == 2
    assert list(Path("mine").iterdir()) == []
