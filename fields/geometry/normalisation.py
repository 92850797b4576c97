"""What kind of capture is this, and which similarity brings it into the scene frame?

The scene frame is right-handed, z up, with the region of interest about [-1, 1]^3. The decision looks at the cameras
only (their optical axes, distances and spread) and at hints that the data set gives. Thresholds were set on
NeRF-Synthetic, D-NeRF, DTU, fox and fern, which lie far from all of them; the figures stand beside each.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import ConfigError, FormatError
from .bounds import frustum_bounds, points_bounds, scene_bounds
from .cameras import Cameras
from .projection import CameraModel
from .similarity import RIGID_TOLERANCE, Similarity

CaptureKind = Literal["object", "forward", "unbounded"]

# Rigs and renderers aim to 0.1 % of the distance (DTU 0.0025 at worst) at one distance (0.05 %); hands to
# 13 % and 16 % (fox).
_RIG_MISS, _RIG_SPREAD = 0.02, 0.05
# Forward: 95 % of the axes within this angle of their mean (fern 10 deg; fox 52, DTU 60) ...
_FORWARD_CONE_RAD = 0.52
# ... and centres spread by less than this part of the scene's depth (fern 0.1; an arc of +-30 deg has 0.3).
_FORWARD_SPREAD = 0.5
# Axes pass the focus within this part of their distance (fox 0.13), else they have no common subject.
_FOCUS_MISS = 0.5
# Least mean squared sine between axes for a focus to be defined: 0.6 deg (fern 0.011, that is 6 deg).
_FOCUS_CONDITION = 1e-4
# A forward box ends at this multiple of the near distance (LLFF's scenes have 3 to 5); what is beyond is for cascades
# or contraction.
_FORWARD_REACH = 6.0
# Around the focus of forward axes a scene is taken to span these parts of the focus distance (fern: 0.53 to 2.5).
_FOCUS_NEAR, _FOCUS_FAR = 0.5, 2.5
# Depth over camera spread where axes are parallel (fern 10).
_DEPTH_PER_SPREAD = 10.0
# Slack around what the cameras of an object see.
_OBJECT_SLACK = 1.05


class Normalisation(NamedTuple):
    """How a capture enters the scene frame."""

    kind: CaptureKind
    to_scene: Similarity
    """Data set frame to scene frame."""
    aabb: Tensor
    """(2, 3) float32 box of what is to be reconstructed, scene frame; see `bounds.scene_bounds`."""
    near_far: tuple[float, float] | None
    """Distances that hold the scene, scene units: the hint's, or for "forward" the estimate; else None."""
    warnings: list[str]
    """One line each."""


class _Focus(NamedTuple):
    """Where optical axes meet: point (3,), distance (F,) and miss (F,) of each axis, whether it lies ahead (F,), and
    whether it is defined.
    """

    point: Tensor
    distance: Tensor
    miss: Tensor
    ahead: Tensor
    defined: bool


def normalise(
    cameras: Cameras,
    *,
    points: Tensor | None = None,
    up: tuple[float, float, float] | Tensor | None = None,
    region: tuple[tuple[float, float, float] | Tensor, float] | None = None,
    depth_range: tuple[float, float] | None = None,
    masked: bool = False,
    kind: CaptureKind | None = None,
) -> Normalisation:
    """Decides the kind of a capture and the similarity to the scene frame.

    * "object": axes meet in one point at one distance, or images are masked and look inward. That point (or the stated
      region) becomes the origin, and [-1, 1]^3 is what the cameras see of it: mean distance * tan(half the smaller
      field of view) * 1.05.
    * "forward": axes within a cone, centres close together for the scene's depth. The box of all views from near to
      6 * near (or far) becomes [-1, 1]^3, the mean viewing direction +y.
    * "unbounded": the rest. The focus of the axes, or the mean of the centres where there is none, becomes the origin;
      95 % of the camera centres lie within radius 1.

    Args:
        cameras: F cameras in the data set's frame, at least one.
        points: (P, 3) sparse points in that frame.
        up: World up in that frame, where the data set fixes it; (0, 0, 1) keeps its orientation (but for "forward").
            Estimated if None.
        region: Centre (3,) and half size of the region of interest, data set units; used for objects.
        depth_range: (near, far) distances that hold the scene, data set units.
        masked: Whether pixels outside the subject are marked (alpha or masks), so that nothing but the subject matters.
        kind: The user's choice, instead of the decision.

    Raises:
        FormatError: A pose that is not finite or not rigid; the text names the frame.
        ConfigError: No cameras, or hints out of range.
    """
    _check_hints(cameras, region, depth_range, kind)
    check_poses(cameras)
    cameras = cameras.to("cpu", dtype=torch.float64)
    if points is not None:
        points = points.detach().to("cpu", torch.float64)
        points = points[torch.isfinite(points).all(-1)]
    focus = _find_focus(cameras)
    kind = kind or _decide(cameras, focus, _scene_depth(cameras, focus, points, depth_range), masked)
    rotation = _rotation_to_z(_find_up(cameras) if up is None else torch.as_tensor(up, dtype=torch.float64))
    near_far = depth_range
    warnings: list[str] = []
    if kind == "object":
        centre, half = _object_region(cameras, focus) if region is None else region
        centre = torch.as_tensor(centre, dtype=torch.float64)
    elif kind == "forward":
        near_far = near_far or _near_far(cameras, focus, points)
        rotation = _turn_to_y(cameras, rotation)
        turned = cameras.transformed(Similarity(1.0, rotation, torch.zeros(3)))
        # A near distance of about zero says nothing; then the guess from points or focus ends the box.
        end = max(_FORWARD_REACH * near_far[0], _near_far(cameras, focus, points)[1])
        box = frustum_bounds(turned, near_far[0], min(near_far[1], end))
        centre, half = rotation.T @ box.mean(0), float((box[1] - box[0]).max() / 2)
    else:
        centre, half = _camera_region(cameras, focus, points, warnings)
    to_scene = Similarity(1 / half, rotation, -(rotation @ centre) / half)
    warnings += _warnings(cameras, kind, focus, centre, half)
    scaled = None if near_far is None else (near_far[0] / half, near_far[1] / half)
    scene_points = None if points is None else to_scene.apply(points)
    aabb = scene_bounds(kind, cameras.transformed(to_scene), points=scene_points, near_far=scaled)
    return Normalisation(kind, to_scene, aabb, scaled, warnings)


def check_poses(cameras: Cameras) -> None:
    """Raises FormatError for the first pose that is not finite or whose rotation is not one."""
    pose = cameras.world_from_camera.detach().to("cpu", torch.float64)
    rotation = pose[:, :, :3]
    broken = ~torch.isfinite(pose).flatten(1).all(1)
    error = (rotation.transpose(1, 2) @ rotation - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2))
    mirrored = torch.linalg.det(torch.where(broken[:, None, None], torch.eye(3, dtype=torch.float64), rotation)) < 0
    faulty = broken | (error > RIGID_TOLERANCE) | mirrored
    if not bool(faulty.any()):
        return
    frame = int(faulty.nonzero()[0])
    if bool(broken[frame]):
        fault = "has numbers that are not finite"
    elif float(error[frame]) > RIGID_TOLERANCE:
        fault = (
            f"is not rigid: R^T R is off the identity by {float(error[frame]):.3g} (is there a scale or shear in it?)"
        )
    else:
        fault = "mirrors the world (determinant -1): an axis has the wrong sign"
    raise FormatError(f"the pose of frame {frame} {fault}; {int(faulty.sum())} of {len(cameras)} poses are faulty")


def _check_hints(cameras: Cameras, region, depth_range, kind) -> None:
    if len(cameras) == 0:
        raise ConfigError("normalisation needs at least one camera; got none")
    if kind not in (None, "object", "forward", "unbounded"):
        raise ConfigError(f"kind must be object, forward or unbounded; got {kind!r}")
    if region is not None and not 0 < float(region[1]) < float("inf"):
        raise ConfigError(f"half size of the region must be positive and finite; got {region[1]}")
    if depth_range is not None and not 0 <= depth_range[0] < depth_range[1] < float("inf"):
        raise ConfigError(f"depth_range must be 0 <= near < far; got {depth_range}")


def _find_focus(cameras: Cameras) -> _Focus:
    """The point closest to all optical axes, least squares; panoramas have no axis and are left out."""
    directed = cameras.model != CameraModel.EQUIRECTANGULAR
    centres, axes = cameras.centres(), normalize(cameras.forward(), dim=-1)
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]
    across = across * directed[:, None, None]
    total, weight = across.sum(0), max(int(directed.sum()), 1)
    condition = float(torch.linalg.eigvalsh(total)[0]) / weight
    middle = centres.mean(0)
    offset = torch.linalg.pinv(total, rtol=1e-9) @ (across @ (centres - middle)[:, :, None]).sum(0)[:, 0]
    point = middle + offset
    to_point = point - centres
    along = (to_point * axes).sum(-1)
    miss = (to_point - along[:, None] * axes).norm(dim=-1)
    distance = to_point.norm(dim=-1)
    meet = miss[directed].sum() < _FOCUS_MISS * distance[directed].sum()
    ahead = along > 0
    defined = condition > _FOCUS_CONDITION and bool(meet) and float(ahead[directed].double().mean()) > 0.8
    return _Focus(point, distance, miss, ahead | ~directed, defined)


def _decide(cameras: Cameras, focus: _Focus, depth: float, masked: bool) -> CaptureKind:
    mean = focus.distance.mean()
    if focus.defined and masked:
        return "object"
    axes = normalize(cameras.forward(), dim=-1)
    cosine = (axes @ normalize(axes.mean(0), dim=0)).clamp(-1, 1)
    narrow = float(torch.quantile(cosine.acos(), 0.95)) < _FORWARD_CONE_RAD
    spread = float((cameras.centres() - cameras.centres().mean(0)).norm(dim=-1).mean())
    panoramas = bool((cameras.model == CameraModel.EQUIRECTANGULAR).any())
    if narrow and spread < _FORWARD_SPREAD * depth and not panoramas:
        return "forward"
    precise = focus.miss.max() < _RIG_MISS * mean and focus.distance.std(correction=0) < _RIG_SPREAD * mean
    return "object" if focus.defined and bool(precise) else "unbounded"


def _scene_depth(cameras: Cameras, focus: _Focus, points: Tensor | None, depth_range) -> float:
    if depth_range is None:
        depth_range = _near_far(cameras, focus, points)
    # Disparity is what parallax sees: the mean of it between near and far.
    return 2 / (1 / max(depth_range[0], depth_range[1] * 1e-3) + 1 / depth_range[1])


def _near_far(cameras: Cameras, focus: _Focus, points: Tensor | None) -> tuple[float, float]:
    """Distances along the axes that hold the scene: of points, else of the focus, else from the cameras' spread."""
    centres, axes = cameras.centres(), normalize(cameras.forward(), dim=-1)
    if points is not None and len(points) >= 8:
        depths = ((points - centres.mean(0)) @ normalize(axes.mean(0), dim=0)).sort().values
        depths = depths[depths > 0]
        if len(depths) >= 8:
            skip = len(depths) // 50
            near, far = float(depths[skip]), float(depths[-1 - skip])
            return 0.9 * near, 1.1 * far
    if focus.defined:
        depth = float(focus.distance.median())
    else:
        depth = _DEPTH_PER_SPREAD * float((centres - centres.mean(0)).norm(dim=-1).mean())
    depth = depth if depth > 0 else 1.0
    return _FOCUS_NEAR * depth, _FOCUS_FAR * depth


def _find_up(cameras: Cameras) -> Tensor:
    """World up: the axis least along any camera's x axis (people hold cameras level), where those axes leave no doubt;
    else the mean of the cameras' own up."""
    right, above = cameras.world_from_camera[:, :, 0], -cameras.world_from_camera[:, :, 1]
    mean = above.mean(0)
    if mean.norm() < 0.1:  # upside down as often as not: no information
        mean = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    mean = normalize(mean, dim=0)
    values, vectors = torch.linalg.eigh(right.T @ right / len(cameras))
    level = vectors[:, 0] * torch.sign(vectors[:, 0] @ mean)
    # fox: 0.017 < 0.24; fern: 0.0003 and 0.010, all x axes are parallel there and tell nothing. The mean is off by as
    # much as the cameras look down, seldom over 60 degrees; more means that the photos were not held level.
    clear = values[1] > 0.05 and values[0] < values[1] / 4 and level @ mean > 0.5
    return level if bool(clear) else mean


def _rotation_to_z(up: Tensor) -> Tensor:
    """The smallest rotation that takes `up` to +z; exactly the identity for (0, 0, 1)."""
    if up.shape != (3,) or not bool(torch.isfinite(up).all()) or float(up.norm()) == 0:
        raise ConfigError(f"up must be three finite numbers, not all zero; got {up.tolist()}")
    x, y, z = normalize(up, dim=0).tolist()
    if z < -1 + 1e-9:
        return torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    c = 1 / (1 + z)
    rows = [[1 - x * x * c, -x * y * c, -x], [-x * y * c, 1 - y * y * c, -y], [x, y, z]]
    return torch.tensor(rows, dtype=torch.float64)


def _turn_to_y(cameras: Cameras, rotation: Tensor) -> Tensor:
    """Adds the turn about z that points the cameras' mean axis (looking down or up: their image-up) to +y."""
    ahead = rotation @ cameras.forward().mean(0)
    if ahead[:2].norm() < 0.1:
        ahead = rotation @ -cameras.world_from_camera[:, :, 1].mean(0)
    if ahead[:2].norm() == 0:
        return rotation
    x, y = normalize(ahead[:2], dim=0).tolist()
    return torch.tensor([[y, -x, 0.0], [x, y, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64) @ rotation


def _object_region(cameras: Cameras, focus: _Focus) -> tuple[Tensor, float]:
    """Centre, and the half size that fits the views: of the smaller side of each image, at the centre's distance."""
    middle = torch.stack((cameras.width, cameras.height), -1) / 2.0
    frames = torch.arange(len(cameras))
    sides = []
    for edge in ([0.0, 1.0], [2.0, 1.0], [1.0, 0.0], [1.0, 2.0]):
        rays = cameras.rays(frames, (middle * torch.tensor(edge)).double())
        cosine = (rays.directions * cameras.forward()).sum(-1).clamp(0.17, 1)  # at most 80 degrees
        seen = focus.distance * (1 - cosine**2).sqrt() / cosine
        sides.append(seen + (rays.origins - cameras.centres()).norm(dim=-1))  # the second term: orthographic cameras
    smaller = torch.minimum(sides[0] + sides[1], sides[2] + sides[3]) / 2
    half = _OBJECT_SLACK * float(smaller.mean())
    return focus.point, half if half > 0 else 1.0


def _camera_region(cameras: Cameras, focus: _Focus, points: Tensor | None, warnings: list[str]) -> tuple[Tensor, float]:
    """Centre, and the radius within which 95 % of the cameras stand."""
    centre = focus.point if focus.defined else cameras.centres().mean(0)
    radius = float(torch.quantile((cameras.centres() - centre).norm(dim=-1), 0.95))
    if radius > 0:
        return centre, radius
    if points is not None and len(points) >= 8:
        box = points_bounds(points, outliers=0.01)
        return centre, max(float((box - centre).abs().max()) / 2, 1e-9)
    warnings.append("all cameras stand at one point: the scene's scale cannot be told, 1 unit of the data set is kept")
    return centre, 1.0


def _warnings(cameras: Cameras, kind: str, focus: _Focus, centre: Tensor, half: float) -> list[str]:
    lines = []
    away = ((centre - cameras.centres()) * cameras.forward()).sum(-1) < 0
    away &= cameras.model != CameraModel.EQUIRECTANGULAR
    if bool(away.any()) and (kind != "unbounded" or focus.defined):
        lines.append(f"{int(away.sum())} of {len(cameras)} cameras look away from the centre: {_list(away)}")
    if not 1e-3 < half < 1e3:
        lines.append(
            f"odd scale: the region of interest has a half size of {half:.3g} data set units; "
            "are the units of the poses right?"
        )
    rounded = (cameras.world_from_camera / torch.tensor([1, 1, 1, max(half, 1e-12)], dtype=torch.float64)).flatten(1)
    _, inverse = torch.unique((rounded * 1e6).round(), dim=0, return_inverse=True)
    repeated = torch.bincount(inverse)[inverse] > 1
    if bool(repeated.any()):
        lines.append(
            f"{int(repeated.sum())} of {len(cameras)} cameras share their pose with another: {_list(repeated)}"
        )
    return lines


def _list(mask: Tensor) -> str:
    """The first frames of a mask, for a message."""
    frames = mask.nonzero()[:, 0].tolist()
    return "frames " + ", ".join(map(str, frames[:5])) + (", ..." if len(frames) > 5 else "")
