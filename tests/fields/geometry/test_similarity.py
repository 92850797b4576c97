"""Is a similarity a group element, and is bad input refused?"""

from __future__ import annotations

import json
import math

import pytest
import torch
from helpers.camera_samples import random_poses
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError, FormatError, ShapeError
from polyfield.fields.geometry import Similarity


def similarity(seed: int, scale: float = 1.0) -> Similarity:
    pose = random_poses(1, seed)[0]
    return Similarity(scale, pose[:, :3], pose[:, 3])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_compose_applies_the_argument_first_and_inverse_undoes(first_seed, second_seed, first_scale, second_scale):
    first, second = similarity(first_seed, first_scale), similarity(second_seed, second_scale)
    points = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    both = second.compose(first)
    assert torch.allclose(both.apply(points), second.apply(first.apply(points)), rtol=1e-9, atol=1e-9)
    assert torch.allclose(both.inverse().apply(both.apply(points)), points, atol=1e-7)


def test_directions_keep_their_length_and_dtype():
    directions = torch.nn.functional.normalize(torch.randn(5, 3), dim=-1)
    turned = similarity(1, 50.0).apply_directions(directions)
    assert turned.dtype == torch.float32
    assert torch.allclose(turned.norm(dim=-1), torch.ones(5))


def test_dict_survives_json_exactly():
    first = similarity(3, 0.123456789)
    second = Similarity.from_dict(json.loads(json.dumps(first.to_dict())))
    assert second.scale == first.scale
    assert torch.equal(second.rotation, first.rotation)
    assert torch.equal(second.translation, first.translation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0}, "scale of a similarity must be finite and positive; got 0"),
        ({"scale": math.nan}, "scale of a similarity must be finite and positive; got nan"),
        ({"scale": "big"}, "not a similarity"),
        ({"scale": None}, "not a similarity"),
        ({"rotation": [[2.0, 0, 0], [0, 2, 0], [0, 0, 2]]}, "rotation must be orthonormal within 0.001"),
        ({"rotation": [[1.0, 0, 0], [0, 1, 0], [0, 0, -1]]}, "determinant"),
        ({"rotation": [[1.0, 0], [0, 1]]}, r"rotation \(3, 3\)"),
        ({"rotation": [[1.0, 0, 0], [0, 1], [0, 0, 1]]}, "not a similarity"),
        ({"rotation": [[math.nan, 0, 0], [0, 1, 0], [0, 0, 1]]}, "must be finite"),
        ({"translation": [math.inf, 0, 0]}, "must be finite"),
    ],
)
def test_bad_files_are_refused(change, message):
    data = {**Similarity.identity().to_dict(), **change}
    with pytest.raises(FormatError, match=message):
        Similarity.from_dict(data)


def test_missing_keys_and_other_types_are_refused():
    with pytest.raises(FormatError, match="rotation, translation missing"):
        Similarity.from_dict({"scale": 1})
    with pytest.raises(FormatError, match="got list"):
        Similarity.from_dict([1, 2])  # type: ignore[arg-type]


def test_bad_arguments_are_config_errors():
    with pytest.raises(ConfigError, match="scale"):
        Similarity(-1.0, torch.eye(3), torch.zeros(3))
    with pytest.raises(ShapeError, match=r"got \(4, 4\)"):
        Similarity(1.0, torch.eye(4), torch.zeros(3))
