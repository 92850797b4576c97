"""Which folder of a data set holds its images, and which file is the mask of an image?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".exr", ".hdr", ".webp", ".tif", ".tiff", ".bmp")


class ImageFolder(NamedTuple):
    """A folder of photos and the factor by which its name says they were reduced."""

    path: Path
    scale: int


def choose_image_folder(root: Path) -> ImageFolder | None:
    """`images`, else the least reduced of `images_2`, `images_4` ...; None when there is none."""
    if (root / "images").is_dir():
        return ImageFolder(root / "images", 1)
    found = []
    for path in root.glob("images_*"):
        match = re.fullmatch(r"images_([1-9][0-9]?)", path.name)
        if match and path.is_dir():
            found.append((int(match[1]), path))
    return ImageFolder(min(found)[1], min(found)[0]) if found else None


def list_images(folder: Path) -> list[Path]:
    """The image files directly in `folder`, in the order of their names."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_EXTENSIONS and path.name[0] != ".")


def find_mask(folder: Path, name: str) -> Path | None:
    """The mask of the photo `name`: the same name, the name with .png added, or with the extension replaced by .png."""
    if not folder.is_dir():
        return None
    path = folder / name
    for candidate in (path.with_name(path.name + ".png"), path.with_suffix(".png"), path):
        if candidate.is_file():
            return candidate
    return None
