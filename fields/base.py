"""The contracts: what every radiance field is, whatever stands behind it.

A field is a function of points. It knows no rays, no cameras and no images; marching, training, conversion and meshing
are written once against the class below. It follows the two blocks of PVD (arXiv 2211.15977, section 3.1): block 1 maps
positions to a density and a feature vector, block 2 maps features and a direction to colour.

Frames: positions are in the model's scene frame, in which the region of interest is about [-1, 1]^3; the field itself
maps them to [0, 1]^3. Density is per unit length of the scene frame. Directions are unit vectors; they never reach
`geometry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn


class Geometry(NamedTuple):
    """What block 1 says of N points."""

    density_raw: Tensor
    """(N,) density before its activation (`RadianceField.density_activation`)."""
    features: Tensor
    """(N, F) features for block 2, F = `RadianceField.feature_count`."""


class RadianceField(nn.Module, ABC):
    """Abstract. Concrete fields declare the attributes below and implement `geometry` and `radiance`."""

    config: Any
    """Frozen dataclass from which the field was built; it is written to the model file."""
    bounds: Tensor
    """(2, 3) lower and upper corner, scene frame, of where the field has density."""
    contraction: str
    """A key of `fields.geometry.CONTRACTIONS`: how space beyond the unit region is folded in."""
    density_activation: str
    """A key of `fields.ops.activations.DENSITY_ACTIVATIONS`, applied inside compositing."""
    feature_count: int
    """F. Converters match features only where F agrees; 0 where there is no feature vector."""
    integrates: bool = False
    """Whether `geometry` makes use of footprints; rays for other fields need no radii."""
    costly: bool = False
    """Whether a point costs so much that its answers are worth keeping."""
    sparse_gradients: bool = False
    """Whether who trains the field takes sparse gradients of lazy parameters, as `lazy_adam_` does; they are given
    where they cost less."""

    @abstractmethod
    def geometry(self, x: Tensor, *, time: Tensor | None = None, footprint: Tensor | None = None) -> Geometry:
        """Block 1 and the density head.

        Args:
            x: (N, 3) positions, scene frame. Outside `bounds` the field answers as at the nearest point inside.
            time: (N,) in [0, 1] for dynamic fields; ignored by static ones.
            footprint: (N, 3, 3) covariance of the sample's cone, scene units squared, for fields that integrate their
                encoding (`integrates`); without it they take points to be as wide as their config says. Others
                ignore it.
        """

    @abstractmethod
    def radiance(
        self,
        features: Tensor,
        directions: Tensor,
        *,
        x: Tensor | None = None,
        normals: Tensor | None = None,
        appearance: Tensor | None = None,
    ) -> Tensor:
        """Block 2: colour (N, 3), sRGB-encoded as the training images are.

        Args:
            features: (N, F) from `geometry`.
            directions: (N, 3) unit viewing directions, scene frame, pointing away from the camera.
            x, normals, appearance: for fields that want them; others ignore them.
        """

    @property
    def color_inputs(self) -> int:
        """C of `color_inputs_at`."""
        return self.feature_count

    def color_inputs_at(self, x: Tensor, geometry: Geometry) -> Tensor:
        """(N, C) what colours at positions (N, 3) depend on besides the direction, `geometry` being the field's answer
        there; `radiance` takes it in place of the features. They are the features unless it is kept elsewhere."""
        return geometry.features

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for an optimiser: dicts with `name`, `params` and `lr`; with `lazy` true, rows without gradient stay
        as they are (`ops.adam`); `matrices`, parts of other groups' parameters, are for Muon (`ops.muon`)."""

    def grow(self, progress: float, occupied: Callable[[], Tensor]) -> bool:
        """Refine the representation as its training goes on; called before every step. Most fields never do.

        Args:
            progress: share of the training that is done, 0 to 1.
            occupied: gives (2, 3) lower and upper corner of where there may be density, scene frame.

        Returns:
            True where parameters were replaced by others, of the same names: an optimiser's state of them is void.
        """
        return False

    def add_prior_gradients(self, step: int, seed: int) -> None:
        """Add to the parameters' gradients those of what the field wants of them whatever the images are, such as
        smoothness; called in training after the images' were found. Random draws depend on (seed, step) alone."""

    def growth(self) -> dict[str, Any]:
        """How far it has grown, as JSON values."""
        return {}

    def regrow(self, growth: dict[str, Any]) -> None:
        """Take the shape that `growth` described; values are then undefined."""

    def check(self) -> None:
        """Called after tensors were read from a file: ConfigError where they contradict one another."""
