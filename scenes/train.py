"""Training a scene: from a loaded `Scene` and a few options to a model file, with checkpoints, log and previews.

This ties the parts together: preset (what to train with), task (what a step is), loop (how long and how fast) and the
hooks that report, evaluate, draw previews and save.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import nn

from .. import __version__  # pyright: ignore[reportMissingImports]
from ..fields.errors import ConfigError, FormatError
from ..fields.geometry import Rays
from ..fields.model import Model
from ..fields.ops import _cpu
from ..fields.optim.loop import Clock, LoopConfig, LoopState, optimise
from ..fields.optim.memory import keep_freed_memory
from ..fields.optim.radiance import RadianceTask
from ..fields.radiance import FIELDS
from ..fields.render import BACKGROUNDS, OccupancyGrid, render, render_rays
from ..fields.spectrum import FrequencyChoice, frequency_number
from .device import Device, pick_device
from .frequency import choose_view_frequency
from .presets import (
    NETWORKS,
    PRESETS,
    VIEW_CELLS,
    Preset,
    Surroundings,
    frequency_of,
    surroundings_of,
    with_form,
    with_frequency,
)
from .ranges import MOST_SEED, MOST_STEPS, SAMPLES, check_range
from .rays import SceneRays
from .run_state import (
    CHECKPOINT,
    Progress,
    Speedometer,
    StoredState,
    append_log,
    load_state,
    read_state,
    save_state,
)
from .scene import Scene

Kind = Literal["hash", "tensor", "planes", "rbf", "grid", "mlp", "cam"]
"""Kinds of fields of scenes: keys of `fields.radiance.FIELDS`."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What a user decides about a training run."""

    model: Kind = "hash"
    """Kind of field: hash (a hash grid, the quickest to learn), tensor (planes times lines, TensoRF), planes (planes
    times planes, K-Planes), rbf (a hash grid whose density Gaussian units say, GNF), grid (sparse voxels with spherical
    harmonics and no network, Plenoxels), mlp (one wide network, NeRF; small and slow) or cam (the same with small grids
    that modulate its layers, CAM)."""
    max_steps: int | None = None
    """Total optimisation steps. Default: by time."""
    max_seconds: float | None = None
    """Training time, evaluation not counted. Default: 300, for the built-in scene 60. Fixes the steps once."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the networks' multiplications; auto takes bf16 on processors that have it."""
    device: Device = "auto"
    """Where to train; auto takes an NVIDIA GPU where it works."""
    seed: int = 0
    """Of initialisation, rays and jitter; one seed, one result on a CPU."""
    deterministic: bool = False
    """One seed, one result on a GPU too; the table's gradient is then summed as integers, which takes longer."""
    refine_poses: bool = False
    """Also optimise the camera poses."""
    exposure: bool = False
    """Also learn a gain and an offset per training image and channel."""
    distortion: float = 0.0
    """Weight of the distortion loss (mip-NeRF 360) against floaters, e.g. 0.01."""
    samples: int | None = None
    """Live samples per step; default by the preset."""
    form: Literal["auto", "vm", "cp", "product", "sum"] = "auto"
    """How planes and lines make a grid. Of tensor: vm (planes times lines, the default) or cp (three lines, a few
    hundred kB; coarser). Of planes: product (K-Planes, the default) or sum (tri-planes)."""
    network: Literal["nerf", "mip", "hourglass", "siren", "finer", "wire", "gauss", "fourier"] = "nerf"
    """What mlp and cam consist of: octaves and ReLU (nerf), the same averaged over what a pixel sees, against aliasing
    at other resolutions (mip), residual blocks that are narrow inside (hourglass), waves, or random Fourier features
    and ReLU. Only nerf is tuned; in mlp it and mip are much the fastest."""
    frequency: str = "default"
    """What the untrained field can show: default, auto (chosen by the spectra of training photos, FreSh), or a number:
    of mlp and cam octaves (nerf, mip, hourglass), omega (siren, wire), bias (finer), inverse width (gauss) or sigma
    (fourier); of hash and rbf the finest cells across the unit box."""
    view_grids: bool = False
    """Let mlp's and cam's colours be modulated by small grids over the viewing angle as well (CAM)."""
    bits: Literal[8, 32] = 32
    """Of a stored weight, for mlp and cam. With 8 the network is trained as it will be stored; files are a quarter."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; one is also written at the end and on Ctrl-C."""
    evaluate_every: int = 500
    """Steps between looks at held-out rays (not counted as training time)."""

    def __post_init__(self) -> None:
        check_range("--seed", self.seed, 0, MOST_SEED)
        check_range("--samples", self.samples, *SAMPLES)
        check_range("--distortion", self.distortion, 0, 1000)
        check_range("--checkpoint-every", self.checkpoint_every, 1, MOST_STEPS)
        check_range("--evaluate-every", self.evaluate_every, 1, MOST_STEPS)

    @property
    def chooses(self) -> bool:
        """Whether the frequency is chosen by the spectra of training photos."""
        return self.frequency == "auto"

    def loop(self, scene: str = "") -> LoopConfig:
        """Settings of the loop for the scene of that name."""
        if self.max_steps is not None and self.max_seconds is not None:
            raise ConfigError("give --max-steps or --max-seconds, not both")
        usual = 60.0 if scene == "demo" else 300.0  # the demo is to be over within a minute and a half, all counted
        seconds = usual if self.max_steps is None and self.max_seconds is None else self.max_seconds
        return LoopConfig(max_steps=self.max_steps, max_seconds=seconds)


class TrainResult(NamedTuple):
    """What came out."""

    model: Model
    steps: int
    train_seconds: float
    """From the first step to the saved model, evaluation not counted."""
    precision: str
    settings: dict[str, Any]
    """Preset and options as JSON values."""
    model_path: Path
    skipped_steps: int
    """Steps that were not finite and changed nothing."""
    choice: FrequencyChoice | None = None
    """What FreSh compared when the run began, where it was asked."""


def train_scene(
    scene: Scene,
    options: TrainOptions | None = None,
    *,
    run: str | Path,
    resume: bool = False,
    choice: FrequencyChoice | None = None,
    report: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Train a field on the scene's training frames.

    Writes `model.safetensors`, `checkpoint.safetensors`, `metrics.jsonl` and `previews/*.png` into the folder `run`.

    Args:
        resume: continue from `run`'s checkpoint; the result equals that of an uninterrupted run bit for bit on a CPU.
        choice: of `choose`, where it was made already; None: made here if the options ask for it. A resumed run keeps
            the one that it began with.
        report: called every few steps.

    Raises:
        ConfigError: contradicting options. FormatError: a checkpoint that does not fit.
        KeyboardInterrupt: passed on after the state was saved.
    """
    options = options or TrainOptions()
    run = Path(run)
    keep_freed_memory()
    stored = read_state(run) if resume else None
    if stored is not None:
        choice = _choice_of(stored, run)
    elif options.chooses:
        choice = choice or choose(scene, options)
    session = _Session(scene, options, run, choice)
    state = None if stored is None else session.load_checkpoint(stored)
    run.mkdir(parents=True, exist_ok=True)
    (run / "previews").mkdir(exist_ok=True)
    hooks = [session.log, session.evaluate, session.checkpoint]
    if report is not None:
        speed = Speedometer(options.loop(scene.name).max_seconds)
        hooks.append(lambda state, clock: speed.report(state, session.heldout_psnr, report))
    loop = dataclasses.replace(options.loop(scene.name), warmup_steps=session.preset.warmup_steps)
    try:
        with _deterministic(options.deterministic):
            state = optimise(session.task, loop, hooks, state or session.state)
    except KeyboardInterrupt:
        session.save_checkpoint()
        session.model().save(run / "model.safetensors")
        raise
    clock = Clock(state.seconds)
    session.save_checkpoint()
    model = session.model()
    model.save(run / "model.safetensors")
    state.seconds = clock.seconds
    session.preview("final")
    return TrainResult(
        model,
        state.step,
        state.seconds,
        session.precision,
        session.settings,
        run / "model.safetensors",
        state.skipped,
        choice,
    )


def choose(scene: Scene, options: TrainOptions, report: Callable[[int, int], None] | None = None) -> FrequencyChoice:
    """The frequency that FreSh takes for the field of these options, by some training photos of the scene.

    Args:
        report: called with (models done, all).

    Raises:
        ConfigError: the field has no frequency.
    """
    options = dataclasses.replace(options, frequency="auto")
    preset, field = preset_for(surroundings_of(scene), options), FIELDS[options.model][0]
    return choose_view_frequency(scene, preset, field, seed=options.seed, report=report)


def preset_for(around: Surroundings, options: TrainOptions, choice: FrequencyChoice | None = None) -> Preset:
    """What a run is set up from.

    Args:
        choice: of `choose`, for options that ask for it; None: the frequency stays the preset's.

    Raises:
        ConfigError: options that this kind of field does not have.
    """
    preset, precision, device = PRESETS[options.model](around), options.precision, pick_device(options.device)
    if precision == "auto":
        precision = "bf16" if preset.has_networks and has_bf16(device) else "fp32"
    if device.type == "cuda":
        preset = preset.for_cuda()
    elif _cpu.level() == "reference":
        preset = preset.for_reference()
    task = dataclasses.replace(
        preset.task,
        precision=precision,
        distortion=options.distortion,
        exposure=options.exposure,
        samples=options.samples or preset.task.samples,
    )
    preset = dataclasses.replace(preset, task=task).with_precision(precision)
    if options.form != "auto":
        preset = with_form(preset, options.form)
    if options.network != "nerf" or options.bits != 32 or options.view_grids:
        view = {"view_cells": VIEW_CELLS} if options.view_grids else {}
        preset = preset.with_network(**NETWORKS[options.network], **view, bits=options.bits)
    return _with_frequency(preset, options, choice)


def _with_frequency(preset: Preset, options: TrainOptions, choice: FrequencyChoice | None) -> Preset:
    """The preset with what `--frequency` says."""
    number, frequency = frequency_number(options.frequency), frequency_of(preset.field)
    if options.frequency == "default":
        return preset
    if frequency is None:
        text = f"--frequency is for the models mlp, cam, hash and rbf; {options.model} has none before it is trained"
        raise ConfigError(f"{text}: leave it out")
    if options.chooses and not frequency.candidates:
        text = f"--frequency auto cannot choose for --network {options.network}: untrained it shows noise, however wide"
        raise ConfigError(f"{text}; give a number or leave it out")
    value = number if choice is None else choice.chosen
    return preset if value is None else with_frequency(preset, value)


class _Session:
    """One run: its parts, and the hooks that look on."""

    def __init__(self, scene: Scene, options: TrainOptions, run: Path, choice: FrequencyChoice | None) -> None:
        self.scene, self.options, self.run, self.choice = scene, options, run, choice
        self.state = LoopState()
        self.device = pick_device(options.device)
        self.preset = preset = preset_for(surroundings_of(scene), options, choice)
        self.precision = preset.task.precision
        field = FIELDS[options.model][0]
        self.field = field(preset.field, seed=options.seed).to(self.device)
        self.occupancy = OccupancyGrid(cascades=preset.cascades, resolution=preset.resolution).to(self.device)
        poses = None
        if options.refine_poses:
            poses = nn.Parameter(torch.zeros(len(scene.cameras), 6, device=self.device))
        train = scene.splits["train"]
        self.rays = SceneRays(
            scene,
            train,
            seed=options.seed,
            pose_delta=poses,
            radii=self.field.integrates,
            device=self.device,
        )
        self.task = RadianceTask(
            self.field,
            self.occupancy,
            preset.march,
            self.rays,
            preset.task,
            frames=len(scene.cameras),
            extra={"poses": (poses, 1e-4)} if poses is not None else None,
            seed=options.seed,
        )
        self.settings = {"options": dataclasses.asdict(options), "preset": dataclasses.asdict(preset)}
        self.heldout_psnr: float | None = None
        self._evaluated = -1
        self._heldout = self._heldout_rays()

    def model(self) -> Model:
        """The present state as a model (sharing its tensors)."""
        provenance = {
            "scene": self.scene.name,
            "kind": self.scene.kind,
            "polyfield": __version__,
            "torch": torch.__version__,
            "steps": self.state.step,
            "precision": self.precision,
        }
        to_dataset = self.scene.to_scene.inverse()
        march, background = self.preset.march, self.scene.background
        return Model(self.field, self.occupancy, march, to_dataset, background, provenance)

    # -- hooks ------------------------------------------------------------------------------------------------------

    def log(self, state: LoopState, clock: Clock) -> None:
        self.state = state
        if state.step % 10 == 0 or state.step == state.total_steps:
            values = {"loss": state.result.loss, **state.result.counts}
            append_log(self.run, state, {**values, "occupied": self.occupancy.occupied_fraction()})

    def evaluate(self, state: LoopState, clock: Clock) -> None:
        if state.step % self.options.evaluate_every and state.step != state.total_steps:
            return
        with clock.paused():
            if self._heldout is not None:
                rays, target = self._heldout
                white = torch.full((3,), BACKGROUNDS[self.scene.background], device=self.device)
                rgb = render_rays(self.field, self.occupancy, rays, self.preset.march, white).rgb.clamp(0, 1)
                self.heldout_psnr = float(-10 * (rgb - target).square().mean().clamp(min=1e-12).log10())
                append_log(self.run, state, {"heldout_psnr": self.heldout_psnr})
            if state.step % (4 * self.options.evaluate_every) == 0:
                self.preview(f"{state.step:06d}")

    def checkpoint(self, state: LoopState, clock: Clock) -> None:
        if state.step % self.options.checkpoint_every == 0 and state.step != state.total_steps:
            self.save_checkpoint()

    # -- files ------------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        choice = None if self.choice is None else self.choice.as_dict()
        save_state(self.run, self.task, self.state, self._identity(), frequency=choice)

    def load_checkpoint(self, stored: StoredState) -> LoopState:
        self.state = load_state(self.run, stored, self.task, self._identity())
        return self.state

    def _identity(self) -> dict[str, Any]:
        """What must agree between a checkpoint and the run that resumes it; lengths may differ."""
        free = {"max_steps", "max_seconds", "checkpoint_every", "evaluate_every", "device"}
        options = {k: v for k, v in self.settings["options"].items() if k not in free}
        identity = {**options, "preset": self.settings["preset"], "scene": self.scene.name, "precision": self.precision}
        return json.loads(json.dumps(identity))

    def preview(self, name: str) -> None:
        """Draw a held-out frame (a training frame where none is held out), at most 400 pixels wide."""
        frame = int(self._heldout_frames()[0])
        camera = self.scene.cameras[frame : frame + 1]
        camera = camera.downscaled(max(1, int(camera.width[0]) // 400))
        rgb = render(self.model(), camera).rgb
        pixels = (rgb * 255 + 0.5).clamp(0, 255).to(torch.uint8).cpu().numpy()
        Image.fromarray(pixels).save(self.run / "previews" / f"{name}.png")

    def _heldout_frames(self) -> torch.Tensor:
        for split in ("test", "val", "train"):
            if split in self.scene.splits and len(self.scene.splits[split]):
                return self.scene.splits[split]
        raise ConfigError(f"scene {self.scene.name} has no frames")

    def _heldout_rays(self) -> tuple[Rays, torch.Tensor] | None:
        """A fixed sample of 8192 held-out rays and their colours; None where no frame is held out."""
        frames = self._heldout_frames()
        if frames is self.scene.splits["train"]:
            return None
        source = SceneRays(self.scene, frames, seed=1)
        generator = torch.Generator().manual_seed(1)
        frames, x, y = source._pixels(8192, generator)
        pixels = torch.stack([x, y], 1).float() + 0.5
        rays = self.scene.cameras.rays(frames, pixels, radii=self.field.integrates)
        color = self.scene.images.sample(frames, x, y).float() / 255
        if color.shape[1] == 4:
            behind = BACKGROUNDS[self.scene.background]
            color = color[:, :3] * color[:, 3:] + behind * (1 - color[:, 3:])
        return rays.to(self.device), color.to(self.device)


def _choice_of(stored: StoredState, run: Path) -> FrequencyChoice | None:
    """What FreSh chose when the run began."""
    try:
        values = stored.header.get("frequency")
        return None if values is None else FrequencyChoice.from_dict(values)
    except ConfigError as error:
        raise FormatError(f"{run / CHECKPOINT}: header is not a checkpoint's: {error}") from error


def has_bf16(device: torch.device) -> bool:
    """Whether the networks have fast bfloat16 kernels on this device."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return _cpu.level() == "v4bf16"


@contextlib.contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
