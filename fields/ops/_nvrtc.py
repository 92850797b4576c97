"""How CUDA text becomes a CUBIN: with the NVRTC that torch itself depends on, kept on disk.

No nvcc, no toolkit header, no driver: NVRTC alone compiles for any architecture that it knows. A CUBIN is kept in the
cache folder under a hash of everything that went into it (text, headers, options, architecture, NVRTC's version),
written to a temporary file and renamed, so that several processes may compile at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ..cache import cache_folder
from ..errors import NativeError

OPTIONS = ("--std=c++17", "-default-device")
KEPT_BYTES = 64 << 20
"""Most bytes of CUBINs kept; the oldest go first. All kernels of one version for one device take under 1 MB."""


class Compiled(NamedTuple):
    """What NVRTC made of one text."""

    cubin: bytes
    log: str
    """Warnings and, with `--ptxas-options=-v`, what each kernel uses."""


def find_nvrtc() -> Path | None:
    """The library beside torch's other CUDA wheels; None where the system has to be asked by bare name."""
    patterns = (
        "nvidia/cu1[3-9]/lib/libnvrtc.so.*",
        "nvidia/cuda_nvrtc/lib/libnvrtc.so.*",
        "nvidia/cu*/bin/**/nvrtc64_*.dll",
        "nvidia/cuda_nvrtc/bin/nvrtc64_*.dll",
    )
    for folder in map(Path, sys.path):
        for pattern in patterns:
            with contextlib.suppress(OSError):
                for path in sorted(folder.glob(pattern)):
                    if "builtins" not in path.name and "alt" not in path.name:
                        return path
    return None


class Nvrtc:
    """The loaded compiler. Final; one serves the process (`nvrtc`)."""

    def __init__(self, path: Path | None) -> None:
        """Raises NativeError where the library cannot be loaded."""
        if path is not None:
            # Wheels 13.0.x carry no search path: NVRTC would not find its builtins beside itself.
            for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        names = [str(path)] if path else ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
        errors = []
        for name in names:
            try:
                self._library = ctypes.CDLL(name)
                break
            except OSError as error:
                errors.append(str(error))
        else:
            text = "NVRTC, which compiles the CUDA kernels, is not there; run 'pip install nvidia-cuda-nvrtc'"
            raise NativeError(f"{text} ({errors[0]})")
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = (major.value, minor.value)

    def architectures(self) -> list[int]:
        """Compute capabilities that can be compiled for, as 10 * major + minor."""
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        values = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(values))
        return list(values)

    def compile(
        self, name: str, text: str, headers: Mapping[str, str], architecture: int, options: tuple[str, ...] = ()
    ) -> Compiled:
        """Compile `text` for compute capability `architecture`.

        Args:
            name: of the file, for messages.
            headers: what `#include` finds, by the path that is written there.

        Raises:
            NativeError: it does not compile; the first error is in the text, the whole log in the exception's note.
        """
        encoded = [part.encode() for pair in headers.items() for part in pair]
        paths = (ctypes.c_char_p * len(headers))(*encoded[::2])
        texts = (ctypes.c_char_p * len(headers))(*encoded[1::2])
        program = ctypes.c_void_p()
        self._check(
            self._library.nvrtcCreateProgram(
                ctypes.byref(program), text.encode(), name.encode(), len(headers), texts, paths
            )
        )
        try:
            flags = [f"--gpu-architecture=sm_{architecture}", *OPTIONS, *options]
            failed = self._library.nvrtcCompileProgram(
                program, len(flags), (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
            )
            log = self._output(program, "ProgramLog").decode(errors="replace").rstrip("\0\n")
            if failed:
                first = next((line for line in log.splitlines() if "error" in line), log[:200])
                raise NativeError(f"{name} does not compile for sm_{architecture}: {first}", log)
            return Compiled(self._output(program, "CUBIN"), log)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _output(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw

    def _check(self, result: int) -> None:
        if result:
            raise NativeError(f"NVRTC: {self._library.nvrtcGetErrorString(result).decode()}")


@functools.cache
def nvrtc() -> Nvrtc:
    """The process's compiler. Raises NativeError where there is none."""
    return Nvrtc(find_nvrtc())


def cubin_folder() -> Path:
    """Where CUBINs are kept."""
    return cache_folder() / "cubin"


def compile_kept(
    name: str, text: str, headers: Mapping[str, str], architecture: int, options: tuple[str, ...] = ()
) -> bytes:
    """The CUBIN of `text`, from the cache folder or compiled into it. A folder that cannot be written is done without.

    Raises:
        NativeError: as `Nvrtc.compile`; the log is then in the cache folder.
    """
    compiler = nvrtc()
    parts = (name, text, sorted(headers.items()), architecture, OPTIONS + options, compiler.version)
    folder = cubin_folder()
    path = folder / f"{Path(name).stem}-sm{architecture}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}.cubin"
    with contextlib.suppress(OSError):
        image = path.read_bytes()
        if image[:4] == b"\x7fELF":
            return image
    try:
        image = compiler.compile(name, text, headers, architecture, options).cubin
    except NativeError as error:
        log = path.with_suffix(".log")
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            log.write_text("\n".join(map(str, error.args)))
            raise NativeError(f"{error.args[0]} (whole log: {log})") from None
        raise
    with contextlib.suppress(OSError):
        _write(path, image)
        _forget_oldest(folder)
    return image


def clear_kept() -> int:
    """Delete all kept CUBINs and logs; returns how many files."""
    files = list(_kept(cubin_folder()))
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)


def _write(path: Path, image: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(image)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def _kept(folder: Path) -> Iterator[Path]:
    for pattern in ("*.cubin", "*.log", "*.part"):
        yield from folder.glob(pattern)


def _forget_oldest(folder: Path) -> None:
    files = sorted(_kept(folder), key=lambda p: p.stat().st_mtime)
    total = sum(p.stat().st_size for p in files)
    for path in files[:-1]:
        if total <= KEPT_BYTES:
            return
        total -= path.stat().st_size
        path.unlink(missing_ok=True)
