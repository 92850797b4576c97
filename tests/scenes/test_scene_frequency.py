"""FreSh for radiance fields: fine photos want fine fields, one seed makes one choice, and a run keeps what it chose."""

from __future__ import annotations

import dataclasses
import math
import signal
from pathlib import Path

import pytest
import torch
from helpers.tiny import SIDE, tiny_scene

from polyfield.fields import Model
from polyfield.fields.errors import ConfigError, FormatError
from polyfield.fields.formats.model_file import read_tensors, write_tensors
from polyfield.fields.ops import _cpu
from polyfield.fields.radiance import HashFieldConfig, MlpFieldConfig
from polyfield.fields.spectrum import FrequencyChoice
from polyfield.scenes import TrainOptions, train_scene
from polyfield.scenes import frequency as frequency_module
from polyfield.scenes.images import Images
from polyfield.scenes.presets import FINEST, frequency_of, hash_preset, surroundings_of, with_frequency
from polyfield.scenes.scene import Scene
from polyfield.scenes.train import PRESETS, choose, preset_for

FIELDS = [
    {"model": "mlp"},
    {"model": "mlp", "network": "siren"},
    {"model": "mlp", "network": "finer"},
    {"model": "cam", "network": "fourier"},
    {"model": "hash"},
    {"model": "rbf"},
]


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """Networks of a size at which spectra are those of the large ones, and training takes a second."""
    for name in ("mlp", "cam"):
        before = PRESETS[name]

        def preset(scene, before=before):
            whole = before(scene)
            field = dataclasses.replace(whole.field, density_width=64, density_layers=3, density_skip=None)
            return dataclasses.replace(whole, field=field, resolution=32)

        monkeypatch.setitem(PRESETS, name, preset)


def painted(cycles: float | None) -> Scene:
    """The tiny scene with other photos: waves of that many cycles, or noise; opaque."""
    scene = tiny_scene()
    if cycles is None:
        frame = torch.randint(0, 256, (SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    else:
        wave = torch.sin(2 * math.pi * cycles * torch.arange(SIDE) / SIDE)
        frame = ((wave[:, None] + wave[None, :])[..., None].expand(-1, -1, 3) * 60 + 128).to(torch.uint8)
    return dataclasses.replace(scene, images=Images.from_frames([frame] * 12))


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: "-".join(field.values()))
def test_smooth_photos_get_a_lower_frequency_than_fine_ones(field):
    options = TrainOptions(**field, frequency="auto")
    smooth, fine = choose(painted(1), options), choose(painted(None), options)
    assert smooth.chosen is not None
    assert fine.chosen is not None
    assert smooth.chosen < fine.chosen
    assert min(smooth.distances) == smooth.distances[smooth.candidates.index(smooth.chosen)]


def test_one_seed_makes_one_choice_whatever_the_options_of_training_are():
    scene, options = tiny_scene(), TrainOptions(model="mlp", seed=3)
    first = choose(scene, dataclasses.replace(options, precision="fp32"))
    again = choose(scene, dataclasses.replace(options, precision="bf16", max_steps=7))
    assert first._replace(seconds=0) == again._replace(seconds=0)
    assert choose(scene, dataclasses.replace(options, seed=4)).distances != first.distances


def test_the_planes_of_cam_make_no_difference_to_an_untrained_field(monkeypatch):
    """Which is why FreSh does not choose their size."""
    options = TrainOptions(model="cam", network="fourier")
    few = choose(tiny_scene(), options)
    before = PRESETS["cam"]

    def fine(scene):
        return dataclasses.replace(
            before(scene), field=dataclasses.replace(before(scene).field, modulation=200, density_width=64)
        )

    monkeypatch.setitem(PRESETS, "cam", fine)
    assert choose(tiny_scene(), options).distances == pytest.approx(few.distances, abs=1e-4)


def test_samples_lie_as_far_as_the_centre_and_photos_on_their_background():
    scene = tiny_scene()
    positions, directions = frequency_module._view(scene, 2, 2, 3.0)
    assert positions.shape == directions.shape == ((SIDE // 2) ** 2, 3)
    torch.testing.assert_close((positions - scene.cameras.centres()[2]).norm(dim=1), torch.full((len(positions),), 3.0))
    middle = positions.reshape(SIDE // 2, SIDE // 2, 3)[5:7, 5:7].mean((0, 1))
    assert middle.norm() < 0.02
    assert directions.unique(dim=0).shape == (1, 3)
    photo = frequency_module._photo(scene, 2, 2)
    assert photo.shape == (SIDE // 2, SIDE // 2, 3)
    torch.testing.assert_close(photo[0, 0], torch.ones(3))  # transparent, on white


def test_large_photos_are_made_small(monkeypatch):
    sizes = []
    whole = frequency_module._photo

    def photo(scene, frame, factor):
        sizes.append(tuple(whole(scene, frame, factor).shape))
        return whole(scene, frame, factor)

    monkeypatch.setattr(frequency_module, "SIDE", 10)
    monkeypatch.setattr(frequency_module, "_photo", photo)
    choose(tiny_scene(), TrainOptions(model="mlp"))
    assert sizes == [(8, 8, 3)] * 3


def test_a_number_is_set_and_whole_where_the_setting_is():
    def field(frequency, **options):
        return preset_for(surroundings_of(tiny_scene()), TrainOptions(frequency=frequency, **options)).field

    for network, name in (("siren", "first_omega"), ("finer", "first_bias"), ("wire", "scale"), ("fourier", "sigma")):
        assert getattr(field("7.5", model="mlp", network=network), name) == 7.5
    octaves = field("6", model="mlp")
    assert octaves == dataclasses.replace(field("default", model="mlp"), octaves=6)
    assert type(octaves.octaves) is int  # type: ignore[union-attr]
    hashed = field("100", model="hash")
    assert isinstance(hashed, HashFieldConfig)
    assert hashed.grid.finest_resolution == 100


def test_cells_of_a_hash_grid_are_counted_across_the_unit_box():
    preset = hash_preset(surroundings_of(dataclasses.replace(tiny_scene(), kind="unbounded")))
    assert preset.field.extent > 1  # type: ignore[union-attr]
    assert with_frequency(preset, 2048) == preset
    assert frequency_of(preset.field) == FINEST


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": "grid", "frequency": "auto"}, "--frequency is for the models mlp, cam, hash and rbf; grid has none"),
        ({"model": "planes", "frequency": "3"}, "--frequency is for the models mlp, cam, hash and rbf; planes has"),
        ({"model": "mlp", "network": "gauss", "frequency": "auto"}, "auto cannot choose for --network gauss"),
        ({"model": "hash", "frequency": "loud"}, "--frequency must be auto, default or a number; got 'loud'"),
        ({"model": "hash", "frequency": "-3"}, "--frequency must be 0 to 1000000; got -3"),
        ({"model": "hash", "frequency": "7"}, "resolutions must satisfy"),
        ({"model": "mlp", "frequency": "33"}, "octaves must be 1 to 32; got 33"),
        ({"model": "mlp", "network": "siren", "frequency": "0"}, "first_omega must be positive; got 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, text):
    with pytest.raises(ConfigError, match=text) as error:
        preset_for(surroundings_of(tiny_scene()), TrainOptions(**options))
    assert "\n" not in str(error.value)


needs_library = pytest.mark.skipif(_cpu.level() == "reference", reason="training by the torch references is slow")
FAST = {"model": "mlp", "network": "fourier", "samples": 1024, "precision": "fp32", "checkpoint_every": 2}


def train(folder: Path, stop_at: int | None = None, **more):
    def report(progress) -> None:
        if stop_at is not None and progress.step >= stop_at:
            signal.raise_signal(signal.SIGINT)

    options = TrainOptions(**FAST, frequency=more.pop("frequency", "auto"), max_steps=4)
    return train_scene(tiny_scene(), options, run=folder, report=report, **more)


@needs_library
def test_a_run_folder_records_the_choice_and_a_resumed_run_keeps_it(tmp_path, monkeypatch):
    given = FrequencyChoice(2.0, (1.0, 2.0), (math.inf, 0.5), 0.1)  # not what would be chosen
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop_at=1, choice=given)
    header = read_tensors(tmp_path / "checkpoint.safetensors", kind="checkpoint")[0]
    assert FrequencyChoice.from_dict(header["frequency"]) == given
    monkeypatch.setattr("polyfield.scenes.train.choose_view_frequency", lambda *_, **__: pytest.fail("chosen again"))
    result = train(tmp_path, resume=True)
    assert (result.steps, result.choice) == (4, given)
    assert result.settings["preset"]["field"]["sigma"] == 2.0
    config = Model.load(tmp_path / "model.safetensors").representation.config
    assert isinstance(config, MlpFieldConfig)
    assert config.sigma == 2.0
    with pytest.raises(ConfigError, match=r"other settings \(frequency\)"):
        train(tmp_path, resume=True, frequency="2")


@needs_library
def test_a_run_chooses_for_itself_where_nothing_is_given(tmp_path):
    result = train(tmp_path)
    assert result.choice is not None
    assert result.settings["preset"]["field"]["sigma"] == result.choice.chosen
    assert train(tmp_path / "other", frequency="default").choice is None


@needs_library
@pytest.mark.parametrize("value", [3, {"chosen": 2}, {"chosen": 9, "candidates": [1], "distances": [1], "seconds": 0}])
def test_a_checkpoint_with_another_choice_is_refused(tmp_path, value):
    train(tmp_path, frequency="default")
    path = tmp_path / "checkpoint.safetensors"
    header, tensors = read_tensors(path, kind="checkpoint")
    kept = {k: v for k, v in header.items() if k not in ("format", "version")}
    write_tensors(path, {**kept, "frequency": value}, tensors)
    with pytest.raises(FormatError, match=r"header is not a checkpoint's: .* is no choice of a frequency"):
        train(tmp_path, resume=True, frequency="default")
