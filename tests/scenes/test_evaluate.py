import math
from types import SimpleNamespace

import pytest
import torch
from helpers.fake_run import HEIGHT, WIDTH, fake_model, fake_scene

from polyfield.fields.errors import ConfigError
from polyfield.fields.geometry import Similarity
from polyfield.fields.optim.metrics import psnr
from polyfield.scenes import evaluate as module
from polyfield.scenes.evaluate import evaluate, ground_truth, held_out_split


@pytest.fixture
def seen(monkeypatch):
    """Replaces the renderer by one that paints mid grey, and records what it was asked for."""
    calls = []

    def render(model, cameras, *, background=None):
        calls.append((cameras, background))
        return SimpleNamespace(rgb=torch.full((HEIGHT, WIDTH, 3), 0.5))

    monkeypatch.setattr(module, "render", render)
    return calls


def test_the_figures_are_those_of_the_metrics(seen):
    scene = fake_scene()
    reports = []
    result = evaluate(fake_model(), scene, "test", report=lambda *a: reports.append(a))
    grey = torch.full((HEIGHT, WIDTH, 3), 0.5)
    expected = [float(psnr(grey, scene.images.image(f).float() / 255)) for f in (4, 5)]
    assert result.psnr == pytest.approx(sum(expected) / 2)
    assert [r["frame"] for r in result.per_image] == [4, 5]
    assert [r["psnr"] for r in result.per_image] == pytest.approx(expected)
    assert result.ssim is not None
    assert reports == [(1, 2), (2, 2)]
    assert result.seconds_per_frame > 0


def test_the_protocol_says_what_was_compared(seen):
    protocol = evaluate(fake_model(), fake_scene(4), "test").protocol
    assert protocol["resolution"] == "16x12"
    assert protocol["split"] == "test"
    assert protocol["images"] == protocol["images_in_split"] == 2
    assert protocol["downscale"] == 1
    assert protocol["background"] == "white (photos composited with straight alpha)"
    assert protocol["color_space"] == "sRGB-encoded"
    assert "mean over images" in protocol["psnr"]
    assert "11x11" in protocol["ssim"]
    assert protocol["split_rule"] == "every 3rd"


def test_transparent_photos_are_composited_on_the_scenes_background(seen):
    scene = fake_scene(4)
    scene.images.pixels[:, 3] = 0
    truth, mask = ground_truth(scene, 4, "white")
    assert truth.min() == 1.0
    assert mask is None
    evaluate(fake_model(), scene, "test")
    assert {background for _, background in seen} == {"white"}


def test_masked_pixels_are_left_out(seen):
    scene = fake_scene(masked=True)
    before = evaluate(fake_model(), scene, "test")
    scene.images.pixels[scene.images.masks == 0] = 255
    after = evaluate(fake_model(), scene, "test")
    assert after.psnr == pytest.approx(before.psnr)
    assert after.ssim == pytest.approx(before.ssim)
    assert after.protocol["masked"]


def test_a_limit_spreads_over_the_split(seen):
    scene = fake_scene()
    scene.splits["train"] = torch.tensor([0, 1, 2, 3, 4, 5])
    result = evaluate(fake_model(), scene, "train", limit=3)
    assert [r["frame"] for r in result.per_image] == [1, 3, 5]
    assert (result.protocol["images"], result.protocol["images_in_split"]) == (3, 6)
    with pytest.raises(ConfigError, match="at least 1 image; got 0"):
        evaluate(fake_model(), scene, "train", limit=0)


def test_an_empty_split_names_those_that_are_there(seen):
    with pytest.raises(ConfigError, match=r"toy has no frames in split 'val'; it has train \(4\), test \(2\)"):
        evaluate(fake_model(), fake_scene(), "val")


def test_a_model_of_another_normalisation_is_shown_from_the_same_places(seen):
    scene = fake_scene()
    evaluate(fake_model(), scene, "test")
    torch.testing.assert_close(seen[0][0].world_from_camera, scene.cameras[4].world_from_camera)
    other = Similarity(2.0, torch.eye(3), torch.tensor([1.0, 0.0, 0.0]))
    evaluate(fake_model(other), scene, "test")
    in_data_set = scene.cameras[4].transformed(scene.to_scene.inverse())
    torch.testing.assert_close(seen[2][0].centres(), other.apply(in_data_set.centres()), atol=1e-5, rtol=0)


def test_small_images_have_no_ssim(seen, monkeypatch):
    scene = fake_scene()
    scene.images.image = lambda f: torch.zeros(8, 8, 3, dtype=torch.uint8)
    monkeypatch.setattr(module, "render", lambda *a, **k: SimpleNamespace(rgb=torch.full((8, 8, 3), 0.1)))
    result = evaluate(fake_model(), scene, "test")
    assert result.ssim is None
    assert math.isclose(result.psnr, 20.0, abs_tol=1e-4)


def test_held_out_is_test_then_val_then_none():
    assert held_out_split(fake_scene()) == "test"
    scene = fake_scene(test=False)
    assert held_out_split(scene) is None
    scene.splits["val"] = torch.tensor([4])
    assert held_out_split(scene) == "val"
