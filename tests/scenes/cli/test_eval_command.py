import json
import re
from types import SimpleNamespace

import pytest
import torch
from helpers.fake_run import HEIGHT, WIDTH, fake_model, fake_scene

from polyfield.scenes.cli import main


@pytest.fixture
def world(tmp_path, monkeypatch):
    state = SimpleNamespace(scene=fake_scene(), loads=[])

    def load_scene(path, **options):
        state.loads.append((path, options))
        return state.scene

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("polyfield.scenes.scene.load_scene", load_scene)
    monkeypatch.setattr("polyfield.fields.model.Model.load", lambda path, device="cpu": fake_model())
    grey = SimpleNamespace(rgb=torch.full((HEIGHT, WIDTH, 3), 0.5))
    monkeypatch.setattr("polyfield.scenes.evaluate.render", lambda *a, **k: grey)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_bytes(b"")
    return state


def test_figures_are_printed_with_their_protocol(world, capsys):
    assert main(["eval", "run", "toy"]) == 0
    text = capsys.readouterr().out
    assert "PSNR" in text
    assert "SSIM" in text
    assert "2 test images of toy, 16x12" in text


def test_json_is_one_object_on_standard_output(world, capsys):
    assert main(["eval", "run/model.safetensors", "toy", "--split", "train", "--images", "2", "--json"]) == 0
    out = capsys.readouterr()
    value = json.loads(out.out)
    assert value["protocol"]["split"] == "train"
    assert value["protocol"]["images"] == 2
    assert len(value["per_image"]) == 2
    assert value["psnr"] > 0
    assert value["scene"] == "toy"
    assert "evaluating 2/2" in out.err


def test_figures_that_do_not_exist_are_null(world, capsys):
    world.scene = fake_scene(masked=True)
    world.scene.images.masks.zero_()
    assert main(["eval", "run", "toy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["psnr"] is None


def test_a_run_folder_remembers_the_downscaling(world, tmp_path):
    main(["eval", "run", "toy"])
    (tmp_path / "run" / "config.json").write_text(json.dumps({"version": 1, "data": {"downscale": 4}}))
    main(["eval", "run", "toy"])
    main(["eval", "run", "toy", "--downscale", "2"])
    assert [options["downscale"] for _, options in world.loads] == [1, 4, 2]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nothing", "toy"], "nothing: no such model file or run folder"),
        ([".", "toy"], ". has no model.safetensors; give a model file or a folder of 'polyfield train' or 'convert'"),
        (["run", "toy", "--split", "val"], "toy has no frames in split 'val'; it has train (4), test (2)"),
        (["run", "toy", "--split", "all"], "invalid choice 'all'"),
        (["run"], "SCENE"),
    ],
)
def test_bad_input_is_one_line_and_code_2(world, capsys, arguments, text):
    assert main(["eval", *arguments]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.startswith("polyfield: error: ")
    assert error.count("\n") == 1


def test_cuda_that_is_not_there_is_refused(world, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert main(["eval", "run", "toy", "--device", "cuda"]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"polyfield: error: --device cuda: .+; use --device cpu, and see 'polyfield doctor'\n", err)
