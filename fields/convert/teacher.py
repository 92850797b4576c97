"""What does the teacher say? Density, features and colour at points, and the colours that rays see.

A teacher's field may be foggy where its occupancy grid says that nothing is: rendering never asks there. So it counts
as empty there at points too, and the fog is not learned.

Targets of pixels are the teacher's own rendering, by its own march: composited at the student's samples instead, a ray
that the student ends too early would have a target that is cut off at the same place. They are rendered for a pool of
rays that serves several steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..base import Geometry
from ..errors import ConfigError
from ..geometry import Cameras, Rays
from ..model import Model
from ..optim.field_task import RayBatch
from ..render.frame import render_rays
from .views import views_between

NOTHING = -30.0
"""Raw density that is next to none in every activation."""
POOL_STEPS = 32
"""Steps that a pool of rays serves."""
POOL_VIEWS = 64
"""Cameras that a pool's rays belong to."""
_CHUNK = 1 << 13  # rays rendered at once
_POINTS = 1 << 18  # points asked at once


class Answers(NamedTuple):
    """What the teacher says of N points."""

    density_raw: Tensor
    """(N,) before the teacher's activation; `NOTHING` where its occupancy grid is empty."""
    features: Tensor
    """(N, F), F being `Teacher.feature_count`."""
    rgb: Tensor
    """(N, 3)."""


class Teacher:
    """A frozen model that answers."""

    head: nn.Linear | None = None
    """What makes a student's features of what its colours depend on (see `head`); without it, features are its own."""

    def __init__(self, model: Model) -> None:
        """
        Raises:
            ConfigError: the model holds values that are not finite, or has no occupied cell.
        """
        for name, tensor in model.representation.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ConfigError(f"the model to convert is damaged: {name} holds values that are not finite")
        if model.occupancy.occupied_fraction() == 0:
            raise ConfigError("the model to convert is empty: no cell of its occupancy grid is occupied")
        self.model = model
        self.field = model.representation

    @property
    def feature_count(self) -> int:
        """F of its answers."""
        return self.field.feature_count if self.head is None else self.head.out_features

    @property
    def color_inputs(self) -> int:
        """C of `inputs_at`."""
        return self.field.color_inputs

    @torch.no_grad()
    def inputs_at(self, x: Tensor) -> Tensor:
        """(N, C) what its colours at positions (N, 3) depend on besides the direction."""
        return torch.cat([self.field.color_inputs_at(part, self.field.geometry(part)) for part in x.split(_POINTS)])

    @torch.no_grad()
    def at(self, x: Tensor, directions: Tensor) -> Answers:
        """Answers at positions (N, 3), scene frame, seen along unit directions (N, 3)."""
        parts = [self._at(*given) for given in zip(x.split(_POINTS), directions.split(_POINTS), strict=True)]
        return parts[0] if len(parts) == 1 else Answers(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _at(self, x: Tensor, directions: Tensor) -> Answers:
        return self.colored(x, directions, self.field.geometry(x))

    @torch.no_grad()
    def colored(self, x: Tensor, directions: Tensor, geometry: Geometry) -> Answers:
        """As `at`, where the field's density and features are known."""
        raw = torch.where(self.model.occupancy.holds(x), geometry.density_raw.float(), NOTHING)
        inputs = self.field.color_inputs_at(x, geometry)
        features = geometry.features if self.head is None else self.head(inputs)
        return Answers(raw, features, self.field.radiance(inputs, directions, x=x).float())

    @torch.no_grad()
    def density_at(self, x: Tensor) -> Tensor:
        """(N,) raw densities as `at` gives them."""
        raw = [self.field.geometry(part).density_raw.float() for part in x.split(_POINTS)]
        return torch.where(self.model.occupancy.holds(x), torch.cat([x.new_empty(0), *raw]), NOTHING)

    @torch.no_grad()
    def seen(self, rays: Rays) -> tuple[Tensor, Tensor]:
        """(R, 3) colours over black and (R,) opacities of rays, as the model renders them."""
        model, black = self.model, rays.origins.new_zeros(3)
        parts = [
            render_rays(self.field, model.occupancy, rays.rows(slice(begin, begin + _CHUNK)), model.march, black)
            for begin in range(0, len(rays.origins), _CHUNK)
        ]
        return torch.cat([p.rgb for p in parts]), torch.cat([p.alpha for p in parts])


class Pool(NamedTuple):
    """Rays that serve `POOL_STEPS` steps, and what the teacher sees along them."""

    number: int
    rays: Rays
    frames: Tensor
    """(R,) which of the pool's views each belongs to, -1 for none."""
    rgb: Tensor
    """(R, 3) over black."""
    alpha: Tensor
    """(R,)."""


class TeacherRays:
    """`optim.field_task.RaySource`: rays of views between cameras, and what the teacher sees along them."""

    def __init__(self, teacher: Teacher, cameras: Cameras, *, rays: int, seed: int) -> None:
        """Args:
        cameras: from where the scene was seen, scene frame.
        rays: of a pool, rendered every `POOL_STEPS` steps.
        """
        self.teacher, self.count, self.seed = teacher, rays, seed
        self.device = teacher.model.occupancy.bits.device
        self.cameras = cameras.to(self.device)
        self._pool: Pool | None = None
        self._chosen = torch.empty(0, dtype=torch.long)

    def batch(self, step: int, count: int) -> RayBatch:
        """`count` rays of the pool of this step, on random backgrounds."""
        number = step // POOL_STEPS
        if self._pool is None or self._pool.number != number:
            self._pool = self._next_pool(number)
        pool, generator = self._pool, self.generator(2 * step)
        chosen = self._chosen = self._choose(count, generator).to(self.device)
        backgrounds = torch.rand(count, 3, generator=generator).to(self.device)
        targets = pool.rgb[chosen] + (1 - pool.alpha[chosen, None]) * backgrounds
        return RayBatch(
            pool.rays.rows(chosen), targets, backgrounds, torch.zeros(count, dtype=torch.int64, device=self.device)
        )

    def learned(self, squared: Tensor) -> None:
        """Told after a step: the mean squared errors (count,) of the rays of its batch."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs of the source, to be changed in place when it is read."""
        return {}

    def rays(self, count: int, number: int) -> Rays:
        """The rays of pool `number`, without targets; negative numbers name rays that no step sees."""
        return self._rays(count, number)[0]

    def _rays(self, count: int, number: int) -> tuple[Rays, Tensor]:
        generator = self.generator(2 * number + 1)
        views = self._views(number, generator)
        frames = torch.randint(POOL_VIEWS, (count,), generator=generator).to(self.device)
        share = torch.rand(count, 2, generator=generator).to(self.device)
        size = torch.stack([views.width, views.height], 1)[frames]
        return views.rays(frames, share * size, radii=self.teacher.field.integrates), frames

    def _views(self, number: int, generator: torch.Generator) -> Cameras:
        """Those of pool `number`, whose generator has not been used yet."""
        return views_between(self.cameras, POOL_VIEWS, generator)

    def _next_pool(self, number: int) -> Pool:
        return self._pool_of(number)

    def _pool_of(self, number: int) -> Pool:
        rays, frames = self._rays(self.count, number)
        return Pool(number, rays._replace(radii=None), frames, *self.teacher.seen(rays))  # students do not integrate

    def _choose(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) rays of the pool."""
        return torch.randint(self.count, (count,), generator=generator)

    def generator(self, number: int) -> torch.Generator:
        """On the CPU; the draws of the source's seed and this number."""
        return torch.Generator().manual_seed((self.seed * 0x9E3779B97F4A7C15 + number) % (1 << 63))
