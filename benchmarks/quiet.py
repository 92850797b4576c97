"""Is anybody else using this machine's processors? Benchmarks ask before, during and after.

Foreign share = busy time of all cores (from /proc/stat, steal included) minus the time of this process and its
descendants, over all time. On systems without /proc/stat it is unknown (None) and nothing is refused.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

LIMIT = 0.06
"""Share of all cores. Contended timings were up to 5 times worse; below this they repeat to a few per cent."""
REFUSED = 3
"""Exit code of a refusal."""


class Watch:
    """Measures the foreign share while it is open: `with Watch() as watch: ...`, then `watch.foreign`."""

    foreign: float | None = None

    def __enter__(self) -> Watch:
        self._before = _snapshot()
        return self

    def __exit__(self, *_: object) -> None:
        self.foreign = self.so_far()

    def so_far(self) -> float | None:
        """The share since the start."""
        after = _snapshot()
        if self._before is None or after is None:
            return None
        whole, busy, own = (b - a for a, b in zip(self._before, after, strict=True))
        return max(0.0, busy - own) / max(whole, 1e-9)


def foreign_share(seconds: float = 1.0) -> float | None:
    """Foreign share over the next seconds."""
    with Watch() as watch:
        time.sleep(seconds)
    return watch.foreign


def demand_quiet(force: bool, *, patience: float = 60.0) -> None:
    """Returns once the machine is quiet; exits with 3 when it is not within `patience` seconds. `force`: at once."""
    if force:
        return
    deadline = time.monotonic() + patience
    while (share := foreign_share()) is not None and share > LIMIT:
        if time.monotonic() > deadline:
            refuse(f"other work uses {100 * share:.0f} % of the processors")
        time.sleep(2.0)


def accept(watch: Watch, force: bool) -> bool:
    """True when a closed watch saw a quiet machine. Not quiet: exits with 3, or returns False with `force`."""
    if watch.foreign is None or watch.foreign <= LIMIT:
        return True
    if not force:
        refuse(f"other work used {100 * watch.foreign:.0f} % of the processors during the run; nothing is reported")
    return False


def refuse(why: str) -> None:
    """Says why and exits with 3."""
    print(
        f"{why}; the limit is {100 * LIMIT:.0f} %. Stop it and run again, or mark the result with --force",
        file=sys.stderr,
    )
    raise SystemExit(REFUSED)


def _snapshot() -> tuple[float, float, float] | None:
    """(whole, busy, own) seconds of processor time since some start."""
    try:
        fields = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    tick = os.sysconf("SC_CLK_TCK")
    whole = sum(fields)  # user nice system idle iowait irq softirq steal; guests are inside user
    return whole / tick, (whole - fields[3] - fields[4]) / tick, _own_seconds(tick)


def _own_seconds(tick: int) -> float:
    """Processor time of this process and of all its descendants, ended ones included."""
    times, parents = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name in brackets may hold spaces; fields count from after it: state, parent, ...
                text = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(text[1])
            times[int(entry.name)] = sum(int(v) for v in text[11:15])  # utime stime cutime cstime
    mine = {os.getpid()}
    grown = True
    while grown:
        more = {child for child, parent in parents.items() if parent in mine} - mine
        mine |= more
        grown = bool(more)
    return sum(times.get(process, 0) for process in mine) / tick
