"""What `scenes.compare` measures, from where it looks, and what it refuses."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.ball_model import ball_model
from helpers.tiny import tiny_scene

from polyfield import scenes
from polyfield.fields import Similarity
from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.optim.metrics import psnr
from polyfield.fields.radiance import GridField
from polyfield.fields.render import Frame, render
from polyfield.scenes.compare import HEAT_FULL, OPAQUE, ORBIT_SIZE, _depth_gaps, _heat, compare
from polyfield.scenes.evaluate import evaluate

SMALL = (32, 32)


def moved(distance: float, scale: float = 1.0):
    """A ball whose scene frame lies so far off in its data set."""
    model = ball_model()
    model.to_dataset = Similarity(scale, torch.eye(3), torch.tensor([distance, 0.0, 0.0]))
    return model


@pytest.fixture
def cameras_seen(monkeypatch):
    """The cameras that the renderer was given, in order."""
    seen = []

    def watched(model, camera, **options):
        seen.append(camera)
        return render(model, camera, **options)

    monkeypatch.setattr(sys.modules["polyfield.scenes.compare"], "render", watched)
    return seen


def test_a_model_is_like_itself():
    model, reports = ball_model(), []
    result = compare(model, model, views=3, size=SMALL, report=lambda *done: reports.append(done))
    assert result.psnr == 100.0
    assert result.ssim == pytest.approx(1.0)
    assert result.depth_difference == 0.0
    assert result.a[:2] == result.b[:2] == ("grid", None)
    assert 0 < result.a.seconds_per_frame < 10
    assert reports == [(1, 3), (2, 3), (3, 3)]
    assert [picture.shape for picture in result.pictures] == [(32, 96, 3)] * 3
    left, middle, heat = np.split(result.pictures[0], 3, axis=1)
    assert (left == middle).all()
    assert left.std() > 10
    assert heat.max() < 70


def test_the_figures_are_those_of_the_pictures(cameras_seen):
    a, b = ball_model(), ball_model(radius=0.4)
    result = compare(a, b, views=2, size=SMALL)
    pairs = [(render(a, cameras_seen[2 * i]), render(b, cameras_seen[2 * i + 1])) for i in range(2)]
    expected = [float(psnr(one.rgb, two.rgb)) for one, two in pairs]
    assert [row["psnr"] for row in result.per_view] == pytest.approx(expected)
    assert result.psnr == pytest.approx(sum(expected) / 2)
    assert 8 < result.psnr < 30
    gaps = torch.cat([_depth_gaps(one, two, 1.0) for one, two in pairs])
    assert result.depth_difference == pytest.approx(float(gaps.median()))
    assert 0.01 < float(gaps.median()) < 0.2


def test_depth_counts_where_both_are_opaque_and_in_one_unit():
    depth = torch.tensor([[2.0, 2.0, 2.0, float("inf")]])
    rgb, normal = torch.zeros(1, 4, 3), torch.zeros(1, 4, 3)
    a = Frame(rgb, torch.tensor([[OPAQUE, 1.0, OPAQUE - 0.01, 1.0]]), depth, normal)
    b = Frame(rgb, torch.tensor([[1.0, OPAQUE - 0.01, 1.0, 1.0]]), torch.full((1, 4), 1.5), normal)
    assert _depth_gaps(a, b, 1.0).tolist() == [0.25]
    assert _depth_gaps(a, b, 2.0).tolist() == [0.5]


def test_without_depth_in_common_there_is_no_figure():
    empty = ball_model()
    assert isinstance(empty.representation, GridField)
    with torch.no_grad():
        empty.representation.density.zero_()
    result = compare(ball_model(), empty, views=1, size=SMALL)
    assert result.depth_difference is None
    assert result.per_view[0]["depth_difference"] is None


def test_heat_grows_lighter_with_the_difference_and_ends_at_its_top():
    steps = torch.linspace(0, 1.5 * HEAT_FULL, 31)
    level = torch.full((1, 31, 3), 0.5)
    heat = _heat(level + steps[None, :, None], level)[0]
    torch.testing.assert_close(_heat(level - steps[None, :, None], level)[0], heat)
    lightness = heat @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert float(lightness[0]) < 0.15
    assert bool((lightness[1:21] > lightness[:20]).all())
    assert bool((lightness[21:] == lightness[20]).all() & (lightness[20] > 0.9))


def test_a_scene_gives_the_views_and_each_its_likeness_to_the_photos(cameras_seen):
    a, b, scene = ball_model(), ball_model(radius=0.4), tiny_scene(10)
    scene.splits["test"] = torch.tensor([4, 5, 6, 7, 8, 9])
    result = compare(a, b, scene, views=3)
    assert [row["frame"] for row in result.per_view] == [5, 7, 9]
    centres = torch.cat([camera.centres() for camera in cameras_seen[::2]])
    torch.testing.assert_close(centres, scene.cameras[[5, 7, 9]].centres())
    assert result.a.psnr == pytest.approx(evaluate(a, scene, limit=3).psnr)
    assert result.b.psnr == pytest.approx(evaluate(b, scene, limit=3).psnr)
    assert result.protocol["seen"] == "test photos of tiny"
    assert result.protocol["resolution"] == "24x24"
    assert len(compare(a, b, scene).per_view) == 6


def test_masked_pixels_count_for_the_photos_only():
    a, b, scene = ball_model(), ball_model(radius=0.4), tiny_scene()
    whole = compare(a, b, scene)
    nothing = torch.zeros(len(scene.images.pixels), dtype=torch.uint8)
    masked = compare(a, b, replace(scene, images=replace(scene.images, masks=nothing)))
    assert masked.a.psnr is None
    assert masked.psnr == whole.psnr


def test_both_are_seen_from_the_same_places_in_the_data_set(cameras_seen):
    a, b = moved(5.0, scale=3.0), moved(5.001, scale=3.0)
    compare(a, b, views=2, size=SMALL)
    in_data_set = [m.to_dataset.apply(c.centres()) for m, c in zip((a, b) * 2, cameras_seen, strict=True)]
    torch.testing.assert_close(in_data_set[0], in_data_set[1])
    torch.testing.assert_close(in_data_set[2], in_data_set[3])
    assert not torch.equal(cameras_seen[0].centres(), cameras_seen[1].centres())


def test_known_cameras_are_looked_between_and_serve_any_capture(cameras_seen):
    a, known = moved(7.0), tiny_scene().cameras
    a.provenance["kind"] = "unbounded"
    result = compare(a, a, cameras=known.transformed(a.to_dataset), views=4)
    assert result.protocol["seen"] == "between the training cameras"
    assert all(int(camera.width[0]) == 24 for camera in cameras_seen)
    nearest = torch.cdist(torch.cat([c.centres() for c in cameras_seen]), known.centres()).min(1).values
    assert float(nearest.max()) < 2.0  # the cameras are 3 from the ball
    again = compare(a, a, cameras=known.transformed(a.to_dataset), views=4)
    assert (again.pictures[0] == result.pictures[0]).all()


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (32, 48)])
def test_views_from_around_hold_the_object_whole_at_any_size(cameras_seen, size):
    result = compare(ball_model(), ball_model(), views=2, size=size)
    assert result.protocol["resolution"] == f"{size[0]}x{size[1]}"
    half = math.atan(0.5 * min(size) / float(cameras_seen[0].intrinsics[0, 0]))
    assert math.degrees(2 * half) == pytest.approx(40.0)
    for picture in result.pictures:
        left = picture[:, : size[0]]
        assert (left[[0, -1]] > 250).all()
        assert (left[:, [0, -1]] > 250).all()
        assert (left[size[1] // 2, size[0] // 2] < 250).any()


def test_views_are_those_of_a_conversion_by_default(cameras_seen):
    compare(ball_model(), ball_model(), views=1)
    assert (int(cameras_seen[0].width[0]), int(cameras_seen[0].height[0])) == ORBIT_SIZE == (400, 400)


@pytest.mark.parametrize("other", [moved(0.01), moved(0.0, scale=1.01)])
def test_frames_that_disagree_are_refused(other):
    with pytest.raises(ConfigError, match=r"the two models are not of one scene: their frames are 0\.0\d+ apart"):
        compare(ball_model(), other, views=1)


def test_a_scene_that_is_not_theirs_is_refused():
    scene = replace(tiny_scene(), to_scene=Similarity(0.5, torch.eye(3), torch.zeros(3)))
    with pytest.raises(ConfigError, match="the models are not of scene tiny: their frames are 1 apart; give what"):
        compare(ball_model(), ball_model(), scene)


def test_a_scene_without_held_out_photos_is_refused():
    scene = tiny_scene()
    scene.splits["test"] = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ConfigError, match="scene tiny has no held-out photos to compare on"):
        compare(ball_model(), ball_model(), scene)


@pytest.mark.parametrize("views", [0, -1, 101])
def test_views_out_of_range_are_refused(views):
    with pytest.raises(ConfigError, match=rf"the number of views must be 1 to 100; got {views}"):
        compare(ball_model(), ball_model(), views=views)


def test_more_views_than_photos_are_refused():
    with pytest.raises(ConfigError, match=r"must be 1 to 2 \(the test photos of tiny\); got 3"):
        compare(ball_model(), ball_model(), tiny_scene(), views=3)


def test_other_captures_than_objects_need_cameras():
    model = ball_model()
    model.provenance["kind"] = "forward"
    with pytest.raises(ConfigError, match="a capture of kind 'forward': from where it was seen must be known"):
        compare(model, model)


def test_a_damaged_model_is_named():
    bad = ball_model()
    assert isinstance(bad.representation, GridField)
    with torch.no_grad():
        bad.representation.harmonics.fill_(float("nan"))
    with pytest.raises(ConfigError, match="model B is damaged: it renders to values that are not finite"):
        compare(ball_model(), bad, views=1, size=SMALL)


def test_pictures_too_small_for_ssim_are_refused():
    with pytest.raises(ShapeError, match="at least 11x11 pixels; got 8x20"):
        compare(ball_model(), ball_model(), views=1, size=(20, 8))


@pytest.mark.parametrize("name", ["convert", "compare"])
def test_a_function_is_not_lost_to_the_module_of_its_name(monkeypatch, name):
    monkeypatch.delitem(sys.modules, f"polyfield.scenes.{name}", raising=False)  # as in a new process
    monkeypatch.delattr(scenes, name, raising=False)
    assert callable(getattr(scenes, name))
    assert callable(getattr(scenes, name))
