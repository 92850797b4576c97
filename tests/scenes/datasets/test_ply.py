"""Points of PLY files: the three encodings agree, and nothing in a damaged file gets through."""

import numpy as np
import pytest
from helpers.datasets import parse_or_refusal, there
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import FormatError
from polyfield.scenes.datasets import ply

POINTS = np.array([[0.5, 1, -2], [3, 4, 5.25]])
COLORS = np.array([[1, 2, 3], [255, 0, 7]], np.uint8)
PROPERTIES = "property double x\nproperty double y\nproperty double z\nproperty uchar red\nproperty uchar green\n"
PROPERTIES += "property uchar blue\n"


def encode(form: str, before: str = "", body_before: bytes = b"", count: int = 2) -> bytes:
    head = f"ply\nformat {form} 1.0\ncomment any\n{before}element vertex {count}\n{PROPERTIES}element face 0\n"
    head += "property list uchar int vertex_indices\nend_header\n"
    if form == "ascii":
        rows = [" ".join(map(str, (*p, *c))) for p, c in zip(POINTS.tolist(), COLORS.tolist(), strict=True)]
        return head.encode() + "\n".join(rows).encode() + b"\n"
    kind = "<f8" if "little" in form else ">f8"
    rows = [p.astype(kind).tobytes() + c.tobytes() for p, c in zip(POINTS, COLORS, strict=True)]
    return head.encode() + body_before + b"".join(rows)


FORMS = ("ascii", "binary_little_endian", "binary_big_endian")


@pytest.mark.parametrize("form", FORMS)
def test_all_encodings_give_the_same_points(form):
    points, colors = ply.parse_points(encode(form), "x")
    np.testing.assert_array_equal(points, POINTS)
    np.testing.assert_array_equal(colors, COLORS)


def test_an_element_before_the_vertices_is_passed_over():
    data = encode("binary_little_endian", "element camera 2\nproperty float f\n", b"\1" * 8)
    np.testing.assert_array_equal(ply.parse_points(data, "x")[0], POINTS)


def test_float_colors_are_parts_of_one():
    head = b"ply\nformat ascii 1.0\nelement vertex 1\n" + b"".join(
        b"property float %s\n" % name for name in (b"x", b"y", b"z", b"red", b"green", b"blue")
    )
    _, colors = ply.parse_points(head + b"end_header\n0 0 0 0 0.5 2\n", "x")
    assert there(colors).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "x: not a PLY file: expected it to begin with 'ply', got b''"),
        (b"ply\nformat ascii 1.0\n", "the PLY header has no 'end_header' line"),
        (b"ply\nend_header\n", "the PLY header names no format out of"),
        (b"ply\nformat ascii 1.0\nend_header\n", r"has no 'vertex' element; it holds \[\]"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1", "need x, y and z; they have x"),
        (
            b"ply\nformat ascii 1.0\nelement vertex -1\nend_header\n",
            "header line 3 cannot be used: 'element vertex -1'",
        ),
        (b"ply\nformat ascii 1.0\nproperty float x\nend_header\n", "header line 3 cannot be used"),
        (encode("ascii").replace(b"4.0", b"4.x"), "a vertex is not made of numbers"),
        (encode("ascii", count=3), "cut short: expected 3 vertices of 6 numbers, got 12 numbers"),
        (encode("ascii", count=10**15), "cut short: 1000000000000000 vertices of 6 numbers do not fit in"),
        (
            encode("binary_little_endian", count=10**15),
            "cut short: 1000000000000000 vertices need 27000000000000000 bytes",
        ),
        (encode("binary_little_endian")[:-1], "cut short: 2 vertices need 54 bytes, 53 are there"),
        (encode("ascii", "element camera 1\nproperty float f\n"), "element 'camera' stands before the vertices"),
        (encode("ascii").replace(b"uchar red", b"uchar x"), "with a property given twice cannot be used"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(data, text):
    with pytest.raises(FormatError, match=text):
        ply.parse_points(data, "x")


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(FORMS), st.integers(0, 400), st.integers(0, 8), st.binary(max_size=8), st.booleans())
def test_any_mutation_parses_or_is_refused(form, at, cut, new, truncate):
    data = encode(form)
    data = data[:at] + new + (b"" if truncate else data[at + cut :])
    result = parse_or_refusal(ply.parse_points, data, "x")
    if isinstance(result, str):
        assert "\n" not in result
    else:
        points, colors = result
        assert points.shape[1:] == (3,)
        assert points.dtype == np.float64
        assert colors is None or (colors.shape == points.shape and colors.dtype == np.uint8)
