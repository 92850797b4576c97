"""Converting: every kind learns from another, it is repeatable, and what cannot be converted is refused."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest
import torch
from helpers.ball_model import ball_model
from helpers.small_presets import shrink_presets
from helpers.tiny import tiny_scene

from polyfield.fields import FIELDS, ConfigError, FormatError, Model, Similarity
from polyfield.fields.convert import Recolour, Sphere
from polyfield.fields.formats.model_file import read_tensors
from polyfield.fields.ops import _cpu
from polyfield.fields.radiance import CamFieldConfig, GridField, GridFieldConfig
from polyfield.scenes.convert import ConvertOptions, convert, convert_model, scene_cameras, scene_photos
from polyfield.scenes.edit import edit
from polyfield.scenes.evaluate import evaluate
from polyfield.scenes.presets import PRESETS, Surroundings
from polyfield.scenes.rays import SceneRays
from polyfield.scenes.run_state import CHECKPOINT

pytestmark = pytest.mark.skipif(_cpu.level() == "reference", reason="converting by the torch references takes minutes")
FAST = {"samples": 2048, "precision": "fp32", "evaluate_every": 50}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    shrink_presets(monkeypatch)


def run(to: str, steps: int, model: Model | None = None, **changes):
    where = {k: changes.pop(k) for k in ("run", "resume", "report") if k in changes}
    scene, teacher = changes.pop("scene", None), model or ball_model()
    options = ConvertOptions(**{"to": to, "max_steps": steps, **FAST, **changes})
    if scene is not None:
        where |= {"cameras": scene_cameras(teacher, scene), "photos": scene_photos(teacher, scene, options)}
    return convert_model(teacher, options, **where)


def tensors_of(model: Model) -> dict[str, torch.Tensor]:
    return {**model.representation.state_dict(), **model.occupancy.state_dict()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FIELDS)
def test_every_kind_learns_from_a_grid(kind):
    begun, learned = run(kind, 1), run(kind, 150)
    if kind == "grid":  # begins as a copy of its like
        assert min(begun.psnr_to_teacher, learned.psnr_to_teacher) > 40
    else:
        assert learned.psnr_to_teacher > max(23, begun.psnr_to_teacher + 6)
    assert learned.steps == 150
    assert learned.skipped_steps == 0
    assert learned.model.kind == kind
    assert learned.model.background == "white"
    assert learned.model.provenance["converted_from"] == ["grid"]
    x = torch.tensor([[0.38, 0.0, 0.0], [0.9, 0.9, 0.9]])  # just inside: what lies deeper nobody sees
    assert learned.model.occupancy.holds(x).tolist() == [True, False]


@pytest.mark.slow
def test_there_and_back_again():
    back = run("grid", 150, run("hash", 150).model)
    assert back.model.provenance["converted_from"] == ["grid", "hash"]
    assert back.psnr_to_teacher > 23


def test_a_kind_into_itself_begins_at_the_goal(monkeypatch):
    teacher = run("hash", 30).model
    monkeypatch.delattr("polyfield.scenes.convert.learn_head")  # what is the teacher's already is not learned
    again = run("hash", 1, teacher)
    assert "encoding.table" in again.inherited
    assert again.psnr_to_teacher > 30
    assert again.model.representation is not teacher.representation


@pytest.mark.parametrize("kind", ["mlp", "planes"])
def test_a_colour_network_is_laid_out_like_the_teachers_and_taken_over(kind):
    result = run(kind, 1, run("hash", 1).model)
    assert result.inherited == ["color"]
    assert run("grid", 1, result.model).inherited == []  # it has none


def test_points_are_drawn_by_what_is_seen_unless_no_level_is_asked_for():
    results = run("hash", 3), run("hash", 3, active=("points",)), run("hash", 3, active=())
    usual, asked, none = (tensors_of(result.model) for result in results)
    assert all(torch.equal(usual[k], asked[k]) for k in usual)
    assert not torch.equal(usual["encoding.table"], none["encoding.table"])


def test_a_colour_network_that_the_view_modulates_is_no_model_for_others():
    preset = PRESETS["hash"](Surroundings("object", 1))
    assert preset.with_colors_of(CamFieldConfig()) != preset
    assert preset.with_colors_of(CamFieldConfig(view_cells=(12, 7))) == preset
    assert preset.with_colors_of(GridFieldConfig()) == preset


def test_the_teacher_stays_as_it_is():
    teacher = ball_model()
    before = {k: v.clone() for k, v in tensors_of(teacher).items()}
    run("planes", 3, teacher)
    assert all(torch.equal(v, before[k]) for k, v in tensors_of(teacher).items())
    assert all(p.requires_grad for p in teacher.representation.parameters())


@pytest.mark.parametrize(
    ("at", "changes"),
    [
        (20, {"to": "hash"}),
        (30, {"to": "tensor"}),
        (20, {"to": "grid"}),
        (20, {"to": "cam", "bits": 8}),
        (30, {"to": "planes", "active": ("cameras", "rays")}),
        (20, {"to": "planes", "active": ()}),
        (30, {"to": "hash", "scene": tiny_scene(), "finish": 0.3}),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else None,
)
def test_an_interrupted_conversion_resumes_to_the_same_bits(tmp_path, monkeypatch, at, changes):
    """Over new pools and growth; while it learns at points, then along rays."""
    monkeypatch.setattr("polyfield.fields.convert.teacher.POOL_STEPS", 8)
    steps = {"steps": 36, **changes}
    whole = run(**steps, run=tmp_path / "whole")

    def stop(progress) -> None:
        if progress.step == at:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(**steps, run=tmp_path / "cut", report=stop)
    resumed = run(**steps, run=tmp_path / "cut", resume=True)
    assert resumed.steps == 36
    mine, theirs = tensors_of(resumed.model), tensors_of(whole.model)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    a, b = (read_tensors(tmp_path / name / CHECKPOINT, kind="checkpoint")[1] for name in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    logs = [(tmp_path / name / "metrics.jsonl").read_text().count("\n") for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_a_checkpoint_of_another_conversion_is_refused(tmp_path):
    run("hash", 2, run=tmp_path)
    with pytest.raises(ConfigError, match=r"other settings \(seed\)"):
        run("hash", 4, run=tmp_path, resume=True, seed=1)
    with pytest.raises(FormatError, match="nothing to resume"):
        run("hash", 4, run=tmp_path / "none", resume=True)


def test_a_student_is_marched_as_its_teacher_is():
    teacher = ball_model()
    teacher.march = replace(teacher.march, step_size=0.05)
    assert run("mlp", 1, teacher).model.march == teacher.march


def test_steps_are_small_unless_asked_otherwise():
    sizes = {None: 1 << 15, 2048: 2048, 1 << 16: 1 << 16}
    for asked, expected in sizes.items():
        options = ConvertOptions(to="planes", max_steps=1, precision="fp32", device="cpu", samples=asked)
        assert convert_model(ball_model(), options).settings["preset"]["task"]["samples"] == expected


def test_the_scene_says_from_where_to_look(tmp_path):
    scene, teacher = tiny_scene(), ball_model()
    cameras = scene_cameras(teacher, scene)
    assert len(cameras) == 10
    assert convert(teacher, "grid", scene=scene, max_steps=2).kind == "grid"
    elsewhere = replace(scene, to_scene=Similarity(0.5, torch.eye(3).double(), torch.zeros(3).double()))
    with pytest.raises(ConfigError, match=r"scene tiny is not what the model was trained on \(ball\)"):
        convert(teacher, "grid", scene=elsewhere, max_steps=2)


def test_photos_have_the_last_word():
    """Their ball is the teacher's, but that its channels are others: ten photos of 24 x 24, learned by heart."""
    scene, teacher = tiny_scene(), ball_model(0.6)
    pixels = scene.images.pixels.view(-1, 4)
    pixels[:, :3] = pixels[:, [2, 0, 1]]
    unused, finished = (run("hash", 80, teacher, scene=scene, finish=share) for share in (0.0, 0.5))
    found = [evaluate(result.model, scene, "train").psnr for result in (unused, finished)]
    assert found[1] > found[0] + 4
    assert unused.psnr_to_teacher > finished.psnr_to_teacher + 3


def test_an_edit_is_not_undone_by_photos_of_what_was_there():
    edited = edit(ball_model(), [Recolour(Sphere((0.0, 0.0, 0.0), 1.0), (1.0, 0.0, 0.0))])
    options = ConvertOptions(to="hash")
    assert scene_photos(ball_model(), tiny_scene(), options) is not None
    assert scene_photos(edited, tiny_scene(), options) is None
    assert scene_photos(ball_model(), tiny_scene(), replace(options, finish=0.0)) is None


def test_photos_may_only_measure(monkeypatch):
    monkeypatch.setattr(SceneRays, "batch", None)
    run("hash", 10, scene=tiny_scene(), finish=0)
    with pytest.raises(TypeError):
        run("hash", 10, scene=tiny_scene())


def test_what_cannot_be_converted_is_refused():
    with pytest.raises(ConfigError, match=r"--finish must be in \[0, 1\)"):
        convert(ball_model(), "hash", max_steps=1, finish=1.0)
    with pytest.raises(ConfigError, match="not both"):
        convert(ball_model(), "hash", max_steps=1, max_seconds=1)
    with pytest.raises(ConfigError, match="converted to one of hash, tensor"):
        convert(ball_model(), "splat", max_steps=1)  # pyright: ignore[reportArgumentType]
    model = ball_model()
    assert isinstance(model.representation, GridField)
    with torch.no_grad():
        model.representation.density.zero_()
    with pytest.raises(ConfigError, match="empty: none of 4096 rays meets anything"):
        convert(model, "hash", max_steps=1)
    unbounded = replace(ball_model(), provenance={"kind": "unbounded"})
    with pytest.raises(ConfigError, match="from where it was seen must be known"):
        convert(unbounded, "hash", max_steps=1)
