"""`polyfield fit` and what `polyfield render` makes of its file, as a user types them."""

import json

import numpy as np
import pytest
from PIL import Image

from polyfield.fields.formats.mesh_file import read_mesh, write_mesh
from polyfield.fields.geometry import make_icosphere
from polyfield.scenes.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    y, x = np.mgrid[0:12, 0:16]
    Image.fromarray(np.stack([16 * x, 20 * y, 8 * (x + y)], 2).astype(np.uint8)).save("a.png")
    return tmp_path


def test_an_image_becomes_a_field_and_an_image_again(folder, capsys):
    assert main(["fit", "a.png", "--out", "a.safetensors", "--max-steps", "200"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert "PSNR" in out
    assert "bits per pixel" in out
    assert "a.png: image, 16x12, 3 channels" in err
    assert main(["render", "a.safetensors", "--out", "same.png"]) == 0
    assert main(["render", "a.safetensors", "--size", "40x30", "--out", "large.jpg"]) == 0
    assert capsys.readouterr().out == "same.png\nlarge.jpg\n"
    assert Image.open("large.jpg").size == (40, 30)
    difference = np.asarray(Image.open("same.png")).astype(int) - np.asarray(Image.open("a.png"))
    assert abs(difference).mean() < 6


def test_json_is_the_whole_result(folder, capsys):
    command = ["fit", "a.png", "--field", "pe", "--out", "a.safetensors", "--max-steps", "3", "--json"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert facts["format"] == "polyfield-fit"
    assert facts["bytes"] == (folder / "a.safetensors").stat().st_size
    assert facts["bits_per_cell"] == 8 * facts["bytes"] / 192
    assert facts["frequency"]["chosen"] == facts["config"]["octaves"]
    assert "<- chosen" in err


def test_an_interrupted_fit_says_how_to_go_on(folder, capsys, monkeypatch):
    from polyfield.fields.optim.fit import FitTask

    whole = FitTask.step

    def stopped(self, index, scale):
        if index == 2:
            raise KeyboardInterrupt
        return whole(self, index, scale)

    monkeypatch.setattr(FitTask, "step", stopped)
    command = ["fit", "a.png", "--out", "sub/a.safetensors", "--max-steps", "4"]
    assert main(command) == 130
    assert "saved in sub/a.checkpoint.safetensors; the same command with --resume continues" in capsys.readouterr().err
    monkeypatch.setattr(FitTask, "step", whole)
    assert main([*command, "--resume"]) == 0
    assert [p.name for p in (folder / "sub").iterdir()] == ["a.safetensors"]


def test_what_was_learned_is_not_lost_when_measuring_it_is_interrupted(folder, capsys, monkeypatch):
    measure = "polyfield.scenes.fit.measure_fit"

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, stopped)
    command = ["fit", "a.png", "--out", "sub/a.safetensors", "--max-steps", "4"]
    assert main(command) == 130
    assert "saved in sub/a.checkpoint.safetensors; the same command with --resume" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("polyfield.fields.optim.fit.FitTask.step", lambda *_: pytest.fail("learned again"))
    assert main([*command, "--resume"]) == 0
    assert [p.name for p in (folder / "sub").iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["fit", "none.png", "--out", "b.safetensors"], "none.png: no such file"),
        (["fit", "a.png", "--out", "b.png"], "--out must end in .safetensors; got b.png"),
        (["fit", "a.png", "--out", "b.safetensors", "--field", "moss"], "moss"),
        (["fit", "a.png", "--out", "b.safetensors", "--max-steps", "0"], "max_steps must be at least 1; got 0"),
        (["fit", "a.png", "--out", "b.safetensors", "--resume"], "there is nothing to resume"),
        (["render", "f.safetensors", "--out", "f.mp4"], "--out of an image must be .png"),
        (["render", "f.safetensors", "--out", "f.png", "--orbit", "3"], "is a fit: it has no cameras"),
        (["render", "a.png", "--out", "f.png"], "a.png is not a safetensors file"),
        (["render", "none.safetensors", "--out", "f.png"], "none.safetensors: no such model file or run folder"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(folder, capsys, command, text):
    assert main(["fit", "a.png", "--out", "f.safetensors", "--max-steps", "1"]) == 0
    before = sorted(p.name for p in folder.iterdir())
    capsys.readouterr()
    assert main(command) == 2
    err = capsys.readouterr().err
    assert text in err
    assert err.rstrip().splitlines()[-1].startswith("polyfield: error: ")
    assert sorted(p.name for p in folder.iterdir()) == before


def test_a_mesh_becomes_a_field_and_a_mesh_again(folder, capsys):
    write_mesh("ball.obj", make_icosphere(2))
    assert main(["fit", "ball.obj", "--out", "b.safetensors", "--max-steps", "60", "--grid", "32"]) == 0
    out, err = capsys.readouterr()
    assert "IoU" in out
    assert "on 32^3, normals" in out
    assert "ball.obj: surface, 320 triangles" in err
    assert main(["render", "b.safetensors", "--size", "48x48", "--out", "again.ply"]) == 0
    again = read_mesh("again.ply")
    assert float((again.vertices.norm(dim=1) - 1).abs().mean()) < 0.05
    assert main(["render", "b.safetensors", "--out", "again.png"]) == 2
    assert "--out of a surface must be .ply" in capsys.readouterr().err
