"""Which points of a ray lie in occupied space, which of them does it still need, and how do the pieces join?

Marching walks a lattice of distances through nested occupancy grids (instant-ngp, Mueller et al. 2022, appendix E.1).
It may go in waves: a few samples for every ray, a look at their density (`trim_samples`), the next few for the rays
that still see something, and at the end all live samples grouped by ray (`pack_waves`).

Lattice: t_0 = near + u dt(near) and t_(i+1) = t_i + dt(t_i), with dt(t) = clamp(t cone_angle, step_size, max_step) and
max_step the diagonal of a cell of the outermost cascade (but at least step_size). With cone_angle 0, t_i = t_0 + i
step_size. u is 1/2, or with jitter uniform in [0, 1) from (seed, step, ray). A lattice point is a sample where
near <= t < far, the position is inside the outermost cascade, and the cell holding it is occupied, in the cascade that
is the coarser of what the position (the smallest that contains it) and the step (cells at least two steps wide) ask
for. Points beyond 2^22 steps are none: float32 cannot tell them apart.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from . import _cpu, _cuda, _library, _native
from ._packed import bad_offsets, check_first, check_offsets, check_samples, padded, stopped
from ._random import JITTER_STREAM, random_uniform
from .activations import DENSITY_ACTIVATIONS, density_code, density_from_raw
from .composite import optical_limit
from .ray_box import intersect_box_reference

_MAX_LATTICE = 4194304.0
_NO_DIRECTION = 1e-6
_NAMES = {code: name for name, code in DENSITY_ACTIVATIONS.items()}


class MarchedSamples(NamedTuple):
    """Samples of A rays, packed."""

    positions: Tensor
    """(N, 3) float32, scene frame."""
    distances: Tensor
    """(N,) float32 t: origin + t direction is the position, the middle of the sample's interval."""
    deltas: Tensor
    """(N,) float32 dt(t), the length of the interval."""
    offsets: Tensor
    """(A + 1,) int32; samples of the a-th marched ray are the rows offsets[a] to offsets[a + 1] - 1."""
    cursor: Tensor
    """(A,) float32: distance of the ray's next sample, +infinity where it has no more."""
    dropped: Tensor
    """() int64: rays left out because their samples did not fit the capacity. Their cursor is their first sample."""


def march_rays(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    cursor: Tensor | None,
    rays: Tensor | None,
    bits: Tensor,
    coarse: Tensor,
    *,
    cascades: int,
    resolution: int,
    step_size: float,
    cone_angle: float = 0.0,
    samples_per_ray: int,
    capacity: int,
    seed: int = 0,
    step: int = 0,
    jitter: bool = False,
) -> MarchedSamples:
    """Find samples of rays in occupied cells; see the module for the rule.

    Args:
        origins, directions: (R, 3) float32, scene frame; directions of unit length.
        near, far: (R,) float32 >= 0, where rays begin and end, scene units. A ray with near >= far, near < 0, or any
            NaN or infinity in origin or direction, or with no direction, has no samples. far may be infinite.
        cursor: (R,) float32 distances at which the rays go on, as an earlier call returned them, or None to begin.
            Lattice and jitter remain those of `near`: waves concatenated equal one long march, bit for bit.
        rays: (A,) int32 rays to march, or None for all (A = R). Jitter depends on these numbers, not on their order.
        bits: (cascades, resolution^3 / 8) uint8 and
        coarse: (cascades, (resolution / 8)^3) uint8, as `occupancy.pack_bitfield` makes them.
        cascades: K, 1 to 16. resolution: cells G along an axis, a multiple of 8.
        step_size: smallest step, scene units. cone_angle: growth of the step with distance, 0 for constant steps.
        samples_per_ray: most samples of one ray in this call, at least 1.
        capacity: most samples of all rays, at least `samples_per_ray` (so that every call gets on). Rays keep their
            samples in order up to the first that does not fit; from there on rays get none and are counted in
            `dropped`.
        seed, step, jitter: see the module.

    Returns:
        See `MarchedSamples`. On CUDA the host waits for N.

    No gradients: a position is differentiable as origin + t direction, which the caller may compute. Deterministic for
    any number of threads.

    Raises:
        ShapeError: a shape or dtype is not as above, or a ray number is not in [0, R) (on CUDA it has no samples).
        ConfigError: a setting is not as above.
    """
    _check_march(origins, directions, near, far, cursor, rays)
    check_grid(cascades, resolution, bits, coarse)
    if not (step_size > 0 and 0 <= cone_angle < float("inf")):
        raise ConfigError(
            f"step_size must be positive (scene units) and cone_angle >= 0; got {step_size} and {cone_angle}"
        )
    if not 1 <= samples_per_ray <= capacity < 2**31:
        text = "1 <= samples_per_ray <= capacity < 2^31 must hold"
        raise ConfigError(f"{text}; got samples_per_ray {samples_per_ray} and capacity {capacity}")
    tensors = [None if t is None else t.detach() for t in (origins, directions, near, far, cursor, rays, bits, coarse)]
    sizes = (cascades, resolution, step_size, cone_angle, samples_per_ray, capacity, seed, step, jitter)
    return MarchedSamples(*_march_rays(*tensors, *sizes))


def _check_march(
    origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, cursor: Tensor | None, rays: Tensor | None
) -> None:
    if origins.dim() != 2 or origins.shape[1] != 3:
        raise ShapeError(f"origins must be (R, 3) float32; got {tuple(origins.shape)}")
    count = origins.shape[0]
    expected = [("origins", origins, (count, 3)), ("directions", directions, (count, 3))]
    expected += [("near", near, (count,)), ("far", far, (count,))]
    if cursor is not None:
        expected.append(("cursor", cursor, (count,)))
    for name, tensor, shape in expected:
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise ShapeError(f"{name} must be {shape} float32; got {tuple(tensor.shape)} {tensor.dtype}")
    if rays is not None and (rays.dim() != 1 or rays.dtype != torch.int32):
        raise ShapeError(f"rays must be (A,) int32 ray numbers or None; got {tuple(rays.shape)} {rays.dtype}")


def check_grid(cascades: int, resolution: int, bits: Tensor, coarse: Tensor) -> None:
    """Do the bits and the coarse mip belong to a grid of this size?

    Raises:
        ConfigError: cascades not 1 to 16, or resolution not a multiple of 8.
        ShapeError: bits or coarse are not uint8 of the shapes `occupancy.pack_bitfield` makes.
    """
    if not 1 <= cascades <= 16 or resolution < 8 or resolution % 8 or cascades * resolution**3 >= 2**31:
        text = "cascades must be 1 to 16, resolution a positive multiple of 8 and all cells fewer than 2^31"
        raise ConfigError(f"{text}; got {cascades} and {resolution}")
    for name, tensor, size in (("bits", bits, resolution**3 // 8), ("coarse", coarse, (resolution // 8) ** 3)):
        if tuple(tensor.shape) != (cascades, size) or tensor.dtype != torch.uint8:
            text = f"{name} must be {(cascades, size)} uint8 for {cascades} cascades of {resolution}^3 cells"
            raise ShapeError(f"{text}; got {tuple(tensor.shape)} {tensor.dtype}")


def _bad_rays(rays: Tensor, count: int) -> ShapeError:
    return ShapeError(f"rays must be in [0, {count}); got {int(rays.min())} ... {int(rays.max())}")


def _march(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    cursor: Tensor | None,
    rays: Tensor | None,
    bits: Tensor,
    coarse: Tensor,
    cascades: int,
    resolution: int,
    step_size: float,
    cone_angle: float,
    samples_per_ray: int,
    capacity: int,
    seed: int,
    step: int,
    jitter: bool,
) -> tuple[Tensor, ...]:
    tensors = (origins, directions, near, far, cursor, rays, bits, coarse)
    settings = (cascades, resolution, step_size, cone_angle, samples_per_ray)
    if not _native.usable(*tensors):
        marched = march_rays_reference(*tensors[:7], *settings, capacity=capacity, seed=seed, step=step, jitter=jitter)
        return tuple(marched)
    count = origins.shape[0]
    active = count if rays is None else rays.shape[0]
    room = min(capacity, active * samples_per_ray)  # pages that no sample touches are never given memory
    positions, distances, deltas = (origins.new_empty(shape) for shape in ((room, 3), (room,), (room,)))
    offsets = origins.new_empty(active + 1, dtype=torch.int32)
    ends, dropped = origins.new_empty(active), origins.new_empty((), dtype=torch.int64)
    outputs = (positions, distances, deltas, offsets, ends, dropped)
    inputs = [None if t is None else t.contiguous() for t in tensors]
    values = (*inputs, count, active, *settings, room, seed, step, jitter)
    if _cuda.usable(origins):
        return _march_on_cuda(values, active, outputs)
    total = _cpu.call("pf_march_rays_f32", *values, *outputs)
    if total < 0:
        assert rays is not None
        raise _bad_rays(rays, count)
    return positions[:total], distances[:total], deltas[:total], offsets, ends, dropped


def _march_on_cuda(values: tuple[Any, ...], active: int, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    positions, distances, deltas, offsets, ends, dropped = outputs
    total = torch.zeros_like(dropped)
    if active == 0:
        return positions, distances, deltas, offsets.zero_(), ends, dropped.zero_()
    sums = running_sums(active, offsets)
    samples = (positions, distances, deltas, offsets, ends, dropped.zero_(), total)
    for launch in march_launches(values, active, sums, samples):
        launch.run()
    count = int(total)
    return positions[:count], distances[:count], deltas[:count], offsets, ends, dropped


def running_sums(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the running sums of `count` elements (`cuda/gpu/scan.h`), on the device of `like`."""
    blocks = _cuda.one_thread_each(count).blocks
    return like.new_empty(count, dtype=torch.int32), like.new_empty(blocks, dtype=torch.int64)


def march_launches(
    values: tuple[Any, ...],
    rays: int,
    sums: tuple[Tensor, Tensor],
    outputs: tuple[Tensor | None, ...],
    scale: float = 1.0,
    shift: float = 0.0,
) -> tuple[_cuda.Launch, _cuda.Launch]:
    """Marching of at most `rays` rays on CUDA.

    Args:
        values: what `PF_MARCH_INPUT` of `cuda/gpu/march.cu` lists.
        outputs: positions, distances or None, deltas, offsets, cursor, dropped or None, total () int64.
        scale, shift: positions are written as scale * position + shift.
    """
    grid = _cuda.one_thread_each(rays)
    count = _cuda.Launch("pf_march_count_f32", grid, (*values, *sums, outputs[4]))
    return count, _cuda.Launch("pf_march_write_f32", grid, (*values, *sums, scale, shift, *outputs))


def _fake_march(origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    rays = rest[1]
    active = origins.shape[0] if rays is None else rays.shape[0]
    total = torch.library.get_ctx().new_dynamic_size()
    samples = [origins.new_empty(shape) for shape in ((total, 3), (total,), (total,))]
    offsets = origins.new_empty(active + 1, dtype=torch.int32)
    return (*samples, offsets, origins.new_empty(active), origins.new_empty((), dtype=torch.int64))


def march_rays_reference(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    cursor: Tensor | None,
    rays: Tensor | None,
    bits: Tensor,
    cascades: int,
    resolution: int,
    step_size: float,
    cone_angle: float,
    samples_per_ray: int,
    *,
    capacity: int,
    seed: int = 0,
    step: int = 0,
    jitter: bool = False,
) -> MarchedSamples:
    """`march_rays` in plain torch: every lattice point is looked up, nothing is skipped. Any device, float32."""
    count, device = origins.shape[0], origins.device
    ids = torch.arange(count, device=device) if rays is None else rays.long()
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= count):
        raise _bad_rays(ids, count)
    lattice = _Lattice(step_size, cone_angle, cascades, resolution)
    o, d, start, end = origins[ids], directions[ids], near[ids], far[ids]
    valid = (start < end) & (start >= 0) & (start < 1e30) & torch.isfinite(o).all(1) & torch.isfinite(d).all(1)
    valid &= d.abs().amax(1) > _NO_DIRECTION
    u = random_uniform(seed, step, ids, JITTER_STREAM) if jitter else torch.full_like(start, 0.5)
    first = torch.where(valid, start + u * lattice.dt(start), 0.0)
    reach = o.new_full((3,), 1.001 * 2 ** (cascades - 1))  # no sample lies outside this box
    enter, leave = intersect_box_reference(o, d, -reach, reach)
    valid &= torch.isfinite(enter)
    end = torch.minimum(end, leave).clamp(max=lattice.longest)
    valid &= enter < end
    end = torch.where(valid, end, 0.0)
    t, index = lattice.begin(first, None if cursor is None else cursor[ids], torch.where(valid, enter, 0.0))
    taken = torch.zeros_like(ids)
    resume = torch.full_like(start, torch.inf)
    found_ray, found_t = [], []
    while bool((going := (t < end) & torch.isinf(resume)).any()):
        occupied = going & occupied_at(o + t[:, None] * d, lattice.dt(t), bits, cascades, resolution)
        full = occupied & (taken == samples_per_ray)
        resume = torch.where(full, t, resume)
        emitted = occupied & ~full
        found_ray.append(emitted.nonzero()[:, 0])
        found_t.append(t[emitted])
        taken += emitted
        t, index = lattice.following(first, t, index)
    return _pack_marched(o, d, lattice, found_ray, found_t, taken, resume, capacity)


class _Lattice:
    """The distances a ray may stop at, float32 as the kernels compute them."""

    def __init__(self, step_size: float, cone_angle: float, cascades: int, resolution: int) -> None:
        self.step = torch.tensor(step_size, dtype=torch.float32).item()
        self.cone = torch.tensor(cone_angle, dtype=torch.float32).item()
        diagonal = torch.tensor(1.7320508, dtype=torch.float32) * 2.0**cascades / resolution
        self.max_step = max(self.step, diagonal.item())
        self.longest = min(1e30, self.step * _MAX_LATTICE)

    def dt(self, t: Tensor) -> Tensor:
        return (t * self.cone).clamp(self.step, self.max_step) if self.cone > 0 else torch.full_like(t, self.step)

    def begin(self, first: Tensor, cursor: Tensor | None, enter: Tensor) -> tuple[Tensor, Tensor]:
        cursor = first if cursor is None else torch.where(cursor > first, cursor, first)
        if self.cone > 0:
            return cursor, torch.zeros_like(first)
        resumed = ((cursor - first) / self.step).round()
        entered = ((enter - first) / self.step * (1 - 1e-6) - 1).floor()  # or somewhat earlier
        index = torch.maximum(resumed, entered).clamp(min=0, max=_MAX_LATTICE)
        return torch.where(torch.isfinite(cursor), first + index * self.step, cursor), index

    def following(self, first: Tensor, t: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        return (t + self.dt(t), index) if self.cone > 0 else (first + (index + 1) * self.step, index + 1)


def occupied_at(positions: Tensor, dt: Tensor, bits: Tensor, cascades: int, resolution: int) -> Tensor:
    """(N,) bool: do points (N, 3), scene frame, with steps dt (N,) lie in occupied cells? False outside the grid."""
    norm = positions.abs().amax(1)
    inside = norm < 2.0 ** (cascades - 1)
    asked = torch.maximum(norm, dt * resolution)
    cascade = torch.zeros_like(asked, dtype=torch.int64)
    for k in range(cascades - 1):
        cascade += ~(asked < 2.0**k)
    scale = 0.5 * resolution / torch.exp2(cascade.float())
    cell = torch.where(inside[:, None], positions * scale[:, None] + 0.5 * resolution, 0.0)
    x, y, z = cell.long().clamp(0, resolution - 1).unbind(1)
    flat = ((cascade * resolution + z) * resolution + y) * resolution + x
    return inside & ((bits.reshape(-1)[flat >> 3].long() >> (flat & 7)) & 1).bool()


def _pack_marched(
    o: Tensor,
    d: Tensor,
    lattice: _Lattice,
    found_ray: list[Tensor],
    found_t: list[Tensor],
    taken: Tensor,
    resume: Tensor,
    capacity: int,
) -> MarchedSamples:
    ray = torch.cat(found_ray) if found_ray else taken.new_zeros(0)
    t = torch.cat(found_t) if found_t else resume.new_zeros(0)
    order = torch.argsort(ray, stable=True)
    ray, t = ray[order], t[order]
    ends = taken.cumsum(0)
    fits = ends <= capacity
    left_out = ~fits & (taken > 0)
    resume = resume.clone()
    resume[left_out] = t[(ends - taken)[left_out]]
    kept = fits[ray]
    ray, t = ray[kept], t[kept]
    offsets = torch.cat([taken.new_zeros(1), torch.where(fits, taken, 0).cumsum(0)]).int()
    return MarchedSamples(o[ray] + t[:, None] * d[ray], t, lattice.dt(t), offsets, resume, left_out.sum())


def trim_samples(
    density_raw: Tensor,
    deltas: Tensor,
    offsets: Tensor,
    optical_depth: Tensor,
    *,
    activation: str,
    threshold: float = 1e-4,
) -> tuple[Tensor, Tensor, Tensor]:
    """How many of its new samples does each ray need before it becomes opaque?

    Args:
        density_raw: (N,) float32 or float64, before `activation`; packed samples of A rays, near to far.
        deltas: (N,) interval lengths, scene units.
        offsets: (A + 1,) int32.
        optical_depth: (A,) what the rays have gathered in earlier waves; zeros at first.
        activation: a key of `activations.DENSITY_ACTIVATIONS`.
        threshold: transmittance at which a ray is opaque; 0 keeps all samples.

    Returns:
        live: (A,) int32 number of leading samples to keep, the one that crosses the threshold included: the same
            samples that `composite` gives weight.
        optical_depth: (A,) carried on to the next wave.
        finished: (A,) bool, whether the ray has become opaque. NaN density never does.

    No gradients.

    Raises:
        ShapeError: a shape or dtype is not as above, or the offsets do not ascend within [0, N].
        ConfigError: `activation` or `threshold` is not as above.
    """
    check_first("density_raw", density_raw)
    check_samples("deltas", deltas, density_raw)
    rays = check_offsets(offsets)
    if tuple(optical_depth.shape) != (rays,) or optical_depth.dtype != density_raw.dtype:
        came = f"{tuple(optical_depth.shape)} {optical_depth.dtype}"
        raise ShapeError(f"optical_depth must be {(rays,)} {density_raw.dtype}, one value a ray; got {came}")
    code, limit = density_code(activation), optical_limit(threshold)
    return _trim_samples(density_raw.detach(), deltas.detach(), offsets, optical_depth.detach(), code, limit)


def trim_samples_reference(
    density_raw: Tensor, deltas: Tensor, offsets: Tensor, optical_depth: Tensor, *, activation: str, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`trim_samples` in plain torch, any device."""
    return _trim_reference(
        density_raw, deltas, offsets, optical_depth, density_code(activation), optical_limit(threshold)
    )


def _trim_reference(
    density_raw: Tensor, deltas: Tensor, offsets: Tensor, optical_depth: Tensor, activation: int, limit: float
) -> tuple[Tensor, Tensor, Tensor]:
    index, mask = padded(offsets, density_raw.shape[0])
    if not index.numel():
        return torch.zeros_like(offsets[1:]), optical_depth.clone(), optical_depth >= limit
    optical = density_from_raw(density_raw, _NAMES[activation]) * deltas
    x = torch.where(mask, optical[index], 0.0)
    sums = torch.cat([optical_depth[:, None], x], 1).cumsum(1)
    live = (mask & ~stopped(sums[:, :-1], limit)).sum(1)
    total = sums.gather(1, live[:, None])[:, 0]
    return live.int(), total, total >= limit


def _trim(
    density_raw: Tensor, deltas: Tensor, offsets: Tensor, optical_depth: Tensor, activation: int, limit: float
) -> tuple[Tensor, Tensor, Tensor]:
    if not _native.usable(density_raw, deltas, offsets, optical_depth):
        return _trim_reference(density_raw, deltas, offsets, optical_depth, activation, limit)
    rays, samples = offsets.shape[0] - 1, density_raw.shape[0]
    inputs = [t.contiguous() for t in (density_raw, deltas, offsets, optical_depth)]
    live, depth = offsets.new_empty(rays), density_raw.new_empty(rays)
    finished = offsets.new_empty(rays, dtype=torch.bool)
    name = f"pf_trim_samples_{_cpu.suffix_of(density_raw)}"
    values = (*inputs, rays, samples, activation, limit, live, depth, finished)
    if _native.call(name, *values, over=_cuda.warp_each(rays)) != 0:
        raise bad_offsets(offsets, samples)
    return live, depth, finished


def pack_waves(ray_ids: Tensor, starts: Tensor, counts: Tensor, rays: int) -> tuple[Tensor, Tensor]:
    """Group pieces of rays, as waves of marching left them in one buffer, by ray.

    Args:
        ray_ids: (M,) int32 ray of each piece, the pieces of one ray in marching order.
        starts: (M,) int32 first row of the piece in the common buffer.
        counts: (M,) int32 rows of the piece, from 0 on.
        rays: R, how many rays there are.

    Returns:
        index: (N,) int32 rows of the buffer, by ray, near to far; N is the sum of the counts.
        offsets: (R + 1,) int32 where each ray's rows begin in `index`.

    No gradients.

    Raises:
        ShapeError: a shape or dtype is not as above, a ray is not in [0, R), a count is negative, or N is 2^31 or more.
    """
    for name, tensor in (("ray_ids", ray_ids), ("starts", starts), ("counts", counts)):
        if tensor.shape != ray_ids.shape or tensor.dim() != 1 or tensor.dtype != torch.int32:
            text = f"{name} must be (M,) int32, one value a piece"
            raise ShapeError(f"{text}; got {tuple(tensor.shape)} {tensor.dtype}, ray_ids {tuple(ray_ids.shape)}")
    if rays < 0:
        raise ShapeError(f"rays must not be negative; got {rays}")
    return _pack_waves(ray_ids, starts, counts, rays)


def pack_waves_reference(ray_ids: Tensor, starts: Tensor, counts: Tensor, rays: int) -> tuple[Tensor, Tensor]:
    """`pack_waves` in plain torch, any device."""
    if ray_ids.numel() and (int(ray_ids.min()) < 0 or int(ray_ids.max()) >= rays or int(counts.min()) < 0):
        raise _bad_pieces(ray_ids, counts, rays)
    total = torch.zeros(rays, dtype=torch.int64, device=ray_ids.device).index_add(0, ray_ids.long(), counts.long())
    offsets = torch.cat([total.new_zeros(1), total.cumsum(0)])
    if int(offsets[-1]) >= 2**31:
        raise _bad_pieces(ray_ids, counts, rays)
    order = torch.argsort(ray_ids, stable=True)
    sizes = counts[order].long()
    within = torch.arange(int(offsets[-1]), device=ray_ids.device) - torch.repeat_interleave(
        sizes.cumsum(0) - sizes, sizes
    )
    return (torch.repeat_interleave(starts[order].long(), sizes) + within).int(), offsets.int()


def _bad_pieces(ray_ids: Tensor, counts: Tensor, rays: int) -> ShapeError:
    text = f"ray_ids must be in [0, {rays}), counts not negative and their sum below 2^31"
    ids = f"{int(ray_ids.min())} ... {int(ray_ids.max())}"
    return ShapeError(f"{text}; got ray_ids {ids}, counts from {int(counts.min())}, sum {int(counts.long().sum())}")


def _pack(ray_ids: Tensor, starts: Tensor, counts: Tensor, rays: int) -> tuple[Tensor, Tensor]:
    if not _native.usable(ray_ids, starts, counts):
        return pack_waves_reference(ray_ids, starts, counts, rays)
    ids, starts, counts = ray_ids.contiguous(), starts.contiguous(), counts.contiguous()
    if _cuda.usable(ids):
        return _pack_on_cuda(ids, starts, counts, rays)
    offsets = ids.new_empty(rays + 1)
    total = _cpu.call("pf_pack_waves_count", ids, counts, ids.shape[0], rays, offsets)
    if total < 0:
        raise _bad_pieces(ray_ids, counts, rays)
    index = ids.new_empty(total)
    _cpu.call("pf_pack_waves_index", ids, starts, counts, ids.shape[0], rays, offsets, index)
    return index, offsets


def _pack_on_cuda(ray_ids: Tensor, starts: Tensor, counts: Tensor, rays: int) -> tuple[Tensor, Tensor]:
    sorted_ids, order = torch.sort(ray_ids, stable=True)
    sizes = counts[order]
    ends = sizes.cumsum(0, dtype=torch.int64)
    total = 0
    if ray_ids.numel():  # one wait for the device tells everything
        total, first, last, least = torch.stack([ends[-1], sorted_ids[0], sorted_ids[-1], sizes.min()]).tolist()
        if first < 0 or last >= rays or least < 0 or total >= 2**31:
            raise _bad_pieces(ray_ids, counts, rays)
    index = ray_ids.new_empty(total)
    edges = torch.searchsorted(sorted_ids, torch.arange(rays + 1, dtype=torch.int32, device=ray_ids.device))
    offsets = torch.cat([ends.new_zeros(1), ends])[edges].int()
    grid = _cuda.one_thread_each(ray_ids.shape[0])
    _cuda.call("pf_pack_waves_index", grid, order, starts, counts, ends, ray_ids.shape[0], index)
    return index, offsets


def _fake_pack(ray_ids: Tensor, starts: Tensor, counts: Tensor, rays: int) -> tuple[Tensor, Tensor]:
    return ray_ids.new_empty(torch.library.get_ctx().new_dynamic_size()), ray_ids.new_empty(rays + 1)


_march_rays = _library.define(
    "march_rays(Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor? cursor, Tensor? rays, Tensor bits, "
    "Tensor coarse, int cascades, int resolution, float step_size, float cone_angle, int samples_per_ray, "
    "int capacity, int seed, int step, bool jitter) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _march,
    _fake_march,
)
_trim_samples = _library.define(
    "trim_samples(Tensor density_raw, Tensor deltas, Tensor offsets, Tensor optical_depth, int activation, "
    "float limit) -> (Tensor, Tensor, Tensor)",
    _trim,
    lambda raw, deltas, offsets, depth, activation, limit: (
        offsets.new_empty(depth.shape),
        raw.new_empty(depth.shape),
        offsets.new_empty(depth.shape, dtype=torch.bool),
    ),
)
_pack_waves = _library.define(
    "pack_waves(Tensor ray_ids, Tensor starts, Tensor counts, SymInt rays) -> (Tensor, Tensor)", _pack, _fake_pack
)
