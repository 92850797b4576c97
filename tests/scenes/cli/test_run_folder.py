import json

import pytest

from polyfield.fields.errors import ConfigError, FormatError
from polyfield.scenes.cli import run_folder as rf

CONFIG = {"scene": "/d/lego", "data": {"downscale": 2, "memory_gb": None}, "training": {"max_steps": 100, "seed": 0}}


def changed(**values):
    return {
        **CONFIG,
        "data": {**CONFIG["data"], **{k: v for k, v in values.items() if k in CONFIG["data"]}},
        "training": {**CONFIG["training"], **{k: v for k, v in values.items() if k not in CONFIG["data"]}},
    }


def test_numbers_go_on_above_the_largest(tmp_path):
    assert rf.next_free("data/lego", "hash", tmp_path) == tmp_path / "lego-hash-1"
    for name in ("lego-hash-1", "lego-hash-7", "lego-hash-x", "lego-hash-8b", "lego-mlp-9", "other-hash-11"):
        (tmp_path / name).mkdir()
    assert rf.next_free("data/lego/", "hash", tmp_path) == tmp_path / "lego-hash-8"
    assert rf.newest("data/lego", "hash", tmp_path) == tmp_path / "lego-hash-7"
    with pytest.raises(ConfigError, match=r"there is no .*demo-hash-N to resume; give the run folder with --out"):
        rf.newest("demo", "hash", tmp_path)


@pytest.mark.parametrize(
    ("scene", "name"), [("demo", "demo"), ("/a/my scene!", "my-scene"), ("/", "scene"), ("/a/..b..", "b"), ("x/ü", "ü")]
)
def test_scene_names_are_plain_folder_names(scene, name):
    assert rf.scene_name(scene) == name


def test_a_claimed_folder_is_taken(tmp_path):
    run = tmp_path / "a" / "run"
    rf.claim(run, CONFIG)
    assert json.loads((run / "config.json").read_text())["scene"] == "/d/lego"
    with pytest.raises(ConfigError, match="holds another run; continue it with --resume or choose another --out"):
        rf.claim(run, CONFIG)


def test_other_folders_and_files_are_not_taken_over(tmp_path):
    (tmp_path / "photo.png").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and holds no run; choose another --out"):
        rf.check_free(tmp_path)
    with pytest.raises(ConfigError, match="is a file; --out must be a folder"):
        rf.check_free(tmp_path / "photo.png")


def test_an_empty_folder_or_one_with_a_killed_writers_rest_is_free(tmp_path):
    rf.check_free(tmp_path)
    (tmp_path / ".config.json.abc.polyfield-tmp").write_text("{")
    rf.check_free(tmp_path)


def test_a_folder_that_cannot_be_created_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FormatError, match="could not be created"):
        rf.claim(tmp_path / "file" / "run", CONFIG)


def resume(tmp_path, config, stored=CONFIG):
    run = tmp_path / "run"
    if not run.exists():
        rf.claim(run, stored)
    return rf.continue_run(run, config, rf.read_config(run))


def test_the_same_settings_resume(tmp_path):
    resume(tmp_path, CONFIG)
    assert rf.read_config(tmp_path / "run")["training"]["max_steps"] == 100


def test_more_steps_resume_and_are_written_down(tmp_path):
    resume(tmp_path, changed(max_steps=200))
    config = rf.read_config(tmp_path / "run")
    assert config["training"]["max_steps"] == 200
    assert config["format"] == "polyfield-run"


def test_fewer_steps_do_not_resume(tmp_path):
    with pytest.raises(ConfigError, match="started with --max-steps 100; --resume may only raise it, got 50"):
        resume(tmp_path, changed(max_steps=50))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (changed(seed=1), "--seed 0, now it is 1"),
        (changed(downscale=4), "--downscale 2, now it is 4"),
        ({**CONFIG, "scene": "/d/ship"}, "the scene /d/lego, now it is /d/ship"),
        (changed(brand_new=3), "--brand-new not set, now it is 3"),
    ],
)
def test_other_settings_do_not_resume(tmp_path, config, text):
    with pytest.raises(ConfigError, match="--resume may only raise --max-steps") as caught:
        resume(tmp_path, config)
    assert text in str(caught.value)


def test_settings_that_do_not_change_the_model_may_differ(tmp_path):
    resume(tmp_path, changed(memory_gb=2.0))


def test_a_run_by_seconds_goes_on_by_steps(tmp_path):
    stored = changed(max_steps=None, max_seconds=60.0)
    resume(tmp_path, changed(max_steps=500, max_seconds=None), stored)
    assert rf.read_config(tmp_path / "run")["training"] == {"max_steps": 500, "seed": 0, "max_seconds": None}


def test_other_seconds_do_not_resume(tmp_path):
    stored = changed(max_steps=None, max_seconds=60.0)
    with pytest.raises(ConfigError, match=r"--max-seconds 60\.0, now it is 90\.0"):
        resume(tmp_path, changed(max_steps=None, max_seconds=90.0), stored)


def test_resuming_clears_a_killed_writers_rest(tmp_path):
    rf.claim(tmp_path / "run", CONFIG)
    (tmp_path / "run" / ".checkpoint.safetensors.x.polyfield-tmp").write_bytes(b"half")
    resume(tmp_path, CONFIG)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("", "not valid JSON"),
        ("[1]", "JSON object; got list"),
        ('{"version": 2}', "version must be 1"),
        ("[" * 99999, "JSON"),
    ],
)
def test_damaged_configurations_are_refused_by_name(tmp_path, text, pattern):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FormatError, match=pattern) as caught:
        rf.read_config(tmp_path)
    assert "config.json" in str(caught.value)


def test_a_folder_without_configuration_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match=r"is not a run folder \(it has no config\.json\)"):
        rf.read_config(tmp_path)


def test_models_are_found_in_run_folders(tmp_path):
    with pytest.raises(FormatError, match=r"has no model\.safetensors"):
        rf.model_file(tmp_path)
    with pytest.raises(FormatError, match="no such model file or run folder"):
        rf.model_file(tmp_path / "x")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert rf.model_file(tmp_path) == tmp_path / "model.safetensors"
    assert rf.model_file(tmp_path / "model.safetensors") == tmp_path / "model.safetensors"


def test_the_folder_of_a_conversion_stands_for_the_model_beside_it(tmp_path):
    (tmp_path / "student.v2").mkdir()
    with pytest.raises(FormatError, match="has no model"):
        rf.model_file(tmp_path / "student.v2")
    (tmp_path / "student.v2.safetensors").touch()
    with pytest.raises(FormatError, match="has no model"):
        rf.model_file(tmp_path / "student.v2")  # any folder: perhaps photos
    (tmp_path / "student.v2" / rf.CONFIG).write_text("{}")
    assert rf.model_file(tmp_path / "student.v2") == tmp_path / "student.v2.safetensors"
