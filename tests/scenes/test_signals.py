"""Images, films and volumes are read from any usual file, and hostile ones are refused in one line."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from polyfield.fields.errors import ConfigError, FormatError
from polyfield.fields.formats.mesh_file import read_mesh, write_mesh
from polyfield.fields.geometry import Mesh, make_icosphere
from polyfield.fields.implicit import GridSignal, MeshSignal
from polyfield.scenes.signals import Input, check_output, read_signal, write_signal, write_surface

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
    assert abs(int(signal.values[0, 0, 0]) - (255 if mode == "1" else 153)) <= 1


def test_one_pixel_is_an_image(tmp_path):
    Image.fromarray(COLOURS[:1, :1]).save(tmp_path / "a.png")
    assert read_signal(tmp_path / "a.png").signal.size == (1, 1)


def test_an_image_beyond_reason_is_refused_before_it_is_decoded(tmp_path):
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(FormatError, match="more than 179 million pixels"):
        read_signal(tmp_path / "a.png")


def test_frames_of_a_folder_are_a_film(tmp_path):
    for index in (2, 0, 1):
        Image.fromarray(COLOURS + index).save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    found = read_signal(tmp_path)
    assert found.signal.kind == "video"
    assert found.signal.size == (7, 5, 3)
    assert torch.equal(grid_of(found).values[2], torch.from_numpy(COLOURS + 2))
    Image.fromarray(COLOURS[:2]).save(tmp_path / "3.png")
    with pytest.raises(FormatError, match="frames must be equally large"):
        read_signal(tmp_path)


@LEFT_OPEN
def test_a_film_comes_back_from_its_file(tmp_path):
    values = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 16, 24, 3).contiguous()
    write_signal(tmp_path / "a.mp4", "video", values, low=0, high=1, fps=12.5)
    found = read_signal(tmp_path / "a.mp4")
    assert found.fps == 12.5
    assert found.signal.size == (24, 16, 6)
    means = grid_of(found).values.float().mean((1, 2, 3)) / 255
    torch.testing.assert_close(means, torch.linspace(0, 1, 6), atol=0.02, rtol=0)


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


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.png", b"", "the file is empty"),
        ("a.png", b"\x89PNG\r\n\x1a\nrubbish", "a.png"),
        ("a.jpg", b"\xff\xd8\xff\xe0 cut", "a.jpg"),
        ("a.mp4", b"", "ffmpeg cannot read it as a film"),
        ("a.mp4", b"not a film at all" * 100, "ffmpeg cannot read it as a film"),
        ("a.txt", b"hello", "expected an image, a film, a volume or a mesh"),
        ("a.npy", b"junk", "not a NumPy array file"),
        ("a.npy", np.array([{"code": 1}]), "pickles are never loaded"),
        ("a.npy", np.zeros((3, 3)), "a volume is"),
        ("a.npy", np.zeros((0, 3, 3)), "a volume is"),
        ("a.npy", np.array([[[1.0, np.nan]]]), "a volume must be finite; 1 values are not"),
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
    assert found.warning is None
    assert signal.side == pytest.approx(4 / 0.9, rel=1e-3)
    middle = torch.tensor(signal.corner) + signal.side / 2
    torch.testing.assert_close(middle, torch.tensor([10.0, 0.0, -5.0]), atol=1e-3, rtol=0)
    expected = (signal.points - 0.5).norm(dim=1) - 0.45
    torch.testing.assert_close(signal.distances[:, 0], expected, atol=5e-3, rtol=0)


def test_a_mesh_without_an_inside_is_read_with_a_warning(tmp_path):
    ball = make_icosphere(1)
    write_mesh(tmp_path / "open.ply", Mesh(ball.vertices.float(), ball.triangles[1:]))
    assert "open" in (read_signal(tmp_path / "open.ply").warning or "")
    flat = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    write_mesh(tmp_path / "flat.ply", Mesh(flat, torch.tensor([[0, 1, 2]])))
    with pytest.raises(FormatError, match="area"):
        read_signal(tmp_path / "flat.ply")


def test_distances_become_a_mesh_in_its_own_frame(tmp_path):
    axis = (torch.arange(40) + 0.5) / 40
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    distances = ((x - 0.5).square() + (y - 0.4).square() + (z - 0.6).square()).sqrt() - 0.3
    write_surface(tmp_path / "ball.ply", distances[..., None], (10.0, 20.0, 30.0, 2.0))
    mesh = read_mesh(tmp_path / "ball.ply")
    from_middle = mesh.vertices - torch.tensor([11.0, 20.8, 31.2])
    assert float((from_middle.norm(dim=1) - 0.6).abs().max()) < 1e-2
    assert float(mesh.signed_volume()) == pytest.approx(4 / 3 * 3.14159 * 0.6**3, rel=0.02)  # and faces outwards
    with pytest.raises(ConfigError, match="the field has no surface"):
        write_surface(tmp_path / "none.ply", distances[..., None] + 5, (0.0, 0.0, 0.0, 1.0))
