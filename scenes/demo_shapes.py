"""Which convex solids is the built-in scene made of, and where does a ray enter them?

Closed forms only: ellipsoid, frustum (cylinder, cone, disc and rod are special cases) and convex polyhedron. Every
solid is convex, so a ray enters it once; a ray that starts inside does not hit it. Before a quadratic is solved the
ray's origin is moved to its closest approach to the solid's centre: in float32 the discriminant of a rod 0.004 wide
seen from 3 units away would otherwise be wrong by several per cent.

Layout: points and directions are (3, N) float32, one row a coordinate, because torch reduces over the first dimension
several times faster than over a last dimension of 3. Directions are unit vectors, distances scene units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

T_MIN = 1e-4
"""Nearest accepted distance: about 100 float32 roundings of a coordinate, a sixtieth of a pixel."""


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(N,) scalar product of two (3, N) or (3, 1) batches."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def column(values: Sequence[float]) -> Tensor:
    """(3, 1) float32 column of three numbers."""
    return torch.tensor(values, dtype=torch.float32).reshape(3, 1)


class Ellipsoid:
    """Axis-aligned ellipsoid with semi-axes `radii`."""

    def __init__(self, centre: Sequence[float], radii: Sequence[float]) -> None:
        self.centre, self.radii = column(centre), column(radii)
        self.radius = float(max(radii))
        self.top = centre[2] + radii[2]

    def intersect(self, origins: Tensor, directions: Tensor) -> Tensor:
        """(N,) distance at which each ray enters; inf where it does not."""
        local = origins - self.centre
        start = -dot(local, directions)
        p, d = (local + start * directions) / self.radii, directions / self.radii
        a, b, c = dot(d, d), dot(p, d), dot(p, p) - 1.0
        discriminant = b * b - a * c
        near = start - (b + discriminant.clamp_min(0.0).sqrt()) / a
        return near.masked_fill_((discriminant < 0) | (near < T_MIN), math.inf)

    def normal(self, points: Tensor) -> Tensor:
        """(3, N) outward unit normals at points of the surface."""
        gradient = (points - self.centre) / (self.radii * self.radii)
        return gradient / dot(gradient, gradient).sqrt()


class Frustum:
    """Capped cone from `base`, radius `radius_base`, to `top`, radius `radius_top` (either may be 0, not both)."""

    def __init__(self, base: Sequence[float], top: Sequence[float], radius_base: float, radius_top: float) -> None:
        self.base = column(base)
        axis = column(top) - self.base
        self.height = float(axis.norm())
        self.axis = axis / self.height
        self.centre = self.base + 0.5 * self.height * self.axis
        self.radius_base, self.radius_top = radius_base, radius_top
        self.slope = (radius_top - radius_base) / self.height
        self.radius = math.hypot(0.5 * self.height, max(radius_base, radius_top))
        lean = math.sqrt(max(0.0, 1.0 - float(self.axis[2]) ** 2))
        self.top = max(base[2] + lean * radius_base, top[2] + lean * radius_top)

    def intersect(self, origins: Tensor, directions: Tensor) -> Tensor:
        """(N,) distance at which each ray enters; inf where it does not."""
        start = dot(self.centre - origins, directions)
        p = origins + start * directions - self.centre
        h, dh = dot(p, self.axis), dot(directions, self.axis)
        half = 0.5 * self.height
        # Caps: -half <= h + t dh <= half. The tiny constant keeps 0/0 away; its sign does not matter.
        inverse = 1.0 / torch.where(dh.abs() < 1e-12, 1e-12, dh)
        middle, reach = -h * inverse, half * inverse.abs()
        # Side: |p_perp|^2 <= R^2, R = 0.5 (r0 + r1) + slope h along the ray.
        r, dr = 0.5 * (self.radius_base + self.radius_top) + self.slope * h, self.slope * dh
        a = 1.0 - dh * dh - dr * dr
        b = dot(p, directions) - h * dh - r * dr
        c = dot(p, p) - h * h - r * r
        a = torch.where(a.abs() < 1e-9, 1e-9, a)
        discriminant = b * b - a * c
        root = discriminant.clamp_min(0.0).sqrt()
        first, second = (-b - root) / a, (-b + root) / a
        # Steeper than the side (a < 0): inside lies beyond one root; which one, the growth of R along the ray says.
        steep = a < 0
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        grows = dr > 0
        near = torch.where(steep, torch.where(grows, high, -math.inf), low)
        far = torch.where(steep, torch.where(grows, math.inf, low), high)
        near = torch.maximum(near, middle - reach)
        far = torch.minimum(far, middle + reach)
        missed = (near > far) | ((discriminant < 0) & ~steep)
        near = near + start
        return near.masked_fill_(missed | (near < T_MIN), math.inf)

    def normal(self, points: Tensor) -> Tensor:
        """(3, N) outward unit normals at points of the surface."""
        p = points - self.base
        h = dot(p, self.axis)
        across = p - h * self.axis
        rho = dot(across, across).sqrt()
        cosine = 1.0 / math.sqrt(1.0 + self.slope * self.slope)
        side = (across / rho.clamp_min(1e-12) - self.slope * self.axis) * cosine
        to_side = (rho - self.radius_base - self.slope * h).abs() * cosine
        to_base, to_top = h.abs(), (h - self.height).abs()
        cap = torch.where(to_top < to_base, self.axis, -self.axis)
        return torch.where(torch.minimum(to_base, to_top) < to_side, cap, side)


class Polyhedron:
    """Convex polyhedron: points with normals[i] . (p - centre) <= offsets[i] for every face i."""

    def __init__(self, centre: Sequence[float], normals: Tensor, offsets: Sequence[float], radius: float) -> None:
        self.centre = column(centre)
        self.normals = normals.float() / normals.float().norm(dim=1, keepdim=True)
        self.offsets = torch.tensor(offsets, dtype=torch.float32)
        self.radius = radius
        self.top = centre[2] + radius

    def intersect(self, origins: Tensor, directions: Tensor) -> Tensor:
        """(N,) distance at which each ray enters; inf where it does not."""
        local = origins - self.centre
        near = torch.full_like(directions[0] + origins[0], -math.inf)
        far = torch.full_like(near, math.inf)
        for normal, offset in zip(self.normals, self.offsets, strict=True):
            speed = dot(normal[:, None], directions)
            speed = torch.where(speed.abs() < 1e-12, 1e-12, speed)
            t = (offset - dot(normal[:, None], local)) / speed
            near = torch.where(speed < 0, torch.maximum(near, t), near)
            far = torch.where(speed > 0, torch.minimum(far, t), far)
        return near.masked_fill_((near > far) | (near < T_MIN), math.inf)

    def normal(self, points: Tensor) -> Tensor:
        """(3, N) outward unit normals at points of the surface."""
        local = points - self.centre
        distances = torch.stack([dot(n[:, None], local) - o for n, o in zip(self.normals, self.offsets, strict=True)])
        return self.normals.T[:, distances.argmax(0)]


Shape = Ellipsoid | Frustum | Polyhedron


def box(centre: Sequence[float], half: Sequence[float], turn_degrees: float = 0.0) -> Polyhedron:
    """Box with half extents `half`, turned about z."""
    x, y = _turned_axes(turn_degrees)
    up = torch.tensor([0.0, 0.0, 1.0])
    return Polyhedron(
        centre,
        torch.stack([x, -x, y, -y, up, -up]),
        [half[0], half[0], half[1], half[1], half[2], half[2]],
        math.hypot(*half),
    )


def gable(centre: Sequence[float], half: Sequence[float], turn_degrees: float = 0.0) -> Polyhedron:
    """Roof prism: ridge along its x axis, eaves at -half[2], ridge at +half[2]; turned about z."""
    x, y = _turned_axes(turn_degrees)
    up = torch.tensor([0.0, 0.0, 1.0])
    left, right = 2 * half[2] * y + half[1] * up, -2 * half[2] * y + half[1] * up
    # A slope passes through the ridge (y = 0, z = half[2]); its normal is scaled to unit length by the class.
    slope = half[1] * half[2] / math.hypot(2 * half[2], half[1])
    return Polyhedron(
        centre,
        torch.stack([x, -x, left, right, -up]),
        [half[0], half[0], slope, slope, half[2]],
        math.hypot(*half),
    )


def rod(start: Sequence[float], end: Sequence[float], radius: float) -> Frustum:
    """Round rod from `start` to `end`."""
    return Frustum(start, end, radius, radius)


def _turned_axes(degrees: float) -> tuple[Tensor, Tensor]:
    angle = math.radians(degrees)
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([c, s, 0.0]), torch.tensor([-s, c, 0.0])
