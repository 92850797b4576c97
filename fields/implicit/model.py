"""What does fitting give, and how is it kept? A network with the signal it stands for, in one file.

The file is a `.safetensors` with a versioned JSON header of kind "implicit"; loading it never runs code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from ..errors import ConfigError, FormatError
from ..formats.model_file import read_tensors, write_tensors
from ..formats.restore import config_from_dict, fill_module
from .kinds import KINDS, Network, build
from .signal import DIMENSIONS, SignalKind, grid_points
from .surface import Target

FILE_KIND = "implicit"
_MOST_CELLS = 1 << 34
_OUTPUTS: dict[SignalKind, tuple[int, ...]] = {"image": (3, 4), "video": (3, 4), "surface": (1,)}


@dataclass
class ImplicitModel:
    """A fitted image, film, volume or surface."""

    kind: str
    """Key of `KINDS`."""
    network: Network
    """Points (N, D) in [0, 1] -> values (N, C): images in [0, 1], sRGB-encoded; of surfaces what `target` says,
    distances in sides of the cube."""
    signal: SignalKind
    size: tuple[int, ...]
    """Cells along x, y (and z or t) of what was fitted."""
    low: float = 0.0
    """What 0 stands for in the values of a volume."""
    high: float = 1.0
    """What 1 stands for."""
    fps: float | None = None
    """Frames per second of a film."""
    cube: tuple[float, float, float, float] | None = None
    """Of a surface: corner (x, y, z) and side of the cube that [0, 1]^3 stands for, in the mesh's own frame."""
    target: Target = "sdf"
    """Of a surface: what the values are; of an occupancy the logits of being outside."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where it came from: input, steps, quality."""

    def save(self, path: str | Path) -> None:
        """Write the file atomically: a failure leaves an older file at `path` as it was."""
        header = {
            "kind": FILE_KIND,
            "field": self.kind,
            "config": dataclasses.asdict(self.network.config),
            "signal": self.signal,
            "size": list(self.size),
            "low": self.low,
            "high": self.high,
            "fps": self.fps,
            "cube": self.cube,
            "target": self.target,
            "provenance": self.provenance,
        }
        write_tensors(Path(path), header, self.network.state_dict())

    @staticmethod
    def load(path: str | Path, device: str | torch.device = "cpu") -> ImplicitModel:
        """Read such a file.

        Raises:
            FormatError: cut short, foreign, of a newer version or of another kind; the text names the file.
        """
        path = Path(path)
        header, tensors = read_tensors(path, kind=FILE_KIND)
        kind, size = header.get("field"), header.get("size")
        named = header.get("signal")
        signal: SignalKind | None = next((k for k in DIMENSIONS if named == k), None)
        if not isinstance(kind, str) or kind not in KINDS:
            raise FormatError(f"{path}: holds a {kind!r:.60} field; this version knows {', '.join(KINDS)}")
        if signal is None or not isinstance(size, list) or not _is_size(size, DIMENSIONS[signal]):
            found = f"{named!r:.60} {size!r:.60}"
            raise FormatError(f"{path}: signal and size must be those of an image or volume; got {found}")
        goal = header.get("target", "sdf")  # all that earlier versions wrote
        target: Target | None = next((t for t in get_args(Target) if goal == t), None)
        if target is None:
            raise FormatError(f"{path}: target must be {', '.join(get_args(Target))}; got {goal!r:.60}")
        try:
            network = build(kind, config_from_dict(KINDS[kind].config, header["config"]))
            low, high = float(header["low"]), float(header["high"])
            fps = None if header["fps"] is None else float(header["fps"])
            x, y, z, side = map(float, header["cube"] or (0, 0, 0, 1))
            provenance = dict(header["provenance"])
        except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
            raise FormatError(f"{path}: header is not an implicit field's: {error}") from error
        inputs, outputs = network.config.inputs, network.config.outputs
        if inputs != len(size) or outputs not in _OUTPUTS.get(signal, (outputs,)):
            raise FormatError(
                f"{path}: {inputs} inputs and {outputs} outputs are not those of a field of kind {signal}"
            )
        fill_module(path, network, "", tensors)
        shown = (signal, tuple(size), low, high, fps, (x, y, z, side), target)
        return ImplicitModel(kind, network.to(device), *shown, provenance)

    @torch.no_grad()
    def sample(
        self,
        size: tuple[int, ...] | None = None,
        *,
        block: int = 1 << 16,
        report: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """The values at the cell centres of a grid of any size, (.., y, x, C) float32 on the CPU, images unclamped.

        Args:
            size: cells along x, y (and z or t); None: those of what was fitted.
            block: points at a time.
            report: called with (cells done, all) after every block.

        Raises:
            ConfigError: a size of another number of axes, or beyond reason.
        """
        size = size or self.size
        if len(size) != len(self.size) or not _is_size(list(size), len(self.size)):
            raise ConfigError(
                f"size must be {len(self.size)} positive numbers of cells, at most {_MOST_CELLS} in all; got {size}"
            )
        device = next(self.network.parameters()).device
        cells = math.prod(size)
        out = torch.empty(cells, self.network.config.outputs)
        for first in range(0, cells, block):
            end = min(first + block, cells)
            out[first:end] = self.network(grid_points(size, first, end - first, device))
            if report is not None:
                report(end, cells)
        return out.reshape(*reversed(size), -1)


def _is_size(size: list[Any], dimensions: int) -> bool:
    return len(size) == dimensions and all(type(n) is int and n >= 1 for n in size) and math.prod(size) <= _MOST_CELLS
