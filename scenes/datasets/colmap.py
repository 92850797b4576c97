"""How is a COLMAP reconstruction (`sparse/0`, binary or text) read?

`cameras`, `images` and, where present, `points3D`, as .bin or .txt. Poses are stored world to camera (quaternion wxyz
and translation) with OpenCV axes; the centre of the upper left pixel is (0.5, 0.5), as here. Photos lie in `images/`,
or in `images_2/`, `images_4/` ... reduced by that factor. COLMAP ignores the EXIF orientation, so its sizes are those
of the stored pixels. Masks in `masks/` (0 is not used), named as the photo, or with `.png` added.

Source: COLMAP's documentation, "Output format" and "Camera models".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...fields.errors import FormatError
from ...fields.geometry import CameraModel
from .capture import MAX_SIDE, Capture, CaptureFrame, Lens, check_lens, check_pose, finite_points
from .files import Bytes, read_bytes, read_text
from .folders import choose_image_folder, find_mask

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", "dense/sparse", "")


# In the order of COLMAP's numbers; one letter a parameter: f both focal lengths, x y fx fy, u v the principal point,
# digits the index in Lens.distortion. Models with model None have no counterpart here.
MODELS: dict[int, tuple[str, CameraModel | None, str]] = {
    0: ("SIMPLE_PINHOLE", CameraModel.PINHOLE, "fuv"),
    1: ("PINHOLE", CameraModel.PINHOLE, "xyuv"),
    2: ("SIMPLE_RADIAL", CameraModel.OPENCV, "fuv0"),
    3: ("RADIAL", CameraModel.OPENCV, "fuv01"),
    4: ("OPENCV", CameraModel.OPENCV, "xyuv0123"),
    5: ("OPENCV_FISHEYE", CameraModel.FISHEYE, "xyuv0123"),
    6: ("FULL_OPENCV", CameraModel.OPENCV, "xyuv01234567"),
    7: ("FOV", None, "xyuv0"),
    8: ("SIMPLE_RADIAL_FISHEYE", CameraModel.FISHEYE, "fuv0"),
    9: ("RADIAL_FISHEYE", CameraModel.FISHEYE, "fuv01"),
    10: ("THIN_PRISM_FISHEYE", None, "xyuv01234567"),
}
NUMBERS = {name: number for number, (name, _, _) in MODELS.items()}

COUNT = struct.Struct("<Q")
CAMERA = struct.Struct("<iiQQ")
IMAGE = struct.Struct("<i7di")
POINT = struct.Struct("<Q3d3BdQ")


class Photo(NamedTuple):
    """One line of `images`: the pose is world to camera."""

    name: str
    camera: int
    quaternion: tuple[float, ...]
    translation: tuple[float, ...]


def model_folder(root: Path) -> Path | None:
    """The folder with cameras and images in the one or the other form, or None."""
    for name in MODEL_FOLDERS:
        for suffix in (".bin", ".txt"):
            if all((root / name / f"{stem}{suffix}").is_file() for stem in ("cameras", "images")):
                return root / name
    return None


def missing(root: Path) -> list[str]:
    """What this layout needs and `root` has not."""
    lacks = [] if model_folder(root) else ["sparse/0/cameras.bin and images.bin (or .txt)"]
    return lacks if choose_image_folder(root) else [*lacks, "images/ (or images_2/, images_4/ ...)"]


def load(root: Path) -> Capture:
    """Parse the reconstruction in `root`."""
    folder, images = model_folder(root), choose_image_folder(root)
    if folder is None or images is None:
        raise FormatError(f"{root}: not a COLMAP folder; missing: {', '.join(missing(root))}")
    suffix = ".bin" if (folder / "cameras.bin").is_file() and (folder / "images.bin").is_file() else ".txt"
    cameras, photos, points, colors = (_read_binary if suffix == ".bin" else _read_text)(folder, images.scale)
    if not photos:
        raise FormatError(f"{folder / ('images' + suffix)}: holds no registered photo; did the reconstruction fail?")
    frames = []
    for photo in sorted(photos):
        where = f"{folder / ('images' + suffix)} ({photo.name})"
        if photo.camera not in cameras:
            raise FormatError(f"{where}: refers to camera {photo.camera}, which cameras{suffix} does not hold")
        frames.append(
            CaptureFrame(
                name=photo.name,
                image=images.path / photo.name,
                mask=find_mask(root / "masks", photo.name),
                lens=cameras[photo.camera],
                world_from_camera=invert_pose(photo.quaternion, photo.translation, where),
            )
        )
    points, colors, notes = finite_points(points, colors)
    return Capture(
        root=root,
        layout="colmap",
        frames=tuple(frames),
        points=points,
        point_colors=colors,
        mask_meaning="valid" if any(frame.mask for frame in frames) else None,
        exif=False,
        source=images.path.name,
        warnings=notes,
    )


def invert_pose(quaternion: tuple[float, ...], translation: tuple[float, ...], where: str) -> np.ndarray:
    """World to camera as quaternion wxyz and translation, to (3, 4) camera to world."""
    q, t = np.array(quaternion), np.array(translation)
    if not (np.isfinite(q).all() and np.isfinite(t).all()):
        raise FormatError(f"{where}: the pose holds NaN or infinity; remove the photo or repair the reconstruction")
    with np.errstate(over="ignore"):
        length = float(np.sqrt((q * q).sum()))
    if not 0.9 < length < 1.1:
        raise FormatError(f"{where}: the rotation quaternion has length {length:.3g}; expected 1")
    w, x, y, z = q / length
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    if np.abs(t).max() > 1e12:
        raise FormatError(f"{where}: a translation of {np.abs(t).max():.3g}; values up to 1e12 can be used")
    return check_pose(np.concatenate([rotation.T, -(rotation.T @ t)[:, None]], axis=1), where)


def lens_from(model: int, width: int, height: int, values: tuple[float, ...], where: str, scale: int = 1) -> Lens:
    """Our lens for the parameters of a COLMAP camera."""
    name, ours, places = MODELS[model]
    if ours is None:
        usable = ", ".join(key for key, known, _ in MODELS.values() if known is not None)
        raise FormatError(f"{where}: camera model {name} cannot be used (usable: {usable}); undistort the photos")
    intrinsics = [0.0] * 4
    distortion = [0.0] * 8
    for place, value in zip(places, values, strict=True):
        if place == "f":
            intrinsics[0] = intrinsics[1] = value
        elif place in "xyuv":
            intrinsics["xyuv".index(place)] = value
        else:
            distortion[int(place)] = value
    return check_lens(
        Lens(
            model=ours if any(distortion) or ours != CameraModel.OPENCV else CameraModel.PINHOLE,
            size=(width, height),
            intrinsics=(intrinsics[0], intrinsics[1], intrinsics[2], intrinsics[3]),
            distortion=tuple(distortion),
            nominal_scale=scale,
        ),
        where,
    )


Parsed = tuple[dict[int, Lens], list[Photo], "np.ndarray | None", "np.ndarray | None"]


def _read_binary(folder: Path, scale: int) -> Parsed:
    cameras = parse_cameras(read_bytes(folder / "cameras.bin"), str(folder / "cameras.bin"), scale)
    photos = parse_images(read_bytes(folder / "images.bin"), str(folder / "images.bin"))
    file = folder / "points3D.bin"
    points, colors = parse_points(read_bytes(file), str(file)) if file.is_file() else (None, None)
    return cameras, photos, points, colors


def parse_cameras(data: bytes, where: str, scale: int = 1) -> dict[int, Lens]:
    """`cameras.bin`: lens by camera number."""
    cursor = Bytes(data, where)
    cameras = {}
    for _ in range(cursor.count(COUNT, CAMERA.size + 24, "cameras")):
        number, model, width, height = cursor.take(CAMERA, "a camera")
        at = f"{where}, camera {number}"
        if model not in MODELS:
            raise FormatError(f"{at}: unknown camera model number {model}; known are {min(MODELS)} to {max(MODELS)}")
        _check_size(width, height, at)
        values = cursor.take(struct.Struct(f"<{len(MODELS[model][2])}d"), f"the parameters of camera {number}")
        cameras[number] = lens_from(model, width, height, values, at, scale)
    return cameras


def parse_images(data: bytes, where: str) -> list[Photo]:
    """`images.bin`: the registered photos; their 2D points are passed over."""
    cursor = Bytes(data, where)
    photos = []
    for _ in range(cursor.count(COUNT, IMAGE.size + 1 + COUNT.size, "photos")):
        _, *pose, camera = cursor.take(IMAGE, "a photo")
        name = _file_name(cursor.name("a photo's name"), where)
        cursor.skip(cursor.take(COUNT, "the number of 2D points")[0], 24, "2D points")
        photos.append(Photo(name, camera, tuple(pose[:4]), tuple(pose[4:])))
    return photos


def parse_points(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """`points3D.bin`: positions (P, 3) float64 and colours (P, 3) uint8."""
    cursor = Bytes(data, where)
    count = cursor.count(COUNT, POINT.size, "points")
    points, colors = np.empty((count, 3)), np.empty((count, 3), np.uint8)
    for row in range(count):
        _, x, y, z, red, green, blue, _, track = cursor.take(POINT, "a point")
        cursor.skip(track, 8, "track entries")
        points[row] = x, y, z
        colors[row] = red, green, blue
    return points, colors


def _read_text(folder: Path, scale: int) -> Parsed:
    cameras = _text_cameras(folder / "cameras.txt", scale)
    photos = _text_images(folder / "images.txt")
    if not (folder / "points3D.txt").is_file():
        return cameras, photos, None, None
    rows = [
        _fields(words, 8, (_integer, *[float] * 3, *[_integer] * 3, float), where)
        for words, where in _lines(folder / "points3D.txt")
    ]
    points = np.array([row[1:4] for row in rows], dtype=np.float64).reshape(-1, 3)
    colors = np.array([[min(max(c, 0), 255) for c in row[4:7]] for row in rows], dtype=np.uint8).reshape(-1, 3)
    return cameras, photos, points, colors


def _text_cameras(file: Path, scale: int) -> dict[int, Lens]:
    cameras = {}
    for words, where in _lines(file):
        if len(words) < 4 or words[1] not in NUMBERS:
            got = words[1] if len(words) > 1 else "nothing"
            raise FormatError(f"{where}: expected a camera model out of {', '.join(NUMBERS)}, got {got}")
        model = NUMBERS[words[1]]
        count = len(MODELS[model][2])
        if len(words) != 4 + count:
            raise FormatError(f"{where}: {words[1]} has {count} parameters, got {len(words) - 4}")
        head = _fields([words[0], *words[2:]], 3 + count, (_integer, _integer, _integer, *[float] * count), where)
        _check_size(head[1], head[2], where)
        cameras[head[0]] = lens_from(model, head[1], head[2], tuple(head[3:]), where, scale)
    return cameras


def _text_images(file: Path) -> list[Photo]:
    """Two lines a photo; the second (its 2D points) may be empty, so that empty lines count here."""
    photos = []
    expect_points = False
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if line.startswith("#"):
            continue
        if expect_points:
            expect_points = False
            continue
        words = line.split(maxsplit=9)
        if not words:
            continue
        where = f"{file}, line {number}"
        head = _fields(words, 9, (_integer, *[float] * 7, _integer), where)
        if len(words) < 10:
            raise FormatError(f"{where}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, the name is missing")
        photos.append(Photo(_file_name(words[9].strip(), where), head[8], tuple(head[1:5]), tuple(head[5:8])))
        expect_points = True
    return photos


def _lines(file: Path) -> list[tuple[list[str], str]]:
    """The words of every line that is neither empty nor a comment, and where it is."""
    lines = enumerate(read_text(file).splitlines(), start=1)
    return [(line.split(), f"{file}, line {number}") for number, line in lines if line.strip() and line[0] != "#"]


def _integer(word: str) -> int:
    value = int(word[:24])
    if abs(value) >= 1 << 63:
        raise ValueError("too large")
    return value


def _fields(words: list[str], least: int, kinds: tuple[Callable[[str], float], ...], where: str) -> list:
    """The first words as numbers of the given kinds."""
    if len(words) < least:
        raise FormatError(f"{where}: expected at least {least} fields, got {len(words)}")
    values = []
    for word, kind in zip(words, kinds, strict=False):
        try:
            values.append(kind(word))
        except ValueError:
            kind_name = "a whole number" if kind is _integer else "a number"
            raise FormatError(f"{where}: expected {kind_name}, got '{word[:40]}'") from None
    return values


def _check_size(width: int, height: int, where: str) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise FormatError(f"{where}: an image of {width}x{height} pixels; sides are 1 to {MAX_SIDE}")


def _file_name(name: str, where: str) -> str:
    if not name or "\0" in name:
        raise FormatError(f"{where}: a photo without a file name")
    return name
