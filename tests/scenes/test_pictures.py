import json
import math

import numpy as np
import pytest
import torch
from helpers.fake_run import HEIGHT, WIDTH, fake_frame, fake_model, ring_cameras
from PIL import Image

from polyfield.fields.errors import ConfigError, FormatError
from polyfield.scenes.camera_paths import read_cameras
from polyfield.scenes.pictures import FilmWriter, StillWriter, depth_colors, depth_range


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_stills_of_every_channel_hold_the_frame(tmp_path):
    out, model, cameras = tmp_path / "out", fake_model(), ring_cameras(2)
    with StillWriter(out, ["rgb", "depth", "normal", "alpha"], model, cameras) as writer:
        for _ in range(2):
            writer.add(fake_frame())
    suffixes = ("", "_alpha", "_depth", "_depth_view", "_normal")
    assert names(out) == sorted([f"0000{i}{s}.png" for i in (0, 1) for s in suffixes] + ["render.json"])
    assert (read(out / "00000.png") == 128).all()
    assert (read(out / "00000_alpha.png") == 255).all()
    depth = read(out / "00000_depth.png").astype(float)
    step = json.loads((out / "render.json").read_text())["depth_unit_scale_factor"]
    assert (depth[:, 0] == 0).all()  # empty
    expected = fake_frame().depth[:, 1:].numpy() * 2  # a scene unit is two dataset units
    np.testing.assert_allclose(depth[:, 1:] * step, expected, atol=step)
    normal = read(out / "00000_normal.png")[0, 0] / 255 * 2 - 1
    turned = model.to_dataset.apply_directions(torch.tensor([[1.0, 0, 0]]))[0].numpy()
    np.testing.assert_allclose(normal, turned, atol=0.01)


def test_the_cameras_of_stills_can_be_rendered_again(tmp_path):
    model, cameras = fake_model(), ring_cameras(2)
    with StillWriter(tmp_path, ["rgb"], model, cameras) as writer:
        writer.add(fake_frame())
    back = read_cameras(tmp_path / "render.json").transformed(model.to_dataset.inverse())
    torch.testing.assert_close(back.world_from_camera, cameras.world_from_camera, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(32, 24), (33, 25)])
def test_a_film_has_the_frames_that_were_added(tmp_path, size):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    cameras = ring_cameras(5, width=size[0], height=size[1])
    with FilmWriter(tmp_path / "a.mp4", ["rgb", "depth"], fake_model(), cameras, fps=10) as writer:
        for i in range(5):
            writer.add(fake_frame(*size, value=i / 4))
    assert names(tmp_path) == ["a-depth.mp4", "a.mp4"]
    assert writer.written == [tmp_path / "a.mp4", tmp_path / "a-depth.mp4"]
    stream = imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4"))
    facts = next(stream)
    frames = [np.frombuffer(f, np.uint8) for f in stream]
    assert facts["size"] == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert facts["fps"] == 10
    assert len(frames) == 5
    assert [float(f.mean()) / 255 for f in frames] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0], abs=0.05)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_film_leaves_nothing(tmp_path, error):
    pytest.importorskip("imageio_ffmpeg")
    (tmp_path / "a.mp4").write_bytes(b"old")
    cameras = ring_cameras(5)

    def write():
        with FilmWriter(tmp_path / "a.mp4", ["rgb"], fake_model(), cameras) as writer:
            writer.add(fake_frame())
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"old"


def test_a_film_that_ffmpeg_cannot_write_is_one_line(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(FormatError, match="could not be written") as caught,
        FilmWriter(tmp_path / "file" / "a.mp4", ["rgb"], fake_model(), ring_cameras(1)),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_a_film_needs_one_size(tmp_path):
    from polyfield.fields.geometry import Cameras

    cameras = Cameras.concatenate([ring_cameras(1), ring_cameras(1, width=32)])
    with pytest.raises(ConfigError, match=r"frames of one size, got \(16, 12\) to \(32, 12\); give --size WxH"):
        FilmWriter(tmp_path / "a.mp4", ["rgb"], fake_model(), cameras)


def test_a_missing_ffmpeg_package_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with (
        pytest.raises(ConfigError, match="pip install imageio-ffmpeg"),
        FilmWriter(tmp_path / "a.mp4", ["rgb"], fake_model(), ring_cameras(1)),
    ):
        pass
    assert names(tmp_path) == []


def test_depth_colours_go_from_light_to_dark_and_black_where_empty():
    depth = torch.tensor([[1.0, 1.5, 2.0, math.inf, math.nan, 0.0]])
    colors = depth_colors(depth, depth_range(depth)).sum(-1)[0]
    assert colors[0] > colors[1] > colors[2] > 0
    assert (colors[3:] == 0).all()
    assert depth_range(torch.full((2, 2), math.inf)) == (0.0, 1.0)


def test_empty_frames_can_be_written(tmp_path):
    frame = fake_frame()
    frame.depth.fill_(math.inf)
    frame.normal.zero_()
    with StillWriter(tmp_path, ["depth", "normal"], fake_model(), ring_cameras(1)) as writer:
        writer.add(frame)
    assert (read(tmp_path / "00000_depth.png") == 0).all()
    assert (read(tmp_path / "00000_normal.png") == 128).all()
    assert read(tmp_path / "00000_depth.png").shape == (HEIGHT, WIDTH)
