"""A small posed scene, and writers that put it on disk in every layout that Polyfield reads.

The writers are written from the formats' descriptions, not from the loaders: world to camera for COLMAP,
down-right-back columns for LLFF, projection matrices for NeuS, OpenGL axes for the JSON layouts.
"""

import io
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from polyfield.fields.errors import FormatError

WIDTH, HEIGHT, FOCAL = 24, 16, 30.0
FRAMES = 10
LAYOUTS = ("blender", "transforms", "colmap-bin", "colmap-txt", "llff", "neus")


def data_folder() -> Path:
    """The folder of evaluation data: POLYFIELD_DATA, else ../shared/data beside the checkout."""
    return Path(os.environ.get("POLYFIELD_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def there(value):
    """`value`, which is not None."""
    assert value is not None
    return value


def parse_or_refusal(parser, *arguments) -> Any:
    """What the parser returns, or the text of its FormatError; anything else that it raises gets through."""
    try:
        return parser(*arguments)
    except FormatError as error:
        return str(error)


def ring_poses(count: int = FRAMES, radius: float = 4.0, height: float = 1.5) -> np.ndarray:
    """(F, 3, 4) world_from_camera, OpenCV axes, z up, looking at the origin."""
    poses = []
    for k in range(count):
        angle = 2 * np.pi * (k + 0.3) / count
        eye = np.array([radius * np.cos(angle), radius * np.sin(angle), height])
        forward = -eye / np.linalg.norm(eye)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        poses.append(np.stack([right, np.cross(forward, right), forward, eye], axis=1))
    return np.stack(poses)


def picture(frame: int, channels: int = 3, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """(H, W, C) uint8 whose red is the frame number, green the row, blue the column; alpha half and half."""
    image = np.zeros((height, width, channels), np.uint8)
    image[..., 0] = frame
    image[..., 1], image[..., 2] = np.mgrid[:height, :width]
    if channels == 4:
        image[..., 3] = np.where(image[..., 2] < width // 2, 255, 0)
    return image


def name(frame: int) -> str:
    return f"photo_{frame:03d}.png"


def write_images(folder: Path, count: int = FRAMES, channels: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for frame in range(count):
        Image.fromarray(picture(frame, channels)).save(folder / name(frame))


def opengl(pose: np.ndarray) -> list:
    """4x4 nested list with OpenGL camera axes."""
    matrix = np.eye(4)
    matrix[:3] = pose
    matrix[:3, 1:3] *= -1
    return matrix.tolist()


def transforms_json(poses: np.ndarray, **top) -> dict:
    frames = [{"file_path": f"images/{name(k)}", "transform_matrix": opengl(p)} for k, p in enumerate(poses)]
    lens = {"w": WIDTH, "h": HEIGHT, "fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    return {**lens, **top, "frames": frames}


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in arrays.items():
            stream = io.BytesIO()
            np.save(stream, array)
            archive.writestr(f"{key}.npy", stream.getvalue())


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """Rotation matrix to wxyz, by the eigenvector of Bar-Itzhack's matrix."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    matrix = np.array(
        [[a - e - i, 0, 0, 0], [d + b, e - a - i, 0, 0], [g + c, h + f, i - a - e, 0], [h - f, c - g, d - b, a + e + i]]
    )
    x, y, z, w = np.linalg.eigh(matrix / 3)[1][:, -1]
    return np.array([w, x, y, z])


def colmap_pose(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(quaternion wxyz, translation) world to camera."""
    rotation = pose[:, :3].T
    return quaternion(rotation), -rotation @ pose[:, 3]


def colmap_binary(poses: np.ndarray, model: int = 1, parameters=(FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2), points=None):
    """(cameras.bin, images.bin, points3D.bin) as bytes."""
    cameras = struct.pack("<QiiQQ", 1, 7, model, WIDTH, HEIGHT) + struct.pack(f"<{len(parameters)}d", *parameters)
    images = struct.pack("<Q", len(poses))
    for k in reversed(range(len(poses))):  # the order in the file is not that of the names
        q, t = colmap_pose(poses[k])
        images += struct.pack("<i7di", k + 1, *q, *t, 7) + name(k).encode() + b"\0"
        images += struct.pack("<Qddq", 1, 3.0, 4.0, -1)
    points = np.zeros((0, 3)) if points is None else points
    cloud = struct.pack("<Q", len(points))
    for k, point in enumerate(points):
        cloud += struct.pack("<Q3d3BdQ", k, *point, k % 256, 1, 2, 0.5, 2) + struct.pack("<4i", 1, 0, 2, 0)
    return cameras, images, cloud


def colmap_text(poses: np.ndarray) -> tuple[str, str, str]:
    """(cameras.txt, images.txt, points3D.txt)."""
    cameras = f"# Camera list\n7 PINHOLE {WIDTH} {HEIGHT} {FOCAL} {FOCAL} {WIDTH / 2} {HEIGHT / 2}\n"
    images = "# Image list with two lines of data per image:\n"
    for k, pose in enumerate(poses):
        q, t = colmap_pose(pose)
        numbers = " ".join(repr(float(v)) for v in (*q, *t))
        images += f"{k + 1} {numbers} 7 {name(k)}\n" + ("" if k % 2 else "3.0 4.0 -1") + "\n"
    return cameras, images, "# 3D point list\n1 0.5 -0.25 0.125 10 20 30 0.7 1 0 2 0\n"


def llff_rows(poses: np.ndarray, near: float = 1.0, far: float = 9.0, scale: int = 1) -> np.ndarray:
    rows = []
    for pose in poses:
        right, down, forward, eye = pose.T
        size = np.array([HEIGHT, WIDTH, FOCAL]) * scale
        matrix = np.stack([down, right, -forward, eye, size], axis=1)
        rows.append(np.concatenate([matrix.ravel(), [near, far]]))
    return np.array(rows)


def neus_arrays(poses: np.ndarray, centre=(0.1, -0.2, 0.3), radius: float = 2.0) -> dict[str, np.ndarray]:
    intrinsic = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    scale = np.diag([radius, radius, radius, 1.0])
    scale[:3, 3] = centre
    arrays = {}
    for k, pose in enumerate(poses):
        rotation = pose[:, :3].T
        world = np.eye(4)
        # Projections are defined up to scale and sign; files hold any.
        world[:3] = intrinsic @ np.concatenate([rotation, (-rotation @ pose[:, 3])[:, None]], axis=1) * (-1.7) ** k
        arrays[f"world_mat_{k}"], arrays[f"scale_mat_{k}"] = world, scale
    return arrays


def write_dataset(root: Path, layout: str, poses: np.ndarray | None = None) -> Path:
    """The scene of `ring_poses` in one of `LAYOUTS`; returns `root`."""
    poses = ring_poses() if poses is None else poses
    write_images(root / ("image" if layout == "neus" else "images"), len(poses), 4 if layout == "blender" else 3)
    if layout == "blender":
        angle = 2 * np.arctan(0.5 * WIDTH / FOCAL)
        for split, indices in (("train", range(8)), ("test", range(8, len(poses)))):
            frames = [
                {"file_path": f"./images/{name(k)[:-4]}", "rotation": 0.01, "transform_matrix": opengl(poses[k])}
                for k in indices
            ]
            write_json(root / f"transforms_{split}.json", {"camera_angle_x": angle, "frames": frames})
    elif layout == "transforms":
        write_json(root / "transforms.json", transforms_json(poses))
    elif layout.startswith("colmap"):
        folder = root / "sparse" / "0"
        folder.mkdir(parents=True)
        kind = layout[-3:]
        texts = colmap_binary(poses) if kind == "bin" else colmap_text(poses)
        for stem, content in zip(("cameras", "images", "points3D"), texts, strict=True):
            data = content.encode() if isinstance(content, str) else content
            (folder / f"{stem}.{kind}").write_bytes(data)
    elif layout == "llff":
        np.save(root / "poses_bounds.npy", llff_rows(poses))
    else:
        write_npz(root / "cameras_sphere.npz", neus_arrays(poses))
    return root
