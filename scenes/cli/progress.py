"""What a user sees while a command works: a live bar in a terminal, a plain line every ten seconds elsewhere.

Everything goes to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...fields.spectrum import FrequencyChoice
    from ..fit import FitProgress
    from ..run_state import Progress as TrainProgress

LINE_SECONDS = 10.0
"""Between plain lines."""
_BAR = 40


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss; '-' where unknown."""
    if not 0 <= seconds < 1e9:  # NaN too
        return "-"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def rate(per_second: float) -> str:
    """A rate with two or three digits and a unit prefix: 950, 12.3k, 1.20M."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if per_second >= factor:
            value = per_second / factor
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{unit}"
    return f"{per_second:.0f}" if per_second >= 0 else "-"


def size(count: float) -> str:
    """Bytes in GB or MB (powers of ten)."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def decibels(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.2f} dB"


def describe_choice(what: str, setting: str | None, choice: FrequencyChoice) -> str:
    """FreSh's distances as bars, shortest is best, and how long it took. `what` from what, by which setting."""
    if not choice.candidates:
        return f"{setting} stays as it is by default: no detail to tell the distance of {what}"
    finite = [distance for distance in choice.distances if math.isfinite(distance)]
    most = max(finite, default=0.0) or 1.0
    lines = [f"distance of {what}, by {setting}:"]
    for candidate, distance in zip(choice.candidates, choice.distances, strict=True):
        bar = "#" * max(1, round(_BAR * distance / most)) if math.isfinite(distance) else "not finite"
        lines.append(f"  {candidate:6g} {distance:7.2f} {bar}{'  <- chosen' if candidate == choice.chosen else ''}")
    if choice.chosen is None:
        lines.append(f"  none can be compared: {setting} stays as it is by default")
    return "\n".join([*lines, f"  in {choice.seconds:.1f} s; --frequency NUMBER or default sets it by hand"])


def train_line(p: TrainProgress, measure: str = "held-out") -> str:
    """One plain line about training; `measure` says what `heldout_psnr` is."""
    held_out = "" if p.heldout_psnr is None else f"  {measure} {decibels(p.heldout_psnr)}"
    train = "" if math.isnan(p.train_psnr) else f"  train {decibels(p.train_psnr)}"  # without rays there is none
    speed = "" if math.isnan(p.train_psnr) else f"  {rate(p.rays_per_second)} rays/s"
    return (
        f"step {_steps(p)}  loss {p.loss:.3g}{train}{held_out}{speed}  "
        f"{clock(p.seconds)} elapsed, {clock(p.seconds_left)} left"
    )


def fit_line(p: FitProgress) -> str:
    """One plain line about a fit."""
    return f"step {_steps(p)}  {decibels(p.psnr)}  {clock(p.seconds)} elapsed, {clock(p.seconds_left)} left"


def _steps(p: TrainProgress | FitProgress) -> str:
    return f"{p.step}" if p.total_steps is None else f"{p.step}/{p.total_steps}"


@contextmanager
def show_training(measure: str = "held-out") -> Iterator[Callable[[TrainProgress], None]]:
    """Yields the callback to give to `train_scene` or `convert_model`; `measure` says what `heldout_psnr` is."""
    if not sys.stderr.isatty():
        yield _plain(lambda p: train_line(p, measure), done=lambda p: p.step == p.total_steps)
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.fields[steps]}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("train {task.fields[train]}"),
        TextColumn(f"[bold]{measure} {{task.fields[held_out]}}"),
        TextColumn("{task.fields[rays]} rays/s"),
        TextColumn("{task.fields[left]} left"),
    )
    empty: dict[str, Any] = {"steps": "starting", "loss": "-", "train": "-", "held_out": "-", "rays": "-", "left": "-"}
    with Progress(*columns, console=_console(), expand=True) as bar:
        task = bar.add_task("train", total=None, **empty)

        def report(p: TrainProgress) -> None:
            bar.update(
                task,
                total=p.total_steps,
                completed=p.step,
                steps=f"step {_steps(p)}",
                loss=f"{p.loss:.3g}",
                train=decibels(p.train_psnr),
                held_out=decibels(p.heldout_psnr),
                rays=rate(p.rays_per_second),
                left=clock(p.seconds_left),
            )

        yield report


@contextmanager
def show_fit() -> Iterator[tuple[Callable[[FitProgress], None], Callable[[int, int], None]]]:
    """Yields the callbacks to give to `fit_signal`, of its steps and of its measuring."""
    if not sys.stderr.isatty():
        yield _plain(fit_line, done=lambda p: p.step == p.total_steps), _plain_count("measuring")
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.fields[steps]}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("[bold]{task.fields[quality]}"),
        TextColumn("{task.fields[left]} left"),
    )
    with Progress(*columns, console=_console(), expand=True) as bar:
        task = bar.add_task("fit", total=None, steps="starting", quality="-", left="-")

        def report(p: FitProgress) -> None:
            bar.update(
                task,
                total=p.total_steps,
                completed=p.step,
                steps=f"step {_steps(p)}",
                quality=decibels(p.psnr),
                left=clock(p.seconds_left),
            )

        yield report, lambda done, total: bar.update(task, total=total, completed=done, steps="measuring")


@contextmanager
def show_count(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a callback (done, total) for work that counts, such as images."""
    if not sys.stderr.isatty():
        yield _plain_count(what)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_console(), expand=True, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain(line: Callable[[Any], str], done: Callable[[Any], bool]) -> Callable[[Any], None]:
    """Prints the first report, the last, and one every LINE_SECONDS between."""
    last = -float("inf")

    def report(p: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if done(p) or now - last >= LINE_SECONDS:
            last = now
            print(line(p), file=sys.stderr, flush=True)

    return report


def _plain_count(what: str) -> Callable[[int, int], None]:
    show = _plain(lambda p: f"{what} {p[0]}/{p[1]}", done=lambda p: p[0] >= p[1])
    return lambda done, total: show((done, total))


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True)
