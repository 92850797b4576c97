"""`polyfield info`: what was found in a folder of posed photos, and does it make sense? Or what is this fit?

Nothing but headers is read (and three images with alpha), so that it is quick for any data set; a picture shows the
cameras from above and from the side. What a fit holds is said by `fit_file`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from .arguments import parse
from .errors import OK

if TYPE_CHECKING:
    from torch import Tensor

    from ...fields.geometry import Cameras, Similarity


@dataclass(frozen=True, kw_only=True)
class Info:
    """Say what a folder of posed photos holds, and draw its cameras to a picture; or what 'polyfield fit' wrote.

    Examples:
      polyfield info data/lego
      polyfield info data/fox --out fox.png
      polyfield info data/garden --json > garden.json
      polyfield info photo.safetensors
    """

    scene: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SCENE")]
    """Folder with posed photos in any known layout, or 'demo'; or a file that 'polyfield fit' wrote."""
    out: Path | None = None
    """Picture of the cameras (PNG). None: SCENE-cameras.png in this folder, or no picture with --json."""
    json: bool = False
    """Print one JSON object instead of text."""
    downscale: int = 1
    """Shrink photos by this whole factor, as 'train' would: sizes and memory follow."""
    strict: bool = False
    """Make images that are listed but absent an error."""


class Findings(NamedTuple):
    """What is shown: `facts` as printed by --json, and what the picture is drawn from."""

    facts: dict[str, Any]
    cameras: Cameras
    splits: dict[str, Tensor]
    bounds: Tensor
    points: Tensor | None
    point_colors: Tensor | None


def run(arguments: Sequence[str]) -> int:
    """The command."""
    return info(parse(Info, arguments, "polyfield info"))


def info(command: Info) -> int:
    """Print the findings and write the picture."""
    file = Path(command.scene)
    if file.suffix.lower() == ".safetensors" and file.is_file():
        return _info_of_fit(command, file)
    found = examine(command.scene, downscale=command.downscale, strict=command.strict)
    out = command.out
    if out is None and not command.json:
        out = Path(f"{found.facts['scene']}-cameras.png")
    if out is not None:
        write_picture(found, out)
        found.facts["picture"] = str(out)
    print(json.dumps(found.facts, indent=2) if command.json else describe(found.facts))
    return OK


def _info_of_fit(command: Info, file: Path) -> int:
    from ...fields.errors import ConfigError
    from .fit_file import describe_fit, examine_fit

    named = (("--out", command.out is not None), ("--downscale", command.downscale != 1), ("--strict", command.strict))
    given = [name for name, is_given in named if is_given]
    if given:
        raise ConfigError(f"{file} is a fit, not a scene: leave out {', '.join(given)}")
    facts = examine_fit(file)
    print(json.dumps(facts, indent=2) if command.json else describe_fit(facts))
    return OK


def examine(scene: str, *, downscale: int = 1, strict: bool = False) -> Findings:
    """Look at a scene without reading its pixels."""
    if scene == "demo":
        return _examine_demo(downscale)
    import torch

    from ..scene import survey

    found = survey(scene, downscale=downscale, strict=strict)
    placement, points, colors = found.placement, found.capture.points, found.capture.point_colors
    facts = _facts(found.name, placement.kind, found.cameras, placement.to_scene, placement.aabb)
    facts |= {
        "splits": {name: len(frames) for name, frames in found.splits.items()},
        "background": "white" if found.transparent else "none",
        "masks": {"object": "of the object, as alpha", "valid": "of usable pixels"}.get(
            found.capture.mask_meaning or "", "none"
        ),
        "points": 0 if points is None else len(points),
        "times": all(frame.time is not None for frame in found.frames),
        "near_far": placement.near_far,
        "memory_bytes": found.bytes_needed,
        "protocol": found.protocol,
        "warnings": found.warnings,
    }
    posed = None if points is None else placement.to_scene.apply(torch.from_numpy(points)).float()
    shades = None if colors is None else torch.from_numpy(colors.copy())
    return Findings(facts, found.cameras, found.splits, placement.aabb, posed, shades)


def describe(facts: dict[str, Any]) -> str:
    """The findings as text, one line each."""
    protocol, cameras, to_scene = facts["protocol"], facts["cameras"], facts["to_scene"]
    listed, present = protocol.get("images_listed", facts["frames"]), facts["frames"]
    absent = "" if listed == present else f" (of {listed} listed)"
    splits = ", ".join(f"{count} {name}" for name, count in facts["splits"].items())
    shift = ", ".join(f"{round(value, 6) + 0.0:.4g}" for value in to_scene["translation"])
    rows = [
        ("scene", f"{facts['scene']}, {facts['kind']} capture, layout {protocol['format']}"),
        ("frames", f"{present}{absent}: {splits}"),
        ("split rule", protocol.get("split_rule", protocol.get("split", "unknown"))),
        ("images", f"{_span(cameras['sizes'])}{_source(protocol)}"),
        ("cameras", ", ".join(f"{count} {name}" for name, count in cameras["models"].items())),
        ("intrinsics", "  ".join(f"{name} {_range(cameras[name])}" for name in ("fx", "fy", "cx", "cy")) + "  pixels"),
        ("field of view", f"{_range(cameras['fov_x_deg'])} degrees wide"),
        ("distortion", _distortion(cameras["distortion"])),
        ("distance", f"{_range(cameras['distance'])} scene units from the centre"),
        ("normalisation", f"1 scene unit is {1 / to_scene['scale']:.4g} data set units; shift ({shift})"),
        ("bounds", " to ".join("(" + ", ".join(f"{v:.3g}" for v in corner) + ")" for corner in facts["bounds"])),
        ("points", str(facts["points"]) if facts["points"] else "none"),
        ("background", facts["background"] if facts["background"] != "none" else "none: the photos are opaque"),
        ("masks", facts["masks"]),
        ("memory", f"{facts['memory_bytes'] / 1e6:,.0f} MB for the pixels"),
    ]
    if facts["near_far"]:
        rows.insert(11, ("depth range", f"{_range(facts['near_far'])} scene units"))
    if facts["times"]:
        rows.append(("time", "every frame has one"))
    rows += [("warning", text) for text in facts["warnings"]]
    if "picture" in facts:
        rows.append(("picture", facts["picture"]))
    return "\n".join(f"{name:<14} {text}" for name, text in rows)


def write_picture(found: Findings, out: Path) -> None:
    """Draw the cameras and write the picture, whole or not at all.

    Raises:
        FormatError: The file cannot be written.
    """
    from ...fields.errors import ConfigError
    from ...fields.formats import atomic_write
    from ..camera_map import draw_cameras

    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out must name a .png file; got {out}")
    facts = found.facts
    unit = 1 / facts["to_scene"]["scale"]
    picture = draw_cameras(
        found.cameras,
        found.splits,
        bounds=found.bounds,
        points=found.points,
        point_colors=found.point_colors,
        title=facts["scene"],
        subtitle=f"{facts['kind']} capture, {facts['frames']} photos {_span(facts['cameras']['sizes'])}, "
        f"layout {facts['protocol']['format']}; 1 scene unit = {unit:.4g} data set units",
    )
    atomic_write(out, lambda temporary: picture.save(temporary, format="PNG"))


def _examine_demo(downscale: int) -> Findings:
    from ..scene import load_scene

    scene = load_scene("demo", downscale=downscale)
    facts = _facts(scene.name, scene.kind, scene.cameras, scene.to_scene, scene.bounds)
    facts |= {
        "splits": {name: len(frames) for name, frames in scene.splits.items()},
        "background": scene.background,
        "masks": "none",
        "points": 0,
        "times": False,
        "near_far": None,
        "memory_bytes": scene.images.pixels.numel(),
        "protocol": scene.protocol,
        "warnings": scene.warnings,
    }
    return Findings(facts, scene.cameras, scene.splits, scene.bounds, None, None)


def _facts(name: str, kind: str, cameras: Cameras, to_scene: Similarity, bounds: Tensor) -> dict[str, Any]:
    """What every scene has."""
    import torch

    from ...fields.geometry import CameraModel

    model = cameras.model.tolist()
    fx, fy, cx, cy = cameras.intrinsics.T
    perspective = cameras.model < int(CameraModel.FISHEYE)
    angles = 2 * torch.rad2deg(torch.atan(0.5 * cameras.width / fx))[perspective]
    ranges = {"fx": fx, "fy": fy, "cx": cx, "cy": cy, "fov_x_deg": angles, "distance": cameras.centres().norm(dim=1)}
    sizes = sorted(set(zip(cameras.width.tolist(), cameras.height.tolist(), strict=True)))
    return {
        "scene": name,
        "kind": kind,
        "frames": len(cameras),
        "cameras": {
            "models": {kind.name: model.count(int(kind)) for kind in CameraModel if int(kind) in model},
            "sizes": [list(size) for size in (sizes if len(sizes) == 1 else (sizes[0], sizes[-1]))],
            **{key: [float(v.min()), float(v.max())] if len(v) else None for key, v in ranges.items()},
            "distortion": [float(v) for v in cameras.distortion.abs().amax(0)],
        },
        "to_scene": to_scene.to_dict(),
        "bounds": [[float(v) for v in corner] for corner in bounds],
    }


def _range(ends: Sequence[float] | None) -> str:
    if ends is None:
        return "unknown"
    low, high = (f"{value:.4g}" for value in ends)
    return low if low == high else f"{low} to {high}"


def _span(sizes: list[list[int]]) -> str:
    return " to ".join(f"{width}x{height}" for width, height in sizes)


def _source(protocol: dict[str, Any]) -> str:
    parts = [f"from {protocol['source']}"] if "source" in protocol else []
    parts += [f"downscaled by {protocol['downscale']}"] if protocol["downscale"] > 1 else []
    return f" ({', '.join(parts)})" if parts else ""


def _distortion(largest: list[float]) -> str:
    names = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
    used = [f"|{name}| {value:.3g}" for name, value in zip(names, largest, strict=True) if value]
    return ("up to " + ", ".join(used)) if used else "none"
