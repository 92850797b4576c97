"""How alike do two models of one scene look? Both are rendered from the same cameras and their pictures compared.

Their frames must agree, as those of two models trained on one data set do, or of a model and what it was converted to.
PSNR and SSIM have the forms of `fields.optim.metrics`. Depth is the renderer's: the distance along a ray to where half
of its light is stopped. What does not exist, such as depth where nothing is opaque, is None.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..fields.convert import orbit_cameras, views_between
from ..fields.errors import ConfigError
from ..fields.geometry import Cameras, Similarity
from ..fields.optim.metrics import PSNR_FORM, SSIM_FORM, psnr, ssim
from ..fields.render.frame import Frame, render
from .convert import surroundings_of_model
from .evaluate import FRAME_TOLERANCE, cameras_for, frame_change, frames_apart, ground_truth, held_out_split
from .pictures import depth_colors, to_bytes

if TYPE_CHECKING:
    from ..fields.model import Model
    from .scene import Scene

VIEWS = 8
"""How many views there are where the user does not say, and so many can be had."""
MAX_VIEWS = 100
"""Pictures are kept until all are made: of so many views of 800x800 they take 600 MB."""
ORBIT_SIZE = (400, 400)
"""Width and height of views round an object: those that conversions look at."""
OPAQUE = 0.9
"""Least alpha of both pictures where depth is compared: where half of the light passes, a ray's depth is chance."""
HEAT_FULL = 0.2
"""Mean difference of the channels that is the brightest of a heat map: 20 dB is half of it, 34 dB a tenth."""


class Side(NamedTuple):
    """What was found about one of the two models."""

    kind: str
    psnr: float | None
    """dB against the photos, mean over views; None without photos."""
    seconds_per_frame: float
    """Median over the views."""


class CompareResult(NamedTuple):
    """How alike two models are."""

    psnr: float
    """dB of A against B, mean over views."""
    ssim: float
    """Mean over views."""
    depth_difference: float | None
    """Median over all pixels that are opaque in both of |depth of B - depth of A| / depth of A."""
    a: Side
    b: Side
    per_view: list[dict[str, Any]]
    """For each view its frame (in the scene, else its number), figures and seconds."""
    protocol: dict[str, Any]
    """What the numbers mean: views, resolution, background, forms."""
    pictures: list[np.ndarray]
    """For each view (H, 3 W, 3) uint8: A, B, and a heat map of their difference (dark: none, light: HEAT_FULL)."""


class _Views(NamedTuple):
    cameras: tuple[Cameras, Cameras]  # in the scene frames of A and B
    frames: Sequence[int]
    origin: str


@torch.no_grad()
def compare(
    a: Model,
    b: Model,
    scene: Scene | None = None,
    *,
    cameras: Cameras | None = None,
    views: int | None = None,
    size: tuple[int, int] = ORBIT_SIZE,
    report: Callable[[int, int], None] | None = None,
) -> CompareResult:
    """Render two models from the same cameras and measure how alike the pictures are.

    Args:
        a, b: models whose frames agree; A is what depth and views are relative to.
        scene: what they were trained on: they are seen from its held-out photos and compared with these too.
        cameras: without a scene, from where it was seen, data set frame; views then lie between these, as those of a
            conversion do. Without them objects are looked at from all around.
        views: how many, spread evenly over the photos; None: 8, or all photos where there are fewer.
        size: (width, height) in pixels of views from all around; others have the size of their cameras.
        report: called as report(views done, views) after each view.

    Raises:
        ConfigError: the frames disagree; no held-out photos, or fewer than `views`; no cameras where they are needed; a
            model that renders to values that are not finite. ShapeError: pictures smaller than 11x11.
    """
    seen = _views(a, b, scene, cameras, views, size)
    background = a.background if scene is None or scene.background == "none" else scene.background
    rows, gaps, pictures = [], [], []
    for index, number in enumerate(seen.frames):
        row: dict[str, Any] = {}
        frames = []
        for name, model, look in zip("ab", (a, b), seen.cameras, strict=True):
            frame, row[f"{name}_seconds"] = _look(name, model, look[index : index + 1], background)
            row[f"{name}_psnr"] = None if scene is None else _photo_psnr(frame.rgb, scene, number, background)
            frames.append(frame)
        one, two = frames
        gaps.append(_depth_gaps(one, two, b.to_dataset.scale / a.to_dataset.scale))
        pictures.append(to_bytes(torch.cat([one.rgb, two.rgb, _heat(one.rgb, two.rgb)], 1)))
        figures = {"frame": number, "psnr": float(psnr(one.rgb, two.rgb)), "ssim": float(ssim(one.rgb, two.rgb))}
        rows.append({**figures, "depth_difference": _median(gaps[-1]), **row})
        if report:
            report(len(rows), len(seen.frames))
    return CompareResult(
        psnr=statistics.fmean(row["psnr"] for row in rows),
        ssim=statistics.fmean(row["ssim"] for row in rows),
        depth_difference=_median(torch.cat(gaps)),
        a=_side("a", a, rows),
        b=_side("b", b, rows),
        per_view=rows,
        protocol=_protocol(seen, background, scene),
        pictures=pictures,
    )


def _views(
    a: Model, b: Model, scene: Scene | None, known: Cameras | None, views: int | None, size: tuple[int, int]
) -> _Views:
    """The cameras, for each of the models in its own frame."""
    change = b.to_dataset.inverse().compose(a.to_dataset)
    _check_frames(change, "the two models are not of one scene", "give two models trained on or converted from one")
    if scene is not None:
        trained = f"the models are not of scene {scene.name}"
        _check_frames(frame_change(a, scene), trained, "give what they were trained on, or none")
        split = held_out_split(scene)
        if split is None:
            raise ConfigError(f"scene {scene.name} has no held-out photos to compare on; give another, or none")
        photos = scene.splits[split].tolist()
        count = _count(views, len(photos), f" (the {split} photos of {scene.name})")
        frames = [photos[(2 * i + 1) * len(photos) // (2 * count)] for i in range(count)]
        looks = cameras_for(a, scene)[frames], cameras_for(b, scene)[frames]
        return _Views(looks, frames, f"{split} photos of {scene.name}")
    count = _count(views, MAX_VIEWS)
    kind = surroundings_of_model(a).kind
    if known is not None:
        known = known.transformed(a.to_dataset.inverse())
        look, origin = views_between(known, count, torch.Generator().manual_seed(0)), "between the training cameras"
    elif kind == "object":
        square = orbit_cameras(a.occupancy.occupied_box(), count, size=min(size))
        focal = float(square.intrinsics[0, 0])
        look = Cameras.create(square.world_from_camera, width=size[0], height=size[1], focal=focal)
        origin = "from all around the object"
    else:
        raise ConfigError(
            f"the models are of a capture of kind {kind!r}: from where it was seen must be known; give a run folder in "
            "place of a model file, or the scene"
        )
    return _Views((look, look.transformed(change)), range(count), origin)


def _check_frames(change: Similarity, what: str, remedy: str) -> None:
    """Refuse a change from one scene frame to another that is more than rounding."""
    moved = frames_apart(change)
    if moved > FRAME_TOLERANCE:
        raise ConfigError(f"{what}: their frames are {moved:.3g} apart; {remedy}")


def _count(views: int | None, most: int, which: str = "") -> int:
    count = min(VIEWS, most) if views is None else views
    if not 1 <= count <= min(most, MAX_VIEWS):
        raise ConfigError(f"the number of views must be 1 to {min(most, MAX_VIEWS)}{which}; got {count}")
    return count


def _look(name: str, model: Model, camera: Cameras, background: str) -> tuple[Frame, float]:
    """A picture, on the CPU, and the seconds it took."""
    begin = time.perf_counter()
    frame = Frame(*(channel.cpu() for channel in render(model, camera, background=background)))
    seconds = time.perf_counter() - begin
    if not bool(torch.isfinite(frame.rgb).all()):
        raise ConfigError(f"model {name.upper()} is damaged: it renders to values that are not finite")
    return frame, seconds


def _depth_gaps(a: Frame, b: Frame, unit: float) -> Tensor:
    """Relative depth differences (P,) of the pixels that are opaque in both; `unit`: a length of B in lengths of A."""
    both = (a.alpha >= OPAQUE) & (b.alpha >= OPAQUE) & torch.isfinite(a.depth) & torch.isfinite(b.depth)
    return (b.depth[both] * unit / a.depth[both] - 1).abs()


def _heat(a: Tensor, b: Tensor) -> Tensor:
    """The difference of two pictures (H, W, 3) in the colours of depth: none is far and dark, much near and light."""
    near = HEAT_FULL - (a - b).abs().mean(-1)
    return depth_colors(near.clamp_min(1e-6), (0.0, HEAT_FULL))  # 0 would be no depth


def _photo_psnr(picture: Tensor, scene: Scene, frame: int, background: str) -> float | None:
    truth, mask = ground_truth(scene, frame, background)
    value = float(psnr(picture, truth, mask=mask))
    return None if math.isnan(value) else value  # a mask without a pixel


def _median(values: Tensor) -> float | None:
    return float(values.median()) if len(values) else None


def _side(name: str, model: Model, rows: list[dict[str, Any]]) -> Side:
    photos = [row[f"{name}_psnr"] for row in rows if row[f"{name}_psnr"] is not None]
    seconds = statistics.median(row[f"{name}_seconds"] for row in rows)
    return Side(model.kind, statistics.fmean(photos) if photos else None, seconds)


def _protocol(seen: _Views, background: str, scene: Scene | None) -> dict[str, Any]:
    look = seen.cameras[0]
    sizes = sorted({(int(w), int(h)) for w, h in zip(look.width, look.height, strict=True)})
    text = [f"{w}x{h}" for w, h in sizes]
    return {
        "views": len(seen.frames),
        "seen": seen.origin,
        "resolution": text[0] if len(text) == 1 else f"{text[0]} to {text[-1]}",
        "downscale": None if scene is None else scene.protocol.get("downscale", 1),
        "background": background,
        "psnr": PSNR_FORM,
        "ssim": SSIM_FORM,
        "depth_difference": f"median of |B - A| / A, pixels of all views whose alpha is at least {OPAQUE} in both",
        "heat_map": f"mean over channels of |A - B|, 0 to {HEAT_FULL}",
        "seconds_per_frame": "median over views",
    }
