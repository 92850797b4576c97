"""How large a field is made: within its limit, as quick as wished, the largest such, and the same when resumed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import signal
from pathlib import Path

import pytest
import torch
from helpers.ball_model import ball_model
from helpers.small_presets import shrink_presets

from polyfield.fields import FIELDS, ConfigError, FormatError, Model, OccupancyGrid
from polyfield.fields.convert import Teacher, orbit_cameras
from polyfield.fields.formats.model_file import read_tensors, write_tensors
from polyfield.fields.ops import _cpu
from polyfield.fields.radiance import MlpFieldConfig
from polyfield.fields.render import render
from polyfield.scenes import capacity
from polyfield.scenes.capacity import Candidates, Pace, Wish, bytes_of, choose_capacity, shown_bytes
from polyfield.scenes.convert import ConvertOptions, convert, convert_model
from polyfield.scenes.presets import LADDERS, PRESETS, Preset, Surroundings, rungs, with_settings
from polyfield.scenes.presets.capacity import differing, fully_grown, held_box, resolution_within
from polyfield.scenes.run_state import CHECKPOINT

pytestmark = pytest.mark.skipif(_cpu.level() == "reference", reason="converting by the torch references takes minutes")
OBJECT = Surroundings("object", 1)
FAST = {"samples": 2048, "precision": "fp32", "device": "cpu", "evaluate_every": 50}
MIDDLING = {"hash": 40, "rbf": 40, "tensor": 40, "planes": 30, "grid": 60, "mlp": 30, "cam": 30}
"""KB that some rungs of the small presets fit in and some do not."""

NAME = "ball " * 80
"""So long that the least file of an rbf is one whose quarter would hold finer occupancy than it has room for."""


def candidates(kind: str, preset: Preset | None = None, teacher: Model | None = None) -> Candidates:
    model = teacher or ball_model()

    def as_model(field, grid: OccupancyGrid, preset: Preset, steps: int) -> Model:
        return Model(field, grid, preset.march, model.to_dataset, "white", {"steps": steps, "scene": NAME})

    cameras = orbit_cameras(model.occupancy.occupied_box(), 3, size=48)
    return Candidates(kind, preset or PRESETS[kind](OBJECT), Teacher(model), cameras, as_model, seed=0)


def run(to: str, steps: int, **changes):
    where = {k: changes.pop(k) for k in ("run", "resume", "report", "chosen") if k in changes}
    return convert_model(ball_model(), ConvertOptions(**{"to": to, "max_steps": steps, **FAST, **changes}), **where)


def parameters(field) -> int:
    return sum(p.numel() for p in field.parameters())


# -- ladders -----------------------------------------------------------------------------------------------------------


def test_every_kind_has_a_ladder_that_begins_with_its_preset():
    assert LADDERS.keys() == PRESETS.keys()
    for kind, preset in PRESETS.items():
        for around in (OBJECT, Surroundings("unbounded", 4)):
            for largest in (preset(around), preset(around).with_colors_of(MlpFieldConfig())):
                assert rungs(kind, largest)[0] == largest
                assert len(rungs(kind, largest)) > 5


@pytest.mark.parametrize("kind", [kind for kind in FIELDS if kind != "grid"])
def test_every_rung_is_smaller_than_the_last(kind):
    """Of grids the scene says how large they are."""
    preset = PRESETS[kind](OBJECT)
    sizes = [parameters(FIELDS[kind][0](fully_grown(rung).field)) for rung in rungs(kind, preset)]
    assert all(0.3 * a < b < a for a, b in itertools.pairwise(sizes))
    assert sizes[-1] < 10_000


@pytest.mark.parametrize("kind", FIELDS)
def test_no_rung_is_larger_than_a_small_preset(monkeypatch, kind):
    shrink_presets(monkeypatch)
    preset = PRESETS[kind](OBJECT)
    largest, *others = rungs(kind, preset)
    assert differing(preset, largest).keys() <= {"first_voxels"}
    assert len(others) >= 2


@pytest.mark.parametrize("kind", FIELDS)
def test_what_differs_makes_the_rung_again_out_of_json(kind):
    preset = PRESETS[kind](Surroundings("object", 1))
    for rung in rungs(kind, with_settings(preset, {"resolution": 16})):
        after = held_box(rung, [[-0.5, -0.25, -1.0], [0.5, 1.0, 0.75]])
        assert with_settings(preset, json.loads(json.dumps(differing(preset, after)))) == after


def test_finest_cells_are_counted_in_the_unit_box():
    wide = rungs("hash", PRESETS["hash"](Surroundings("unbounded", 4)))
    assert [r.field.grid.finest_resolution for r in wide[:1]] == [2048 * 8]  # pyright: ignore
    assert wide[-1].field.grid.finest_resolution == 32 * 8  # pyright: ignore


def test_occupancy_takes_a_quarter_of_the_limit_at_most():
    preset = PRESETS["hash"](OBJECT)
    for limit, expected in ((10**7, 128), (2**20, 128), (2**20 - 1, 64), (10**5, 32), (10, 16)):
        assert resolution_within(preset, limit) == expected


def test_what_is_folded_in_keeps_its_box():
    preset = PRESETS["planes"](Surroundings("unbounded", 4))
    assert held_box(preset, [[-0.5] * 3, [0.5] * 3]) == preset


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FIELDS)
def test_the_file_is_within_its_limit_and_as_long_as_was_said(tmp_path, monkeypatch, kind):
    shrink_presets(monkeypatch)
    limit = MIDDLING[kind] * 1000
    result = run(kind, 12, size_limit=f"{MIDDLING[kind]}KB")
    result.model.save(tmp_path / "a.safetensors")
    size = (tmp_path / "a.safetensors").stat().st_size
    assert result.capacity is not None
    assert result.capacity.settings  # the whole preset would not fit
    assert size <= result.capacity.most_bytes <= limit
    assert result.capacity.most_bytes - size < 32  # digits of the number of steps, and filling up to whole words
    assert size > 0.4 * limit
    assert Model.load(tmp_path / "a.safetensors").kind == kind


@pytest.mark.parametrize("kind", ["hash", "planes", "grid", "rbf"])
def test_a_limit_below_the_least_says_the_least(monkeypatch, kind):
    shrink_presets(monkeypatch)
    with pytest.raises(
        ConfigError, match=f"a {kind} model of this scene takes at least [0-9]+ bytes; got .* 100: "
    ) as e:
        choose_capacity(candidates(kind), Wish(most_bytes=100))
    least = int(str(e.value).split("at least ")[1].split()[0])
    assert choose_capacity(candidates(kind), Wish(most_bytes=least)).most_bytes == least
    with pytest.raises(ConfigError, match=f"at least {least} bytes"):
        choose_capacity(candidates(kind), Wish(most_bytes=least - 1))


def test_a_high_limit_leaves_the_preset(monkeypatch):
    shrink_presets(monkeypatch)
    found = choose_capacity(candidates("hash"), Wish(most_bytes=10**7))
    assert found.settings == {}
    assert found.text("hash").startswith("hash with its usual settings: at most ")


def test_sizes_are_read_as_people_write_them():
    for text, count in (
        ("1MB", 10**6),
        ("600KB", 600_000),
        ("0.6MiB", 629_145),
        ("500000", 500_000),
        (" 2 kb ", 2000),
        ("1gib", 2**30),
        ("7B", 7),
    ):
        assert bytes_of(text) == count
    for text in ("", "MB", "1TB", "-1MB", "1e6", "1,5MB", "nan", "1M", "9" * 20):
        with pytest.raises(ConfigError, match=r"--size-limit must be a size such as 1MB, 600KB, 0\.6MiB or 500000"):
            ConvertOptions(size_limit=text)


def test_sizes_are_told_rounded_up():
    assert [shown_bytes(n) for n in (1, 12_345, 100_001, 930_001)] == ["0.1 KB", "12.4 KB", "0.11 MB", "0.94 MB"]


# -- speed -------------------------------------------------------------------------------------------------------------


def test_the_teacher_itself_when_replayed_makes_its_own_picture(monkeypatch):
    """So what is timed is the work at the samples of a field that looks like the teacher."""
    shrink_presets(monkeypatch)
    monkeypatch.setitem(capacity.PIXELS, "cpu", 500)
    model = ball_model()
    pace = Pace(Teacher(model), orbit_cameras(model.occupancy.occupied_box(), 3, size=48), PRESETS["grid"](OBJECT))
    assert pace.size == (48, 48)
    assert pace.share == (16 / 48) ** 2
    assert int(pace.camera.width[0]) == 16
    replayed = capacity._Replayed(model.representation, "exp", pace.recorded)
    mine, theirs = (
        render(dataclasses.replace(pace.model, representation=r), pace.camera) for r in (replayed, model.representation)
    )
    assert mine.alpha.max() > 0.99
    torch.testing.assert_close(mine.rgb, theirs.rgb)


def test_cells_that_have_emptied_are_not_marched_when_timed(monkeypatch):
    shrink_presets(monkeypatch)
    model = ball_model()
    true = model.occupancy.occupied_fraction()
    model.occupancy.take_flags(torch.ones_like(model.occupancy.flags()))
    pace = Pace(Teacher(model), orbit_cameras(torch.tensor([[-1.0] * 3, [1.0] * 3]), 3), PRESETS["grid"](OBJECT))
    assert pace.model.occupancy.occupied_fraction() == pytest.approx(true, rel=0.2)


def test_pictures_a_second_are_those_of_whole_pictures(monkeypatch):
    shrink_presets(monkeypatch)
    monkeypatch.setitem(capacity.PIXELS, "cpu", 500)
    model = ball_model()
    pace = Pace(Teacher(model), orbit_cameras(model.occupancy.occupied_box(), 3, size=48), PRESETS["grid"](OBJECT))
    times = iter([0.0, 0.5, 1.0, 1.25, 2.0, 2.4])
    monkeypatch.setattr(pace, "_now", lambda: next(times))
    assert pace.fps(model.representation) == pytest.approx((16 / 48) ** 2 / 0.25)


def paced(monkeypatch, per_parameter: float = 1e-6) -> None:
    """Let a picture take so many seconds per parameter."""
    monkeypatch.setattr(Pace, "fps", lambda self, field: 1 / (per_parameter * parameters(field)))


def test_the_largest_that_is_quick_enough_is_taken(monkeypatch):
    shrink_presets(monkeypatch)
    paced(monkeypatch)
    fields = [FIELDS["hash"][0](rung.field) for rung in rungs("hash", PRESETS["hash"](OBJECT))]
    for field in fields:
        exactly = choose_capacity(candidates("hash"), Wish(least_fps=0.999e6 / parameters(field)))
        made = FIELDS["hash"][0](with_settings(PRESETS["hash"](OBJECT), exactly.settings).field)
        assert parameters(made) == parameters(field)
        assert exactly.picture == (48, 48)
        assert "frames a second of 48x48 pixels" in exactly.text("hash")


def test_both_wishes_are_met_by_the_smaller_of_both_answers(monkeypatch):
    shrink_presets(monkeypatch)
    paced(monkeypatch)
    small, quick = Wish(most_bytes=40_000), Wish(least_fps=1e6 / 4000)
    alone = [choose_capacity(candidates("hash"), wish) for wish in (small, quick)]
    both = choose_capacity(candidates("hash"), Wish(most_bytes=40_000, least_fps=1e6 / 4000))
    assert alone[0].most_bytes <= 40_000 < 10**6
    assert both.most_bytes <= min(a.most_bytes for a in alone)
    assert both.fps is not None
    assert both.fps >= 1e6 / 4000


def test_where_few_samples_are_needed_a_finer_occupancy_grid_is_tried(monkeypatch):
    """Its bits then take more than their share of the limit, and the field is smaller."""
    shrink_presets(monkeypatch)
    monkeypatch.setattr(Pace, "fps", lambda self, field: 1.0 if self.model.occupancy.resolution < 64 else 10.0)
    preset = with_settings(PRESETS["hash"](OBJECT), {"resolution": 64})
    slow, quick = (choose_capacity(candidates("hash", preset), Wish(most_bytes=80_000, least_fps=n)) for n in (1, 5))
    assert slow.settings["resolution"] == 32
    assert "resolution" not in quick.settings
    assert max(slow.most_bytes, quick.most_bytes) <= 80_000
    with pytest.raises(ConfigError, match="makes about 10 frames a second"):
        choose_capacity(candidates("hash", preset), Wish(most_bytes=80_000, least_fps=20))


def test_what_is_too_quick_says_what_is_possible(monkeypatch):
    shrink_presets(monkeypatch)
    text = r"the fastest hash makes about [0-9.e+]+ frames a second of 48x48 pixels on the CPU, .*--fps-target 1e\+09"
    with pytest.raises(ConfigError, match=text):
        choose_capacity(candidates("hash"), Wish(least_fps=1e9))
    with pytest.raises(ConfigError, match=r"the fastest hash within 40\.0 KB makes"):
        choose_capacity(candidates("hash"), Wish(most_bytes=40_000, least_fps=1e9))
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--fps-target must be a positive number"):
            ConvertOptions(fps_target=wrong)


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_keeps_its_capacity_and_measures_nothing(tmp_path, monkeypatch):
    shrink_presets(monkeypatch)
    wishes = {"size_limit": "40KB", "fps_target": 0.01}
    whole = run("tensor", 30, **wishes, run=tmp_path / "whole")

    def stop(progress) -> None:
        if progress.step == 20:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run("tensor", 30, **wishes, run=tmp_path / "cut", report=stop)

    def refuse(*_) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("polyfield.scenes.convert.choose_capacity", refuse)
    told = []
    with pytest.raises(AssertionError, match="measured again"):
        run("tensor", 30, **wishes)
    resumed = run("tensor", 30, **wishes, run=tmp_path / "cut", resume=True, chosen=told.append)
    assert whole.capacity is not None
    assert told == [resumed.capacity]
    assert resumed.capacity is not None
    assert resumed.capacity.settings == json.loads(json.dumps(whole.capacity.settings))
    a, b = (r.model.representation.state_dict() for r in (whole, resumed))
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(ConfigError, match=r"other settings .*to"):
        run("hash", 40, **wishes, run=tmp_path / "cut", resume=True)
    with pytest.raises(ConfigError, match=r"other settings \(size_limit\)"):
        run("tensor", 40, **{**wishes, "size_limit": "50KB"}, run=tmp_path / "cut", resume=True)


def test_a_damaged_choice_in_a_checkpoint_is_refused(tmp_path, monkeypatch):
    shrink_presets(monkeypatch)
    run("hash", 2, size_limit="40KB", run=tmp_path)
    header, tensors = read_tensors(tmp_path / CHECKPOINT, kind="checkpoint")
    whole = header["capacity"]
    for damage in (
        {},
        [],
        {**whole, "settings": 3},
        {**whole, "picture": [1]},
        {**whole, "settings": {"levels": "a"}},
        {**whole, "settings": {"colour": 2}},
        {**whole, "settings": {"levels": 99}},
    ):
        header = {k: v for k, v in header.items() if k not in ("format", "version")} | {"capacity": damage}
        write_tensors(tmp_path / CHECKPOINT, header, tensors)
        with pytest.raises(FormatError, match="header is not a checkpoint's"):
            run("hash", 4, size_limit="40KB", run=tmp_path, resume=True)


def test_in_python_a_limit_is_bytes_or_a_text(tmp_path: Path, monkeypatch):
    shrink_presets(monkeypatch)
    for limit in (40_000, "40KB"):
        convert(ball_model(), "hash", max_steps=1, size_limit=limit).save(tmp_path / "a.safetensors")
        assert 20_000 < (tmp_path / "a.safetensors").stat().st_size <= 40_000
    with pytest.raises(ConfigError, match="at least"):
        convert(ball_model(), "hash", max_steps=1, size_limit=100)
    with pytest.raises(ConfigError, match="the fastest hash"):
        convert(ball_model(), "hash", max_steps=1, fps_target=1e9)
