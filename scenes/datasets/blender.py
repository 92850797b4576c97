"""How is the NeRF-Synthetic ("Blender") layout read?

`transforms_train.json`, `transforms_val.json` and `transforms_test.json`, each with one `camera_angle_x` and frames
whose `file_path` has no extension; poses are camera to world with OpenGL camera axes, z up. The images are RGBA with
straight alpha; all four channels are kept and evaluation composites on white, as the published numbers do. D-NeRF adds
`time`. Validation images are often left out of copies and are not needed.
"""

from __future__ import annotations

from pathlib import Path

from .capture import Capture
from .files import read_json
from .transforms import parse_frames

SPLITS = ("train", "val", "test")


def missing(root: Path) -> list[str]:
    """What this layout needs and `root` has not."""
    return [] if (root / "transforms_train.json").is_file() else ["transforms_train.json"]


def load(root: Path) -> Capture:
    """Parse the JSON files that are there; without a test file the usual rule holds frames out."""
    files = {split: root / f"transforms_{split}.json" for split in SPLITS}
    files = {split: file for split, file in files.items() if file.is_file()}
    frames = []
    for split, file in files.items():
        frames += parse_frames(read_json(file), file, root, split if "test" in files or "val" in files else None)
    if list(files) == ["train"]:
        frames.sort(key=lambda frame: frame.name)
    return Capture(root=root, layout="blender", frames=tuple(frames), up=(0.0, 0.0, 1.0), source=", ".join(files))
