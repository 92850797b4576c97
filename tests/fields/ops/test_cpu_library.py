"""Is the right native build loaded, does its absence say so once, and does it survive a fork?

What depends on environment variables runs in a process of its own, since they are read once.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from polyfield.fields.errors import ConfigError, NativeError
from polyfield.fields.ops import _cpu

V3_FLAGS = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
V4_FLAGS = V3_FLAGS | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
VARIABLES = ("POLYFIELD_BACKEND", "POLYFIELD_CPU_LEVEL", "POLYFIELD_CPU_LIBRARY")
OP_TESTS = Path(__file__).parent
TESTABLE = [level for level in _cpu.runnable_levels() if level in _cpu.installed_levels()]
CALL_TWICE = """
import torch
from polyfield.fields.ops import _cpu
from polyfield.fields.ops.spherical_harmonics import spherical_harmonics, spherical_harmonics_reference
x = torch.nn.functional.normalize(torch.randn(100, 3), dim=1)
for _ in range(2):
    torch.testing.assert_close(spherical_harmonics(x), spherical_harmonics_reference(x))
print("level", _cpu.level())
"""


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without Polyfield's variables, but for those given."""
    return {k: v for k, v in os.environ.items() if k not in VARIABLES} | extra


def run_python(code: str, *, timeout: float = 120, **extra: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment(**extra), capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Pretends a processor and a folder of builds: builds(machine, flags, levels)."""

    def pretend(machine: str, flags: set[str], levels: tuple[str, ...] = ()) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(_cpu.platform, "machine", lambda: machine)
        monkeypatch.setattr(_cpu, "cpu_flags", lambda: frozenset(flags))
        monkeypatch.setattr(_cpu, "_path_of", lambda level: tmp_path / level)
        for level in levels:
            (tmp_path / level).write_bytes(b"not a library")

    return pretend


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", V4_FLAGS | {"avx512_bf16"}, ("v4bf16", "v4", "v3", "v2", "base")),
        ("AMD64", V4_FLAGS, ("v4", "v3", "v2", "base")),
        ("x86_64", V3_FLAGS | {"avx512f", "avx512_bf16"}, ("v3", "v2", "base")),
        ("x86_64", V4_FLAGS - {"fma"}, ("v2", "base")),
        ("x86_64", set(), ("v2", "base")),
        ("aarch64", {"asimd"}, ("base",)),
    ],
)
def test_runnable_levels_are_those_whose_instructions_all_exist(builds, machine, flags, expected) -> None:
    builds(machine, flags)
    assert _cpu.runnable_levels() == expected


def test_best_runnable_build_is_picked(builds) -> None:
    builds("x86_64", V4_FLAGS, ("v4bf16", "v3", "v2"))
    picked = _cpu._pick()
    assert picked is not None
    assert picked[0] == "v3"


def test_level_can_be_forced(builds, monkeypatch: pytest.MonkeyPatch) -> None:
    builds("x86_64", V4_FLAGS, ("v4", "v2"))
    monkeypatch.setenv("POLYFIELD_CPU_LEVEL", "v2")
    picked = _cpu._pick()
    assert picked is not None
    assert picked[0] == "v2"


def test_unknown_level_lists_the_known_ones(builds, monkeypatch: pytest.MonkeyPatch) -> None:
    builds("x86_64", V4_FLAGS)
    monkeypatch.setenv("POLYFIELD_CPU_LEVEL", "avx9")
    with pytest.raises(ConfigError, match=r"^POLYFIELD_CPU_LEVEL must be one of v4bf16, v4, v3, v2, base; got 'avx9'$"):
        _cpu._pick()


def test_level_that_would_crash_is_refused(builds, monkeypatch: pytest.MonkeyPatch) -> None:
    builds("x86_64", V3_FLAGS, ("v4",))
    monkeypatch.setenv("POLYFIELD_CPU_LEVEL", "v4")
    with pytest.raises(NativeError, match=r"^this processor cannot run level v4; it can run v3, v2, base$"):
        _cpu._pick()


def test_level_that_is_not_installed_is_refused(builds, monkeypatch: pytest.MonkeyPatch) -> None:
    builds("x86_64", V4_FLAGS, ("v4", "v2"))
    monkeypatch.setenv("POLYFIELD_CPU_LEVEL", "v3")
    with pytest.raises(
        NativeError, match=r"^level v3 is not installed \(there is v4, v2\); unset POLYFIELD_CPU_LEVEL$"
    ):
        _cpu._pick()


def test_unknown_backend_is_refused(builds, monkeypatch: pytest.MonkeyPatch) -> None:
    builds("x86_64", set())
    monkeypatch.setenv("POLYFIELD_BACKEND", "gpu")
    with pytest.raises(ConfigError, match=r"^POLYFIELD_BACKEND must be 'cpu' or 'reference'; got 'gpu'$"):
        _cpu.library.__wrapped__()


def test_demanded_library_that_is_missing_is_an_error(builds, monkeypatch: pytest.MonkeyPatch) -> None:
    builds("x86_64", set())
    monkeypatch.setenv("POLYFIELD_BACKEND", "cpu")
    with pytest.raises(NativeError, match=r"no native CPU library at .*; install a C\+\+17 compiler and run 'pip"):
        _cpu.library.__wrapped__()


def test_file_that_is_no_library_is_an_error(builds) -> None:
    builds("x86_64", set(), ("v2",))
    with pytest.raises(NativeError, match=r"v2 cannot be loaded: "):
        _cpu.library.__wrapped__()


def test_reference_backend_is_silent(builds, monkeypatch: pytest.MonkeyPatch) -> None:
    builds("x86_64", set())
    monkeypatch.setenv("POLYFIELD_BACKEND", "reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _cpu.library.__wrapped__() is None


def test_processor_flags_are_read_on_linux() -> None:
    if not Path("/proc/cpuinfo").exists() or "base" in _cpu.runnable_levels()[:1]:
        pytest.skip("only Linux on x86-64 lists processor flags")
    assert "sse4_2" in _cpu.cpu_flags()


def test_missing_library_warns_once_and_computes() -> None:
    done = run_python(CALL_TWICE, POLYFIELD_CPU_LIBRARY="/nonexistent/library.so")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "level reference\n"
    assert done.stderr.count("no native CPU library at") == 1
    assert done.stderr.count("Until then the slow torch references are used.") == 1


def test_missing_library_can_be_forbidden() -> None:
    done = run_python(CALL_TWICE, POLYFIELD_CPU_LIBRARY="/nonexistent/library.so", POLYFIELD_BACKEND="cpu")
    assert done.returncode == 1
    assert "NativeError: no native CPU library at /nonexistent/library.so" in done.stderr


def test_reference_backend_computes_without_a_word() -> None:
    done = run_python(CALL_TWICE, POLYFIELD_BACKEND="reference")
    assert (done.returncode, done.stdout, done.stderr) == (0, "level reference\n", "")


def needs_library() -> None:
    if not TESTABLE:
        pytest.skip("no native library is installed beside _cpu.py (no compiler when it was installed?)")


def test_best_installed_level_is_loaded() -> None:
    needs_library()
    done = run_python(CALL_TWICE, POLYFIELD_BACKEND="cpu")
    assert (done.returncode, done.stdout) == (0, f"level {TESTABLE[0]}\n"), done.stderr


@pytest.mark.parametrize("level", TESTABLE or ["none"])
def test_every_level_can_be_forced_and_computes(level: str) -> None:
    needs_library()
    done = run_python(CALL_TWICE, POLYFIELD_BACKEND="cpu", POLYFIELD_CPU_LEVEL=level)
    assert (done.returncode, done.stdout) == (0, f"level {level}\n"), done.stderr


def test_function_that_an_old_library_lacks_is_named() -> None:
    needs_library()
    code = "from polyfield.fields.ops import _cpu; _cpu.call('pf_no_such_function')"
    done = run_python(code, POLYFIELD_BACKEND="cpu")
    assert "has no function pf_no_such_function; run 'pip install .' again" in done.stderr


def test_integers_keep_64_bits_on_their_way() -> None:
    """`llabs` of the C library stands for a native function; what follows its argument is ignored."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs libc.so.6 as a stand-in")
    code = "from polyfield.fields.ops import _cpu; print(_cpu.call('llabs', -(2**40)), _cpu.level())"
    done = run_python(code, POLYFIELD_CPU_LIBRARY="libc.so.6")
    if "no native CPU library" in done.stderr:
        path = next((p for p in Path("/").glob("lib*/**/libc.so.6")), None)
        if path is None:
            pytest.skip("libc.so.6 was not found")
        done = run_python(code, POLYFIELD_CPU_LIBRARY=str(path))
    assert done.stdout == f"{2**40} custom\n", done.stderr


FORKS = {
    "DataLoader with two workers": """
class Basis(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return spherical_harmonics(x).sum()

loader = torch.utils.data.DataLoader(Basis(), num_workers=2, multiprocessing_context="fork")
assert all(torch.equal(total[0], expected) for total in loader)
""",
    "os.fork with one thread": """
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(spherical_harmonics(x).sum(), expected) else 3)
assert os.waitpid(child, 0)[1] == 0
""",
}
BEFORE_FORK = """
import os, torch
from polyfield.fields.ops import _cpu
from polyfield.fields.ops.spherical_harmonics import spherical_harmonics
x = torch.randn(200_000, 3)
torch.set_num_threads(1)
expected = spherical_harmonics(x).sum()
torch.set_num_threads(2)
spherical_harmonics(x)  # a parallel region in the parent: the pool that a child would wait for in vain
assert _cpu.level() != "reference"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("kind", FORKS)
def test_forked_child_computes_after_the_parent_used_threads(kind: str) -> None:
    needs_library()
    done = run_python(BEFORE_FORK + FORKS[kind] + "print('done')", timeout=60)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("level", [*TESTABLE[1:], "reference"])
def test_operators_pass_their_tests_at_every_level(level: str) -> None:
    """The default run has tested the best level; here come the others and the references."""
    forced = {"POLYFIELD_BACKEND": "reference"}
    if level != "reference":
        forced = {"POLYFIELD_BACKEND": "cpu", "POLYFIELD_CPU_LEVEL": level}
    command = [sys.executable, "-m", "pytest", str(OP_TESTS), "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=environment(**forced), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
