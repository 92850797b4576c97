"""How is the LLFF layout (`poses_bounds.npy`) read?

One row of 17 numbers a photo, in the order of the file names: a 3x5 matrix whose columns are the camera's down, right
and backward axis and its position, then (height, width, focal length) of the full-size photo; and the near and far
distance of the scene. Photos lie in `images/` or, reduced by that factor, in `images_8/` and the like; the principal
point is the middle. Source: the LLFF code's README, "Using your own poses without running COLMAP".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...fields.errors import FormatError
from .capture import MAX_SIDE, Capture, CaptureFrame, Lens, check_lens, check_pose
from .files import read_npy
from .folders import choose_image_folder, list_images

FILE = "poses_bounds.npy"


def missing(root: Path) -> list[str]:
    """What this layout needs and `root` has not."""
    lacks = [] if (root / FILE).is_file() else [FILE]
    return lacks if choose_image_folder(root) else [*lacks, "images/ (or images_4/, images_8/ ...)"]


def load(root: Path) -> Capture:
    """Parse `poses_bounds.npy` in `root`."""
    file, folder = root / FILE, choose_image_folder(root)
    if folder is None:
        raise FormatError(f"{root}: not an LLFF folder; missing: {', '.join(missing(root))}")
    table = read_npy(file)
    if table.ndim != 2 or table.shape[1] != 17 or not len(table):
        raise FormatError(f"{file}: expected an array of shape (photos, 17), got {table.shape}")
    paths = list_images(folder.path)
    if len(paths) != len(table):
        raise FormatError(
            f"{file}: {len(table)} poses, but {folder.path.name} holds {len(paths)} images; the rows follow the file "
            "names, so that both numbers must agree"
        )
    bounds = table[:, 15:]
    if not (np.isfinite(bounds).all() and (bounds[:, 0] > 0).all() and (bounds[:, 1] > bounds[:, 0]).all()):
        raise FormatError(f"{file}: near and far distances (columns 16 and 17) must be 0 < near < far in every row")
    rows = zip(paths, table, strict=True)
    return Capture(
        root=root,
        layout="llff",
        frames=tuple(_frame(path, row, f"{file}, row {i}", folder.scale) for i, (path, row) in enumerate(rows)),
        depth_range=(float(bounds[:, 0].min()), float(bounds[:, 1].max())),
        source=folder.path.name,
    )


def _frame(path: Path, row: np.ndarray, where: str, scale: int) -> CaptureFrame:
    matrix = row[:15].reshape(3, 5)
    height, width, focal = matrix[:, 4]
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and height % 1 == 0 and width % 1 == 0):
        raise FormatError(f"{where}: an image of {width:g}x{height:g} pixels; sides are 1 to {MAX_SIDE}")
    down, right, back, position = matrix[:, :4].T
    lens = Lens(size=(int(width), int(height)), intrinsics=(focal, focal, None, None), nominal_scale=scale)
    return CaptureFrame(
        name=path.name,
        image=path,
        lens=check_lens(lens, where),
        world_from_camera=check_pose(np.stack([right, down, -back, position], axis=1), where),
    )
