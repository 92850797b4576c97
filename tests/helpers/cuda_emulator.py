"""The CUDA kernels on the CPU: builds the emulator with g++ and says how a process is made to use it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "cuda"
OURS = ("POLYFIELD_BACKEND", "POLYFIELD_CPU_LEVEL", "POLYFIELD_CUDA_DRIVER")
FLAGS = {
    "plain": ["-O2"],
    "asan": ["-O1", "-g", "-fsanitize=address", "-fno-omit-frame-pointer"],
    "tsan": ["-O1", "-g", "-fsanitize=thread"],
}
COMMON = [
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-DPF_EMULATOR",
]
INCLUDES = [f"-I{CUDA / 'emulator'}", f"-I{CUDA / 'gpu'}", f"-I{CUDA / 'include'}"]


def why_not() -> str | None:
    """Why the emulator cannot be built here, or None."""
    if not sys.platform.startswith("linux"):
        return "the emulator stands in for libcuda.so on Linux"
    return None if shutil.which("g++") else "the emulator is built with g++, which is not installed"


def build(kind: str, folder: Path, kernels: list[Path] | None = None) -> Path:
    """The emulator's driver with `kernels` (all of `cuda/gpu`) in it: the path of a shared library."""
    folder.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in [*sorted((CUDA / "emulator").glob("*.cpp")), *(kernels or sorted((CUDA / "gpu").glob("*.cu")))]:
        flags = FLAGS[kind]
        if kind == "tsan" and source.suffix == ".cpp":
            # The emulator tells ThreadSanitizer of its fibers; its own accesses are not those of a kernel.
            flags = ["-O1", "-g", "-DPF_EMULATOR_TSAN"]
        target = folder / f"{source.stem}.o"
        command = ["g++", *COMMON, *flags, *INCLUDES, "-c", "-xc++", str(source), "-o", str(target)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        objects.append(str(target))
    library = folder / "libcuda-emulator.so"
    link = ["g++", "-shared", *FLAGS[kind], *objects, "-o", str(library), "-lpthread"]
    subprocess.run(link, check=True, capture_output=True, text=True)
    return library


def environment(library: Path, cache: Path, kind: str = "plain") -> dict[str, str]:
    """This process's environment, made to use the emulator; sanitizers are preloaded, as Python is built without."""
    kept = {k: v for k, v in os.environ.items() if k not in OURS}
    kept |= {"POLYFIELD_CUDA_DRIVER": str(library), "POLYFIELD_CACHE": str(cache)}
    if kind == "plain":
        return kept
    runtime = subprocess.run(["g++", f"-print-file-name=lib{kind}.so"], check=True, capture_output=True, text=True)
    options = {"asan": {"ASAN_OPTIONS": "detect_leaks=0"}, "tsan": {"TSAN_OPTIONS": "report_signal_unsafe=0"}}
    return kept | {"LD_PRELOAD": runtime.stdout.strip(), "OMP_NUM_THREADS": "1"} | options[kind]
