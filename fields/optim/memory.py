"""Where does memory go that a step frees? Back to the next step, not to the system."""

from __future__ import annotations

import contextlib
import ctypes
import sys


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of returning each to the kernel, for the rest of the process: a step frees
    and takes buffers of tens of megabytes, and faulting their pages in anew costs more than some operators (measured:
    15 % of a training step). Elsewhere than on Linux with glibc nothing happens."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no separate mappings
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
