"""`polyfield render`: stills and films of a trained model along an orbit, a spiral or cameras from a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ...fields.errors import ConfigError, FormatError
from ..suffixes import FILMS
from . import run_folder
from .arguments import parse
from .errors import OK
from .progress import show_count

if TYPE_CHECKING:
    from ...fields.geometry import Cameras
    from ...fields.model import Model

CHANNELS = ("rgb", "depth", "normal", "alpha")
_MAX_SIDE = 1 << 14
_ONE_PATH = "give one of --orbit N, --path spiral and --cameras FILE"
_NUMBER_OF_FRAMES, _FPS = 120, 30.0


@dataclass(frozen=True, kw_only=True)
class Render:
    """Make stills or a film of a trained model, or an image, film, volume or mesh of what 'polyfield fit' wrote.

    The path is one of --orbit N (a circle; needs nothing but the model), --path spiral (around the mean of the training
    cameras, for forward-facing captures), --path orbit, or --cameras FILE (layout of transforms.json, in the data set's
    own frame; a scene's folder gives all of its cameras).

    Examples:
      polyfield render runs/lego-hash-1 --orbit 120 --out orbit.mp4
      polyfield render runs/fern-hash-1 --path spiral --size 504x378 --out fern.mp4
      polyfield render runs/lego-hash-1 --cameras data/lego/transforms_test.json --channels rgb,depth --out stills
      polyfield render photo.safetensors --size 3000x2000 --out photo.png
    """

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """Model file, or the run folder that holds one."""
    out: Path
    """Folder for stills (PNG, numbered), or a file ending in .mp4 for a film. Of a fit: a picture, film, .npy file or
    mesh."""
    orbit: int | None = None
    """A full circle of this many frames."""
    path: Literal["orbit", "spiral"] | None = None
    """A path of --frames frames."""
    cameras: Path | None = None
    """Camera file in the layout of transforms.json, or a scene's folder."""
    frames: int | None = None
    """Frames of --path. None: 120."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels. None: that of the training cameras where known, else 800x800; of a fit its own.
    Of a surface the larger number is the cells along each axis of its cube (256)."""
    fps: float | None = None
    """Frames per second of a film. None: 30; of a fitted film its own."""
    channels: str = "rgb"
    """Any of rgb, depth, normal, alpha, joined by commas. A film has one file per channel (NAME-depth.mp4, ...)."""
    elevation: float | None = None
    """Height of an orbit above its centre as an angle, degrees. None: the training cameras' if known, else 25."""
    radius: float | None = None
    """Distance of an orbit from its centre, dataset units. None: the training cameras', or so that the scene fits."""
    fov: float | None = None
    """Horizontal field of view of an orbit, degrees. None: that of the training cameras where known, else 40."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to render."""

    def __post_init__(self) -> None:
        if len(self.paths_given()) > 1:
            raise ConfigError(f"{_ONE_PATH}; got {' and '.join(self.paths_given())}")
        for name, frames in (("--orbit", self.orbit), ("--frames", self.frames)):
            if frames is not None and not 1 <= frames <= 100_000:
                raise ConfigError(f"{name} must be 1 to 100000 frames; got {frames}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ConfigError(f"--fps must be above 0 and at most 1000 frames per second; got {self.fps:g}")
        if self.fov is not None and not 0 < self.fov < 170:
            raise ConfigError(f"--fov must be above 0 and below 170 degrees; got {self.fov:g}")
        if self.elevation is not None and not -90 <= self.elevation <= 90:
            raise ConfigError(f"--elevation must be -90 to 90 degrees; got {self.elevation:g}")
        if self.radius is not None and not 0 < self.radius < float("inf"):
            raise ConfigError(f"--radius must be positive (dataset units); got {self.radius:g}")
        unknown = [c for c in self.channel_list() if c not in CHANNELS]
        if unknown or len(set(self.channel_list())) != len(self.channel_list()):
            raise ConfigError(f"--channels must be different ones of {','.join(CHANNELS)}; got {self.channels!r}")
        self.pixels()

    def paths_given(self) -> list[str]:
        """The options that name a camera path."""
        named = (("--orbit", self.orbit), ("--path", self.path), ("--cameras", self.cameras))
        return [name for name, value in named if value is not None]

    def check_for_fit(self) -> None:
        """What has no meaning for an image, film, volume or mesh."""
        named = (("--frames", self.frames), ("--elevation", self.elevation))
        named += (("--radius", self.radius), ("--fov", self.fov))
        given = [*self.paths_given(), *(name for name, value in named if value is not None)]
        given += ["--channels"] if self.channels != "rgb" else []
        if given:
            raise ConfigError(
                f"{self.model} is a fit: it has no cameras, and no channels but its own; leave out {', '.join(given)}"
            )
        if self.fps is not None and not self.is_film():
            raise ConfigError(f"--fps is for films; {self.out} is none: leave it out")

    def check_for_scene(self) -> None:
        """What a trained scene needs and a fitted image does not."""
        if not self.paths_given():
            raise ConfigError(f"{_ONE_PATH}; got none")
        if (
            self.out.suffix
            and not self.is_film()
            and not self.out.is_dir()
            and self.out.suffix.lower() in (".png", ".gif", ".avi")
        ):
            raise ConfigError(f"--out must be a folder for PNG stills or a file ending in .mp4; got {self.out}")

    def channel_list(self) -> list[str]:
        """Channels in the order given."""
        return [c.strip() for c in self.channels.split(",")]

    def pixels(self) -> tuple[int, int] | None:
        """(width, height), or None."""
        if self.size is None:
            return None
        match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", self.size)
        if match is None or not all(1 <= int(side) <= _MAX_SIDE for side in match.groups()):
            raise ConfigError(
                f"--size must be WIDTHxHEIGHT, sides 1 to {_MAX_SIDE}, such as 800x600; got {self.size!r}"
            )
        return int(match[1]), int(match[2])

    def is_film(self) -> bool:
        """Whether --out names a film."""
        return self.out.suffix.lower() in FILMS


def run(arguments: Sequence[str]) -> int:
    """The command."""
    command = parse(Render, arguments, "polyfield render")
    file = run_folder.model_file(command.model)
    if _is_fit(file):
        return _render_fit(command, file)
    from ...fields.model import Model
    from ...fields.render.frame import render
    from ..device import pick_device
    from ..pictures import FilmWriter, StillWriter

    model = Model.load(file, device=pick_device(command.device))
    command.check_for_scene()
    cameras = path_of(command, model)
    writer_type = FilmWriter if command.is_film() else StillWriter
    writing = writer_type(command.out, command.channel_list(), model, cameras, fps=command.fps or _FPS)
    with writing as writer, show_count("rendering") as report:
        for index in range(len(cameras)):
            writer.add(render(model, cameras[index]))
            report(index + 1, len(cameras))
    for file in writer.written:
        print(file)
    return OK


def _is_fit(path: Path) -> bool:
    """Whether a file holds what `fit` writes; what is damaged is left to the loader of scenes."""
    from ...fields.formats.model_file import read_header
    from ...fields.implicit.model import FILE_KIND

    try:
        return read_header(path).get("kind") == FILE_KIND
    except FormatError:
        return False


def _render_fit(command: Render, file: Path) -> int:
    from ...fields.implicit import ImplicitModel
    from ..device import pick_device
    from ..signals import check_output, check_size, write_signal, write_surface

    command.check_for_fit()
    model = ImplicitModel.load(file, device=pick_device(command.device))
    check_output(command.out, model.signal)
    pixels = command.pixels()
    size = (*(pixels or model.size[:2]), *model.size[2:])
    if model.signal == "surface":
        size = (max(pixels or model.size),) * 3
    check_size(command.out, model.signal, size, model.network.config.outputs)
    with show_count("rendering") as report:
        values = model.sample(size, report=report)
    if model.signal == "surface":
        write_surface(command.out, values, model.cube or (0, 0, 0, 1), model.target)
    else:
        fps = command.fps or model.fps
        write_signal(command.out, model.signal, values, low=model.low, high=model.high, fps=fps)
    print(command.out)
    return OK


def path_of(command: Render, model: Model) -> Cameras:
    """The cameras to render, in the model's scene frame."""
    from .. import camera_paths

    to_scene = model.to_dataset.inverse()
    size = command.pixels()
    if command.cameras is not None:
        return _read(command.cameras, size).transformed(to_scene)
    known = _training_cameras(command.model)
    trained = None if known is None else known.transformed(to_scene)
    if trained is not None and size is None:
        size = (int(trained.width[0]), int(trained.height[0]))
    if command.path == "spiral":
        if trained is None:
            raise ConfigError(
                f"--path spiral needs the training cameras: give the run folder instead of {command.model}, "
                "or use --orbit N"
            )
        return camera_paths.spiral(trained, command.frames or _NUMBER_OF_FRAMES, size=size)
    view = camera_paths.view_of_bounds(model.representation.bounds)
    if trained is not None:
        view = camera_paths.view_of_cameras(trained)
    view = view._replace(
        elevation_deg=view.elevation_deg if command.elevation is None else command.elevation,
        radius=view.radius if command.radius is None else command.radius * to_scene.scale,
        fov_deg=view.fov_deg if command.fov is None else command.fov,
    )
    frames = command.orbit or command.frames or _NUMBER_OF_FRAMES
    return camera_paths.orbit(view, frames, size=size or camera_paths.DEFAULT_SIZE)


def _read(path: Path, size: tuple[int, int] | None) -> Cameras:
    """Cameras of a file or of a scene's folder, dataset frame."""
    from ..camera_paths import read_cameras

    if not path.is_dir():
        return read_cameras(path, size=size)
    if (path / "transforms.json").is_file():
        return read_cameras(path / "transforms.json", size=size)
    from ..scene import load_scene

    scene = load_scene(str(path))
    if size is not None:
        print("polyfield: warning: --size is not used with the cameras of a scene's folder", file=sys.stderr)
    return scene.cameras.transformed(scene.to_scene.inverse())


def _training_cameras(model: Path) -> Cameras | None:
    """Cameras that were kept for the model, dataset frame; None for a model file elsewhere."""
    from ..camera_paths import read_cameras

    file = run_folder.cameras_file(model)
    return None if file is None else read_cameras(file)
