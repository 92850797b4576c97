"""Ceilings of this machine, by `probes.cpp`: multiply-add and bf16 peaks, random gathers, memory bandwidth."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from quiet import Watch, accept, demand_quiet

KINDS = ("fma", "bf16", "gather", "read", "update")
UNITS = {
    "fma": "flop/s, fp32 multiply-add",
    "bf16": "flop/s, bf16 dot with fp32 sums; 0 where the processor has none",
    "gather": "random 8-byte reads/s from 4 MiB",
    "read": "bytes/s from DRAM",
    "update": "bytes/s from and to DRAM, y += k x",
}


class Probes:
    """Compiles the probes into a temporary folder; use as a context manager. Each call runs one of them."""

    def __enter__(self) -> Probes:
        self._folder = tempfile.TemporaryDirectory()
        self._program = str(Path(self._folder.name) / "probes")
        compiler = os.environ.get("CXX", "g++")
        source = str(Path(__file__).with_name("probes.cpp"))
        flags = ["-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp"]
        subprocess.run([compiler, *flags, source, "-o", self._program], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def __call__(self, kind: str, threads: int, seconds: float = 0.4) -> float:
        """One figure of `KINDS`, in its unit."""
        command = [self._program, kind, str(threads), str(seconds)]
        # Threads that spin after a parallel loop would disturb the next measurement, not this one; still: passive.
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_PROC_BIND": "false"}
        return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--force", action="store_true", help="run although the machine is not quiet; the result says so"
    )
    parser.add_argument("--rounds", type=int, default=3, help="each figure is the best of so many rounds")
    options = parser.parse_args()
    from machine import facts

    machine = facts()
    counts = sorted({1, machine["cores"]})
    demand_quiet(options.force)
    with Probes() as probe, Watch() as watch:
        best = {kind: dict.fromkeys(counts, 0.0) for kind in KINDS}
        for _ in range(options.rounds):
            for kind in KINDS:
                for threads in counts:
                    best[kind][threads] = max(best[kind][threads], probe(kind, threads))
    quiet = accept(watch, options.force)
    json.dump(
        {"machine": machine, "quiet": quiet, "foreign_share": watch.foreign, "units": UNITS, "best_by_threads": best},
        sys.stdout,
        indent=2,
    )
    print()


if __name__ == "__main__":
    main()
