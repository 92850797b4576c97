"""Training a scene: from a loaded `Scene` and a few options to a model file, with checkpoints, log and previews.

This ties the parts together: preset (what to train with), task (what a step is), loop (how long and how fast) and the
hooks that report, evaluate, draw previews and save.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import nn

from .. import __version__  # pyright: ignore[reportMissingImports]
from ..fields.errors import ConfigError, FormatError
from ..fields.formats.model_file import read_tensors, write_tensors
from ..fields.geometry import Rays
from ..fields.model import Model
from ..fields.ops import _cpu
from ..fields.optim.loop import Clock, LoopConfig, LoopState, optimise
from ..fields.optim.radiance import RadianceTask
from ..fields.radiance import FIELDS
from ..fields.render import BACKGROUNDS, OccupancyGrid, render, render_rays
from ..fields.spectrum import FrequencyChoice, frequency_number
from .device import Device, pick_device
from .frequency import choose_view_frequency
from .presets import (
    NETWORKS,
    Preset,
    cam_preset,
    frequency_of,
    grid_preset,
    hash_preset,
    mlp_preset,
    planes_preset,
    rbf_preset,
    tensor_preset,
    with_frequency,
)
from .rays import SceneRays
from .scene import Scene

PRESETS: dict[str, Callable[[Scene], Preset]] = {
    "hash": hash_preset,
    "tensor": tensor_preset,
    "planes": planes_preset,
    "rbf": rbf_preset,
    "grid": grid_preset,
    "mlp": mlp_preset,
    "cam": cam_preset,
}
"""Model kind -> what to train it with, by looking at the scene."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What a user decides about a training run."""

    model: Literal["hash", "tensor", "planes", "rbf", "grid", "mlp", "cam"] = "hash"
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
    network: Literal["nerf", "mip", "hourglass", "siren", "finer", "wire", "gauss", "fourier"] = "nerf"
    """What mlp and cam consist of: octaves and ReLU (nerf), the same averaged over what a pixel sees, against aliasing
    at other resolutions (mip), residual blocks that are narrow inside (hourglass), waves, or random Fourier features
    and ReLU. Only nerf is tuned; in mlp it and mip are much the fastest."""
    frequency: str = "default"
    """What the untrained field can show: default, auto (chosen by the spectra of training photos, FreSh), or a number:
    of mlp and cam octaves (nerf, mip, hourglass), omega (siren, wire), bias (finer), inverse width (gauss) or sigma
    (fourier); of hash and rbf the finest cells across the unit box."""
    bits: Literal[8, 32] = 32
    """Of a stored weight, for mlp and cam. With 8 the network is trained as it will be stored; files are a quarter."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; one is also written at the end and on Ctrl-C."""
    evaluate_every: int = 500
    """Steps between looks at held-out rays (not counted as training time)."""

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


class Progress(NamedTuple):
    """How a run stands."""

    step: int
    total_steps: int | None
    """None until `max_seconds` has been turned into steps."""
    loss: float
    train_psnr: float
    """Of the last step's rays, dB."""
    heldout_psnr: float | None
    """Of a fixed sample of held-out rays, dB; None before the first look or without held-out frames."""
    rays_per_second: float
    seconds: float
    seconds_left: float
    """NaN until known."""


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
    _keep_freed_memory()
    stored = _read_checkpoint(run) if resume else None
    if stored is not None:
        choice = _choice_of(stored[0], run)
    elif options.chooses:
        choice = choice or choose(scene, options)
    session = _Session(scene, options, run, choice)
    state = None if stored is None else session.load_checkpoint(*stored)
    run.mkdir(parents=True, exist_ok=True)
    (run / "previews").mkdir(exist_ok=True)
    hooks = [session.log, session.evaluate, session.checkpoint]
    if report is not None:
        hooks.append(lambda state, clock: session.report(state, report))
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
    preset, field = preset_for(scene, options), FIELDS[options.model][0]
    return choose_view_frequency(scene, preset, field, seed=options.seed, report=report)


def preset_for(scene: Scene, options: TrainOptions, choice: FrequencyChoice | None = None) -> Preset:
    """What a run is set up from.

    Args:
        choice: of `choose`, for options that ask for it; None: the frequency stays the preset's.

    Raises:
        ConfigError: options that this kind of field does not have.
    """
    preset, precision, device = PRESETS[options.model](scene), options.precision, pick_device(options.device)
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
    if options.network != "nerf" or options.bits != 32:
        preset = preset.with_network(**NETWORKS[options.network], bits=options.bits)
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
        self.preset = preset = preset_for(scene, options, choice)
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
        self._marks: list[tuple[float, float]] = []

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
        if state.step % 10 and state.step != state.total_steps:
            return
        line = {"step": state.step, "seconds": round(state.seconds, 3), "loss": state.result.loss}
        line |= state.result.counts
        line["occupied"] = self.occupancy.occupied_fraction()
        with open(self.run / "metrics.jsonl", "a") as file:
            file.write(
                json.dumps({k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in line.items()})
                + "\n"
            )

    def evaluate(self, state: LoopState, clock: Clock) -> None:
        if state.step % self.options.evaluate_every and state.step != state.total_steps:
            return
        with clock.paused():
            if self._heldout is not None:
                rays, target = self._heldout
                white = torch.full((3,), BACKGROUNDS[self.scene.background], device=self.device)
                rgb = render_rays(self.field, self.occupancy, rays, self.preset.march, white).rgb.clamp(0, 1)
                self.heldout_psnr = float(-10 * (rgb - target).square().mean().clamp(min=1e-12).log10())
                line = {"step": state.step, "seconds": round(state.seconds, 3), "heldout_psnr": self.heldout_psnr}
                with open(self.run / "metrics.jsonl", "a") as file:
                    file.write(json.dumps(line) + "\n")
            if state.step % (4 * self.options.evaluate_every) == 0:
                self.preview(f"{state.step:06d}")

    def checkpoint(self, state: LoopState, clock: Clock) -> None:
        if state.step % self.options.checkpoint_every == 0 and state.step != state.total_steps:
            self.save_checkpoint()

    def report(self, state: LoopState, sink: Callable[[Progress], None]) -> None:
        counts = state.result.counts
        self._marks = [*self._marks[-49:], (state.seconds, counts.get("rays", 0.0))]
        if state.step % 10 and state.step != state.total_steps:
            return
        spent = self._marks[-1][0] - self._marks[0][0]
        speed = sum(r for _, r in self._marks[1:]) / spent if spent > 0 else float("nan")
        per_step = spent / max(1, len(self._marks) - 1)
        left = (state.total_steps - state.step) * per_step if state.total_steps else float("nan")
        if state.total_steps is None:
            left = (self.options.loop(self.scene.name).max_seconds or 0.0) - state.seconds
        psnr = counts.get("psnr", float("nan"))
        loss = state.result.loss
        sink(Progress(state.step, state.total_steps, loss, psnr, self.heldout_psnr, speed, state.seconds, left))

    # -- files ------------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        header = {
            "kind": "checkpoint",
            "loop": self.state.as_dict(),
            "task": self.task.scalars(),
            "frequency": None if self.choice is None else self.choice.as_dict(),
            "settings": self._identity(),
        }
        write_tensors(_checkpoint_path(self.run), header, self.task.tensors())

    def load_checkpoint(self, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> LoopState:
        path = _checkpoint_path(self.run)
        mine, theirs = self._identity(), header.get("settings")
        if mine != theirs:
            differing = [k for k in mine if not isinstance(theirs, dict) or theirs.get(k) != mine[k]]
            raise ConfigError(
                f"{path} is of a run with other settings ({', '.join(differing)}); resume with the same ones"
            )
        try:
            self.task.load_scalars(header["task"])
            state = LoopState.from_dict(header["loop"])
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise FormatError(f"{path}: header is not a checkpoint's: {error}") from error
        current = self.task.tensors()
        if set(current) != set(tensors) or any(current[k].shape != tensors[k].shape for k in current):
            raise FormatError(f"{path}: its tensors are not those of this run")
        with torch.no_grad():
            for name, tensor in current.items():
                tensor.copy_(tensors[name])
        try:
            self.field.check()
        except ConfigError as error:
            raise FormatError(f"{path}: {error}") from error
        self.occupancy.load_state_dict(
            {k.removeprefix("occupancy."): v for k, v in tensors.items() if k.startswith("occupancy.")}
        )
        self.state = state
        self._cut_log(self.state.step)
        return self.state

    def _identity(self) -> dict[str, Any]:
        """What must agree between a checkpoint and the run that resumes it; lengths may differ."""
        free = {"max_steps", "max_seconds", "checkpoint_every", "evaluate_every", "device"}
        options = {k: v for k, v in self.settings["options"].items() if k not in free}
        identity = {**options, "preset": self.settings["preset"], "scene": self.scene.name, "precision": self.precision}
        return json.loads(json.dumps(identity))

    def _cut_log(self, step: int) -> None:
        """Drop lines that an interrupted run wrote after its last checkpoint."""
        path = self.run / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # a line cut short by a kill
        path.write_text("".join(kept))

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


def _checkpoint_path(run: Path) -> Path:
    return run / "checkpoint.safetensors"


def _read_checkpoint(run: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    path = _checkpoint_path(run)
    if not path.exists():
        raise FormatError(f"{path} does not exist: there is nothing to resume. Leave out --resume to start anew.")
    return read_tensors(path, kind="checkpoint")


def _choice_of(header: dict[str, Any], run: Path) -> FrequencyChoice | None:
    """What FreSh chose when the run began."""
    try:
        return None if header.get("frequency") is None else FrequencyChoice.from_dict(header["frequency"])
    except ConfigError as error:
        raise FormatError(f"{_checkpoint_path(run)}: header is not a checkpoint's: {error}") from error


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


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of returning each to the kernel: a step frees and takes buffers of tens of
    megabytes, and faulting their pages in anew costs more than some operators (measured: 15 % of a step)."""
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no separate mappings
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        return
