"""Converting a model: from one kind of field to another, with checkpoints and a log; photos may help, but need not.

This ties the parts together: what the student is made of (`presets`), from where the teacher is looked at, the task
(`fields.convert`), the loop and the hooks that measure and save.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from .. import __version__  # pyright: ignore[reportMissingImports]
from ..fields.base import RadianceField
from ..fields.convert import (
    SHORTCUT_RATES,
    SHORTCUTS,
    ActiveRays,
    DistillTask,
    Level,
    Teacher,
    check_levels,
    finer,
    head_for,
    inherit,
    learn_head,
    orbit_cameras,
)
from ..fields.errors import ConfigError
from ..fields.geometry import Cameras, CaptureKind
from ..fields.model import Model
from ..fields.optim.field_task import psnr_of
from ..fields.optim.loop import Clock, LoopConfig, LoopState, optimise
from ..fields.optim.memory import keep_freed_memory
from ..fields.radiance import FIELDS, GridFieldConfig
from ..fields.render import BACKGROUNDS, OccupancyGrid, render_rays
from .capacity import Candidates, Capacity, Wish, bytes_of, choose_capacity
from .device import Device, pick_device
from .evaluate import FRAME_TOLERANCE, cameras_for, frame_change, frames_apart
from .presets import Preset, Surroundings, with_settings
from .ranges import MOST_SEED, MOST_STEPS, SAMPLES, check_range
from .rays import SceneRays
from .run_state import CHECKPOINT, Progress, Speedometer, StoredState, append_log, load_state, read_state, save_state
from .scene import Scene
from .train import Kind, TrainOptions, preset_for

USUAL_SECONDS = 60.0
MOST_SAMPLES = 1 << 15
"""Points and live samples of a step on a CPU where none are asked for: half of training's, for every one is taught.
Lego at 200x200, hash to tensor, likeness to the teacher after 60 seconds: 36.8 dB by steps of 2^13, 37.2 of 2^14, 37.9
of 2^15; 37.3 of 2^16 at a slower hour."""
RATES = {"mlp": (3.0, 3.0), "cam": (2.0, 6.0)}
"""Kind -> factors of its learning rates, Adam's and Muon's: at points there is no haze to fear. Lego at 200x200,
likeness to the teacher: hash to mlp, 60 seconds, 31.0 dB with 3 (475 steps), 30.8 with 2 (408 steps); hash to cam, 800
steps, 29.7 dB with 2 and 2, 30.4 with 4 and 4, 30.7 with 2 and 6, 30.8 with 2 and 12; mlp to cam, 100 seconds of one
thread, 26.8 dB with 2 and 2, 29.3 with 2 and 6."""
MEASURE_SHARES = (0.35, 0.6, 0.85, 0.92)
"""When the number of steps is planned; one plan more than training's, since rays and photos come late and take longer
than points."""
PROBE_RAYS = 1 << 12
"""Rays on which the student is compared with its teacher while it learns."""
_PROBE = -1  # number of a pool of rays that no step sees
_LEAST_ALPHA = 0.01  # of the most opaque ray of a teacher that shows anything


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What a user decides about a conversion."""

    to: Kind = "hash"
    """Kind of field to make: hash, tensor, planes, rbf, grid, mlp or cam (see 'polyfield train --help')."""
    max_steps: int | None = None
    """Total optimisation steps. Default: by time."""
    max_seconds: float | None = None
    """Converting time, measuring not counted. Default: 60."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the networks' multiplications; auto takes bf16 on processors that have it."""
    device: Device = "auto"
    """Where to convert; auto takes an NVIDIA GPU where it works."""
    seed: int = 0
    """Of initialisation, views and jitter; one seed, one result on a CPU."""
    samples: int | None = None
    """Live samples per step; default by the kind, on a CPU at most 2^15."""
    bits: Literal[8, 32] = 32
    """Of a stored weight, for mlp and cam."""
    size_limit: str | None = None
    """Most that the model file may take: 1MB, 600KB, 0.6MiB or bytes. The largest field that fits is made; its
    measured size is told."""
    fps_target: float | None = None
    """Least pictures a second, from where and as large as the scene was seen, on this device. The largest field that
    is as quick is made; its measured speed is told."""
    active: tuple[Level, ...] = ("points",)
    """Active learning (PVD-AL): look again where the student was wrong, by cameras and by rays, and most at points that
    are seen. No names: none of these."""
    finish: float = 0.2
    """Share of the conversion that learns from the photos, at its end, where there are photos; 0: they only measure, as
    they do where the model was edited."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; one is also written at the end and on Ctrl-C."""
    evaluate_every: int = 200
    """Steps between comparisons with the teacher (not counted as converting time)."""

    def __post_init__(self) -> None:
        if self.to not in get_args(Kind):
            raise ConfigError(f"a model is converted to one of {', '.join(get_args(Kind))}; got {self.to!r}")
        check_levels(self.active)
        check_range("--seed", self.seed, 0, MOST_SEED)
        check_range("--samples", self.samples, *SAMPLES)
        check_range("--checkpoint-every", self.checkpoint_every, 1, MOST_STEPS)
        check_range("--evaluate-every", self.evaluate_every, 1, MOST_STEPS)
        if not 0 <= self.finish < 1:
            raise ConfigError(f"--finish must be in [0, 1), a share of the conversion; got {self.finish:g}")
        if self.size_limit is not None:
            bytes_of(self.size_limit)
        if self.fps_target is not None and not 0 < self.fps_target < math.inf:
            raise ConfigError(f"--fps-target must be a positive number of pictures a second; got {self.fps_target:g}")

    @property
    def wish(self) -> Wish | None:
        """What the size of the field is chosen by; None: it is the usual one."""
        if self.size_limit is None and self.fps_target is None:
            return None
        limit = None if self.size_limit is None else bytes_of(self.size_limit)
        return Wish(most_bytes=limit, least_fps=self.fps_target)

    def loop(self) -> LoopConfig:
        """Settings of the loop; a student does not need the long warm-up of a network that starts from haze."""
        if self.max_steps is not None and self.max_seconds is not None:
            raise ConfigError("give --max-steps or --max-seconds, not both")
        seconds = USUAL_SECONDS if self.max_steps is None and self.max_seconds is None else self.max_seconds
        return LoopConfig(max_steps=self.max_steps, max_seconds=seconds, measure_shares=MEASURE_SHARES)

    def training(self) -> TrainOptions:
        """Options of training that set up a field of this kind."""
        return TrainOptions(
            model=self.to,
            precision=self.precision,
            device=self.device,
            seed=self.seed,
            samples=self.samples,
            bits=self.bits,
        )


class ConvertResult(NamedTuple):
    """What came out."""

    model: Model
    steps: int
    seconds: float
    """From the first step to the model, measuring not counted."""
    psnr_to_teacher: float
    """Of a fixed sample of rays that no step saw, dB."""
    precision: str
    settings: dict[str, Any]
    """Preset and options as JSON values."""
    inherited: list[str]
    """Parts that the student took from the teacher."""
    skipped_steps: int
    """Steps that were not finite and changed nothing."""
    capacity: Capacity | None
    """How large the field was made, where that was to be chosen."""


def convert(
    model: Model,
    to: Kind,
    *,
    scene: Scene | None = None,
    max_seconds: float | None = None,
    max_steps: int | None = None,
    seed: int = 0,
    size_limit: int | str | None = None,
    fps_target: float | None = None,
    finish: float = 0.2,
    run: str | Path | None = None,
) -> Model:
    """Make a field of another kind that looks like `model`. No photos are needed.

    Args:
        model: the teacher; it stays as it is.
        to: kind of the student.
        scene: what the model was trained on: its cameras say from where to look, and the student learns from its
            training photos at the end. Without it, objects are looked at from all around; other captures need it.
        max_seconds, max_steps: one of them; 60 seconds by default.
        seed: one seed and number of steps, one result on a CPU.
        size_limit: most bytes of the model's file, or a text such as "1MB": the largest field that fits is made.
        fps_target: least pictures a second on this device: likewise.
        finish: share of the conversion, [0, 1), that learns from photos, where there is a scene.
        run: folder for the log and checkpoints; None writes nothing.

    Raises:
        ConfigError: contradicting options; a teacher that is empty, not finite or of another scene; no cameras where
            they are needed; no field of this kind is small or quick enough.
    """
    limit = None if size_limit is None else str(size_limit)
    options = ConvertOptions(
        to=to,
        max_seconds=max_seconds,
        max_steps=max_steps,
        seed=seed,
        size_limit=limit,
        fps_target=fps_target,
        finish=finish,
    )
    if scene is None:
        return convert_model(model, options, run=run).model
    cameras, photos = scene_cameras(model, scene), scene_photos(model, scene, options)
    return convert_model(model, options, cameras=cameras, photos=photos, run=run).model


def convert_model(
    model: Model,
    options: ConvertOptions,
    *,
    cameras: Cameras | None = None,
    photos: SceneRays | None = None,
    run: str | Path | None = None,
    resume: bool = False,
    report: Callable[[Progress], None] | None = None,
    chosen: Callable[[Capacity], None] | None = None,
) -> ConvertResult:
    """`convert` with all options and results.

    Writes `checkpoint.safetensors` and `metrics.jsonl` into the folder `run`, if any.

    Args:
        model: the teacher, on the device that `options` picks.
        cameras: from where its scene was seen, scene frame.
        photos: rays of its photos, see `scene_photos`; None: there are none to finish on.
        resume: continue from `run`'s checkpoint; the result equals that of an uninterrupted run bit for bit on a CPU.
        report: called every few steps.
        chosen: called with how large the field is made, where that was to be chosen.

    Raises:
        ConfigError: as `convert`. FormatError: a checkpoint that does not fit.
        KeyboardInterrupt: passed on after the state was saved.
    """
    folder, stored = None if run is None else Path(run), None
    keep_freed_memory()
    if resume:
        if folder is None:
            raise ConfigError("to resume a conversion, give the folder of its run")
        stored = read_state(folder)
    session = _Session(model, options, cameras, photos, folder, stored)
    state = LoopState(seconds=session.prepared) if stored is None else session.load_checkpoint(stored)
    if chosen is not None and session.capacity is not None:
        chosen(session.capacity)
    if session.run is not None:
        session.run.mkdir(parents=True, exist_ok=True)
    loop = options.loop()
    hooks = [session.log, session.evaluate, session.checkpoint]
    if report is not None:
        speed = Speedometer(loop.max_seconds)
        hooks.append(lambda state, clock: speed.report(state, session.quality, report))
    try:
        state = optimise(session.task, loop, hooks, state)
    except KeyboardInterrupt:
        session.save_checkpoint()
        raise
    clock = Clock(state.seconds)
    session.save_checkpoint()
    session.task.finish(state.step)
    state.seconds = clock.seconds
    quality = session.measure()
    return ConvertResult(
        session.model(state.step),
        state.step,
        state.seconds,
        quality,
        session.preset.task.precision,
        session.settings,
        session.inherited,
        state.skipped,
        session.capacity,
    )


def surroundings_of_model(model: Model) -> Surroundings:
    """How the scene of a model was captured, by what the model says of it."""
    cascades = model.occupancy.cascades
    kinds: dict[str, CaptureKind] = {kind: kind for kind in get_args(CaptureKind)}
    kind = kinds.get(str(model.provenance.get("kind")), "object" if cascades == 1 else "unbounded")
    return Surroundings(kind, cascades)


def scene_cameras(model: Model, scene: Scene) -> Cameras:
    """The training cameras of a scene in the model's frame.

    Raises:
        ConfigError: the scene is not the model's.
    """
    moved = frames_apart(frame_change(model, scene))
    if moved > FRAME_TOLERANCE:
        trained = model.provenance.get("scene", "another scene")
        raise ConfigError(
            f"scene {scene.name} is not what the model was trained on ({trained}): its frame is {moved:.3g} off; give "
            "that scene, or none"
        )
    return cameras_for(model, scene)[scene.splits["train"]]


def scene_photos(model: Model, scene: Scene, options: ConvertOptions) -> SceneRays | None:
    """Rays of a scene's training photos in the model's frame; the scene is the model's (see `scene_cameras`). None
    where they are to have no part, or where the model was edited: photos would undo that."""
    if options.finish == 0 or model.provenance.get("edits"):
        return None
    moved = dataclasses.replace(scene, cameras=cameras_for(model, scene))
    return SceneRays(moved, scene.splits["train"], seed=options.seed, device=pick_device(options.device))


class _Session:
    """One conversion: its parts, and the hooks that look on."""

    def __init__(
        self,
        model: Model,
        options: ConvertOptions,
        cameras: Cameras | None,
        photos: SceneRays | None,
        run: Path | None,
        stored: StoredState | None,
    ) -> None:
        """`stored`: the state that it goes on from, None where it begins."""
        self.options, self.run, self.given = options, run, model
        self.state = LoopState()
        device = pick_device(options.device)
        around = surroundings_of_model(model)
        self.preset = _student_preset(around, options, device).with_colors_of(model.representation.config)
        self.preset = dataclasses.replace(self.preset, march=model.march)  # what steps miss they miss in both
        teacher = Teacher(model)
        if isinstance(self.preset.field, GridFieldConfig):
            self.preset = dataclasses.replace(self.preset, field=finer(self.preset.field, teacher))
        if cameras is None:
            cameras = _cameras_round(model, around)
        self.capacity = self._capacity(teacher, cameras, stored)
        if self.capacity is not None:
            self.preset = with_settings(self.preset, self.capacity.settings)
        preset = self.preset
        self.rays = ActiveRays(teacher, cameras, rays=preset.task.samples, seed=options.seed, levels=options.active)
        self.field = FIELDS[options.to][0](preset.field, seed=options.seed).to(device)
        self.inherited = inherit(self.field, teacher.field)
        shortcut, clock = SHORTCUTS.get(type(self.field)), Clock(0.0)
        if stored is None and shortcut is not None:
            shortcut(self.field, teacher, self.rays.cameras.world_from_camera[:, :, 2])
        same_colors = any(name.partition(".")[0] == "color" for name in self.inherited)
        rates = RATES.get(options.to, (1.0, 1.0)) if shortcut is None else (SHORTCUT_RATES[teacher.field.costly], 1.0)
        head = None if same_colors else head_for(self.field, teacher, options.seed)
        if head is not None and stored is None:
            learn_head(head, self.field, self.rays, options.seed)
        teacher.head = head
        self.prepared = clock.seconds
        self.occupancy = OccupancyGrid(cascades=preset.cascades, resolution=preset.resolution).to(device)
        self.task = DistillTask(
            self.field,
            self.occupancy,
            preset.march,
            self.rays,
            preset.task,
            teacher,
            same_features=head is not None or same_colors,
            by_what_is_seen="points" in options.active,
            rates=rates,
            photos=photos,
            finish=options.finish,
            seed=options.seed,
        )
        self.settings = {
            "options": dataclasses.asdict(options),
            "preset": dataclasses.asdict(preset),
            "weights": dataclasses.asdict(self.task.weights),
        }
        self.quality: float | None = None
        self.probe = self.rays.rays(PROBE_RAYS, _PROBE)
        rgb, alpha = teacher.seen(self.probe)
        if not bool(torch.isfinite(rgb).all()):
            raise ConfigError("the model to convert is damaged: it renders to values that are not finite")
        if float(alpha.max()) < _LEAST_ALPHA:
            raise ConfigError(f"the model to convert is empty: none of {PROBE_RAYS} rays meets anything")
        self.behind = rgb.new_full((3,), BACKGROUNDS[model.background])
        self.target = (rgb + (1 - alpha[:, None]) * self.behind).clamp(0, 1)

    def model(self, step: int) -> Model:
        """The student as a model."""
        return self._model_of(self.field, self.occupancy, self.preset, step)

    def _model_of(self, field: RadianceField, occupancy: OccupancyGrid, preset: Preset, step: int) -> Model:
        provenance = {
            **self.given.provenance,
            "polyfield": __version__,
            "torch": torch.__version__,
            "steps": step,
            "precision": preset.task.precision,
            "converted_from": [*self.given.provenance.get("converted_from", []), self.given.kind],
        }
        given = self.given
        return Model(field, occupancy, preset.march, given.to_dataset, given.background, provenance)

    def _capacity(self, teacher: Teacher, cameras: Cameras, stored: StoredState | None) -> Capacity | None:
        """How large the field is to be; of a conversion that goes on, as it was chosen then."""
        options, wish = self.options, self.options.wish
        if stored is not None:
            assert self.run is not None
            chosen, settings = stored.header.get("capacity"), stored.header.get("settings")
            if chosen is None or not isinstance(settings, dict) or settings.get("to") != options.to:
                return None  # without a wish, or of another conversion, which `load_state` refuses
            return Capacity.from_dict(chosen, self.preset, self.run / CHECKPOINT)
        if wish is None:
            return None
        parts = (options.to, self.preset, teacher, cameras, self._model_of)
        return choose_capacity(Candidates(*parts, seed=options.seed), wish)

    def measure(self) -> float:
        """PSNR of the student against the teacher on the probe, dB."""
        rgb = render_rays(self.field, self.occupancy, self.probe, self.preset.march, self.behind).rgb.clamp(0, 1)
        return psnr_of(float((rgb - self.target).square().mean()))

    # -- hooks ------------------------------------------------------------------------------------------------------

    def log(self, state: LoopState, clock: Clock) -> None:
        self.state = state
        if self.run is not None and (state.step % 10 == 0 or state.step == state.total_steps):
            values = {"loss": state.result.loss, **state.result.counts}
            append_log(self.run, state, {**values, "occupied": self.occupancy.occupied_fraction()})

    def evaluate(self, state: LoopState, clock: Clock) -> None:
        if state.step % self.options.evaluate_every and state.step != state.total_steps:
            return
        with clock.paused():
            self.quality = self.measure()
            if self.run is not None:
                append_log(self.run, state, {"teacher_psnr": self.quality})

    def checkpoint(self, state: LoopState, clock: Clock) -> None:
        if state.step % self.options.checkpoint_every == 0 and state.step != state.total_steps:
            self.save_checkpoint()

    # -- files ------------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        if self.run is not None:
            capacity = None if self.capacity is None else self.capacity._asdict()
            save_state(self.run, self.task, self.state, self._identity(), capacity=capacity)

    def load_checkpoint(self, stored: StoredState) -> LoopState:
        assert self.run is not None
        self.state = load_state(self.run, stored, self.task, self._identity())
        return self.state

    def _identity(self) -> dict[str, Any]:
        """What must agree between a checkpoint and the run that resumes it; lengths may differ."""
        free = {"max_steps", "max_seconds", "checkpoint_every", "evaluate_every", "device"}
        options = {k: v for k, v in self.settings["options"].items() if k not in free}
        identity = {**options, "preset": self.settings["preset"], "weights": self.settings["weights"]}
        identity |= {"teacher": self.given.kind, "cameras": len(self.rays.cameras)}
        identity["photos"] = self.task.photos is not None
        return json.loads(json.dumps(identity))


def _student_preset(around: Surroundings, options: ConvertOptions, device: torch.device) -> Preset:
    preset = preset_for(around, options.training())
    if options.samples is not None or device.type != "cpu":
        return preset
    task = preset.task
    small = dataclasses.replace(
        task, samples=min(task.samples, MOST_SAMPLES), first_rays=min(task.first_rays, MOST_SAMPLES // 16)
    )
    return dataclasses.replace(preset, task=small)


def _cameras_round(model: Model, around: Surroundings) -> Cameras:
    if around.kind != "object":
        raise ConfigError(
            f"the model is of a capture of kind {around.kind!r}: from where it was seen must be known; give the run "
            "folder in place of the model file, or the scene"
        )
    return orbit_cameras(model.occupancy.occupied_box())
