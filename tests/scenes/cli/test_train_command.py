"""`polyfield train` around a trainer that does nothing: folders, files, exit codes and texts."""

import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from helpers.fake_run import HEIGHT, WIDTH, fake_model, fake_scene

from polyfield.fields.errors import FormatError
from polyfield.fields.spectrum import FrequencyChoice
from polyfield.scenes.cli import main
from polyfield.scenes.train import TrainResult


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Fakes below the command: loading, training, rendering. `calls` records; `scene` and `fail` steer."""
    state = SimpleNamespace(scene=fake_scene(), fail=None, calls=[])

    def load_scene(path, **options):
        state.calls.append(("load", path, options))
        if isinstance(state.scene, Exception):
            raise state.scene
        return state.scene

    def train_scene(scene, options, *, run, resume=False, choice=None, report=None):
        state.calls.append(("train", options, run, resume))
        (run / "metrics.jsonl").open("a").write("{}\n")
        (run / "checkpoint.safetensors").write_bytes(b"state")
        if state.fail:
            raise state.fail
        model = fake_model()
        model.save(run / "model.safetensors")
        steps = options.max_steps or 7
        return TrainResult(model, steps, 1.5, "fp32", {"preset": {}}, run / "model.safetensors", 0, choice)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("polyfield.scenes.scene.load_scene", load_scene)
    monkeypatch.setattr("polyfield.scenes.train.train_scene", train_scene)
    grey = SimpleNamespace(rgb=torch.full((HEIGHT, WIDTH, 3), 0.5))
    monkeypatch.setattr("polyfield.scenes.evaluate.render", lambda *a, **k: grey)
    return state


def read(path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in {path}"))


def one_error(capsys):
    text = capsys.readouterr().err
    errors = [line for line in text.splitlines() if line.startswith("polyfield: error: ")]
    assert len(errors) == 1, text
    assert "Traceback" not in text
    return errors[0].removeprefix("polyfield: error: ")


def test_a_run_leaves_its_files_and_a_summary(world, tmp_path, capsys):
    assert main(["train", "data/toy", "--max-steps", "5", "--seed", "3", "--downscale", "2"]) == 0
    run = tmp_path / "runs" / "toy-hash-1"
    names = {p.name for p in run.iterdir()}
    assert {"config.json", "cameras.json", "metrics.jsonl", "model.safetensors", "result.json"} <= names
    config = read(run / "config.json")
    assert config["scene"] == str(tmp_path / "data" / "toy")
    assert config["data"]["downscale"] == 2
    assert config["training"]["max_steps"] == 5
    assert config["training"]["seed"] == 3
    out = capsys.readouterr()
    assert "PSNR" in out.out
    assert "on 2 test images" in out.out
    assert "next:  polyfield render runs/toy-hash-1 --orbit 120" in out.out
    assert "toy: 4 train, 2 test frames, 16x12, object capture" in out.err


def test_the_result_file_has_what_a_comparison_needs(world, tmp_path):
    assert main(["train", "demo", "--max-steps", "5", "--out", "r"]) == 0
    result = read(tmp_path / "r" / "result.json")
    assert 0 < result["psnr"] < 20
    assert -1 <= result["ssim"] <= 1
    assert result["train_seconds"] == 1.5
    assert result["steps"] == 5
    assert result["split"] == "test"
    assert result["precision"] == "fp32"
    assert result["peak_memory_bytes"] > 1e6
    assert {"resolution", "downscale", "background", "images", "psnr", "ssim"} <= result["protocol"].keys()
    assert {"cpu", "threads", "torch", "cpu_level"} <= result["machine"].keys()
    assert [r["frame"] for r in result["per_image"]] == [4, 5]


def test_a_scene_without_held_out_photos_has_no_quality(world, tmp_path, capsys):
    world.scene = fake_scene(test=False)
    assert main(["train", "demo", "--max-steps", "5", "--out", "r"]) == 0
    assert read(tmp_path / "r" / "result.json")["psnr"] is None
    assert "no held-out photos: quality was not measured" in capsys.readouterr().out


def test_runs_are_numbered(world, tmp_path):
    for _ in range(3):
        assert main(["train", "demo", "--max-steps", "1"]) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["demo-hash-1", "demo-hash-2", "demo-hash-3"]


def test_a_folder_with_another_run_is_refused_before_anything_is_loaded(world, tmp_path, capsys):
    main(["train", "demo", "--max-steps", "1", "--out", "r"])
    before = (tmp_path / "r" / "result.json").read_bytes()
    world.calls.clear()
    capsys.readouterr()
    assert main(["train", "demo", "--max-steps", "1", "--out", "r"]) == 2
    assert one_error(capsys) == "r holds another run; continue it with --resume or choose another --out"
    assert world.calls == []
    assert (tmp_path / "r" / "result.json").read_bytes() == before


def test_a_bad_scene_leaves_no_folder(world, tmp_path, capsys):
    world.scene = FormatError("data/x: no known layout")
    assert main(["train", "data/x", "--max-steps", "1"]) == 2
    assert one_error(capsys) == "data/x: no known layout"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "SCENE"),
        (["demo", "--downscale", "0"], "--downscale must be a whole number of at least 1; got 0"),
        (["demo", "--memory-gb", "0"], "--memory-gb must be positive (GB); got 0.0"),
        (["demo", "--eval-images", "0"], "--eval-images must be at least 1; got 0"),
        (["demo", "--max-steps", "0"], "max_steps must be at least 1; got 0"),
        (["demo", "--max-steps", "5", "--max-seconds", "5"], "give --max-steps or --max-seconds, not both"),
        (["demo", "--model", "magic"], "invalid choice 'magic'"),
        (["demo", "--precision", "fp8"], "invalid choice 'fp8'"),
        (["demo", "--resume"], "there is no runs/demo-hash-N to resume; give the run folder with --out"),
        (["demo", "--resume", "--out", "r"], "r is not a run folder"),
    ],
)
def test_bad_arguments_are_one_line_and_change_nothing(world, tmp_path, capsys, arguments, text):
    assert main(["train", *arguments]) == 2
    assert text in one_error(capsys)
    assert list(tmp_path.iterdir()) == []
    assert world.calls == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model", "grid", "--precision", "bf16"], "no networks to compute in bf16; leave out --precision"),
        (["--bits", "8"], "--network, --view-grids and --bits are for the models mlp and cam; leave them out"),
        (
            ["--model", "tensor", "--network", "siren"],
            "--network, --view-grids and --bits are for the models mlp and cam",
        ),
        (["--form", "cp"], "--form cp is for --model tensor; leave it out"),
        (["--model", "grid", "--frequency", "auto"], "--frequency is for the models mlp, cam, hash and rbf; grid has"),
        (["--model", "mlp", "--frequency", "high"], "--frequency must be auto, default or a number; got 'high'"),
    ],
)
def test_what_a_model_does_not_have_is_refused_before_anything_is_written(world, tmp_path, capsys, arguments, text):
    assert main(["train", "demo", *arguments]) == 2
    assert text in one_error(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(world, tmp_path, capsys):
    assert main(["train", "toy", "--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("polyfield: error: --device cuda: ")
    assert not world.calls
    assert not (tmp_path / "runs").exists()


def test_it_is_said_where_training_runs(world, capsys, monkeypatch):
    monkeypatch.setattr("polyfield.scenes.device.describe", lambda name: f"on {name}, because")
    assert main(["train", "toy"]) == 0
    assert "training on auto, because\n" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on_and_returns_130(world, tmp_path, capsys):
    world.fail = KeyboardInterrupt()
    assert main(["train", "demo", "--max-steps", "9", "--out", "r"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "polyfield: interrupted; saved in r; continue with: polyfield train demo --out r --resume"
    assert not (tmp_path / "r" / "result.json").exists()
    world.fail = None
    assert main(["train", "demo", "--out", "r", "--resume"]) == 0
    assert world.calls[-1][3] is True
    assert world.calls[-1][1].max_steps == 9
    assert read(tmp_path / "r" / "result.json")["steps"] == 9


def test_a_frequency_is_chosen_once_shown_and_recorded(world, tmp_path, capsys, monkeypatch):
    chosen = FrequencyChoice(40.0, (30.0, 40.0, 50.0), (2.0, 1.0, math.inf), 0.5)
    monkeypatch.setattr("polyfield.scenes.train.choose", lambda *_: chosen)
    arguments = ["--model", "mlp", "--network", "siren", "--frequency", "auto"]
    assert main(["train", "demo", "--max-steps", "5", "--out", "r", *arguments]) == 0
    shown = capsys.readouterr().err
    assert "distance of untrained mlp fields from the spectra of training photos, by first_omega:\n" in shown
    assert "\n      40    1.00 ####################  <- chosen\n      50     inf not finite\n  in 0.5 s;" in shown
    recorded = read(tmp_path / "r" / "result.json")["frequency"]
    assert recorded == {"chosen": 40, "candidates": [30, 40, 50], "distances": [2, 1, None], "seconds": 0.5}
    assert read(tmp_path / "r" / "config.json")["training"]["frequency"] == "auto"
    monkeypatch.setattr("polyfield.scenes.train.choose", lambda *_: pytest.fail("chosen again"))
    assert main(["train", "demo", "--resume", "--out", "r", "--max-steps", "6", "--model", "mlp"]) == 0
    assert main(["train", "demo", "--max-steps", "5", "--out", "s", "--model", "mlp"]) == 0
    assert read(tmp_path / "s" / "result.json")["frequency"] is None


def test_resuming_takes_the_options_of_the_start_and_may_raise_the_steps(world, tmp_path):
    main(["train", "demo", "--max-steps", "9", "--seed", "4", "--downscale", "2"])
    assert main(["train", "demo", "--resume", "--max-steps", "12"]) == 0
    _, options, run, resumed = world.calls[-1]
    assert (options.max_steps, options.seed, str(run), resumed) == (12, 4, "runs/demo-hash-1", True)
    assert world.calls[-2][2]["downscale"] == 2
    assert read(tmp_path / "runs" / "demo-hash-1" / "config.json")["training"]["max_steps"] == 12


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["demo", "--max-steps", "5"], "--max-steps 9; --resume may only raise it, got 5"),
        (["demo", "--seed", "5"], "--seed 0, now it is 5; --resume may only raise --max-steps"),
        (["demo", "--downscale", "2"], "--downscale 1, now it is 2"),
        (["other", "--max-steps", "9"], "the scene demo, now it is"),
    ],
)
def test_resuming_with_other_settings_is_refused(world, tmp_path, capsys, arguments, text):
    main(["train", "demo", "--max-steps", "9", "--out", "r"])
    before = (tmp_path / "r" / "config.json").read_bytes()
    capsys.readouterr()
    assert main(["train", *arguments, "--resume", "--out", "r"]) == 2
    assert text in one_error(capsys)
    assert (tmp_path / "r" / "config.json").read_bytes() == before


def test_a_run_by_seconds_can_be_continued_to_a_number_of_steps(world):
    main(["train", "demo", "--max-seconds", "9", "--out", "r"])
    assert main(["train", "demo", "--resume", "--max-steps", "20", "--out", "r"]) == 0
    assert (world.calls[-1][1].max_steps, world.calls[-1][1].max_seconds) == (20, None)


def test_a_run_killed_before_its_first_checkpoint_starts_anew(world, tmp_path):
    main(["train", "demo", "--max-steps", "9", "--out", "r"])
    (tmp_path / "r" / "checkpoint.safetensors").unlink()
    assert main(["train", "demo", "--resume", "--out", "r"]) == 0
    assert world.calls[-1][3] is False
    assert (tmp_path / "r" / "metrics.jsonl").read_text() == "{}\n"  # of this attempt only


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}', '{"version": 1, "training": 3}', '{"version": 9}'])
def test_a_damaged_configuration_is_one_line(world, tmp_path, capsys, text):
    main(["train", "demo", "--max-steps", "9", "--out", "r"])
    (tmp_path / "r" / "config.json").write_text(text)
    capsys.readouterr()
    assert main(["train", "demo", "--resume", "--out", "r"]) == 2
    assert "config.json" in one_error(capsys)


def test_warnings_of_the_scene_are_shown_once(world, capsys):
    world.scene.warnings.append("3 photos are absent")
    assert main(["train", "demo", "--max-steps", "1"]) == 0
    assert capsys.readouterr().err.count("polyfield: warning: 3 photos are absent") == 1


def test_a_bug_in_training_is_one_line_and_code_1(world, capsys):
    world.fail = ZeroDivisionError("division by zero")
    with warnings.catch_warnings():
        assert main(["train", "demo", "--max-steps", "1"]) == 1
    assert (
        "polyfield: internal error: ZeroDivisionError: division by zero (run again with --debug"
        in capsys.readouterr().err
    )


def test_help_teaches(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for part in ("SCENE", "--max-seconds NUMBER", "--resume", "--memory-gb", "polyfield train demo", "(default: 1)"):
        assert part in text, part
