"""On which device does the work run, and if not on an NVIDIA GPU, why not?"""

from __future__ import annotations

import ctypes
import sys
from typing import Literal, NamedTuple

import torch

from ..fields.errors import ConfigError
from ..fields.ops import _cuda

Device = Literal["auto", "cpu", "cuda"]


class NoCuda(NamedTuple):
    """Why nothing runs on a GPU here."""

    why: str
    remedy: str


def why_no_cuda() -> NoCuda | None:
    """None where torch and the kernels work on the current CUDA device."""
    if torch.version.cuda is None:
        remedy = "only with an NVIDIA device: install a CUDA torch from pytorch.org"
        return NoCuda("this torch is built without CUDA", remedy)
    built = f"torch (for CUDA {torch.version.cuda})"
    if not torch.cuda.is_available():
        if not _has_driver():
            return NoCuda(f"{built} finds no NVIDIA driver", "only with an NVIDIA device: install its driver")
        remedy = (
            "check that 'nvidia-smi' works, that CUDA_VISIBLE_DEVICES is unset, and that the driver is recent enough"
        )
        return NoCuda(f"a driver is there, but {built} finds no device it can use", remedy)
    why = _cuda.unusable(torch.cuda.current_device())
    if why is None:
        return None
    return NoCuda(f"{torch.cuda.get_device_name()} cannot run the kernels: {why}", "see docs/install.md, 'NVIDIA GPUs'")


def pick_device(name: Device) -> torch.device:
    """The CPU or the current CUDA device; auto takes CUDA where it works.

    Raises:
        ConfigError: cuda was asked for and does not work.
    """
    if name == "cpu":
        return torch.device("cpu")
    missing = why_no_cuda()
    if missing is None:
        return torch.device("cuda", torch.cuda.current_device())
    if name == "cuda":
        raise ConfigError(f"--device cuda: {missing.why}; use --device cpu, and see 'polyfield doctor'")
    return torch.device("cpu")


def describe(name: Device) -> str:
    """What `pick_device` takes, in one line, and where that is the CPU by itself, why."""
    if name == "cpu":
        return "on the CPU"
    missing = why_no_cuda()
    return f"on {torch.cuda.get_device_name()}" if missing is None else f"on the CPU: {missing.why}"


def _has_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
