import importlib
from types import SimpleNamespace

import pytest
import torch
from helpers.fake_run import fake_frame, fake_model, ring_cameras, to_scene

from polyfield.scenes.camera_paths import write_cameras
from polyfield.scenes.cli import main


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A run folder with four training cameras on a ring, a model file alone, and a renderer that records cameras."""
    state = SimpleNamespace(cameras=[])

    def render(model, cameras, **_):
        state.cameras.append(cameras)
        return fake_frame(int(cameras.width[0]), int(cameras.height[0]))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("polyfield.fields.model.Model.load", lambda path, device="cpu": fake_model())
    monkeypatch.setattr(importlib.import_module("polyfield.fields.render.frame"), "render", render)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_bytes(b"")
    (tmp_path / "alone.safetensors").write_bytes(b"")
    in_data_set = ring_cameras(4).transformed(to_scene().inverse())
    write_cameras(tmp_path / "run" / "cameras.json", in_data_set, list("abcd"))
    return state


def centres(state):
    return torch.cat([c.centres() for c in state.cameras])


def test_an_orbit_of_a_model_alone(world, tmp_path, capsys):
    assert main(["render", "alone.safetensors", "--orbit", "3", "--size", "20x10", "--out", "o"]) == 0
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["00000.png", "00001.png", "00002.png", "render.json"]
    assert capsys.readouterr().out == "o\n"
    assert [(int(c.width[0]), int(c.height[0])) for c in world.cameras] == [(20, 10)] * 3


def test_an_orbit_of_a_run_goes_where_the_photos_were_taken(world):
    assert main(["render", "run", "--orbit", "4", "--out", "o"]) == 0
    torch.testing.assert_close(centres(world), ring_cameras(4).centres(), atol=1e-2, rtol=0)
    assert int(world.cameras[0].width[0]) == 16


def test_orbit_options_are_obeyed(world):
    options = ["--elevation", "0", "--radius", "8", "--fov", "90", "--size", "20x20"]
    assert main(["render", "run", "--path", "orbit", "--frames", "2", *options, "--out", "o"]) == 0
    offset = centres(world)
    torch.testing.assert_close(offset[:, 2], torch.zeros(2), atol=1e-2, rtol=0)
    torch.testing.assert_close(offset.norm(dim=1), torch.full((2,), 4.0), atol=1e-2, rtol=0)  # scene units are half
    assert float(world.cameras[0].intrinsics[0, 0]) == pytest.approx(10.0)


def test_cameras_of_a_file_are_in_the_data_set_frame(world, tmp_path):
    assert main(["render", "alone.safetensors", "--cameras", "run/cameras.json", "--out", "o"]) == 0
    torch.testing.assert_close(centres(world), ring_cameras(4).centres(), atol=1e-4, rtol=0)


def test_stills_can_have_every_channel(world, tmp_path):
    assert main(["render", "run", "--orbit", "1", "--channels", "rgb,depth,normal,alpha", "--out", "o"]) == 0
    suffixes = ("", "_alpha", "_depth", "_depth_view", "_normal")
    assert {p.name for p in (tmp_path / "o").iterdir()} == {f"00000{s}.png" for s in suffixes} | {"render.json"}


def test_a_film(world, tmp_path, capsys):
    pytest.importorskip("imageio_ffmpeg")
    assert main(["render", "run", "--orbit", "3", "--out", "films/o.mp4", "--channels", "rgb,normal"]) == 0
    assert capsys.readouterr().out == "films/o.mp4\nfilms/o-normal.mp4\n"
    assert (tmp_path / "films" / "o.mp4").stat().st_size > 500


def test_a_spiral_of_forward_facing_cameras(world, tmp_path):
    from polyfield.scenes.camera_paths import look_at

    side = torch.linspace(-0.5, 0.5, 5, dtype=torch.float64)
    eyes = torch.stack([side, torch.full((5,), -4.0, dtype=torch.float64), side.roll(2)], 1)
    cameras = look_at(eyes, torch.zeros(5, 3, dtype=torch.float64), fov_deg=50, size=(16, 12))
    write_cameras(tmp_path / "run" / "cameras.json", cameras.transformed(to_scene().inverse()), list("abcde"))
    assert main(["render", "run", "--path", "spiral", "--frames", "6", "--out", "o"]) == 0
    assert len(world.cameras) == 6
    assert (centres(world)[:, 1] + 4).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "--out", "o"], "give one of --orbit N, --path spiral and --cameras FILE; got none"),
        (["run", "--out", "o", "--orbit", "3", "--path", "spiral"], "got --orbit and --path"),
        (["run", "--orbit", "3"], "--out"),
        (["run", "--out", "o", "--orbit", "0"], "--orbit must be 1 to 100000 frames; got 0"),
        (["run", "--out", "o", "--orbit", "2", "--size", "20"], "--size must be WIDTHxHEIGHT"),
        (["run", "--out", "o", "--orbit", "2", "--size", "20x99999"], "sides 1 to 16384"),
        (
            ["run", "--out", "o", "--orbit", "2", "--channels", "rgb,foo"],
            "different ones of rgb,depth,normal,alpha; got",
        ),
        (["run", "--out", "o", "--orbit", "2", "--fps", "0"], "--fps must be above 0"),
        (["run", "--out", "o.png", "--orbit", "2"], "a folder for PNG stills or a file ending in .mp4; got o.png"),
        (["run", "--out", "o", "--path", "spiral"], "look to all sides: a spiral needs a forward-facing capture"),
        (["alone.safetensors", "--out", "o", "--path", "spiral"], "--path spiral needs the training cameras"),
        (["run", "--out", "o", "--cameras", "no.json"], "no.json"),
        (["run", "--out", "alone.safetensors/x", "--orbit", "1"], "could not be created"),
        (["gone", "--out", "o", "--orbit", "1"], "gone: no such model file or run folder"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(world, tmp_path, capsys, arguments, text):
    before = sorted(tmp_path.rglob("*"))
    assert main(["render", *arguments]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.startswith("polyfield: error: ")
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
