"""What is a triangle mesh, can its inside be trusted, and how are points drawn from its surface?

Triangles are counter-clockwise seen from outside. Whether a point is inside is asked of winding numbers
(`ops.mesh_bvh`), which need no common indices but that every edge is passed as often one way as the other: then they
are whole numbers. Topology is therefore told by the positions of the vertices, not by their indices: files of loose
triangles (STL) count as closed where they are. Self-intersections are not looked for; where parts overlap, inside one
is inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ..ops.mesh_bvh import build_bvh, winding_numbers


@dataclass(frozen=True)
class Mesh:
    """Triangles in space.

    Raises:
        ShapeError: shapes or dtypes are not as below.
        ConfigError: an index is out of range.
    """

    vertices: Tensor
    """(V, 3) float32 or float64."""
    triangles: Tensor
    """(T, 3) int64 indices of vertices; 0 triangles are allowed."""

    def __post_init__(self) -> None:
        v, t = self.vertices, self.triangles
        if v.dim() != 2 or v.shape[1] != 3 or v.dtype not in (torch.float32, torch.float64):
            raise ShapeError(f"vertices must be (V, 3) float32 or float64; got {tuple(v.shape)} {v.dtype}")
        if t.dim() != 2 or t.shape[1] != 3 or t.dtype != torch.int64 or t.device != v.device:
            wanted = f"(T, 3) int64 on {v.device}"
            raise ShapeError(f"triangles must be {wanted}; got {tuple(t.shape)} {t.dtype} on {t.device}")
        if t.numel() and (int(t.min()) < 0 or int(t.max()) >= v.shape[0]):
            found = f"{int(t.min())} to {int(t.max())}"
            raise ConfigError(f"triangles must have indices from 0 to {v.shape[0] - 1}; got {found}")

    def to(self, device: torch.device | str) -> Mesh:
        """The same on another device."""
        return Mesh(self.vertices.to(device), self.triangles.to(device))

    def corners(self) -> Tensor:
        """(T, 3, 3) positions of the corners [triangle, corner, axis]."""
        return self.vertices[self.triangles]

    def area_vectors(self) -> Tensor:
        """(T, 3) outward normals, as long as the triangles' areas."""
        a, b, c = self.corners().unbind(1)
        return torch.linalg.cross(b - a, c - a) / 2

    def signed_volume(self) -> Tensor:
        """() enclosed volume; negative where the mesh is inside out; means nothing where it is open."""
        corners = self.corners()
        middle = corners.mean((0, 1)) if corners.shape[0] else 0.0  # nearby, lest the sum cancel
        a, b, c = (corners - middle).unbind(1)
        return (a * torch.linalg.cross(b, c)).sum() / 6


@dataclass(frozen=True)
class MeshReport:
    """What `check_mesh` found."""

    vertices: int
    triangles: int
    open_edges: int
    """Edges that are not passed as often one way as the other: of holes, and between triangles of opposite sense."""
    non_manifold_edges: int
    """Edges of more than two triangles."""
    degenerate_triangles: int
    """Without area."""
    duplicate_vertices: int
    """At the position of an earlier one; see `merge_vertices`."""
    components: int
    """Parts that have no vertex in common."""
    inside_out_components: int
    """Components whose back is not inside; 0 where there are open edges, since then nothing can be said."""
    signed_volume: float
    signed_distance_trusted: bool
    """Whether signed distance and occupancy mean inside and outside."""
    explanation: str
    """Why, in one line, and what to do."""


class SurfaceSamples(NamedTuple):
    """Points on a mesh."""

    points: Tensor
    """(n, 3)."""
    normals: Tensor
    """(n, 3) unit normals of the triangles."""
    triangles: Tensor
    """(n,) int64."""


def merge_vertices(mesh: Mesh) -> Mesh:
    """The same triangles over vertices of different positions (bit for bit; -0 is 0), sorted; unused ones go too."""
    positions, of_vertex = torch.unique(mesh.vertices + 0.0, dim=0, return_inverse=True)
    used, triangles = torch.unique(of_vertex[mesh.triangles], return_inverse=True)
    return Mesh(positions[used], triangles.reshape(-1, 3))


def check_mesh(mesh: Mesh) -> MeshReport:
    """Tell whether signed distance and occupancy of a mesh can be trusted, and what else is odd about it.

    Args:
        mesh: with at least one triangle and finite vertices.

    Raises:
        ShapeError, ConfigError: as `build_bvh`.
    """
    mesh = mesh.to("cpu")
    bvh = build_bvh(mesh.vertices.double(), mesh.triangles)
    merged = merge_vertices(Mesh(bvh.vertices, mesh.triangles))
    duplicates = mesh.vertices.shape[0] - torch.unique(mesh.vertices + 0.0, dim=0).shape[0]
    areas = merged.area_vectors()
    open_edges, crowded = _count_edges(merged)
    component = _components(merged)
    wrong = 0
    if open_edges == 0:
        behind = _behind(merged, areas, component)
        wrong = int((winding_numbers(bvh, behind, float("inf")) < 0.5).sum())
    volume = float(merged.signed_volume())
    explanation = _explain(open_edges, wrong, volume)
    return MeshReport(
        vertices=mesh.vertices.shape[0],
        triangles=mesh.triangles.shape[0],
        open_edges=open_edges,
        non_manifold_edges=crowded,
        degenerate_triangles=int((areas == 0).all(1).sum()),
        duplicate_vertices=duplicates,
        components=torch.unique(component).numel(),
        inside_out_components=wrong,
        signed_volume=volume,
        signed_distance_trusted=explanation == _TRUSTED,
        explanation=explanation,
    )


_TRUSTED = "closed and facing outwards: signed distance and occupancy can be trusted"


def _explain(open_edges: int, wrong: int, volume: float) -> str:
    if open_edges:
        return (
            f"{open_edges} open edges: what is inside is a guess; close the holes, or fit the unsigned distance (udf)"
        )
    if wrong and volume < 0:
        return "inside out: inside counts as outside; swap two corners of every triangle"
    if wrong:
        return f"{wrong} components face inwards: their inside counts as outside; swap two corners of their triangles"
    if not volume > 0:
        return "encloses no volume: nothing is inside; fit the unsigned distance (udf)"
    return _TRUSTED


def _count_edges(mesh: Mesh) -> tuple[int, int]:
    """How many edges are open, and how many have more than two triangles."""
    t = mesh.triangles
    start, end = t.reshape(-1), t[:, [1, 2, 0]].reshape(-1)
    real = start != end
    start, end = start[real], end[real]
    key = torch.minimum(start, end) * mesh.vertices.shape[0] + torch.maximum(start, end)
    _, edge, count = torch.unique(key, return_inverse=True, return_counts=True)
    way = torch.where(start < end, 1, -1)
    balance = torch.zeros_like(count).index_add_(0, edge, way)
    return int((balance != 0).sum()), int((count > 2).sum())


def _components(mesh: Mesh) -> Tensor:
    """(T,) a vertex of each triangle's component: the lowest."""
    label = torch.arange(mesh.vertices.shape[0])
    corners = mesh.triangles.reshape(-1)
    while True:
        least = label[mesh.triangles].amin(1).repeat_interleave(3)
        lower = label.scatter_reduce(0, corners, least, "amin")
        lower = lower.scatter_reduce(0, label[corners], least, "amin")  # the whole part follows its label
        lower = lower[lower]
        if torch.equal(lower, label):
            return label[mesh.triangles[:, 0]]
        label = lower


def _behind(mesh: Mesh, areas: Tensor, component: Tensor) -> Tensor:
    """(components, 3) points just behind the largest triangle of each component; those without area have none."""
    size = areas.norm(dim=1)
    labels, which = torch.unique(component, return_inverse=True)
    greatest = torch.zeros(labels.shape[0], dtype=size.dtype).scatter_reduce_(0, which, size, "amax")
    is_largest = size == greatest[which]
    numbers = torch.arange(size.shape[0])
    largest = torch.full_like(labels, size.shape[0]).scatter_reduce_(0, which[is_largest], numbers[is_largest], "amin")
    largest = largest[size[largest] > 0]
    # A thousandth of the triangle's size: far beyond the rounding of float64, and nearer than most other surfaces.
    unit = areas[largest] / size[largest, None]
    return mesh.corners()[largest].mean(1) - unit * (1e-3 * size[largest, None].sqrt())


def sample_surface(mesh: Mesh, n: int, generator: torch.Generator | None = None) -> SurfaceSamples:
    """Draw points uniformly by area.

    Args:
        mesh: of some area.
        n: how many.
        generator: on the CPU, where the numbers are drawn whatever the device of the mesh.

    Raises:
        ConfigError: `n` is negative, or the area of the mesh is not a positive finite number.
    """
    if n < 0:
        raise ConfigError(f"n must not be negative; got {n}")
    vectors = mesh.area_vectors().double()
    upto = vectors.norm(dim=1).cumsum(0)
    area = float(upto[-1]) if upto.numel() else 0.0
    if not 0 < area < float("inf"):
        raise ConfigError(f"points can be drawn from a mesh of positive finite area; this one has {area}")
    u, v, w = torch.rand(3, n, generator=generator, dtype=torch.float64).to(mesh.vertices.device)
    # right: a triangle without area spans no number at all.
    which = torch.searchsorted(upto, u * area, right=True).clamp(max=upto.shape[0] - 1)
    root = v.sqrt()
    weights = torch.stack([1 - root, root * (1 - w), root * w], 1)
    points = (mesh.corners()[which].double() * weights[..., None]).sum(1)
    normals = vectors[which] / vectors[which].norm(dim=1, keepdim=True)
    dtype = mesh.vertices.dtype
    return SurfaceSamples(points.to(dtype), normals.to(dtype), which)


def make_icosphere(subdivisions: int, radius: float = 1.0) -> Mesh:
    """A closed mesh about the origin, of 20 * 4^subdivisions triangles and corners on the sphere, in float64."""
    if not 0 <= subdivisions <= 10:
        raise ConfigError(f"subdivisions must be 0 to 10 (2e7 triangles); got {subdivisions}")
    g = (1 + 5**0.5) / 2
    corners = [(-1, g, 0), (1, g, 0), (-1, -g, 0), (1, -g, 0), (0, -1, g), (0, 1, g), (0, -1, -g), (0, 1, -g)]
    corners += [(g, 0, -1), (g, 0, 1), (-g, 0, -1), (-g, 0, 1)]
    faces = "0b5 051 017 07a 0ab 159 5b4 ba2 a76 718 394 342 326 368 389 495 24b 62a 867 981"
    vertices = torch.nn.functional.normalize(torch.tensor(corners, dtype=torch.float64), dim=1)
    triangles = torch.tensor([[int(c, 16) for c in face] for face in faces.split(" ")])
    for _ in range(subdivisions):
        pairs = torch.stack([triangles, triangles[:, [1, 2, 0]]], 2)  # edges ab, bc, ca
        edges, which = torch.unique(pairs.sort(2).values.reshape(-1, 2), dim=0, return_inverse=True)
        ab, bc, ca = (which.reshape(-1, 3) + vertices.shape[0]).unbind(1)
        vertices = torch.cat([vertices, torch.nn.functional.normalize(vertices[edges].mean(1), dim=1)])
        a, b, c = triangles.unbind(1)
        parts = ((a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca))
        triangles = torch.cat([torch.stack(part, 1) for part in parts])
    return Mesh(vertices * radius, triangles)
