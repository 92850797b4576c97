"""Which points does a ray have to ask for? Marching through occupied space in waves, with early termination.

A wave gives every ray still alive its next few samples; the field's density is evaluated there, rays that have become
opaque stop, and the next wave continues the others. So samples behind an opaque surface are never encoded, in training
and in rendering. What a density pass computed (encodings, features) is kept, so that live samples are encoded once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from ..geometry import Rays, cone_gaussians
from ..ops.march import MarchedSamples, march_rays, pack_waves, trim_samples
from ..ops.ray_box import intersect_box
from .occupancy import OccupancyGrid

GPU_WAVES = (64, 1024)
"""`MarchConfig.waves` on a GPU, where a wave costs launches and a wait for counts, and samples too many cost little."""

DensityPass = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""Positions (N, 3), scene frame, and footprints (N, 3, 3), or None where rays have no radii -> raw density (N,) and a
cache (N, C) to keep for the live samples, or None."""


@dataclass(frozen=True, kw_only=True)
class MarchConfig:
    """How rays are sampled."""

    step_size: float = 3**0.5 / 384
    """Smallest step, scene units: the diagonal of the unit region in 768 steps (instant-ngp: 1024)."""
    cone_angle: float = 0.0
    """Steps grow as distance * cone_angle (0 for one box; where there are cascades instant-ngp takes 1/256)."""
    near: float = 0.02
    """No samples nearer than this to the camera, scene units."""
    waves: tuple[int, ...] = (6, 6, 8, 8, 12, 16, 32, 64, 1024)
    """Most samples of a ray in each wave; the last repeats until all rays have ended."""
    stop: float = 1e-3
    """A ray ends where its transmittance falls below this: the rest could change a channel by 0.1 % at most."""
    capacity: int = 1 << 22
    """Most samples of one wave over all rays; rays that do not fit wait for the next wave."""

    def __post_init__(self) -> None:
        if not self.step_size > 0:
            raise ConfigError(f"step_size must be positive (scene units); got {self.step_size}")
        if not self.waves or min(self.waves) < 1:
            raise ConfigError(f"waves must be positive sample counts; got {self.waves}")


class PackedSamples(NamedTuple):
    """The live samples of R rays. Row `rows[i]` of the buffers is sample i; `offsets` groups samples by ray."""

    positions: Tensor
    """(M, 3) every marched position, scene frame."""
    distances: Tensor
    """(M,) along the ray."""
    deltas: Tensor
    """(M,) interval lengths."""
    density_raw: Tensor
    """(M,) as the density pass found it."""
    cache: Tensor | None
    """(M, C) what the density pass kept."""
    rows: Tensor
    """(N,) int32 rows of the live samples, by ray, near to far."""
    offsets: Tensor
    """(R+1,) int32."""
    dropped: int
    """How often a ray did not fit into a wave's capacity and had to wait for the next."""

    @property
    def marched(self) -> int:
        """M, how many samples were evaluated to find the live ones."""
        return self.positions.shape[0]

    def ray_ids(self) -> Tensor:
        """(N,) int64 ray of each live sample."""
        return _owners(self.offsets)


def box_distances(rays: Rays, occupancy: OccupancyGrid, near: float) -> tuple[Tensor, Tensor]:
    """(R,), (R,) where each ray enters and leaves the occupancy grid's outermost cascade, not nearer than `near`."""
    reach = torch.full((3,), float(2 ** (occupancy.cascades - 1)), device=rays.origins.device)
    enter, leave = intersect_box(rays.origins, rays.directions, -reach, reach)
    return enter.clamp(min=near), leave


@torch.no_grad()
def march_visible(
    rays: Rays,
    occupancy: OccupancyGrid,
    density_pass: DensityPass,
    config: MarchConfig,
    *,
    activation: str,
    seed: int = 0,
    step: int = 0,
    jitter: bool = False,
) -> PackedSamples:
    """Find the live samples of a batch of rays.

    Args:
        rays: origins and unit directions, (R, 3) each, scene frame. Where they have radii, the density pass is given
            the samples' footprints, and for positions the middles of these, which lie a little behind the samples'.
        occupancy: where there may be density.
        density_pass: see `DensityPass`; called once a wave, without gradients.
        activation: density activation of the field.
        seed, step, jitter: with `jitter` each ray starts a fraction of a step later, drawn from (seed, step, ray).
    """
    near, far = box_distances(rays, occupancy, config.near)
    count = rays.origins.shape[0]
    device = rays.origins.device
    active = torch.arange(count, dtype=torch.int32, device=device)
    depth = torch.zeros(count, device=device)
    cursor: Tensor | None = None
    buffers: list[tuple[Tensor | None, ...]] = []
    ids, starts, counts = [], [], []
    waves = config.waves if device.type == "cpu" else GPU_WAVES
    base = wave = 0
    dropped = torch.zeros((), dtype=torch.int64, device=device)
    while active.numel():
        marched = march_rays(
            rays.origins,
            rays.directions,
            near,
            far,
            cursor,
            active,
            occupancy.bits,
            occupancy.coarse,
            cascades=occupancy.cascades,
            resolution=occupancy.resolution,
            step_size=config.step_size,
            cone_angle=config.cone_angle,
            samples_per_ray=waves[min(wave, len(waves) - 1)],
            capacity=config.capacity,
            seed=seed,
            step=step,
            jitter=jitter,
        )
        wave += 1
        dropped += marched.dropped
        raw, cache = density_pass(*_points(rays, active, marched))
        live, optical, finished = trim_samples(
            raw,
            marched.deltas,
            marched.offsets,
            depth,
            activation=activation,
            threshold=config.stop,
        )
        buffers.append((marched.positions, marched.distances, marched.deltas, raw, cache))
        ids.append(active)
        starts.append(marched.offsets[:-1] + base)
        counts.append(live)
        base += marched.positions.shape[0]
        going = (~finished.bool()) & torch.isfinite(marched.cursor)
        cursor = torch.full((count,), float("inf"), device=device)
        cursor[active.long()] = marched.cursor
        active, depth = active[going], optical[going]
    if not buffers:
        empty = torch.zeros(0, device=device)
        none = torch.zeros(0, dtype=torch.int32, device=device)
        offsets = torch.zeros(count + 1, dtype=torch.int32, device=device)
        return PackedSamples(empty.reshape(0, 3), empty, empty, empty, None, none, offsets, 0)
    rows, offsets = pack_waves(torch.cat(ids), torch.cat(starts), torch.cat(counts), count)
    positions, distances, deltas, raws = (_joined([b[k] for b in buffers]) for k in range(4))
    cache = None if buffers[0][4] is None else _joined([b[4] for b in buffers])
    return PackedSamples(positions, distances, deltas, raws, cache, rows, offsets, int(dropped))


def _joined(parts: list[Tensor | None]) -> Tensor:
    tensors = [part for part in parts if part is not None]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _points(rays: Rays, active: Tensor, marched: MarchedSamples) -> tuple[Tensor, Tensor | None]:
    """What the density pass is asked: positions, and footprints or None."""
    if rays.radii is None:
        return marched.positions, None
    return cone_gaussians(rays, active.long()[_owners(marched.offsets)], marched.distances, marched.deltas)


def _owners(offsets: Tensor) -> Tensor:
    """(N,) int64 which of the groups that begin at `offsets` each row is in."""
    counts = (offsets[1:] - offsets[:-1]).long()
    return torch.repeat_interleave(torch.arange(counts.shape[0], device=counts.device), counts)
