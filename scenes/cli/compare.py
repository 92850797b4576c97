"""`polyfield compare`: how alike do two models look, how large are they, and how long do they take?"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ... import __version__  # pyright: ignore[reportMissingImports]
from ...fields.errors import ConfigError, FormatError
from ...fields.formats import write_json
from . import run_folder
from .arguments import parse
from .errors import OK
from .machine import machine_facts
from .progress import decibels, show_count
from .render import Render

if TYPE_CHECKING:
    import numpy as np

    from ...fields.geometry import Cameras
    from ..compare import CompareResult
    from ..scene import Scene

COMPARISON = "compare.json"


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Show two models of one scene from the same cameras: how alike they look, their sizes and their speed.

    With --scene they are seen from where its held-out photos were taken. Without, from between the training cameras
    where A or B is a run folder, else from all around an object.

    Examples:
      polyfield compare runs/lego-hash-1 lego-tensor.safetensors --out alike
      polyfield compare runs/lego-hash-1 runs/lego-planes-1 --scene data/lego --views 20 --json > alike.json
    """

    a: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="A")]
    """Model file, or the run folder that holds one."""
    b: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="B")]
    """The other one, of the same scene."""
    scene: str | None = None
    """What both were trained on: a folder with posed photos, or 'demo'. Each is compared with the photos too."""
    downscale: int | None = None
    """Shrink SCENE's photos by this whole factor. None: as in training if A or B is a run folder, else 1."""
    views: int | None = None
    """How many views, spread evenly; at most 100. None: 8, or all held-out photos where there are fewer."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels, without --scene. None: that of the training cameras where known, else 400x400."""
    out: Path | None = None
    """New folder for compare.json and a picture of each view: A, B, and their difference, from dark (none) to light (a
    fifth of the range or more). None: nothing is written."""
    json: bool = False
    """Print the whole result as JSON instead of one line."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to render; auto takes an NVIDIA GPU where it works."""

    def __post_init__(self) -> None:
        if self.scene is not None and self.size is not None:
            raise ConfigError("--size goes without --scene: photos are compared at theirs, shrunk by --downscale")
        if self.scene is None and self.downscale is not None:
            raise ConfigError("--downscale shrinks the photos of --scene; give that too, or --size instead")
        if self.downscale is not None and self.downscale < 1:
            raise ConfigError(f"--downscale must be a whole number of at least 1; got {self.downscale}")
        self.pixels()

    def pixels(self) -> tuple[int, int] | None:
        """(width, height), or None; by the rule of `render`, and in its words."""
        return Render(model=self.a, out=self.a, size=self.size).pixels()


def run(arguments: Sequence[str]) -> int:
    """The command."""
    command = parse(Compare, arguments, "polyfield compare")
    from ...fields.model import Model
    from ..compare import ORBIT_SIZE, compare
    from ..device import pick_device

    if command.out is not None:
        run_folder.check_free(command.out)
    paths = [run_folder.model_file(path) for path in (command.a, command.b)]
    a, b = (Model.load(path, device=pick_device(command.device)) for path in paths)
    scene = None if command.scene is None else _load(command)
    cameras = _cameras(command) if scene is None else None
    size = command.pixels() or ORBIT_SIZE
    with show_count("comparing") as report:
        result = compare(a, b, scene, cameras=cameras, views=command.views, size=size, report=report)
    facts = result_of(command, paths, result)
    if command.out is not None:
        _write(command.out, facts, result.pictures)
        where = sys.stderr if command.json else sys.stdout  # JSON is alone on standard output
        print(f"{len(result.pictures)} pictures and {COMPARISON} in {command.out}", file=where)
    print(json.dumps(facts, indent=2) if command.json else summary(facts))
    return OK


def _load(command: Compare) -> Scene:
    from ..scene import load_scene

    assert command.scene is not None
    trained = max(run_folder.trained_downscale(path) for path in (command.a, command.b))
    scene = load_scene(command.scene, downscale=command.downscale or trained)
    for warning in scene.warnings:
        print(f"polyfield: warning: {warning}", file=sys.stderr)
    return scene


def _cameras(command: Compare) -> Cameras | None:
    """From where the scene was seen, data set frame; None where neither model says so."""
    from ..camera_paths import read_cameras

    files = (run_folder.cameras_file(path) for path in (command.a, command.b))
    file = next((file for file in files if file is not None), None)
    return None if file is None else read_cameras(file, size=command.pixels())


def result_of(command: Compare, paths: Sequence[Path], result: CompareResult) -> dict[str, Any]:
    """The content of `compare.json`. Figures that do not exist (no photos, nothing opaque) are null."""
    found = {name: value for name, value in result._asdict().items() if name != "pictures"}
    for name, path in zip("ab", paths, strict=True):
        found[name] = {"model": str(path), "bytes": os.path.getsize(path), **found[name]._asdict()}
    return {
        "format": "polyfield-comparison",
        "version": 1,
        "scene": command.scene,
        "out": None if command.out is None else str(command.out),
        **found,
        "program": f"polyfield {__version__}",
        "machine": machine_facts(),
    }


def summary(facts: dict[str, Any]) -> str:
    """One line about a comparison."""
    a, b, gap = facts["a"], facts["b"], facts["depth_difference"]
    depth = "no depth in common" if gap is None else f"depth {100 * gap:.2f} % apart"
    found = f"{a['kind']} and {b['kind']}: {decibels(facts['psnr'])}, SSIM {facts['ssim']:.4f}, {depth}"
    found += f", {facts['protocol']['views']} views"
    if facts["scene"] is not None:
        found += f"; {decibels(a['psnr'])} and {decibels(b['psnr'])} on the photos"
    sizes = f"{a['bytes'] / 1e6:.2f} and {b['bytes'] / 1e6:.2f} MB"
    return f"{found}; {sizes}; {a['seconds_per_frame']:.2f} and {b['seconds_per_frame']:.2f} s per frame"


def _write(out: Path, facts: dict[str, Any], pictures: Sequence[np.ndarray]) -> None:
    """Write the folder; where that fails, leave none of the files."""
    from PIL import Image

    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Named as a leftover of `atomic_write`, so that the folder counts as empty should the process be killed.
        with tempfile.TemporaryDirectory(prefix=".", suffix=".polyfield-tmp", dir=out) as folder:
            for index, pixels in enumerate(pictures):
                Image.fromarray(pixels).save(Path(folder) / f"{index:05d}.png")
            write_json(Path(folder) / COMPARISON, facts)
            for file in sorted(Path(folder).iterdir()):
                os.replace(file, out / file.name)
    except (OSError, FormatError) as error:
        if new:
            with contextlib.suppress(OSError):
                out.rmdir()
        why = error.strerror if isinstance(error, OSError) else None
        raise FormatError(f"{out} could not be written: {why or error}") from error
