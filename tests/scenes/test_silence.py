"""What native code prints is kept from the user, and nothing else is."""

import ctypes
import os
import subprocess
import sys
import threading

import pytest

from polyfield.scenes.silence import silenced


def write_both(text: str) -> None:
    """As native code does: past Python's streams, with and without C's buffer, and through them."""
    ctypes.CDLL(None).printf(text.encode())
    os.write(1, text.encode())
    os.write(2, text.encode())
    print(text, end="")


def test_what_native_code_prints_is_gone_and_what_comes_after_is_not(capfd):
    print("before", flush=False)

    def fail_inside() -> None:
        write_both("inside")
        raise ValueError("passed on")

    with pytest.raises(ValueError, match="passed on"), silenced():
        fail_inside()
    write_both("after")
    ctypes.CDLL(None).fflush(None)
    out, err = capfd.readouterr()
    assert out.startswith("before\n")
    assert "inside" not in out + err
    assert (out.count("after"), err) == (3, "after")


def test_threads_that_overlap_leave_the_streams_as_they_were(capfd):
    first, second = silenced(), silenced()
    with first:
        entered, leave = threading.Event(), threading.Event()

        def other() -> None:
            with second:
                entered.set()
                leave.wait()

        thread = threading.Thread(target=other)
        thread.start()
        entered.wait()
    write_both("inside")
    leave.set()
    thread.join()
    write_both("after")
    ctypes.CDLL(None).fflush(None)
    out, err = capfd.readouterr()
    assert (out, err) == ("after" * 3, "after")


def test_closed_streams_stay_closed():
    code = """
import os
from polyfield.scenes.silence import silenced
os.close(1)
with silenced():
    os.write(2, b"inside")
os.write(2, b"after")
try:
    os.fstat(1)
except OSError:
    os.write(2, b" closed")
os._exit(0)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == "after closed"
