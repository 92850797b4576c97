"""What is a mesh to a field? Distances or insides at points near its surface and anywhere in a cube.

A field learns one of three: the signed distance, negative inside; the unsigned distance, which needs no inside; the
occupancy, as the logit of being outside, so that all of a field that has an inside are negative there.

The mesh is moved into the unit cube, a margin round it, and scaled by one factor; distances are in sides of that cube.
The points are drawn once: most near the surface, where a zero crossing is to be found, some anywhere, so that nothing
far off is taken for inside (instant-ngp's mixture, section 5.2, with normal in place of logistic offsets).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ..geometry import Mesh, sample_surface
from ..ops.mesh_bvh import MeshBvh, build_bvh, signed_distances

Target = Literal["sdf", "udf", "occupancy"]
"""Signed distance, unsigned distance, inside or outside."""
MARGIN = 0.05
"""Of the cube, left free on every side."""
OFFSETS = ((0.3, 0.01), (0.6, 0.001))
"""Shares of the points near the surface and the standard deviations of their offsets along each axis; the rest are
anywhere in the cube. With (.625, .01) and (.25, .002) the insides are less exact (armadillo, 40 s: IoU .9976)."""
OCCUPANCY_OFFSETS = ((0.3, 0.01), (0.3, 0.001))
"""As `OFFSETS`, of occupancy, which says nothing of how far off a point is: with fewer points far from the surface
specks remain there (armadillo, 60 s: IoU .994 for .987, Chamfer distance 7e-4 for 4e-3)."""
POINTS = 1 << 22
"""Drawn once; two cores find their distances in four seconds."""
CELLS = 256
"""Along each axis of the cube, when the field is made a mesh again."""


@dataclass(frozen=True)
class MeshSignal:
    """A mesh as points to learn from. Made by `make_mesh_signal`."""

    mesh: Mesh
    """In the unit cube, float32."""
    bvh: MeshBvh
    """Of `mesh`."""
    points: Tensor
    """(P, 3) float32 in the unit cube."""
    distances: Tensor
    """(P, 1) float32, signed, in sides of the cube."""
    corner: tuple[float, float, float]
    """Of the cube, in the mesh's own frame."""
    side: float
    """Of the cube, in the mesh's own units."""
    target: Target = "sdf"
    """What is learned of the distances."""
    kind: ClassVar[Literal["surface"]] = "surface"
    channels: ClassVar[int] = 1
    size: ClassVar[tuple[int, int, int]] = (CELLS, CELLS, CELLS)
    aspect: ClassVar[tuple[float, float, float]] = (1.0, 1.0, 1.0)

    @property
    def cells(self) -> int:
        """Points there are to learn from."""
        return len(self.points)

    @property
    def device(self) -> torch.device:
        return self.points.device

    def to(self, device: torch.device | str) -> MeshSignal:
        """The same with its points elsewhere; mesh and tree stay."""
        return replace(self, points=self.points.to(device), distances=self.distances.to(device))

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) numbers of points -> points (N, 3) and what is to be learned there (N, 1)."""
        return self.points[index], self.wanted(self.distances[index])

    def wanted(self, distances: Tensor) -> Tensor:
        """Signed distances -> as they are, or without their sign, or 1 outside and -1 inside."""
        if self.target == "sdf":
            return distances
        return distances.abs() if self.target == "udf" else torch.where(distances < 0, -1.0, 1.0)


def make_mesh_signal(mesh: Mesh, *, target: Target = "sdf", points: int = POINTS, seed: int = 0) -> MeshSignal:
    """Draw points and find their distances.

    Args:
        mesh: closed and facing outwards, if inside is to mean anything (`geometry.check_mesh`); any frame and units,
            float64 where it lies far from its origin.
        target: what is learned.
        points: how many.

    Raises:
        ConfigError: the mesh has no area or is not finite, or `points` is below 1.
    """
    if points < 1:
        raise ConfigError(f"points must be at least 1; got {points}")
    used = mesh.vertices[mesh.triangles.unique()].double()
    if not len(used) or not used.isfinite().all():
        raise ConfigError("a mesh to be fitted must have triangles, and finite vertices")
    low, high = used.amin(0), used.amax(0)
    side = float((high - low).max()) / (1 - 2 * MARGIN)
    if not 0 < side < float("inf"):
        raise ConfigError(f"a mesh to be fitted must have an extent; this one's cube has sides of {side}")
    corner = (low + high) / 2 - side / 2
    unit = Mesh(((mesh.vertices.double() - corner) / side).float(), mesh.triangles)
    bvh = build_bvh(unit.vertices, unit.triangles)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for share, deviation in OCCUPANCY_OFFSETS if target == "occupancy" else OFFSETS:
        near = sample_surface(unit, int(share * points), generator).points
        parts.append(near + deviation * torch.randn(near.shape, generator=generator))
    parts.append(torch.rand(points - sum(len(p) for p in parts), 3, generator=generator))
    drawn = torch.cat(parts).clamp(0, 1)
    distances = signed_distances(bvh, drawn)[:, None]
    x, y, z = corner.tolist()
    return MeshSignal(unit, bvh, drawn, distances, (x, y, z), side, target)
