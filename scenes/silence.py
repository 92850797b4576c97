"""How are libraries kept from printing?

OpenEXR and libtiff write their remarks about damaged files to the process's own standard output and error, past
Python's streams, and OpenEXR's module to these too. All lead nowhere for as long as any thread is inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_inside = 0
_undo = contextlib.ExitStack()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """What is written to standard output and error meanwhile is lost, whoever writes it; closed ones stay closed."""
    global _inside
    with _lock:
        if _inside == 0:
            _redirect()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _flush_native()
                _undo.close()


def _redirect() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # absent or closed
            stream.flush()
    _flush_native()
    _undo.enter_context(contextlib.redirect_stdout(io.StringIO()))
    _undo.enter_context(contextlib.redirect_stderr(io.StringIO()))
    kept: dict[int, int] = {}
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # closed: nothing can be said there
            kept[descriptor] = os.dup(descriptor)
    if not kept:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor, copy in kept.items():
        _undo.callback(os.close, copy)
        _undo.callback(os.dup2, copy, descriptor)
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _flush_native() -> None:
    """C's buffers, all of them."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no such library by this name on Windows
        ctypes.CDLL(None).fflush(None)
