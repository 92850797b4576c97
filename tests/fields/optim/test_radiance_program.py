"""The train step of a GPU as one list of launches equals marching and the fused step one after the other.

Runs where the kernels run: on a GPU, or in the emulator (`test_cuda.py` starts this file there).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from helpers import radiance_world
from helpers.radiance_world import EXTENT, MARCH, RATES, World
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from polyfield.fields.geometry import Rays
from polyfield.fields.ops import radiance_step
from polyfield.fields.ops.fused_mlp import fused_mlp
from polyfield.fields.ops.hash_encode import HashGridSpec, hash_encode
from polyfield.fields.ops.radiance_step import RadianceBatch, radiance_gradients, radiance_step_
from polyfield.fields.optim.radiance_program import ProgramResult, RadianceProgram, serves
from polyfield.fields.render.march import PackedSamples, march_visible

DEVICE = "cuda" if torch.cuda.is_available() and not os.environ.get("POLYFIELD_CUDA_DRIVER") else "cpu"
WHY = "needs a GPU with tensor cores, or the emulator that test_cuda.py starts this file in"
pytestmark = pytest.mark.skipif(not serves(torch.zeros(1, device=DEVICE), "bf16"), reason=WHY)

STATES = ("table", "density", "color")


@pytest.fixture(autouse=True)
def on_device(monkeypatch) -> Iterator[None]:
    """New tensors are on the device, and the fused step runs as the operators' kernels do."""
    monkeypatch.setattr(radiance_step, "_in_one_kernel", lambda parameters: False)
    torch.set_default_device(DEVICE)
    yield
    torch.set_default_device("cpu")


def make_world(**changes) -> World:
    return radiance_world.make_world(DEVICE, **changes)


def make_rays(count: int, seed: int = 0) -> tuple[Tensor, ...]:
    return radiance_world.make_rays(count, DEVICE, seed)


def march(world: World, rays: tuple[Tensor, ...], step: int) -> PackedSamples:
    def density_pass(x: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
        features = hash_encode(x * (0.5 / EXTENT) + 0.5, world.rounded, world.spec.grid)
        raw = fused_mlp(features, world.parameters.density, world.spec.density, precision="bf16")[:, 0]
        return raw.contiguous(), features

    activation = world.spec.density_activation
    return march_visible(
        Rays(*rays[:2]), world.occupancy, density_pass, MARCH, activation=activation, seed=5, step=step, jitter=True
    )


def batch_of(samples: PackedSamples, rays: tuple[Tensor, ...]) -> RadianceBatch:
    _, directions, targets, backgrounds = rays
    unit = samples.positions * (0.5 / EXTENT) + 0.5
    seen = (directions, targets, backgrounds)
    return RadianceBatch(unit, samples.deltas, samples.offsets, *seen, samples.rows, samples.cache)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))


def run(program: RadianceProgram, rays: tuple[Tensor, ...], step: int, rate: float = 1.0) -> ProgramResult:
    """A step and what itself saw."""
    program.run(*rays, step=step, rate=rate)
    return own(program)


def own(program: RadianceProgram) -> ProgramResult:
    """What the last step saw."""
    reading = program._pending[-1] if program._pending else program._last
    assert reading is not None
    return reading.result()


VARIANTS = [
    {},
    {"loss": "huber"},
    {"density_activation": "softplus", "sh_bands": 2},
    {
        "width": 64,
        "grid": HashGridSpec(levels=3, channels=4, base_resolution=4, finest_resolution=32, log2_table_size=8),
    },
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: "-".join(c) or "plain")
def test_a_step_is_marching_and_the_fused_step(changes):
    world, rays = make_world(**changes), make_rays(200)
    samples = march(world, rays, 7)
    out, gradients = radiance_gradients(batch_of(samples, rays), world.parameters, world.spec, precision="bf16")
    seen = run(world.program(), rays, 7)
    assert seen.loss == pytest.approx(out.loss, rel=1e-4)
    assert seen.squared == pytest.approx(float((out.rgb - rays[2]).square().mean()), rel=1e-4)
    assert 0 < seen.live == samples.rows.shape[0] < samples.marched
    if DEVICE == "cpu":  # on a GPU `march_visible` takes waves of its own
        assert seen.marched == samples.marched
    assert (seen.rays, seen.dropped, seen.failed, seen.skipped) == (200, 0, False, 0)
    for name, moment, gradient in zip(STATES, world.first, gradients, strict=True):
        assert relative(moment, 0.1 * gradient) < 1e-4, name


def test_many_steps_train_as_the_fused_step_does():
    mine, theirs = make_world(), make_world()
    program = mine.program()
    for step, count in enumerate((300, 40, 300, 129)):
        rays, rate = make_rays(count, step), 1.0 / (1 + step)
        seen = run(program, rays, step, rate)
        samples = march(theirs, rays, step)
        out = radiance_step_(
            batch_of(samples, rays),
            *theirs[1:4],
            theirs.spec,
            RATES._replace(table_lr=RATES.table_lr * rate, network_lr=RATES.network_lr * rate),
            step=step + 1,
            precision="bf16",
            table_rounded=theirs.rounded,
        )
        assert seen.loss == pytest.approx(out.loss, rel=1e-2)
        assert seen.live == pytest.approx(samples.rows.shape[0], rel=1e-2)
    start = make_world().parameters
    for name, got, want, first in zip(STATES, mine.parameters, theirs.parameters, start, strict=True):
        assert relative(got - first, want - first) < 0.05, name
    assert torch.equal(mine.rounded, mine.parameters.table.half())


def test_rays_without_room_are_left_out_and_counted():
    world, rays = make_world(), make_rays(300)
    samples = march(world, rays, 0)
    program = world.program(samples=1024)  # room for 2048 live samples
    seen = run(program, rays, 0)
    assert samples.rows.shape[0] > 2048 >= seen.live > 1024
    assert seen.dropped > 0
    assert seen.rays + seen.dropped == 300
    whole = program._live.whole.bool()
    counts = (samples.offsets[1:] - samples.offsets[:-1]).long()
    assert seen.live == int(counts[whole].sum())
    kept = samples.rows[torch.repeat_interleave(whole, counts)]
    offsets = torch.cat([counts.new_zeros(1), counts[whole].cumsum(0)]).int()
    some = samples._replace(rows=kept, offsets=offsets)
    batch = batch_of(some, tuple(t[whole] for t in rays))
    out, gradients = radiance_gradients(batch, make_world().parameters, world.spec, precision="bf16")
    assert seen.loss == pytest.approx(out.loss, rel=1e-4)
    for name, moment, gradient in zip(STATES, world.first, gradients, strict=True):
        assert relative(moment, 0.1 * gradient) < 1e-4, name


def test_rays_with_more_samples_than_the_waves_reach_are_left_out():
    world, rays = make_world(), make_rays(100)
    counts = march(world, rays, 0)
    seen = run(world.program(waves=(4, 8)), rays, 0)
    assert 0 < seen.rays < 100
    assert seen.dropped == 100 - seen.rays
    assert seen.live < counts.rows.shape[0]


@pytest.mark.parametrize("fault", ["nothing visible", "a target is not a number", "a weight is infinite"])
def test_a_step_that_fails_changes_nothing(fault):
    world, rays = make_world(), make_rays(60)
    program = world.program()
    bits = world.occupancy.bits.clone(), world.occupancy.coarse.clone()
    weight = float(world.parameters.color[3])
    if fault == "nothing visible":
        world.occupancy.bits.zero_()
        world.occupancy.coarse.fill_(1)
    elif fault == "a target is not a number":
        rays[2][17, 1] = float("nan")
    else:
        world.parameters.color[3] = float("inf")
    before = [t.clone() for t in (*world.parameters, *world.first, *world.second, world.rounded)]
    seen = run(program, rays, 0)
    assert (seen.failed, seen.skipped) == (True, 1)
    for kept, tensor in zip(before, (*world.parameters, *world.first, *world.second, world.rounded), strict=True):
        assert torch.equal(kept, tensor)
    # and leaves nothing behind
    world.occupancy.bits.copy_(bits[0])
    world.occupancy.coarse.copy_(bits[1])
    world.parameters.color[3] = weight
    fresh = make_world()
    again, straight = run(program, make_rays(60), 1), run(fresh.program(), make_rays(60), 1)
    assert again._replace(skipped=0) == pytest.approx(straight, rel=1e-5)
    assert again.skipped == 1
    for mine, theirs in zip(world.first, fresh.first, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_list_of_launches_runs_no_torch_operator_and_takes_no_memory():
    class Refuse(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            raise AssertionError(f"the list runs {func}")

    world = make_world()
    program = world.program()
    run(program, make_rays(50), 0)
    taken = torch.cuda.memory_allocated() if DEVICE == "cuda" else 0
    with Refuse():
        program._launch_all()
    assert (torch.cuda.memory_allocated() if DEVICE == "cuda" else 0) == taken
    assert (program._graph is not None) == (DEVICE == "cuda")


def test_deterministic_steps_repeat_exactly_and_are_the_same_steps():
    def trained(deterministic: bool) -> World:
        torch.use_deterministic_algorithms(deterministic)
        try:
            world = make_world()
            program = world.program()
            for step in range(3):
                run(program, make_rays(150, step), step)
        finally:
            torch.use_deterministic_algorithms(False)
        return world

    first, second, floats = trained(True), trained(True), trained(False)
    for a, b, c in zip(first.second, second.second, floats.second, strict=True):
        assert torch.equal(a, b)
        assert relative(a, c) < 1e-3


def test_results_come_two_steps_late_so_that_nothing_waits():
    world, rays = make_world(), make_rays(64)
    program = world.program()
    returned, seen = [], []
    for step in range(5):
        returned.append(program.run(*rays, step=step, rate=1.0).loss)
        seen.append(own(program).loss)
    assert returned == [seen[0], seen[0], seen[0], seen[1], seen[2]]
