"""The train step of a hash field on a GPU: one list of launches, which the host starts and never waits for.

March in waves, look at densities, gather what is visible, colours, compositing with loss both ways, networks and table
backwards, Adam: what `render.march.march_visible` and `ops.radiance_step_` do, with all counts left on the device
(`cuda/gpu/radiance.cu`) and every buffer taken once. After the first step the list is a CUDA graph.

Buffers have room for a number of samples; a ray that finds none, or has more samples than the waves reach, is left out
of its step and counted.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import _cuda
from ..ops._mlp_cuda import TensorCoreNetwork
from ..ops.activations import DENSITY_ACTIVATIONS
from ..ops.composite import optical_limit
from ..ops.fused_mlp import shape_numbers
from ..ops.march import march_launches, running_sums
from ..ops.radiance_step import AdamRates, RadianceParameters, RadianceSpec
from ..render.march import GPU_WAVES, MarchConfig
from ..render.occupancy import OccupancyGrid

_STATE = ("rays", "step", "rate", "live", "whole", "dropped", "failed", "loss", "squared", "skipped")
"""`StepState` of `cuda/gpu/radiance.cu`: members of 8 bytes."""
_BLOCKS = 2048
"""Most blocks of launches that loop: more than a GPU holds at once, few enough that idle ones cost nothing."""
_LAG = 2
"""Steps that the device may be behind the host before the host waits."""


class ProgramResult(NamedTuple):
    """What a step saw: `results` of `pf_radiance_finish`."""

    loss: float
    """Mean over rays and channels."""
    squared: float
    """Mean squared error of the rays' colours."""
    live: int
    """Samples learned from."""
    marched: int
    """Samples looked at to find them."""
    rays: int
    """Rays learned from."""
    dropped: int
    """Rays left out, since their samples found no room."""
    failed: bool
    """Loss or gradients were not finite, or nothing was visible; nothing was changed."""
    skipped: int
    """Steps so far that failed."""


def serves(table: Tensor, precision: str) -> bool:
    """True where the program can train: bf16 on tensor cores (compute capability 8.0)."""
    return precision == "bf16" and _cuda.usable(table) and _cuda.architecture_of(table) >= 80


class RadianceProgram:
    """Final. See the module. Takes the places of its tensors at the start: they must be changed in place only."""

    def __init__(
        self,
        spec: RadianceSpec,
        parameters: RadianceParameters,
        first_moments: RadianceParameters,
        second_moments: RadianceParameters,
        table_rounded: Tensor,
        occupancy: OccupancyGrid,
        march: MarchConfig,
        rates: AdamRates,
        *,
        extent: float,
        samples: int,
        max_rays: int,
        seed: int = 0,
        waves: tuple[int, ...] = GPU_WAVES,
    ) -> None:
        """Args:
        parameters, first_moments, second_moments: contiguous float32 on one CUDA device; steps change them.
        table_rounded: (entries, C) float16 copy of the table, which stays one.
        occupancy: consulted as it is at each step.
        rates: for a rate of 1, see `run`.
        extent: half side of the cube that the table covers, scene units.
        samples: live samples that steps aim at; there is room for twice as many, and to look at four times as many
            in each wave.
        max_rays: most rays of a step.
        waves: most samples of a ray in each wave; a ray that has more is left out.

        Deterministic, at the cost of integer sums of the table's gradient, where
        `torch.use_deterministic_algorithms` asks for it now.
        """
        self.spec, self.march, self.occupancy, self.rates = spec, march, occupancy, rates
        self.max_rays, self.extent, self.seed = max_rays, extent, seed
        self._tensors = [*parameters, *first_moments, *second_moments]
        like = parameters.table
        self._device = like.device
        self._rays = _RayBuffers(like, max_rays)
        self._state = like.new_zeros(len(_STATE), dtype=torch.int64)
        self._results = like.new_zeros(len(ProgramResult._fields), dtype=torch.float64)
        self._marched = _MarchedBuffers(like, spec, waves, 4 * samples, max_rays)
        self._live = _LiveBuffers(like, spec, 2 * samples, max_rays)
        density = TensorCoreNetwork(parameters.density, spec.density, shape_numbers(spec.density))
        color = TensorCoreNetwork(parameters.color, spec.color, shape_numbers(spec.color))
        gradients = RadianceParameters(*(torch.zeros_like(p) for p in parameters))
        self._levels = (spec.grid.level_tensor().to(self._device), spec.grid.levels, spec.grid.channels)
        self._launches = [
            density.pack(),
            color.pack(),
            *self._marching(density, table_rounded),
            *self._gathering(),
            *self._learning(density, color, gradients),
            *self._table_gradient(gradients.table),
            *self._update(parameters, gradients, first_moments, second_moments, table_rounded),
        ]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._pending: deque[_Reading] = deque()
        self._last: _Reading | None = None

    def run(
        self, origins: Tensor, directions: Tensor, targets: Tensor, backgrounds: Tensor, *, step: int, rate: float
    ) -> ProgramResult:
        """Do a step.

        Args:
            origins, directions, targets, backgrounds: (R, 3) float32, 1 <= R <= max_rays; directions of unit length,
                scene frame.
            step: its number, from 0: of the jitter along the rays and, from 1, of Adam's bias correction.
            rate: factor of the learning rates.

        Returns:
            What the step before the last one saw, so that the host need not wait (of the first steps: the first).
        """
        rays = origins.shape[0]
        assert 1 <= rays <= self.max_rays, rays
        self._rays.load(origins, directions, targets, backgrounds)
        buffers, reach = self._rays, float(2 ** (self.occupancy.cascades - 1))
        _cuda.call(
            "pf_radiance_begin",
            _cuda.one_thread_each(rays),
            buffers.origins,
            buffers.directions,
            rays,
            step,
            float(rate),
            self.march.near,
            reach,
            self._state,
            self._marched.totals,
            len(self._marched.waves),
            buffers.near,
            buffers.far,
            buffers.cursor,
            buffers.optical,
        )
        if self._graph is not None:
            self._graph.replay()
        else:
            self._launch_all()
            if self._device.type == "cuda":  # all kernels are loaded now: what follows only records
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._launch_all()
                self._graph = graph
        torch.autograd.graph.increment_version(self._tensors)
        self._pending.append(_Reading(self._results))
        if self._last is None or len(self._pending) > _LAG:
            self._last = self._pending.popleft()
        return self._last.result()

    def _launch_all(self) -> None:
        for launch in self._launches:
            launch.run()

    def _held(self, name: str) -> _cuda.Held:
        return _cuda.Held(self._state, _STATE.index(name))

    # -- the launches -----------------------------------------------------------------------------------------------

    def _a_loop_over(self, name: str, count: int, *arguments: _cuda.Argument) -> _cuda.Launch:
        """A thread for each of `count` elements, fewer where they are many: the kernel loops."""
        return _cuda.Launch(name, _cuda.one_thread_each(count, _BLOCKS), arguments)

    def _a_thread_a_ray(self, name: str, *arguments: _cuda.Argument) -> _cuda.Launch:
        return _cuda.Launch(name, _cuda.one_thread_each(self.max_rays), arguments)

    def _a_warp_a_ray(self, name: str, *arguments: _cuda.Argument) -> _cuda.Launch:
        return self._a_loop_over(name, _cuda.warp_each(self.max_rays), *arguments)

    def _marching(self, density: TensorCoreNetwork, table: Tensor) -> list[_cuda.Launch]:
        """Waves of samples, their encodings and densities, and how many of them the rays need."""
        launches, rays, marched, march, grid = [], self._rays, self._marched, self.march, self.occupancy
        count, sums = self._held("rays"), running_sums(self.max_rays, self._state)
        rule = (DENSITY_ACTIVATIONS[self.spec.density_activation], optical_limit(march.stop))
        for k, samples_per_ray in enumerate(marched.waves):
            positions, deltas, encoded, head = marched.wave(k)
            room, found = positions.shape[0], _cuda.Held(marched.totals, k)
            values = (
                *(rays.origins, rays.directions, rays.near, rays.far, rays.cursor, None, grid.bits, grid.coarse),
                *(self.max_rays, count, grid.cascades, grid.resolution, march.step_size, march.cone_angle),
                *(samples_per_ray, room, self.seed, self._held("step"), True),
            )
            outputs = (positions, None, deltas, marched.offsets[k], rays.next, None, marched.totals[k])
            launches += march_launches(values, self.max_rays, sums, outputs, 0.5 / self.extent, 0.5)
            encode = (positions, found, table, *self._levels, encoded)
            over = room * self.spec.grid.levels
            launches.append(self._a_loop_over("pf_hash_encode_forward_f16", over, *encode))
            launches.append(density.forward(encoded, head, found))
            trim = (head, head.shape[1], deltas, marched.offsets[k], count, found, *rule)
            trim = (*trim, rays.next, marched.live[k], rays.optical, rays.cursor)
            launches.append(self._a_warp_a_ray("pf_radiance_trim", *trim))
        return launches

    def _gathering(self) -> list[_cuda.Launch]:
        """The live samples of whole rays, ray after ray."""
        rays, marched, live, spec = self._rays, self._marched, self._live, self.spec
        count, sums = self._held("rays"), running_sums(self.max_rays, self._state)
        pieces = (len(marched.waves), self.max_rays, marched.first, marched.offsets, marched.live, count)
        room = live.positions.shape[0]
        sources = (marched.positions, marched.deltas, marched.encoded, marched.head)
        targets = (live.positions, live.deltas, live.encoded, live.raw, live.seen)
        sizes = (spec.sh_bands, spec.density.outputs - 1, spec.grid.features)
        return [
            self._a_thread_a_ray("pf_radiance_count", *pieces, rays.cursor, *sums),
            self._a_thread_a_ray("pf_radiance_place", *sums, rays.cursor, room, live.offsets, live.whole, self._state),
            self._a_warp_a_ray(
                "pf_radiance_gather", *pieces, live.offsets, rays.directions, *sizes, *sources, *targets
            ),
        ]

    def _learning(
        self, density: TensorCoreNetwork, color: TensorCoreNetwork, gradients: RadianceParameters
    ) -> list[_cuda.Launch]:
        """Colours, the loss, and gradients of the networks and of the encodings."""
        rays, live, spec, count = self._rays, self._live, self.spec, self._held("live")
        rule = (DENSITY_ACTIVATIONS[spec.density_activation], optical_limit(spec.stop))
        huber = spec.huber if spec.loss == "huber" else 0.0
        samples = (live.raw, live.rgb, live.deltas, live.offsets)
        scratch = (live.pixels, live.alpha, live.slopes)
        head = (live.raw_gradient, live.seen_gradient, spec.density.outputs - 1, live.seen.shape[1], count)
        return [
            color.forward(live.seen, live.rgb, count),
            self._a_warp_a_ray(
                "pf_radiance_composite",
                *(*samples, rays.backgrounds, rays.targets, live.whole, *rule, huber, self._state),
                *(*scratch, live.raw_gradient, live.rgb_gradient),
            ),
            *color.backward(live.seen, live.rgb_gradient, live.seen_gradient, gradients.color, count),
            self._a_loop_over("pf_radiance_head", live.head_gradient.numel(), *head, live.head_gradient),
            *density.backward(live.encoded, live.head_gradient, live.encoded_gradient, gradients.density, count),
        ]

    def _table_gradient(self, gradient: Tensor) -> list[_cuda.Launch]:
        """Added to `gradient`, which holds zeros."""
        live, count, width = self._live, self._held("live"), self.spec.grid.features
        room = live.positions.shape[0]
        given = (live.positions, count, *self._levels, live.encoded_gradient, None)
        over = room * self.spec.grid.levels
        if not torch.are_deterministic_algorithms_enabled():
            return [self._a_loop_over("pf_hash_scatter_f32", over, *given, gradient)]
        sums = torch.zeros_like(gradient, dtype=torch.int64)
        largest, scale = gradient.new_zeros(1), gradient.new_zeros(1, dtype=torch.float64)
        values = (live.encoded_gradient, count, width)
        return [
            self._a_loop_over("pf_radiance_largest", room * width, *values, largest),
            _cuda.Launch("pf_radiance_scale", _cuda.Grid(1), (largest, room, scale, self._state)),
            self._a_loop_over("pf_hash_scatter_fixed_f32", over, *given, sums, scale),
            self._a_loop_over("pf_radiance_unscale", sums.numel(), sums, sums.numel(), scale, gradient),
        ]

    def _update(
        self,
        parameters: RadianceParameters,
        gradients: RadianceParameters,
        first_moments: RadianceParameters,
        second_moments: RadianceParameters,
        table_rounded: Tensor,
    ) -> list[_cuda.Launch]:
        """Adam where all gradients are finite, and the results."""
        rates, checks, updates = self.rates, [], []
        for k, gradient in enumerate(gradients):
            size = gradient.numel()
            checks.append(self._a_loop_over("pf_radiance_check", size, gradient, size, self._state))
            is_table = k == 0
            rows, channels = gradient.shape if is_table else (size, 1)
            tensors = (parameters[k].detach(), gradient, first_moments[k], second_moments[k])
            lr = rates.table_lr if is_table else rates.network_lr
            numbers = (rows, channels, lr, rates.beta1, rates.beta2, rates.epsilon, is_table, self._state)
            rounded = table_rounded if is_table else None
            updates.append(self._a_loop_over("pf_radiance_adam", rows, *tensors, rounded, *numbers))
        results = (self._state, self._marched.totals, len(self._marched.waves), self._results)
        return [*checks, *updates, _cuda.Launch("pf_radiance_finish", _cuda.Grid(1), results)]


class _RayBuffers:
    """What a step is given, and where its rays stand."""

    def __init__(self, like: Tensor, rays: int) -> None:
        self.origins, self.directions, self.targets, self.backgrounds = (like.new_zeros(rays, 3) for _ in range(4))
        self.near, self.far, self.optical = (like.new_zeros(rays) for _ in range(3))
        self.cursor, self.next = like.new_zeros(rays), like.new_zeros(rays)

    def load(self, *batch: Tensor) -> None:
        """Take origins, directions, targets and backgrounds, (R, 3) each."""
        for buffer, given in zip((self.origins, self.directions, self.targets, self.backgrounds), batch, strict=True):
            buffer[: given.shape[0]].copy_(given.detach())


class _MarchedBuffers:
    """Samples of all waves, and how many of them each ray needs."""

    def __init__(self, like: Tensor, spec: RadianceSpec, waves: tuple[int, ...], most: int, rays: int) -> None:
        rooms = [min(rays * wave, most) for wave in waves]
        room = sum(rooms)
        self.waves, self._rooms = waves, rooms
        self.positions, self.deltas = like.new_empty(room, 3), like.new_empty(room)
        self.encoded, self.head = like.new_empty(room, spec.grid.features), like.new_empty(room, spec.density.outputs)
        self._first = [sum(rooms[:k]) for k in range(len(waves))]
        self.first = torch.tensor(self._first, device=like.device)
        self.offsets = like.new_zeros(len(waves), rays + 1, dtype=torch.int32)
        self.live = like.new_zeros(len(waves), rays, dtype=torch.int32)
        self.totals = like.new_zeros(len(waves), dtype=torch.int64)

    def wave(self, k: int) -> tuple[Tensor, ...]:
        """Positions, deltas, encodings and heads of wave k."""
        rows = slice(self._first[k], self._first[k] + self._rooms[k])
        return self.positions[rows], self.deltas[rows], self.encoded[rows], self.head[rows]


class _LiveBuffers:
    """Live samples, packed, what is computed of them, and gradients."""

    def __init__(self, like: Tensor, spec: RadianceSpec, room: int, rays: int) -> None:
        def of_samples(width: int) -> Tensor:
            return like.new_empty(room, width)

        self.positions, self.encoded = of_samples(3), of_samples(spec.grid.features)
        self.seen = of_samples(spec.color.inputs)
        self.raw, self.deltas, self.rgb = like.new_empty(room), like.new_empty(room), of_samples(3)
        self.raw_gradient, self.rgb_gradient = torch.empty_like(self.raw), torch.empty_like(self.rgb)
        self.seen_gradient, self.encoded_gradient = torch.empty_like(self.seen), torch.empty_like(self.encoded)
        self.head_gradient = of_samples(spec.density.outputs)
        self.offsets = like.new_zeros(rays + 1, dtype=torch.int32)
        self.whole = like.new_zeros(rays, dtype=torch.uint8)
        self.pixels, self.alpha, self.slopes = like.new_empty(rays, 3), like.new_empty(rays), like.new_empty(rays, 3)


class _Reading:
    """Results of a step on their way to the host."""

    def __init__(self, results: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if results.device.type == "cpu":
            self._host = results.clone()
            return
        self._host = torch.empty(results.shape, dtype=results.dtype, device="cpu", pin_memory=True)
        self._host.copy_(results, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def result(self) -> ProgramResult:
        """Waits until they are there."""
        if self._event is not None:
            self._event.synchronize()
        loss, squared, live, marched, rays, dropped, failed, skipped = self._host.tolist()
        return ProgramResult(
            loss, squared, int(live), int(marched), int(rays), int(dropped), bool(failed), int(skipped)
        )
