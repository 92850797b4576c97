"""The loop: schedule, plan, guards, interruption and exact continuation, on a task small enough to see through."""

from __future__ import annotations

import itertools
import os
import signal
import time

import pytest
import torch

from polyfield.fields.errors import ConfigError, NativeError
from polyfield.fields.optim.loop import Clock, LoopConfig, LoopState, StepResult, lr_scale, optimise


class Descent:
    """Gradient descent on |x|^2 that can be told to go wrong at some step."""

    def __init__(self, poison_at: int | None = None, seconds: float = 0.0) -> None:
        self.x = torch.ones(3)
        self.seen: list[tuple[int, float]] = []
        self.poison_at, self.seconds = poison_at, seconds

    def step(self, step: int, lr_scale: float) -> StepResult:
        if self.seconds:
            time.sleep(self.seconds)
        self.seen.append((step, lr_scale))
        self.x -= 0.01 * lr_scale * self.x
        if step == self.poison_at:
            self.x[1] = float("nan")
        return StepResult(float(self.x.square().sum()), True, {})

    def grow(self, progress: float) -> bool:
        return False

    def tensors(self):
        return {"x": self.x}

    def scalars(self):
        return {"seen": len(self.seen)}

    def load_scalars(self, values):
        pass


def test_learning_rate_rises_stays_and_decays_to_its_final_value():
    task = Descent()
    optimise(task, LoopConfig(max_steps=200, warmup_steps=10, decay_from=0.5, final_lr=0.01))
    rates = [lr for _, lr in task.seen]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:100] == [1.0] * 91
    assert rates[-1] == pytest.approx(0.01, rel=0.06)
    assert rates[100:] == sorted(rates[100:], reverse=True)


@pytest.mark.parametrize("cut", [1, 60, 119])
def test_a_continued_run_equals_an_uninterrupted_one(cut):
    config = LoopConfig(max_steps=120)
    whole = Descent()
    optimise(whole, config)
    first = Descent()

    def stop(state, clock):
        if state.step == cut:
            raise KeyboardInterrupt

    state = LoopState()
    with pytest.raises(KeyboardInterrupt):
        optimise(first, config, [stop], state)
    restored = LoopState.from_dict(state.as_dict())
    optimise(first, config, [], restored)
    assert first.seen == whole.seen
    assert torch.equal(first.x, whole.x)


def test_raising_the_steps_appends_steps_at_the_final_rate():
    short, state = Descent(), LoopState()
    optimise(short, LoopConfig(max_steps=100, final_lr=0.5), [], state)
    optimise(short, LoopConfig(max_steps=130, final_lr=0.5), [], state)
    assert [s for s, _ in short.seen] == list(range(130))
    assert [lr for _, lr in short.seen[100:]] == [0.5] * 30


def test_seconds_become_steps_and_are_kept():
    task = Descent(seconds=0.002)
    state = optimise(task, LoopConfig(max_seconds=0.6, measure_shares=(0.2,)))
    assert state.plan_steps == state.total_steps == state.step
    assert 0.4 < state.seconds < 1.0
    again = LoopState.from_dict(state.as_dict())
    assert optimise(task, LoopConfig(max_seconds=0.6), [], again).step == state.step


def test_steps_that_become_quicker_are_planned_again_and_the_rate_goes_on_from_where_it_was():
    class Quickening(Descent):
        def step(self, step, lr_scale):
            self.seconds = 0.05 if step < 16 else 0.01
            return super().step(step, lr_scale)

    task, state = Quickening(), LoopState()
    optimise(task, LoopConfig(max_seconds=2.0, warmup_steps=1, final_lr=0.01), [], state)
    assert state.plans == 3
    assert state.seconds > 1.6  # planned once, it ends after 1.1 s
    rates = [rate for _, rate in task.seen]
    assert all(0.7 * a < b <= a for a, b in itertools.pairwise(rates))
    assert 0.01 <= rates[-1] < 0.012


def test_paused_work_does_not_count():
    clock = Clock(0.0)
    with clock.paused():
        time.sleep(0.05)
    assert clock.seconds < 0.04


def test_steps_are_planned_by_their_speed_since_the_task_grew():
    class Slowing(Descent):
        def grow(self, progress):
            if progress < 0.3 or self.seconds == 0.1:
                return False
            self.seconds = 0.1
            return True

    state = optimise(Slowing(seconds=0.01), LoopConfig(max_seconds=2.0, measure_shares=(0.45,)))
    assert state.total_steps is not None
    assert state.seconds < 3.5  # planned by the quick steps before, it takes 6 s


def test_a_poisoned_tensor_is_rolled_back_and_the_rate_halved():
    task = Descent(poison_at=15)
    state = optimise(task, LoopConfig(max_steps=40, guard_every=10))
    assert state.rollbacks == 1
    assert state.lr_damping == 0.5
    assert bool(torch.isfinite(task.x).all())


def test_a_task_that_grows_is_rolled_back_to_what_it_has_grown_to():
    class Growing(Descent):
        def grow(self, progress):
            if progress < 0.35 or len(self.x) == 5:
                return False
            self.x = torch.full((5,), 2.0)
            return True

    task = Growing(poison_at=15)
    state = optimise(task, LoopConfig(max_steps=40, guard_every=10))
    assert state.rollbacks == 1
    assert len(task.x) == 5
    assert bool(torch.isfinite(task.x).all())
    assert [step for step, _ in task.seen] == list(range(40))


def test_giving_up_names_the_tensor():
    class Hopeless(Descent):
        def step(self, step, lr_scale):
            self.x[0] = float("inf")
            return StepResult(0.0, True, {})

    with pytest.raises(NativeError, match="tensor 'x' is not finite"):
        optimise(Hopeless(), LoopConfig(max_steps=100, guard_every=5))


class Stuck(Descent):
    """Not finite from step `first` to `last`."""

    first, last = 0, 10**9

    def step(self, step, lr_scale):
        super().step(step, lr_scale)
        return StepResult(float("nan"), not self.first <= step < self.last, {})


def test_steps_that_stay_without_effect_are_rolled_back_and_then_end_the_run():
    task = Stuck()
    with pytest.raises(NativeError, match="50 steps one after the other were not finite at step 200"):
        optimise(task, LoopConfig(max_steps=1000))
    assert len(task.seen) == 200  # three roll-backs of 50 steps, and 50 more


def test_a_few_steps_without_effect_change_nothing():
    task = Stuck()
    task.first, task.last = 5, 30
    state = optimise(task, LoopConfig(max_steps=60))
    assert (state.skipped, state.rollbacks, state.lr_damping) == (25, 0, 1.0)


def test_ctrl_c_waits_for_the_end_of_the_step():
    class Slow(Descent):
        def step(self, step, lr_scale):
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return super().step(step, lr_scale)

    task, state = Slow(), LoopState()
    with pytest.raises(KeyboardInterrupt):
        optimise(task, LoopConfig(max_steps=100), [], state)
    assert state.step == 4
    assert len(task.seen) == 4


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="exactly one"):
        LoopConfig(max_steps=10, max_seconds=1.0)
    with pytest.raises(ConfigError, match="max_steps must be at least 1"):
        LoopConfig(max_steps=0)
    with pytest.raises(ConfigError, match="max_seconds must be positive"):
        LoopConfig(max_seconds=float("nan"))


def test_the_rate_before_the_plan_is_known_is_full():
    config = LoopConfig(max_seconds=10.0, warmup_steps=1)
    assert lr_scale(500, LoopState(), config) == 1.0


def test_what_was_spent_before_the_first_step_is_not_taken_for_its_length():
    task = Descent(seconds=0.01)
    state = optimise(task, LoopConfig(max_seconds=1.0), state=LoopState(seconds=0.6))
    assert 15 <= state.step <= 40
