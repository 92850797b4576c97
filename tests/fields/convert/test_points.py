"""Points that a student learns at before any ray: they lie where the teacher shows something, and say what it says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.ball_model import MARCH, ball_model

from polyfield.fields import ConfigError, OccupancyGrid
from polyfield.fields.convert import DistillTask, DistillWeights, Teacher, TeacherRays, orbit_cameras
from polyfield.fields.convert.losses import density_error
from polyfield.fields.convert.points import POOLS, TeacherPoints, _draw
from polyfield.fields.ops.hash_encode import HashGridSpec
from polyfield.fields.optim.field_task import RadianceTaskConfig, RayBatch
from polyfield.fields.optim.loop import LoopConfig, optimise
from polyfield.fields.radiance import HashField, HashFieldConfig, TensorField, TensorFieldConfig
from polyfield.fields.render import render_rays

GRID = HashGridSpec(levels=4, channels=2, base_resolution=8, finest_resolution=32, log2_table_size=12)
RADIUS, STEPS = 0.5, POOLS[False, False]


def points_of(box: torch.Tensor | None = None, *, samples: int = 1000, seed: int = 0) -> TeacherPoints:
    teacher = Teacher(ball_model(RADIUS))
    cameras = orbit_cameras(teacher.model.occupancy.occupied_box() if box is None else box)
    return TeacherPoints(TeacherRays(teacher, cameras, rays=1024, seed=seed), samples=samples)


class Photos:
    """Rays of the teacher's views, which all should be green."""

    def __init__(self, source: TeacherRays) -> None:
        self.source = source

    def batch(self, step: int, count: int) -> RayBatch:
        batch = self.source.batch(step, count)
        return batch._replace(targets=torch.tensor([0.0, 1.0, 0.0]).expand(count, 3))


def task_of(until: float, box: torch.Tensor | None = None, finish: float = 0.0) -> DistillTask:
    points = points_of(box, samples=2048)
    field = HashField(HashFieldConfig(grid=GRID, density_width=16, color_width=16))
    config, occupancy = RadianceTaskConfig(samples=2048, first_rays=256), OccupancyGrid(cascades=1, resolution=16)
    given = (field, occupancy, MARCH, points.source, config, points.source.teacher)
    photos = Photos(points.source)
    return DistillTask(*given, DistillWeights(points_until=until), photos=photos, finish=finish)


def answered_by_a_hash_field(source: TeacherRays, scale: float = 1.0) -> Teacher:
    """The ball's grid of occupied cells, with a field that has features and looks another way from everywhere."""
    field = HashField(HashFieldConfig(grid=GRID, density_width=16, color_width=16), seed=1)
    with torch.no_grad():
        field.encoding.table.normal_(generator=torch.Generator().manual_seed(2)).mul_(scale)
    source.teacher.field = source.teacher.model.representation = field
    return source.teacher


def test_a_batch_depends_on_step_and_seed_alone():
    one, two = points_of(), points_of()
    for step in (0, 1, STEPS + 3):
        first = one.batch(step)
    again = two.batch(STEPS + 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.positions, two.batch(STEPS + 4).positions)
    assert not torch.equal(first.positions, two.batch(3).positions)
    assert not bool((first.directions[:, None] == two.batch(3).directions).all(2).any())  # along other rays
    assert not torch.equal(first.positions, points_of(seed=1).batch(STEPS + 3).positions)


def test_points_lie_on_what_is_seen_and_on_the_way_to_it():
    points = points_of().batch(5)
    assert points.positions.shape == (1000, 3)
    assert points.rgb.shape == points.directions.shape == (800, 3)
    from_middle = points.positions.norm(dim=1)
    seen, passed = from_middle[:800], from_middle[800:]
    assert float(((seen - RADIUS).abs() < 0.1).float().mean()) > 0.95  # its edge is a voxel of .08 wide
    assert float(seen.min()) > RADIUS - 0.25  # nothing of what is hidden
    assert float((passed > RADIUS).float().mean()) > 2 * float((seen > RADIUS).float().mean())  # on the way there
    towards = (points.positions[:800] * points.directions).sum(1)
    assert float(towards.max()) < 0.2  # only sides that face the viewer


def test_points_that_are_drawn_evenly_lie_as_often_on_the_way():
    source = points_of().source
    points = TeacherPoints(source, samples=1000, by_what_is_seen=False).batch(5)
    from_middle = points.positions.norm(dim=1)
    seen, passed = (float((part > RADIUS).float().mean()) for part in from_middle.split([800, 200]))
    assert seen == pytest.approx(passed, rel=0.2)
    assert seen > 0.15  # of those drawn by what is seen .05
    answers = source.teacher.at(points.positions[:800], points.directions)
    torch.testing.assert_close(points.rgb, answers.rgb)


@pytest.mark.parametrize("cone_angle", [0.0, 0.05])
def test_points_of_a_quick_teacher_come_once_and_lie_within_a_step_of_its_samples(cone_angle, monkeypatch):
    points = points_of(samples=300)
    model = points.source.teacher.model
    model.march = replace(model.march, cone_angle=cone_angle)
    monkeypatch.setattr("polyfield.fields.convert.points.SHIFT", 0.0)
    still = points.batch(1)
    monkeypatch.setattr("polyfield.fields.convert.points.SHIFT", 1.0)
    points._fill(0)
    moved = points.batch(1)
    assert len(moved.positions.unique(dim=0)) == 300 > len(still.positions.unique(dim=0))
    reach = (still.distances * cone_angle).clamp(min=MARCH.step_size)
    apart = (moved.positions - still.positions).abs().amax(1) / reach
    assert 0.95 < float(apart.max()) <= 1 + 1e-5
    assert torch.equal(moved.distances, still.distances)
    if cone_angle:
        assert float(reach.max()) > 1.5 * MARCH.step_size


@pytest.mark.parametrize(("for_costly", "steps"), [(False, 16), (True, 4)])
def test_of_a_costly_teacher_each_sample_is_asked_once(for_costly, steps, monkeypatch):
    source = points_of().source
    teacher = answered_by_a_hash_field(source)
    teacher.field.costly = True
    points = TeacherPoints(source, samples=300, for_costly=for_costly)
    assert points.steps == steps
    points.rays, asked, colored = 256, [], []
    geometry, radiance = teacher.field.geometry, teacher.field.radiance
    monkeypatch.setattr(teacher.field, "geometry", lambda x, **given: asked.append(x) or geometry(x, **given))

    def color(features, *given, **more):
        colored.append(len(features))
        return radiance(features, *given, **more)

    monkeypatch.setattr(teacher.field, "radiance", color)
    batches = [points.batch(step) for step in range(steps)]
    assert len(torch.cat(asked).unique(dim=0)) == len(torch.cat(asked))
    drawn = torch.cat([torch.cat([batch.positions[:240], batch.directions], 1) for batch in batches])
    assert sum(colored) == len(drawn.unique(dim=0)) < len(drawn)
    for batch in batches:
        answers = teacher.at(batch.positions[:240], batch.directions)
        torch.testing.assert_close(batch.rgb, answers.rgb)
        torch.testing.assert_close(batch.features, answers.features)
        torch.testing.assert_close(batch.density_raw[:240], answers.density_raw)
        torch.testing.assert_close(batch.density_raw[240:], teacher.density_at(batch.positions[240:]))


def test_points_say_what_the_teacher_says():
    points = points_of()
    teacher = answered_by_a_hash_field(points.source)
    batch = points.batch(2)
    answers = teacher.at(batch.positions[:800], batch.directions)
    torch.testing.assert_close(batch.rgb, answers.rgb)
    torch.testing.assert_close(batch.density_raw[:800], answers.density_raw)
    torch.testing.assert_close(batch.features, answers.features)
    rest = batch.positions[800:]
    expected = teacher.at(rest, torch.tensor([[0.0, 0.0, 1.0]]).expand_as(rest)).density_raw
    torch.testing.assert_close(batch.density_raw[800:], expected)


@torch.no_grad()
def test_losses_at_points_are_the_means_by_hand():
    task = task_of(0.5)
    points = task.points.batch(3)
    losses = task.point_losses(points, 3)
    geometry, seen = task.field.geometry(points.positions), len(points.rgb)
    rgb = task.field.radiance(geometry.features[:seen], points.directions)
    log_step = math.log(MARCH.step_size)
    apart = density_error(geometry.density_raw + log_step, points.density_raw + log_step).abs()
    huber = torch.where(apart < 1, 0.5 * apart**2, apart - 0.5)
    assert losses.density is not None
    assert losses.color is not None
    assert float(losses.density) == pytest.approx(float(huber.mean()), rel=1e-4)
    apart = (rgb - points.rgb).abs()
    huber = torch.where(apart < 0.1, 5 * apart**2, apart - 0.05)
    assert float(losses.color) == pytest.approx(float(huber.mean()), rel=1e-4)
    assert losses.pixels is None
    assert losses.features is None
    assert losses.empty is not None


@pytest.mark.parametrize("wide", [False, True])
def test_features_are_learned_where_the_colour_network_is_one(wide):
    source = points_of().source
    answered_by_a_hash_field(source, 30 if wide else 1)
    student = TensorField(TensorFieldConfig(first_voxels=8**3, final_voxels=8**3, density_width=16, color_width=16))
    config = RadianceTaskConfig(samples=1024, first_rays=256)
    given = (student, OccupancyGrid(cascades=1, resolution=16), MARCH, source, config, source.teacher)
    points = DistillTask(*given, same_features=True).points.batch(0)
    with torch.no_grad():
        losses = DistillTask(*given, same_features=True).point_losses(points, 0)
        spread = (points.features - points.features.mean(0)).square().mean().sqrt()
        assert (spread > 2) == wide
        scale = 2 / spread if wide else 1
        apart = scale * (student.geometry(points.positions[: len(points.rgb)]).features - points.features).abs()
    huber = torch.where(apart < 1, 0.5 * apart**2, apart - 0.5).mean()
    assert losses.features is not None
    assert float(losses.features) == pytest.approx(float(huber), rel=1e-4)


def test_a_student_learns_at_points_alone_what_is_seen():
    task = task_of(0.999)
    task.rays.batch = None  # pyright: ignore[reportAttributeAccessIssue]  no ray is asked for
    optimise(task, LoopConfig(max_steps=150))
    rays = task.rays.rays(2000, -1)
    rgb, alpha = task.teacher.seen(rays)
    white = torch.ones(3)
    mine = render_rays(task.field, task.occupancy, rays, MARCH, white).rgb
    assert float((mine - rgb - (1 - alpha[:, None])).square().mean()) < 10**-2.4


def test_rays_follow_points_and_the_loop_is_told():
    task = task_of(0.5)
    told, marched = [], []
    for step in range(10):
        told.append(task.grow(step / 10))
        marched.append("pixels" in task.step(step, 1.0).counts)
    assert told == [False] * 5 + [True] + [False] * 4
    assert marched == [False] * 5 + [True] * 5


@pytest.mark.parametrize(("until", "finish"), [(0.5, 0.2), (0.5, 0.8), (0.0, 0.3), (0.5, 0.0)])
def test_photos_finish_whatever_came_before(until, finish):
    task, told, stages = task_of(until, finish=finish), [], []
    for step in range(10):
        told.append(task.grow(step / 10))
        stages.append(terms(task.step(step, 1.0).counts))
    expected = ["points" if k < round(10 * until * (1 - finish)) else "rays" for k in range(10)]
    expected[round(10 * (1 - finish)) :] = ["photos"] * round(10 * finish)
    assert stages == expected
    assert all(told[k] for k in range(1, 10) if stages[k] != stages[k - 1])


def test_stages_never_come_back():
    """When the loop plans more steps, less of them is done."""
    task = task_of(0.5, finish=0.2)
    assert task.grow(0.85)
    assert not task.grow(0.3)
    assert terms(task.step(3, 1.0).counts) == "photos"
    again = task_of(0.5, finish=0.2)
    again.load_scalars(task.scalars())
    assert not again.grow(0.3)
    assert terms(again.step(3, 1.0).counts) == "photos"


def test_draws_are_in_proportion_however_many_rows_there_are():
    weights = torch.tensor([0.1, 0.001]).repeat_interleave(1 << 21)
    rows = _draw(weights, 1 << 20, torch.Generator().manual_seed(0))
    assert float((rows >= 1 << 21).float().mean()) == pytest.approx(1 / 101, rel=0.03)
    assert float((rows >= 3 << 20).float().mean()) == pytest.approx(0.5 / 101, rel=0.05)
    never = _draw(torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0]), 1000, torch.Generator().manual_seed(0))
    assert sorted(set(never.tolist())) == [1, 3]
    assert len(_draw(torch.ones((1 << 24) + 1), 10, torch.Generator().manual_seed(0))) == 10


def terms(counts: dict) -> str:
    if "pixels" not in counts:
        return "points"
    return "rays" if "density" in counts else "photos"


def test_a_step_takes_points_from_rays_all_over_the_pool():
    points = points_of()
    batches = [points.batch(step) for step in range(points.steps)]
    rays = len(torch.cat([batch.directions for batch in batches]).unique(dim=0))
    assert all(len(batch.directions.unique(dim=0)) > 0.5 * rays for batch in batches)


def test_as_many_rays_are_marched_as_have_samples_enough(monkeypatch):
    few, many, fewer = points_of(samples=200), points_of(samples=20_000), points_of(samples=20_000)
    few.batch(0)
    assert few.rays == 1024  # the least
    monkeypatch.setattr("polyfield.fields.convert.points.SAMPLES", 100)
    many.batch(0)
    assert many.rays == 20_000  # the most
    monkeypatch.setattr("polyfield.fields.convert.points.SAMPLES", 1)
    fewer.batch(0)
    assert 1024 < fewer.rays < 20_000
    assert len(fewer._march(fewer.rays, 0)[1].rows) == pytest.approx(20_000, rel=0.15)


def test_draws_are_rounded_up_or_down_at_random():
    drawn = [_draw(torch.tensor([1.0, 0.25]), 1, torch.Generator().manual_seed(k)).item() for k in range(400)]
    assert sum(drawn) / 400 == pytest.approx(0.2, abs=0.06)


def test_points_and_haze_are_as_many_as_a_step_has_samples():
    task = task_of(0.5)
    assert task.haze == 2048 // 8
    assert len(task.points.batch(0).positions) + task.haze == 2048


def test_where_nothing_is_seen_a_step_changes_nothing():
    task = task_of(0.5, box=torch.tensor([[40.0, 40.0, 40.0], [40.1, 40.1, 40.1]]))  # cameras elsewhere
    before = {name: tensor.clone() for name, tensor in task.tensors().items()}
    assert len(task.points.batch(0).positions) == 0
    assert not task.step(0, 1.0).finite
    assert all(torch.equal(before[name], tensor) for name, tensor in task.tensors().items())


def test_the_share_of_points_is_checked():
    with pytest.raises(ConfigError, match=r"points_until must be in \[0, 1\)"):
        DistillWeights(points_until=1.0)
