"""The native CPU library: which build is loaded, and how its functions are called.

`setup.py` builds one shared library per x86-64 level (`_cpu_v4bf16`, `_cpu_v4`, `_cpu_v3`, `_cpu_v2`; `_cpu_base`
elsewhere) beside this file. The first that the processor can run is loaded at the first call. Where none is there the
torch references run instead, after one warning. Environment variables, read once:

- `POLYFIELD_BACKEND`: `cpu` demands the library (an error where it is missing), `reference` never loads it;
- `POLYFIELD_CPU_LEVEL`: `v2`, `v3`, `v4`, `v4bf16` or `base` picks that build;
- `POLYFIELD_CPU_LIBRARY`: a path, for sanitizer and profiling builds.

Native functions take pointers, `long long` for every integer, `double` for every scalar, and the thread count last.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, NativeError

_V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
_V4 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
LEAST_ADVISED = 4 << 20
"""Bytes from which huge pages are asked for: two of them."""
LEVELS = ("v4bf16", "v4", "v3", "v2", "base")


def cpu_flags() -> frozenset[str]:
    """Feature names of this processor as Linux spells them; empty where /proc/cpuinfo does not list them."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


def runnable_levels() -> tuple[str, ...]:
    """Levels this processor can run, best first, whether or not their builds are installed."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ("base",)
    flags = cpu_flags()
    v3 = flags >= _V3
    v4 = v3 and flags >= _V4
    bf16 = v4 and "avx512_bf16" in flags
    return tuple(n for n, ok in (("v4bf16", bf16), ("v4", v4), ("v3", v3), ("v2", True), ("base", True)) if ok)


def installed_levels() -> tuple[str, ...]:
    """Levels whose builds lie beside this file, best first."""
    return tuple(level for level in LEVELS if _path_of(level).exists())


def _path_of(level: str) -> Path:
    return Path(__file__).parent / f"_cpu_{level}{_SUFFIX}"


def _pick() -> tuple[str, Path] | None:
    forced = os.environ.get("POLYFIELD_CPU_LIBRARY")
    if forced:
        return "custom", Path(forced)
    level = os.environ.get("POLYFIELD_CPU_LEVEL")
    if level:
        if level not in LEVELS:
            raise ConfigError(f"POLYFIELD_CPU_LEVEL must be one of {', '.join(LEVELS)}; got {level!r}")
        if level not in runnable_levels():
            raise NativeError(f"this processor cannot run level {level}; it can run {', '.join(runnable_levels())}")
        if not _path_of(level).exists():
            have = ", ".join(installed_levels()) or "none"
            raise NativeError(f"level {level} is not installed (there is {have}); unset POLYFIELD_CPU_LEVEL")
        return level, _path_of(level)
    for candidate in runnable_levels():
        if _path_of(candidate).exists():
            return candidate, _path_of(candidate)
    return None


@functools.cache
def library() -> tuple[str, ctypes.CDLL] | None:
    """The loaded build as (level, library), or None where the torch references are to be used."""
    backend = os.environ.get("POLYFIELD_BACKEND", "")
    if backend not in ("", "cpu", "reference"):
        raise ConfigError(f"POLYFIELD_BACKEND must be 'cpu' or 'reference'; got {backend!r}")
    if backend == "reference":
        return None
    picked = _pick()
    if picked is None or not picked[1].exists():
        where = picked[1] if picked else Path(__file__).parent
        text = f"no native CPU library at {where}; install a C++17 compiler and run 'pip install .' again"
        if backend == "cpu":
            raise NativeError(text)
        warnings.warn(f"{text}. Until then the slow torch references are used.", RuntimeWarning, stacklevel=2)
        return None
    try:
        return picked[0], ctypes.CDLL(str(picked[1]))
    except OSError as error:
        raise NativeError(f"{picked[1]} cannot be loaded: {error}") from error


def level() -> str:
    """Name of the loaded level, 'custom' for POLYFIELD_CPU_LIBRARY, or 'reference'."""
    loaded = library()
    return loaded[0] if loaded else "reference"


def usable(*tensors: Tensor | None) -> bool:
    """True where the native library is loaded and every given tensor lies on the CPU."""
    return all(t is None or t.device.type == "cpu" for t in tensors) and library() is not None


@functools.cache
def _function(name: str):
    loaded = library()
    if loaded is None:
        raise NativeError(f"{name} was called although no native library is loaded")
    try:
        function = getattr(loaded[1], name)
    except AttributeError:
        raise NativeError(
            f"the native library ({loaded[0]}) has no function {name}; run 'pip install .' again"
        ) from None
    function.restype = ctypes.c_longlong
    return function


def suffix_of(tensor: Tensor) -> str:
    """'f16', 'bf16', 'f32' or 'f64': the ending of the native functions for this tensor's dtype."""
    return {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64"}[tensor.dtype]


def call(name: str, *arguments: Tensor | int | float | bool | None) -> int:
    """Call native function `name`. Tensors and None become pointers, ints `long long`, floats `double`; the thread
    count is appended. Tensors must be contiguous. Returns the function's `i64` (void functions: undefined)."""
    packed: list[object] = []
    for value in arguments:
        if value is None:
            packed.append(ctypes.c_void_p(None))
        elif isinstance(value, Tensor):
            assert value.is_contiguous(), f"{name}: argument {len(packed)} is not contiguous"
            packed.append(ctypes.c_void_p(value.data_ptr()))
        elif isinstance(value, (bool, int)):
            packed.append(ctypes.c_longlong(int(value)))
        else:
            packed.append(ctypes.c_double(value))
    return _function(name)(*packed, ctypes.c_longlong(torch.get_num_threads()))


def advise_huge_pages(tensor: Tensor, *, in_use: bool = True) -> None:
    """Ask for 2 MiB pages behind a large CPU tensor: one that is read at random, such as a hash table, or one that is
    not `in_use` yet, whose pages are faults when it is first written. Only advice."""
    if tensor.nbytes >= LEAST_ADVISED and usable(tensor):
        call("pf_advise_huge_pages", tensor, tensor.nbytes, in_use)
