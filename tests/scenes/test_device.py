"""Which device is picked, and is it said why not a GPU?"""

import pytest
import torch

from polyfield.fields.errors import ConfigError
from polyfield.fields.ops import _cuda
from polyfield.scenes import device
from polyfield.scenes.device import describe, pick_device, why_no_cuda


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose torch says that it has a GPU; tests change one thing each."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: "NVIDIA H200")
    monkeypatch.setattr(_cuda, "unusable", lambda index: None)
    return monkeypatch


def test_auto_takes_a_gpu_that_works(gpu):
    assert why_no_cuda() is None
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 1)
    assert describe("auto") == "on NVIDIA H200"


def test_the_cpu_is_taken_where_it_is_asked_for(gpu):
    assert pick_device("cpu") == torch.device("cpu")
    assert describe("cpu") == "on the CPU"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("torch", "this torch is built without CUDA"),
        ("driver", "torch (for CUDA 13.0) finds no NVIDIA driver"),
        ("device", "a driver is there, but torch (for CUDA 13.0) finds no device it can use"),
        ("kernels", "NVIDIA H200 cannot run the kernels: no NVRTC"),
    ],
)
def test_auto_says_in_one_line_why_it_takes_the_cpu(gpu, fault, why):
    if fault == "torch":
        gpu.setattr(torch.version, "cuda", None)
    if fault in ("driver", "device"):
        gpu.setattr(torch.cuda, "is_available", lambda: False)
        gpu.setattr(device, "_has_driver", lambda: fault == "device")
    if fault == "kernels":
        gpu.setattr(_cuda, "unusable", lambda index: "no NVRTC")
    assert pick_device("auto") == torch.device("cpu")
    assert describe("auto") == f"on the CPU: {why}"
    with pytest.raises(ConfigError, match=r"--device cuda: .*; use --device cpu, and see 'polyfield doctor'") as caught:
        pick_device("cuda")
    assert why in str(caught.value)
