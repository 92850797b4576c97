"""How does a network live in 8 bits? Weights rounded as they will be stored, and stored so.

Symmetric and scaled by the largest value: integer = round(value / scale), scale = max |value| / 127 (Lee et al. 2024,
arXiv 2311.14993, section 4, of whole tensors; here each row of a matrix and each channel of a grid has its own scale).
While it is trained a network computes with the rounded values, and the gradient goes to the values as if nothing had
been rounded. What is read back from a file computes the same values again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOST = 127
"""Largest integer; -128 is not used, so that the range is symmetric."""
SCALES = ".scales"
"""Behind the name of a tensor in a file: its scales."""


def in_8_bits(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round.

    Args:
        values: (..., C) of one row a scale if it is a matrix, else of one channel (the last two axes) a scale; finite.

    Returns:
        Integers, int8, of the same shape; scales, float32, that broadcast with them. A row of zeros has scale 1.
    """
    over = (1,) if values.ndim == 2 else tuple(range(values.ndim - 2))
    scales = values.detach().abs().amax(over, keepdim=True) / MOST
    scales = torch.where(scales > 0, scales, 1.0)
    return (values.detach() / scales).round().clamp(-MOST, MOST).to(torch.int8), scales


def as_stored(values: Tensor) -> Tensor:
    """The values as 8 bits hold them; the gradient passes unchanged."""
    integers, scales = in_8_bits(values)
    return values + (integers * scales - values).detach()


def store_in_8_bits(module: nn.Module, names: list[str]) -> None:
    """Let `module.state_dict()` give the parameters of these names as integers and scales (name + ".scales"), and
    `load_state_dict` take them so."""

    def save(owner: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
        for name in names:
            integers, scales = in_8_bits(state[prefix + name])
            state[prefix + name], state[prefix + name + SCALES] = integers, scales

    def load(owner: nn.Module, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        for name in names:
            scales = state.pop(prefix + name + SCALES, None)
            if scales is not None:
                state[prefix + name] = state[prefix + name] * scales

    module.register_state_dict_post_hook(save)
    module.register_load_state_dict_pre_hook(load)
