"""The optimisation task of conversion: a student learns what a frozen teacher says, along rays and at points.

After PVD and PVD-AL (Fang et al., arXiv 2211.15977 and 2304.04012): the student marches, the teacher answers at the
student's live samples, and the rendered pixels are compared too. Before any ray is marched the student learns at points
that matter (`points`); where there are photos, it learns from them alone at the end.

The student is marched where its teacher's grid says that something is and nowhere else: so it meets matter that it
has lost, and what it makes of the rest of space is never seen. In the end the cells that it has found empty go. Where
its own grid is the coarser one, its density is pushed down at points that only that grid holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..base import Geometry, RadianceField
from ..errors import ConfigError
from ..ops.activations import log_density
from ..ops.composite import Composited, composite
from ..ops.occupancy import pack_bitfield, sample_cells
from ..optim.field_task import FieldTask, RadianceTaskConfig, RayBatch, RaySource, huber_loss, psnr_of
from ..optim.loop import StepResult
from ..render.march import MarchConfig, PackedSamples
from ..render.occupancy import OccupancyGrid
from .losses import density_error, feature_error, weighted_huber
from .points import Points, TeacherPoints
from .teacher import Teacher, TeacherRays

MOST_LOOKED_AT = 1 << 19
"""Occupied cells up to which a CPU looks at each in the end; more (large unbounded scenes) stay the teacher's, since
the looks took up to a quarter of a minute."""
_COLOR_DELTA, _LOG_DELTA = 0.1, 1.0  # where Huber's functions of colours and of log thicknesses become linear


@dataclass(frozen=True, kw_only=True)
class DistillWeights:
    """What counts how much. Losses are means: of colours in [0, 1], of natural logarithms of thickness.

    Lego at 200x200, steps of 2^15 points, likeness to the teacher. Features say most, where they mean the same: hash to
    tensor, 450 steps, 36.1 dB with 0.02 for `features` (and 0.1, 0.5 for `density`, `color`), 36.9 with 0.3, 36.6 with
    1. Densities are to count less than colours: with 0.1 for `features` 35.9 dB with 0.2 for `density`; with 0.15 37.3
    dB with 0.07 and 0.7 (as here), as much with 0.05 and 0.5 or 0.025 and 0.5. From 0.1, 0.5 and 0.02 to what stands
    here: hash to planes 36.7 to 37.1, tensor to hash (300 steps) 35.1 to 36.2, hash to mlp (150) 24.1 to 25.4 dB. Ten
    times as much for `empty` cost 4 dB (80 steps along rays).
    """

    pixels: float = 1.0
    """Rendered colours."""
    density: float = 0.07
    """Log thickness at samples, by the larger of both compositing weights."""
    color: float = 0.7
    """Colours at samples, by the teacher's compositing weight."""
    features: float = 0.15
    """Features at samples, likewise; only where the colour network was inherited, which says what they mean."""
    empty: float = 0.02
    """Log thickness above `losses.EMPTY` at points where the teacher's grid is empty and the student's is not."""
    empty_share: float = 0.125
    """How many such points there are, in a step's samples, if any."""
    points_until: float = 0.8
    """Share of what comes before the photos, if any, in which the student learns at points alone."""
    fades_over: float = 0.5
    """Share of the run over which the weight of the samples falls where rays are marched from the first step; where
    points come first, it has fallen when they end."""
    faded: float = 0.3
    """To this part of it."""

    def __post_init__(self) -> None:
        if not all(v >= 0 for v in (self.pixels, self.density, self.color, self.features, self.empty)):
            raise ConfigError(f"weights must not be negative; got {self}")
        if not (
            0 <= self.points_until < 1 and 0 < self.fades_over <= 1 and 0 < self.faded <= 1 and self.empty_share >= 0
        ):
            raise ConfigError(
                f"points_until must be in [0, 1), fades_over and faded in (0, 1], empty_share >= 0; got {self}"
            )

    def fading(self, progress: float) -> float:
        """Factor of the weights of samples when that share of the run is done and rays are marched."""
        return self.faded ** min(1.0, progress / self.fades_over)


TRANSLATED = DistillWeights(density=0.03, features=0.4)
"""Where a head was learned, whose features are half as large. Lego at 200x200, grid to tensor, likeness to the teacher
after 400 steps: 0.9 dB more than with the usual weights, of which 0.5 by that of the features. Where features are the
teacher's own, these are worse: hash to tensor 36.2 for 36.8, hash to planes 35.0 for 36.5 dB."""
COSTLY_UNTIL = 0.92
"""`DistillWeights.points_until` where either field is costly: rays ask such a teacher anew, and of such a student a
step has few samples, so few rays that they harm when there are many steps of them. Lego at 200x200, likeness to the
teacher: hash to mlp, 100 seconds of one thread, 30.2 dB with 0.8, 31.6 with 0.92, 31.2 with 0.97, 31.0 with 0.99; hash
to cam 29.8 with 0.8, 30.8 with 0.92, 31.1 with 0.95, 30.1 with 0.97; mlp to hash, 90 seconds, 37.4 and 37.6 with 0.92.
"""
COSTLY_FEATURES = 0.5
"""Factor of `DistillWeights.features` where the student is costly: 400 steps of hash to cam 28.3 and 28.8 dB, of mlp to
cam 26.1 and 27.8 with 1 and 0.5; to an mlp it makes no difference (250 steps of hash to mlp, 29.6 and 29.4 to 30)."""


class Losses(NamedTuple):
    """The terms of a step, unweighted; None where a term has no part in it."""

    pixels: Tensor | None
    density: Tensor | None
    color: Tensor | None
    features: Tensor | None
    empty: Tensor | None

    def figures(self) -> dict[str, float]:
        """Those that there are."""
        return {name: float(term.detach()) for name, term in self._asdict().items() if term is not None}


class _Seen(NamedTuple):
    """What the student says of the live samples of a batch."""

    x: Tensor
    directions: Tensor
    packed: tuple[Tensor, Tensor, Tensor]
    geometry: Geometry
    rgb: Tensor
    out: Composited


def weights_for(student: RadianceField, teacher: Teacher) -> DistillWeights:
    """What counts how much, by how the two speak and what they cost."""
    weights = DistillWeights() if teacher.head is None else TRANSLATED
    if student.costly:
        weights = replace(weights, features=COSTLY_FEATURES * weights.features)
    if student.costly or teacher.field.costly:
        weights = replace(weights, points_until=COSTLY_UNTIL)
    return weights


def inherit(student: RadianceField, teacher: RadianceField) -> list[str]:
    """Give the student the parts that both have: everything where both are one field, else the networks named alike
    with the same layout. Returns their names.

    Tables and grids are left out: equal shapes do not make them mean the same places.
    """
    mine, theirs = student.state_dict(), teacher.state_dict()
    if type(student) is type(teacher) and student.config == teacher.config and _alike(mine, theirs):
        student.load_state_dict(theirs)
        return sorted(mine)
    names = []
    for name in ("density", "color"):
        a, b = getattr(student, name, None), getattr(teacher, name, None)
        if not (isinstance(a, nn.Module) and type(a) is type(b)) or isinstance(a, nn.Parameter):
            continue
        assert isinstance(b, nn.Module)
        layouts = [getattr(m, "spec", getattr(m, "config", None)) for m in (a, b)]
        if layouts[0] == layouts[1] and _alike(a.state_dict(), b.state_dict()):
            a.load_state_dict(b.state_dict())
            names.append(name)
    return names


def _alike(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].shape == b[k].shape for k in a)


class DistillTask(FieldTask):
    """Final. See the module."""

    def __init__(
        self,
        field: RadianceField,
        occupancy: OccupancyGrid,
        march: MarchConfig,
        source: TeacherRays,
        config: RadianceTaskConfig,
        teacher: Teacher,
        weights: DistillWeights | None = None,
        *,
        same_features: bool = False,
        by_what_is_seen: bool = True,
        rates: tuple[float, float] = (1.0, 1.0),
        photos: RaySource | None = None,
        finish: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Args:
        field, occupancy: the student; the grid takes the teacher's cells. As many cascades as the teacher's.
        config: of the student's training; its loss, distortion and exposure have no part.
        weights: by default those of `weights_for`.
        same_features: whether features of both mean the same: their colour network is one (see `inherit`), or the
            teacher has learned to speak the student's (see `head`).
        by_what_is_seen: how points are drawn, see `TeacherPoints`.
        rates: factors of the learning rates, Adam's and Muon's.
        photos: rays with the colours of photos, from which the student learns in the last part of the run, `finish`
            of it in [0, 1]; the teacher then has no say.
        """
        super().__init__(field, occupancy, march, source, config, extra={}, seed=seed)
        self.rays, self.teacher, self.weights = source, teacher, weights or weights_for(field, teacher)
        self.rates = rates
        finish = 0.0 if photos is None else finish
        self.photos, self.photos_from = photos, 1 - finish if finish > 0 else math.inf
        self.points_until = self.weights.points_until * (1 - finish)
        self.same_features = same_features and field.feature_count == teacher.feature_count > 0
        taught = teacher.model.occupancy
        if taught.cascades != occupancy.cascades:
            text = f"the student needs as many occupancy cascades as its teacher, {taught.cascades}"
            raise ConfigError(f"{text}; got {occupancy.cascades}")
        occupancy.take_flags(taught.flags_at(occupancy.resolution))
        beyond = occupancy.flags_at(taught.resolution) & ~taught.flags()
        self._beyond = pack_bitfield(beyond.float(), taught.grid.new_tensor(0.5))[0] if bool(beyond.any()) else None
        self.haze = int(self.weights.empty_share * config.samples) if self._beyond is not None else 0
        points = config.samples - self.haze
        self.points = TeacherPoints(source, samples=points, by_what_is_seen=by_what_is_seen, for_costly=field.costly)

    def grow(self, progress: float) -> bool:
        """Also true where steps begin to take longer or shorter. Stages never come back: a new plan of more steps would
        otherwise make little of what is done."""
        progress = max(progress, self.progress)
        begins = any(self.progress < at <= progress for at in (self.points_until, self.photos_from))
        return super().grow(progress) or begins

    def scalars(self) -> dict[str, Any]:
        return super().scalars() | {"progress": self.progress}

    def load_scalars(self, values: dict[str, Any]) -> None:
        super().load_scalars(values)
        self.progress = float(values["progress"])

    def _step(self, step: int, lr_scale: float) -> StepResult:
        photos = self.photos if self.progress >= self.photos_from else None
        if photos is None and self.progress < self.points_until:
            return self._step_at_points(step, lr_scale)
        batch = (self.rays if photos is None else photos).batch(step, self.ray_count)
        samples = self._samples(batch, step, self.occupancy)
        live = samples.rows.shape[0]
        if live == 0:
            return StepResult(float("nan"), False, {"rays": self.ray_count, "live": 0, "marched": samples.marched})
        losses, squared = self.losses(batch, samples, step) if photos is None else self.photo_losses(batch, samples)
        total, finite = self._learn(losses, step, lr_scale)
        if photos is None:
            self.rays.learned(squared)
        counts: dict[str, Any] = {
            "rays": self.ray_count,
            "live": live,
            "marched": samples.marched,
            "dropped": samples.dropped,
            "psnr": psnr_of(float(squared.mean())),
        }
        self._adapt_rays(self.ray_count, live)
        return StepResult(total, finite, counts | losses.figures())

    def _step_at_points(self, step: int, lr_scale: float) -> StepResult:
        points = self.points.batch(step)
        count, seen = len(points.positions), len(points.rgb)
        if seen == 0:
            return StepResult(float("nan"), False, {"points": count})
        losses = self.point_losses(points, step)
        total, finite = self._learn(losses, step, lr_scale)
        return StepResult(total, finite, {"points": count} | losses.figures())

    def _learn(self, losses: Losses, step: int, lr_scale: float) -> tuple[float, bool]:
        """The weighted sum of the terms, and whether it was finite and has changed the field."""
        w = self.weights
        fading = 1.0 if self.progress < self.points_until else w.fading(self.progress)
        factors = w.pixels, fading * w.density, fading * w.color, fading * w.features, w.empty
        total = sum(factor * term for factor, term in zip(factors, losses, strict=True) if term is not None)
        assert isinstance(total, Tensor)
        return float(total.detach()), self._descend(total, step, *(rate * lr_scale for rate in self.rates))

    def tensors(self) -> dict[str, Tensor]:
        head = {} if self.teacher.head is None else self.teacher.head.state_dict()
        parts = {"source": self.rays.tensors(), "head": head}
        return super().tensors() | {f"{part}.{k}": v for part, tensors in parts.items() for k, v in tensors.items()}

    def losses(self, batch: RayBatch, samples: PackedSamples, step: int) -> tuple[Losses, Tensor]:
        """The terms at live samples, and the mean squared errors (R,) of the pixels."""
        ray_ids = samples.ray_ids()
        x, directions, packed, geometry, rgb, out = self._composited(batch, samples, ray_ids)
        answers, activation = self.teacher.at(x, directions), self.teacher.field.density_activation
        with torch.no_grad():
            theirs = composite(answers.density_raw, answers.rgb, *packed, None, activation=activation, threshold=0.0)
            taught, either = theirs.weights, torch.maximum(theirs.weights, out.weights)
        log_delta = packed[1].log()
        apart = density_error(
            log_density(geometry.density_raw, self.field.density_activation) + log_delta,
            log_density(answers.density_raw, activation) + log_delta,
        )
        error = out.rgb - batch.targets
        features = None
        if self.same_features:
            features = weighted_huber(feature_error(geometry.features, answers.features), taught, _LOG_DELTA)
        terms = Losses(
            huber_loss(error),
            weighted_huber(apart, either, _LOG_DELTA),
            weighted_huber(rgb - answers.rgb, taught, _COLOR_DELTA),
            features,
            self._haze(int(self.weights.empty_share * len(x)), step),
        )
        return terms, error.detach().square().mean(1)

    def photo_losses(self, batch: RayBatch, samples: PackedSamples) -> tuple[Losses, Tensor]:
        """As `losses`, of rays whose targets photos say."""
        error = self._composited(batch, samples, samples.ray_ids())[-1].rgb - batch.targets
        return Losses(huber_loss(error), None, None, None, None), error.detach().square().mean(1)

    def _composited(self, batch: RayBatch, samples: PackedSamples, ray_ids: Tensor) -> _Seen:
        field, rows = self.field, samples.rows.long()
        x, directions = samples.positions[rows], batch.rays.directions[ray_ids]
        packed = (samples.distances[rows], samples.deltas[rows], samples.offsets)
        geometry = field.geometry(x)
        rgb = field.radiance(geometry.features, directions, x=x)
        given = {"activation": field.density_activation, "threshold": self.march.stop}
        out = composite(geometry.density_raw, rgb, *packed, batch.backgrounds, **given)
        return _Seen(x, directions, packed, geometry, rgb, out)

    def point_losses(self, points: Points, step: int) -> Losses:
        """The terms at points, of which at least one is seen."""
        field, seen = self.field, slice(len(points.rgb))
        geometry = field.geometry(points.positions)
        rgb = field.radiance(geometry.features[seen], points.directions, x=points.positions[seen])
        log_delta = (points.distances * self.march.cone_angle).clamp(min=self.march.step_size).log()
        error = density_error(
            log_density(geometry.density_raw, field.density_activation) + log_delta,
            log_density(points.density_raw, self.teacher.field.density_activation) + log_delta,
        )
        even = torch.ones_like(error)
        features = None
        if self.same_features:
            apart = feature_error(geometry.features[seen], points.features)
            features = weighted_huber(apart, even[seen], _LOG_DELTA)
        return Losses(
            None,
            weighted_huber(error, even, _LOG_DELTA),
            weighted_huber(rgb - points.rgb, even[seen], _COLOR_DELTA),
            features,
            self._haze(self.haze, step),
        )

    def _haze(self, count: int, step: int) -> Tensor | None:
        """Mean error of log thickness at `count` points that only the student's grid holds; None without such."""
        if count == 0 or self._beyond is None:
            return None
        grid = self.teacher.model.occupancy.grid
        _, x = sample_cells(grid, self._beyond, uniform=0, occupied=count, seed=self.seed + 1, step=step)
        raw = self.field.geometry(x).density_raw
        log_thickness = log_density(raw, self.field.density_activation) + math.log(self.march.step_size)
        error = density_error(log_thickness, torch.full_like(log_thickness, -math.inf))
        return weighted_huber(error, torch.ones_like(error), _LOG_DELTA)

    def finish(self, step: int) -> None:
        """Look again and again at the cells in which the student is marched: those that it has found empty go."""
        grid = self.occupancy
        if grid.bits.device.type == "cpu" and int(grid.flags().sum()) > MOST_LOOKED_AT:
            return
        grid.look_again(
            lambda x: self._density_pass(x)[0],
            activation=self.field.density_activation,
            step=step + 1,
            seed=self.seed,
            step_size=self.march.step_size,
        )

    def _density_pass(self, x: Tensor, footprint: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.field.geometry(x, footprint=footprint).density_raw, None
