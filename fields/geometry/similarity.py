"""How does one frame map to another: y = scale * rotation @ x + translation?

Normalisation produces a `Similarity` (dataset frame to scene frame) and the model file keeps its inverse, so that
exports come back in the dataset's own frame and units. Parameters are kept in float64 on the CPU, because they are
inverted, composed and written to files; `apply` casts them to the dtype and device of what it transforms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConfigError, FormatError, ShapeError

if TYPE_CHECKING:
    from .cameras import Cameras

# Entries of R^T R may differ from the identity by this much: files print rotations with 4 to 7 digits.
RIGID_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Similarity:
    """A rotation, a uniform scale and a translation: y = scale * rotation @ x + translation.

    Attributes:
        scale: Positive, finite. Units of the target frame per unit of the source frame.
        rotation: (3, 3) proper rotation (determinant +1).
        translation: (3,), in units of the target frame.

    Raises:
        ConfigError: Not finite, a scale that is not positive, or a matrix that is not a rotation.
        ShapeError: Wrong shapes.
    """

    scale: float
    rotation: Tensor
    translation: Tensor

    def __post_init__(self) -> None:
        rotation = torch.as_tensor(self.rotation).detach().to("cpu", torch.float64)
        translation = torch.as_tensor(self.translation).detach().to("cpu", torch.float64)
        if rotation.shape != (3, 3) or translation.shape != (3,):
            raise ShapeError(
                f"a similarity needs rotation (3, 3) and translation (3,); got {tuple(rotation.shape)} and "
                f"{tuple(translation.shape)}"
            )
        object.__setattr__(self, "scale", float(self.scale))
        object.__setattr__(self, "rotation", rotation)
        object.__setattr__(self, "translation", translation)
        fault = self._fault()
        if fault:
            raise ConfigError(fault)

    def _fault(self) -> str | None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            return f"scale of a similarity must be finite and positive; got {self.scale}"
        if not bool(torch.isfinite(self.rotation).all() and torch.isfinite(self.translation).all()):
            return (
                "rotation and translation of a similarity must be finite; got "
                f"{self.rotation.tolist()} and {self.translation.tolist()}"
            )
        return rotation_fault(self.rotation)

    @staticmethod
    def identity() -> Similarity:
        """The map that changes nothing."""
        return Similarity(1.0, torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))

    def apply(self, points: Tensor) -> Tensor:
        """Maps points (..., 3) of the source frame to the target frame; gradients flow to the points."""
        rotation = self.rotation.to(points)
        return self.scale * (points @ rotation.T) + self.translation.to(points)

    def apply_directions(self, directions: Tensor) -> Tensor:
        """Rotates directions or normals (..., 3); their length is kept."""
        return directions @ self.rotation.to(directions).T

    def apply_to_cameras(self, cameras: Cameras) -> Cameras:
        """The same cameras, posed in the target frame."""
        return cameras.transformed(self)

    def inverse(self) -> Similarity:
        """The map back: x = rotation^T (y - translation) / scale."""
        return Similarity(1.0 / self.scale, self.rotation.T, -(self.rotation.T @ self.translation) / self.scale)

    def compose(self, first: Similarity) -> Similarity:
        """The map that applies `first` and then this one."""
        return Similarity(
            self.scale * first.scale,
            self.rotation @ first.rotation,
            self.scale * (self.rotation @ first.translation) + self.translation,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; `from_dict` reads them back exactly."""
        return {
            "scale": self.scale,
            "rotation": self.rotation.tolist(),
            "translation": self.translation.tolist(),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Similarity:
        """Reads what `to_dict` wrote, treating it as hostile input.

        Raises:
            FormatError: Keys are missing, values are not numbers of the right shape, are not finite, or are not a
                similarity.
        """
        if not isinstance(data, Mapping):
            raise FormatError(
                f"a similarity must be an object with scale, rotation, translation; got {type(data).__name__}"
            )
        missing = [key for key in ("scale", "rotation", "translation") if key not in data]
        if missing:
            raise FormatError(f"a similarity needs scale, rotation and translation; {', '.join(missing)} missing")
        try:
            return Similarity(
                float(data["scale"]),
                torch.tensor(data["rotation"], dtype=torch.float64),
                torch.tensor(data["translation"], dtype=torch.float64),
            )
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise FormatError(f"not a similarity: {error}") from error


def rotation_fault(rotation: Tensor, tolerance: float = RIGID_TOLERANCE) -> str | None:
    """Says what is wrong with a (3, 3) rotation, or None.

    Args:
        rotation: (3, 3), finite.
        tolerance: Allowed absolute error of each entry of R^T R.
    """
    rotation = rotation.detach().to("cpu", torch.float64)
    error = float((rotation.T @ rotation - torch.eye(3, dtype=torch.float64)).abs().max())
    if error > tolerance:
        return (
            f"rotation must be orthonormal within {tolerance:g}; R^T R is off by {error:.3g} "
            "(is there a scale or shear in the matrix?)"
        )
    determinant = float(torch.linalg.det(rotation))
    if determinant < 0:
        return f"rotation must have determinant +1; got {determinant:.3g} (a mirror image: an axis has the wrong sign)"
    return None
