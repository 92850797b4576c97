"""Fitting a signal: from an image, film, volume or mesh to a field in one file, with checkpoints and measured quality.

This ties the parts together: family and settings (`fields.implicit`), the frequency it starts with (`fields.spectrum`),
the task and the loop.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .. import __version__  # pyright: ignore[reportMissingImports]
from ..fields.errors import ConfigError, FormatError, NativeError
from ..fields.formats.model_file import read_tensors, write_tensors
from ..fields.implicit import KINDS, GridSignal, ImplicitModel, MeshSignal, build, config_for
from ..fields.implicit.kinds import Config, Kind, Network, modulated
from ..fields.implicit.signal import grid_points
from ..fields.implicit.surface import Target
from ..fields.ops.mesh_bvh import signed_distances
from ..fields.optim.fit import FitQuality, FitTask, measure_fit, measure_surface
from ..fields.optim.loop import Clock, LoopConfig, LoopState, optimise
from ..fields.optim.memory import keep_freed_memory
from ..fields.spectrum import FrequencyChoice, choose_frequency, frequency_number
from .device import Device, pick_device
from .ranges import MOST_SEED, check_range
from .signals import Input

FieldKind = Literal[
    "siren", "finer", "wire", "gauss", "fourier", "pe", "cam", "hash", "rbf", "planes", "tensor", "neurbf"
]
MOST_LR = 1000
CHECKPOINT_SECONDS = 30.0
SPECTRUM_SIDE, SPECTRUM_MODELS = 192, 3
"""Pixels of the shorter side at which spectra are compared (the 64 frequencies compared need 128), and untrained models
per candidate. The paper has 1024 and 10, which cost a hundred times as much; what that changes is not measured."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What a user decides about a fit."""

    field: FieldKind = "hash"
    """Family: hash, rbf (as hash, decoded by Gaussian units), planes or tensor (grids, quick), neurbf (kernels placed
    by the signal), or a network of coordinates: siren, finer, wire, gauss, fourier (random Fourier features), pe
    (octaves), cam (one of these with modulation grids)."""
    max_steps: int | None = None
    """Total optimisation steps. Default: by time."""
    max_seconds: float | None = None
    """Fitting time; choosing the frequency, placing kernels and evaluating are not counted. Default: 60."""
    frequency: str = "auto"
    """What the untrained network can show: auto chooses by the signal's spectrum (FreSh), default takes the paper's
    setting, or a number (omega of siren, wire and gauss, bias of finer, sigma of fourier, octaves of pe; of cam what
    its network has)."""
    network: Literal["fourier", "pe", "siren", "finer", "wire", "gauss"] = "fourier"
    """What cam modulates: the layers of this family."""
    modulated_by: Literal["auto", "x", "xy", "xyz", "time"] = "auto"
    """Coordinates of cam's grids: the first, the plane of the first two, three planes, or the time of a film. auto: two
    for images, three for all else."""
    target: Target = "sdf"
    """What is learned of a mesh: sdf, its signed distance; udf, the unsigned distance, for meshes that have no inside;
    occupancy, whether a point is inside."""
    batch: int | None = None
    """Points per step; default by the family. A signal with no more points is used whole in each step."""
    lr: float = 1.0
    """Factor on the family's learning rates."""
    grid: int = 128
    """Cells along each axis of the cube in which a fitted mesh is compared with the original (IoU)."""
    seed: int = 0
    """Of initialisation and of the points drawn; one seed, one result on a CPU."""
    device: Device = "auto"
    """Where to fit; auto takes an NVIDIA GPU where it works."""

    def __post_init__(self) -> None:
        if self.field not in KINDS:
            raise ConfigError(f"--field must be one of {', '.join(KINDS)}; got {self.field!r}")
        if self.max_steps is not None and self.max_seconds is not None:
            raise ConfigError("give --max-steps or --max-seconds, not both")
        if self.batch is not None and not 1 <= self.batch <= 1 << 26:
            raise ConfigError(f"--batch must be 1 to {1 << 26} points; got {self.batch}")
        check_range("--seed", self.seed, 0, MOST_SEED)
        if not 2 <= self.grid <= 1024:
            raise ConfigError(f"--grid must be 2 to 1024 cells; got {self.grid}")
        if not 0 < self.lr <= MOST_LR:
            raise ConfigError(f"--lr must be a positive factor of at most {MOST_LR}; got {self.lr:g}")
        for option, given in (
            ("--modulated-by", self.modulated_by != "auto"),
            ("--network", self.network != "fourier"),
        ):
            if given and self.field != "cam":
                raise ConfigError(f"{option} is for --field cam; {self.field} has no such grids: leave it out")
        _ = self.number, self.loop()

    @property
    def family(self) -> Kind:
        """What the field is made of."""
        return modulated(self.network) if self.field == "cam" else KINDS[self.field]

    @property
    def chooses(self) -> bool:
        """Whether the frequency is chosen by the spectrum of the signal."""
        return self.frequency == "auto" and self.family.frequency is not None

    @property
    def number(self) -> float | None:
        """The frequency that was given as a number, else None."""
        value = frequency_number(self.frequency)
        if value is not None and self.family.frequency is None:
            raise ConfigError(f"--field {self.field} has no frequency to set: it is sized by the signal")
        return value

    def loop(self, *, surface: bool = False) -> LoopConfig:
        """Settings of the loop; a surface's zero crossing gains from a smaller last step."""
        seconds = 60.0 if self.max_steps is None and self.max_seconds is None else self.max_seconds
        return LoopConfig(max_steps=self.max_steps, max_seconds=seconds, final_lr=0.01 if surface else 0.1)

    def config(self, signal: GridSignal | MeshSignal) -> Config:
        """The family's settings for a signal.

        Raises:
            ConfigError: the signal has not the coordinates that shall modulate.
        """
        if self.target != "sdf" and not isinstance(signal, MeshSignal):
            raise ConfigError(f"--target {self.target} is for meshes; leave it out")
        config = config_for(self.family, signal)
        if self.modulated_by == "auto":
            return config
        if self.modulated_by == "time" and signal.kind != "video":
            raise ConfigError("--modulated-by time is for films; leave it out")
        return dataclasses.replace(config, modulated_by=self.modulated_by)

    def with_frequency(self, config: Config, value: float) -> Config:
        """A family's settings with another frequency."""
        name = self.family.frequency
        assert name is not None
        whole = name == "octaves"
        return dataclasses.replace(config, **{name: round(value) if whole else float(value)})


class FitProgress(NamedTuple):
    """What a fit reports."""

    step: int
    total_steps: int | None
    psnr: float
    """Of the points of the last step, dB."""
    seconds: float
    seconds_left: float


class FitResult(NamedTuple):
    """What a fit gives."""

    model: ImplicitModel
    quality: FitQuality
    steps: int
    seconds: float
    parameters: int
    skipped_steps: int
    """That were not finite, and changed nothing."""
    choice: FrequencyChoice | None
    """What FreSh compared, where it was asked."""


def checkpoint_path(out: Path) -> Path:
    """Where the state of an unfinished fit into `out` lies; it is removed when the fit is done."""
    return out.with_name(f"{out.stem}.checkpoint.safetensors")


def choose(source: Input, options: FitOptions, report: Callable[[int, int], None] | None = None) -> FrequencyChoice:
    """The frequency that FreSh takes for a signal (for films, volumes and surfaces, by their middle slice)."""
    family, signal = options.family, source.signal
    config = options.config(signal)
    target = _small(signal)
    size = (target.shape[1], target.shape[0], 1)[: len(signal.size)]

    def untrained(candidate: float, seed: int) -> Tensor:
        network = build(options.field, options.with_frequency(config, candidate), seed)
        shown = ImplicitModel(options.field, network, signal.kind, size).sample()
        return shown.reshape(target.shape)

    return choose_frequency(target, untrained, family.candidates, models=SPECTRUM_MODELS, search=True, report=report)


def fit_signal(
    source: Input,
    options: FitOptions,
    *,
    out: Path,
    name: str = "",
    resume: bool = False,
    choice: FrequencyChoice | None = None,
    report: Callable[[FitProgress], None] | None = None,
    measuring: Callable[[int, int], None] | None = None,
) -> FitResult:
    """Fit a field and write it to `out`.

    Args:
        name: of the input, for the file's history.
        resume: continue from the checkpoint beside `out`, bit for bit on a CPU.
        choice: of `choose`, where it was made already; None: made here if the options ask for it.
        report: called after every step.
        measuring: called with (cells done, all) while the quality is measured.

    Raises:
        ConfigError: contradicting options. FormatError: a checkpoint that does not fit; `out` cannot be written.
        NativeError: the field was and stayed not finite.
        KeyboardInterrupt: passed on; the state was saved.
    """
    keep_freed_memory()
    session = _Session(source, options, out, name)
    state = session.start(resume, choice)
    hooks = [session.checkpoint]
    if report is not None:
        hooks.append(lambda state, clock: session.report(state, report))
    try:
        state = optimise(session.task, options.loop(surface=isinstance(source.signal, MeshSignal)), hooks, state)
    except KeyboardInterrupt:
        session.save_checkpoint()
        raise
    session.save_checkpoint()  # measuring may take long: what was learned is not lost in it
    model = session.model
    signal = source.signal
    if isinstance(signal, MeshSignal):
        quality = measure_surface(model, signal, cells=options.grid, report=measuring)
    else:
        quality = measure_fit(model, signal, report=measuring)
    if not all(math.isfinite(value) for value in quality if value is not None):
        raise NativeError("the field's values are not finite; fit it anew with a smaller --lr")
    parameters = sum(p.numel() for p in model.network.parameters())
    result = FitResult(model, quality, state.step, state.seconds, parameters, state.skipped, session.choice)
    model.provenance |= {"steps": state.step, "seconds": state.seconds, **quality._asdict()}
    model.save(out)
    checkpoint_path(out).unlink(missing_ok=True)
    return result


class _Session:
    """One fit: its parts, and the hooks that look on."""

    def __init__(self, source: Input, options: FitOptions, out: Path, name: str) -> None:
        self.source, self.options, self.out, self.name = source, options, out, name
        self.device = pick_device(options.device)
        self.state = LoopState()
        self.choice: FrequencyChoice | None = None
        self.frequency: float | None = None
        self._saved = 0.0

    def start(self, resume: bool, choice: FrequencyChoice | None) -> LoopState:
        """Build network and task, new or from the checkpoint."""
        signal, options = self.source.signal, self.options
        header, tensors = self._read_checkpoint() if resume else ({}, {})
        config = options.config(signal)
        self.frequency = options.number
        if resume:
            self.frequency = _number_of(header, checkpoint_path(self.out))
        elif options.chooses:
            self.choice = choice or choose(self.source, options)
            self.frequency = self.choice.chosen
        if self.frequency is not None:
            config = options.with_frequency(config, self.frequency)
        # What a signal places is in the checkpoint.
        network = build(options.field, config, options.seed, None if resume else signal).to(self.device)
        self.model = self._model(network)
        family = options.family
        lr = {k: v * options.lr for k, v in family.lr.items()}
        batch = options.batch or family.batch
        self.task = FitTask(network, signal.to(self.device), lr=lr, batch=batch, seed=options.seed, **family.adam)
        if resume:
            self._take(header, tensors)
        return self.state

    def _model(self, network: Network) -> ImplicitModel:
        source = self.source
        provenance = {"input": self.name, "polyfield": __version__, "torch": torch.__version__}
        if source.mesh is not None:
            provenance |= {"mesh": dataclasses.asdict(source.mesh), "grid": self.options.grid}
        signal = source.signal
        cube = (*signal.corner, signal.side) if isinstance(signal, MeshSignal) else None
        shown = (signal.kind, signal.size, source.low, source.high, source.fps, cube, self.options.target)
        return ImplicitModel(self.options.field, network, *shown, provenance)

    # -- hooks ------------------------------------------------------------------------------------------------------

    def checkpoint(self, state: LoopState, clock: Clock) -> None:
        self.state = state
        if state.seconds - self._saved >= CHECKPOINT_SECONDS and state.step != state.total_steps:
            self._saved = state.seconds
            self.save_checkpoint()

    def report(self, state: LoopState, sink: Callable[[FitProgress], None]) -> None:
        budget = self.options.loop().max_seconds
        if state.total_steps is not None:
            left = (state.total_steps - state.step) * state.seconds / max(1, state.step)
        else:
            left = (budget or math.nan) - state.seconds
        psnr = state.result.counts.get("psnr", math.nan)
        sink(FitProgress(state.step, state.total_steps, psnr, state.seconds, left))

    # -- files ------------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        header = {
            "kind": "checkpoint",
            "loop": self.state.as_dict(),
            "frequency": self.frequency,
            "settings": self._identity(),
        }
        write_tensors(checkpoint_path(self.out), header, self.task.tensors())

    def _identity(self) -> dict[str, Any]:
        """What must agree between a checkpoint and the fit that resumes it; lengths may differ."""
        free = {"max_steps", "max_seconds", "device", "grid"}
        options = {k: v for k, v in dataclasses.asdict(self.options).items() if k not in free}
        signal = self.source.signal
        return json.loads(json.dumps({**options, "signal": signal.kind, "size": signal.size, "input": self.name}))

    def _read_checkpoint(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        path = checkpoint_path(self.out)
        if not path.exists():
            raise FormatError(f"{path} does not exist: there is nothing to resume. Leave out --resume to start anew.")
        header, tensors = read_tensors(path, kind="checkpoint")
        mine, theirs = self._identity(), header.get("settings")
        if mine != theirs:
            differing = [k for k in mine if not isinstance(theirs, dict) or theirs.get(k) != mine[k]]
            raise ConfigError(
                f"{path} is of a fit with other settings ({', '.join(differing)}); resume with the same ones"
            )
        return header, tensors

    def _take(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        path, current = checkpoint_path(self.out), self.task.tensors()
        try:
            self.state = LoopState.from_dict(header["loop"])
        except (KeyError, TypeError) as error:
            raise FormatError(f"{path}: header is not a checkpoint's: {error}") from error
        if set(current) != set(tensors) or any(current[k].shape != tensors[k].shape for k in current):
            raise FormatError(f"{path}: its tensors are not those of this fit")
        with torch.no_grad():
            for key, tensor in current.items():
                tensor.copy_(tensors[key])


def _number_of(header: dict[str, Any], path: Path) -> float | None:
    value = header.get("frequency")
    if value is not None and (
        not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value)
    ):
        raise FormatError(f"{path}: header is not a checkpoint's: frequency {value!r:.60}")
    return None if value is None else float(value)


def _small(signal: GridSignal | MeshSignal) -> Tensor:
    """(H, W, C): the image, or the middle slice, brought to `SPECTRUM_SIDE` where it is larger."""
    if isinstance(signal, MeshSignal):
        points = grid_points((SPECTRUM_SIDE, SPECTRUM_SIDE, 1), 0, SPECTRUM_SIDE**2)
        return signal.wanted(signed_distances(signal.bvh, points)).reshape(SPECTRUM_SIDE, SPECTRUM_SIDE, 1)
    values = signal.values if signal.kind == "image" else signal.values[len(signal.values) // 2]
    scale = SPECTRUM_SIDE / min(values.shape[:2])
    planes = values.movedim(2, 0)[None].float()
    if scale < 1:
        height, width = (max(1, round(n * scale)) for n in values.shape[:2])
        planes = nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    return planes[0].movedim(0, 2) / (255 if values.dtype == torch.uint8 else 1)
