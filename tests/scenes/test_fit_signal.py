"""A fit that is interrupted and resumed is the fit that was not; the frequency is chosen once and kept."""

import dataclasses
import math

import pytest
import torch

from polyfield.fields.errors import ConfigError, FormatError, NativeError
from polyfield.fields.formats.model_file import read_tensors, write_tensors
from polyfield.fields.implicit import KINDS, GridSignal, ImplicitModel
from polyfield.fields.optim.fit import FitQuality
from polyfield.scenes.fit import FitOptions, checkpoint_path, choose, fit_signal
from polyfield.scenes.signals import Input


def source(height: int = 12, width: int = 16) -> Input:
    generator = torch.Generator().manual_seed(0)
    return Input(GridSignal("image", torch.rand(height, width, 3, generator=generator)), 0.0, 1.0, None)


@pytest.fixture
def interrupt(monkeypatch):
    """A function that lets the next fit be interrupted at a step."""

    def at(step: int) -> None:
        from polyfield.fields.optim.fit import FitTask

        whole = FitTask.step

        def stopped(self, index, scale):
            if index == step:
                monkeypatch.setattr(FitTask, "step", whole)
                raise KeyboardInterrupt
            return whole(self, index, scale)

        monkeypatch.setattr(FitTask, "step", stopped)

    return at


@pytest.mark.parametrize(
    ("field", "frequency"), [("planes", "auto"), ("fourier", "3"), ("cam", "default"), ("neurbf", "auto")]
)
def test_a_resumed_fit_equals_one_that_was_not_interrupted(field, frequency, tmp_path, interrupt):
    options = FitOptions(field=field, frequency=frequency, max_steps=12, batch=50)
    fit_signal(source(), options, out=tmp_path / "whole.safetensors")
    interrupt(7)
    out = tmp_path / "parts.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit_signal(source(), options, out=out)
    assert not out.exists()
    assert checkpoint_path(out).exists()
    fit_signal(source(), options, out=out, resume=True)
    assert not checkpoint_path(out).exists()
    whole = read_tensors(tmp_path / "whole.safetensors", kind="implicit")[1]
    parts = read_tensors(out, kind="implicit")[1]
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_the_chosen_frequency_is_used_and_kept_by_a_resumed_fit(tmp_path, interrupt, monkeypatch):
    few = dataclasses.replace(KINDS["fourier"], candidates=(2.0, 9.0))
    monkeypatch.setitem(KINDS, "fourier", few)
    options = FitOptions(field="fourier", max_steps=4)
    choice = choose(source(), options)
    assert choice.candidates == (2.0, 9.0)
    assert choice.chosen == 9.0  # noise has all frequencies
    out = tmp_path / "a.safetensors"
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        fit_signal(source(), options, out=out, choice=choice)
    result = fit_signal(source(), options, out=out, resume=True)
    assert result.choice is None
    for model in (result.model, ImplicitModel.load(out)):
        assert dataclasses.asdict(model.network.config)["sigma"] == 9.0


def test_films_and_volumes_are_compared_by_their_middle_slice():
    film = Input(GridSignal("video", torch.randint(0, 255, (5, 8, 8, 3), dtype=torch.uint8)), 0.0, 1.0, 24.0)
    assert choose(film, FitOptions(field="pe")).chosen in KINDS["pe"].candidates


def test_a_fit_says_how_well_it_learned(tmp_path):
    result = fit_signal(source(), FitOptions(max_steps=30), out=tmp_path / "a.safetensors", name="toy")
    loaded = ImplicitModel.load(tmp_path / "a.safetensors")
    assert loaded.provenance["psnr"] == result.quality.psnr
    assert (result.quality.psnr or 0) > 10
    assert loaded.provenance["input"] == "toy"
    assert result.quality.ssim is not None
    assert (result.steps, loaded.size) == (30, (16, 12))


def test_resuming_is_refused_where_it_cannot_be(tmp_path, interrupt):
    out = tmp_path / "a.safetensors"
    with pytest.raises(FormatError, match="there is nothing to resume"):
        fit_signal(source(), FitOptions(max_steps=4), out=out, resume=True)
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        fit_signal(source(), FitOptions(max_steps=4), out=out)
    with pytest.raises(ConfigError, match=r"of a fit with other settings \(seed\)"):
        fit_signal(source(), FitOptions(max_steps=4, seed=1), out=out, resume=True)
    with pytest.raises(ConfigError, match=r"of a fit with other settings \(size\)"):
        fit_signal(source(13), FitOptions(max_steps=4), out=out, resume=True)
    header, tensors = read_tensors(checkpoint_path(out), kind="checkpoint")
    header = {k: v for k, v in header.items() if k not in ("format", "version")}
    write_tensors(checkpoint_path(out), {**header, "frequency": "high"}, tensors)
    with pytest.raises(FormatError, match="frequency 'high'"):
        fit_signal(source(), FitOptions(max_steps=4), out=out, resume=True)
    write_tensors(checkpoint_path(out), {**header, "loop": 3}, tensors)
    with pytest.raises(FormatError, match="header is not a checkpoint's"):
        fit_signal(source(), FitOptions(max_steps=4), out=out, resume=True)
    write_tensors(checkpoint_path(out), header, {"x": torch.zeros(1)})
    with pytest.raises(FormatError, match="its tensors are not those of this fit"):
        fit_signal(source(), FitOptions(max_steps=4), out=out, resume=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"max_steps": 3, "max_seconds": 2.0}, "give --max-steps or --max-seconds, not both"),
        ({"batch": 0}, "--batch must be 1 to"),
        ({"lr": 0.0}, "--lr must be a positive factor"),
        ({"field": "siren", "frequency": "loud"}, "--frequency must be auto, default or a number; got 'loud'"),
        ({"field": "siren", "frequency": "-3"}, "--frequency must be 0 to 1000000; got -3"),
        ({"field": "siren", "frequency": "nan"}, "--frequency must be 0 to 1000000; got nan"),
        ({"field": "siren", "frequency": "1e39"}, "--frequency must be 0 to 1000000; got 1e39"),
        ({"lr": 1e30}, "--lr must be a positive factor of at most 1000; got 1e\\+30"),
        ({"max_seconds": float("inf")}, "max_seconds must be positive and finite; got inf"),
        ({"seed": -1}, "--seed must be 0 to 2147483647; got -1"),
        ({"field": "planes", "frequency": "3"}, "--field planes has no frequency to set"),
        ({"field": "moss"}, "--field must be one of siren"),
        ({"field": "siren", "network": "pe"}, "--network is for --field cam; siren has no such grids: leave it out"),
        ({"field": "hash", "modulated_by": "xy"}, "--modulated-by is for --field cam; hash has no such grids"),
    ],
)
def test_contradicting_options_are_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        FitOptions(**change)


def test_what_modulates_is_what_the_signal_has_and_can_be_said():
    image, film = source().signal, GridSignal("video", torch.rand(3, 4, 5, 3))
    auto = FitOptions(field="cam")
    assert [getattr(auto.config(s), "modulated_by", None) for s in (image, film)] == ["xy", "xyz"]
    assert getattr(FitOptions(field="cam", modulated_by="time").config(film), "modulated_by", None) == "time"
    assert getattr(FitOptions(field="cam", modulated_by="x").config(image), "modulated_by", None) == "x"
    with pytest.raises(ConfigError, match="--modulated-by time is for films; leave it out"):
        FitOptions(field="cam", modulated_by="time").config(GridSignal("volume", torch.rand(3, 4, 5, 1)))
    with pytest.raises(ConfigError, match="modulation by xyz needs points of at least 3 dimensions; got 2"):
        FitOptions(field="cam", modulated_by="xyz").config(image)


def test_a_picture_without_detail_keeps_the_default_frequency(tmp_path):
    flat = Input(GridSignal("image", torch.full((8, 8, 3), 0.25)), 0.0, 1.0, None)
    result = fit_signal(flat, FitOptions(field="siren", max_steps=1), out=tmp_path / "f.safetensors")
    assert result.choice is not None
    assert result.choice.chosen is None
    assert result.model.network.config == FitOptions(field="siren").config(flat.signal)


def test_a_fit_that_is_not_finite_is_ended_and_writes_nothing(tmp_path, monkeypatch):
    from polyfield.fields.optim.fit import FitTask

    skipping = FitTask.step
    monkeypatch.setattr(FitTask, "step", lambda self, *a: skipping(self, *a)._replace(finite=False))
    with pytest.raises(NativeError, match="not finite at step 200"):
        fit_signal(source(), FitOptions(field="planes", max_steps=1000), out=tmp_path / "f.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_field_whose_values_are_not_finite_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("polyfield.scenes.fit.measure_fit", lambda *_, **__: FitQuality(psnr=math.nan))
    with pytest.raises(NativeError, match="values are not finite; fit it anew with a smaller --lr"):
        fit_signal(source(), FitOptions(field="planes", max_steps=2), out=tmp_path / "f.safetensors")
    assert not (tmp_path / "f.safetensors").exists()


@pytest.mark.parametrize("network", ["fourier", "pe", "siren", "finer", "wire", "gauss"])
def test_cam_modulates_any_network_with_its_rates_and_its_frequency(network, tmp_path):
    options, plain = FitOptions(field="cam", network=network, max_steps=2), FitOptions(field=network)
    assert options.family.lr == {**plain.family.lr, "grids": 1e-2}
    assert options.family.frequency == plain.family.frequency
    image = source()
    config = options.config(image.signal)
    assert config == dataclasses.replace(plain.config(image.signal), modulation=32)  # type: ignore[arg-type]
    result = fit_signal(image, options, out=tmp_path / "f.safetensors")
    chosen = None if result.choice is None else result.choice.chosen
    assert getattr(result.model.network.config, options.family.frequency or "") == chosen
    loaded = ImplicitModel.load(tmp_path / "f.safetensors")
    assert torch.equal(loaded.sample(), result.model.sample())
