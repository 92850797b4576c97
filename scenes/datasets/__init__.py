"""Which layouts of a data set are known, and which one is a folder?

One literal table; the first layout that fits is taken. A layout is a module with `missing(root)`, what it needs and the
folder has not, and `load(root)`, which parses without reading a pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ...fields.errors import ConfigError, FormatError
from . import blender, colmap, llff, neus, transforms
from .capture import Capture as Capture
from .capture import CaptureFrame as CaptureFrame
from .capture import Lens as Lens
from .folders import list_images

_SUBFOLDERS = 100  # looked into for the hint that the data set lies one folder deeper


class Layout(NamedTuple):
    """A way to lay out a data set."""

    title: str
    missing: Callable[[Path], list[str]]
    load: Callable[[Path], Capture]


# In order of preference: where LLFF's poses and COLMAP's model lie side by side, COLMAP's has lens distortion and
# points.
LAYOUTS: dict[str, Layout] = {
    "blender": Layout("NeRF-Synthetic", blender.missing, blender.load),
    "transforms": Layout("instant-ngp or nerfstudio", transforms.missing, transforms.load),
    "colmap": Layout("COLMAP", colmap.missing, colmap.load),
    "llff": Layout("LLFF", llff.missing, llff.load),
    "neus": Layout("NeuS/IDR", neus.missing, neus.load),
}


def parse(path: Path, layout: str | None = None) -> Capture:
    """Parse the data set at `path`, a folder of a known layout or a transforms.json by itself.

    Raises:
        FormatError: No layout fits, with what each lacks; or the data set is damaged.
        ConfigError: `layout` is not a name in `LAYOUTS`.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"layout must be one of {', '.join(LAYOUTS)}; got '{layout}'")
    if path.is_file() and path.suffix.lower() == ".json":
        return transforms.load(path.parent, path)
    return LAYOUTS[layout or detect(path)].load(path)


def detect(root: Path) -> str:
    """The name of the first layout that `root` fits."""
    if not root.exists():
        raise FormatError(f"{root}: no such folder; expected a data set or 'demo'")
    if not root.is_dir():
        raise FormatError(f"{root}: is a file; expected a folder that holds a data set, a transforms.json, or 'demo'")
    if not any(root.iterdir()):
        raise FormatError(f"{root}: the folder is empty; expected a data set ({_known()})")
    lacks = {name: layout.missing(root) for name, layout in LAYOUTS.items()}
    for name, what in lacks.items():
        if not what:
            return name
    text = "; ".join(f"{LAYOUTS[name].title} lacks {' and '.join(what)}" for name, what in lacks.items())
    photos = len(list_images(root)) or len(list_images(root / "images"))
    hint = f" It holds {photos} photos but no camera poses: run COLMAP on them first." if photos else ""
    inside = _inside(root)
    hint += f" {inside} is a data set: give that." if inside else ""
    raise FormatError(f"{root}: not a known layout: {text}.{hint}")


def _inside(root: Path) -> Path | None:
    """The first of some subfolders that is of a known layout."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())[:_SUBFOLDERS]
    return next((path for path in folders if any(not layout.missing(path) for layout in LAYOUTS.values())), None)


def _known() -> str:
    return ", ".join(layout.title for layout in LAYOUTS.values())
