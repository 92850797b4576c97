"""`polyfield info`: the text, the JSON, the picture, and one line with exit code 2 for what is wrong."""

import json

import pytest
from helpers import datasets as data
from PIL import Image

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
