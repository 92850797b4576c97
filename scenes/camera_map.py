"""How do the cameras of a scene lie? A picture with a view from above and one from the side, in scene units.

Each camera is drawn as its viewing pyramid, coloured by split, with a roof on the edge that is up in the photo;
panoramas as circles. The unit box [-1, 1]^3, the box of what is to be reconstructed (dashed), the axes and the sparse
points show what they look at. Wrong conventions are seen at once: pyramids that point outwards, lie on their side or
stand on their heads.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..fields.geometry import CameraModel, Cameras

_PANEL = 760  # pixels, each of the two views
_MARGIN, _HEAD, _FOOT = 28, 76, 54
_OVERSAMPLE = 2
_PAPER, _PANEL_FILL, _GRID, _INK, _FAINT = "#ffffff", "#f7f7f5", "#e4e4e0", "#22262b", "#8a8f98"
_SPLIT_COLORS = {"train": "#2f6fb7", "val": "#3f9a5b", "test": "#e07a1f"}
_AXIS_COLORS = ("#d0353f", "#3f9a5b", "#2f6fb7")
_POINT_COLOR = (120, 126, 135)
_MOST_POINTS = 20_000
# Pyramids are this part of the typical camera distance long, less where many cameras stand close.
_PYRAMID = 0.16


class _Panel(NamedTuple):
    """A view along one axis: which scene axes run right and up, and the place on the sheet."""

    right: int
    up: int
    title: str
    left: int
    top: int


class _Sheet:
    """A drawing in final pixels, made larger and shrunk at the end."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * _OVERSAMPLE, height * _OVERSAMPLE), _PAPER)
        self.draw = ImageDraw.Draw(self.image, "RGBA")

    def line(self, points: np.ndarray | list, color, width: float = 1.0) -> None:
        flat = [tuple(map(float, p)) for p in np.asarray(points, dtype=np.float64) * _OVERSAMPLE]
        self.draw.line(flat, fill=color, width=max(1, round(width * _OVERSAMPLE)), joint="curve")

    def polygon(self, points: np.ndarray | list, color) -> None:
        self.draw.polygon([tuple(map(float, p)) for p in np.asarray(points) * _OVERSAMPLE], fill=color)

    def dot(self, point: np.ndarray, radius: float, color) -> None:
        x, y = np.asarray(point, dtype=np.float64) * _OVERSAMPLE
        r = radius * _OVERSAMPLE
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=color)

    def ring(self, point: np.ndarray, radius: float, color) -> None:
        x, y = np.asarray(point, dtype=np.float64) * _OVERSAMPLE
        r = radius * _OVERSAMPLE
        self.draw.ellipse((x - r, y - r, x + r, y + r), outline=color, width=2 * _OVERSAMPLE)

    def text(self, x: float, y: float, text: str, size: float = 13, color=_INK, anchor: str = "ls") -> float:
        """Write; returns the width in final pixels."""
        font = ImageFont.load_default(size * _OVERSAMPLE)
        self.draw.text((x * _OVERSAMPLE, y * _OVERSAMPLE), text, fill=color, font=font, anchor=anchor)
        return self.draw.textlength(text, font=font) / _OVERSAMPLE

    def finish(self) -> Image.Image:
        size = (self.image.width // _OVERSAMPLE, self.image.height // _OVERSAMPLE)
        return self.image.resize(size, Image.Resampling.BOX)


def draw_cameras(
    cameras: Cameras,
    splits: dict[str, Tensor],
    *,
    bounds: Tensor | None = None,
    points: Tensor | None = None,
    point_colors: Tensor | None = None,
    title: str = "",
    subtitle: str = "",
) -> Image.Image:
    """Draw cameras from above and from the side.

    Args:
        cameras: F cameras in the scene frame.
        splits: Frame numbers by split; frames of none are drawn grey.
        bounds: (2, 3) box, scene frame, drawn dashed.
        points: (P, 3) scene frame; some 20,000 of them are drawn.
        point_colors: (P, 3) uint8.
        title: Large, upper left.
        subtitle: Small, below.

    Returns:
        RGB picture, 1604 x 918 pixels.
    """
    pyramids = _pyramids(cameras)
    extent = _extent(pyramids)
    sheet = _Sheet(2 * _PANEL + 3 * _MARGIN, _HEAD + _PANEL + _FOOT + _MARGIN)
    sheet.text(_MARGIN, 38, title, 22)
    sheet.text(_MARGIN, 62, subtitle, 13, _FAINT)
    # From the side one looks along +x where the cameras look along y (forward-facing captures), else along +y.
    across = cameras.forward().double().mean(0).abs()
    side = (
        (1, "side view (y right, z up)") if across[1] > max(float(across[0]), 0.5) else (0, "side view (x right, z up)")
    )
    panels = (
        _Panel(0, 1, "top view (x right, y up)", _MARGIN, _HEAD),
        _Panel(side[0], 2, side[1], 2 * _MARGIN + _PANEL, _HEAD),
    )
    colors = ["#8a8f98"] * len(cameras)
    for name, frames in splits.items():
        for frame in frames.tolist():
            colors[frame] = _SPLIT_COLORS.get(name, _INK)
    held_out_last = sorted(range(len(cameras)), key=lambda i: colors[i] != _SPLIT_COLORS["train"])
    cloud = _thin(points, point_colors)
    for panel in panels:
        layer = _Sheet(_PANEL, _PANEL)
        _draw_panel(layer, panel, extent, bounds, cloud)
        for frame in held_out_last:
            _draw_camera(layer, _project(pyramids.corners[frame], panel, extent), pyramids.round[frame], colors[frame])
        corner = (panel.left * _OVERSAMPLE, panel.top * _OVERSAMPLE)
        sheet.image.paste(layer.image, corner)
        sheet.text(panel.left + 12, panel.top + 22, panel.title, 13, _FAINT)
    _draw_legend(sheet, splits, points, bounds)
    return sheet.finish()


class _Pyramids(NamedTuple):
    """corners (F, 5, 3): apex, then upper left, upper right, lower right, lower left; round (F,) bool: panoramas."""

    corners: np.ndarray
    round: list[bool]


def _pyramids(cameras: Cameras) -> _Pyramids:
    cameras = cameras.to("cpu", dtype=torch.float64)
    eyes = cameras.centres()
    typical = float(eyes.norm(dim=1).median()) or 1.0
    if len(cameras) > 1:  # not much longer than the way to the next camera
        gaps = torch.cdist(eyes, eyes) + torch.eye(len(eyes), dtype=torch.float64) * 1e30
        typical = min(typical, max(8 * float(gaps.amin(1).median()), 0.6 * typical))
    frames = torch.arange(len(cameras))
    corners = [eyes]
    for x, y in ((0, 0), (1, 0), (1, 1), (0, 1)):
        pixels = torch.stack([cameras.width * x, cameras.height * y], 1).double()
        rays = cameras.rays(frames, pixels)
        ahead = (rays.directions * cameras.forward()).sum(1, keepdim=True).clamp_min(0.3)
        corners.append(rays.origins + rays.directions / ahead * (typical * _PYRAMID))
    round_ = (cameras.model == int(CameraModel.EQUIRECTANGULAR)).tolist()
    return _Pyramids(torch.stack(corners, 1).numpy(), round_)


def _extent(pyramids: _Pyramids) -> tuple[np.ndarray, float]:
    """(centre (3,), half size) of what the panels show: unit box and cameras, but strays beyond five times the rest."""
    corners = pyramids.corners.reshape(-1, 3)
    corners = corners[np.isfinite(corners).all(axis=1)]
    reach = np.abs(corners).max(axis=1)
    kept = corners[reach <= max(5 * float(np.median(reach)), 1.0)]
    low = np.minimum(kept.min(axis=0), -1.0)
    high = np.maximum(kept.max(axis=0), 1.0)
    return (low + high) / 2, float((high - low).max()) / 2 * 1.08


def _project(points: np.ndarray, panel: _Panel, extent: tuple[np.ndarray, float]) -> np.ndarray:
    """(N, 3) scene to (N, 2) pixels of a panel."""
    centre, half = extent
    local = (points - centre)[..., [panel.right, panel.up]] / half
    return (local * (1, -1) + 1) * (_PANEL / 2)


def _draw_panel(sheet: _Sheet, panel: _Panel, extent: tuple[np.ndarray, float], bounds: Tensor | None, cloud) -> None:
    centre, half = extent
    sheet.polygon([(0, 0), (_PANEL, 0), (_PANEL, _PANEL), (0, _PANEL)], _PANEL_FILL)
    step = _nice_step(half)
    for axis, along in ((panel.right, 0), (panel.up, 1)):
        for k in range(int(np.floor((centre[axis] - half) / step)), int(np.ceil((centre[axis] + half) / step)) + 1):
            at = (k * step - centre[axis]) / half
            place = (at + 1) * _PANEL / 2 if along == 0 else (1 - at) * _PANEL / 2
            ends = [(place, 0), (place, _PANEL)] if along == 0 else [(0, place), (_PANEL, place)]
            sheet.line(ends, _GRID, 1)
            if 40 < place < _PANEL - 30:
                where = (place, _PANEL - 8, "ms") if along == 0 else (_PANEL - 8, place, "rm")
                sheet.text(where[0], where[1], f"{k * step:g}", 11, _FAINT, where[2])
    if cloud is not None:
        _draw_points(sheet, _project(cloud[0], panel, extent), cloud[1])
    if bounds is not None and float((bounds.abs() - 1).abs().max()) > 1e-3:
        _draw_box(sheet, panel, extent, bounds.numpy(), _FAINT, dashed=True)
    _draw_box(sheet, panel, extent, np.array([[-1.0] * 3, [1.0] * 3]), _INK, dashed=False)
    origin = _project(np.zeros((1, 3)), panel, extent)[0]
    for axis in (panel.right, panel.up):
        tip = _project(0.45 * np.eye(3)[axis : axis + 1], panel, extent)[0]
        sheet.line([origin, tip], _AXIS_COLORS[axis], 2.5)
        away = (tip - origin) / max(float(np.linalg.norm(tip - origin)), 1e-9)
        normal = np.array([-away[1], away[0]])
        sheet.polygon([tip + away * 9, tip + normal * 4.5, tip - normal * 4.5], _AXIS_COLORS[axis])
        label_x, label_y = (tip + away * 20).tolist()
        sheet.text(label_x, label_y, "xyz"[axis], 13, _AXIS_COLORS[axis], "mm")


def _draw_box(sheet: _Sheet, panel: _Panel, extent, box: np.ndarray, color: str, *, dashed: bool) -> None:
    corners = np.zeros((5, 3))
    corners[:, panel.right] = box[[0, 1, 1, 0, 0], panel.right]
    corners[:, panel.up] = box[[0, 0, 1, 1, 0], panel.up]
    places = _project(corners, panel, extent)
    if not dashed:
        sheet.line(places, color, 1.6)
        return
    for start, end in itertools.pairwise(places):
        length = float(np.linalg.norm(end - start))
        # A box far larger than the panel needs no dashes outside of it.
        count = min(int(length / 7), 4000)
        for k in range(0, count, 2):
            sheet.line([start + (end - start) * k / count, start + (end - start) * (k + 1) / count], color, 1.2)


def _draw_camera(sheet: _Sheet, corners: np.ndarray, panorama: bool, color: str) -> None:
    apex, upper_left, upper_right, lower_right, lower_left = corners
    if panorama:
        sheet.ring(apex, 6, color)
        return
    frame = [upper_left, upper_right, lower_right, lower_left]
    tint = tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))
    sheet.polygon(frame, (*tint, 46))
    for corner in frame:
        sheet.line([apex, corner], (*tint, 150), 0.9)
    sheet.line([*frame, frame[0]], (*tint, 235), 1.3)
    middle = (upper_left + upper_right) / 2
    roof = middle + (upper_left + upper_right - lower_left - lower_right) * 0.16
    width = (upper_right - upper_left) * 0.22
    sheet.polygon([middle - width, roof, middle + width], (*tint, 235))
    sheet.dot(apex, 2.2, color)


def _draw_points(sheet: _Sheet, places: np.ndarray, colors: np.ndarray) -> None:
    """Points as two-by-two squares, straight into the pixels."""
    pixels = np.array(sheet.image)
    spots = np.floor(places * _OVERSAMPLE).astype(np.int64)
    inside = ((spots >= 0) & (spots < _PANEL * _OVERSAMPLE - 1)).all(axis=1)
    x, y = spots[inside].T
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        pixels[y + dy, x + dx] = colors[inside]
    sheet.image = Image.fromarray(pixels)
    sheet.draw = ImageDraw.Draw(sheet.image, "RGBA")


def _draw_legend(sheet: _Sheet, splits: dict[str, Tensor], points: Tensor | None, bounds: Tensor | None) -> None:
    x, y = float(_MARGIN), _HEAD + _PANEL + 34
    for name, frames in splits.items():
        color = _SPLIT_COLORS.get(name, _INK)
        sheet.polygon([(x, y), (x + 14, y), (x + 14, y - 11), (x, y - 11)], color)
        x += 22 + sheet.text(x + 20, y, f"{len(frames)} {name}", 13) + 26
    sheet.line([(x, y - 5), (x + 18, y - 5)], _INK, 1.6)
    x += 24 + sheet.text(x + 24, y, "region of interest, [-1, 1] along each axis", 13) + 26
    if bounds is not None and float((bounds.abs() - 1).abs().max()) > 1e-3:
        for k in range(3):
            sheet.line([(x + 7 * k, y - 5), (x + 7 * k + 4, y - 5)], _FAINT, 1.4)
        x += 26 + sheet.text(x + 26, y, "box of the scene", 13) + 26
    if points is not None:
        sheet.dot(np.array([x + 5, y - 5]), 2.5, _POINT_COLOR)
        x += 16 + sheet.text(x + 16, y, f"{len(points)} points", 13) + 26
    note = "grid in scene units; the filled triangle is the upper edge of the photo"
    sheet.text(2 * _PANEL + 2 * _MARGIN, y, note, 12, _FAINT, "rs")


def _thin(points: Tensor | None, colors: Tensor | None) -> tuple[np.ndarray, np.ndarray] | None:
    if points is None or len(points) == 0:
        return None
    stride = max(1, len(points) // _MOST_POINTS)
    some = points[::stride].double().numpy()
    if colors is None:
        return some, np.broadcast_to(np.array(_POINT_COLOR, np.uint8), some.shape)
    return some, colors[::stride].numpy()


def _nice_step(half: float) -> float:
    """1, 2 or 5 times a power of ten, so that 5 to 12 lines cross the panel."""
    raw = 2 * half / 8
    power = 10.0 ** np.floor(np.log10(raw))
    return float(power * next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.999))
