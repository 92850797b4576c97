"""Packed samples of rays: what their checks have in common, and how references see them as a padded matrix.

Samples of ray r are the rows offsets[r] to offsets[r + 1] - 1; rows of no ray may stand before and after. Offsets that
do not ascend are an error, except on CUDA: there the host would have to wait to know, and such a ray counts as empty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ShapeError

BAD_OFFSETS = "offsets must ascend from at least 0 to at most the number of samples, {samples}; got {first} ... {last}"


def check_offsets(offsets: Tensor) -> int:
    """The number of rays R.

    Raises:
        ShapeError: not (R + 1,) int32.
    """
    if offsets.dim() != 1 or offsets.shape[0] < 1 or offsets.dtype != torch.int32:
        raise ShapeError(f"offsets must be (R + 1,) int32; got {tuple(offsets.shape)} {offsets.dtype}")
    return offsets.shape[0] - 1


def check_samples(name: str, tensor: Tensor, like: Tensor, *trailing: int) -> None:
    """Raises ShapeError unless `tensor` is (N, *trailing), with N and dtype of `like`."""
    expected = (like.shape[0], *trailing)
    if tuple(tensor.shape) != expected or tensor.dtype != like.dtype:
        text = f"{name} must be {expected} {like.dtype}, as the other samples; got {tuple(tensor.shape)} {tensor.dtype}"
        raise ShapeError(text)


def check_first(name: str, tensor: Tensor) -> None:
    """Raises ShapeError unless `tensor` is (N,) float32 or float64."""
    if tensor.dim() != 1 or tensor.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"{name} must be (N,) float32 or float64; got {tuple(tensor.shape)} {tensor.dtype}")


def bad_offsets(offsets: Tensor, samples: int) -> ShapeError:
    return ShapeError(BAD_OFFSETS.format(samples=samples, first=int(offsets[0]), last=int(offsets[-1])))


def check_ascending(offsets: Tensor, samples: int) -> None:
    """What the native functions check too. Raises ShapeError."""
    steps = offsets[1:] - offsets[:-1]
    if int(offsets[0]) < 0 or int(offsets[-1]) > samples or bool((steps < 0).any()):
        raise bad_offsets(offsets, samples)


def padded(offsets: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Rows of all rays as a matrix: index (R, S) int64 and mask (R, S) of what is a sample; S is the longest ray.

    Padding has index 0, so `values[index]` needs at least one sample: where there is none S is 0.
    """
    check_ascending(offsets, samples)
    starts, counts = offsets[:-1].long(), (offsets[1:] - offsets[:-1]).long()
    longest = int(counts.max()) if counts.numel() else 0
    column = torch.arange(longest, device=offsets.device)
    mask = column < counts[:, None]
    return torch.where(mask, starts[:, None] + column, 0), mask


def stopped(depth_before: Tensor, limit: float) -> Tensor:
    """(R, S) bool: has the ray stopped before this sample? Once it has it stays so, whatever NaN comes later."""
    return (depth_before >= limit).cumsum(1) > 0
