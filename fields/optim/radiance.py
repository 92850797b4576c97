"""The optimisation task of radiance fields: rays with known colours in, field and occupancy changed.

Three paths compute the same step. The fused one (`ops.radiance_step`) serves grid-encoded fields; on a GPU with tensor
cores `radiance_program` does it with the marching before it; the composed one, under autograd, serves everything else:
pose refinement, per-image exposure, distortion loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import RadianceField
from ..geometry import cone_gaussians
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
from ..render.march import MarchConfig, PackedSamples
from ..render.occupancy import OccupancyGrid
from .field_task import FieldTask, RadianceTaskConfig, RayBatch, RaySource, huber_loss, psnr_of
from .loop import StepResult
from .radiance_program import RadianceProgram, serves


class RadianceTask(FieldTask):
    """Final. See the module."""

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
        extra = dict(extra or {})
        device = next(iter(field.parameter_groups()))["params"][0].device
        if config.exposure:
            extra["exposure"] = (nn.Parameter(torch.zeros(frames, 2, 3, device=device)), config.exposure_lr)
        super().__init__(field, occupancy, march, source, config, extra=extra, seed=seed)
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

    # -- optim.loop.Task --------------------------------------------------------------------------------------------

    def _step(self, step: int, lr_scale: float) -> StepResult:
        if step % self.config.occupancy_every == 0:
            self._refresh_occupancy(step)
        batch = self.source.batch(step, self.ray_count)
        if self._by_program:
            return self._program_step(batch, step, lr_scale)
        samples = self._samples(batch, step, self.occupancy)
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
            "psnr": psnr_of(squared),
        }
        self._adapt_rays(self.ray_count, live)
        return StepResult(loss, finite, counts)

    # -- parts of a step --------------------------------------------------------------------------------------------

    def _density_pass(self, x: Tensor, footprint: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.field, HashField):
            features = self.field.encoding(self.field.to_unit(x))
            return self.field.density(features)[:, 0].contiguous(), features if self.fused else None
        return self.field.geometry(x, footprint=footprint).density_raw, None

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
            "psnr": psnr_of(seen.squared),
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
        finite = self._descend(total, step, lr_scale)
        return loss.item(), finite, float(error.detach().square().mean())
