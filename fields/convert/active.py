"""Where does a student look again? The three levels of active learning of PVD-AL (Fang et al., arXiv 2304.04012).

- cameras: a tenth of the views of a pool are those of the last whose rays were worst, turned a little;
- rays: a tenth of a step's rays are drawn by their last error instead of evenly, and a tenth of a pool are the worst of
  the last one, whose colours are known already;
- points: before any ray is marched, most points are drawn by how much is seen of them (`points`).

What is remembered is the error of a pool's rays when a step last saw them. Levels are biased on purpose: errors that
many rays share count less than they would. PVD-AL's own third level, of a ray's samples only the 30 % that are seen
most, taught less than all of them did (-0.4 to -0.9 dB in four pairs).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import ConfigError
from ..geometry import Cameras, Rays, rotation_exp
from .teacher import POOL_VIEWS, Pool, Teacher, TeacherRays
from .views import TURN_RAD

Level = Literal["cameras", "rays", "points"]
HARD = 0.1
"""Share of views and rays that are chosen by their errors."""


def check_levels(levels: tuple[str, ...]) -> None:
    """
    Raises:
        ConfigError: a name that is no level.
    """
    unknown = sorted(set(levels) - set(get_args(Level)))
    if unknown:
        raise ConfigError(f"levels of active learning are {', '.join(get_args(Level))}; got {', '.join(unknown)}")


class ActiveRays(TeacherRays):
    """`TeacherRays` with the levels "cameras" and "rays".

    Attributes:
        memory: what the next pool is made from and the present one was: tensors of fixed shapes.
    """

    def __init__(
        self, teacher: Teacher, cameras: Cameras, *, rays: int, seed: int, levels: tuple[Level, ...] = ()
    ) -> None:
        """Args: as `TeacherRays`; `levels`: which ("points" is none of rays and does nothing here)."""
        super().__init__(teacher, cameras, rays=rays, seed=seed)
        check_levels(levels)
        self.levels = set(levels) - {"points"}
        again, views = max(1, int(HARD * rays)), int(HARD * POOL_VIEWS)
        self.memory = {
            "number": torch.tensor(-1),  # of the pool that is remembered
            "error": torch.zeros(rays),  # of its rays; 0: not seen yet
            "hard": torch.zeros(again),  # errors of the rays that came into it from the last; 0: none
            "origins": torch.zeros(again, 3),
            "directions": torch.zeros(again, 3),
            "rgb": torch.zeros(again, 3),
            "alpha": torch.zeros(again),
            "views": torch.tensor(0),  # how many of its views are turned ones of the last
        }
        first = self.cameras[torch.zeros(views, dtype=torch.long, device=self.device)]
        self.memory |= {f"view.{f.name}": getattr(first, f.name).clone() for f in dataclasses.fields(Cameras)}
        self.memory = {name: tensor.to(self.device) for name, tensor in self.memory.items()}

    def learned(self, squared: Tensor) -> None:
        if self.levels:
            self.memory["error"].scatter_reduce_(0, self._chosen, squared.nan_to_num(0.0), "amax", include_self=False)

    def tensors(self) -> dict[str, Tensor]:
        return self.memory if self.levels else {}

    def _next_pool(self, number: int) -> Pool:
        memory, known = self.memory, int(self.memory["number"])
        if known == number:  # a checkpoint was read within it
            return self._pool_of(number)
        if known >= 0:
            self._remember(self._pool or self._pool_of(known))
        memory["number"].fill_(number)
        memory["error"].zero_()
        return self._pool_of(number)

    def _remember(self, pool: Pool) -> None:
        """What was worst in a pool."""
        memory, error = self.memory, self.memory["error"]
        if "cameras" in self.levels:
            seen = (error > 0) & (pool.frames >= 0)
            values = torch.stack([error[seen], torch.ones_like(error[seen])])
            sums = error.new_zeros(2, POOL_VIEWS).index_add_(1, pool.frames[seen], values)
            order = (sums[0] / sums[1].clamp(min=1)).argsort(descending=True, stable=True)
            worst = order[: int(HARD * POOL_VIEWS)]
            views = self._views(pool.number, self.generator(2 * pool.number + 1))
            for field in dataclasses.fields(Cameras):
                memory[f"view.{field.name}"].copy_(getattr(views, field.name)[worst])
            memory["views"].fill_(len(worst))
        if "rays" in self.levels:
            hard = error.argsort(descending=True, stable=True)[: len(memory["hard"])]
            memory["hard"].copy_(error[hard])
            for name, values in (
                ("origins", pool.rays.origins),
                ("directions", pool.rays.directions),
                ("rgb", pool.rgb),
                ("alpha", pool.alpha),
            ):
                memory[name].copy_(values[hard])

    def _pool_of(self, number: int) -> Pool:
        """The pool that follows from what is remembered."""
        memory = self.memory
        count = int((memory["hard"] > 0).sum())  # they come sorted
        if count == 0:
            return super()._pool_of(number)
        origins, directions, rgb, alpha = (memory[k][:count] for k in ("origins", "directions", "rgb", "alpha"))
        rays, frames = self._rays(self.count, number)
        fresh = rays.rows(slice(count, None))
        seen, opacity = self.teacher.seen(fresh)
        return Pool(
            number,
            Rays(torch.cat([origins, fresh.origins]), torch.cat([directions, fresh.directions])),
            torch.cat([frames.new_full((count,), -1), frames[count:]]),
            torch.cat([rgb, seen]),
            torch.cat([alpha, opacity]),
        )

    def _views(self, number: int, generator: torch.Generator) -> Cameras:
        views, count = super()._views(number, generator), int(self.memory["views"])
        if number < 0 or count == 0:
            return views
        turn = (2 * torch.rand(count, 3, generator=generator) - 1) * TURN_RAD
        pose = self.memory["view.world_from_camera"][:count]
        rotation = pose[:, :, :3] @ rotation_exp(turn.to(pose))
        turned: dict[str, Any] = {f.name: self.memory[f"view.{f.name}"][:count] for f in dataclasses.fields(Cameras)}
        turned["world_from_camera"] = torch.cat([rotation, pose[:, :, 3:]], 2)
        return Cameras(**{k: torch.cat([v, getattr(views, k)[count:]]) for k, v in turned.items()})

    def _choose(self, count: int, generator: torch.Generator) -> Tensor:
        chosen, hard = super()._choose(count, generator), int(HARD * count)
        if "rays" not in self.levels or hard == 0:
            return chosen
        error = self.memory["error"].cpu()
        if bool((error > 0).any()):
            chosen[:hard] = torch.multinomial(error, hard, replacement=True, generator=generator)
        return chosen
