"""Where one training run keeps its files, which names are free, and whether a run may be continued.

A run folder holds `config.json` (what was asked for), `cameras.json` (the data set's cameras, transforms.json layout),
`metrics.jsonl`, `previews/`, `checkpoint.safetensors`, `model.safetensors` and, once finished, `result.json`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...fields.errors import ConfigError, FormatError
from ...fields.formats import is_leftover, remove_leftovers, write_json

if TYPE_CHECKING:
    from ..convert import ConvertOptions
    from ..train import TrainOptions

Options = TypeVar("Options", "TrainOptions", "ConvertOptions")
RUNS = Path("runs")
CONFIG, CAMERAS, RESULT = "config.json", "cameras.json", "result.json"
MODEL, CHECKPOINT = "model.safetensors", "checkpoint.safetensors"
CONFIG_VERSION = 1
# What `--resume` may change: the number of steps upwards, and what has no part in the trained model.
_MAY_CHANGE = ("max_steps", "memory_gb", "eval_images", "checkpoint_every", "evaluate_every")


def scene_name(scene: str) -> str:
    """Name of a scene as part of a folder's name: the last part of its path, letters, digits, '.', '_', '-' only."""
    name = re.sub(r"[^\w.-]+", "-", Path(scene).resolve().name if scene != "demo" else scene).strip("-.")
    return name or "scene"


def next_free(scene: str, model: str, runs: Path = RUNS) -> Path:
    """`runs/SCENE-MODEL-N` with the smallest N above all that exist."""
    taken = _numbers(scene, model, runs)
    return runs / f"{scene_name(scene)}-{model}-{max(taken, default=0) + 1}"


def newest(scene: str, model: str, runs: Path = RUNS) -> Path:
    """The existing `runs/SCENE-MODEL-N` with the largest N.

    Raises:
        ConfigError: there is none.
    """
    taken = _numbers(scene, model, runs)
    if not taken:
        raise ConfigError(f"there is no {runs / scene_name(scene)}-{model}-N to resume; give the run folder with --out")
    return runs / f"{scene_name(scene)}-{model}-{max(taken)}"


def _numbers(scene: str, model: str, runs: Path) -> list[int]:
    pattern = re.compile(re.escape(f"{scene_name(scene)}-{model}-") + r"(\d{1,9})$")
    found = (pattern.match(p.name) for p in runs.iterdir()) if runs.is_dir() else ()
    return [int(m[1]) for m in found if m]


def check_free(run: Path) -> None:
    """Refuse a folder that holds anything.

    Raises:
        ConfigError: it is a file, another run or a folder with files.
    """
    if run.is_dir():
        if (run / CONFIG).exists():
            raise ConfigError(f"{run} holds another run; continue it with --resume or choose another --out")
        if any(not is_leftover(p) for p in run.iterdir()):
            raise ConfigError(f"{run} is not empty and holds no run; choose another --out")
    elif run.exists():
        raise ConfigError(f"{run} is a file; --out must be a folder")


def claim(run: Path, config: dict[str, Any]) -> None:
    """Create the folder and write `config.json`, the mark of a run.

    Raises:
        ConfigError: the folder is taken.
        FormatError: it cannot be written to.
    """
    check_free(run)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FormatError(f"{run} could not be created: {error.strerror or error}") from error
    write_json(run / CONFIG, {"format": "polyfield-run", "version": CONFIG_VERSION, **config})


def read_config(run: Path) -> dict[str, Any]:
    """The `config.json` of a run.

    Raises:
        ConfigError: `run` is no run folder.
        FormatError: the file is damaged or of a newer version.
    """
    path = run / CONFIG
    if not path.is_file():
        raise ConfigError(f"{run} is not a run folder (it has no {CONFIG}); start a new run without --resume")
    value = read_json_object(path)
    version = value.get("version")
    if version != CONFIG_VERSION:
        raise FormatError(
            f"{path}: version must be {CONFIG_VERSION}, the one this Polyfield writes; got {version!r:.40}"
        )
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        FormatError: unreadable, not JSON or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} must hold a JSON object; got {type(value).__name__}")
    return value


def continue_run(run: Path, config: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """Check that `config` continues the run `stored`, write a raised step count down and clear a killed writer's rest.

    Args:
        config, stored: as given to `claim`: {"scene": ..., "data": {...}, "training": {...}, ...}.

    Returns:
        The configuration of the run from now on.

    Raises:
        ConfigError: a setting other than `max_steps` differs, or `max_steps` is lower than it was.
    """
    new, old = _flatten(config), _flatten({k: v for k, v in stored.items() if k in config})
    if new.get("max_steps") is not None and new.get("max_seconds") is None:
        old.pop("max_seconds", None)  # a run that was given seconds is continued to a number of steps
        new.pop("max_seconds", None)
    for name in sorted(new.keys() | old.keys()):
        if new.get(name) != old.get(name) and name not in _MAY_CHANGE:
            raise ConfigError(
                f"{run} was started with {_option(name)} {_shown(old.get(name))}, now it is {_shown(new.get(name))}; "
                "--resume may only raise --max-steps (leave the other options out)"
            )
    steps, before = new.get("max_steps"), old.get("max_steps")
    if steps is not None and before is not None and steps < before:
        raise ConfigError(f"{run} was started with --max-steps {before}; --resume may only raise it, got {steps}")
    remove_leftovers(run)
    if new != old:
        write_json(run / CONFIG, {**stored, **config})
    return config


def prefer_steps(options: Options, stored: dict[str, Any]) -> Options:
    """The options of a run to be resumed: one that was started with --max-seconds and is resumed with --max-steps goes
    by the steps from now on. `stored`: its options as `config.json` keeps them."""
    if options.max_steps is None or stored.get("max_steps") is not None:
        return options
    return dataclasses.replace(options, max_seconds=None)


def model_file(path: Path) -> Path:
    """The model file of a run folder (that of a conversion lies beside it), or `path` itself if it is a file.

    Raises:
        FormatError: neither.
    """
    if path.is_dir():
        beside = Path(f"{path}.safetensors")
        if (path / MODEL).is_file():
            return path / MODEL
        if (path / CONFIG).is_file() and beside.is_file():
            return beside
        raise FormatError(f"{path} has no {MODEL}; give a model file or a folder of 'polyfield train' or 'convert'")
    if not path.exists():
        raise FormatError(f"{path}: no such model file or run folder")
    return path


def trained_downscale(model: Path) -> int:
    """By what the photos were shrunk in training, also in that of the first teacher of a conversion; 1 where `model` is
    no run folder."""
    if not (model.is_dir() and (model / CONFIG).is_file()):
        return 1
    value = read_config(model).get("data", {}).get("downscale", 1)
    return value if type(value) is int and value >= 1 else 1


def cameras_file(model: Path) -> Path | None:
    """The cameras that `train` or `convert` kept for a model, data set frame; None where there are none.

    Those of a run folder lie in it; those of a file beside it, or, for NAME.safetensors, in the folder NAME.
    """
    folders = (model,) if model.is_dir() else (model.with_suffix(""), model.parent)
    return next((f / CAMERAS for f in folders if (f / CAMERAS).is_file()), None)


def _flatten(config: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(value if isinstance(value, dict) else {key: value})
    return flat


def _option(name: str) -> str:
    named = {"scene": "the scene", "teacher": "the model", "teacher_sha256": "a model whose SHA-256 is"}
    return named.get(name, "--" + name.replace("_", "-"))


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
