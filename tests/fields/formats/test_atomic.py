import json
import os
import resource
import stat
import subprocess
import sys

import pytest

from polyfield.fields.errors import FormatError
from polyfield.fields.formats import atomic_write, remove_leftovers, write_json


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_new_file_appears_whole_and_alone(tmp_path):
    atomic_write(tmp_path / "a.bin", lambda t: t.write_bytes(b"new"))
    assert (tmp_path / "a.bin").read_bytes() == b"new"
    assert names(tmp_path) == ["a.bin"]


def test_an_old_file_is_replaced_and_keeps_its_mode(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    target.chmod(0o640)
    atomic_write(target, lambda t: t.write_bytes(b"new"))
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_new_file_obeys_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        atomic_write(tmp_path / "a.bin", lambda t: t.write_bytes(b"x"))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o640


def disk_full(temporary):
    temporary.write_bytes(b"half")
    raise OSError(28, "No space left on device", str(temporary))


def test_a_full_disk_leaves_the_old_file_and_no_temporary(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(
        FormatError, match=r"a\.bin could not be written: no space left on device; the old file is unchanged$"
    ):
        atomic_write(target, disk_full)
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_failure_in_the_flush_or_the_rename_is_cleaned_up_too(tmp_path, monkeypatch):
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *_: disk_full(tmp_path / "other"))
            with pytest.raises(FormatError, match="no space left"):
                atomic_write(tmp_path / "a.bin", lambda t: t.write_bytes(b"x"))
    assert names(tmp_path) == ["other"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine")])
def test_other_exceptions_pass_through_and_leave_nothing(tmp_path, error):
    def writer(temporary):
        temporary.write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        atomic_write(tmp_path / "a.bin", writer)
    assert names(tmp_path) == []


def test_a_missing_folder_is_named_in_one_line(tmp_path):
    with pytest.raises(FormatError, match=r"could not be written: no such file or directory$") as caught:
        atomic_write(tmp_path / "no" / "a.bin", lambda t: t.write_bytes(b"x"))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_file_size_limit_of_the_system_leaves_the_old_checkpoint(tmp_path):
    """A real write failure: the kernel refuses to let the new file grow past 64 KiB."""
    code = f"""
import resource, torch
from polyfield.fields.errors import FormatError
from polyfield.fields.formats import read_tensors, write_tensors
path = {str(tmp_path / "c.safetensors")!r}
write_tensors(path, {{"kind": "checkpoint"}}, {{"a": torch.ones(10)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
try:
    write_tensors(path, {{"kind": "checkpoint"}}, {{"a": torch.zeros(1 << 20)}})
except FormatError as error:
    print(error)
assert read_tensors(path, kind="checkpoint")[1]["a"].sum() == 10
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert "could not be written: file too large; the old file is unchanged" in done.stdout
    assert names(tmp_path) == ["c.safetensors"]
    assert resource.RLIMIT_FSIZE >= 0


def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path):
    code = f"""
import os, signal
from polyfield.fields.formats import atomic_write
def writer(temporary):
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
atomic_write({str(tmp_path / "a.bin")!r}, writer)
"""
    (tmp_path / "a.bin").write_bytes(b"old")
    (tmp_path / ".hidden").write_bytes(b"mine")
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert done.returncode == -9
    assert len(names(tmp_path)) == 3
    assert remove_leftovers(tmp_path) == 1
    assert names(tmp_path) == [".hidden", "a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"old"


def test_json_is_valid_or_refused(tmp_path):
    write_json(tmp_path / "a.json", {"psnr": 30.5, "path": tmp_path})
    assert json.loads((tmp_path / "a.json").read_text()) == {"psnr": 30.5, "path": str(tmp_path)}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"psnr": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text())["psnr"] == 30.5
