"""The model file: what was saved comes back, and what is not a model is refused in one line."""

from __future__ import annotations

import pytest
import torch

from polyfield.fields import HashField, HashFieldConfig, MarchConfig, Model, OccupancyGrid, Similarity
from polyfield.fields.errors import ConfigError, FormatError
from polyfield.fields.formats.model_file import read_tensors, write_tensors
from polyfield.fields.formats.restore import config_from_dict
from polyfield.fields.ops.hash_encode import HashGridSpec
from polyfield.fields.radiance import FIELDS


def make_model() -> Model:
    grid = HashGridSpec(levels=3, base_resolution=4, finest_resolution=16, log2_table_size=8)
    field = HashField(HashFieldConfig(grid=grid, extent=2.0), seed=5)
    occupancy = OccupancyGrid(cascades=2, resolution=16)
    occupancy.grid.uniform_(-0.3, 0.03, generator=torch.Generator().manual_seed(6))
    occupancy.grid[0, :8, :8, :8] = 0  # a block of nothing
    occupancy.refresh_bits()
    return Model(field, occupancy, MarchConfig(cone_angle=0.01), Similarity.identity())


def test_a_saved_model_comes_back_whole(tmp_path):
    model = make_model()
    model.provenance["scene"] = "toy"
    model.save(tmp_path / "m.safetensors")
    loaded = Model.load(tmp_path / "m.safetensors")
    assert loaded.representation.config == model.representation.config
    assert (loaded.march, loaded.background, loaded.provenance) == (model.march, "white", {"scene": "toy"})
    x = torch.rand(20, 3) * 4 - 2
    torch.testing.assert_close(loaded.representation.geometry(x), model.representation.geometry(x), rtol=0, atol=0)
    assert 0 < model.occupancy.occupied_fraction() < 1
    assert torch.equal(loaded.occupancy.bits, model.occupancy.bits)
    assert model.occupancy.coarse.any()
    assert torch.equal(loaded.occupancy.coarse, model.occupancy.coarse)
    occupied = loaded.occupancy.grid > 0
    assert float(occupied.float().mean()) == model.occupancy.occupied_fraction()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda h, t: h.update(representation="rocks"), "holds a 'rocks' model; this version knows hash"),
        (lambda h, t: h.update(representation=["hash"]), r"holds a \['hash'\] model"),
        (lambda h, t: h["config"].update(levels=3), "has no setting 'levels'"),
        (lambda h, t: h["config"]["grid"].update(levels="many"), "levels must be int"),
        (lambda h, t: h.pop("march"), "header is not a Polyfield model's"),
        (lambda h, t: t.pop("representation.encoding.table"), "encoding.table is missing"),
        (lambda h, t: t.update({"representation.encoding.table": torch.zeros(3, 2)}), "encoding.table must be"),
        (lambda h, t: t.pop("occupancy.bits"), r"bits must be \(2, 512\) uint8; got \(0,\)"),
        (lambda h, t: t.update({"occupancy.bits": torch.zeros(2, 512)}), "uint8; got .* torch.float32"),
        (lambda h, t: t.update({"representation.extra": torch.zeros(1)}), "unknown tensors representation.extra"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, change, text):
    path = tmp_path / "m.safetensors"
    make_model().save(path)
    header, tensors = read_tensors(path, kind="model")
    header = {key: value for key, value in header.items() if key not in ("format", "version")}
    change(header, tensors)
    write_tensors(path, header, tensors)
    with pytest.raises(FormatError, match=text) as caught:
        Model.load(path)
    assert "\n" not in str(caught.value)


def test_configs_are_rebuilt_from_json_with_their_types():
    march = config_from_dict(MarchConfig, {"step_size": 1, "waves": [4, 8]})
    assert march == MarchConfig(step_size=1.0, waves=(4, 8))
    with pytest.raises(ConfigError, match="must be an object"):
        config_from_dict(MarchConfig, [1])


@pytest.mark.parametrize("kind", ["mlp", "cam"])
def test_a_network_in_8_bits_is_small_and_comes_back_as_it_was_trained(tmp_path, kind):
    cls, config = FIELDS[kind]
    field = cls(config(bits=8), seed=5)  # type: ignore[call-arg]
    model = Model(field, OccupancyGrid(resolution=64), MarchConfig(), Similarity.identity())
    model.save(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < 0.6 * 2**20
    loaded = Model.load(tmp_path / "m.safetensors").representation
    x = torch.rand(20, 3) * 2 - 1
    torch.testing.assert_close(loaded.geometry(x), field.geometry(x), rtol=1e-5, atol=1e-5)
