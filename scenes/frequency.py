"""Which frequency should an untrained radiance field have, so that it learns these photos soon?

FreSh for radiance fields (Kania et al. 2025, arXiv 2410.05050, and its fork of torch-ngp): some training photos are
brought to a small size, an untrained field is drawn from the same cameras with one sample a ray, and the spectra of the
two are compared (`fields.spectrum`). The sample lies where the centre of the scene is far from the cameras on average;
the colour is the field's there, density does not count. The direction is the camera's axis for all rays of a photo, in
place of the paper's fields without directions: what a random colour network makes of directions is no detail.

What differs from the paper: spectra are radial (see `fields.spectrum`); photos are averaged down to `SIDE` pixels
first, where the paper cuts the spectra of whole ones at 32 or 64 frequencies; three models see the same three photos
each, where the paper draws a random photo for each of ten; transparent photos are laid on the scene's background, where
the paper's are on black and cut out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..fields.base import RadianceField
from ..fields.errors import ConfigError
from ..fields.geometry import Rays
from ..fields.render import BACKGROUNDS
from ..fields.spectrum import FrequencyChoice, choose_frequency
from .images import area_downscale
from .presets import Preset, frequency_of, with_frequency
from .scene import Scene

VIEWS, MODELS = 3, 3
"""Training photos, spread evenly over the split, and untrained models per candidate."""
SIDE = 64
"""Pixels that the longest side of a photo is brought to, at most: 31 frequencies, the paper's 32 for sines in radiance
fields."""
LEAST_DISTANCE = 0.5
"""Of the samples, scene units, where cameras stand at the scene's centre: half-way to the end of the unit box."""


def choose_view_frequency(
    scene: Scene,
    preset: Preset,
    field: Callable[..., RadianceField],
    *,
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> FrequencyChoice:
    """The frequency with which untrained fields look most like training photos. On the CPU in float32 always: one seed,
    one choice.

    Args:
        preset: of the field; its own frequency does not count.
        field: its class.
        seed: of the first model; the others' follow.
        report: called with (models done, all).

    Raises:
        ConfigError: the field has no frequency.
    """
    frequency = frequency_of(preset.field)
    if frequency is None:
        raise ConfigError(f"a {field.__name__} has no frequency to choose before it is trained")
    preset = preset.with_precision("fp32")
    frames = scene.splits["train"]
    frames = frames[torch.linspace(0, len(frames) - 1, min(VIEWS, len(frames))).round().long()].tolist()
    factors = [max(1, -(-max(scene.images.image(frame).shape[:2]) // SIDE)) for frame in frames]
    photos = [_photo(scene, frame, factor) for frame, factor in zip(frames, factors, strict=True)]
    distance = max(LEAST_DISTANCE, float(scene.cameras[scene.splits["train"]].centres().norm(dim=1).mean()))
    views = [_view(scene, frame, factor, distance) for frame, factor in zip(frames, factors, strict=True)]

    def untrained(candidate: float, model: int) -> list[Tensor]:
        new = field(with_frequency(preset, candidate).field, seed=seed + model)
        return [_shown(new, *view).view_as(photo) for view, photo in zip(views, photos, strict=True)]

    return choose_frequency(photos, untrained, frequency.candidates, models=MODELS, search=True, report=report)


def _photo(scene: Scene, frame: int, factor: int) -> Tensor:
    """(H, W, 3) in [0, 1], transparent pixels on the scene's background."""
    pixels = torch.from_numpy(area_downscale(np.ascontiguousarray(scene.images.image(frame).cpu().numpy()), factor))
    color = pixels.float() / 255
    if color.shape[2] == 3:
        return color
    alpha = color[..., 3:]
    return color[..., :3] * alpha + BACKGROUNDS[scene.background] * (1 - alpha)


def _view(scene: Scene, frame: int, factor: int, distance: float) -> tuple[Tensor, Tensor]:
    """(H * W, 3) the sample of every pixel's ray, and the camera's axis as often."""
    camera = scene.cameras[frame : frame + 1].downscaled(factor)
    rays: Rays = camera.image_rays(0)
    axis = torch.nn.functional.normalize(camera.forward(), dim=1)
    return rays.origins + distance * rays.directions, axis.expand_as(rays.directions).contiguous()


def _shown(field: RadianceField, positions: Tensor, directions: Tensor) -> Tensor:
    """(N, 3) colours."""
    features: Any = field.geometry(positions).features
    return field.radiance(features, directions, x=positions)
