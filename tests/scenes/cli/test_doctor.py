import json
import os
import subprocess
import sys

import pytest

from polyfield.scenes.cli import doctor, main


def by_name(checks):
    return {c.name: c for c in checks}


def test_the_report_covers_the_machine():
    checks = by_name(doctor.examine())
    for name in (
        "Polyfield",
        "system",
        "Python",
        "processor",
        "memory",
        "torch",
        "threads",
        "CPU kernels",
        "CUDA",
        "NVRTC",
    ):
        assert name in checks, name
    for name in ("gsplat", "nerfacc", "tinycudann", "viser", "pycolmap", "imageio-ffmpeg", "OpenEXR", "cache"):
        assert name in checks, name


def test_whatever_is_missing_comes_with_a_remedy():
    for check in doctor.examine():
        assert check.state in ("ok", "note", "missing", "broken")
        assert (check.state == "ok") or check.remedy, check
        assert "\n" not in check.found + check.remedy


def test_json_and_exit_code(capsys):
    assert main(["doctor", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["works"] is True
    assert {"name", "state", "found", "remedy"} == value["checks"][0].keys()


def test_the_table_ends_with_the_verdict(capsys):
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("Polyfield works on this machine.")


def test_a_check_that_fails_does_not_stop_the_others(monkeypatch):
    def broken():
        raise OSError("what\nnow")

    monkeypatch.setattr(doctor, "_memory", broken)
    checks = by_name(doctor.examine())
    assert checks["memory"].state == "note"
    assert checks["memory"].found == "this check failed: OSError: what now"
    assert "torch" in checks


def run_without(module):
    """`polyfield doctor` in a process where importing `module` fails."""
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {module!r}:\n"
        "            raise ImportError('lib' + name + '.so: cannot open shared object file')\n"
        "sys.meta_path.insert(0, Block())\n"
        "from polyfield.scenes.cli import main\n"
        "sys.exit(main(['doctor']))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)


@pytest.mark.parametrize(
    "module", ["torch", *(pytest.param(m, marks=pytest.mark.slow) for m in ("numpy", "rich", "tyro", "safetensors"))]
)
def test_doctor_works_where_a_package_is_broken(module):
    done = run_without(module)
    assert done.returncode == 1, done.stderr
    assert "BROKEN" in done.stdout
    assert f"pip install --force-reinstall {module}" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr
    assert "cannot work on this machine yet" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_demanded_but_absent_library_is_broken_and_says_why():
    environment = {**os.environ, "POLYFIELD_CPU_LIBRARY": "/nowhere/lib.so", "POLYFIELD_BACKEND": "cpu"}
    code = "import sys; from polyfield.scenes.cli import main; sys.exit(main(['doctor', '--json']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1, done.stderr
    check = next(c for c in json.loads(done.stdout)["checks"] if c["name"] == "CPU kernels")
    assert check["state"] == "broken"
    assert "/nowhere/lib.so" in check["found"]
    assert "POLYFIELD_CPU_LIBRARY" in check["remedy"]


@pytest.mark.slow
def test_the_reference_back_end_works_and_says_what_was_switched_off():
    environment = {**os.environ, "POLYFIELD_BACKEND": "reference"}
    code = "import sys; from polyfield.scenes.cli import main; sys.exit(main(['doctor', '--json']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    check = next(c for c in json.loads(done.stdout)["checks"] if c["name"] == "CPU kernels")
    assert check["state"] == "missing"
    assert check["remedy"] == "unset POLYFIELD_BACKEND"


def test_a_library_that_computes_wrongly_is_found(monkeypatch):
    op = pytest.importorskip("polyfield.fields.ops.spherical_harmonics")
    assert doctor.self_check() is None
    right = op.spherical_harmonics
    monkeypatch.setattr(op, "spherical_harmonics", lambda *a: right(*a) + 0.5)
    assert doctor.self_check() == "spherical harmonics differ from the reference by 0.5"


def test_nvrtc_is_found_where_pip_puts_it(tmp_path, monkeypatch):
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    (folder / "libnvrtc.so.13").write_bytes(b"")
    (folder / "libnvrtc-builtins.so.13.0").write_bytes(b"")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (check,) = doctor._nvrtc()
    assert (check.state, check.found) == ("ok", str(folder / "libnvrtc.so.13"))


def test_a_folder_that_cannot_be_written_is_noted(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYFIELD_CACHE", str(tmp_path / "cache"))
    (check,) = doctor._cache()
    assert check.state == "ok"
    assert str(tmp_path / "cache") in check.found
    monkeypatch.setattr(os, "access", lambda *a: False)
    (check,) = doctor._cache()
    assert check.state == "note"
    assert "POLYFIELD_CACHE" in check.remedy
