"""What is saved and shown: a representation with its bounds, occupancy, frame and history, in one file.

The file is a `.safetensors` with a versioned JSON header (`formats.model_file`); loading it never runs code.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .base import RadianceField
from .errors import ConfigError, FormatError, ShapeError
from .formats.model_file import read_tensors, write_tensors
from .formats.restore import config_from_dict, fill_module
from .geometry import Similarity
from .radiance import FIELDS
from .render.march import MarchConfig
from .render.occupancy import OccupancyGrid

OCCUPANCY = "occupancy.bits"
"""The one tensor of the occupancy grid in a file: what rendering needs of it."""


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
        tensors[OCCUPANCY] = self.occupancy.bits
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
        if not isinstance(name, str) or name not in FIELDS:
            raise FormatError(f"{path}: holds a {name!r:.60} model; this version knows {', '.join(FIELDS)}")
        cls, config_cls = FIELDS[name]
        try:
            representation = cls(config_from_dict(config_cls, header["config"]))
            occupancy = OccupancyGrid(**header["occupancy"])
            march = config_from_dict(MarchConfig, header["march"])
            to_dataset = Similarity.from_dict(header["to_dataset"])
            background, provenance = str(header["background"]), dict(header["provenance"])
        except (KeyError, TypeError, ConfigError) as error:
            raise FormatError(f"{path}: header is not a Polyfield model's: {error}") from error
        fill_module(path, representation, "representation.", tensors)
        try:
            occupancy.take_bits(tensors.get(OCCUPANCY, torch.empty(0)))
            representation.check()
        except (ConfigError, ShapeError) as error:
            raise FormatError(f"{path}: {error}") from error
        representation, occupancy = representation.to(device), occupancy.to(device)
        return Model(representation, occupancy, march, to_dataset, background, provenance)
