"""What is a mesh to a field? Signed distances, negative inside, at points near its surface and anywhere in a cube.

The mesh is moved into the unit cube, a margin round it, and scaled by one factor; distances are in sides of that cube.
The points are drawn once: most near the surface, where a zero crossing is to be found, some anywhere, so that nothing
far off is taken for inside (instant-ngp's mixture, section 5.2, with normal in place of logistic offsets).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ..geometry import Mesh, sample_surface
from ..ops.mesh_bvh import MeshBvh, build_bvh, signed_distances

MARGIN = 0.05
"""Of the cube, left free on every side."""
OFFSETS = ((0.3, 0.01), (0.6, 0.001))
"""Shares of the points near the surface and the standard deviations of their offsets along each axis; the rest are
anywhere in the cube. With (.625, .01) and (.25, .002) the insides are less exact (armadillo, 40 s: IoU .9976)."""
POINTS = 1 << 22
"""Drawn once; two cores find their distances in four seconds."""
CELLS = 256
"""Along each axis of the cube, when the field is made a mesh again."""


@dataclass(frozen=True)
class MeshSignal:
    """Signed distances of a mesh. Made by `make_mesh_signal`."""

    mesh: Mesh
    """In the unit cube, float32."""
    bvh: MeshBvh
    """Of `mesh`."""
    points: Tensor
    """(P, 3) float32 in the unit cube."""
    distances: Tensor
    """(P, 1) float32, in sides of the cube."""
    corner: tuple[float, float, float]
    """Of the cube, in the mesh's own frame."""
    side: float
    """Of the cube, in the mesh's own units."""
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
        points, distances = self.points.to(device), self.distances.to(device)
        return MeshSignal(self.mesh, self.bvh, points, distances, self.corner, self.side)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) numbers of points -> points (N, 3) and distances (N, 1)."""
        return self.points[index], self.distances[index]


def make_mesh_signal(mesh: Mesh, *, points: int = POINTS, seed: int = 0) -> MeshSignal:
    """Draw points and find their distances.

    Args:
        mesh: closed and facing outwards, if inside is to mean anything (`geometry.check_mesh`); any frame and units.
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
    for share, deviation in OFFSETS:
        near = sample_surface(unit, int(share * points), generator).points
        parts.append(near + deviation * torch.randn(near.shape, generator=generator))
    parts.append(torch.rand(points - sum(len(p) for p in parts), 3, generator=generator))
    drawn = torch.cat(parts).clamp(0, 1)
    distances = signed_distances(bvh, drawn)[:, None]
    x, y, z = corner.tolist()
    return MeshSignal(unit, bvh, drawn, distances, (x, y, z), side)
