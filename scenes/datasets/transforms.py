"""How is a `transforms.json` of instant-ngp or nerfstudio read?

One JSON file lists the frames; lens values stand at the top or in a frame (the frame wins). Poses are camera to world
with OpenGL camera axes (x right, y up, z backward), z up. Of instant-ngp: `camera_angle_x/y`, `fl_x...`, `k1...`,
`aabb_scale`, `scale` and `offset` (the file's scene box is the cube of side 1/scale about it, 0.33 and 0.5 when
absent). Of nerfstudio: `camera_model`, `ply_file_path`, `mask_path`, `train_filenames` and its sisters;
`applied_transform` has already been applied to poses and points alike, so that the data set frame is the one of the
file.

Distortion is OpenCV's: with k4, k5 or k6 it is the rational model. In both tools a mask is 0 where a pixel is not to be
used. Sources: the documentation of both projects on their data conventions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...fields.errors import FormatError
from ...fields.geometry import CameraModel
from .capture import MAX_SIDE, Capture, CaptureFrame, Lens, check_lens, check_pose
from .files import Node, read_json
from .folders import IMAGE_EXTENSIONS
from .ply import read_points

FILE = "transforms.json"
CAMERA_MODELS = {
    "PINHOLE": CameraModel.PINHOLE,
    "SIMPLE_PINHOLE": CameraModel.PINHOLE,
    "PERSPECTIVE": CameraModel.PINHOLE,
    "SIMPLE_RADIAL": CameraModel.OPENCV,
    "RADIAL": CameraModel.OPENCV,
    "OPENCV": CameraModel.OPENCV,
    "FULL_OPENCV": CameraModel.OPENCV,
    "OPENCV_FISHEYE": CameraModel.FISHEYE,
    "EQUIRECTANGULAR": CameraModel.EQUIRECTANGULAR,
    "ORTHOPHOTO": CameraModel.ORTHOGRAPHIC,
    "ORTHOGRAPHIC": CameraModel.ORTHOGRAPHIC,
}
# OpenCV order, see Lens.distortion.
COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
UNSUPPORTED = ("ftheta_p0", "rolling_shutter")
LENS_KEYS = ("camera_model", "camera_angle_x", "camera_angle_y", "fl_x", "fl_y", "cx", "cy", "w", "h", *COEFFICIENTS)
LENS_KEYS = (*LENS_KEYS, "is_fisheye", "equirectangular", "ftheta_p0")

# What instant-ngp assumes where the file says nothing: scene = 0.33 * position + 0.5, the unit cube being its inner
# box.
NGP_SCALE, NGP_OFFSET = 0.33, 0.5
OPENCV_FROM_OPENGL = np.array([1.0, -1.0, -1.0])


def missing(root: Path) -> list[str]:
    """What this layout needs and `root` has not."""
    return [] if (root / FILE).is_file() else [FILE]


def load(root: Path, file: Path | None = None) -> Capture:
    """Parse `root/transforms.json` (or another file of that form)."""
    file = root / FILE if file is None else file
    top = read_json(file)
    frames = tuple(sorted(parse_frames(top, file, root), key=lambda frame: frame.name))
    splits = _stated_splits(top, root)
    if splits:
        frames = tuple(_with_split(frame, splits) for frame in frames)
        frames = tuple(frame for frame in frames if frame.split is not None)
        if not frames:
            raise FormatError(
                f"{file}: none of the frames is named in train_filenames, val_filenames or test_filenames"
            )
    points, colors = None, None
    notes: tuple[str, ...] = ()
    ply = top.text("ply_file_path")
    if ply is not None and (root / ply).is_file():
        points, colors = read_points(root / ply)
    elif ply is not None:
        notes = (f"{ply} (ply_file_path) is absent; going on without points",)
    masked = any(frame.mask is not None for frame in frames)
    return Capture(
        root=root,
        layout="transforms",
        frames=frames,
        points=points,
        point_colors=colors,
        up=(0.0, 0.0, 1.0),
        region=_region(top),
        mask_meaning="valid" if masked else None,
        source=file.name,
        warnings=notes,
    )


def parse_frames(top: Node, file: Path, root: Path, split: Any = None) -> list[CaptureFrame]:
    """The frames of one JSON file; shared with the NeRF-Synthetic layout."""
    listed = top.items("frames")
    if not listed:
        raise FormatError(f"{file}: 'frames' must be a non-empty list, got {'[]' if listed == [] else 'nothing'}")
    shared = None
    frames = []
    for index, entry in enumerate(listed):
        node = Node(entry, f"{file}, frame {index}")
        path = node.text("file_path")
        if path is None:
            raise FormatError(f"{node.where}: 'file_path' is missing")
        pose = check_pose(node.matrix("transform_matrix", ((4, 4), (3, 4))), f"{node.where} ({path})")
        if any(key in node.value for key in LENS_KEYS):
            lens = parse_lens(Node({**top.value, **node.value}, node.where))
        else:
            lens = shared = shared or parse_lens(top)
        mask = node.text("mask_path")
        frames.append(
            CaptureFrame(
                name=Path(path).as_posix(),
                image=find_image(root / path),
                mask=None if mask is None else root / mask,
                lens=lens,
                world_from_camera=opencv_pose(pose),
                split=split,
                time=node.number("time"),
            )
        )
    return frames


def opencv_pose(pose: np.ndarray) -> np.ndarray:
    """(3, 4) camera to world with OpenGL camera axes, to OpenCV camera axes (y and z turned round)."""
    return np.concatenate([pose[:, :3] * OPENCV_FROM_OPENGL, pose[:, 3:]], axis=1)


def find_image(path: Path) -> Path:
    """`path`, or the first file that is `path` plus an image extension (NeRF-Synthetic leaves it out)."""
    if path.suffix.lower() in IMAGE_EXTENSIONS or path.is_file():
        return path
    for extension in IMAGE_EXTENSIONS:
        candidate = path.with_name(path.name + extension)
        if candidate.is_file():
            return candidate
    return path.with_name(path.name + ".png")


def parse_lens(node: Node) -> Lens:
    """The lens of one frame, or of the whole file."""
    for key in UNSUPPORTED:
        if key == "ftheta_p0" and key in node:
            raise FormatError(f"{node.where}: f-theta lenses cannot be used; known are {', '.join(CAMERA_MODELS)}")
    distortion = tuple(node.number(key, 0.0) or 0.0 for key in COEFFICIENTS)
    model = _camera_model(node, distortion)
    if model == CameraModel.FISHEYE:  # Kannala-Brandt: k1..k4 in the first four
        k1, k2, _, _, k3, k4, _, _ = distortion
        distortion = (k1, k2, k3, k4, 0.0, 0.0, 0.0, 0.0)
    width, height = node.integer("w", 1, MAX_SIDE), node.integer("h", 1, MAX_SIDE)
    if (width is None) != (height is None):
        raise FormatError(f"{node.where}: 'w' and 'h' must both be given or both be absent")
    lens = Lens(
        model=model,
        size=None if width is None or height is None else (width, height),
        intrinsics=(node.number("fl_x"), node.number("fl_y"), node.number("cx"), node.number("cy")),
        angle_x=node.number("camera_angle_x"),
        angle_y=node.number("camera_angle_y"),
        distortion=distortion,
    )
    return check_lens(lens, node.where)


def _camera_model(node: Node, distortion: tuple[float, ...]) -> CameraModel:
    name = node.text("camera_model")
    if name is not None and name.upper() not in CAMERA_MODELS:
        raise FormatError(f"{node.where}: camera_model '{name}' cannot be used; known are {', '.join(CAMERA_MODELS)}")
    if node.flag("is_fisheye"):
        return CameraModel.FISHEYE
    if node.flag("equirectangular"):
        return CameraModel.EQUIRECTANGULAR
    model = CameraModel.PINHOLE if name is None else CAMERA_MODELS[name.upper()]
    if model == CameraModel.PINHOLE and any(distortion):
        # instant-ngp names no model; nerfstudio files that say PINHOLE and give k1 mean it as well.
        return CameraModel.OPENCV
    return model if any(distortion) or model != CameraModel.OPENCV else CameraModel.PINHOLE


def _region(top: Node) -> tuple[tuple[float, float, float], float] | None:
    """The cube that instant-ngp calls the unit cube, where the file is one of its own (it has an aabb_scale)."""
    if top.number("aabb_scale") is None:
        return None
    scale = top.number("scale", NGP_SCALE) or NGP_SCALE
    stated = top.value.get("offset")
    offset = top.items("offset") if isinstance(stated, list) else [top.number("offset", NGP_OFFSET)] * 3
    numbers = Node({str(i): v for i, v in enumerate(offset or [])}, f"{top.where}, 'offset'")
    if len(numbers.value) != 3 or not 1e-9 < abs(scale) < 1e9:
        raise FormatError(f"{top.where}: 'offset' must be three numbers and 'scale' one that is not 0")
    centre = [(0.5 - (numbers.number(str(i)) or 0.0)) / scale for i in range(3)]
    return (centre[0], centre[1], centre[2]), 0.5 / abs(scale)


def _stated_splits(top: Node, root: Path) -> dict[str, str]:
    """File name to split name, from nerfstudio's lists."""
    splits: dict[str, str] = {}
    for split in ("train", "val", "test"):
        for name in top.items(f"{split}_filenames") or []:
            if not isinstance(name, str):
                raise FormatError(f"{top.where}: '{split}_filenames' must be a list of file names")
            # A name in two lists (nerfstudio writes val = test) belongs to the later one: it is held out.
            splits[Path(name).as_posix()] = split
    return splits


def _with_split(frame: CaptureFrame, splits: dict[str, Any]) -> CaptureFrame:
    return CaptureFrame(**{**frame.__dict__, "split": splits.get(frame.name)})
