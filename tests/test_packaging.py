"""Does what a user installs work: the wheel, the sdist, an editable checkout, and an install without a compiler?

Everything is built from a copy of what git tracks or would add, in a temporary folder, and run from outside the
checkout in virtual environments of its own. They see this environment's site-packages behind their own, so that torch
is not installed again. pip may fetch setuptools for its isolated builds.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
IS_X86_LINUX = sys.platform.startswith("linux") and platform.machine() == "x86_64"
LIBRARIES = {f"_cpu_{level}.so" for level in (("v2", "v3", "v4", "v4bf16") if IS_X86_LINUX else ("base",))}
COMPILER = shutil.which(os.environ.get("CXX") or "g++")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="library names are those of Linux"),
    pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="needs a git checkout"),
]
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def run(*command: str | Path, cwd: Path, **extra: str) -> str:
    """Output of a command that must succeed, without this process's Polyfield and Python variables."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("POLYFIELD_", "PYTHON"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=kept | extra, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def pip(*arguments: str | Path, cwd: Path, **extra: str) -> str:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd, **extra)


def copy_checkout(target: Path) -> Path:
    """The files that a clone would have, links kept as links."""
    names = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).split("\0")
    for name in filter(None, names):
        if os.path.lexists(ROOT / name):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    return target


def make_environment(folder: Path) -> Path:
    """A virtual environment without pip; modules that it lacks come from the one that runs the tests."""
    venv.create(folder, with_pip=False, symlinks=True)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def only_wheel(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def libraries_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {Path(name).name for name in archive.namelist() if name.endswith(".so")}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def build(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(wheel, log of pip and the compiler)."""
    out = tmp_path_factory.mktemp("wheel")
    log = pip("wheel", "-v", "--no-deps", "-w", out, ".", cwd=checkout)
    return only_wheel(out), log


@needs_compiler
def test_wheel_has_the_platform_but_no_python_version_in_its_tag(build: tuple[Path, str]) -> None:
    tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert re.fullmatch(rf"polyfield-[\d.]+-py3-none-{tag}\.whl", build[0].name)


@needs_compiler
def test_wheel_holds_the_package_and_nothing_else(build: tuple[Path, str]) -> None:
    with zipfile.ZipFile(build[0]) as archive:
        names = archive.namelist()
        metadata = next(archive.read(n).decode() for n in names if n.endswith("/METADATA"))
        (entry,) = [archive.read(n).decode() for n in names if n.endswith("/entry_points.txt")]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"polyfield"}
    assert {"polyfield/py.typed", "polyfield/fields/ops/_cpu.py", "polyfield/scenes/cli/train.py"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert libraries_in(build[0]) == LIBRARIES
    assert "polyfield = polyfield.scenes.cli:main" in entry
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Dist: torch>=2.7\n" in metadata


@needs_compiler
def test_native_sources_compile_without_warnings(build: tuple[Path, str]) -> None:
    assert "-Wall" in build[1]
    assert not [line for line in build[1].splitlines() if re.search(r"\.(h|cpp):\d+:\d+: (warning|error):", line)]


@needs_compiler
def test_build_does_not_fetch_torch(build: tuple[Path, str]) -> None:
    assert "setuptools" in build[1]
    assert not re.search(r"(Collecting|Downloading|Processing) \S*torch", build[1])


@needs_compiler
def test_installed_wheel_runs_outside_the_checkout(build: tuple[Path, str], tmp_path: Path) -> None:
    binaries = make_environment(tmp_path / "venv")
    pip("--python", binaries / "python", "install", "--ignore-installed", "--no-deps", build[0], cwd=tmp_path)
    code = (
        "import polyfield.fields.ops as ops; from polyfield.fields.ops import _cpu; print(ops.__file__, _cpu.level())"
    )
    where, level = run(binaries / "python", "-W", "error", "-c", code, cwd=tmp_path).split()
    assert Path(where).is_relative_to(tmp_path)
    assert f"_cpu_{level}.so" in LIBRARIES
    report = json.loads(run(binaries / "polyfield", "doctor", "--json", cwd=tmp_path))
    assert report["works"] is True
    kernels = next(check for check in report["checks"] if check["name"] == "CPU kernels")
    assert kernels["state"] == "ok"
    assert f"level {level} loaded" in kernels["found"]


@needs_compiler
def test_sdist_builds_the_same_wheel(build: tuple[Path, str], checkout: Path, tmp_path: Path) -> None:
    hook = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    if int(__import__("setuptools").__version__.split(".")[0]) < 77:
        pytest.skip("this environment's setuptools is older than the build needs (77)")
    run(sys.executable, "-c", hook, tmp_path, cwd=checkout)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data") if sys.version_info >= (3, 12) else tar.extractall(tmp_path)
    source = archive.with_name(archive.name.removesuffix(".tar.gz"))
    assert (source / "src/polyfield/fields/ops/_cpu.py").is_file()
    assert not (source / "src/polyfield/fields").is_symlink()
    # Objects are named by the hash of all that went into them: those of the checkout fit where every header is there.
    shutil.copytree(checkout / "build/objects", source / "build/objects")
    pip("wheel", "--no-deps", "-w", tmp_path, source, cwd=tmp_path)
    with zipfile.ZipFile(build[0]) as first, zipfile.ZipFile(only_wheel(tmp_path)) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


@needs_compiler
def test_editable_install_sees_new_modules(build: tuple[Path, str], checkout: Path, tmp_path: Path) -> None:
    binaries = make_environment(tmp_path / "venv")
    pip("--python", binaries / "python", "install", "--no-deps", "-e", ".", cwd=checkout)
    assert {path.name for path in (checkout / "fields/ops").glob("*.so")} == LIBRARIES
    added = checkout / "fields/added_later.py"
    added.write_text("here = True\n")
    try:
        code = "from polyfield.fields import added_later; from polyfield.fields.ops import _cpu; print(_cpu.level())"
        level = run(binaries / "python", "-c", code, cwd=tmp_path).strip()
    finally:
        added.unlink()
    assert f"_cpu_{level}.so" in LIBRARIES


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of an environment where Polyfield was installed without a compiler. The checkout holds a
    library and a module of an older build, which must not be installed."""
    root = tmp_path_factory.mktemp("bare")
    checkout = copy_checkout(root / "checkout")
    (checkout / "fields/ops/_cpu_v2.so").write_bytes(b"of an older build")
    stale = checkout / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "polyfield/gone.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    binaries = make_environment(root / "venv")
    tools = root / "tools"  # a PATH where no compiler is found
    tools.mkdir()
    no_compiler = {"CC": "/bin/false", "CXX": "/bin/false", "PATH": str(tools)}
    pip("--python", binaries / "python", "install", "--no-deps", checkout, cwd=root, **no_compiler)
    return binaries


def test_install_without_compiler_holds_no_library(bare: Path) -> None:
    (package,) = bare.parent.glob("lib/*/site-packages/polyfield")
    assert not list(package.rglob("*.so"))
    assert not (package / "gone.py").exists()


def test_doctor_says_what_to_do_about_the_missing_library(bare: Path, tmp_path: Path) -> None:
    report = json.loads(run(bare / "polyfield", "doctor", "--json", cwd=tmp_path))
    assert report["works"] is True
    kernels = next(check for check in report["checks"] if check["name"] == "CPU kernels")
    assert kernels["state"] != "ok"
    assert "compiler" in kernels["remedy"]


def test_program_without_library_warns_once_and_works(bare: Path, tmp_path: Path) -> None:
    """An untrained model of a small field: training with the references takes minutes before its first step."""
    code = """
from polyfield.fields import HashField, HashFieldConfig, MarchConfig, Model, OccupancyGrid, Similarity
from polyfield.fields.ops.hash_encode import HashGridSpec
grid = HashGridSpec(levels=4, log2_table_size=10, finest_resolution=32)
field, occupancy = HashField(HashFieldConfig(grid=grid)), OccupancyGrid(cascades=1, resolution=16)
Model(field, occupancy, MarchConfig(), Similarity.identity()).save("model.safetensors")
"""
    run(bare / "python", "-c", code, cwd=tmp_path)
    log = run(bare / "polyfield", "render", "model.safetensors", "--orbit=2", "--size=16x16", "--out=o", cwd=tmp_path)
    assert log.count("no native CPU library") == 1
    assert sorted(path.name for path in (tmp_path / "o").glob("0*.png")) == ["00000.png", "00001.png"]
