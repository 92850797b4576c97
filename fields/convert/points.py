"""What does a student learn first? What the teacher says at points, before any ray is marched (PVD's first stages).

Points cost a student one pass where rays cost several, and they can be chosen: most of what a ray passes through shows
nothing. They lie near those of the teacher's own march along rays of its views: most near ones drawn by how much is
seen of them, some near any, since what lies just before a surface must be learned to be empty. Pools of them serve
several steps.

What a step has seen before teaches little. Lego at 200x200, hash to tensor, 1500 steps of 2^14 points, likeness to the
teacher: 35.1 dB by the march's own points, each of which comes seven times in the 32 steps of a pool; 36.7 dB in pools
of 8 steps; 37.4 dB where these are moved by up to a step of the march as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..base import Geometry
from ..geometry import Rays
from ..ops.composite import composite
from ..render.march import PackedSamples, march_visible
from .teacher import TeacherRays

SEEN = 0.8
"""Share of a step's points that are drawn by how much is seen of them; the others are drawn evenly."""
POOLS = {(False, False): 8, (False, True): 2, (True, False): 16, (True, True): 4}
"""Whether the teacher, and whether the student, is costly -> steps that a pool serves. Costly students go few steps of
few points, of which none should come again: the teacher's answers are cheap beside what is learned from one. Lego at
200x200, likeness to the teacher: hash to mlp (350 steps) 30.3 dB with 8, 32.1 with 2, 32.0 with 1; hash to cam (600)
29.4, 31.6 and 31.2 dB; in 100 seconds of one thread mlp to hash 37.0 dB with 32, 38.0 with 16, 37.0 with 8; cam to mlp
29.5 dB with 32, 32.7 with 8, 35.2 with 4, 34.2 with 2; mlp to cam 29.3 dB with 32, 30.2 with 16, 29.4 with 4."""
SHIFT = 1.0
"""Most that a point is moved along each axis, in steps of the march; of a costly teacher none is."""
SAMPLES = 4
"""Samples that a pool's rays have, in points of a step: as many rays are marched, between `LEAST_RAYS` and one a point.
Where they pass through much, as in captures of more than an object, all others would be marched for nothing."""
LEAST_RAYS, MOST_RAYS = 1 << 10, 1 << 16


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

    def __init__(
        self, source: TeacherRays, *, samples: int, by_what_is_seen: bool = True, for_costly: bool = False
    ) -> None:
        """Args:
        source: along which rays they lie.
        samples: points of a step.
        by_what_is_seen: whether `SEEN` of them are drawn so; else evenly as the others are (active learning's level
            "points" is off).
        for_costly: whether the student's field is a costly one.
        """
        self.source, self.rays, self.by_what_is_seen = source, 0, by_what_is_seen
        self.seen = int(SEEN * samples)
        self.passed = samples - self.seen
        self.steps = POOLS[source.teacher.field.costly, for_costly]
        self._number = -1

    def batch(self, step: int) -> Points:
        """The points of a step: none where the teacher shows nothing along a pool's rays."""
        number, place = divmod(step, self.steps)
        if number != self._number:
            self._fill(number)
            self._number = number
        seen, passed = (tuple(v.tensor_split(self.steps)[place] for v in part) for part in (self._seen, self._passed))
        both = (torch.cat(column) for column in zip(seen, passed, strict=False))
        return Points(*both, *seen[3:])

    @torch.no_grad()
    def _fill(self, number: int) -> None:
        """March pool `number`, draw the points of its steps and ask the teacher there."""
        teacher = self.source.teacher
        field = teacher.field
        if self.rays == 0:
            self.rays = self._fitting_rays()
        rays, marched = self._march(self.rays, number)
        live = marched.rows.long()
        distances, raw = marched.distances[live], marched.density_raw[live]
        packed = (distances, marched.deltas[live], marched.offsets)
        black = distances.new_zeros(len(live), 3)
        weights = composite(raw, black, *packed, None, activation=field.density_activation, threshold=0.0).weights
        evenly, generator = torch.ones_like(weights), self.source.generator(number)
        drawn = [
            _draw(weights if self.by_what_is_seen else evenly, self.steps * self.seen, generator),
            _draw(evenly, self.steps * self.passed, generator),
        ]
        if len(drawn[0]) == 0:
            drawn[1] = drawn[0]
        # Draws come in the order of the rays: a step takes every so many of them, from the first ray to the last.
        seen, passed = (part.view(-1, self.steps).T.flatten() for part in drawn)
        x, directions = marched.positions[live], rays.directions[marched.ray_ids()]
        if marched.cache is not None:  # nothing is asked twice
            rows, again = seen.unique(return_inverse=True)
            known = Geometry(raw[rows], marched.cache[live][rows])
            answers = (values[again] for values in teacher.colored(x[rows], directions[rows], known))
            at_seen, at_passed, raw_passed = x[seen], x[passed], raw[passed]
        else:
            at_seen, at_passed = (self._moved(x[rows], distances[rows], generator) for rows in (seen, passed))
            answers, raw_passed = teacher.at(at_seen, directions[seen]), teacher.density_at(at_passed)
        raw_seen, features, rgb = answers
        self._seen = (at_seen, distances[seen], raw_seen, directions[seen], features, rgb)
        self._passed = (at_passed, distances[passed], raw_passed)

    def _fitting_rays(self) -> int:
        """How many rays a pool has, by what the first few meet."""
        found = max(1, len(self._march(LEAST_RAYS, 0)[1].rows))
        points = self.seen + self.passed
        return max(LEAST_RAYS, min(points, MOST_RAYS, LEAST_RAYS * SAMPLES * points // found))

    def _march(self, count: int, number: int) -> tuple[Rays, PackedSamples]:
        """`count` rays of pool `number` and the teacher's march along them; that of a costly one keeps its features."""
        model = self.source.teacher.model
        field = model.representation
        rays = self.source.rays(count, -2 - number)._replace(radii=None)  # -1 is what conversions are measured by

        def ask(x: Tensor, footprint: Tensor | None) -> tuple[Tensor, Tensor | None]:
            geometry = field.geometry(x)
            return geometry.density_raw.float(), geometry.features if field.costly else None

        given = {"activation": field.density_activation, "seed": self.source.seed, "step": number, "jitter": True}
        return rays, march_visible(rays, model.occupancy, ask, model.march, **given)

    def _moved(self, x: Tensor, distances: Tensor, generator: torch.Generator) -> Tensor:
        march = self.source.teacher.model.march
        reach = SHIFT * (distances * march.cone_angle).clamp(min=march.step_size)
        return x + reach[:, None] * (2 * torch.rand(len(x), 3, generator=generator) - 1).to(x)


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count,) rows in order, each as often as its share of the weights says, up or down to a whole number at random;
    none where all weights are 0."""
    sums = weights.double().cumsum(0)
    if not bool((sums[-1:] > 0).any()):
        return torch.empty(0, dtype=torch.long, device=weights.device)
    start = float(torch.rand((), generator=generator, dtype=torch.float64))
    until = (sums * (count / sums[-1]) + start).floor().long().clamp(max=count)
    until[-1] = count
    times = until.diff(prepend=until.new_zeros(1))
    return torch.arange(len(weights), device=weights.device).repeat_interleave(times, output_size=count)
