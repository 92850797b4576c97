"""What do tasks of the loop that change a radiance field have in common? Adam's state, occupancy, and how many rays.

Training (`radiance`) and conversion (`convert`) differ in where rays come from and what a step compares; the rest, from
marching to the check of gradients, is here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..base import RadianceField
from ..errors import ConfigError
from ..geometry import Rays
from ..ops import _cpu
from ..ops.adam import lazy_adam_
from ..render.march import MarchConfig, PackedSamples, march_visible
from ..render.occupancy import OccupancyGrid
from .loop import StepResult
from .matrices import MatrixStacks


class RayBatch(NamedTuple):
    """Rays and what they should see."""

    rays: Rays
    """(R, 3) origins and unit directions, scene frame; may carry gradients to poses. With radii where the field
    integrates its encoding."""
    targets: Tensor
    """(R, 3) colours, composited on `backgrounds` where the images have alpha."""
    backgrounds: Tensor
    """(R, 3) colour behind the scene for each ray."""
    frames: Tensor
    """(R,) int64 frame of each ray."""


class RaySource(Protocol):
    """Where rays come from. The batch must depend on (step, count) alone."""

    def batch(self, step: int, count: int) -> RayBatch: ...


@dataclass(frozen=True, kw_only=True)
class RadianceTaskConfig:
    """How a radiance field is trained."""

    samples: int = 1 << 16
    """Live samples aimed at per step; the number of rays follows. Within minutes on two cores, twice as many steps beat
    steps twice as large."""
    first_rays: int = 4096
    """Rays of the first step."""
    max_rays: int = 1 << 16
    """Most rays of a step."""
    loss: Literal["mse", "huber"] = "huber"
    """Of the colours; Huber is instant-ngp's."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the networks' multiplications."""
    occupancy_every: int = 16
    """Steps between occupancy refreshes (instant-ngp)."""
    occupancy_warmup: int = 128
    """Steps during which a refresh visits every cell."""
    distortion: float = 0.0
    """Weight of the distortion loss (mip-NeRF 360); above 0 the composed path runs."""
    exposure: bool = False
    """Learn a gain and an offset per training image and channel; the composed path runs."""
    exposure_lr: float = 1e-3
    fused: bool = True
    """False forces the composed path."""

    def __post_init__(self) -> None:
        if self.samples < 1024:
            raise ConfigError(f"samples must be at least 1024 per step; got {self.samples}")
        if self.distortion < 0:
            raise ConfigError(f"distortion must not be negative; got {self.distortion}")


class FieldTask(ABC):
    """`optim.loop.Task` for a `RadianceField` with an occupancy grid. Concrete tasks say what a step is."""

    def __init__(
        self,
        field: RadianceField,
        occupancy: OccupancyGrid,
        march: MarchConfig,
        source: RaySource,
        config: RadianceTaskConfig,
        *,
        extra: dict[str, tuple[nn.Parameter, float]],
        seed: int,
    ) -> None:
        """Args:
        source: where rays come from; (step, count) say which.
        extra: further parameters with their learning rates.
        """
        self.field, self.occupancy, self.march, self.source, self.config = field, occupancy, march, source, config
        self.seed = seed
        self.ray_count = config.first_rays
        self.extra = extra
        self.progress = 0.0
        self._take_parameters()

    def _take_parameters(self) -> None:
        """The field's parameters as they are now, with new moments."""
        groups = self.field.parameter_groups()
        self.parameters = {
            f"{group['name']}.{k}" if len(group["params"]) > 1 else group["name"]: (p, float(group["lr"]))
            for group in groups
            for k, p in enumerate(group["params"])
        } | self.extra
        self.lazy = {group["name"] for group in groups if group.get("lazy", False)}
        self.moments = {
            name: (torch.zeros_like(p, requires_grad=False), torch.zeros_like(p, requires_grad=False))
            for name, (p, _) in self.parameters.items()
        }
        self.matrices = MatrixStacks([(m, float(group["lr"])) for group in groups for m in group.get("matrices", [])])
        for name, (parameter, _) in self.parameters.items():
            for tensor in (parameter.detach(), *self.moments[name]):
                _cpu.advise_huge_pages(tensor)

    # -- optim.loop.Task --------------------------------------------------------------------------------------------

    def step(self, step: int, lr_scale: float) -> StepResult:
        self.field.sparse_gradients = True  # others who train the field, before or after, may not take them
        try:
            return self._step(step, lr_scale)
        finally:
            self.field.sparse_gradients = False

    @abstractmethod
    def _step(self, step: int, lr_scale: float) -> StepResult:
        """What `loop.Task` calls `step`."""

    @abstractmethod
    def _density_pass(self, x: Tensor, footprint: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """A `march.DensityPass`: what marching asks."""

    def tensors(self) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, (parameter, _) in self.parameters.items():
            out[name] = parameter.detach()
            out[f"{name}.m"], out[f"{name}.v"] = self.moments[name]
        out |= {f"momentum.{k}": v for k, v in self.matrices.momentum.items()}
        out |= {f"field.{k}": v for k, v in self.field.named_buffers()}
        return out | {f"occupancy.{k}": v for k, v in self.occupancy.state_dict().items()}

    def scalars(self) -> dict[str, Any]:
        return {"ray_count": self.ray_count, "growth": self.field.growth()}

    def load_scalars(self, values: dict[str, Any]) -> None:
        self.ray_count = int(values["ray_count"])
        growth = values.get("growth", {})
        if growth != self.field.growth():
            self.field.regrow(growth)
            self._take_parameters()

    def grow(self, progress: float) -> bool:
        self.progress = progress
        if not self.field.grow(progress, self.occupied_box):
            return False
        self._take_parameters()
        return True

    def occupied_box(self) -> Tensor:
        """(2, 3) lower and upper corner of what the field need cover, scene frame."""
        return self.occupancy.occupied_box()

    # -- parts of a step --------------------------------------------------------------------------------------------

    def _refresh_occupancy(self, step: int) -> None:
        def density_raw(x: Tensor) -> Tensor:  # no ray, no footprint: points as wide as the field takes them to be
            return self._density_pass(x)[0]

        self.occupancy.update(
            density_raw,
            activation=self.field.density_activation,
            warmup=step < self.config.occupancy_warmup,
            step=step,
            seed=self.seed,
            step_size=self.march.step_size,
        )

    def _samples(self, batch: RayBatch, step: int, occupancy: OccupancyGrid) -> PackedSamples:
        rays = Rays(batch.rays.origins.detach(), batch.rays.directions.detach(), batch.rays.radii)
        return march_visible(
            rays,
            occupancy,
            self._density_pass,
            self.march,
            activation=self.field.density_activation,
            seed=self.seed,
            step=step,
            jitter=True,
        )

    def _nothing_visible(self) -> StepResult:
        """There is nothing to learn from: the field has emptied. Look everywhere again."""
        self.occupancy.reset()
        return StepResult(float("nan"), False, {"rays": self.ray_count, "live": 0, "marched": 0})

    def _adapt_rays(self, rays: int, live: int) -> None:
        """Next step's rays, given that `rays` had `live` samples; at most doubling or halving; a multiple of 16."""
        wanted = rays * min(2.0, max(0.5, self.config.samples / live))
        self.ray_count = min(self.config.max_rays, max(256, int(wanted) // 16 * 16))

    def _descend(self, total: Tensor, step: int, lr_scale: float, matrix_scale: float | None = None) -> bool:
        """Go a step of Adam, and of Muon where the field asks for it (its rate times `matrix_scale`, or `lr_scale`
        too), down the gradient of `total` and of what the field itself wants. False: loss or gradients were not finite
        and nothing was changed."""
        for parameter, _ in self.parameters.values():
            parameter.grad = None
        total.backward()
        self.field.add_prior_gradients(step, self.seed)
        finite = bool(torch.isfinite(total.detach())) and all(
            p.grad is None or _finite(p.grad) for p, _ in self.parameters.values()
        )
        if finite:
            self.matrices.take_gradients()
            for name, (parameter, lr) in self.parameters.items():
                if parameter.grad is not None:
                    lazy_adam_(
                        parameter.detach(),
                        parameter.grad,
                        *self.moments[name],
                        step=step + 1,
                        lr=lr * lr_scale,
                        skip_untouched=name in self.lazy,
                    )
            self.matrices.descend(lr_scale if matrix_scale is None else matrix_scale, self.config.precision)
        return finite


def _finite(gradient: Tensor) -> bool:
    values = gradient._values() if gradient.is_sparse else gradient
    return bool(torch.isfinite(values.sum()))


def psnr_of(squared: float) -> float:
    """dB of a mean squared error; NaN of one that is not finite."""
    return -10 * math.log10(max(squared, 1e-12)) if math.isfinite(squared) else float("nan")


def huber_loss(error: Tensor, delta: float = 0.1) -> Tensor:
    """Mean of Huber's function of `error`, linear beyond `delta`, scaled to slope 1 there (as `RadianceSpec.loss`)."""
    size = error.abs()
    return torch.where(size < delta, 0.5 * size * size / delta, size - 0.5 * delta).mean()
