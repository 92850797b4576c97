"""How is the NeuS / IDR layout (`cameras_sphere.npz`) read?

For photo i, `world_mat_i` is the 4x4 projection K [R | t] from world to pixels, and `scale_mat_i` maps the unit sphere
that holds the object to the world. Photos lie in `image/`, masks of the object in `mask/`, both in the order of their
names. The data set frame is the world's; the sphere becomes the region of interest. Source: the README of NeuS.

The projection is split by an RQ decomposition; these files state no image size, so that intrinsics are in pixels of the
images as they are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...fields.errors import FormatError
from .capture import Capture, CaptureFrame, Lens, check_lens, check_pose
from .files import read_npz
from .folders import list_images

FILES = ("cameras_sphere.npz", "cameras.npz")
MAX_SKEW = 1e-3  # of the focal length: a third of a pixel at the edge of an 800-pixel image


def missing(root: Path) -> list[str]:
    """What this layout needs and `root` has not."""
    lacks = [] if any((root / name).is_file() for name in FILES) else [FILES[0]]
    return lacks if (root / "image").is_dir() else [*lacks, "image/"]


def load(root: Path) -> Capture:
    """Parse `cameras_sphere.npz` in `root`."""
    file = next((root / name for name in FILES if (root / name).is_file()), root / FILES[0])
    arrays = read_npz(file)
    numbers = [name[10:] for name in arrays if name.startswith("world_mat_")]
    count = 1 + max((int(text) for text in numbers if text.isascii() and text.isdigit() and len(text) < 10), default=-1)
    if not count:
        raise FormatError(f"{file}: holds no world_mat_0; it holds {', '.join(sorted(arrays)[:4]) or 'nothing'}")
    images, masks = list_images(root / "image"), list_images(root / "mask")
    if masks and len(masks) != len(images):
        raise FormatError(f"{root}: {len(images)} images but {len(masks)} masks; both are matched in name order")
    places = _places(images, count, file)
    frames = []
    skew = 0.0
    for i in range(count):
        where = f"{file}, world_mat_{i}"
        pose, lens, frame_skew = split_projection(_matrix(arrays, f"world_mat_{i}", file), where)
        skew = max(skew, frame_skew)
        at = places.get(i)
        path = root / "image" / f"{i:06d}.png" if at is None else images[at]
        mask = None if at is None or not masks else masks[at]
        frames.append(CaptureFrame(name=path.name, image=path, mask=mask, lens=lens, world_from_camera=pose))
    notes = () if skew <= MAX_SKEW else (f"{file.name}: skewed pixels (up to {skew:.2g}) are taken as square ones",)
    return Capture(
        root=root,
        layout="neus",
        frames=tuple(sorted(frames, key=lambda frame: frame.name)),
        region=_region(arrays, count, file),
        mask_meaning="object" if masks else None,
        source="image",
        warnings=notes,
    )


def split_projection(projection: np.ndarray, where: str) -> tuple[np.ndarray, Lens, float]:
    """(4, 4) or (3, 4) K [R | t] up to scale, to camera to world (3, 4), lens, and skew / focal length."""
    matrix = projection[:3, :4]
    if not np.isfinite(matrix).all():
        raise FormatError(f"{where}: the projection holds NaN or infinity")
    left = matrix[:, :3]
    size = np.abs(left).max()
    if not 1e-12 < size < 1e12 or abs(np.linalg.det(left / size)) < 1e-15:
        raise FormatError(f"{where}: the projection has no inverse; expected K [R | t]")
    # RQ of A is the QR of A turned about the anti-diagonal.
    orthogonal, upper = np.linalg.qr(np.flipud(left / size).T)
    intrinsic, rotation = np.flipud(np.fliplr(upper.T)), np.flipud(orthogonal.T)
    signs = np.sign(np.diag(intrinsic))
    intrinsic, rotation = intrinsic * signs, rotation * signs[:, None]
    if np.linalg.det(rotation) < 0:
        rotation = -rotation  # the projection's sign is free
    intrinsic = intrinsic / intrinsic[2, 2]
    centre = -np.linalg.solve(left, matrix[:, 3])
    pose = check_pose(np.concatenate([rotation.T, centre[:, None]], axis=1), where)
    fx, fy, cx, cy = (float(intrinsic[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return pose, check_lens(Lens(intrinsics=(fx, fy, cx, cy)), where), abs(float(intrinsic[0, 1])) / fx


def _matrix(arrays: dict[str, np.ndarray], name: str, file: Path) -> np.ndarray:
    if name not in arrays:
        raise FormatError(f"{file}: '{name}' is missing; frames must be numbered from 0 without gaps")
    if arrays[name].shape not in ((4, 4), (3, 4)):
        raise FormatError(f"{file}: '{name}' must be 4x4, got {arrays[name].shape}")
    return arrays[name]


def _region(arrays: dict[str, np.ndarray], count: int, file: Path) -> tuple[tuple[float, float, float], float] | None:
    """Centre and radius of the sphere, in world units; the same for all photos."""
    if "scale_mat_0" not in arrays:
        return None
    first = _matrix(arrays, "scale_mat_0", file)[:3]
    radius = float(first[0, 0])
    expected = np.concatenate([np.eye(3) * radius, first[:, 3:]], axis=1)
    if not np.isfinite(first).all() or not 1e-9 < radius < 1e9 or np.abs(first - expected).max() > 1e-4 * radius:
        raise FormatError(f"{file}: 'scale_mat_0' must be a uniform scale and a translation")
    for i in range(1, count):
        other = _matrix(arrays, f"scale_mat_{i}", file)[:3]
        if not np.abs(other - first).max() <= 1e-3 * radius:
            raise FormatError(f"{file}: 'scale_mat_{i}' differs from 'scale_mat_0'; one sphere for all is expected")
    return (float(first[0, 3]), float(first[1, 3]), float(first[2, 3])), radius


def _places(images: list[Path], count: int, file: Path) -> dict[int, int]:
    """Frame number to index in `images`: all in order, or, where some are absent, by the number in the file name."""
    if len(images) == count:
        return {i: i for i in range(count)}
    if len(images) < count and all(path.stem.isascii() and path.stem.isdigit() for path in images):
        return {int(path.stem[:18]): index for index, path in enumerate(images)}
    raise FormatError(
        f"{file}: {count} cameras, but image holds {len(images)} images; expected as many, or fewer named by number"
    )
