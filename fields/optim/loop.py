"""The one optimisation loop: steps, schedule, clock, guards and checkpoints; used by training and by conversion.

The loop knows no rays and no fields. A `Task` does one step and hands out its tensors; hooks look on. The learning
rate depends on the step only: it rises over `warmup_steps`, stays, and decays exponentially from `decay_start` to the
planned last step. With `max_seconds` the number of steps is planned from the measured speed at a few shares of the
budget, and stored: steps may become quicker (space turns out to be empty) or slower (the field grows) after the first
plan. Resuming uses the stored plan; once the last is made, an interrupted run equals an uninterrupted one.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, NativeError


class StepResult(NamedTuple):
    """What one step says of itself."""

    loss: float
    finite: bool
    """False: loss or gradients were not finite and nothing was changed."""
    counts: dict[str, float]
    """Rays, samples and whatever else belongs into the log."""


class Task(Protocol):
    """What is optimised."""

    def step(self, step: int, lr_scale: float) -> StepResult:
        """Do step `step` (from 0) with learning rates scaled by `lr_scale`."""
        ...

    def grow(self, progress: float) -> bool:
        """Called before every step with the share of the run that is done, 0 to 1. True: `tensors` are others now."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes: parameters, optimiser moments, occupancy. The tensors themselves, not copies."""
        ...

    def scalars(self) -> dict[str, Any]:
        """The rest of the state, as JSON values."""
        ...

    def load_scalars(self, values: dict[str, Any]) -> None:
        """Take back what `scalars` gave; `tensors` then have the shapes that they had."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how fast."""

    max_steps: int | None = None
    """Total steps; a resumed run may raise it, the added steps then run at the final learning rate."""
    max_seconds: float | None = None
    """Budget in seconds from the first step, evaluation excluded."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises linearly from 0."""
    decay_from: float = 0.35
    """Share of the steps (of the budget, with `max_seconds`) after which the learning rate decays."""
    final_lr: float = 0.03
    """Learning-rate factor at the planned last step."""
    measure_shares: tuple[float, ...] = (0.35, 0.6, 0.85)
    """Shares of `max_seconds`, or of the steps planned so far, after which the number of steps is planned from the
    measured speed."""
    guard_every: int = 250
    """Steps between checks of all tensors for NaN and Inf, and between snapshots to roll back to."""
    max_rollbacks: int = 3
    """Roll-backs before giving up."""
    max_skipped: int = 50
    """Steps one after the other that are not finite, before a roll-back."""

    def __post_init__(self) -> None:
        if (self.max_steps is None) == (self.max_seconds is None):
            raise ConfigError("exactly one of max_steps and max_seconds must be given")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1; got {self.max_steps}")
        if self.max_seconds is not None and not 0 < self.max_seconds < math.inf:
            raise ConfigError(f"max_seconds must be positive and finite; got {self.max_seconds}")


@dataclass
class LoopState:
    """Where a run is. Written to checkpoints."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Training time so far, evaluation and other excluded work not counted."""
    plan_steps: int | None = None
    """Last step of the schedule, once known."""
    decay_start: int | None = None
    """First step of the decay, once known; with a later plan, the step at which that was made."""
    decay_begin: float = 1.0
    """Learning-rate factor there."""
    plans: int = 0
    """How many of `measure_shares` are past."""
    total_steps: int | None = None
    """Where the run ends (beyond `plan_steps` where a resumed run was prolonged)."""
    skipped: int = 0
    """Steps that were not finite and changed nothing."""
    rollbacks: int = 0
    lr_damping: float = 1.0
    """Halved by each roll-back."""
    result: StepResult = field(default_factory=lambda: StepResult(float("nan"), True, {}))

    def as_dict(self) -> dict[str, Any]:
        """JSON form; the last step's result is not part of the state."""
        return {k: v for k, v in self.__dict__.items() if k != "result"}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> LoopState:
        return LoopState(**values)


class Clock:
    """Counts the seconds of training; `with clock.paused()` leaves work out."""

    def __init__(self, seconds: float) -> None:
        self._before = seconds
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - begin


Hook = Callable[[LoopState, Clock], None]
"""Called after every step. A hook that evaluates does so inside `clock.paused()`."""


def lr_scale(step: int, state: LoopState, config: LoopConfig) -> float:
    """Learning-rate factor of a step."""
    scale = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if state.decay_start is not None and state.plan_steps is not None and step >= state.decay_start:
        share = min(1.0, (step - state.decay_start) / max(1, state.plan_steps - state.decay_start))
        scale *= state.decay_begin * (config.final_lr / state.decay_begin) ** share
    return scale * state.lr_damping


def optimise(task: Task, config: LoopConfig, hooks: Sequence[Hook] = (), state: LoopState | None = None) -> LoopState:
    """Run `task` to the end of its plan.

    Args:
        state: of an earlier run to continue; the task's tensors must already be those of that state.

    Raises:
        NativeError: tensors or steps stayed non-finite after `max_rollbacks` roll-backs; the text names the tensor.
        KeyboardInterrupt: passed through; the task is then between two steps, so that its state can be saved.
    """
    state = state or LoopState()
    _plan_from_steps(state, config)
    clock = Clock(state.seconds)
    began = state.step, state.seconds
    snapshot = _Snapshot(task, state)
    marks: list[tuple[int, float]] = []
    interrupted: list[BaseException] = []
    in_row = 0
    while state.total_steps is None or state.step < state.total_steps:
        with _deferred_interrupt(interrupted):
            if task.grow(_progress(state, config)):
                snapshot = _Snapshot(task, state)
                marks.clear()  # steps take longer from here on
            result = task.step(state.step, lr_scale(state.step, state, config))
            state.step += 1
            state.seconds = clock.seconds
            state.skipped += not result.finite
            in_row = 0 if result.finite else in_row + 1
            state.result = result
            marks.append((state.step, state.seconds))
            if config.max_seconds is not None and state.plans < len(config.measure_shares):
                _plan_from_speed(state, config, marks, began)
            last = state.step == state.total_steps
            stuck = in_row == config.max_skipped
            if state.step % config.guard_every == 0 or last or stuck:
                _guard(task, state, snapshot, config, stuck)
                in_row = 0 if stuck else in_row
            for hook in hooks:
                hook(state, clock)
        if interrupted:
            raise interrupted[0]
    state.seconds = clock.seconds
    return state


def _progress(state: LoopState, config: LoopConfig) -> float:
    if state.plan_steps is not None:
        return min(1.0, state.step / state.plan_steps)
    return min(1.0, state.seconds / (config.max_seconds or math.inf))


def _plan_from_steps(state: LoopState, config: LoopConfig) -> None:
    if config.max_steps is None:
        return
    if state.plan_steps is None:
        state.plan_steps = config.max_steps
        state.decay_start = int(config.decay_from * config.max_steps)
    state.total_steps = max(config.max_steps, state.step)


def _plan_from_speed(
    state: LoopState, config: LoopConfig, marks: list[tuple[int, float]], began: tuple[int, float]
) -> None:
    """At the next of `measure_shares`, plan the number of steps. The speed is that of the second half of what was
    measured since the last plan or since the task last grew, for the first steps march through space that is not yet
    known to be empty; 6 % stay in reserve, since steps grow a little (rays are added as the scene empties) and the
    model is yet to be saved. The learning rate goes on from where it is."""
    budget = config.max_seconds
    assert budget is not None
    share = config.measure_shares[state.plans]
    if state.seconds < share * budget and state.step < share * (state.plan_steps or math.inf):
        return
    step0, seconds0 = marks[len(marks) // 2]
    if state.step == step0:  # a single step used up the measuring time
        step0, seconds0 = began
    per_step = (state.seconds - seconds0) / (state.step - step0)
    remaining = max(0.0, 0.94 * budget - state.seconds)
    decaying = state.decay_start is not None and state.step > state.decay_start
    if decaying:
        state.decay_begin = lr_scale(state.step, replace(state, lr_damping=1.0), replace(config, warmup_steps=0))
    state.total_steps = state.plan_steps = state.step + int(remaining / per_step)
    state.decay_start = state.step if decaying else max(state.step, int(config.decay_from * state.plan_steps))
    state.plans += 1
    marks.clear()


class _Snapshot:
    """A copy of the task to fall back to."""

    def __init__(self, task: Task, state: LoopState) -> None:
        self.copies = {name: tensor.detach().clone() for name, tensor in task.tensors().items()}
        self.scalars, self.step = task.scalars(), state.step

    def take(self, task: Task, state: LoopState) -> None:
        for name, tensor in task.tensors().items():
            self.copies[name].copy_(tensor.detach())
        self.scalars, self.step = task.scalars(), state.step

    @torch.no_grad()
    def restore(self, task: Task) -> None:
        task.load_scalars(self.scalars)
        for name, tensor in task.tensors().items():
            tensor.copy_(self.copies[name])


def _guard(task: Task, state: LoopState, snapshot: _Snapshot, config: LoopConfig, stuck: bool) -> None:
    bad = next(
        (f"tensor {n!r} is" for n, t in task.tensors().items() if t.is_floating_point() and not _is_finite(t)), None
    )
    bad = bad or (f"{config.max_skipped} steps one after the other were" if stuck else None)
    if bad is None:
        snapshot.take(task, state)
        return
    state.rollbacks += 1
    if state.rollbacks > config.max_rollbacks:
        raise NativeError(
            f"{bad} not finite at step {state.step}, after {config.max_rollbacks} roll-backs with halved learning "
            "rates; try lower ones, or fp32 where bf16 computes, and look for NaN in the poses and images"
        )
    snapshot.restore(task)
    state.lr_damping *= 0.5


@torch.no_grad()
def _is_finite(tensor: Tensor) -> bool:
    # A sum is NaN or Inf if any element is; one pass and no temporary. Sums of finite float32 values overflow only
    # beyond 1e38, which is as good as non-finite here.
    return bool(torch.isfinite(tensor.sum()))


@contextmanager
def _deferred_interrupt(caught: list[BaseException]) -> Iterator[None]:
    """Ctrl-C inside the block is held back until its end, so that a step is done wholly or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, lambda *_: caught.append(KeyboardInterrupt()))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
