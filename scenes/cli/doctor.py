"""`polyfield doctor`: what this machine can do, why not more, and what to do about it.

Every check stands alone: whatever breaks in one (a damaged torch, an absent driver) becomes a line of the report.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from . import machine
from .errors import INTERNAL, OK, one_line
from .progress import size

State = Literal["ok", "note", "missing", "broken"]

# Module, distribution, what it gives, how to get it.
REQUIRED = (
    ("numpy", "numpy", "arrays"),
    ("safetensors", "safetensors", "model files"),
    ("PIL", "pillow", "PNG and JPEG"),
    ("imageio", "imageio", "HDR images"),
    ("tyro", "tyro", "the command line"),
    ("rich", "rich", "progress bars and tables"),
)
OPTIONAL = (
    ("imageio_ffmpeg", "imageio-ffmpeg", "films (render --out FILE.mp4)", "pip install imageio-ffmpeg"),
    ("OpenEXR", "OpenEXR", "EXR images", "pip install OpenEXR"),
    ("pycolmap", "pycolmap", "poses from photos without any (structure from motion)", "pip install pycolmap"),
    ("viser", "viser", "dashboards", "pip install viser"),
    ("gsplat", "gsplat", "a second CUDA back end for splats", "pip install gsplat (needs a CUDA device)"),
    ("nerfacc", "nerfacc", "a second CUDA back end for compositing", "pip install nerfacc (needs a CUDA device)"),
    ("tinycudann", "tinycudann", "a second CUDA back end for hash grids", "see github.com/NVlabs/tiny-cuda-nn"),
)


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say what this machine can do, why not more, and what to do about it.

    Exit code 0 where Polyfield works, though optional parts may be missing; 1 where it cannot work at all.

    Examples:
      polyfield doctor
      polyfield doctor --json
      polyfield doctor --clear-cache
    """

    json: bool = False
    """Print one JSON object instead of a table."""
    clear_cache: bool = False
    """First delete the CUDA kernels compiled for this machine; they are compiled anew when they are needed."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report."""

    name: str
    state: State
    """ok; note: works, with something to know; missing: an optional part is absent; broken: Polyfield cannot work."""
    found: str
    remedy: str = ""
    """What to do; empty where nothing is to be done."""


def run(arguments: Sequence[str]) -> int:
    """The command."""
    try:
        from .arguments import parse
    except ImportError:  # tyro is among the things that may be broken here
        command = Doctor(json="--json" in arguments)
    else:
        command = parse(Doctor, arguments, "polyfield doctor")
    if command.clear_cache:
        from ...fields.ops._nvrtc import clear_kept, cubin_folder

        print(f"deleted {clear_kept()} files of {cubin_folder()}", file=sys.stderr)
    checks = examine()
    works = all(c.state != "broken" for c in checks)
    if command.json:
        print(json.dumps({"works": works, "checks": [asdict(c) for c in checks]}, indent=2))
    else:
        _print_table(checks, works)
    return OK if works else INTERNAL


def examine() -> list[Check]:
    """All checks, in the order of the report."""
    named: list[tuple[str, Callable[[], list[Check]]]] = [
        ("system", _system),
        ("memory", _memory),
        ("packages", _packages),
        ("torch", _torch),
        ("CPU kernels", _kernels),
        ("CUDA", _cuda),
        ("NVRTC", _nvrtc),
        ("cache", _cache),
        ("optional packages", _optional),
    ]
    checks: list[Check] = []
    for name, check in named:
        try:
            checks += check()
        except Exception as error:
            text = f"this check failed: {type(error).__name__}: {one_line(str(error))}"[:300]
            checks.append(Check(name=name, state="note", found=text, remedy="please report it"))
    return checks


def _system() -> list[Check]:
    from ... import __version__  # pyright: ignore[reportMissingImports]

    python = sys.version_info
    recent = python >= (3, 10)
    return [
        Check(name="Polyfield", state="ok", found=f"{__version__} in {Path(__file__).resolve().parents[2]}"),
        Check(name="system", state="ok", found=platform.platform()),
        Check(
            name="Python",
            state="ok" if recent else "broken",
            found=platform.python_version(),
            remedy="" if recent else "install Python 3.10 or newer",
        ),
        Check(name="processor", state="ok", found=f"{machine.cpu_name()}, {machine.usable_cpus()} usable logical CPUs"),
    ]


def _memory() -> list[Check]:
    total = machine.memory_bytes()
    if total is None:
        return [Check(name="memory", state="note", found="unknown")]
    enough = total >= 4e9  # measured: lego at 800x800 trains in under 2.5 GB; the rest is the system's
    remedy = "" if enough else "use --downscale 2 or more, or --memory-gb to keep photos on disk"
    return [Check(name="memory", state="ok" if enough else "note", found=size(total), remedy=remedy)]


def _packages() -> list[Check]:
    checks = []
    for module, distribution, purpose in REQUIRED:
        try:
            importlib.import_module(module)
            state, found, remedy = "ok", _version(distribution), ""
        except Exception as error:
            state, found = "broken", f"{type(error).__name__}: {one_line(str(error))[:200]} (needed for {purpose})"
            remedy = f"pip install --force-reinstall {distribution}"
        checks.append(Check(name=distribution, state=state, found=found, remedy=remedy))
    return checks


def _torch() -> list[Check]:
    try:
        import torch

        total = float(torch.ones(4).sum())
    except Exception as error:
        text = f"{type(error).__name__}: {one_line(str(error))[:200]}"
        remedy = "pip install --force-reinstall torch (see pytorch.org for the build that suits this machine)"
        return [Check(name="torch", state="broken", found=text, remedy=remedy)]
    if total != 4.0:
        return [Check(name="torch", state="broken", found="adds wrongly", remedy="pip install --force-reinstall torch")]
    threads, cpus = torch.get_num_threads(), machine.usable_cpus()
    few = threads < cpus // 2
    return [
        Check(name="torch", state="ok", found=torch.__version__),
        Check(
            name="threads",
            state="note" if few else "ok",
            found=f"{threads} of {cpus} logical CPUs",
            remedy=f"unset OMP_NUM_THREADS, or set it to {cpus // 2} to {cpus}" if few else "",
        ),
    ]


def _kernels() -> list[Check]:
    """The native CPU library: what could run, what is installed, what is loaded, and whether it computes rightly."""
    name = "CPU kernels"
    try:
        from ...fields.ops import _cpu
    except Exception as error:
        found = f"cannot be examined: {type(error).__name__}: {one_line(str(error))[:200]}"
        remedy = "repair what is BROKEN above; if nothing is, 'pip install --force-reinstall .' for Polyfield itself"
        return [Check(name=name, state="broken", found=found, remedy=remedy)]
    runnable, installed = _cpu.runnable_levels(), _cpu.installed_levels()
    levels = f"this processor runs {', '.join(runnable)}; installed: {', '.join(installed) or 'none'}"
    rebuild = "install a C++17 compiler (GCC or Clang) and run 'pip install --force-reinstall --no-deps .' again"
    try:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = _cpu.library()
    except Exception as error:
        found = f"{one_line(str(error))[:300]} ({levels})"
        remedy = f"{rebuild}; or unset POLYFIELD_CPU_LEVEL, POLYFIELD_CPU_LIBRARY and POLYFIELD_BACKEND"
        return [Check(name=name, state="broken", found=found, remedy=remedy)]
    if loaded is None:
        chosen = os.environ.get("POLYFIELD_BACKEND") == "reference"
        why = "switched off by POLYFIELD_BACKEND=reference" if chosen else "none loaded"
        remedy = "unset POLYFIELD_BACKEND" if chosen else rebuild
        return [
            Check(name=name, state="missing", found=f"{why}: slow torch references are used ({levels})", remedy=remedy)
        ]
    level, library = loaded
    fault = self_check()
    if fault:
        return [Check(name=name, state="broken", found=f"level {level} computes wrongly: {fault}", remedy=rebuild)]
    where = Path(str(library._name))
    best = level == runnable[0] or level == "custom"
    remedy = "" if best else f"{rebuild}, to get level {runnable[0]}"
    found = f"level {level} loaded from {where}, self-check passed; {levels}"
    return [Check(name=name, state="ok" if best else "note", found=found, remedy=remedy)]


def self_check() -> str | None:
    """Run one small native operator and compare it with its torch reference; what differs, or None."""
    import torch

    from ...fields.ops import spherical_harmonics as op

    directions = torch.nn.functional.normalize(torch.randn(33, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    try:
        native = op.spherical_harmonics(directions, 4)
        expected = op.spherical_harmonics_reference(directions, 4)
    except Exception as error:
        return f"{type(error).__name__}: {one_line(str(error))[:200]}"
    worst = float((native - expected).abs().max())
    return None if worst < 1e-5 else f"spherical harmonics differ from the reference by {worst:.3g}"


def _cuda() -> list[Check]:
    try:
        import torch

        from ..device import why_no_cuda
    except Exception:
        return [Check(name="CUDA", state="note", found="unknown without torch")]
    missing = why_no_cuda()
    if missing is not None:
        found = f"{missing.why}; training and rendering run on the CPU"
        return [Check(name="CUDA", state="missing", found=found, remedy=missing.remedy)]
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return [Check(name="CUDA", state="ok", found=f"{names} (torch for CUDA {torch.version.cuda})")]


def _nvrtc() -> list[Check]:
    """Where the run-time compiler of CUDA kernels is; looked for, not loaded."""
    try:
        from ...fields.ops._nvrtc import find_nvrtc
    except ImportError as error:
        return [Check(name="NVRTC", state="note", found=f"unknown: {one_line(str(error))[:200]}", remedy="see above")]
    found = find_nvrtc()
    if found:
        return [Check(name="NVRTC", state="ok", found=str(found))]
    import ctypes.util

    bare = ctypes.util.find_library("nvrtc")
    if bare:
        return [Check(name="NVRTC", state="ok", found=f"{bare} of the system")]
    remedy = "only for CUDA: it comes with a CUDA build of torch, or with 'pip install nvidia-cuda-nvrtc'"
    return [Check(name="NVRTC", state="missing", found="no CUDA run-time compiler", remedy=remedy)]


def _cache() -> list[Check]:
    """Where Polyfield keeps what it can make again."""
    try:
        from ...fields.cache import cache_folder
    except ImportError as error:
        return [Check(name="cache", state="note", found=f"unknown: {one_line(str(error))[:200]}", remedy="see above")]
    folder = cache_folder()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(existing, os.W_OK):
        remedy = "set POLYFIELD_CACHE to a folder that can be written"
        return [Check(name="cache", state="note", found=f"{folder} cannot be written", remedy=remedy)]
    import shutil

    return [Check(name="cache", state="ok", found=f"{folder}, {size(shutil.disk_usage(existing).free)} free")]


def _optional() -> list[Check]:
    checks = []
    for module, distribution, purpose, remedy in OPTIONAL:
        if importlib.util.find_spec(module) is None:
            checks.append(Check(name=distribution, state="missing", found=f"gives {purpose}", remedy=remedy))
        else:
            checks.append(Check(name=distribution, state="ok", found=f"{_version(distribution)}: {purpose}"))
    return checks


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "version unknown"


_MARKS: dict[str, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "note": ("note", "yellow"),
    "missing": ("-", "dim"),
    "broken": ("BROKEN", "bold red"),
}


def _print_table(checks: list[Check], works: bool) -> None:
    verdict = (
        "Polyfield works on this machine." if works else "Polyfield cannot work on this machine yet: see BROKEN above."
    )
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except Exception:  # rich itself may be what is broken
        for c in checks:
            print(f"{_MARKS[c.state][0]:7}{c.name}: {c.found}" + (f"  -> {c.remedy}" if c.remedy else ""))
        print(verdict)
        return
    table = Table(box=None, show_header=False, padding=(0, 1))
    for c in checks:
        mark, style = _MARKS[c.state]
        text = escape(c.found) + (f"\n[italic]-> {escape(c.remedy)}[/italic]" if c.remedy else "")
        table.add_row(f"[{style}]{mark}[/{style}]", escape(c.name), text)
    console = Console()
    console.print(table)
    console.print(verdict, style="bold" if works else "bold red", highlight=False)
