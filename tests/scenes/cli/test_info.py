"""`polyfield info`: the text, the JSON, the picture, and one line with exit code 2 for what is wrong."""

import json

import pytest
from helpers import datasets as data
from PIL import Image

from polyfield.fields.formats.mesh_file import write_mesh
from polyfield.fields.formats.model_file import read_tensors, write_tensors
from polyfield.fields.geometry import make_icosphere
from polyfield.scenes.cli import main


@pytest.fixture
def folder(tmp_path):
    return data.write_dataset(tmp_path / "toy", "colmap-txt")


def test_text_says_what_was_found_and_a_picture_is_written(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (folder / "images" / data.name(4)).unlink()
    assert main(["info", str(folder)]) == 0
    out = capsys.readouterr().out
    for text in (
        "toy, object capture, layout colmap",
        "9 (of 10 listed): 7 train, 2 test",
        "held out: index % 8 == 0 in file-name order of the 9 images present",
        "24x16 (from images)",
        "9 PINHOLE",
        "fx 30  fy 30  cx 12  cy 8  pixels",
        "points         1",
        "none: the photos are opaque",
        "warning        1 of 10 listed images are absent",
        "picture        toy-cameras.png",
    ):
        assert text in out
    assert Image.open(tmp_path / "toy-cameras.png").size == (1604, 918)


def test_json_holds_the_same_and_writes_no_picture_unasked(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["info", str(folder), "--json", "--downscale", "2"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["frames"] == 10
    assert facts["splits"] == {"train": 8, "test": 2}
    assert facts["cameras"]["sizes"] == [[12, 8]]
    assert facts["memory_bytes"] == 10 * 12 * 8 * 3
    assert facts["to_scene"]["scale"] > 0
    assert "picture" not in facts
    assert list(tmp_path.glob("*.png")) == []


def test_the_picture_goes_where_it_is_told(folder, tmp_path, capsys):
    assert main(["info", str(folder), "--json", "--out", str(tmp_path / "a.png")]) == 0
    assert json.loads(capsys.readouterr().out)["picture"] == str(tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["{toy}", "--out", "a.jpg"], "--out must name a .png file; got a.jpg"),
        (["{toy}", "--out", "{toy}/none/a.png"], "could not be written"),
        (["{toy}", "--downscale", "0"], "downscale must be a whole number from 1 to 128; got 0"),
        (["{toy}/images"], "not a known layout"),
        (["{toy}/nowhere"], "no such folder"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(folder, capsys, arguments, text):
    assert main(["info", *[a.format(toy=folder) for a in arguments]]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("polyfield: error: ")
    assert text in shown.err
    assert shown.err.count("\n") == 1


def test_the_cut_short_cameras_file_is_named(tmp_path, capsys):
    folder = data.write_dataset(tmp_path / "toy", "colmap-bin")
    cameras = folder / "sparse/0/cameras.bin"
    cameras.write_bytes(cameras.read_bytes()[:-5])
    assert main(["info", str(folder)]) == 2
    assert f"{cameras}: cut short" in capsys.readouterr().err


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    """A fitted image in the current folder."""
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((16, 12), 60).convert("RGB").save("a.png")
    assert main(["fit", "a.png", "--field", "siren", "--out", "a.safetensors", "--max-steps", "2"]) == 0
    capsys.readouterr()
    return tmp_path / "a.safetensors"


def rewrite_history(path, provenance):
    header, tensors = read_tensors(path, kind="implicit")
    header = {k: v for k, v in header.items() if k not in ("format", "version")}
    write_tensors(path, {**header, "provenance": provenance}, tensors)


def test_a_fit_says_what_it_is_and_how_good(fit, capsys):
    assert main(["info", "a.safetensors", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["field"], facts["signal"], facts["size"]) == ("fit", "siren", "image", [16, 12])
    assert facts["bytes"] == fit.stat().st_size
    assert facts["bits_per_cell"] == 8 * facts["bytes"] / 192
    assert facts["frequency"] == {"first_omega": facts["config"]["first_omega"]}
    assert facts["parameters"] == 3 * 256 + 3 * (256 * 256 + 256) + 3 * 257
    assert (facts["input"], facts["steps"]) == (str(fit.with_name("a.png")), 2)
    assert facts["psnr"] > 0
    assert facts["iou"] is None
    assert main(["info", "a.safetensors"]) == 0
    out = capsys.readouterr().out
    for text in (
        "fit            siren field of an image",
        "size           16x12, 3 channels",
        f"quality        PSNR {facts['psnr']:.2f} dB, SSIM {facts['ssim']:.4f}",
        f"file           {facts['bytes'] / 1e3:.0f} kB, {facts['bits_per_cell']:.2f} bits per pixel",
        "parameters     198,915",
        "settings       activation sine, width 256, hidden_layers 4, first_omega ",
        f"input          {facts['input']}",
        "learned        2 steps in 0:0",
    ):
        assert text in out
    assert list(fit.parent.glob("*-cameras.png")) == []


def test_the_frequency_of_cam_is_that_of_the_layers_it_modulates(fit, capsys):
    command = ["fit", "a.png", "--field", "cam", "--network", "siren", "--frequency", "7", "--out", "c.safetensors"]
    assert main([*command, "--max-steps", "1"]) == 0
    capsys.readouterr()
    assert main(["info", "c.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frequency"] == {"first_omega": 7.0}


def test_a_fitted_mesh_has_no_bits_per_point(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_mesh("ball.obj", make_icosphere(2))
    command = ["fit", "ball.obj", "--out", "b.safetensors", "--max-steps", "20", "--grid", "16"]
    assert main(command) == 0
    capsys.readouterr()
    assert main(["info", "b.safetensors"]) == 0
    out = capsys.readouterr().out
    for text in (
        "hash field of a surface, signed distance",
        "cube           side 2.2",
        "quality        IoU ",
        " on 16^3",
        " kB\n",
    ):
        assert text in out
    assert "bits per" not in out
    assert main(["info", "b.safetensors", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bits_per_cell"] is None
    assert facts["target"] == "sdf"
    assert facts["mesh"]["signed_distance_trusted"]
    assert "warning" not in out
    rewrite_history("b.safetensors", {"mesh": {"signed_distance_trusted": False, "explanation": "it is open"}})
    assert main(["info", "b.safetensors"]) == 0
    assert "warning        it is open\n" in capsys.readouterr().out


def test_a_fit_whose_history_is_nonsense_is_told_without_it(fit, capsys):
    nonsense = {"psnr": "good", "ssim": [1], "steps": {}, "seconds": None, "input": "\x1b[2J", "mesh": 3}
    rewrite_history(fit, nonsense)
    assert main(["info", "a.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "quality        not known" in out
    assert "learned" not in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--out", "x.png"], "a.safetensors is a fit, not a scene: leave out --out"),
        (["--downscale", "2", "--strict"], "a.safetensors is a fit, not a scene: leave out --downscale, --strict"),
    ],
)
def test_options_of_scenes_are_refused_for_a_fit(fit, capsys, options, text):
    assert main(["info", "a.safetensors", *options]) == 2
    assert text in capsys.readouterr().err


def test_other_files_of_ours_are_not_taken_for_fits(fit, capsys):
    write_tensors("m.safetensors", {"kind": "model"}, {})
    assert main(["info", "m.safetensors"]) == 2
    assert "m.safetensors holds a 'model'; expected a folder of photos" in capsys.readouterr().err
    fit.write_bytes(fit.read_bytes()[:-5])
    assert main(["info", "a.safetensors"]) == 2
    assert "a.safetensors is cut short" in capsys.readouterr().err
