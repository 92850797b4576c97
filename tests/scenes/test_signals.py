"""Images, films and volumes are read from any usual file, and hostile ones are refused in one line."""

import io
import struct
import subprocess
import zlib
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from polyfield.fields.errors import ConfigError, FormatError
from polyfield.fields.formats.mesh_file import read_mesh, write_mesh
from polyfield.fields.geometry import Mesh, check_mesh, make_icosphere, merge_vertices
from polyfield.fields.implicit import GridSignal, MeshSignal
from polyfield.scenes.pictures import to_bytes
from polyfield.scenes.signals import Input, check_output, check_size, read_signal, write_signal, write_surface

# imageio-ffmpeg leaves the pipes of its finished process to the garbage collector.
LEFT_OPEN = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
COLOURS = (np.arange(7 * 5 * 3).reshape(5, 7, 3) * 2).astype(np.uint8)


def grid_of(found: Input) -> GridSignal:
    assert isinstance(found.signal, GridSignal)
    return found.signal


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_an_image_is_read_as_rows_of_bytes(suffix, tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / f"a{suffix}", lossless=True)
    found = read_signal(tmp_path / f"a{suffix}")
    assert found.signal.kind == "image"
    assert found.signal.size == (7, 5)
    assert torch.equal(grid_of(found).values, torch.from_numpy(COLOURS))


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 3), ("P", 3), ("RGBA", 4), ("CMYK", 3), ("1", 3), ("I;16", 3), ("LA", 4)]
)
def test_every_kind_of_pixel_becomes_colour(mode, channels, tmp_path):
    grey = Image.fromarray(
        np.full((4, 3), 39_168 if mode == "I;16" else 153, np.uint16 if mode == "I;16" else np.uint8)
    )
    image = grey if mode == "I;16" else grey.convert("RGB").convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    signal = grid_of(read_signal(path))
    assert signal.channels == channels
    value = float(signal.at(torch.tensor([0]))[0, 0])
    expected, step = (39_168 / 65_535, 1e-7) if mode == "I;16" else (1 if mode == "1" else 0.6, 1 / 255)
    assert value == pytest.approx(expected, abs=step)


def test_one_pixel_is_an_image(tmp_path):
    Image.fromarray(COLOURS[:1, :1]).save(tmp_path / "a.png")
    assert read_signal(tmp_path / "a.png").signal.size == (1, 1)


def test_an_image_beyond_this_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    monkeypatch.setattr("polyfield.scenes.images.available_memory", lambda: 10**9)
    monkeypatch.setattr("polyfield.scenes.signals.read_picture", lambda *_, **__: pytest.fail("decoded"))
    text = r"a.png: needs \d\.\d GB of memory, 1.0 GB are there; shrink it"
    with pytest.raises(FormatError, match=text):
        read_signal(tmp_path / "a.png")
    with pytest.raises(FormatError, match=text.replace("a.png", tmp_path.name)):
        read_signal(tmp_path)


def test_frames_of_a_folder_are_a_film(tmp_path):
    for index in (2, 0, 1):
        Image.fromarray(COLOURS + index).save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    found = read_signal(tmp_path)
    assert found.signal.kind == "video"
    assert found.signal.size == (7, 5, 3)
    assert torch.equal(grid_of(found).values[2], torch.from_numpy(COLOURS + 2))
    assert found.notes == ()
    Image.fromarray(COLOURS[:2]).save(tmp_path / "3.png")
    with pytest.raises(FormatError, match=r"3.png: frames must be equally large: 7x5 .*of 3 channels.* 7x2 .* here$"):
        read_signal(tmp_path)


def test_what_frames_lose_is_said_in_one_note(tmp_path):
    for index in range(4):
        pixels = COLOURS[..., 0].astype(np.uint16) * 257 if index % 2 else COLOURS[..., 0]
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    found = read_signal(tmp_path)
    assert found.notes == ("1.png: of its more than 8 bits a channel a film keeps 8; 1 more frames lose something too",)
    assert torch.equal(grid_of(found).values[0], grid_of(found).values[1])


@LEFT_OPEN
def test_a_film_comes_back_from_its_file(tmp_path):
    values = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 16, 24, 3).contiguous()
    write_signal(tmp_path / "a.mp4", "video", values, low=0, high=1, fps=12.5)
    found = read_signal(tmp_path / "a.mp4")
    assert found.fps == 12.5
    assert found.signal.size == (24, 16, 6)
    means = grid_of(found).values.float().mean((1, 2, 3)) / 255
    torch.testing.assert_close(means, torch.linspace(0, 1, 6), atol=0.02, rtol=0)


def run_ffmpeg(*arguments: str | Path) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *map(str, arguments)]
    subprocess.run(command, check=True)


PATTERN = ("-f", "lavfi", "-i", "testsrc=duration=1:size=32x24:rate=4")


@LEFT_OPEN
@pytest.mark.parametrize(
    ("name", "format", "codec", "notes"),
    [
        ("a.mp4", "yuv420p", "libx264", ()),
        ("a.mov", "rgb24", "qtrle", ()),
        ("a.mov", "argb", "qtrle", ("its transparency is left out; a folder of PNG frames keeps it",)),
        ("a.mp4", "yuv420p10le", "libx264", ("of its more than 8 bits a channel a film keeps 8",)),
    ],
)
def test_what_a_film_loses_is_said(name, format, codec, notes, tmp_path):
    run_ffmpeg(*PATTERN, "-vf", f"format={format}", "-c:v", codec, tmp_path / name)
    found = read_signal(tmp_path / name)
    assert found.signal.size == (32, 24, 4)
    assert found.notes == notes


@LEFT_OPEN
def test_a_turned_film_is_read_upright_without_remarks(tmp_path, caplog):
    run_ffmpeg(*PATTERN, tmp_path / "a.mp4")
    run_ffmpeg("-display_rotation", "90", "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4")
    assert read_signal(tmp_path / "b.mp4").signal.size == (24, 32, 4)
    assert caplog.text == ""


@LEFT_OPEN
def test_what_is_no_film_is_refused_by_what_is_wrong(tmp_path):
    run_ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "sound.mp4")
    run_ffmpeg(*PATTERN, "-frames:v", "0", tmp_path / "none.mp4")
    run_ffmpeg(*PATTERN, "-movflags", "faststart", tmp_path / "a.mp4")
    whole = (tmp_path / "a.mp4").read_bytes()
    frames = whole.index(b"mdat") + 4
    (tmp_path / "cut.mp4").write_bytes(whole[:frames])
    (tmp_path / "torn.mp4").write_bytes(whole[:frames] + bytes(len(whole) - frames))
    (tmp_path / "empty.webm").write_bytes(b"")
    (tmp_path / "text.mp4").write_bytes(b"not a film at all\n" * 100)
    for name, text in (
        ("sound.mp4", "a film without frames: there is no picture in it to learn"),
        ("none.mp4", "a film without frames: there is no picture in it to learn"),
        ("cut.mp4", "its frames cannot be decoded: it is damaged or cut short; check that it plays"),
        ("torn.mp4", "its frames cannot be decoded: it is damaged or cut short; check that it plays"),
        ("empty.webm", "the file is empty"),
        ("text.mp4", "not a film that ffmpeg can read, or damaged; check that it plays"),
    ):
        with pytest.raises(FormatError) as caught:
            read_signal(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {text}"


@LEFT_OPEN
def test_a_film_longer_than_it_says_is_held_to_this_memory_too(tmp_path, monkeypatch):
    frames = [{"size": (32, 24), "fps": 1.0, "duration": 1.0, "pix_fmt": "yuv420p"}, *[bytes(32 * 24 * 3)] * 100]
    monkeypatch.setattr("imageio_ffmpeg.read_frames", lambda _: iter(frames))
    (tmp_path / "a.mp4").write_bytes(b"film")
    monkeypatch.setattr("polyfield.scenes.film_files.available_memory", lambda: 32 * 24 * 3 * 60)
    with pytest.raises(FormatError, match=r"a.mp4: needs \d.\d GB of memory, .* are there; shrink it"):
        read_signal(tmp_path / "a.mp4")
    monkeypatch.setattr("polyfield.scenes.film_files.available_memory", lambda: 32 * 24 * 3 * 200)
    assert read_signal(tmp_path / "a.mp4").signal.size == (32, 24, 100)


@LEFT_OPEN
def test_a_film_of_odd_sides_is_written(tmp_path):
    write_signal(tmp_path / "a.mkv", "video", torch.rand(2, 15, 23, 3), low=0, high=1, fps=None)
    assert read_signal(tmp_path / "a.mkv").signal.size == (24, 16, 2)
    write_signal(tmp_path / "frames", "video", torch.rand(2, 15, 23, 3), low=0, high=1, fps=None)
    assert read_signal(tmp_path / "frames").signal.size == (23, 15, 2)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_volume_is_brought_to_its_range_and_back(suffix, tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    path = tmp_path / f"v{suffix}"
    np.save(path, values) if suffix == ".npy" else np.savez(path, volume=values, other=np.zeros(3))
    found = read_signal(path)
    assert found.signal.size == (2, 3, 4)
    assert float(grid_of(found).values.min()) == 0
    assert float(grid_of(found).values.max()) == 1
    write_signal(tmp_path / "back.npy", "volume", grid_of(found).values, low=found.low, high=found.high, fps=None)
    np.testing.assert_allclose(np.load(tmp_path / "back.npy")[..., 0], values, atol=1e-6)


def test_a_volume_of_booleans_is_one_of_zeros_and_ones(tmp_path):
    values = np.random.default_rng(0).random((4, 3, 2)) > 0.5
    np.save(tmp_path / "v.npy", values)
    found = read_signal(tmp_path / "v.npy")
    assert (found.low, found.high) == (0, 1)
    np.testing.assert_array_equal(grid_of(found).values[..., 0], values)


def test_a_volume_beyond_this_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    np.save(tmp_path / "v.npy", np.zeros((50, 50, 40), np.uint8))
    monkeypatch.setattr("polyfield.scenes.images.available_memory", lambda: 10**6)
    monkeypatch.setattr("polyfield.scenes.signals.read_npy", lambda *_: pytest.fail("read"))
    with pytest.raises(FormatError, match=r"v.npy: needs 0.0 GB of memory, 0.0 GB are there; shrink it"):
        read_signal(tmp_path / "v.npy")


def picture_file(format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, format)
    return file.getvalue()


def write(path, content):
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.png", b"", "the file is empty"),
        ("a.png", b"\x89PNG\r\n\x1a\nrubbish", "a.png"),
        ("a.jpg", b"\xff\xd8\xff\xe0 cut", "a.jpg"),
        ("a.jpg", b"", "the file is empty"),
        ("a.tif", b"", "the file is empty"),
        ("a.exr", b"", "the file is empty"),
        ("a.hdr", b"", "not a Radiance picture"),
        ("a.png", picture_file("PNG")[:-400], "truncated"),
        ("a.jpg", picture_file("JPEG")[:-400], "truncated"),
        ("a.webp", picture_file("WEBP")[:-400], "could not create decoder object"),
        ("a.png", None, "a folder without images"),
        ("a.mp4", None, "a folder without images"),
        ("a.npy", None, "a folder without images"),
        ("a.txt", b"hello", "expected an image, a film, a volume or a mesh"),
        ("a.npy", b"junk", "not a NumPy array file"),
        ("a.npy", b"", "the file is empty"),
        ("a.npz", b"", "the file is empty"),
        (
            "a.npy",
            np.array([{"code": 1}]),
            "holds Python objects, which are never loaded; expected numbers or booleans",
        ),
        ("a.npy", np.ones((2, 2, 2), complex), "holds complex128; expected numbers or booleans"),
        ("a.npy", np.array([[["text"]]]), "holds <U4; expected numbers or booleans"),
        ("a.npy", np.zeros((3, 3)), "a volume is"),
        ("a.npy", np.zeros((0, 3, 3)), "a volume is"),
        ("a.npy", np.array([[[1.0, np.nan]]]), "a volume must be finite; 1 values are not"),
        ("a.npy", np.array([[[0.0, 1e308]]]), r"its values, 0 to 1e\+308, are beyond float32 \(3.4e\+38\); scale them"),
        ("a.npy", np.array([[[-1e308, 1e308]]]), r"its values, -1e\+308 to 1e\+308, are beyond float32"),
        ("a.npy", np.array([[[-3e38, 3e38]]]), "is beyond float32|are beyond float32"),
        ("a.npz", b"PK junk", "not a NumPy .npz archive"),
    ],
)
def test_hostile_files_are_refused_in_one_line(name, content, text, tmp_path):
    write(tmp_path / name, content)
    with pytest.raises(FormatError, match=text) as caught:
        read_signal(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_absent_files_and_empty_folders_are_refused(tmp_path):
    for name in ("a.png", "a.mp4", "a.npy", "a.npz"):
        with pytest.raises(FormatError, match=name):
            read_signal(tmp_path / name)
    with pytest.raises(FormatError, match="a folder without images"):
        read_signal(tmp_path)


def test_output_names_are_checked_by_what_they_shall_hold(tmp_path):
    with pytest.raises(ConfigError, match=r"--out of an image must be .png, .* got x.mp4"):
        check_output(tmp_path.__class__("x.mp4"), "image")
    with pytest.raises(ConfigError, match=r"--out of a volume must be .npy"):
        check_output(tmp_path / "x.png", "volume")
    with pytest.raises(FormatError):
        write_signal(tmp_path / "no" / "x.png", "image", torch.rand(2, 2, 3), low=0, high=1, fps=None)


def test_a_picture_without_room_for_alpha_loses_it(tmp_path):
    write_signal(tmp_path / "x.jpg", "image", torch.rand(8, 8, 4), low=0, high=1, fps=None)
    assert read_signal(tmp_path / "x.jpg").signal.channels == 3


def test_a_mesh_is_read_as_signed_distances_of_its_cube(tmp_path):
    ball = make_icosphere(3, 2.0)
    write_mesh(tmp_path / "ball.ply", Mesh(ball.vertices.float() + torch.tensor([10.0, 0.0, -5.0]), ball.triangles))
    found = read_signal(tmp_path / "ball.ply")
    signal = found.signal
    assert isinstance(signal, MeshSignal)
    assert found.mesh is not None
    assert found.mesh.signed_distance_trusted
    assert signal.side == pytest.approx(4 / 0.9, rel=1e-3)
    middle = torch.tensor(signal.corner) + signal.side / 2
    torch.testing.assert_close(middle, torch.tensor([10.0, 0.0, -5.0]), atol=1e-3, rtol=0)
    expected = (signal.points - 0.5).norm(dim=1) - 0.45
    torch.testing.assert_close(signal.distances[:, 0], expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize(("target", "of"), [("udf", torch.abs), ("occupancy", torch.sign)])
def test_a_mesh_is_read_as_what_is_to_be_learned(target, of, tmp_path):
    write_mesh(tmp_path / "ball.ply", make_icosphere(1))
    signed = read_signal(tmp_path / "ball.ply").signal
    wanted = read_signal(tmp_path / "ball.ply", target).signal
    index = torch.arange(1000)
    assert torch.equal(wanted.take(index)[0], signed.take(index)[0])  # of the share that all have
    assert torch.equal(wanted.take(index)[1], of(signed.take(index)[1]))


def test_a_mesh_far_from_its_origin_keeps_its_shape(tmp_path):
    ball, far = make_icosphere(2), torch.tensor([4e6, -3e6, 1e6], dtype=torch.float64)
    write_mesh(tmp_path / "near.obj", ball)
    write_mesh(tmp_path / "far.obj", Mesh(ball.vertices + far, ball.triangles))
    near, there = (read_signal(tmp_path / name).signal for name in ("near.obj", "far.obj"))
    assert isinstance(near, MeshSignal)
    assert isinstance(there, MeshSignal)
    assert there.corner == pytest.approx((torch.tensor(near.corner, dtype=torch.float64) + far).tolist(), abs=1e-6)
    near_corners, there_corners = (s.mesh.corners().mean(1).sort(0).values for s in (near, there))
    torch.testing.assert_close(there_corners, near_corners, atol=1e-6, rtol=0)
    values = torch.rand(4, 4, 4, 1, generator=torch.Generator().manual_seed(0)) - 0.5
    write_surface(tmp_path / "again.obj", values, (*there.corner, there.side), "sdf")
    again = read_mesh(tmp_path / "again.obj", dtype=torch.float64).vertices
    assert not torch.equal(again, again.float().double())


def test_a_mesh_without_an_inside_is_read_and_said_to_be_so(tmp_path):
    ball = make_icosphere(1)
    write_mesh(tmp_path / "open.ply", Mesh(ball.vertices.float(), ball.triangles[1:]))
    found = read_signal(tmp_path / "open.ply").mesh
    assert found is not None
    assert not found.signed_distance_trusted
    assert "open" in found.explanation
    flat = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    write_mesh(tmp_path / "flat.ply", Mesh(flat, torch.tensor([[0, 1, 2]])))
    with pytest.raises(FormatError, match="area"):
        read_signal(tmp_path / "flat.ply")


def test_distances_become_a_mesh_in_its_own_frame(tmp_path):
    axis = (torch.arange(40) + 0.5) / 40
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    distances = ((x - 0.5).square() + (y - 0.4).square() + (z - 0.6).square()).sqrt() - 0.3
    write_surface(tmp_path / "ball.ply", distances[..., None], (10.0, 20.0, 30.0, 2.0), "sdf")
    mesh = read_mesh(tmp_path / "ball.ply")
    from_middle = mesh.vertices - torch.tensor([11.0, 20.8, 31.2])
    assert float((from_middle.norm(dim=1) - 0.6).abs().max()) < 1e-2
    assert float(mesh.signed_volume()) == pytest.approx(4 / 3 * 3.14159 * 0.6**3, rel=0.02)  # and faces outwards
    with pytest.raises(ConfigError, match="the field has no surface"):
        write_surface(tmp_path / "none.ply", distances[..., None] + 5, (0.0, 0.0, 0.0, 1.0), "sdf")


def test_unsigned_distances_become_a_closed_shell_a_cell_away(tmp_path):
    axis = (torch.arange(40) + 0.5) / 40
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    distances = (((x - 0.5).square() + (y - 0.5).square() + (z - 0.5).square()).sqrt() - 0.3).abs()
    write_surface(tmp_path / "shell.ply", distances[..., None], (0.0, 0.0, 0.0, 1.0), "udf")
    shell = read_mesh(tmp_path / "shell.ply", dtype=torch.float64)
    away = ((shell.vertices - 0.5).norm(dim=1) - 0.3).abs()
    torch.testing.assert_close(away, torch.full_like(away, 1 / 40), atol=3e-3, rtol=0)
    report = check_mesh(merge_vertices(shell))
    assert (report.open_edges, report.components) == (0, 2)


@pytest.mark.parametrize(
    ("name", "kind", "size", "text"),
    [
        ("a.jpg", "image", (65536, 1), r"a.jpg: this format has at most 65535 pixels a side; 65536x1 is more"),
        ("a.webp", "image", (1, 16384), r"at most 16383 pixels a side; 1x16384 is more: .* another format such as"),
        ("a.png", "image", (10**4, 10**4), r"10000x10000 needs \d\.\d GB of memory, 1.0 GB are there; give a smaller"),
        ("a.npy", "volume", (400, 400, 400), r"400x400x400 needs \d\.\d GB"),
        ("a.ply", "surface", (700, 700, 700), r"700x700x700 needs \d\.\d GB"),
        ("a.mp4", "video", (400, 400, 600), r"400x400x600 needs \d\.\d GB"),
        ("a.ply", "surface", (7, 7, 7), r"the cells along each axis of its cube, at least 8; got 7"),
    ],
)
def test_sizes_that_file_or_memory_cannot_hold_are_refused(name, kind, size, text, monkeypatch):
    monkeypatch.setattr("polyfield.scenes.signals.available_memory", lambda: 10**9)
    channels = 1 if kind == "surface" else 3
    with pytest.raises(ConfigError, match=text):
        check_size(Path(name), kind, size, channels)
    check_size(Path(name), kind, (40,) * len(size), channels)


def test_a_film_is_converted_frame_by_frame(tmp_path):
    """So that `check_size` may let a film through that fills the memory once."""
    taken = []
    values = torch.rand(6, 15, 23, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polyfield.scenes.signals.to_bytes", lambda v: taken.append(v.shape) or to_bytes(v))
        write_signal(tmp_path / "frames", "video", values, low=0, high=1, fps=None)
    assert taken == [(15, 23, 3)] * 6
