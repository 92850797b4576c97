"""Active learning: what was wrong is looked at again, and what is remembered survives a checkpoint."""

from __future__ import annotations

import pytest
import torch
from helpers.ball_model import ball_model

from polyfield.fields.convert import ActiveRays, Teacher, TeacherRays, orbit_cameras
from polyfield.fields.convert.active import HARD
from polyfield.fields.convert.teacher import POOL_STEPS, POOL_VIEWS
from polyfield.fields.errors import ConfigError

RAYS = 256


def source(*levels, rays: int = RAYS) -> ActiveRays:
    model = ball_model()
    return ActiveRays(Teacher(model), orbit_cameras(model.occupancy.occupied_box()), rays=rays, seed=3, levels=levels)


def errors_of(batch) -> torch.Tensor:
    """Any function of a ray: larger towards +x."""
    return batch.rays.directions[:, 0].clamp(min=0) + 1e-3


def learn(rays: ActiveRays, steps: range, count: int = 200) -> list[torch.Tensor]:
    out = []
    for step in steps:
        batch = rays.batch(step, count)
        rays.learned(errors_of(batch))
        out.append(torch.cat([batch.rays.origins, batch.rays.directions, batch.targets], 1))
    return out


@pytest.mark.parametrize("levels", [(), ("points",)])
def test_without_levels_of_rays_these_are_those_of_the_plain_source(levels):
    active = source(*levels)
    plain = TeacherRays(active.teacher, active.cameras, rays=RAYS, seed=3)
    for step in (0, 1, POOL_STEPS, 5 * POOL_STEPS):
        a, b = active.batch(step, 50), plain.batch(step, 50)
        assert torch.equal(a.rays.origins, b.rays.origins)
        assert torch.equal(a.targets, b.targets)
        active.learned(errors_of(a))
    assert active.tensors() == {}


def test_a_tenth_of_a_step_is_drawn_by_error():
    rays = source("rays")
    rays.batch(0, 10)
    rays.memory["error"].zero_()
    rays.memory["error"][77] = 1.0
    rays.batch(1, 100)
    assert int((rays._chosen == 77).sum()) >= HARD * 100


def test_the_worst_rays_come_again_with_what_the_teacher_sees():
    rays = source("rays")
    learn(rays, range(POOL_STEPS))
    first = rays._pool
    assert first is not None
    hardest = rays.memory["error"].argsort(descending=True, stable=True)[: int(HARD * RAYS)]
    rays.batch(POOL_STEPS, 10)
    second = rays._pool
    assert second is not None
    count = len(hardest)
    assert torch.equal(second.rays.directions[:count], first.rays.directions[hardest])
    assert bool((second.frames[:count] == -1).all())
    assert bool((second.frames[count:] >= 0).all())
    rgb, alpha = rays.teacher.seen(second.rays)
    torch.testing.assert_close(second.rgb, rgb)
    torch.testing.assert_close(second.alpha, alpha)
    assert len(second.rays.origins) == RAYS


def test_the_worst_views_are_seen_again_a_little_turned():
    rays = source("cameras", rays=4096)
    learn(rays, range(POOL_STEPS), count=2000)
    pool, error = rays._pool, rays.memory["error"].clone()
    assert pool is not None
    means = torch.stack([error[(pool.frames == v) & (error > 0)].mean() for v in range(POOL_VIEWS)])
    worst = means.argsort(descending=True)[: int(HARD * POOL_VIEWS)]
    before = rays._views(0, rays.generator(1))
    rays.batch(POOL_STEPS, 10)
    after = rays._views(1, rays.generator(3))
    again, old = after[: len(worst)], before[worst]
    torch.testing.assert_close(again.centres(), old.centres())
    cosine = (again.world_from_camera[:, :, 2] * old.world_from_camera[:, :, 2]).sum(1)
    assert bool((cosine > 0.9).all())
    assert bool((cosine < 1 - 1e-6).any())
    plain = TeacherRays(rays.teacher, rays.cameras, rays=16, seed=3)._views(1, rays.generator(3))
    assert torch.equal(after[len(worst) :].centres(), plain[len(worst) :].centres())
    assert torch.equal(rays.rays(9, -1).origins, source().rays(9, -1).origins)  # a probe stays what it was


@pytest.mark.parametrize("levels", [("rays",), ("cameras",), ("cameras", "rays")])
@pytest.mark.parametrize("stop", [POOL_STEPS + 5, 2 * POOL_STEPS])
def test_a_source_read_from_its_tensors_goes_on_alike(levels, stop):
    whole, parts, again = source(*levels), source(*levels), source(*levels)
    expected = learn(whole, range(3 * POOL_STEPS), count=64)
    found = learn(parts, range(stop), count=64)
    for name, tensor in again.tensors().items():
        tensor.copy_(parts.tensors()[name])
    found += learn(again, range(stop, 3 * POOL_STEPS), count=64)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_unknown_levels_are_refused():
    with pytest.raises(ConfigError, match="levels of active learning are cameras, rays, points; got views"):
        source("views")
