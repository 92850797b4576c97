"""What is saved and shown: a representation with its bounds, occupancy, frame and history, in one file.

The file is a `.safetensors` with a versioned JSON header (`formats.model_file`); loading it never runs code.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .base import RadianceField
from .errors import ConfigError, FormatError
from .formats.model_file import read_tensors, write_tensors
from .geometry import Similarity
from .radiance import FIELDS
from .render.march import MarchConfig
from .render.occupancy import OccupancyGrid


@dataclass
class Model:
    """A trained representation that can be rendered, saved and converted."""

    representation: RadianceField
    """What answers for density and colour."""
    occupancy: OccupancyGrid
    """Where it may have density."""
    march: MarchConfig
    """How its rays are sampled."""
    to_dataset: Similarity
    """Scene frame -> the data set's own frame and units; exports apply it."""
    background: str = "white"
    """Behind the scene when rendering: "white", "black" or "none" (black; the training images were opaque)."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where it came from: scene, settings, version."""

    @property
    def kind(self) -> str:
        """Key of `FIELDS`."""
        return next(name for name, (cls, _) in FIELDS.items() if type(self.representation) is cls)

    def save(self, path: str | Path) -> None:
        """Write the model file atomically: a failure leaves an older file at `path` as it was."""
        header = {
            "representation": self.kind,
            "config": dataclasses.asdict(self.representation.config),
            "occupancy": {"cascades": self.occupancy.cascades, "resolution": self.occupancy.resolution},
            "march": dataclasses.asdict(self.march),
            "to_dataset": self.to_dataset.to_dict(),
            "background": self.background,
            "provenance": self.provenance,
        }
        tensors = {f"representation.{k}": v for k, v in self.representation.state_dict().items()}
        tensors |= {f"occupancy.{k}": v for k, v in self.occupancy.state_dict().items()}
        write_tensors(Path(path), {"kind": "model", **header}, tensors)

    @staticmethod
    def load(path: str | Path, device: str | torch.device = "cpu") -> Model:
        """Read a model file.

        Raises:
            FormatError: cut short, foreign, of a newer version or of another kind; the text names the file.
        """
        path = Path(path)
        header, tensors = read_tensors(path, kind="model")
        name = header.get("representation")
        if name not in FIELDS:
            raise FormatError(f"{path}: holds a {name!r} model; this version knows {', '.join(FIELDS)}")
        cls, config_cls = FIELDS[name]
        try:
            representation = cls(config_from_dict(config_cls, header["config"]))
            occupancy = OccupancyGrid(**header["occupancy"])
            march = config_from_dict(MarchConfig, header["march"])
            to_dataset = Similarity.from_dict(header["to_dataset"])
            background, provenance = str(header["background"]), dict(header["provenance"])
        except (KeyError, TypeError, ConfigError) as error:
            raise FormatError(f"{path}: header is not a Polyfield model's: {error}") from error
        _fill(path, representation, "representation.", tensors)
        _fill(path, occupancy, "occupancy.", tensors)
        try:
            representation.check()
        except ConfigError as error:
            raise FormatError(f"{path}: {error}") from error
        representation, occupancy = representation.to(device), occupancy.to(device)
        return Model(representation, occupancy, march, to_dataset, background, provenance)


def _fill(path: Path, module: torch.nn.Module, prefix: str, tensors: dict[str, torch.Tensor]) -> None:
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    expected = module.state_dict()
    for key, value in expected.items():
        if key not in state:
            raise FormatError(f"{path}: tensor {prefix}{key} is missing")
        if state[key].shape != value.shape or state[key].dtype != value.dtype:
            got = (tuple(state[key].shape), state[key].dtype)
            raise FormatError(f"{path}: tensor {prefix}{key} must be {tuple(value.shape)} {value.dtype}; got {got}")
    unknown = sorted(set(state) - set(expected))
    if unknown:
        raise FormatError(f"{path}: unknown tensors {', '.join(prefix + k for k in unknown[:3])}")
    module.load_state_dict(state)


def config_from_dict(cls: type, values: Any) -> Any:
    """Rebuild a config dataclass from JSON, nested ones too; ConfigError for unknown keys or wrong types."""
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__} must be an object; got {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{cls.__name__} has no setting {', '.join(map(repr, unknown))}")
    return cls(**{key: _typed(f"{cls.__name__}.{key}", hints[key], value) for key, value in values.items()})


def _typed(name: str, hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return config_from_dict(hint, value)  # type: ignore[arg-type]
    origin = typing.get_origin(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(value)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{name} must be one of {typing.get_args(hint)}; got {value!r}")
        return value
    if origin in (typing.Union, types.UnionType):
        return value
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and type(value) is not hint:
        raise ConfigError(f"{name} must be {hint.__name__}; got {value!r}")
    return value
