"""How does a network learn an image, a film, a volume or a surface? A task of the loop, and how well it was learned.

Every step compares the network with the signal at a batch of cells: all of them where the signal is no larger than the
batch, else cells drawn anew by seed and step, so that a step costs the same for any size of signal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..geometry import chamfer_distance, sample_surface, zero_surface
from ..implicit.model import ImplicitModel
from ..implicit.signal import GridSignal, grid_points
from ..implicit.surface import MeshSignal
from ..networks import CoordinateNetwork
from ..ops.adam import lazy_adam_
from ..ops.mesh_bvh import signed_distances, winding_numbers
from .loop import StepResult
from .metrics import ssim

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of Adam; the papers of coordinate networks keep PyTorch's."""
NORMAL_STEP = 1 / 512
"""Over which normals are compared, in sides of the cube."""
CHAMFER_CELLS = 256
"""Along each axis at most, of the lattice of which a field's surface is made."""
RELATIVE_FLOOR = 0.001
"""Added to the distance that an error is relative to, a thousandth of the cube: instant-ngp's mean absolute percentage
error has 0.01, which leaves the zero crossing less exact."""
Report = Callable[[int, int], None] | None
BLOCK_ROWS = 6144
"""Points of a batch that go through a coordinate network at once on a CPU: so few leave what its layers say in the
cache. A step of 65536 points takes half of the time so (layers of 256)."""


class FitTask:
    """Mean squared error of a network on a signal; of distances from a surface, error relative to the distance; of its
    occupancy, cross-entropy."""

    def __init__(
        self,
        network: nn.Module,
        signal: GridSignal | MeshSignal,
        *,
        lr: dict[str, float],
        batch: int,
        seed: int = 0,
        betas: tuple[float, float] = BETAS,
        epsilon: float = EPSILON,
    ) -> None:
        """
        Args:
            lr: learning rate by the beginning of a parameter's name, the longest that fits counts.
            batch: most cells (of a surface, points) per step.
            betas, epsilon: of Adam.
        """
        self.adam: dict[str, Any] = {"betas": betas, "eps": epsilon, "skip_untouched": False}
        self.network, self.signal, self.batch, self.seed = network, signal, batch, seed
        self.parameters = dict(network.named_parameters())
        self.lr = {name: lr[max((p for p in lr if name.startswith(p)), key=len)] for name in self.parameters}
        self.moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in self.parameters.items()}
        blocked = isinstance(network, CoordinateNetwork) and signal.device.type == "cpu"
        self.rows = min(batch, BLOCK_ROWS) if blocked else batch
        whole = torch.arange(signal.cells, device=signal.device) if signal.cells <= batch else None
        self._all = None if whole is None else signal.take(whole)

    def step(self, step: int, lr_scale: float) -> StepResult:
        points, values = self._all or self._drawn(step)
        for parameter in self.parameters.values():
            parameter.grad = None
        value = squared = 0.0
        for some, wanted in zip(points.split(self.rows), values.split(self.rows), strict=True):
            loss, square = (x.sum() / values.numel() for x in self._errors(self.network(some), wanted))
            loss.backward()
            value += loss.item()
            squared += float(square.detach())
        finite = math.isfinite(value)
        finite = finite and all(p.grad is None or bool(p.grad.sum().isfinite()) for p in self.parameters.values())
        if finite:
            for name, parameter in self.parameters.items():
                if parameter.grad is not None:
                    m, v = self.moments[name]
                    lr = self.lr[name] * lr_scale
                    lazy_adam_(parameter.detach(), parameter.grad.contiguous(), m, v, step=step + 1, lr=lr, **self.adam)
        return StepResult(value, finite, {"points": len(points), "psnr": decibels(squared)})

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

    def _errors(self, found: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """What is minimised, and squared errors of what is shown."""
        if isinstance(self.signal, MeshSignal) and self.signal.target == "occupancy":
            outside = (wanted + 1) / 2
            return nn.functional.softplus(-wanted * found), (found.detach().sigmoid() - outside).square()
        error = found - wanted
        square = error.square()
        relative = isinstance(self.signal, MeshSignal)
        return error.abs() / (wanted.abs() + RELATIVE_FLOOR) if relative else square, square

    def _drawn(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed((self.seed << 32) + step)
        index = torch.randint(self.signal.cells, (self.batch,), generator=generator)
        return self.signal.take(index.to(self.signal.device))


class FitQuality(NamedTuple):
    """How well a signal was learned, over all of its cells."""

    psnr: float | None = None
    """Decibels, values clamped to [0, 1]; for a volume relative to the range of its values; None for a surface."""
    ssim: float | None = None
    """Of images and films (the mean over their frames) from 11x11 pixels on, else None."""
    iou: float | None = None
    """Of a surface with an inside: cells whose centres lie inside both, over those inside either."""
    normal_error_deg: float | None = None
    """Of a surface with an inside: mean angle between the field's gradient and the mesh's normals at points of
    the mesh, degrees."""
    chamfer: float | None = None
    """Of a surface with an inside: mean distance between the mesh and the field's zero surface, both ways, in sides of
    the cube; None where the field has no such surface."""
    distance_error: float | None = None
    """Of a surface as distances: mean absolute error at points anywhere in the cube, in sides of the cube."""


@torch.no_grad()
def measure_fit(model: ImplicitModel, signal: GridSignal, *, block: int = 1 << 16, report: Report = None) -> FitQuality:
    """Compare a model with the signal it was fitted to, `block` cells at a time; `report`: of (cells done, all)."""
    image_like = signal.kind != "volume"
    device = next(model.network.parameters()).device
    squared, done = 0.0, 0
    frame = math.prod(signal.size[:2])
    with_ssim = image_like and min(signal.size[:2]) >= 11 and frame <= 1 << 25
    shown: list[Tensor] = []
    structures: list[float] = []
    for points, values in signal.blocks(block):
        found = model.network(points.to(device)).to(values.device)
        found = found.clamp(0, 1) if image_like else found
        squared += float((found - values).square().double().sum())
        done += len(points)
        if with_ssim:
            shown.append(found[:, :3].cpu())
        if with_ssim and done // frame > len(structures):  # frames are complete
            *whole, rest = torch.cat(shown).split(frame)
            whole, shown = ([*whole, rest], []) if len(rest) == frame else (whole, [rest])
            structures += [_ssim(one, signal, len(structures) + index) for index, one in enumerate(whole)]
        if report is not None:
            report(done, signal.cells)
    span = 1.0 if image_like else float(signal.values.max() - signal.values.min()) or 1.0
    structure = sum(structures) / len(structures) if structures else None
    return FitQuality(decibels(squared / signal.values.numel() / span**2), structure)


def _ssim(shown: Tensor, signal: GridSignal, number: int) -> float:
    """Of the frame of that number, (H * W, up to 3 channels)."""
    frame = len(shown)
    target = signal.at(torch.arange(number * frame, (number + 1) * frame, device=signal.device))
    size = (signal.size[1], signal.size[0], -1)
    return float(ssim(shown.reshape(size), target[:, :3].cpu().reshape(size)))


@torch.no_grad()
def measure_surface(
    model: ImplicitModel,
    signal: MeshSignal,
    *,
    cells: int = 128,
    samples: int = 1 << 16,
    block: int = 1 << 16,
    report: Report = None,
) -> FitQuality:
    """Compare a field with the mesh it was fitted to.

    Args:
        cells: along each axis of the cube; inside the mesh is where its winding number is above 1/2. The
            field's surface is that of every so many cells that `CHAMFER_CELLS` along an axis suffice.
        samples: points of the mesh where normals are compared, by central differences over 1/512 of the cube; as many
            are drawn on either surface for the distance between them, and anywhere for the error of distances.
        block: cells at a time.
        report: called with (cells done, all).
    """
    device = next(model.network.parameters()).device
    distance_error = None
    if signal.target != "occupancy":
        anywhere = torch.rand(samples, 3, generator=torch.Generator().manual_seed(0))
        wanted = signal.wanted(signed_distances(signal.bvh, anywhere))
        distance_error = float((model.network(anywhere.to(device))[:, 0].cpu() - wanted).abs().mean())
    if signal.target == "udf":
        return FitQuality(distance_error=distance_error)
    size, both, either = (cells,) * 3, 0, 0
    every = math.ceil(cells / CHAMFER_CELLS)
    lattice = torch.empty((math.ceil(cells / every),) * 3)
    for first in range(0, cells**3, block):
        points = grid_points(size, first, min(block, cells**3 - first))
        found = model.network(points.to(device))[:, 0].cpu()
        cell = torch.arange(first, first + len(points))
        zyx = torch.stack([cell // cells**2, cell // cells % cells, cell % cells])
        kept = (zyx % every == 0).all(0)
        lattice[tuple(zyx[:, kept] // every)] = found[kept]
        ours = found < 0
        theirs = winding_numbers(signal.bvh, points) > 0.5
        both += int((ours & theirs).sum())
        either += int((ours | theirs).sum())
        if report is not None:
            report(first + len(points), cells**3)
    surface = zero_surface(lattice, first=0.5 / cells, step=every / cells)
    return FitQuality(
        iou=both / either if either else 0.0,
        normal_error_deg=_normal_error(model, signal, samples),
        chamfer=None if surface is None else chamfer_distance(surface, signal.mesh, samples=samples),
        distance_error=distance_error,
    )


def _normal_error(model: ImplicitModel, signal: MeshSignal, samples: int) -> float:
    """Mean angle between gradients and normals, degrees."""
    device = next(model.network.parameters()).device
    drawn = sample_surface(signal.mesh, samples, torch.Generator().manual_seed(0))
    step = NORMAL_STEP * torch.eye(3)
    ends = [model.network((drawn.points + sign * offset).to(device))[:, 0].cpu() for offset in step for sign in (1, -1)]
    slope = torch.stack([ends[0] - ends[1], ends[2] - ends[3], ends[4] - ends[5]], 1)
    cosine = (nn.functional.normalize(slope, dim=1) * drawn.normals).sum(1)
    return float(torch.rad2deg(cosine.clamp(-1, 1).acos()).mean())


def decibels(mean_squared: float) -> float:
    """Peak signal-to-noise ratio for a peak of 1, at most 100 dB, as `metrics.psnr`."""
    return -10 * math.log10(max(mean_squared, 1e-10))
