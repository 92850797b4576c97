"""The optimisation task of radiance fields: rays with known colours in, field and occupancy changed.

Three paths compute the same step. The fused one (`ops.radiance_step`) serves grid-encoded fields; on a GPU with tensor
cores `radiance_program` does it with the marching before it; the composed one, under autograd, serves everything else:
pose refinement, per-image exposure, distortion loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..base import RadianceField
from ..errors import ConfigError
from ..geometry import Rays, cone_gaussians
from ..ops import _cpu
from ..ops.adam import lazy_adam_
from ..ops.composite import composite
from ..ops.distortion import distortion_loss
from ..ops.radiance_step import (
    AdamRates,
    RadianceBatch,
    RadianceParameters,
    RadianceSpec,
    native_available,
    radiance_step_,
)
from ..radiance import HashField
from ..render.march import MarchConfig, PackedSamples, march_visible
from ..render.occupancy import OccupancyGrid
from .loop import StepResult
from .radiance_program import RadianceProgram, serves


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


class RadianceTask:
    """`optim.loop.Task` for a `RadianceField` with an occupancy grid."""

    def __init__(
        self,
        field: RadianceField,
        occupancy: OccupancyGrid,
        march: MarchConfig,
        source: RaySource,
        config: RadianceTaskConfig,
        *,
        frames: int = 0,
        extra: dict[str, tuple[nn.Parameter, float]] | None = None,
        seed: int = 0,
    ) -> None:
        """Args:
        frames: number of training images, for `exposure`.
        extra: further parameters behind the source's rays with their learning rates (pose refinement).
        """
        self.field, self.occupancy, self.march, self.source, self.config = field, occupancy, march, source, config
        self.seed = seed
        self.ray_count = config.first_rays
        self.extra = dict(extra or {})
        device = next(iter(field.parameter_groups()))["params"][0].device
        if config.exposure:
            self.extra["exposure"] = (nn.Parameter(torch.zeros(frames, 2, 3, device=device)), config.exposure_lr)
        self._take_parameters()
        self.fused = (
            config.fused
            and isinstance(field, HashField)
            and not self.extra
            and config.distortion == 0
            and native_available(*(p for p, _ in self.parameters.values()))
        )
        self._by_program = (
            isinstance(field, HashField)
            and self.fused
            and field.contraction == "none"
            and serves(field.encoding.table.detach(), config.precision)
        )
        self._program: RadianceProgram | None = None
        self._skipped = 0

    def _take_parameters(self) -> None:
        """The field's parameters as they are now, with new moments."""
        self.parameters = {
            f"{group['name']}.{k}" if len(group["params"]) > 1 else group["name"]: (p, float(group["lr"]))
            for group in self.field.parameter_groups()
            for k, p in enumerate(group["params"])
        } | self.extra
        self.lazy = {group["name"] for group in self.field.parameter_groups() if group.get("lazy", False)}
        self.moments = {
            name: (torch.zeros_like(p, requires_grad=False), torch.zeros_like(p, requires_grad=False))
            for name, (p, _) in self.parameters.items()
        }
        for name, (parameter, _) in self.parameters.items():
            for tensor in (parameter.detach(), *self.moments[name]):
                _cpu.advise_huge_pages(tensor)

    # -- optim.loop.Task --------------------------------------------------------------------------------------------

    def step(self, step: int, lr_scale: float) -> StepResult:
        if step % self.config.occupancy_every == 0:
            self._refresh_occupancy(step)
        batch = self.source.batch(step, self.ray_count)
        if self._by_program:
            return self._program_step(batch, step, lr_scale)
        samples = self._samples(batch, step)
        live = samples.rows.shape[0]
        if live == 0:
            return self._nothing_visible()
        run = self._fused_step if self.fused else self._composed_step
        loss, finite, squared = run(batch, samples, step, lr_scale)
        counts = {
            "rays": self.ray_count,
            "live": live,
            "marched": samples.marched,
            "dropped": samples.dropped,
            "psnr": _psnr(squared),
        }
        self._adapt_rays(self.ray_count, live)
        return StepResult(loss, finite, counts)

    def tensors(self) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, (parameter, _) in self.parameters.items():
            out[name] = parameter.detach()
            out[f"{name}.m"], out[f"{name}.v"] = self.moments[name]
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
        if not self.field.grow(progress, self.occupancy.occupied_box):
            return False
        self._take_parameters()
        return True

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

    def _density_pass(self, x: Tensor, footprint: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.field, HashField):
            features = self.field.encoding(self.field.to_unit(x))
            return self.field.density(features)[:, 0].contiguous(), features if self.fused else None
        return self.field.geometry(x, footprint=footprint).density_raw, None

    def _samples(self, batch: RayBatch, step: int) -> PackedSamples:
        rays = Rays(batch.rays.origins.detach(), batch.rays.directions.detach(), batch.rays.radii)
        return march_visible(
            rays,
            self.occupancy,
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

    def _radiance_spec(self) -> RadianceSpec:
        field = self.field
        assert isinstance(field, HashField)
        return RadianceSpec(
            grid=field.config.grid,
            density=field.density.spec,
            color=field.color.spec,
            sh_bands=field.config.sh_bands,
            density_activation=field.density_activation,
            loss=self.config.loss,
            stop=self.march.stop,
        )

    def _optimised(self) -> tuple[RadianceParameters, RadianceParameters, RadianceParameters]:
        """Parameters, first and second moments of a hash field."""
        named = ("table", "density", "color")
        parameters = RadianceParameters(*(self.parameters[n][0].detach() for n in named))
        first, second = (RadianceParameters(*(self.moments[n][k] for n in named)) for k in range(2))
        return parameters, first, second

    def _rates(self, lr_scale: float) -> AdamRates:
        return AdamRates(self.parameters["table"][1] * lr_scale, self.parameters["color"][1] * lr_scale)

    def _make_program(self) -> RadianceProgram:
        field = self.field
        assert isinstance(field, HashField)
        return RadianceProgram(
            self._radiance_spec(),
            *self._optimised(),
            field.encoding.rounded_table(),
            self.occupancy,
            self.march,
            self._rates(1.0),
            extent=field.config.extent,
            samples=self.config.samples,
            max_rays=self.config.max_rays,
            seed=self.seed,
        )

    def _program_step(self, batch: RayBatch, step: int, lr_scale: float) -> StepResult:
        field = self.field
        assert isinstance(field, HashField)
        self._program = self._program or self._make_program()
        field.encoding.rounded_table()  # anew where something else changed the table, as a roll-back does
        rays = (batch.rays.origins, batch.rays.directions, batch.targets, batch.backgrounds)
        seen = self._program.run(*rays, step=step, rate=lr_scale)
        field.encoding.keep_rounded()
        finite, self._skipped = seen.skipped == self._skipped, seen.skipped
        if seen.live == 0:
            return self._nothing_visible()
        counts = {
            "rays": seen.rays,
            "live": seen.live,
            "marched": seen.marched,
            "dropped": seen.dropped,
            "psnr": _psnr(seen.squared),
        }
        self._adapt_rays(seen.rays, seen.live)
        return StepResult(seen.loss if finite else float("nan"), finite, counts)

    def _fused_step(
        self, batch: RayBatch, samples: PackedSamples, step: int, lr_scale: float
    ) -> tuple[float, bool, float]:
        field = self.field
        assert isinstance(field, HashField)
        rounded = field.encoding.rounded_table() if self.config.precision == "bf16" else None
        out = radiance_step_(
            RadianceBatch(
                field.to_unit(samples.positions),
                samples.deltas,
                samples.offsets,
                batch.rays.directions,
                batch.targets,
                batch.backgrounds,
                samples.rows,
                samples.cache,
            ),
            *self._optimised(),
            self._radiance_spec(),
            self._rates(lr_scale),
            step=step + 1,
            precision=self.config.precision,
            table_rounded=rounded,
        )
        if rounded is not None:
            field.encoding.keep_rounded()
        return out.loss, out.finite, float((out.rgb - batch.targets).square().mean())

    def _composed_step(
        self, batch: RayBatch, samples: PackedSamples, step: int, lr_scale: float
    ) -> tuple[float, bool, float]:
        field, ids, rows = self.field, samples.ray_ids(), samples.rows.long()
        distances, deltas = samples.distances[rows], samples.deltas[rows]
        moving = batch.rays.origins.requires_grad or batch.rays.directions.requires_grad
        directions = batch.rays.directions[ids]
        x, footprint = samples.positions[rows], None
        if batch.rays.radii is not None:
            x, footprint = cone_gaussians(batch.rays, ids, distances, deltas)
        elif moving:
            x = batch.rays.origins[ids] + directions * distances[:, None]
        geometry = field.geometry(x, footprint=footprint)
        out = composite(
            geometry.density_raw,
            field.radiance(geometry.features, directions, x=x),
            distances,
            deltas,
            samples.offsets,
            batch.backgrounds,
            activation=field.density_activation,
            threshold=self.march.stop,
        )
        rgb = out.rgb
        if "exposure" in self.extra:
            gain, offset = self.extra["exposure"][0][batch.frames].unbind(1)
            rgb = rgb * gain.exp() + offset
        error = rgb - batch.targets
        loss = error.square().mean() if self.config.loss == "mse" else huber_loss(error)
        total = loss
        if self.config.distortion > 0:
            per_ray = distortion_loss(out.weights, distances, deltas, samples.offsets)
            total = total + self.config.distortion * per_ray.mean()
        if "exposure" in self.extra:
            total = total + 1e-2 * self.extra["exposure"][0].square().mean()  # keeps the mean exposure at one
        for parameter, _ in self.parameters.values():
            parameter.grad = None
        total.backward()
        field.add_prior_gradients(step, self.seed)
        finite = bool(torch.isfinite(total.detach())) and all(
            p.grad is None or bool(torch.isfinite(p.grad.sum())) for p, _ in self.parameters.values()
        )
        if finite:
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
        return loss.item(), finite, float(error.detach().square().mean())


def _psnr(squared: float) -> float:
    """dB of a mean squared error; NaN of one that is not finite."""
    return -10 * math.log10(max(squared, 1e-12)) if math.isfinite(squared) else float("nan")


def huber_loss(error: Tensor, delta: float = 0.1) -> Tensor:
    """Mean of Huber's function of `error`, linear beyond `delta`, scaled to slope 1 there (as `RadianceSpec.loss`)."""
    size = error.abs()
    return torch.where(size < delta, 0.5 * size * size / delta, size - 0.5 * delta).mean()
