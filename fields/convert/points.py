"""What does a student learn first? What the teacher says at points, before any ray is marched (PVD's first stages).

Points cost a student one pass where rays cost several, and they can be chosen: most of what a ray passes through shows
nothing. They come from the teacher's own march along rays of its views: some drawn by how much is seen of them, some
evenly, since what lies just before a surface must be learned to be empty. Pools of them serve several steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.composite import composite
from ..render.march import march_visible
from .teacher import POOL_STEPS, TeacherRays

SEEN, PASSED = 0.5, 0.3
"""Shares of a step's points that are drawn by how much is seen of them, and evenly; as many as are left are drawn where
the teacher's occupancy grid is empty."""


class Points(NamedTuple):
    """N points, the first S of which are seen."""

    positions: Tensor
    """(N, 3) scene frame."""
    distances: Tensor
    """(N,) along the ray that passes there."""
    density_raw: Tensor
    """(N,) before the teacher's activation."""
    directions: Tensor
    """(S, 3) unit, in which they are seen."""
    features: Tensor
    """(S, F)."""
    rgb: Tensor
    """(S, 3)."""


class TeacherPoints:
    """Points with the teacher's answers, for the step and the source's seed alone."""

    def __init__(self, source: TeacherRays, *, samples: int) -> None:
        """Args:
        source: along which rays they lie.
        samples: of a step; `SEEN` and `PASSED` of them are given here.
        """
        self.source, self.rays = source, samples
        self.seen, self.passed = int(SEEN * samples), int(PASSED * samples)
        self._number, self._drawn = -1, [torch.empty(0, dtype=torch.long)] * 2

    def batch(self, step: int) -> Points:
        """The points of a step: fewer, or none, where the teacher shows nothing along a pool's rays."""
        number, place = divmod(step, POOL_STEPS)
        if number != self._number:
            self._fill(number)
            self._number = number
        seen, passed = (rows.tensor_split(POOL_STEPS)[place] for rows in self._drawn)
        both = torch.cat([self._rows[seen], passed])
        samples = (values[both] for values in self._samples)
        return Points(*samples, *(values[seen] for values in self._answers))

    @torch.no_grad()
    def _fill(self, number: int) -> None:
        """March pool `number`, draw all points of its steps, and ask the teacher once for the colour of each."""
        model = self.source.teacher.model
        field, activation = model.representation, model.representation.density_activation
        rays = self.source.rays(self.rays, -2 - number)._replace(radii=None)  # -1 is what conversions are measured by

        def ask(x: Tensor, footprint: Tensor | None) -> tuple[Tensor, Tensor]:
            geometry = field.geometry(x)
            return geometry.density_raw.float(), geometry.features

        given = {"activation": activation, "seed": self.source.seed, "step": number, "jitter": True}
        marched = march_visible(rays, model.occupancy, ask, model.march, **given)
        live = marched.rows.long()
        x, distances, raw = (values[live] for values in (marched.positions, marched.distances, marched.density_raw))
        packed = (distances, marched.deltas[live], marched.offsets)
        weights = composite(raw, torch.zeros_like(x), *packed, None, activation=activation, threshold=0.0).weights
        generator = self.source.generator(number)
        seen = _draw(weights, POOL_STEPS * self.seen, generator)
        passed = _draw(torch.ones_like(weights), POOL_STEPS * self.passed, generator)
        self._rows, seen = seen.unique(return_inverse=True)
        self._samples, self._drawn = (x, distances, raw), [seen, passed]
        assert marched.cache is not None  # `ask` keeps the features
        features = marched.cache[live[self._rows]]
        directions = rays.directions[marched.ray_ids()[self._rows]]
        self._answers = directions, features, field.radiance(features, directions, x=x[self._rows]).float()


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count,) rows, with repetition, in proportion to their weights; none where all weights are 0. `torch.multinomial`
    takes 2^24 rows at most and sums in float32. The draws come from the CPU, whatever the weights' device."""
    sums = weights.double().cumsum(0)
    if not bool((sums[-1:] > 0).any()):
        return torch.empty(0, dtype=torch.long, device=weights.device)
    share = torch.rand(count, generator=generator, dtype=torch.float64).to(weights.device)
    return torch.searchsorted(sums, share * sums[-1], right=True).clamp(max=len(sums) - 1)
