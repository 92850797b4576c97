"""Builds the native CPU library: plain C ABI, no torch and no Python headers, one shared library per x86-64 level.

A missing or failing compiler does not stop the installation (`optional=True`): the program then runs on the slow torch
references and says so. The wheel holds no Python ABI, hence its tag `py3-none-<platform>`. Object files lie in
`build/objects`, named by a hash of everything that went into them, so that a rebuild compiles what changed and nothing
stale is ever linked.
"""

import hashlib
import os
import platform
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    from wheel.bdist_wheel import bdist_wheel

SOURCES = sorted(str(p) for p in Path("cuda/cpu").glob("*_cpu.cpp"))
HEADERS = sorted(str(p) for p in Path("cuda").rglob("*.h"))
COMMON = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"]
WARNINGS = ["-Wall", "-Wextra"]
OPENMP = ["-fopenmp"] if sys.platform.startswith("linux") else []
WIDE = "-mprefer-vector-width=512"
X86_LEVELS = {
    "v2": ["-march=x86-64-v2"],
    "v3": ["-march=x86-64-v3"],
    "v4": ["-march=x86-64-v4", WIDE],
    "v4bf16": ["-march=x86-64-v4", "-mavx512bf16", WIDE],
}
SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")

LINKED = {"fields": "__init__.py", "scenes": "__init__.py", "cuda": "gpu/prelude.h"}
for name, inside in LINKED.items():  # src/polyfield/<name> links to ./<name>; an sdist has real folders
    if not Path("src/polyfield", name, inside).is_file():
        raise SystemExit(
            f"src/polyfield/{name} is not a folder: this checkout lost its symbolic links; "
            "run 'git config core.symlinks true' and check the files out again"
        )


def levels() -> dict[str, list[str]]:
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return X86_LEVELS if is_x86 and sys.platform != "win32" else {"base": []}


class BuildLibrary(build_ext):
    """Extensions are shared libraries with no init function and no Python in their file names."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + SUFFIX

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def build_extensions(self) -> None:
        # All sources of all levels share one pool: a level takes as long as its slowest file, and those differ.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self.objects = {
                ext.name: [pool.submit(self.compile_source, ext, source) for source in ext.sources]
                for ext in self.extensions
            }
            super().build_extensions()  # an `optional` extension that fails is reported and left out

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.unlink(missing_ok=True)  # a build that fails must not leave the library of an older one
        objects = [future.result() for future in self.objects[ext.name]]
        strip = ["-Wl,-s"] if sys.platform.startswith("linux") else []
        self.compiler.link_shared_object(objects, str(target), extra_postargs=[*OPENMP, *strip], target_lang="c++")

    def copy_extensions_to_source(self) -> None:  # for `pip install -e .`
        for ext in self.extensions:
            Path("src", self.get_ext_filename(ext.name)).unlink(missing_ok=True)
        super().copy_extensions_to_source()

    def compile_source(self, ext: Extension, source: str) -> str:
        flags = [*COMMON, *WARNINGS, *OPENMP, *ext.extra_compile_args]
        command = getattr(self.compiler, "compiler_so_cxx", None) or getattr(self.compiler, "compiler_so", "")
        digest = hashlib.sha256(repr((command, flags, os.environ.get("CXXFLAGS"))).encode())
        for path in (source, *HEADERS):
            digest.update(Path(path).read_bytes())
        folder = Path("build", "objects", ext.name.rsplit("_", 1)[-1], f"{Path(source).stem}-{digest.hexdigest()[:16]}")
        if not (folder / "done").exists():
            folder.mkdir(parents=True, exist_ok=True)
            self.compiler.compile([source], str(folder), include_dirs=ext.include_dirs, extra_postargs=flags)
            (folder / "done").touch()
        return self.compiler.object_filenames([source], output_dir=str(folder))[0]


class Wheel(bdist_wheel):
    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]

    def run(self) -> None:
        # `build/lib` of an earlier install may hold modules that are gone since, and they would go into the wheel.
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()


setup(
    packages=find_packages("src"),
    package_dir={"": "src"},
    package_data={"polyfield": ["py.typed", "cuda/gpu/*.cu", "cuda/gpu/*.h", "cuda/include/polyfield/*.h"]},
    ext_modules=[
        Extension(
            f"polyfield.fields.ops._cpu_{level}",
            SOURCES,
            include_dirs=["cuda/include", "cuda/cpu"],
            extra_compile_args=flags,
            language="c++",
            optional=True,
            depends=[*HEADERS, "setup.py"],
        )
        for level, flags in levels().items()
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
