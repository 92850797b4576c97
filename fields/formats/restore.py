"""How do a configuration and a module come back from the header and the tensors of a file? Every value is checked: what
is missing, unknown, or of another type or shape is refused in one line.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, FormatError


def fill_module(path: Path, module: torch.nn.Module, prefix: str, tensors: dict[str, torch.Tensor]) -> None:
    """Load the tensors whose names begin with `prefix` into `module`.

    Raises:
        FormatError: tensors are missing, unknown or of another shape or dtype.
    """
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
