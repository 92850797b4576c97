"""Fitting: how does a network learn an image, a film or a volume? A task of the loop, and how well it was learned.

Every step compares the network with the signal at a batch of cells: all of them where the signal is no larger than the
batch, else cells drawn anew by seed and step, so that a step costs the same for any size of signal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..implicit.model import ImplicitModel
from ..implicit.signal import GridSignal, cell_centres
from ..ops.adam import lazy_adam_
from .loop import StepResult
from .metrics import ssim

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of Adam; the papers of coordinate networks keep PyTorch's."""


class FitTask:
    """Mean squared error of a network on a signal."""

    def __init__(
        self, network: nn.Module, signal: GridSignal, *, lr: dict[str, float], batch: int, seed: int = 0
    ) -> None:
        """
        Args:
            lr: learning rate by the beginning of a parameter's name, the longest that fits counts.
            batch: most cells per step.
        """
        self.network, self.signal, self.batch, self.seed = network, signal, batch, seed
        self.parameters = dict(network.named_parameters())
        self.lr = {name: lr[max((p for p in lr if name.startswith(p)), key=len)] for name in self.parameters}
        self.moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in self.parameters.items()}
        self._all = next(signal.blocks(signal.cells)) if signal.cells <= batch else None

    def step(self, step: int, lr_scale: float) -> StepResult:
        points, values = self._all or self._drawn(step)
        error = self.network(points) - values
        loss = error.square().mean()
        for parameter in self.parameters.values():
            parameter.grad = None
        loss.backward()
        value = loss.item()
        finite = math.isfinite(value)
        finite = finite and all(p.grad is None or bool(p.grad.sum().isfinite()) for p in self.parameters.values())
        if finite:
            for name, parameter in self.parameters.items():
                if parameter.grad is not None:
                    m, v = self.moments[name]
                    lr = self.lr[name] * lr_scale
                    options: dict[str, Any] = {"betas": BETAS, "eps": EPSILON, "skip_untouched": False}
                    lazy_adam_(parameter.detach(), parameter.grad.contiguous(), m, v, step=step + 1, lr=lr, **options)
        return StepResult(value, finite, {"points": len(points), "psnr": decibels(value)})

    def grow(self, progress: float) -> bool:
        return False

    def tensors(self) -> dict[str, Tensor]:
        out = {name: parameter.detach() for name, parameter in self.parameters.items()}
        for name, (m, v) in self.moments.items():
            out |= {f"{name}.m": m, f"{name}.v": v}
        return out

    def scalars(self) -> dict[str, Any]:
        return {}

    def load_scalars(self, values: dict[str, Any]) -> None:
        pass

    def _drawn(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed((self.seed << 32) + step)
        index = torch.randint(self.signal.cells, (self.batch,), generator=generator).to(self.signal.values.device)
        return cell_centres(index, self.signal.size), self.signal.at(index)


class FitQuality(NamedTuple):
    """How well a signal was learned, over all of its cells."""

    psnr: float
    """Decibels, values clamped to [0, 1]; for a volume relative to the range of its values."""
    ssim: float | None
    """Of images from 11x11 pixels on, else None."""


@torch.no_grad()
def measure_fit(
    model: ImplicitModel,
    signal: GridSignal,
    *,
    block: int = 1 << 16,
    report: Callable[[int, int], None] | None = None,
) -> FitQuality:
    """Compare a model with the signal it was fitted to, block by block.

    Args:
        report: called with (cells done, all cells).
    """
    image_like = signal.kind != "volume"
    device = next(model.network.parameters()).device
    squared, done = 0.0, 0
    picture: list[Tensor] = []
    with_ssim = signal.kind == "image" and min(signal.size) >= 11 and signal.cells <= 1 << 25
    for points, values in signal.blocks(block):
        found = model.network(points.to(device)).to(values.device)
        found = found.clamp(0, 1) if image_like else found
        squared += float((found - values).square().double().sum())
        done += len(points)
        if with_ssim:
            picture.append(found[:, :3])
        if report is not None:
            report(done, signal.cells)
    span = 1.0 if image_like else float(signal.values.max() - signal.values.min()) or 1.0
    structure = None
    if with_ssim:
        shape = (*reversed(signal.size), -1)
        target = signal.at(torch.arange(signal.cells)).reshape(shape)[..., :3]
        structure = float(ssim(torch.cat(picture).reshape(shape), target))
    return FitQuality(decibels(squared / signal.values.numel() / span**2), structure)


def decibels(mean_squared: float) -> float:
    """Peak signal-to-noise ratio for a peak of 1, at most 100 dB, as `metrics.psnr`."""
    return -10 * math.log10(max(mean_squared, 1e-10))
