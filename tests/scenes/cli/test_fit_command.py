"""`polyfield fit` and what `polyfield render` makes of its file, as a user types them."""

import json

import numpy as np
import pytest
from PIL import Image

from polyfield.fields.formats.mesh_file import read_mesh, write_mesh
from polyfield.fields.geometry import Mesh, make_icosphere
from polyfield.scenes.cli import main
from polyfield.scenes.signals import read_signal

# imageio-ffmpeg leaves the pipes of its finished process to the garbage collector.
LEFT_OPEN = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


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


def test_what_the_input_loses_is_a_note_and_json_stays_whole(folder, capsys):
    Image.open("a.png").convert("CMYK").save("a.jpg")
    assert main(["fit", "a.jpg", "--out", "a.safetensors", "--max-steps", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["signal"] == "image"
    assert "polyfield: note: a.jpg: its CMYK became RGB without a colour profile\n" in err


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

    def stopped(*_, **__):
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
        (
            ["render", "f.safetensors", "--out", "f.png", "--frames", "3", "--fov", "40", "--radius", "1"],
            "no channels but its own; leave out --frames, --radius, --fov",
        ),
        (["render", "f.safetensors", "--out", "f.png", "--elevation", "0"], "leave out --elevation"),
        (["render", "f.safetensors", "--out", "f.png", "--channels", "depth"], "leave out --channels"),
        (["render", "f.safetensors", "--out", "f.png", "--fps", "30"], "--fps is for films; f.png is none"),
        (["render", "f.safetensors", "--out", "f.webp", "--size", "16384x2"], "16383 pixels a side; 16384x2 is more"),
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


def test_what_a_mesh_can_be_trusted_for_is_told_and_unsigned_distances_need_no_inside(folder, capsys):
    ball = make_icosphere(2)
    write_mesh("open.ply", Mesh(ball.vertices, ball.triangles[::2]))
    command = ["fit", "open.ply", "--out", "o.safetensors", "--max-steps", "30", "--grid", "16", "--json"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "warning: open.ply: " in err
    facts = json.loads(out)["mesh"]
    assert (facts["signed_distance_trusted"], facts["triangles"], facts["open_edges"]) == (False, 160, 80)
    assert main([*command, "--target", "udf"]) == 0
    out, err = capsys.readouterr()
    assert "warning" not in err
    assert "with their unsigned distance" in err
    assert json.loads(out)["distance_error"] > 0
    assert main([*command[:-1], "--target", "udf"]) == 0
    assert capsys.readouterr().out.startswith("mean error of the distance ")
    assert main(["render", "o.safetensors", "--size", "32x32", "--out", "shell.ply"]) == 0
    assert read_mesh("shell.ply").triangles.numel()
    assert main(["fit", "a.png", "--out", "a.safetensors", "--target", "occupancy"]) == 2
    assert "--target occupancy is for meshes; leave it out" in capsys.readouterr().err


def test_a_picture_without_detail_is_said_to_keep_the_default(folder, capsys):
    Image.new("RGB", (12, 12), (90, 20, 30)).save("flat.png")
    assert main(["fit", "flat.png", "--field", "siren", "--out", "f.safetensors", "--max-steps", "1"]) == 0
    assert "first_omega stays as it is by default: no detail" in capsys.readouterr().err


@LEFT_OPEN
def test_a_film_is_written_at_its_own_rate_or_at_the_one_given(folder, capsys):
    (folder / "frames").mkdir()
    for index in range(3):
        Image.new("RGB", (16, 12), (80 * index, 0, 0)).save(folder / "frames" / f"{index}.png")
    assert main(["fit", "frames", "--out", "f.safetensors", "--max-steps", "1"]) == 0
    assert main(["render", "f.safetensors", "--out", "own.mp4"]) == 0
    assert main(["render", "f.safetensors", "--out", "slow.mp4", "--fps", "5"]) == 0
    assert [read_signal(folder / f"{name}.mp4").fps for name in ("own", "slow")] == [30, 5]
    capsys.readouterr()
    assert main(["render", "f.safetensors", "--out", "again", "--fps", "5"]) == 2
    assert "--fps is for films; again is none" in capsys.readouterr().err


def test_rendering_a_fit_shows_how_far_it_is(folder, capsys):
    assert main(["fit", "a.png", "--out", "a.safetensors", "--max-steps", "1"]) == 0
    capsys.readouterr()
    assert main(["render", "a.safetensors", "--size", "300x300", "--out", "b.png"]) == 0
    assert capsys.readouterr().err.splitlines() == ["rendering 65536/90000", "rendering 90000/90000"]


def test_what_memory_cannot_hold_is_refused_before_it_is_rendered(folder, capsys, monkeypatch):
    write_mesh("ball.obj", make_icosphere(1))
    for name, file in (("a.png", "a"), ("ball.obj", "b")):
        assert main(["fit", name, "--out", f"{file}.safetensors", "--max-steps", "1", "--grid", "8"]) == 0
    monkeypatch.setattr("polyfield.scenes.signals.available_memory", lambda: 5 * 10**8)
    monkeypatch.setattr("polyfield.fields.implicit.ImplicitModel.sample", lambda *_, **__: pytest.fail("rendered"))
    capsys.readouterr()
    for file, out, size, shape in (
        ("a", "b.png", "9000x10000", "9000x10000"),
        ("b", "b.ply", "900x20", "900x900x900"),
    ):
        assert main(["render", f"{file}.safetensors", "--size", size, "--out", out]) == 2
        err = capsys.readouterr().err
        assert f"{shape} needs " in err
        assert "GB of memory, 0.5 GB are there; give a smaller --size" in err
        assert err.count("\n") == 1
    assert main(["render", "b.safetensors", "--size", "1x1", "--out", "b.ply"]) == 2
    text = "--size of a mesh is the cells along each axis of its cube, at least 8; got 1"
    assert text in capsys.readouterr().err


def test_bits_are_counted_per_pixel_and_not_of_a_mesh(folder, capsys):
    write_mesh("ball.obj", make_icosphere(1))
    command = ["fit", "ball.obj", "--out", "b.safetensors", "--max-steps", "1", "--grid", "8"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert " kB; 1 steps in " in out
    assert "bits" not in out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_cell"] is None


def test_a_fit_that_replaces_an_unfinished_one_says_so(folder, capsys):
    (folder / "a.checkpoint.safetensors").write_bytes(b"of another fit")
    assert main(["fit", "a.png", "--out", "a.safetensors", "--max-steps", "1"]) == 0
    said = "a.checkpoint.safetensors is the state of an unfinished fit and will be replaced; --resume continues it"
    assert f"polyfield: warning: {said}\n" in capsys.readouterr().err
    assert main(["fit", "a.png", "--out", "a.safetensors", "--max-steps", "1"]) == 0
    assert "unfinished" not in capsys.readouterr().err
