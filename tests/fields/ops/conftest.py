"""Runs the operators' tests on every device of this machine: the bodies create their tensors on the default device."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
ABOUT_PROCESSES = ("test_cpu_library", "test_cuda", "test_radiance_step")
"""Modules that are not about operators on some device: they choose themselves."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module = metafunc.definition.path.stem
    if len(DEVICES) > 1 and module not in ABOUT_PROCESSES:
        metafunc.fixturenames.append("device")
        metafunc.parametrize("device", DEVICES, indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device that new tensors are created on."""
    torch.set_default_device(request.param)
    yield request.param
    torch.set_default_device("cpu")


@pytest.fixture
def reports_values() -> None:
    """For tests of errors that depend on values, not on shapes: CUDA kernels treat such values as empty, since the host
    would have to wait to be told."""
    if os.environ.get("POLYFIELD_CUDA_DRIVER") or torch.get_default_device().type == "cuda":
        pytest.skip("CUDA does not report values")
