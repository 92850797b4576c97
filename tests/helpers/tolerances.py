"""How near is near enough? The one table of tolerances by precision, and the measure it speaks of: relative L2 error of
a whole tensor against a float64 result. float32 and bfloat16 are the bars that any timing has to pass first.
"""

from __future__ import annotations

import torch
from torch import Tensor

RELATIVE_L2 = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def relative_l2(result: Tensor, expected: Tensor) -> float:
    """||result - expected|| / ||expected|| in float64; 0 where both are empty or zero."""
    assert result.shape == expected.shape, f"{tuple(result.shape)} is not {tuple(expected.shape)}"
    difference = (result.double() - expected.double()).norm().item()
    return difference / max(expected.double().norm().item(), 1e-300) if difference else 0.0


def assert_near(
    results: dict[str, Tensor], expected: dict[str, Tensor], precision: torch.dtype, *, times: float = 1.0
) -> None:
    """Every named tensor is within `times` the tolerance of `precision`; NaN never is."""
    assert results.keys() == expected.keys()
    errors = {name: relative_l2(results[name], expected[name]) for name in expected}
    bound = RELATIVE_L2[precision] * times
    assert all(error <= bound for error in errors.values()), f"relative L2 errors {errors}, bound {bound}"
