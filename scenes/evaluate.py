"""How close are a model's pictures to photos it has not seen? PSNR and SSIM with their protocol.

Images are compared at the resolution of the scene as loaded. RGBA ground truth is composited on the scene's background
(white where the data has alpha) with straight alpha on sRGB values, as the published numbers of NeRF-Synthetic do;
masks leave pixels out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..fields.errors import ConfigError
from ..fields.optim.metrics import PSNR_FORM, SSIM_FORM, psnr, ssim
from ..fields.render.frame import render

if TYPE_CHECKING:
    from ..fields.geometry import Cameras, Similarity
    from ..fields.model import Model
    from .scene import Scene

_SSIM_SIDE = 11
BEHIND = {"white": 1.0, "black": 0.0, "none": 0.0}


class EvalResult(NamedTuple):
    """How a model does on one split."""

    psnr: float
    """dB, mean over images; NaN where no pixel counts."""
    ssim: float | None
    """Mean over images; None where the images are smaller than its window of 11x11."""
    per_image: list[dict[str, Any]]
    """For each image: frame (index in the scene), psnr, ssim, seconds."""
    seconds_per_frame: float
    """Mean rendering time, metrics excluded."""
    protocol: dict[str, Any]
    """What the numbers mean: resolution, downscale, background, images, split, metric forms, colour space."""


@torch.no_grad()
def evaluate(
    model: Model,
    scene: Scene,
    split: str = "test",
    *,
    limit: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Render the frames of a split and compare them with the photos.

    Args:
        model: the trained model; it may have been trained on another normalisation of the same data set.
        scene: the photos, at the resolution to compare at.
        split: a key of `scene.splits`.
        limit: take at most this many frames, evenly spread over the split; None takes all.
        report: called as report(images done, images) after each image.

    Raises:
        ConfigError: the scene has no such split, or it is empty.
    """
    chosen = _frames(scene, split, limit)
    cameras = cameras_for(model, scene)
    background = scene.background if scene.background != "none" else model.background
    rows: list[dict[str, Any]] = []
    for frame in chosen:
        begin = time.perf_counter()
        picture = render(model, cameras[frame : frame + 1], background=background).rgb.cpu()
        seconds = time.perf_counter() - begin
        truth, mask = ground_truth(scene, frame, background)
        small = min(truth.shape[:2]) < _SSIM_SIDE
        rows.append(
            {
                "frame": frame,
                "psnr": float(psnr(picture, truth, mask=mask)),
                "ssim": None if small else float(ssim(picture, truth, mask=mask)),
                "seconds": seconds,
            }
        )
        if report:
            report(len(rows), len(chosen))
    return EvalResult(
        psnr=_mean([r["psnr"] for r in rows]),
        ssim=_mean([r["ssim"] for r in rows]) if all(r["ssim"] is not None for r in rows) else None,
        per_image=rows,
        seconds_per_frame=_mean([r["seconds"] for r in rows]),
        protocol=_protocol(scene, split, chosen, background),
    )


def ground_truth(scene: Scene, frame: int, background: str) -> tuple[Tensor, Tensor | None]:
    """The photo (H, W, 3) in [0, 1] on `background`, and its mask (H, W) or None."""
    image = scene.images.image(frame).float() / 255
    if image.shape[-1] == 4:
        alpha = image[..., 3:]
        image = image[..., :3] * alpha + BEHIND[background] * (1 - alpha)
    mask = scene.images.mask(frame) if scene.images.masks is not None else None
    return image, mask


def frame_change(model: Model, scene: Scene) -> Similarity:
    """The scene's frame -> the model's scene frame."""
    return model.to_dataset.inverse().compose(scene.to_scene.inverse())


FRAME_TOLERANCE = 1e-3
"""Of `frames_apart`: what is more is not rounding."""


def frames_apart(change: Similarity) -> float:
    """How much a change from one frame to another is: the largest of its shift (scene units), what its scale differs
    from 1, and what an entry of its rotation differs from none."""
    turned = float((change.rotation - torch.eye(3).to(change.rotation)).abs().max())
    return max(abs(change.scale - 1), turned, float(change.translation.abs().max()))


def cameras_for(model: Model, scene: Scene) -> Cameras:
    """The scene's cameras in the model's scene frame.

    Both frames are normalisations of one data set frame; they differ where the scene was loaded with other options.
    """
    change = frame_change(model, scene)
    if frames_apart(change) < 1e-6:
        return scene.cameras
    return scene.cameras.transformed(change)


def held_out_split(scene: Scene) -> str | None:
    """The split that a training run is judged on: test, else val, else None."""
    return next((s for s in ("test", "val") if len(scene.splits.get(s, ())) > 0), None)


def _frames(scene: Scene, split: str, limit: int | None) -> list[int]:
    if len(scene.splits.get(split, ())) == 0:
        filled = [f"{name} ({len(v)})" for name, v in scene.splits.items() if len(v) > 0]
        raise ConfigError(f"scene {scene.name} has no frames in split {split!r}; it has {', '.join(filled) or 'none'}")
    frames = [int(i) for i in scene.splits[split]]
    if limit is None or limit >= len(frames):
        return frames
    if limit < 1:
        raise ConfigError(f"limit must be at least 1 image; got {limit}")
    return [frames[(2 * i + 1) * len(frames) // (2 * limit)] for i in range(limit)]


def _protocol(scene: Scene, split: str, frames: list[int], background: str) -> dict[str, Any]:
    sizes = sorted({(int(scene.cameras.width[f]), int(scene.cameras.height[f])) for f in frames})
    text = [f"{w}x{h}" for w, h in sizes]
    has_alpha = scene.images.pixels.shape[-1] == 4
    return {
        **scene.protocol,
        "resolution": text[0] if len(text) == 1 else f"{text[0]} to {text[-1]}",
        "downscale": scene.protocol.get("downscale", 1),
        "background": f"{background} (photos composited with straight alpha)" if has_alpha else "photos are opaque",
        "images": len(frames),
        "images_in_split": len(scene.splits[split]),
        "split": split,
        "masked": scene.images.masks is not None,
        "crop": "none",
        "color_space": "sRGB-encoded",
        "psnr": PSNR_FORM,
        "ssim": SSIM_FORM,
    }


def _mean(values: list[float]) -> float:
    counted = [v for v in values if not math.isnan(v)]
    return sum(counted) / len(counted) if counted else math.nan
