"""Along which cameras is a model shown? An orbit, a spiral, or cameras from a file.

Orbit and spiral come back in the scene frame, z up, region of interest about [-1, 1]^3. A camera file has the layout
of `transforms.json` (camera to world, OpenGL axes: x right, y up, z backward) and is in the data set's own frame and
units, so that a path made with any tool for the photos fits the model too. The spiral is that of LLFF (Mildenhall et
al. 2019, arXiv 1905.00889): a ring around the mean camera, as wide as the cameras lie, looking at one point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..fields.errors import ConfigError, FormatError
from ..fields.formats import write_json
from ..fields.geometry import CameraModel, Cameras

DEFAULT_SIZE = (800, 800)
DEFAULT_FOV_DEG = 40.0
"""Horizontal; NeRF-Synthetic's is 39.6 degrees."""

_MODEL_NAMES = {
    CameraModel.PINHOLE: "PINHOLE",
    CameraModel.OPENCV: "OPENCV",
    CameraModel.FISHEYE: "OPENCV_FISHEYE",
    CameraModel.EQUIRECTANGULAR: "EQUIRECTANGULAR",
    CameraModel.ORTHOGRAPHIC: "ORTHOGRAPHIC",
}


class View(NamedTuple):
    """What an orbit circles around and from where."""

    centre: Tensor
    """(3,) float64, scene frame."""
    radius: float
    """Distance of the cameras from the centre, scene units."""
    elevation_deg: float
    """Height of the cameras above the centre as an angle."""
    fov_deg: float
    """Horizontal field of view."""


def view_of_bounds(bounds: Tensor) -> View:
    """A view that holds the box `bounds` (2, 3) whole; outside the region of interest [-1, 1]^3 it is cut off."""
    box = bounds.detach().to("cpu", torch.float64).nan_to_num().clamp(-1, 1)
    reach = max(float((box[1] - box[0]).norm()) / 2, 1e-3)
    return View(box.mean(0), reach / math.sin(math.radians(DEFAULT_FOV_DEG / 2)), 25.0, DEFAULT_FOV_DEG)


def view_of_cameras(cameras: Cameras) -> View:
    """The view that `cameras` (scene frame) had: the point they looked at, their median distance, height and angle."""
    centres, forward = _axes(cameras)
    centre = nearest_point(centres, forward).clamp(-1, 1)
    offset = centres - centre
    radius = max(float(offset.norm(dim=1).median()), 1e-3)
    height = torch.rad2deg(torch.atan2(offset[:, 2], offset[:, :2].norm(dim=1)))
    fov = 2 * torch.rad2deg(torch.atan(0.5 * cameras.width / cameras.intrinsics[:, 0]))
    perspective = cameras.model < int(CameraModel.EQUIRECTANGULAR)
    fov_deg = float(fov[perspective].median()) if bool(perspective.any()) else DEFAULT_FOV_DEG
    return View(centre, radius, min(max(float(height.median()), -80.0), 80.0), min(max(fov_deg, 1.0), 120.0))


def orbit(view: View, frames: int, *, size: tuple[int, int] = DEFAULT_SIZE) -> Cameras:
    """`frames` pinhole cameras on a full horizontal circle, counter-clockwise from +x, looking at the centre.

    Args:
        view: centre, radius, elevation and field of view.
        frames: at least 1; the circle closes, so the last camera is one step before the first.
        size: (width, height) in pixels.
    """
    _check_count(frames)
    angle = torch.arange(frames, dtype=torch.float64) * (2 * math.pi / frames)
    height = math.radians(view.elevation_deg)
    ring = torch.stack([angle.cos() * math.cos(height), angle.sin() * math.cos(height)], dim=1)
    offset = torch.cat([ring, torch.full((frames, 1), math.sin(height), dtype=torch.float64)], dim=1)
    centres = view.centre.to(torch.float64) + view.radius * offset
    return look_at(centres, view.centre.to(torch.float64).expand_as(centres), fov_deg=view.fov_deg, size=size)


def spiral(cameras: Cameras, frames: int, *, turns: int = 2, size: tuple[int, int] | None = None) -> Cameras:
    """`frames` pinhole cameras on a spiral around the mean of `cameras`: the usual film of a forward-facing capture.

    Args:
        cameras: those of the photos, scene frame.
        frames: at least 1.
        turns: how often the path goes round; it is closed.
        size: (width, height) in pixels; that of the first camera by default.

    Raises:
        ConfigError: the cameras look to all sides, so that they have no mean direction (use an orbit).
    """
    _check_count(frames)
    centres, forward = _axes(cameras)
    mean, direction = centres.mean(0), forward.mean(0)
    up = -cameras.world_from_camera[:, :, 1].to("cpu", torch.float64).mean(0)
    right = torch.linalg.cross(direction, up)
    # Unit axes that agree average to a length near 1; those of a full circle cancel in one or the other of the two.
    if float(right.norm()) < 0.5:
        raise ConfigError("the cameras look to all sides: a spiral needs a forward-facing capture; use --orbit N")
    direction = direction / direction.norm()
    right = right / right.norm()
    up = torch.linalg.cross(right, direction)
    axes = torch.stack([right, up, direction])
    reach = torch.quantile(((centres - mean) @ axes.T).abs(), 0.9, dim=0)
    # The region of interest is about the origin, so what is to stay still in the film is as far off as the origin.
    focus = mean + direction * max(float(-mean @ direction), 0.5)
    theta = torch.arange(frames, dtype=torch.float64) * (2 * math.pi * turns / frames)
    wave = torch.stack([theta.cos(), theta.sin(), (theta / turns).sin()], dim=1)
    path = mean + (wave * reach) @ axes
    fov = view_of_cameras(cameras[0:1]).fov_deg
    size = size or (int(cameras.width[0]), int(cameras.height[0]))
    return look_at(path, focus.expand_as(path), fov_deg=fov, size=size, up=up)


def look_at(
    centres: Tensor, targets: Tensor, *, fov_deg: float, size: tuple[int, int], up: Tensor | None = None
) -> Cameras:
    """Pinhole cameras at `centres` (F, 3) looking at `targets` (F, 3), all in one frame.

    Args:
        fov_deg: horizontal field of view, degrees.
        size: (width, height) in pixels.
        up: (3,) direction that is up in the picture; +z by default.
    """
    forward = targets - centres
    forward = forward / forward.norm(dim=1, keepdim=True)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=centres.dtype) if up is None else up.to(centres)
    right = torch.linalg.cross(forward, up.expand_as(forward))
    steep = right.norm(dim=1, keepdim=True) < 1e-6  # looking straight up or down: any right vector will do
    right = torch.where(steep, torch.tensor([1.0, 0.0, 0.0], dtype=centres.dtype), right)
    right = right / right.norm(dim=1, keepdim=True)
    down = torch.linalg.cross(forward, right)
    width, height = size
    focal = 0.5 * width / math.tan(math.radians(fov_deg) / 2)
    poses = torch.stack([right, down, forward, centres], dim=2).float()
    return Cameras.create(poses, width=width, height=height, focal=focal)


def nearest_point(origins: Tensor, directions: Tensor) -> Tensor:
    """The point (3,) with the least squared distances to the lines through `origins` (F, 3) along unit `directions`."""
    apart = torch.eye(3, dtype=origins.dtype) - directions[:, :, None] * directions[:, None, :]
    # Parallel lines leave one direction open: a little weight on the origin of the scene frame closes it.
    weight = 1e-3 * torch.eye(3, dtype=origins.dtype)
    return torch.linalg.solve(apart.mean(0) + weight, (apart @ origins[:, :, None]).mean(0)[:, 0])


def read_cameras(path: Path, *, size: tuple[int, int] | None = None) -> Cameras:
    """Cameras of a file in the layout of `transforms.json`, in the data set's frame. Photos need not exist.

    Args:
        path: the file.
        size: (width, height) to render at; the focal length scales with the height, and width is added or cut at both
            sides. By default the file's `w` and `h`, else the size of the photo named there.

    Raises:
        FormatError: not such a file, or no size is stated anywhere.
    """
    from .datasets.files import read_json
    from .datasets.transforms import parse_frames

    top = read_json(path)
    for index, entry in enumerate(top.items("frames") or []):
        if isinstance(entry, dict):
            entry.setdefault("file_path", f"{index:05d}.png")
    frames = parse_frames(top, path, path.parent)
    rows, sizes = [], []
    for index, frame in enumerate(frames):
        known = frame.lens.size or _photo_size(frame.image) or size
        if known is None:
            raise FormatError(f"{path}, frame {index}: no image size; add 'w' and 'h' to the file or give --size WxH")
        fx, fy, cx, cy = frame.lens.pixels(*known)
        width, height = size or known
        scale = height / known[1]
        rows.append([fx * scale, fy * scale, cx * scale + (width - known[0] * scale) / 2, cy * scale])
        sizes.append((width, height))
    poses = torch.stack([torch.as_tensor(f.world_from_camera, dtype=torch.float32) for f in frames])
    return Cameras(
        world_from_camera=poses,
        intrinsics=torch.tensor(rows, dtype=torch.float32),
        distortion=torch.tensor([f.lens.distortion for f in frames], dtype=torch.float32),
        model=torch.tensor([int(f.lens.model) for f in frames], dtype=torch.uint8),
        width=torch.tensor([w for w, _ in sizes], dtype=torch.int32),
        height=torch.tensor([h for _, h in sizes], dtype=torch.int32),
    )


def write_cameras(path: Path, cameras: Cameras, names: Sequence[str], **more: object) -> None:
    """Write `cameras` (data set frame) in the layout of `transforms.json`; `read_cameras` and other tools read it.

    Args:
        names: (F) `file_path` of each frame.
        more: further keys of the file.
    """
    frames = []
    for index, name in enumerate(names):
        fx, fy, cx, cy = cameras.intrinsics[index].tolist()
        model = CameraModel(int(cameras.model[index]))
        keys = (
            ("k1", "k2", "k3", "k4")
            if model == CameraModel.FISHEYE
            else ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
        )
        lens = {k: v for k, v in zip(keys, cameras.distortion[index].tolist(), strict=False) if v}
        pose = cameras.world_from_camera[index].double() * torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
        frames.append(
            {
                "file_path": name,
                "camera_model": _MODEL_NAMES[model],
                "w": int(cameras.width[index]),
                "h": int(cameras.height[index]),
                "fl_x": fx,
                "fl_y": fy,
                "cx": cx,
                "cy": cy,
                **lens,
                "transform_matrix": [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]],
            }
        )
    write_json(path, {**more, "frames": frames})


def _axes(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Centres and unit forward axes (F, 3), float64."""
    poses = cameras.world_from_camera.detach().to("cpu", torch.float64)
    return poses[:, :, 3], poses[:, :, 2] / poses[:, :, 2].norm(dim=1, keepdim=True)


def _photo_size(path: Path) -> tuple[int, int] | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # absent, damaged or of a kind that Pillow does not read: the size is simply not known
        return None


def _check_count(frames: int) -> None:
    if frames < 1:
        raise ConfigError(f"a camera path needs at least 1 frame; got {frames}")
