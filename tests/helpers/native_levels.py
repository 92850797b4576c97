"""Running one operator on every build of the native library, on the reference, and on one or two threads."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from polyfield.fields.ops import _cpu, _cuda

SIZES = (0, 1, 31, 32, 33, 1000)
TOLERANCE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
}


@contextlib.contextmanager
def _library_is(loaded: tuple[str, ctypes.CDLL] | None) -> Iterator[None]:
    kept = _cpu.library, _cuda._served
    _cpu.library = lambda: loaded  # type: ignore[assignment]
    _cuda._served = lambda: None  # type: ignore[assignment]
    _cpu._function.cache_clear()
    try:
        yield
    finally:
        _cpu.library, _cuda._served = kept  # type: ignore[assignment]
        _cpu._function.cache_clear()


def on_reference() -> contextlib.AbstractContextManager[None]:
    """Operators run their torch references, as on a machine without the native library."""
    return _library_is(None)


def each_level() -> Iterator[str]:
    """Make every installed level that this machine can run the loaded one, in turn; skip the test where there is none
    or one, since then there is nothing to compare."""
    levels = [level for level in _cpu.runnable_levels() if level in _cpu.installed_levels()]
    if len(levels) < 2:
        pytest.skip(f"compares native levels, but {len(levels)} are installed here ({levels}); run 'pip install .'")
    for level in levels:
        with _library_is((level, ctypes.CDLL(str(_cpu._path_of(level))))):
            yield level


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, low: float = 0.0, high: float = 1.0):
    """Uniform numbers that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=generator, dtype=torch.float64) * (high - low) + low).to(dtype)
