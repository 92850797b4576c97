"""Counter-based randomness in plain torch: the same bits as `polyfield/random.h`, for references and the fallback.

int64 arithmetic wraps as the unsigned arithmetic of the header does; logical shifts are made from arithmetic ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
CELL_STREAM = 0x63656C6C << 16
JITTER_STREAM = 0x6A697474 << 16


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def random_uniform(seed: int, step: int, rays: Tensor, sample: int) -> Tensor:
    """(N,) float32 in [0, 1) for counters (seed, step, rays[i], sample); `rays` is (N,) int64."""
    golden = _signed(_GOLDEN)
    z = _mix(torch.tensor(_signed(seed + _GOLDEN), device=rays.device))
    z = _mix(z + _signed(_GOLDEN * (step + 1)))
    z = _mix(z + golden * (rays + 1))
    z = _mix(z + _signed(_GOLDEN * (sample + 1)))
    return _shift(z, 40).float() * (1.0 / 16777216.0)
