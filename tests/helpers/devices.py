"""On which device do this process's operator tests run, and what does that change?"""

import os

import pytest

reports_values = pytest.mark.skipif(
    bool(os.environ.get("POLYFIELD_CUDA_DRIVER")),
    reason="CUDA kernels treat values that are not allowed as empty; the host is not told, since it would have to wait",
)
"""Marks tests of errors that depend on values, not on shapes."""
