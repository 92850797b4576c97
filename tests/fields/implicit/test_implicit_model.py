"""A fitted field comes back from its file whole, answers at any size, and what is no such file is refused."""

import dataclasses
import json

import pytest
import torch

from polyfield.fields.errors import ConfigError, FormatError, ShapeError
from polyfield.fields.formats.model_file import read_tensors, write_tensors
from polyfield.fields.geometry import make_icosphere
from polyfield.fields.implicit import KINDS, GridSignal, ImplicitModel, build, config_for, make_mesh_signal
from polyfield.fields.implicit.grid import GridNetworkConfig
from polyfield.fields.ops.factored_encode import FactoredGridSpec

IMAGE = GridSignal("image", torch.rand(6, 9, 3))
VOLUME = GridSignal("volume", torch.rand(4, 6, 5, 2))
SURFACE = make_mesh_signal(make_icosphere(1), points=50)


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_holds_a_surface(kind, tmp_path):
    network = build(kind, config_for(kind, SURFACE), seed=3)
    cube = (*SURFACE.corner, SURFACE.side)
    ImplicitModel(kind, network, "surface", (8, 8, 8), cube=cube, target="udf").save(tmp_path / "m.safetensors")
    loaded = ImplicitModel.load(tmp_path / "m.safetensors")
    assert loaded.target == "udf"
    assert loaded.cube == pytest.approx(cube)
    assert loaded.sample().shape == (8, 8, 8, 1)
    assert network.config.outputs == 1
    assert getattr(network.config, "output", "none") == "none"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("signal", [IMAGE, VOLUME], ids=["image", "volume"])
def test_every_family_comes_back_from_its_file(kind, signal, tmp_path):
    network = build(kind, config_for(kind, signal), seed=3)
    model = ImplicitModel(kind, network, signal.kind, signal.size, -1.0, 2.0, provenance={"input": "toy"})
    model.save(tmp_path / "m.safetensors")
    loaded = ImplicitModel.load(tmp_path / "m.safetensors")
    assert torch.equal(loaded.sample(), model.sample())
    assert loaded.sample().shape == signal.values.shape
    assert (loaded.kind, loaded.size, loaded.low, loaded.high) == (kind, signal.size, -1.0, 2.0)
    assert loaded.provenance == {"input": "toy"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_answers_for_no_points_and_for_points_outside(kind):
    network = build(kind, config_for(kind, IMAGE))
    assert network(torch.zeros(0, 2)).shape == (0, 3)
    assert network(torch.tensor([[-5.0, 9.0]])).isfinite().all()
    with pytest.raises(ShapeError, match=r"x must be \(N, 2\); got \(1, 3\)"):
        network(torch.zeros(1, 3))


def test_sampling_is_the_network_at_the_centres_whatever_the_block():
    model = ImplicitModel("siren", build("siren", config_for("siren", IMAGE)), "image", IMAGE.size)
    whole = model.sample((5, 4))
    torch.testing.assert_close(model.sample((5, 4), block=3), whole)
    done = []
    model.sample((5, 4), block=8, report=lambda *count: done.append(count))
    assert done == [(8, 20), (16, 20), (20, 20)]
    at = torch.tensor([[3.5 / 5, 1.5 / 4]])
    torch.testing.assert_close(whole[1, 3], model.network(at)[0].detach())
    with pytest.raises(ConfigError, match=r"2 positive numbers of cells, at most 17179869184 in all; got \(0, 4\)"):
        model.sample((0, 4))


def terms_of(config):
    assert isinstance(config.spec, FactoredGridSpec)
    return config.spec.terms


def test_lines_are_a_product_and_planes_a_row_of_levels():
    lines = GridNetworkConfig(layout="lines", channels=4, finest_resolution=32, base_resolution=16)
    assert [t.factors for t in terms_of(lines)] == [("x", "y")]
    planes = GridNetworkConfig(levels=3, base_resolution=8, finest_resolution=32, aspect=(1.0, 0.5))
    assert [t.resolution for t in terms_of(planes)] == [(8, 4, 2), (16, 8, 2), (32, 16, 2)]
    cube = GridNetworkConfig(inputs=3, levels=1, base_resolution=8, finest_resolution=8)
    assert [t.factors for t in terms_of(cube)] == [("xy", "xz", "yz")]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"inputs": 1}, "inputs must be 2 or 3; got 1"),
        ({"units": 0}, "units must be 1 to 1024; got 0"),
        ({"levels": 0}, "levels must be 1 to 16; got 0"),
        ({"base_resolution": 64, "finest_resolution": 32}, "got 64 and 32"),
        ({"aspect": (1.0, 2.0)}, "aspect must be 2 lengths"),
    ],
)
def test_settings_out_of_range_are_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        GridNetworkConfig(**change)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"field": "magic"}, "holds a 'magic' field; this version knows siren"),
        ({"field": ["siren"]}, "holds a"),
        ({"signal": "smell"}, "signal and size must be"),
        ({"size": [9]}, "signal and size must be"),
        ({"size": [9, 1 << 60]}, "signal and size must be"),
        ({"size": [9, True]}, "signal and size must be"),
        ({"signal": "volume", "size": [9, 6, 2]}, "2 inputs and 3 outputs are not those"),
        ({"cube": "big"}, "header is not an implicit field's"),
        ({"cube": [1, 2, 3]}, "header is not an implicit field's"),
        ({"low": "x"}, "header is not an implicit field's"),
        ({"high": 10**400}, "header is not an implicit field's"),
        ({"config": {"width": "wide"}}, "width must be int; got 'wide'"),
        ({"config": {"width": 10**9}}, "width must be 1 to 4096"),
        ({"config": {"novel": 1}}, "has no setting 'novel'"),
        ({"provenance": 3}, "header is not an implicit field's"),
        ({"target": "sign"}, "target must be sdf, udf, occupancy; got 'sign'"),
        ({"target": ["sdf"]}, "target must be"),
    ],
)
def test_hostile_headers_are_refused_in_one_line(change, text, tmp_path):
    path = tmp_path / "m.safetensors"
    ImplicitModel("siren", build("siren", config_for("siren", IMAGE)), "image", IMAGE.size).save(path)
    header, tensors = read_tensors(path, kind="implicit")
    header = {k: v for k, v in header.items() if k not in ("format", "version")}
    write_tensors(path, {**header, **change}, tensors)
    with pytest.raises(FormatError, match=text) as caught:
        ImplicitModel.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_tensors_of_another_shape_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    network = build("siren", config_for("siren", IMAGE))
    ImplicitModel("siren", network, "image", IMAGE.size).save(path)
    header, tensors = read_tensors(path, kind="implicit")
    header = {k: v for k, v in header.items() if k not in ("format", "version")}
    write_tensors(path, header, {**tensors, "head.bias": torch.zeros(4)})
    with pytest.raises(FormatError, match=r"head.bias must be \(3,\)"):
        ImplicitModel.load(path)


def test_settings_survive_json():
    for kind in KINDS:
        config = config_for(kind, IMAGE)
        assert json.loads(json.dumps(dataclasses.asdict(config)))
