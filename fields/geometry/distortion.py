"""How do lenses bend rays, and how is that undone?

OpenCV's rational model (k1..k6, p1, p2; OpenCV documentation of calib3d, "Detailed Description") acts on x/z, y/z;
Kannala-Brandt (IEEE TPAMI 2006, eq. 6 with k1 = 1, as in OpenCV's fisheye module) acts on the angle theta from the
axis. Coefficients are always 8 numbers: [k1, k2, p1, p2, k3, k4, k5, k6] or, for fisheye, [k1, k2, k3, k4, -, -, -, -].

A fitted polynomial folds back beyond some radius, where its inverse stops to be unique. `Lens.limit` is that radius
(less 1 %, to keep the Jacobian away from zero). Everything beyond is clamped to it: pixels outside `Lens.reach` get
the ray of the limit in their direction, and points outside the limit are projected there and reported invalid.

Undistortion solves for the radius by Newton's method within a bracket, which cannot fail on a monotone function, and
then for the tangential part by Newton's method in the plane, all without gradients. One Newton step that has them
follows: by the implicit function theorem its derivative is that of the inverse. First-order gradients only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Undistorted radii past tan(89 deg) are no perspective image.
_MAX_RADIUS = math.tan(math.radians(89.0))
# Keeps the derivative of the distortion at the limit above about 2 % of its value at the centre for the usual cubic
# fold.
_FOLD_MARGIN = 0.99
_FOLD_SCAN = 512
_MAX_STEPS = 40


class Lens(NamedTuple):
    """What undistortion needs to know of each camera beforehand; no gradients.

    Attributes:
        limit: (F,) largest undistorted radius (OpenCV: |x/z, y/z|; fisheye: theta in radians) that is used.
        reach: (F,) the distorted radius of that limit.
        steps: Newton steps for the radius and in the plane, after which every pixel of every image has converged.
    """

    limit: Tensor
    reach: Tensor
    steps: tuple[int, int]


def distort_opencv(xy: Tensor, distortion: Tensor) -> Tensor:
    """Bends perspective coordinates by OpenCV's rational model.

    Args:
        xy: (N, 2) x/z and y/z.
        distortion: (N, 8) or (1, 8), OpenCV order.

    Returns:
        (N, 2) distorted coordinates; gradients flow to both arguments.
    """
    x, y = xy.unbind(-1)
    return torch.stack(_opencv(x, y, distortion.unbind(-1), jacobian=False)[:2], -1)


def undistort_opencv(uv: Tensor, distortion: Tensor, limit: Tensor, reach: Tensor, steps: tuple[int, int]) -> Tensor:
    """Inverts `distort_opencv` within the limit.

    Args:
        uv: (N, 2) distorted coordinates.
        distortion: (N, 8) or (1, 8).
        limit: (N,) or (1,) of `Lens`.
        reach: (N,) or (1,) of `Lens`.
        steps: Newton steps of `Lens`.

    Returns:
        (N, 2) x/z and y/z with radius at most `limit`; gradients flow to uv and distortion.
    """
    uv = uv * shrink(uv.square().sum(-1), reach)[..., None]
    u, v = uv.unbind(-1)
    with torch.no_grad():
        ks = distortion.unbind(-1)
        target = torch.hypot(u, v)
        factor = _invert(lambda radius: _radial(radius, ks), target, limit, steps[0]) / target.clamp_min(1e-30)
        x, y = u * factor, v * factor
        for _ in range(steps[1]):
            fu, fv, a, b, c = _opencv(x, y, ks)
            dx, dy = _solve(fu, fv, a, b, c, u, v)
            x, y = x - dx, y - dy
            factor = shrink(x * x + y * y, limit)
            x, y = x * factor, y * factor
    if not (torch.is_grad_enabled() and (uv.requires_grad or distortion.requires_grad)):
        return torch.stack((x, y), -1)
    fu, fv, a, b, c = _opencv(x, y, distortion.unbind(-1))
    # The residual's value is taken out again: a clamped point stays where it is, and only the derivative remains.
    dx, dy = _solve(fu, fv, a.detach(), b.detach(), c.detach(), u + (fu - u).detach(), v + (fv - v).detach())
    return torch.stack((x - dx, y - dy), -1)


def distort_fisheye(theta: Tensor, distortion: Tensor) -> Tensor:
    """Bends angles by Kannala-Brandt: theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8).

    Args:
        theta: (N,) radians from the optical axis.
        distortion: (N, 8) or (1, 8), the first four used.

    Returns:
        (N,) distorted angle, which is the image radius in focal lengths; gradients flow to both arguments.
    """
    return _fisheye(theta, distortion.unbind(-1))[0]


def undistort_fisheye(
    radius: Tensor, distortion: Tensor, limit: Tensor, reach: Tensor, steps: tuple[int, int]
) -> Tensor:
    """Inverts `distort_fisheye` within the limit: radius (N,) to theta (N,) in [0, limit]; gradients as there."""
    radius = torch.minimum(radius, reach)
    with torch.no_grad():
        ks = distortion.unbind(-1)
        theta = _invert(lambda angle: _fisheye(angle, ks), radius, limit, steps[0])
    if not (torch.is_grad_enabled() and (radius.requires_grad or distortion.requires_grad)):
        return theta
    value, slope = _fisheye(theta, distortion.unbind(-1))
    residual = value - radius
    return theta - (residual - residual.detach()) / slope.detach()


@torch.no_grad()
def find_lens(distortion: Tensor, fisheye: Tensor, corner: Tensor) -> Lens:
    """Finds where each camera's distortion folds and how many Newton steps its image needs.

    Args:
        distortion: (F, 8).
        fisheye: (F,) bool, Kannala-Brandt rather than OpenCV.
        corner: (F,) largest distorted radius inside the image, in focal lengths.
    """
    if distortion.shape[0] > 1:  # the frames of one capture usually share their lens
        rows = torch.cat((distortion.double(), fisheye[:, None].double(), corner[:, None].double()), 1)
        rows, back = torch.unique(rows, dim=0, return_inverse=True)
        if rows.shape[0] < distortion.shape[0]:
            lens = find_lens(rows[:, :8].to(distortion.dtype), rows[:, 8] > 0, rows[:, 9])
            return Lens(lens.limit[back], lens.reach[back], lens.steps)
    k = distortion.detach().double()
    grid = torch.linspace(0, 1, _FOLD_SCAN, dtype=torch.float64, device=k.device)
    radii = torch.where(fisheye[:, None], grid * math.pi, torch.tan(grid * math.atan(_MAX_RADIUS)))  # (F, scan)
    monotone = _is_monotone(radii, k, fisheye)
    # The last radius before the first failure; the scan's steps are fine enough (0.17 deg, 0.35 deg) to bracket the
    # fold.
    last = (monotone.long().cumprod(1).sum(1) - 1).clamp_min(0)
    low = radii.gather(1, last[:, None])
    high = radii.gather(1, (last[:, None] + 1).clamp_max(_FOLD_SCAN - 1))
    for _ in range(30):
        middle = (low + high) / 2
        good = _is_monotone(middle, k, fisheye)
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    whole = last == _FOLD_SCAN - 1
    limit = torch.where(whole, radii[:, -1], low[:, 0] * _FOLD_MARGIN).clamp_min(1e-9)
    reach = torch.where(fisheye, _fisheye(limit, k.unbind(-1))[0], _radial(limit, k.unbind(-1))[0]).clamp_max(
        1e18
    )  # its square is finite
    steps = _count_steps(k, fisheye, corner.detach().double(), limit, reach, distortion.dtype)
    return Lens(limit.to(distortion.dtype), reach.to(distortion.dtype), steps)


def _count_steps(
    k: Tensor, fisheye: Tensor, corner: Tensor, limit: Tensor, reach: Tensor, dtype: torch.dtype
) -> tuple[int, int]:
    """Solves for a fan of image points and counts the steps until none moves by more than rounding; one more, since a
    point between them may need it."""
    if k.shape[0] == 0:
        return 1, 0
    fan = torch.linspace(1 / 32, 1.02, 32, dtype=torch.float64, device=k.device)
    angles = torch.arange(8, dtype=torch.float64, device=k.device) * (math.tau / 8)
    radius = (corner[:, None] * fan).flatten()  # (F * 32,)
    ks, limits, reaches, bent = (t.repeat_interleave(32, 0) for t in (k, limit, reach, ~fisheye))
    points = radius[:, None, None] * torch.stack((angles.cos(), angles.sin()), -1)  # (F * 32, 8, 2)
    tolerance = 16 * torch.finfo(dtype).eps

    def solve(steps: tuple[int, int]) -> Tensor:
        theta = undistort_fisheye(radius, ks, limits, reaches, steps)[:, None, None]
        xy = undistort_opencv(points, ks[:, None], limits[:, None], reaches[:, None], steps)
        return torch.where(bent[:, None, None], xy, theta)

    def count(steps: Callable[[int], tuple[int, int]], first: int) -> int:
        before = solve(steps(first))
        for number in range(first, _MAX_STEPS):
            after = solve(steps(number + 1))
            if bool(((after - before).abs() <= tolerance * (1 + after.abs())).all()):
                return number if number == first else min(number + 1, _MAX_STEPS)
            before = after
        return _MAX_STEPS

    radial = count(lambda number: (number, 0), 1)
    plane = count(lambda number: (radial, number), 0) if bool((bent & ks[:, 2:4].any(1)).any()) else 0
    return radial, plane


def _invert(formula: Callable[[Tensor], tuple[Tensor, Tensor]], target: Tensor, limit: Tensor, steps: int) -> Tensor:
    """Where in [0, limit] a growing formula (value, slope) takes the target value; its ends for targets outside.

    Newton's step is taken where it stays within the bracket and at least halves the last step; else the bracket is
    halved ("rtsafe", Numerical Recipes, section 9.4). Steps of rounding size are always taken: the bracket may still
    be wide then.
    """
    high = limit.expand(target.shape)
    low = torch.zeros_like(target)
    x = torch.minimum(target, limit)
    last = high
    tiny = 64 * torch.finfo(target.dtype).eps
    for _ in range(steps):
        value, slope = formula(x)
        below = value < target
        low, high = torch.where(below, x, low), torch.where(below, high, x)
        step = (target - value) / slope
        newton = x + step
        good = (newton >= low) & (newton <= high) & (2 * step.abs() <= last.abs()) | (step.abs() <= tiny * (1 + x))
        last = torch.where(good, step, (high - low) / 2)
        x = torch.minimum(torch.where(good, newton, (low + high) / 2), limit)
    return x


def _is_monotone(radius: Tensor, k: Tensor, fisheye: Tensor) -> Tensor:
    """(F, n) radii -> (F, n) bool: distortion grows with the radius there, in every direction of the image."""
    columns = [column[:, None] for column in k.unbind(-1)]
    _, _, p1, p2, _, k4, k5, k6 = columns
    s = radius * radius
    pole = 1 + s * (k4 + s * (k5 + s * k6)) <= 0
    value, slope = _radial(radius, columns)
    # Along the worst direction the radial derivative loses 6 r |p| and the derivative along the circle 2 r |p|.
    tangential = torch.hypot(p1, p2)
    perspective = ~pole & (slope > 6 * radius * tangential) & (value >= 2 * s * tangential)
    return torch.where(fisheye[:, None], _fisheye(radius, columns)[1] > 0, perspective)


def _radial(radius: Tensor, ks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Distorted radius without the tangential part, and its derivative."""
    k1, k2, _, _, k3, k4, k5, k6 = ks
    s = radius * radius
    d = 1 + s * (k4 + s * (k5 + s * k6))
    g = (1 + s * (k1 + s * (k2 + s * k3))) / d
    dn = k1 + s * (2 * k2 + s * (3 * k3))
    dd = k4 + s * (2 * k5 + s * (3 * k6))
    return radius * g, g + 2 * s * (dn - g * dd) / d


def _opencv(x: Tensor, y: Tensor, ks: Sequence[Tensor], jacobian: bool = True) -> tuple[Tensor, ...]:
    """Distorted u, v and, if asked, the symmetric Jacobian (u_x, u_y = v_x, v_y)."""
    k1, k2, p1, p2, k3, k4, k5, k6 = ks
    xx, yy, xy2 = x * x, y * y, 2 * x * y
    s = xx + yy
    n = 1 + s * (k1 + s * (k2 + s * k3))
    d = 1 + s * (k4 + s * (k5 + s * k6))
    g = n / d
    u = x * g + p1 * xy2 + p2 * (s + 2 * xx)
    v = y * g + p1 * (s + 2 * yy) + p2 * xy2
    if not jacobian:
        return u, v
    dn = k1 + s * (2 * k2 + s * (3 * k3))
    dd = k4 + s * (2 * k5 + s * (3 * k6))
    dg = 2 * (dn - g * dd) / d
    p1x, p2x, p1y, p2y = p1 * x, p2 * x, p1 * y, p2 * y
    u_x = g + xx * dg + 2 * p1y + 6 * p2x
    u_y = 0.5 * xy2 * dg + 2 * p1x + 2 * p2y
    v_y = g + yy * dg + 6 * p1y + 2 * p2x
    return u, v, u_x, u_y, v_y


def _solve(fu: Tensor, fv: Tensor, a: Tensor, b: Tensor, c: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The Newton step [[a, b], [b, c]]^-1 (fu - u, fv - v); a singular Jacobian gives a finite step."""
    det = a * c - b * b
    det = torch.where(det.abs() < 1e-8, torch.full_like(det, 1e-8), det)
    ru, rv = fu - u, fv - v
    return (c * ru - b * rv) / det, (a * rv - b * ru) / det


def _fisheye(theta: Tensor, ks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Distorted angle and its derivative."""
    k1, k2, k3, k4 = ks[:4]
    s = theta * theta
    value = theta * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4))))
    slope = 1 + s * (3 * k1 + s * (5 * k2 + s * (7 * k3 + s * (9 * k4))))
    return value, slope


def shrink(squared: Tensor, limit: Tensor) -> Tensor:
    """The factor that brings a vector of this squared length within the limit; exactly 1 inside; gradients finite at
    zero.
    """
    within = limit.square()
    return (within / torch.maximum(squared, within)).sqrt()
