"""Image files of all kinds become the same uint8 pixels, and broken ones a line."""

import warnings

import numpy as np
import pytest
from helpers import datasets as data
from PIL import Image

from polyfield.fields.errors import FormatError
from polyfield.scenes.image_files import (
    encode_srgb,
    read_header,
    read_image,
    read_linear,
    read_mask,
    read_picture,
)

RGB, RGBA = data.picture(200), data.picture(200, 4)


def png_16(path, pixels: np.ndarray) -> None:
    """16 bits a channel; Pillow reads such files but does not write them."""
    import struct
    import zlib

    height, width, channels = pixels.shape
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )


def test_png_of_8_bits_is_read_exactly(tmp_path):
    for image in (RGB, RGBA):
        Image.fromarray(image).save(tmp_path / "a.png")
        assert read_header(tmp_path / "a.png")[:3] == (24, 16, image.shape[2])
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_of_16_bits_keeps_the_high_byte(tmp_path, channels):
    deep = np.random.default_rng(1).integers(0, 65536, (7, 5, channels))
    png_16(tmp_path / "a.png", deep)
    assert read_header(tmp_path / "a.png").channels == max(channels, 3)
    expected = np.repeat(deep >> 8, 3, axis=2) if channels == 1 else deep >> 8
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


def test_a_picture_keeps_16_bits_of_grey_and_turns_them(tmp_path):
    deep = np.random.default_rng(1).integers(0, 65536, (7, 5), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(deep).save(tmp_path / "a.png", exif=exif)
    assert read_header(tmp_path / "a.png").deep
    found = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(found.pixels, np.rot90(deep, -1)[..., None].repeat(3, axis=2))
    assert found.notes == ()
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), found.pixels >> 8)


def test_a_picture_of_linear_values_is_not_rounded(tmp_path):
    values = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    write_exr(tmp_path / "a.exr", {"Y": values})
    assert read_header(tmp_path / "a.exr").deep
    found = read_picture(tmp_path / "a.exr")
    assert found.pixels.dtype == np.float32
    assert len(np.unique(found.pixels)) > 4000
    assert found.notes == ()
    np.testing.assert_array_equal(read_image(tmp_path / "a.exr"), encode_srgb(values[..., None].repeat(3, axis=2)))


@pytest.mark.parametrize(
    "name", ["rgb.png", "rgb.tif", "rgba.png", "palette.png", "deep.tif", "grey.png", "a.jpg", "a.bmp"]
)
def test_nothing_is_said_of_a_picture_that_is_kept_whole(name, tmp_path):
    image = {
        "rgba.png": Image.fromarray(RGBA),
        "palette.png": Image.fromarray(RGB).convert("P"),
        "deep.tif": Image.fromarray(RGB[..., 0].astype(np.uint16) * 257),
        "grey.png": Image.fromarray(RGB[..., 0]),
    }.get(name, Image.fromarray(RGB))
    image.save(tmp_path / name)
    assert read_picture(tmp_path / name).notes == ()


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_the_low_bits_that_a_picture_loses_are_said(channels, tmp_path):
    png_16(tmp_path / "a.png", np.zeros((4, 4, channels)))
    assert read_picture(tmp_path / "a.png").notes == ("of its 16 bits a channel the upper 8 are kept",)


def test_lost_inks_and_pages_of_a_picture_are_said(tmp_path):
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg")
    assert read_picture(tmp_path / "a.jpg").notes == ("its CMYK became RGB without a colour profile",)
    Image.fromarray(RGB).save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(RGB)] * 2)
    assert read_picture(tmp_path / "a.tif").notes == ("of its 3 pictures the first is taken",)


@pytest.mark.parametrize(
    ("value", "notes"),
    [(1, ()), (1 + 1 / 256, ()), (1.5, ("12.5%",)), (-0.1, ("12.5%",)), (np.nan, ("12.5%",)), (np.inf, ("12.5%",))],
)
def test_how_much_of_a_picture_is_clipped_is_said(value, notes, tmp_path):
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 1:3] = value
    write_exr(tmp_path / "a.exr", {"R": values, "G": np.zeros_like(values), "B": np.zeros_like(values)})
    said = " of its pixels have values outside 0 to 1, which were clipped; a lower exposure keeps them"
    assert read_picture(tmp_path / "a.exr").notes == tuple(f"{share}{said}" for share in notes)


def test_grey_palette_and_transparent_palette_become_colour(tmp_path):
    Image.fromarray(RGB[..., 1]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(RGB[..., 1:2], 3, axis=2))
    palette = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), np.asarray(palette.convert("RGB")))
    palette.save(tmp_path / "t.png", transparency=0)
    assert read_header(tmp_path / "t.png").channels == 4
    assert read_image(tmp_path / "t.png").shape == (16, 24, 4)
    Image.fromarray(RGBA).convert("LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png")[..., 3], RGBA[..., 3])


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").shape == (16, 24, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright_on_request(tmp_path, orientation):
    # What a viewer does, from the EXIF standard: where row 0 and column 0 of the stored picture are shown.
    upright = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    header = read_header(tmp_path / "a.png")
    assert header.orientation == orientation
    turned = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(turned, upright(RGB))
    assert header.turned_size == (turned.shape[1], turned.shape[0])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", turned=False), RGB)


def test_linear_values_are_clipped_and_encoded():
    linear = np.array([[[0, 0.0031308, 0.2158605], [1, 7, -1], [np.nan, np.inf, 0.5]]])
    np.testing.assert_array_equal(encode_srgb(linear), [[[0, 10, 128], [255, 255, 0], [0, 255, 188]]])


def test_alpha_of_linear_images_is_not_encoded():
    assert encode_srgb(np.full((1, 1, 4), 0.5)).tolist() == [[[188, 188, 188, 128]]]


def write_exr(path, channels: dict[str, np.ndarray]) -> None:
    OpenEXR = pytest.importorskip("OpenEXR")
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, channels).write(str(path))


def test_exr_is_read_with_associated_alpha_divided_out(tmp_path):
    value = np.full((6, 9), 0.25, np.float32)
    write_exr(tmp_path / "a.exr", {"R": value, "G": value * 2, "B": value * 0, "A": value * 2})
    assert read_header(tmp_path / "a.exr")[:3] == (9, 6, 4)
    np.testing.assert_allclose(read_linear(tmp_path / "a.exr")[3, 4], [0.5, 1, 0, 0.5])
    assert read_image(tmp_path / "a.exr")[0, 0].tolist() == [188, 255, 0, 128]
    write_exr(tmp_path / "y.exr", {"Y": value.astype(np.float16)})
    assert read_linear(tmp_path / "y.exr")[0, 0].tolist() == [0.25] * 3


def test_an_exr_without_colour_or_cut_short_is_refused(tmp_path, capfd):
    write_exr(tmp_path / "z.exr", {"Z": np.zeros((4, 4), np.float32)})
    with pytest.raises(FormatError, match=r"z.exr: expected channels R, G and B \(or Y\), got Z"):
        read_image(tmp_path / "z.exr")
    noise = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    write_exr(tmp_path / "a.exr", {"R": noise, "G": noise, "B": noise})
    whole = (tmp_path / "a.exr").read_bytes()
    torn = whole[: len(whole) // 2] + bytes(500) + whole[len(whole) // 2 + 500 :]
    for content, text in (
        (b"", "the file is empty"),
        (b"junk" * 100, "no OpenEXR file, or damaged"),
        (whole[:100], "no OpenEXR file, or damaged"),
        (whole[: len(whole) // 2], "its pixels are damaged or cut short"),
        (torn, "its pixels are damaged or cut short"),
    ):
        (tmp_path / "a.exr").write_bytes(content)
        with pytest.raises(FormatError, match=rf"a.exr: cannot be read as an image: {text}$"):
            read_image(tmp_path / "a.exr")
    assert capfd.readouterr() == ("", "")  # the library's own remarks


def test_a_damaged_tiff_is_refused_without_its_decoders_remarks(tmp_path, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.tif", compression="tiff_lzw")
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[:200] + bytes(2800) + whole[3000:])
    with pytest.raises(FormatError, match=r"a.tif: cannot be read as an image"):
        read_image(tmp_path / "a.tif")
    assert capfd.readouterr() == ("", "")


def test_masks_are_grey_values_or_alpha(tmp_path):
    mask = np.where(np.arange(24) < 5, 0, 255).astype(np.uint8)[None].repeat(16, axis=0)
    Image.fromarray(mask).save(tmp_path / "grey.png")
    Image.fromarray(mask > 0).save(tmp_path / "bits.png")
    white = np.full((16, 24, 4), 255, np.uint8)
    white[..., 3] = mask
    Image.fromarray(white).save(tmp_path / "alpha.png")
    for name in ("grey.png", "bits.png", "alpha.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name), mask)


def test_a_truncated_image_is_refused_in_one_line(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(noise).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(FormatError, match=rf"{name}: cannot be read as an image: .*(truncated|broken)"):
            read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "the file is empty"), (b"not an image", "no known image format"), (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, "")],
)
def test_what_is_no_image_is_refused_in_one_line(tmp_path, content, text):
    (tmp_path / "a.png").write_bytes(content)
    for read in (read_header, read_image):
        with pytest.raises(FormatError, match=f"a.png: cannot be read as an image: {text}") as caught:
            read(tmp_path / "a.png")
        assert "\n" not in str(caught.value)


def test_absent_files_are_named(tmp_path):
    for name in ("a.png", "a.exr", "a.hdr"):
        for read in (read_header, read_image):
            with pytest.raises(FormatError, match=rf"{name}: no such file"):
                read(tmp_path / name)


def test_images_too_large_for_any_camera_are_refused(tmp_path):
    huge = Image.new("1", (20_000, 20_000))
    huge.save(tmp_path / "a.png")
    for read in (read_header, read_image):
        with pytest.raises(FormatError, match=r"it has more than 179 million pixels"):
            read(tmp_path / "a.png")
    limit = Image.MAX_IMAGE_PIXELS
    assert read_header(tmp_path / "a.png", most_pixels=None)[:2] == (20_000, 20_000)
    assert limit == Image.MAX_IMAGE_PIXELS is not None


def test_pillow_does_not_warn_of_what_a_camera_can_take(tmp_path):
    Image.new("1", (11_000, 11_000)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_header(tmp_path / "a.png").width == 11_000
