"""The CUDA kernels: how they are found, compiled for the device at hand, loaded and launched.

`.cu` text lies in the package (`cuda/gpu`), is compiled at a kernel's first use (`_nvrtc`), loaded and launched through
the driver's own C interface on torch's current stream: no nvcc, nothing bound to a torch or CUDA version. Kernels take
the arguments of the CPU library's functions of the same name, without the thread count: pointers, `i64`, `double`.

- `POLYFIELD_BACKEND`: `cpu` and `reference` leave CUDA alone;
- `POLYFIELD_CUDA_DRIVER`: a path to another driver library; that of the emulator (`cuda/emulator`) answers for tensors
  on the CPU, which is how the kernels are tested without a GPU.

A device that cannot be used is said once, in one line, and the torch references run instead.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import sys
import threading
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import NativeError
from ._nvrtc import compile_kept

THREADS = 256
"""Threads of a block (`kThreads` of `cuda/gpu/prelude.h`)."""
_LEAST_DRIVER = 12000  # the first with cuLibraryLoadData
_ATTRIBUTE_MAJOR, _ATTRIBUTE_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
SOURCES = Path(__file__).parents[2] / "cuda"
FILES = {
    "pf_intersect_box": "ray_box",
    "pf_frequency_encode": "frequency",
    "pf_spherical_harmonics": "spherical_harmonics",
    "pf_adam": "adam",
    "pf_hash": "hash_grid",
    "pf_composite": "composite",
    "pf_trim": "composite",
    "pf_distortion": "distortion",
    "pf_occupancy": "occupancy",
    "pf_march": "march",
    "pf_pack": "march",
    "pf_factored": "factored_grid",
    "pf_modulate": "modulate",
    "pf_mesh": "mesh",
    "pf_sparse": "sparse_grid",
    "pf_mlp": "mlp",
    "pf_radiance": "radiance",
}
"""Which file of `cuda/gpu` holds the kernels whose names begin so."""
_EXACT = ("occupancy", "march")  # find what the CPU finds, bit for bit: products are not contracted into FMA


class Grid(NamedTuple):
    """The shape of a launch: blocks of `THREADS` threads."""

    blocks: int


class Held(NamedTuple):
    """An integer argument that the host does not know: an element of an int64 tensor on the device. For kernels that
    take a `Number` (`cuda/gpu/prelude.h`)."""

    tensor: Tensor
    place: int


Argument = Tensor | Held | int | float | bool | None
"""What a kernel is given: tensors (contiguous, on one device) and None become pointers, integers `i64`, floats
`double`."""


class Launch(NamedTuple):
    """A launch that may be repeated: all its arguments stay as they are."""

    name: str
    grid: Grid
    arguments: tuple[Argument, ...]

    def run(self) -> None:
        """`call` it."""
        call(self.name, self.grid, *self.arguments)


def one_thread_each(count: int, most_blocks: int = 2**31 - 1) -> Grid:
    """A thread for each of `count` elements; fewer where the kernel loops and `most_blocks` are enough."""
    return Grid(min(most_blocks, -(-count // THREADS)))


def warp_each(count: int) -> int:
    """How many threads give each of `count` elements a warp of 32; at least one warp."""
    return 32 * max(count, 1)


@functools.cache
def _served() -> str | None:
    """The type of device whose tensors the kernels take: "cuda", with the emulator "cpu", or none."""
    if os.environ.get("POLYFIELD_BACKEND", "") in ("cpu", "reference"):
        return None
    return "cpu" if os.environ.get("POLYFIELD_CUDA_DRIVER") else "cuda"


class Driver:
    """The driver's library. Final; one serves the process (`driver`)."""

    def __init__(self) -> None:
        """Raises NativeError: no driver, or one that is too old."""
        name = os.environ.get("POLYFIELD_CUDA_DRIVER") or ("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        try:
            self._library = ctypes.CDLL(name)
        except OSError as error:
            raise NativeError(f"no NVIDIA driver: {error}") from None
        self.check(self._library.cuInit(0), "cuInit")
        version = ctypes.c_int()
        self.check(self._library.cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
        if version.value < _LEAST_DRIVER:
            found = f"{version.value // 1000}.{version.value % 1000 // 10}"
            raise NativeError(f"the NVIDIA driver knows CUDA {found}; at least 12.0 is needed: update it")
        self._launch = self._library.cuLaunchKernel
        self._launch.argtypes = [ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3]
        self._load = self._library.cuLibraryLoadData
        self._load.argtypes = [*[ctypes.c_void_p] * 4, ctypes.c_uint, *[ctypes.c_void_p] * 2, ctypes.c_uint]

    def check(self, result: int, what: str) -> None:
        """Raise NativeError where `result` is not 0."""
        if result:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(result, ctypes.byref(text))
            raise NativeError(f"{what}: {(text.value or b'unknown error').decode()} (CUDA error {result})")

    def architecture(self, index: int) -> int:
        """Compute capability of device `index` as 10 * major + minor."""
        device, parts = ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
        self.check(self._library.cuDeviceGet(ctypes.byref(device), index), "cuDeviceGet")
        for part, attribute in zip(parts, (_ATTRIBUTE_MAJOR, _ATTRIBUTE_MINOR), strict=True):
            self.check(
                self._library.cuDeviceGetAttribute(ctypes.byref(part), attribute, device), "cuDeviceGetAttribute"
            )
        return 10 * parts[0].value + parts[1].value

    def load(self, image: bytes) -> ctypes.c_void_p:
        """A library of kernels from a CUBIN, for all devices of its architecture."""
        library = ctypes.c_void_p()
        result = self._load(ctypes.byref(library), image, None, None, 0, None, None, 0)
        self.check(result, "cuLibraryLoadData")
        return library

    def kernel(self, library: ctypes.c_void_p, name: str) -> int:
        """The kernel of that name."""
        kernel = ctypes.c_void_p()
        self.check(self._library.cuLibraryGetKernel(ctypes.byref(kernel), library, name.encode()), name)
        assert kernel.value is not None
        return kernel.value

    def enter(self, index: int) -> None:
        """Give this thread the device's primary context, which is torch's, where it has none yet."""
        context = ctypes.c_void_p()
        self.check(self._library.cuCtxGetCurrent(ctypes.byref(context)), "cuCtxGetCurrent")
        if not context.value:
            self.check(self._library.cuDevicePrimaryCtxRetain(ctypes.byref(context), index), "cuDevicePrimaryCtxRetain")
            self.check(self._library.cuCtxSetCurrent(context), "cuCtxSetCurrent")

    def launch(self, kernel: int, grid: Grid, stream: int, packed: bytes) -> int:
        """Launch with arguments of 8 bytes each; returns the driver's result."""
        count = len(packed) // 8
        values = ctypes.create_string_buffer(packed, len(packed))
        base = ctypes.addressof(values)
        places = (ctypes.c_void_p * count)(*range(base, base + 8 * count, 8))
        return self._launch(kernel, grid.blocks, 1, 1, THREADS, 1, 1, 0, stream, places, None)


@functools.cache
def driver() -> Driver:
    """The process's driver. Raises NativeError where there is none."""
    return Driver()


@functools.cache
def unusable(index: int) -> str | None:
    """Why CUDA device `index` cannot run the kernels, in one line; None where it can."""
    try:
        _kernel("pf_spherical_harmonics_forward_f32", index)
    except NativeError as error:
        return str(error.args[0])
    return None


def usable(*tensors: Tensor | None) -> bool:
    """True where every given tensor lies on one device that runs the kernels. Says once why a CUDA device does not."""
    served = _served()
    if not all(t is None or t.device.type == served for t in tensors):
        return False
    devices = {t.device for t in tensors if t is not None}
    if len(devices) != 1:
        return False
    device = devices.pop()
    why = unusable(device.index or 0)
    if why:
        _warn_once(f"{device} cannot run the CUDA kernels: {why}. The slow torch references run instead.")
    return why is None


def architecture_of(tensor: Tensor) -> int:
    """Compute capability of the device of a tensor that the kernels take, as 10 * major + minor."""
    return _architecture(tensor.device.index or 0)


@functools.cache
def _architecture(index: int) -> int:
    return driver().architecture(index)


def call(name: str, grid: Grid, *arguments: Argument) -> None:
    """Launch kernel `name` on torch's current stream. An empty grid launches nothing.

    Raises:
        NativeError: the launch failed.
    """
    if grid.blocks == 0:
        return
    letters, values, device = [], [], None
    for value in arguments:
        if value is None:
            letters.append("q")
            values.append(0)
        elif isinstance(value, Tensor):
            assert value.is_contiguous(), f"{name}: argument {len(values)} is not contiguous"
            assert device in (None, value.device), f"{name}: argument {len(values)} is on {value.device}, not {device}"
            device = value.device
            letters.append("Q")
            values.append(value.data_ptr())
        elif isinstance(value, Held):
            letters.append("q")
            values.append(-(value.tensor.data_ptr() + 8 * value.place))
        else:
            letters.append("d" if isinstance(value, float) else "q")
            values.append(value)
    packed = struct.pack("=" + "".join(letters), *values)
    assert device is not None, f"{name}: no tensor among the arguments"
    index = device.index or 0
    kernel = _kernel(name, index)
    if device.type == "cpu":
        result = driver().launch(kernel, grid, 0, packed)
    else:
        with torch.cuda.device(index):
            driver().enter(index)
            result = driver().launch(kernel, grid, torch.cuda.current_stream(index).cuda_stream, packed)
    driver().check(result, name)


_lock = threading.Lock()


@functools.cache
def _kernel(name: str, index: int) -> int:
    files = [file for prefix, file in FILES.items() if name.startswith(prefix)]
    if not files:
        raise NativeError(f"there is no CUDA kernel {name}")
    with _lock:
        return driver().kernel(_library(files[0], _architecture(index)), name)


@functools.cache
def _library(file: str, architecture: int) -> ctypes.c_void_p:
    return driver().load(compile_kept(f"{file}.cu", *source(file), architecture, options(file)))


def options(file: str) -> tuple[str, ...]:
    """What NVRTC is told for `cuda/gpu/<file>.cu` beyond `_nvrtc.OPTIONS`."""
    return ("--fmad=false",) if file in _EXACT else ()


def source(file: str) -> tuple[str, dict[str, str]]:
    """Text of `cuda/gpu/<file>.cu` and, by the names that `#include` uses, of all headers."""
    folders = (SOURCES / "gpu", SOURCES / "include" / "polyfield")
    headers = {path.name: _flat(path) for folder in folders for path in sorted(folder.glob("*.h"))}
    return _flat(SOURCES / "gpu" / f"{file}.cu"), headers


def _flat(path: Path) -> str:
    # NVRTC knows a header by its name alone: one that is included by two names would be read twice.
    return path.read_text().replace('#include "polyfield/', '#include "')


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)
