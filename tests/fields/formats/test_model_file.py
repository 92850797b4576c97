import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError, FormatError
from polyfield.fields.formats import FORMAT_VERSION, read_tensors, write_tensors
from polyfield.fields.formats.model_file import read_header

TENSORS = {
    "table": torch.arange(12, dtype=torch.float32).reshape(2, 3, 2),
    "grid": torch.tensor([1, 0, 1], dtype=torch.uint8),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "step": torch.tensor(7),
    "empty": torch.zeros(0, 3, dtype=torch.float64),
}


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"kind": "model", "config": {"levels": 16}}, TENSORS)
    return path


def raw(path, layout, data=b""):
    text = layout if isinstance(layout, bytes) else json.dumps(layout).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def refused(path, pattern, kind="model"):
    with pytest.raises(FormatError, match=pattern) as caught:
        read_tensors(path, kind=kind)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text


def test_reading_returns_what_was_written(model):
    header, tensors = read_tensors(model, kind="model")
    assert header == {"format": "polyfield", "version": FORMAT_VERSION, "kind": "model", "config": {"levels": 16}}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_any_safetensors_reader_opens_the_file(model):
    from safetensors.torch import load_file

    assert torch.equal(load_file(model)["table"], TENSORS["table"])


def test_views_shared_strided_and_trainable_tensors_are_written(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    parameter = torch.nn.Parameter(base.clone())
    views = {"all": base, "same": base, "row": base[1], "transposed": base.t(), "parameter": parameter}
    write_tensors(tmp_path / "m", {"kind": "model"}, views)
    _, tensors = read_tensors(tmp_path / "m", kind="model")
    for name, tensor in views.items():
        assert torch.equal(tensors[name], tensor.detach())


def test_loaded_tensors_do_not_depend_on_the_file(model):
    _, tensors = read_tensors(model, kind="model")
    model.write_bytes(b"")
    assert tensors["table"].sum() == TENSORS["table"].sum()
    tensors["table"].zero_()


@pytest.mark.parametrize("header", [{}, {"kind": 3}, {"kind": "model", "version": 2}, {"kind": "model", "format": "x"}])
def test_a_header_without_kind_or_with_reserved_keys_is_refused(tmp_path, header):
    with pytest.raises(ConfigError, match=r"header of .* must"):
        write_tensors(tmp_path / "m", header, {})
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, torch.ones(1)])
def test_a_header_that_is_not_json_is_refused(tmp_path, value):
    with pytest.raises(ConfigError, match="plain JSON values"):
        write_tensors(tmp_path / "m", {"kind": "model", "value": value}, {})


def test_absent_and_unreadable_files_are_named(tmp_path):
    refused(tmp_path / "no.safetensors", "cannot be read: no such file$")
    refused(tmp_path, "cannot be read: is a directory$")


def test_a_file_cut_anywhere_is_refused_in_one_line(model, tmp_path):
    content = model.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        refused(cut, "is cut short|is not a safetensors file")
    cut.write_bytes(content[:-1])
    refused(cut, f"is cut short: {len(content)} bytes expected, {len(content) - 1} found")


def test_files_of_other_kinds_are_named_as_such(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    refused(path, "is not a safetensors file")
    torch.save({"a": torch.ones(3)}, path)
    refused(path, "is not a safetensors file")
    save_file({"a": torch.ones(3)}, path)
    refused(path, "safetensors file of another program: it has no 'polyfield' header")
    save_file({"a": torch.ones(3)}, path, metadata={"format": "pt"})
    refused(path, "safetensors file of another program")
    write_tensors(path, {"kind": "checkpoint"}, {"a": torch.ones(3)})
    refused(path, "holds a 'checkpoint', not a 'model'")
    assert read_header(path)["kind"] == "checkpoint"


@pytest.mark.parametrize(
    ("header", "pattern"),
    [
        ({"format": "polyfield", "version": FORMAT_VERSION + 1, "kind": "model"}, "newer Polyfield .format version 2"),
        ({"format": "polyfield", "version": "1", "kind": "model"}, "version must be a positive integer; got '1'"),
        ({"format": "polyfield", "version": True, "kind": "model"}, "version must be a positive integer"),
        ({"format": "polyfield", "version": 0, "kind": "model"}, "version must be a positive integer"),
        ({"format": "polyfield", "version": 1}, "holds a 'None'"),
        ({"format": "gaussians", "version": 1, "kind": "model"}, "format 'gaussians'"),
        ([1, 2], "must be a JSON object; got list"),
        ("[" * 100_000, "not valid JSON"),
        ('{"format": NaN}', "NaN is not JSON"),
        ("{", "not valid JSON"),
    ],
)
def test_headers_that_are_not_understood_are_refused(tmp_path, header, pattern):
    text = header if isinstance(header, str) else json.dumps(header)
    refused(raw(tmp_path / "x", {"__metadata__": {"polyfield": text}}), pattern)


GOOD = json.dumps({"format": "polyfield", "version": 1, "kind": "model"})


@pytest.mark.parametrize(
    ("entry", "data", "pattern"),
    [
        ({"dtype": "F32", "shape": [float("nan")], "data_offsets": [0, 4]}, bytes(4), "NaN is not JSON"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 60]}, bytes(4), "cut short"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, -4]}, bytes(4), "data_offsets"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4.0]}, bytes(4), "data_offsets"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}, bytes(4), "damaged"),
        ({"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}, bytes(4), "damaged"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, bytes(4), "damaged"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, bytes(4), "damaged"),
        ({"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}, bytes(4), "damaged"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, bytes(8), "damaged"),
        ([], b"", "data_offsets"),
    ],
)
def test_impossible_tensor_entries_are_refused(tmp_path, entry, data, pattern):
    layout = {"__metadata__": {"polyfield": GOOD}, "a": entry}
    refused(raw(tmp_path / "x", layout, data), pattern)


def test_overlapping_tensors_are_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    layout = {"__metadata__": {"polyfield": GOOD}, "a": entry, "b": entry}
    refused(raw(tmp_path / "x", layout, bytes(4)), "damaged")


def test_a_header_of_gigabytes_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    refused(path, "header claims 1099511627776 bytes")
    with path.open("wb") as file:  # sparse: claims a header of 1 GiB and has it
        file.write(struct.pack("<Q", 1 << 30) + b"{")
        file.truncate((1 << 30) + 8)
    refused(path, "header claims")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 40),
)
def test_mutated_bytes_are_read_or_refused_with_format_error(model, tmp_path, edits, cut):
    content = bytearray(model.read_bytes())
    for position, value in edits:
        content[position % len(content)] = value
    path = tmp_path / "mutated.safetensors"
    path.write_bytes(content[: len(content) - cut])
    try:
        header, tensors = read_tensors(path, kind="model")
    except FormatError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)
    else:
        assert header["kind"] == "model"
        assert all(isinstance(t, torch.Tensor) for t in tensors.values())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), prefix=st.booleans())
def test_random_bytes_are_refused_with_format_error(tmp_path, content, prefix):
    path = tmp_path / "random"
    path.write_bytes(struct.pack("<Q", max(len(content), 2)) + b"{" + content if prefix else content)
    with pytest.raises(FormatError):
        read_tensors(path, kind="model")
