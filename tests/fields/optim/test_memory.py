"""Does the memory that a step frees stay for the next?"""

import subprocess
import sys

import pytest

LOOP = """
import resource, torch
from polyfield.fields.optim.memory import keep_freed_memory
{keep}
def step():
    torch.zeros(40 << 18)  # 40 MiB: beyond what glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): before = step()  # (aligned blocks creep upwards at first)
for _ in range(10): after = step()
print(after - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
def test_freed_blocks_are_not_faulted_in_again():
    def faults(keep: str) -> int:
        script = LOOP.format(keep=keep)
        return int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)

    assert faults("keep_freed_memory()") < 100
    assert faults("") > 1000  # else the setting is no longer needed
