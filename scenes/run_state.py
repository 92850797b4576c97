"""What does a run keep while it goes, and how does it stand? Its log, the state that it is continued from, its speed.

Used by training and by conversion; a run folder's other files are `cli.run_folder`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..fields.errors import ConfigError, FormatError
from ..fields.formats.model_file import read_tensors, write_tensors
from ..fields.optim.field_task import FieldTask
from ..fields.optim.loop import LoopState

CHECKPOINT, LOG = "checkpoint.safetensors", "metrics.jsonl"


class Progress(NamedTuple):
    """How a run stands."""

    step: int
    total_steps: int | None
    """None until `max_seconds` has been turned into steps."""
    loss: float
    train_psnr: float
    """Of the last step's rays, dB."""
    heldout_psnr: float | None
    """Of a fixed sample of held-out rays, dB (of a conversion: of rays as the teacher sees them); None before the first
    look or without held-out frames."""
    rays_per_second: float
    seconds: float
    seconds_left: float
    """NaN until known."""


class StoredState(NamedTuple):
    """What a checkpoint holds."""

    header: dict[str, Any]
    tensors: dict[str, torch.Tensor]


class Speedometer:
    """Turns the loop's states into `Progress`, every ten steps."""

    def __init__(self, max_seconds: float | None) -> None:
        self.max_seconds = max_seconds
        self._marks: list[tuple[float, float]] = []

    def report(self, state: LoopState, quality: float | None, sink: Callable[[Progress], None]) -> None:
        """Called after every step; `quality` goes to `Progress.heldout_psnr`."""
        counts = state.result.counts
        self._marks = [*self._marks[-49:], (state.seconds, counts.get("rays", 0.0))]
        if state.step % 10 and state.step != state.total_steps:
            return
        spent = self._marks[-1][0] - self._marks[0][0]
        speed = sum(r for _, r in self._marks[1:]) / spent if spent > 0 else float("nan")
        per_step = spent / max(1, len(self._marks) - 1)
        left = (state.total_steps - state.step) * per_step if state.total_steps else float("nan")
        if state.total_steps is None:
            left = (self.max_seconds or 0.0) - state.seconds
        psnr = counts.get("psnr", float("nan"))
        loss = state.result.loss
        sink(Progress(state.step, state.total_steps, loss, psnr, quality, speed, state.seconds, left))


def append_log(run: Path, state: LoopState, values: dict[str, Any]) -> None:
    """A line of the log; what is not finite becomes null."""
    line = {"step": state.step, "seconds": round(state.seconds, 3), **values}
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    with open(run / LOG, "a") as file:
        file.write(json.dumps(plain) + "\n")


def cut_log(run: Path, step: int) -> None:
    """Drop lines that an interrupted run wrote after its last checkpoint."""
    path = run / LOG
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # a line cut short by a kill
    path.write_text("".join(kept))


def save_state(run: Path, task: FieldTask, state: LoopState, identity: dict[str, Any], **more: Any) -> None:
    """Write the checkpoint. `identity`: what must be the same where it is continued; `more`: goes to the header."""
    header = {"kind": "checkpoint", "loop": state.as_dict(), "task": task.scalars(), "settings": identity, **more}
    write_tensors(run / CHECKPOINT, header, task.tensors())


def read_state(run: Path) -> StoredState:
    """The checkpoint as it was written.

    Raises:
        FormatError: there is none, or it is not one.
    """
    path = run / CHECKPOINT
    if not path.exists():
        raise FormatError(f"{path} does not exist: there is nothing to resume. Leave out --resume to start anew.")
    return StoredState(*read_tensors(path, kind="checkpoint"))


def load_state(run: Path, stored: StoredState, task: FieldTask, identity: dict[str, Any]) -> LoopState:
    """Bring `task` to the state of the checkpoint, and the log too.

    Raises:
        FormatError: it does not fit. ConfigError: it is of a run with other settings.
    """
    path, (header, tensors) = run / CHECKPOINT, stored
    theirs = header.get("settings")
    if identity != theirs:
        differing = [k for k in identity if not isinstance(theirs, dict) or theirs.get(k) != identity[k]]
        raise ConfigError(f"{path} is of a run with other settings ({', '.join(differing)}); resume with the same ones")
    try:
        task.load_scalars(header["task"])
        state = LoopState.from_dict(header["loop"])
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise FormatError(f"{path}: header is not a checkpoint's: {error}") from error
    current = task.tensors()
    if set(current) != set(tensors) or any(current[k].shape != tensors[k].shape for k in current):
        raise FormatError(f"{path}: its tensors are not those of this run")
    with torch.no_grad():
        for name, tensor in current.items():
            tensor.copy_(tensors[name])
    try:
        task.field.check()
    except ConfigError as error:
        raise FormatError(f"{path}: {error}") from error
    cut_log(run, state.step)
    return state
