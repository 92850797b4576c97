"""How large may the field of a conversion be, when its file may have only so many bytes or its pictures must be quick?

Nothing is estimated that can be measured. A candidate is built as large as it will become and saved as it will be, and
the length of that file is its size. For its speed a picture is rendered: the teacher says where light is stopped, so
that rays are marched and samples kept as they will be by a student that looks like it, and the candidate does the work
at them. Untrained it would be haze, in which every ray takes all of its samples.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..fields.base import Geometry, RadianceField
from ..fields.convert import SHORTCUTS, Teacher
from ..fields.convert.teacher import NOTHING
from ..fields.errors import ConfigError, FormatError
from ..fields.geometry import Cameras
from ..fields.model import Model
from ..fields.radiance import FIELDS, GridField
from ..fields.render import OccupancyGrid, render
from .presets import Preset
from .presets.capacity import (
    LADDERS,
    LEAST_RESOLUTION,
    differing,
    fully_grown,
    held_box,
    resolution_within,
    rungs,
    with_settings,
)

PIXELS = {"cpu": 1 << 16, "cuda": 1 << 20}
"""Most pixels of the picture that is timed, which is the camera's own or that in an integer part of its size. A GPU is
only filled by whole ones. On one thread, lego, a hash field: 2.2 frames a second by 2^14 pixels, 2.9 by 2^16, 3.1 by
all of 400x400, where the model itself made 2.7 and 2.9."""
REPEATS = 3
"""Times that it is rendered; the quickest counts, since whatever else runs makes it slower."""
MOST_SECONDS = 1.0
"""Of these; what takes longer is timed once."""
MOST_STEPS = 10**12
"""More than any conversion has: the number is written in the file's header."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a file and its pictures must be."""

    most_bytes: int | None = None
    """Of the model file."""
    least_fps: float | None = None
    """Pictures a second."""


class Capacity(NamedTuple):
    """What was chosen."""

    settings: dict[str, Any]
    """What differs from the preset; for `presets.capacity.with_settings`."""
    most_bytes: int
    """Of the model file; it may have a few less, for how many steps were made is written in it."""
    fps: float | None
    """Pictures a second; None where none was wished for."""
    picture: tuple[int, int] | None
    """Width and height of these, pixels."""

    @staticmethod
    def from_dict(values: dict[str, Any], preset: Preset, path: Path) -> Capacity:
        """Of `_asdict`, as the JSON of the file at `path` gives it back, for such a preset.

        Raises:
            FormatError: it does not.
        """
        try:
            fps, picture = values["fps"], values["picture"]
            size = None if picture is None else (int(picture[0]), int(picture[1]))
            capacity = Capacity(dict(values["settings"]), int(values["most_bytes"]), fps, size)
            with_settings(preset, capacity.settings)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise FormatError(f"{path}: header is not a checkpoint's: {error}") from error
        return capacity

    def text(self, kind: str) -> str:
        """One line for the user."""
        named = [name for name in LADDERS[kind][0] if name in self.settings]
        if "resolution" in self.settings:
            named.append("resolution")
        settings = ", ".join(f"{_NAMES.get(name, name)} {self.settings[name]}" for name in named)
        text = f"{kind} with {settings or 'its usual settings'}: at most {shown_bytes(self.most_bytes)}"
        return text if self.picture is None or self.fps is None else f"{text}, about {_pace(self.fps, self.picture)}"


_NAMES = {"resolution": "occupancy cells"}


class Candidates:
    """The fields that a kind can be made of for one teacher, and what each takes."""

    def __init__(
        self,
        kind: str,
        preset: Preset,
        teacher: Teacher,
        cameras: Cameras,
        as_model: Callable[[RadianceField, OccupancyGrid, Preset, int], Model],
        *,
        seed: int,
    ) -> None:
        """Args:
        preset: the largest; as the student's would be without any wish.
        cameras: from where the scene was seen, scene frame.
        as_model: what is saved of a field, its grid and preset after so many steps.
        """
        self.kind, self.preset, self.teacher, self.as_model, self.seed = kind, preset, teacher, as_model, seed
        self.device = teacher.model.occupancy.bits.device
        self.cameras = cameras.to(self.device)
        self.box = teacher.model.occupancy.occupied_box().cpu().tolist()

    def field(self, preset: Preset) -> RadianceField:
        """An untrained field, as large as it will become."""
        preset = fully_grown(held_box(preset, self.box))
        field = FIELDS[self.kind][0](preset.field, seed=self.seed).to(self.device)
        if isinstance(field, GridField):  # how its lattice lies the teacher says, before anything is learned
            SHORTCUTS[GridField](field, self.teacher, self.cameras.world_from_camera[:1, :, 2])
        return field

    def file_bytes(self, preset: Preset) -> int:
        """Length of the file that the field will be saved in, at most."""
        occupancy = OccupancyGrid(cascades=preset.cascades, resolution=preset.resolution)
        model = self.as_model(self.field(preset), occupancy, preset, MOST_STEPS)
        with tempfile.TemporaryDirectory(prefix="polyfield-") as folder:
            path = Path(folder) / "model.safetensors"
            model.save(path)
            return path.stat().st_size

    def within(self, limit: int) -> Iterator[list[tuple[Preset, int]]]:
        """Those whose file has at most `limit` bytes, largest first, with its length: at first with an occupancy grid
        that takes no more than its share, then with finer ones, which leave less to the field but spare it samples.

        Raises:
            ConfigError: there is none; the text says the least limit.
        """
        sized = self._sized(limit, resolution_within(self.preset, limit))
        if all(size > limit for _, size in sized):
            sized = self._sized(limit, LEAST_RESOLUTION)
        if all(size > limit for _, size in sized):
            raise ConfigError(
                f"a {self.kind} model of this scene takes at least {min(size for _, size in sized)} bytes; got a size "
                f"limit of {limit}: raise --size-limit or choose another kind"
            )
        resolution = sized[0][0].resolution
        while found := [(preset, size) for preset, size in reversed(sized) if size <= limit]:
            yield found
            if resolution >= self.preset.resolution:
                break
            resolution *= 2
            sized = self._sized(limit, resolution)

    def _sized(self, limit: int, resolution: int) -> list[tuple[Preset, int]]:
        """From the smallest up, so that nothing large is built for nothing, and somewhat beyond the limit: a lattice
        may be smaller than one of a little larger pitch."""
        sized: list[tuple[Preset, int]] = []
        start = with_settings(self.preset, {"resolution": min(resolution, self.preset.resolution)})
        for preset in reversed(rungs(self.kind, start)):
            sized.append((preset, self.file_bytes(preset)))
            if sized[-1][1] > 2 * limit:
                break
        return sized


class Pace:
    """How many pictures a second fields make, with the samples that the teacher needs."""

    def __init__(self, teacher: Teacher, cameras: Cameras, preset: Preset) -> None:
        """Args:
        cameras: from where the scene was seen; the one in the middle is rendered from.
        preset: how students are marched; their occupancy is what the teacher's will have become.
        """
        taught = teacher.model.occupancy
        flags = taught.flags_at(preset.resolution)
        occupancy = OccupancyGrid(cascades=preset.cascades, resolution=preset.resolution).to(flags.device)
        occupancy.take_flags(flags)
        recorder = _Recorder(teacher)
        occupancy.look_again(  # as at the end of a conversion: a teacher's grid may hold cells that have emptied since
            recorder.density, activation=recorder.density_activation, step=0, seed=0, step_size=preset.march.step_size
        )
        camera = cameras[len(cameras) // 2 : len(cameras) // 2 + 1]
        self.size = int(camera.width[0]), int(camera.height[0])
        factor = math.ceil(math.sqrt(math.prod(self.size) / PIXELS[flags.device.type]))
        self.camera = camera.downscaled(min(factor, *self.size)) if factor > 1 else camera
        self.share = int(self.camera.width[0]) * int(self.camera.height[0]) / math.prod(self.size)
        self.model = replace(teacher.model, occupancy=occupancy, march=preset.march)
        render(replace(self.model, representation=recorder), self.camera)
        self.recorded = recorder.recorded

    def fps(self, field: RadianceField) -> float:
        """Pictures a second."""
        spent: list[float] = []
        if self.model.occupancy.bits.device.type == "cuda":  # kernels are compiled when they are first used
            render(replace(self.model, representation=self._replayed(field)), self.camera)
        while len(spent) < REPEATS and sum(spent) < MOST_SECONDS:
            replayed = self._replayed(field)
            begin = self._now()
            render(replace(self.model, representation=replayed), self.camera)
            spent.append(self._now() - begin)
        return self.share / min(spent)

    def _replayed(self, field: RadianceField) -> RadianceField:
        return _Replayed(field, self.model.representation.density_activation, self.recorded)

    def _now(self) -> float:
        if self.model.occupancy.bits.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def choose_capacity(candidates: Candidates, wish: Wish) -> Capacity:
    """The largest field of a ladder that fits in so many bytes and makes so many pictures a second.

    Raises:
        ConfigError: there is none; the text says what is possible.
    """
    kind, limit, target = candidates.kind, wish.most_bytes, wish.least_fps
    every = [[(rung, None) for rung in rungs(kind, candidates.preset)]] if limit is None else candidates.within(limit)
    fastest, picture = 0.0, (0, 0)
    for found in every:
        if target is None:
            return _capacity(candidates, *found[0], None, None)
        pace = Pace(candidates.teacher, candidates.cameras, found[0][0])
        quickest, picture = pace.fps(candidates.field(found[-1][0])), pace.size
        fastest = max(fastest, quickest)
        if quickest < target:
            continue
        for chosen, size in found[:-1]:
            fps = pace.fps(candidates.field(chosen))
            if fps >= target:
                return _capacity(candidates, chosen, size, fps, picture)
        return _capacity(candidates, *found[-1], quickest, picture)
    within = "" if limit is None else f" within {shown_bytes(limit)}"
    raise ConfigError(
        f"the fastest {kind}{within} makes about {_pace(fastest, picture)} {_device(candidates.device)}; got "
        f"--fps-target {target:g}: lower it, or choose another kind or device"
    )


def _capacity(
    candidates: Candidates, chosen: Preset, size: int | None, fps: float | None, picture: tuple[int, int] | None
) -> Capacity:
    size = candidates.file_bytes(chosen) if size is None else size
    held = held_box(chosen, candidates.box)
    return Capacity(differing(candidates.preset, held), size, fps, picture)


UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def bytes_of(text: str) -> int:
    """How many bytes a text such as 1MB, 600KB, 0.6MiB or 500000 means; parts of one are dropped.

    Raises:
        ConfigError: it means none.
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]*)\s*", text, re.IGNORECASE)
    if found is None or found[2].upper() not in UNITS:
        raise ConfigError(f"--size-limit must be a size such as 1MB, 600KB, 0.6MiB or 500000 (bytes); got {text!r:.40}")
    return int(Fraction(found[1]) * UNITS[found[2].upper()])


def shown_bytes(count: int) -> str:
    """For the user, rounded up: MB of 10^6 bytes or KB of 1000."""
    return f"{math.ceil(count / 1e4) / 100:.2f} MB" if count >= 10**5 else f"{math.ceil(count / 100) / 10:.1f} KB"


def _pace(fps: float, picture: tuple[int, int]) -> str:
    return f"{fps:.3g} frames a second of {picture[0]}x{picture[1]} pixels"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"on {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"on the CPU, {threads} thread{'s' if threads > 1 else ''}"


class _Recorder(RadianceField):
    """The teacher, written down: what it answered, call by call."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.field, self.occupancy = teacher.field, teacher.model.occupancy
        self.density_activation = teacher.field.density_activation
        self.recorded: list[Tensor] = []

    def density(self, x: Tensor) -> Tensor:
        """(N,) raw, next to none where the teacher is empty."""
        return self._only_occupied(x, self.field.geometry(x))

    def geometry(self, x: Tensor, *, time: Tensor | None = None, footprint: Tensor | None = None) -> Geometry:
        said = self.field.geometry(x)
        self.recorded.append(self._only_occupied(x, said))
        return Geometry(self.recorded[-1], said.features)

    def _only_occupied(self, x: Tensor, said: Geometry) -> Tensor:
        return torch.where(self.occupancy.holds(x), said.density_raw.float(), NOTHING)

    def radiance(self, features: Tensor, directions: Tensor, **given: Any) -> Tensor:
        return self.field.radiance(features, directions, **given)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return []


class _Replayed(RadianceField):
    """A field that does all its work, but whose density is what was written down: marched like the teacher."""

    def __init__(self, field: RadianceField, activation: str, recorded: list[Tensor]) -> None:
        super().__init__()
        self.field, self.density_activation = field, activation
        self._next = iter(recorded)

    def geometry(self, x: Tensor, *, time: Tensor | None = None, footprint: Tensor | None = None) -> Geometry:
        return Geometry(next(self._next), self.field.geometry(x).features)

    def radiance(self, features: Tensor, directions: Tensor, **given: Any) -> Tensor:
        return self.field.radiance(features, directions, **given)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return []
