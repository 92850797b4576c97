"""What does a triangle mesh say of a point or a ray: how near is it, how often does it wind round, where is it hit?

A tree of boxes over the triangles (`build_bvh`, on the CPU) answers all three on the CPU and on CUDA, in time that
grows as the logarithm of the number of triangles. Triangles are counter-clockwise seen from outside. Sources: distance,
Ericson, Real-Time Collision Detection, 5.1.5; winding numbers, Barill et al. 2018 (Fast Winding Numbers for Soups and
Clouds), expanded to second order; rays, Woop, Benthin and Wald 2013 (watertight: none slips through between triangles).

Without the native library every query looks at every triangle in plain torch (`*_reference`).

float32 holds lengths from about 1e-9 (areas of smaller triangles vanish: they act as their edges) to 1e18 (beyond, the
square of a distance overflows). Scale other meshes, or use float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from . import _cpu, _library, _native

FAN = 8
"""Children of a node, triangles of a leaf (`kFan` of polyfield/mesh.h)."""
MOST_LEVELS = 16
"""Of nodes (`kMostLevels`)."""
_ROWS = {"boxes": 6, "children": 1, "moments": 13, "corners": 9, "numbers": 1}
_PAIRS = 1 << 20
"""Of queries and triangles that a reference looks at together: some 100 MiB of numbers in float64."""


@dataclass(frozen=True)
class MeshBvh:
    """A mesh and its tree, made by `build_bvh`. The tree's parts are laid out as polyfield/mesh.h says, and empty where
    it was made without the native library."""

    vertices: Tensor
    """(V, 3) float32 or float64."""
    triangles: Tensor
    """(T, 3) int64."""
    boxes: Tensor
    """(nodes, 6, 8) of the dtype of the vertices."""
    children: Tensor
    """(nodes, 8) int32."""
    moments: Tensor
    """(nodes, 13, 8) of the dtype of the vertices."""
    corners: Tensor
    """(leaves, 9, 8) of the dtype of the vertices."""
    numbers: Tensor
    """(leaves, 8) int32."""

    def to(self, device: torch.device | str) -> MeshBvh:
        """The same on another device."""
        return MeshBvh(*(tensor.to(device) for tensor in self._tensors()))

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


class ClosestPoints(NamedTuple):
    """The nearest points of a mesh."""

    distance: Tensor
    """(N,) not negative; NaN where the point is not finite, infinity where the square of the distance overflows."""
    triangle: Tensor
    """(N,) int64; the lowest of those equally near; -1 where the distance is not finite."""
    barycentric: Tensor
    """(N, 3) weights of the triangle's corners, not negative, of sum 1; 0 where there is no triangle."""


class RayHits(NamedTuple):
    """Where rays first meet a mesh."""

    distance: Tensor
    """(R,) in lengths of the direction; infinity where the ray misses."""
    triangle: Tensor
    """(R,) int64; the lowest of those hit equally near; -1 where the ray misses."""
    barycentric: Tensor
    """(R, 3) weights of the triangle's corners; 0 where the ray misses."""


def build_bvh(vertices: Tensor, triangles: Tensor) -> MeshBvh:
    """Make the tree of a mesh.

    Args:
        vertices: (V, 3) float32 or float64, finite.
        triangles: (T, 3) int64 or int32 indices of vertices, T >= 1. Any mesh will do: open, degenerate, intersecting.

    Returns:
        The tree on the device of `vertices`, which must be that of `triangles`; it is built on the CPU. Equal meshes
        make equal trees, on any number of threads. No gradients reach the vertices.

    Raises:
        ShapeError: a shape or dtype is not as above.
        ConfigError: a vertex is not finite, or an index is out of range.
    """
    if vertices.dim() != 2 or vertices.shape[1] != 3 or vertices.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"vertices must be (V, 3) float32 or float64; got {tuple(vertices.shape)} {vertices.dtype}")
    if triangles.dim() != 2 or triangles.shape[1] != 3 or triangles.dtype not in (torch.int32, torch.int64):
        raise ShapeError(f"triangles must be (T, 3) int64 or int32; got {tuple(triangles.shape)} {triangles.dtype}")
    if not 1 <= triangles.shape[0] < 2**31 // FAN:
        raise ShapeError(f"a mesh must have 1 to 2^28 - 1 triangles; got {triangles.shape[0]}")
    if vertices.device != triangles.device:
        devices = f"{vertices.device} and {triangles.device}"
        raise ShapeError(f"vertices and triangles must be on one device; got {devices}")
    device = vertices.device
    vertices, triangles = vertices.detach().cpu().contiguous(), triangles.cpu().long().contiguous()
    bad = ((triangles < 0) | (triangles >= vertices.shape[0])).any(1)
    if bad.any():
        which = int(bad.nonzero()[0])
        text = f"triangle {which} is {triangles[which].tolist()}; indices must be 0 to {vertices.shape[0] - 1}"
        raise ConfigError(f"{text}: drop it, or give the vertices that belong to it")
    bad = ~vertices.isfinite().all(1)
    if bad.any():
        which = int(bad.nonzero()[0])
        raise ConfigError(f"vertex {which} is {vertices[which].tolist()}; vertices must be finite: drop or mend it")
    return MeshBvh(vertices, triangles, *_tree(vertices, triangles)).to(device)


def _tree(vertices: Tensor, triangles: Tensor) -> list[Tensor]:
    nodes, leaves, handle = 0, 0, None
    if _cpu.usable(vertices):
        sizes, suffix = torch.zeros(2, dtype=torch.int64), _cpu.suffix_of(vertices)
        handle = _cpu.call(f"pf_mesh_build_{suffix}", vertices, triangles, triangles.shape[0], sizes)
        nodes, leaves = sizes.tolist()
    counts = {"boxes": nodes, "children": nodes, "moments": nodes, "corners": leaves, "numbers": leaves}
    tree = []
    for name, rows in _ROWS.items():
        shape = (counts[name], FAN) if rows == 1 else (counts[name], rows, FAN)
        tree.append(vertices.new_empty(shape, dtype=torch.int32 if rows == 1 else vertices.dtype))
    if handle is not None:
        _cpu.call(f"pf_mesh_take_{_cpu.suffix_of(vertices)}", handle, *tree)
    return tree


def closest_points(bvh: MeshBvh, points: Tensor) -> ClosestPoints:
    """Find the nearest point of a mesh to each point.

    Args:
        bvh: the mesh.
        points: (N, 3) of the dtype and device of the mesh.

    Returns:
        Distance, triangle and weights of its corners; the nearest point is their sum. `distance` has a gradient with
        respect to `points`: the unit direction from the mesh, zero on it (and on the points about which there is no
        saying). Within rounding of the surface (about 1e-7 of the size of a triangle in float32) that direction is not
        to be trusted. Nothing else has gradients.

    Raises:
        ShapeError: a shape, dtype or device is not as above.
    """
    _check_rows(bvh, points=points)
    return ClosestPoints(*_closest(points, bvh._tensors()))


def winding_numbers(bvh: MeshBvh, points: Tensor, accuracy: float = 2.0) -> Tensor:
    """Find how often a mesh winds round each point.

    Args:
        bvh: the mesh.
        points: (N, 3) of the dtype and device of the mesh.
        accuracy: parts of the mesh farther away than so many of their radii count by their moments: at least 1; 2
            leaves errors of at most some hundredths (0.05 measured), 4 of thousandths, infinity none.

    Returns:
        (N,): of a closed mesh 1 inside and 0 outside, -1 inside where it is inside out; of an open one, between. On the
        surface any value between those of its sides. NaN where the point is not finite. No gradients.

    Raises:
        ShapeError: a shape, dtype or device is not as above.
        ConfigError: `accuracy` is less than 1.
    """
    _check_rows(bvh, points=points)
    if not accuracy >= 1:
        raise ConfigError(f"accuracy must be at least 1 (radii), math.inf for exact; got {accuracy}")
    return _winding(points.detach(), bvh._tensors(), float(accuracy))


def ray_hits(bvh: MeshBvh, origins: Tensor, directions: Tensor, near: float = 0.0, far: float = math.inf) -> RayHits:
    """Find where rays first meet a mesh, from either side.

    Args:
        bvh: the mesh.
        origins: (R, 3) of the dtype and device of the mesh.
        directions: (R, 3), any length but zero; distances are in units of that length.
        near, far: only hits at a distance in [near, far] count.

    Returns:
        Distance, triangle and weights. Edges and corners belong to the triangle; triangles that are seen edge-on, or
        have no area, are not hit. Rays that are not finite or have no direction miss. No gradients.

    Raises:
        ShapeError: a shape, dtype or device is not as above.
        ConfigError: `near` or `far` is NaN.
    """
    _check_rows(bvh, origins=origins, directions=directions)
    if directions.shape != origins.shape:
        raise ShapeError(f"directions must be {tuple(origins.shape)}, as the origins; got {tuple(directions.shape)}")
    if math.isnan(near) or math.isnan(far):
        raise ConfigError(f"near and far must be numbers; got {near} and {far}")
    return RayHits(*_hits(origins.detach(), directions.detach(), bvh._tensors(), float(near), float(far)))


def signed_distances(bvh: MeshBvh, points: Tensor, accuracy: float = 2.0) -> Tensor:
    """Find the signed distance of points to a mesh: negative inside, which is where the winding number is at least 0.5.

    Whether that means anything, `geometry.check_mesh` says. Arguments as `winding_numbers`; (N,), with the gradient of
    `closest_points`. NaN where the point is not finite.
    """
    inside = winding_numbers(bvh, points, accuracy) >= 0.5
    distance = closest_points(bvh, points).distance
    return torch.where(inside, -distance, distance)


def _check_rows(bvh: MeshBvh, **rows: Tensor) -> None:
    for name, x in rows.items():
        if x.dim() != 2 or x.shape[1] != 3 or x.dtype != bvh.vertices.dtype:
            wanted = f"(N, 3) {bvh.vertices.dtype}, as the mesh"
            raise ShapeError(f"{name} must be {wanted}; got {tuple(x.shape)} {x.dtype}")
        if x.device != bvh.vertices.device:
            raise ShapeError(f"{name} and the mesh must be on one device; got {x.device} and {bvh.vertices.device}")


# --- references: every query looks at every triangle ------------------------------------------------------------------


def _in_chunks(query: Callable[..., tuple[Tensor, ...]], triangles: int, *rows: Tensor) -> tuple[Tensor, ...]:
    size = max(1, _PAIRS // triangles)
    parts = [query(*chunk) for chunk in zip(*(x.split(size) for x in rows), strict=True)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _first_least(values: Tensor) -> Tensor:
    """(N,) columns of the first of the least values of each row."""
    numbers = torch.arange(values.shape[1], device=values.device)
    return torch.where(values == values.amin(1, keepdim=True), numbers, values.shape[1]).amin(1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _on_edge(d: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """Square of the distance of d to the nearest of t e, t in [0, 1], and t."""
    length2 = _dot(e, e)
    t = (_dot(d, e) / torch.where(length2 > 0, length2, 1)).clamp(0, 1)
    rest = d - t[..., None] * e
    return _dot(rest, rest), t


def _on_triangles(p: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Squares (N, T) and weights (N, T, 3) of the nearest points."""
    ab, ac, ap = b - a, c - a, p - a
    normal = torch.linalg.cross(ab, ac)
    area2 = _dot(normal, normal)
    scale = 1 / torch.where(area2 > 0, area2, 1)
    v = _dot(torch.linalg.cross(ap, ac.expand_as(ap)), normal) * scale
    w = _dot(torch.linalg.cross(ab.expand_as(ap), ap), normal) * scale
    rest = ap - v[..., None] * ab - w[..., None] * ac
    inside = (area2 > 0) & (v >= 0) & (w >= 0) & (v + w <= 1)
    zero = torch.zeros_like(v)
    (first, t_ab), (second, t_ac), (third, t_bc) = _on_edge(ap, ab), _on_edge(ap, ac), _on_edge(p - b, c - b)
    squares = torch.stack([first, second, third, torch.where(inside, _dot(rest, rest), torch.inf)])
    at_v, at_w = torch.stack([t_ab, zero, 1 - t_bc, v]), torch.stack([zero, t_ac, t_bc, w])
    least, which = squares.min(0, keepdim=True)
    v, w = at_v.gather(0, which)[0], at_w.gather(0, which)[0]
    return least[0], torch.stack([(1 - v - w).clamp(min=0), v, w], -1)


def closest_points_reference(bvh: MeshBvh, points: Tensor) -> ClosestPoints:
    """`closest_points` in plain torch, any device, without gradients."""
    a, b, c = bvh.vertices[bvh.triangles].unbind(1)

    def query(p: Tensor) -> tuple[Tensor, ...]:
        finite = p.isfinite().all(1)
        squares, weights = _on_triangles(torch.where(finite[:, None], p, 0)[:, None], a, b, c)
        which = _first_least(squares)
        least = squares.gather(1, which[:, None])[:, 0]
        there = finite & least.isfinite()
        distance = torch.where(finite, least.sqrt(), torch.nan)
        weights = weights[torch.arange(p.shape[0], device=p.device), which]
        return distance, torch.where(there, which, -1), torch.where(there[:, None], weights, 0)

    return ClosestPoints(*_in_chunks(query, a.shape[0], points.detach()))


def winding_numbers_reference(bvh: MeshBvh, points: Tensor) -> Tensor:
    """`winding_numbers` of infinite accuracy in plain torch, any device."""
    corners = bvh.vertices[bvh.triangles]

    def query(p: Tensor) -> tuple[Tensor, ...]:
        a, b, c = (corners - p[:, None, None]).unbind(2)
        la, lb, lc = (x.norm(dim=-1) for x in (a, b, c))
        over = _dot(a, torch.linalg.cross(b, c))
        under = la * lb * lc + _dot(a, b) * lc + _dot(b, c) * la + _dot(c, a) * lb
        winding = torch.atan2(over, under).sum(1) / (2 * math.pi)
        return (torch.where(p.isfinite().all(1), winding, torch.nan),)

    return _in_chunks(query, corners.shape[0], points.detach())[0]


def ray_hits_reference(
    bvh: MeshBvh, origins: Tensor, directions: Tensor, near: float = 0.0, far: float = math.inf
) -> RayHits:
    """`ray_hits` in plain torch, any device; in float64 within, where products of float32 are exact."""
    corners = bvh.vertices[bvh.triangles]

    def query(o: Tensor, d: Tensor) -> tuple[Tensor, ...]:
        valid = o.isfinite().all(1) & d.isfinite().all(1) & (d != 0).any(1)
        z_axis = d.abs().argmax(1)
        order = torch.stack([(z_axis + 1) % 3, (z_axis + 2) % 3, z_axis], 1)
        backwards = d.gather(1, z_axis[:, None]) < 0
        order = torch.where(backwards, order[:, [1, 0, 2]], order)
        d = d.gather(1, order)
        at = (corners - o[:, None, None]).gather(3, order[:, None, None].expand(-1, *corners.shape[:2], -1))
        z = at[..., 2]
        x = (at[..., 0] - (d[:, 0] / d[:, 2])[:, None, None] * z).double()
        y = (at[..., 1] - (d[:, 1] / d[:, 2])[:, None, None] * z).double()
        weights = torch.stack([x[..., (k + 2) % 3] * y[..., (k + 1) % 3] - y[..., (k + 2) % 3] * x[..., (k + 1) % 3]
                               for k in range(3)], -1)  # fmt: skip
        total = weights.sum(-1)
        hit = ((weights >= 0).all(-1) | (weights <= 0).all(-1)) & (total != 0) & valid[:, None]
        weights = weights / torch.where(hit, total, 1)[..., None]
        distance = (_dot(weights, z.double()) / d[:, 2:].double()).to(o.dtype)
        hit &= (distance >= near) & (distance <= far)
        distance = torch.where(hit, distance, torch.inf)
        which = _first_least(distance)
        rows = torch.arange(o.shape[0], device=o.device)
        there = hit[rows, which]
        weights = torch.where(there[:, None], weights[rows, which], 0).to(o.dtype)
        return distance[rows, which], torch.where(there, which, -1), weights

    return RayHits(*_in_chunks(query, corners.shape[0], origins.detach(), directions.detach()))


# --- operators --------------------------------------------------------------------------------------------------------


def _native_tree(bvh: MeshBvh, *rows: Tensor) -> bool:
    return bvh.boxes.shape[0] > 0 and _native.usable(*rows, *bvh._tensors())


def _empty_answers(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = points.shape[0]
    return points.new_empty(n), points.new_empty(n, dtype=torch.int64), points.new_empty(n, 3)


def _closest_forward(points: Tensor, mesh: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    bvh = MeshBvh(*mesh)
    if not _native_tree(bvh, points):
        distance, triangle, barycentric = closest_points_reference(bvh, points)
        return distance, triangle, barycentric
    out, points = _empty_answers(points), points.contiguous()
    given = (bvh.boxes, bvh.children, bvh.corners, bvh.numbers, points, points.shape[0])
    _native.call(f"pf_mesh_closest_{_cpu.suffix_of(points)}", *given, *out, over=points.shape[0])
    return out


def _winding_forward(points: Tensor, mesh: list[Tensor], accuracy: float) -> Tensor:
    bvh = MeshBvh(*mesh)
    if not _native_tree(bvh, points):
        return winding_numbers_reference(bvh, points)
    out, points = points.new_empty(points.shape[0]), points.contiguous()
    given = (bvh.boxes, bvh.children, bvh.moments, bvh.corners, bvh.numbers, points, points.shape[0])
    _native.call(f"pf_mesh_winding_{_cpu.suffix_of(points)}", *given, accuracy, out, over=points.shape[0])
    return out


def _hits_forward(
    origins: Tensor, directions: Tensor, mesh: list[Tensor], near: float, far: float
) -> tuple[Tensor, Tensor, Tensor]:
    bvh = MeshBvh(*mesh)
    if not _native_tree(bvh, origins, directions):
        distance, triangle, barycentric = ray_hits_reference(bvh, origins, directions, near, far)
        return distance, triangle, barycentric
    out, rays = _empty_answers(origins), (origins.contiguous(), directions.contiguous(), origins.shape[0])
    given = (bvh.boxes, bvh.children, bvh.corners, bvh.numbers, *rays, near, far)
    _native.call(f"pf_mesh_hits_{_cpu.suffix_of(origins)}", *given, *out, over=origins.shape[0])
    return out


def _closest_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    points, mesh = inputs
    _, triangle, barycentric = output
    ctx.mark_non_differentiable(triangle, barycentric)
    ctx.parts = len(mesh)
    ctx.save_for_backward(points, mesh[0], mesh[1], triangle, barycentric)


def _closest_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    points, vertices, triangles, triangle, barycentric = ctx.saved_tensors
    corners = vertices[triangles[triangle.clamp(min=0)]]
    away = ((points[:, None] - corners) * barycentric[..., None]).sum(1)
    length = away.norm(dim=1, keepdim=True)
    there = (length > 0) & (triangle >= 0)[:, None]
    unit = torch.where(there, away / torch.where(there, length, 1), 0)
    return grad[:, None] * unit, [None] * ctx.parts


_closest = _library.define(
    "mesh_closest(Tensor points, Tensor[] mesh) -> (Tensor, Tensor, Tensor)",
    _closest_forward,
    lambda points, mesh: _empty_answers(points),
    setup_context=_closest_setup,
    backward=_closest_backward,
)
_winding = _library.define(
    "mesh_winding(Tensor points, Tensor[] mesh, float accuracy) -> Tensor",
    _winding_forward,
    lambda points, mesh, accuracy: points.new_empty(points.shape[0]),
)
_hits = _library.define(
    "mesh_hits(Tensor origins, Tensor directions, Tensor[] mesh, float near, float far) -> (Tensor, Tensor, Tensor)",
    _hits_forward,
    lambda origins, directions, mesh, near, far: _empty_answers(origins),
)
