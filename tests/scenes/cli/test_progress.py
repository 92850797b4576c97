import io
import math

import pytest

from polyfield.scenes.cli import progress
from polyfield.scenes.train import Progress


def report(step, total: int | None = 100, heldout=None):
    return Progress(
        step=step,
        total_steps=total,
        loss=0.012345,
        train_psnr=20.0,
        heldout_psnr=heldout,
        rays_per_second=123_456.0,
        seconds=65.0,
        seconds_left=float("nan") if total is None else 3700.0,
    )


def test_units():
    assert [progress.clock(s) for s in (0, 59.6, 3600, 36000, math.nan, math.inf, -1)] == [
        "0:00", "1:00", "1:00:00", "10:00:00", "-", "-", "-",
    ]  # fmt: skip
    assert [progress.rate(r) for r in (12, 1234, 12345, 123456, 1.2e6, math.nan)] == [
        "12", "1.23k", "12.3k", "123k", "1.20M", "-",
    ]  # fmt: skip
    assert progress.decibels(None) == progress.decibels(math.nan) == "-"
    assert progress.size(2.5e9) == "2.50 GB"


def test_a_line_tells_what_is_known():
    assert progress.train_line(report(50, heldout=25.0)) == (
        "step 50/100  loss 0.0123  train 20.00 dB  held-out 25.00 dB  123k rays/s  1:05 elapsed, 1:01:40 left"
    )
    line = progress.train_line(report(50, total=None))
    assert line.startswith("step 50  loss")
    assert "held-out" not in line
    assert line.endswith("- left")


def test_without_a_terminal_lines_come_first_last_and_every_ten_seconds(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.show_training() as show:
        for step in range(0, 101, 5):
            show(report(step))
            now[0] += 1
    steps = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert steps == ["0/100", "50/100", "100/100"]


def test_counts_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    with progress.show_count("rendering") as show:
        for i in range(1, 6):
            show(i, 5)
    assert capsys.readouterr() == ("", "rendering 1/5\nrendering 5/5\n")


@pytest.mark.parametrize("what", ["training", "count"])
def test_in_a_terminal_a_bar_is_drawn(monkeypatch, what):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    if what == "training":
        with progress.show_training() as show:
            show(report(10, total=None))
            show(report(50))
            show(report(100, heldout=25.0))
        assert "step 100/100" in screen.getvalue()
        assert "25.00 dB" in screen.getvalue()
    else:
        with progress.show_count("rendering") as show:
            show(3, 4)
        assert "3/4" in screen.getvalue()
