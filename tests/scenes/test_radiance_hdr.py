"""Radiance pictures: values by the book, both codings, and nothing of a damaged file gets through."""

import numpy as np
import pytest
from helpers.datasets import data_folder, parse_or_refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import FormatError
from polyfield.scenes import radiance_hdr

PIXELS = np.random.default_rng(3).integers(100, 140, (5, 12, 4), dtype=np.uint8)
PIXELS[1, :, :] = 128  # runs
PIXELS[2, 3, 3] = 0  # black


def flat(pixels=PIXELS, head=b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 5 +X 12\n") -> bytes:
    return head + pixels.tobytes()


def coded(pixels=PIXELS) -> bytes:
    """Run-length coded: runs where two or more bytes are alike."""
    data = b"#?RADIANCE\nEXPOSURE=1\n\n-Y 5 +X 12\n"
    for row in pixels:
        data += bytes([2, 2, 0, len(row)])
        for component in row.T:
            at = 0
            while at < len(component):
                run = 1
                while at + run < len(component) and component[at + run] == component[at]:
                    run += 1
                data += bytes([128 + run, component[at]]) if run > 1 else bytes([1, component[at]])
                at += run
    return data


@pytest.mark.parametrize("data", [flat(), coded()])
def test_values_are_mantissa_times_power_of_two(data):
    picture = radiance_hdr.parse(data, "x")
    expected = (PIXELS[..., :3] + 0.5) / 256 * 2.0 ** (PIXELS[..., 3:].astype(float) - 128)
    expected[2, 3] = 0
    np.testing.assert_allclose(picture, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "x: not a Radiance picture: expected '#\\?RADIANCE', got b''"),
        (b"#?RADIANCE\n-Y 5 +X 12\n", "the Radiance header does not end"),
        (flat(head=b"#?RADIANCE\nFORMAT=32-bit_rle_xyze\n\n-Y 5 +X 12\n"), "FORMAT=32-bit_rle_xyze cannot be used"),
        (flat(head=b"#?RADIANCE\n\n+Y 5 +X 12\n"), "expected a line '-Y height \\+X width', got '\\+Y 5 \\+X 12'"),
        (flat(head=b"#?RADIANCE\n\n-Y 0 +X 12\n"), "an image of 12x0 pixels"),
        (flat(head=b"#?RADIANCE\n\n-Y 99999 +X 99999\n"), "cut short: 99999x99999 pixels cannot come out of 240 bytes"),
        (flat()[:-1], "row 4: cut short at byte"),
        (coded()[:-1], "row 4: cut short at byte"),
        (
            coded().replace(bytes([2, 2, 0, 12]), bytes([2, 2, 0, 13]), 1),
            "row 0: coded for 13 pixels, the header says 12",
        ),
        (coded().replace(bytes([2, 2, 0, 12]), bytes([2, 2, 0, 12, 255, 1]), 1), "row 0: a run of 127 pixels at byte"),
        (flat(np.ones_like(PIXELS)), "run-length coding of before 1991"),
    ],
)
def test_a_damaged_picture_is_refused_in_one_line(data, text):
    with pytest.raises(FormatError, match=text):
        radiance_hdr.parse(data, "x")


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.integers(0, 300), st.integers(0, 6), st.binary(max_size=6), st.booleans())
def test_any_mutation_parses_or_is_refused(run_length, at, cut, new, truncate):
    data = coded() if run_length else flat()
    data = data[:at] + new + (b"" if truncate else data[at + cut :])
    result = parse_or_refusal(radiance_hdr.parse, data, "x")
    if isinstance(result, str):
        assert "\n" not in result
    else:
        assert np.isfinite(result).all()
        assert result.shape[0] * result.shape[1] <= 16 * len(data)


def test_a_real_picture_is_read():
    path = data_folder() / "envmaps" / "mud_road_puresky_1k.hdr"
    if not path.is_file():
        pytest.skip(f"evaluation data absent: {path}")
    picture = radiance_hdr.parse(path.read_bytes(), "sky")
    assert picture.shape == (512, 1024, 3)
    assert picture[:256].mean() > picture[256:].mean() > 0  # the sky is above
