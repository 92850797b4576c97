"""What did a data set say, before any pixel is read?

Every loader in this folder returns a `Capture`: cameras in the data set's own frame and units (but already in the
OpenCV convention: x right, y down, z forward, pixel centres at +0.5), paths of images and masks, split names, points
and hints for the normalisation. Loaders read no pixels; `scenes.scene` turns a Capture into a Scene in one common way.

The checks on values that come from files (finite, rigid, of a sensible size) live here, so that every format refuses
the same things with the same words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ...fields.errors import FormatError
from ...fields.geometry import CameraModel

# A 131072-pixel side is beyond any sensor or panorama; a larger figure in a file is a damaged or hostile one.
MAX_SIDE = 1 << 17
# Poses printed with four decimals are this far from orthonormal; published data sets stay below 1e-5.
RIGID_TOLERANCE = 1e-2
NO_DISTORTION = (0.0,) * 8


@dataclass(frozen=True, kw_only=True)
class Lens:
    """Intrinsics as a data set states them.

    Attributes:
        model: The projection.
        size: (width, height) in pixels that `intrinsics` refer to; None when the data set states none, then the size of
            the image itself is meant.
        intrinsics: (fx, fy, cx, cy) in pixels of `size`; a None inside means: derive it (focal length from the angle,
            principal point in the middle).
        angle_x: Horizontal field of view, radians, where no focal length is stated.
        angle_y: Vertical field of view, radians; None: square pixels.
        distortion: OpenCV order [k1, k2, p1, p2, k3, k4, k5, k6]; fisheye: its four in the first four.
        nominal_scale: The image folder's own reduction (`images_8` says 8); sizes that differ by it (rounded either
            way) are expected and not warned about.
    """

    model: CameraModel = CameraModel.PINHOLE
    size: tuple[int, int] | None = None
    intrinsics: tuple[float | None, float | None, float | None, float | None] = (None, None, None, None)
    angle_x: float | None = None
    angle_y: float | None = None
    distortion: tuple[float, ...] = NO_DISTORTION
    nominal_scale: int = 1

    def pixels(self, width: int, height: int) -> tuple[float, float, float, float]:
        """(fx, fy, cx, cy) for an image of width x height, the stated size or the one that stands for it."""
        fx, fy, cx, cy = self.intrinsics
        if self.model == CameraModel.EQUIRECTANGULAR:
            fx, fy = width / (2 * math.pi), height / math.pi
        if fx is None and self.angle_x is not None:
            fx = 0.5 * width / math.tan(0.5 * self.angle_x)
        if fy is None and self.angle_y is not None:
            fy = 0.5 * height / math.tan(0.5 * self.angle_y)
        fx = fy if fx is None else fx
        fy = fx if fy is None else fy
        if fx is None or fy is None:
            raise AssertionError("check_lens refuses a lens with neither focal length nor angle")
        return fx, fy, 0.5 * width if cx is None else cx, 0.5 * height if cy is None else cy


@dataclass(frozen=True, kw_only=True)
class CaptureFrame:
    """One photo: where it is and the camera that took it.

    Attributes:
        name: How the data set names it; frames without a stated split are held out in the order of these names.
        image: Path of the image (it may be absent).
        mask: Path of its mask, or None.
        lens: Its intrinsics.
        world_from_camera: (3, 4) float64, data set frame and units, OpenCV camera axes.
        split: "train", "val" or "test" where the data set says so, else None.
        time: Seconds or any unit of the data set; None for a still scene.
    """

    name: str
    image: Path
    lens: Lens
    world_from_camera: np.ndarray
    mask: Path | None = None
    split: Literal["train", "val", "test"] | None = None
    time: float | None = None


@dataclass(frozen=True, kw_only=True)
class Capture:
    """A parsed data set.

    Attributes:
        root: Its folder.
        layout: The layout's name in `LAYOUTS`.
        frames: At least one.
        points: (P, 3) float64 in the data set frame, or None.
        point_colors: (P, 3) uint8, or None.
        up: (3,) direction of the world's up axis in the data set frame, where the format fixes it.
        region: (centre (3,), half size) of the region of interest in the data set frame, where the data set states it.
        depth_range: (near, far) distances in data set units that hold the whole scene, where stated.
        mask_meaning: "object": pixels of the thing to reconstruct; "valid": pixels that may be trained on.
        exif: Whether an EXIF orientation turns an image when the stated sizes leave it open. COLMAP ignores the tag.
        source: One phrase for the protocol, e.g. which image folder was taken.
        warnings: One line each.
    """

    root: Path
    layout: str
    frames: tuple[CaptureFrame, ...]
    points: np.ndarray | None = None
    point_colors: np.ndarray | None = None
    up: tuple[float, float, float] | None = None
    region: tuple[tuple[float, float, float], float] | None = None
    depth_range: tuple[float, float] | None = None
    mask_meaning: Literal["object", "valid"] | None = None
    exif: bool = True
    source: str = "images"
    warnings: tuple[str, ...] = ()


def check_pose(matrix: np.ndarray, where: str) -> np.ndarray:
    """The nearest rigid transform to `matrix`, or a FormatError.

    Args:
        matrix: (3, 4) or (4, 4), camera to world.
        where: File and frame, for the error text.

    Returns:
        (3, 4) float64 whose rotation is orthonormal to double precision.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if not np.isfinite(matrix).all():
        raise FormatError(f"{where}: the pose holds NaN or infinity; remove the frame or repair the pose")
    if matrix.shape == (4, 4):
        if np.abs(matrix[3] - [0, 0, 0, 1]).max() > RIGID_TOLERANCE:
            raise FormatError(
                f"{where}: the last row of a pose must be 0 0 0 1, got {' '.join(f'{v:g}' for v in matrix[3])}"
            )
        matrix = matrix[:3]
    if np.abs(matrix).max() > 1e12:
        raise FormatError(f"{where}: a pose entry is {np.abs(matrix).max():.3g}; values up to 1e12 can be used")
    rotation = matrix[:, :3]
    error = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if error > RIGID_TOLERANCE:
        raise FormatError(
            f"{where}: the pose is not rigid (rotation differs from orthonormal by {error:.3g}; "
            f"{RIGID_TOLERANCE:g} is tolerated); expected a rotation and a translation without scale or shear"
        )
    if np.linalg.det(rotation) < 0:
        raise FormatError(f"{where}: the pose mirrors space (determinant -1); expected a proper rotation")
    left, _, right = np.linalg.svd(rotation)
    return np.concatenate([left @ right, matrix[:, 3:]], axis=1)


def check_lens(lens: Lens, where: str) -> Lens:
    """`lens` if its numbers can be those of a camera, else a FormatError."""
    if lens.size is not None and not all(1 <= side <= MAX_SIDE for side in lens.size):
        raise FormatError(f"{where}: an image of {lens.size[0]}x{lens.size[1]} pixels; sides are 1 to {MAX_SIDE}")
    for name, value in zip(("fx", "fy"), lens.intrinsics[:2], strict=True):
        if value is not None and not 1e-3 < value < 1e9:
            raise FormatError(f"{where}: focal length {name} is {value:g} pixels; expected a positive number")
    for name, value in zip(("cx", "cy"), lens.intrinsics[2:], strict=True):
        if value is not None and not abs(value) < 1e9:
            raise FormatError(f"{where}: principal point {name} is {value:g} pixels; expected one near the image")
    for name, value in (("x", lens.angle_x), ("y", lens.angle_y)):
        if value is not None and not 1e-6 < value < math.pi - 1e-6:
            raise FormatError(f"{where}: camera_angle_{name} is {value:g}; expected radians between 0 and pi")
    if not all(math.isfinite(value) and abs(value) < 1e6 for value in lens.distortion):
        raise FormatError(f"{where}: distortion coefficients {lens.distortion}; expected finite numbers")
    no_focal = lens.intrinsics[0] is None and lens.intrinsics[1] is None
    if no_focal and lens.angle_x is None and lens.angle_y is None and lens.model != CameraModel.EQUIRECTANGULAR:
        raise FormatError(f"{where}: no focal length; expected fl_x (pixels) or camera_angle_x (radians)")
    return lens


def finite_points(
    points: np.ndarray | None, colors: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None, tuple[str, ...]]:
    """Points without the non-finite or absurdly far ones, and a warning when some were dropped."""
    if points is None or len(points) == 0:
        return None, None, ()
    good = (np.abs(points) < 1e12).all(axis=1)
    if good.all():
        return points, colors, ()
    if not good.any():
        return None, None, (f"none of the {len(points)} points is finite; they are ignored",)
    kept = None if colors is None else colors[good]
    return points[good], kept, (f"{int((~good).sum())} of {len(points)} points are not finite and were dropped",)
