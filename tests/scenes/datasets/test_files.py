"""NumPy files of strangers: no pickles, no trust in sizes, no exception but FormatError."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from helpers.datasets import parse_or_refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import FormatError
from polyfield.scenes.datasets import files


def npy(array, allow_pickle=False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def npz(**arrays) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize("dtype", ["f8", "f4", "i4", "u1", ">f4", ">i8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numeric_arrays_come_back_as_float64(dtype, order):
    array = np.array(np.arange(12).reshape(3, 4), dtype=dtype, order=order)
    result = files.parse_npy(npy(array), "x")
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, array)


class Bomb:
    def __reduce__(self):
        return (print, ("pickle was run",))


def test_pickles_are_refused_and_not_run(capsys):
    data = npy(np.array([Bomb()], dtype=object), allow_pickle=True)
    capsys.readouterr()
    with pytest.raises(
        FormatError, match="x: holds Python objects, which are never loaded; expected numbers or booleans"
    ):
        files.parse_npy(data, "x")
    with pytest.raises(FormatError, match="x: not a NumPy array file"):
        files.parse_npy(pickle.dumps(Bomb()), "x")
    with pytest.raises(FormatError, match="holds <U4; expected numbers or booleans"):
        files.parse_npz(npz(a=np.array(["text"])), "x")
    assert capsys.readouterr().out == ""


def test_a_forged_shape_allocates_nothing():
    head = npy(np.zeros((3, 17)))
    for shape in (b"(9, 17)", b"(1, 99)"):
        with pytest.raises(FormatError, match="cut short: shape"):
            files.parse_npy(head.replace(b"(3, 17)", shape), "x")
    forged = head.replace(b"(3, 17), }      ", b"(99999999999,17)}")[: len(head)]
    with pytest.raises(FormatError, match=r"cut short|not a NumPy array"):
        files.parse_npy(forged, "x")


def test_an_archive_that_unpacks_to_too_much_is_refused():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy(np.zeros(files.MAX_ARRAY_BYTES // 8 + 1)))
    with pytest.raises(FormatError, match="x: unpacks to more than 67108864 bytes"):
        files.parse_npz(stream.getvalue(), "x")


@settings(max_examples=120, deadline=None)
@given(st.booleans(), st.integers(0, 700), st.integers(0, 6), st.binary(max_size=6), st.booleans())
def test_any_mutation_parses_or_is_refused(archive, at, cut, new, truncate):
    data = npz(a=np.ones((2, 3)), b=np.eye(4)) if archive else npy(np.arange(34.0).reshape(2, 17))
    data = data[:at] + new + (b"" if truncate else data[at + cut :])
    result = parse_or_refusal(files.parse_npz if archive else files.parse_npy, data, "x")
    if isinstance(result, str):
        assert "\n" not in result
    else:
        assert all(array.dtype == np.float64 for array in (result.values() if archive else [result]))


def test_reading_names_what_is_there_instead_of_a_file(tmp_path):
    with pytest.raises(FormatError, match="expected a file, found a folder"):
        files.read_bytes(tmp_path)
    with pytest.raises(FormatError, match="expected a file, found nothing"):
        files.read_bytes(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"12345")
    with pytest.raises(FormatError, match="5 bytes; such a file is at most 4 bytes"):
        files.read_bytes(tmp_path / "a", 4)
