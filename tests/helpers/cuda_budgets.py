"""What each CUDA kernel takes of a GPU, by ptxas' own report, and what it may take: `cuda/gpu/budgets.json`.

Run as a program after a kernel was added or changed; it measures every kernel for every architecture and writes the
file (registers rounded up to 8). Look at the difference before committing it: a kernel that spills wants another look.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from polyfield.fields.ops import _cuda, _nvrtc

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""Compute capabilities that the kernels must compile for, as 10 * major + minor."""
BUDGETS = Path(__file__).resolve().parents[2] / "cuda" / "gpu" / "budgets.json"
FILES = sorted(set(_cuda.FILES.values()))

Figures = dict[str, int]
"""registers (a thread), shared (bytes a block), spilled (bytes a thread, stores and loads)."""


def measure(file: str, architecture: int) -> dict[str, Figures]:
    """Figures of each kernel of `cuda/gpu/<file>.cu`."""
    text, headers = _cuda.source(file)
    options = (*_cuda.options(file), "--ptxas-options=-v")
    compiled = _nvrtc.nvrtc().compile(f"{file}.cu", text, headers, architecture, options)
    assert compiled.cubin[:4] == b"\x7fELF"
    return figures(compiled.log)


def figures(log: str) -> dict[str, Figures]:
    """What ptxas says of each kernel."""
    found: dict[str, Figures] = {}
    name = ""
    for line in log.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)'", line):
            name = entry[1]
            found[name] = {"registers": 0, "shared": 0, "spilled": 0}
        elif spills := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if name:
                found[name]["spilled"] += int(spills[1]) + int(spills[2])
        elif registers := re.search(r"Used (\d+) registers", line):
            found[name]["registers"] = int(registers[1])
            shared = re.search(r"(\d+) bytes smem", line)
            found[name]["shared"] = int(shared[1]) if shared else 0
    return found


def main() -> None:
    most: dict[str, Figures] = {}
    for architecture in ARCHITECTURES:
        for file in FILES:
            for name, kernel in measure(file, architecture).items():
                held = most.setdefault(name, {"registers": 0, "shared": 0, "spilled": 0})
                kernel["registers"] = -(-kernel["registers"] // 8) * 8
                most[name] = {what: max(value, held[what]) for what, value in kernel.items()}
        print(f"sm_{architecture}", file=sys.stderr)
    lines = [f"  {json.dumps(name)}: {json.dumps(most[name])}" for name in sorted(most)]
    BUDGETS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
