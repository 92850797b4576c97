"""FreSh: which frequency should an untrained field have, so that it learns this target soon?

An untrained network already shows detail of some fineness, by the frequency of its encoding. FreSh (Kania et al. 2025,
arXiv 2410.05050) compares the spectrum of the target with those of untrained networks and takes the candidate that is
nearest by the Wasserstein-1 distance; nothing is trained for it.

Two forms of spectrum:

- "radial": magnitudes of the Fourier transform, summed over channels, by the length of the frequency vector in cycles
  per longest side. Both quadrants count and a rectangle is not squeezed to a square.
- "paper": after resizing to a square, by the sum of the two frequencies (antidiagonals of the unshifted transform),
  which sees one quadrant. Figures of the paper are of this form.

Bin 0 (the mean) is left out, the rest is brought to sum 1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .errors import ConfigError, ShapeError

Form = Literal["radial", "paper"]
MODELS = 10
"""Untrained models per candidate (section 4 of the paper)."""
MOST_FREQUENCY = 10**6
"""That a user may ask for: far above any that helps, far below what float32 cannot hold."""
FLAT = 1e-6
"""Values whose spread is less than so much of the largest are all the same: float32 rounds so."""
BINS = 64
"""Frequencies compared (the released configurations)."""


class FrequencyChoice(NamedTuple):
    """What was tried and what is nearest."""

    chosen: float | None
    """None where nothing can be compared: the target has no detail, or no candidate's models are finite."""
    candidates: tuple[float, ...]
    """That were looked at, in order; none where the target has no detail."""
    distances: tuple[float, ...]
    """Mean Wasserstein-1 distance of each candidate's spectra from the target's, in bins; infinite where not finite."""
    seconds: float
    """That it took."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; an infinite distance is null."""
        distances = [d if math.isfinite(d) else None for d in self.distances]
        return {**self._asdict(), "candidates": list(self.candidates), "distances": distances}

    @staticmethod
    def from_dict(values: Any) -> FrequencyChoice:
        """The inverse.

        Raises:
            ConfigError: the values are not those of a choice.
        """
        try:
            candidates = tuple(float(c) for c in values["candidates"])
            distances = tuple(math.inf if d is None else float(d) for d in values["distances"])
            chosen = None if values["chosen"] is None else float(values["chosen"])
            choice = FrequencyChoice(chosen, candidates, distances, float(values["seconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{values!r:.60} is no choice of a frequency") from error
        of_these = chosen is None or (chosen in candidates and math.isfinite(chosen))
        if not of_these or len(candidates) != len(distances):
            raise ConfigError(f"{values!r:.60} is no choice of a frequency")
        return choice


def frequency_number(text: str) -> float | None:
    """What a user's `--frequency` says: the number, or None for auto and default.

    Raises:
        ConfigError: neither of these, or out of range.
    """
    if text in ("auto", "default"):
        return None
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"--frequency must be auto, default or a number; got {text!r}") from None
    if not 0 <= value <= MOST_FREQUENCY:
        raise ConfigError(f"--frequency must be 0 to {MOST_FREQUENCY}; got {text}")
    return value


def spectrum(images: Tensor, *, bins: int = BINS, form: Form = "radial") -> Tensor:
    """Spectra of images.

    Args:
        images: (B, H, W, C) float.
        bins: frequencies 1 .. bins are kept, in cycles per longest side; those beyond what the image holds are 0.
        form: see the module's text.

    Returns:
        (B, bins) float32, each of sum 1 (0 for an image without detail).

    Raises:
        ShapeError: not four axes, or an empty one. ConfigError: bins below 1.
    """
    if images.ndim != 4 or images.numel() == 0:
        raise ShapeError(f"images must be (B, H, W, C), none of them 0; got {tuple(images.shape)}")
    if bins < 1:
        raise ConfigError(f"bins must be at least 1; got {bins}")
    planes = images.movedim(3, 1)
    if form == "paper" and images.shape[1] != images.shape[2]:
        side = min(images.shape[1:3])
        planes = nn.functional.interpolate(planes, (side, side), mode="bilinear", antialias=True)
    magnitude = torch.fft.fft2(planes).abs().sum(1)
    bin_of = _bins(planes.shape[2], planes.shape[3], form).to(images.device)
    kept = (bin_of >= 1) & (bin_of <= bins)
    out = magnitude.new_zeros(len(images), bins)
    out.index_add_(1, bin_of[kept] - 1, magnitude[:, kept])
    return out / out.sum(1, keepdim=True).clamp_min(torch.finfo(out.dtype).tiny)


def spectrum_distance(a: Tensor, b: Tensor) -> Tensor:
    """(..., bins) spectra of sum 1 -> (...) Wasserstein-1 distance in bins, the area between the running sums."""
    return (a.cumsum(-1) - b.cumsum(-1)).abs().sum(-1)


@torch.no_grad()
def choose_frequency(
    target: Tensor | Sequence[Tensor],
    untrained: Callable[[float, int], Tensor | Sequence[Tensor]],
    candidates: Sequence[float],
    *,
    models: int = MODELS,
    bins: int = BINS,
    form: Form = "radial",
    search: bool = False,
    report: Callable[[int, int], None] | None = None,
) -> FrequencyChoice:
    """The candidate whose untrained models look most like the target.

    Args:
        target: (H, W, C) float; or several such pictures, of any sizes, over which the distance is averaged; those
            without detail do not count.
        untrained: (candidate, seed) -> (H, W, C), what a new model shows in place of the target, or of each of its
            pictures. The same seeds serve all candidates, which takes most of the noise out of the comparison.
        candidates: in rising order.
        models: seeds per candidate.
        search: look at every fourth candidate, then at the neighbours of the nearest, two away and one away: finds the
            nearest where the distance falls and then rises along the candidates, as it does for all families here.
        report: called with (models done, all).

    Raises:
        ConfigError: no candidates, or no models.
    """
    if not candidates or models < 1:
        raise ConfigError(f"there must be candidates and models; got {len(candidates)} and {models}")
    begin, count = time.perf_counter(), len(candidates)
    detailed = [_has_detail(picture) for picture in ([target] if isinstance(target, Tensor) else target)]
    if not any(detailed):
        return FrequencyChoice(None, (), (), time.perf_counter() - begin)

    def spectra(pictures: Tensor | Sequence[Tensor]) -> Tensor:
        several = [pictures] if isinstance(pictures, Tensor) else pictures
        kept = [picture for picture, counts in zip(several, detailed, strict=True) if counts]
        return torch.cat([spectrum(picture[None].float(), bins=bins, form=form) for picture in kept])

    goals = spectra(target)
    found: dict[int, float] = {}
    strides = (4, 2, 1) if search else (1,)
    planned = min(count, -(-count // 4) + 4) if search else count
    for stride in strides:
        best = min(found, key=lambda k: found[k], default=None)
        tried = range(0, count, stride) if best is None else (best - stride, best + stride)
        for index in (k for k in tried if 0 <= k < count and k not in found):
            shown = torch.stack([spectra(untrained(candidates[index], seed)) for seed in range(models)])
            distance = float(spectrum_distance(shown, goals).mean())
            found[index] = distance if math.isfinite(distance) else math.inf
            if report is not None:
                report(len(found) * models, max(planned, len(found)) * models)
    best = min(found, key=lambda k: found[k])
    order = sorted(found)
    names, distances = tuple(candidates[k] for k in order), tuple(found[k] for k in order)
    chosen = candidates[best] if math.isfinite(found[best]) else None
    return FrequencyChoice(chosen, names, distances, time.perf_counter() - begin)


def _has_detail(picture: Tensor) -> bool:
    """Whether (H, W, C) differs from a constant by more than rounding."""
    spread = picture.amax((0, 1)) - picture.amin((0, 1))
    return bool((spread > FLAT * picture.abs().amax()).any())


def _bins(height: int, width: int, form: Form) -> Tensor:
    """(H, W) int64: the bin of every coefficient of an unshifted transform; -1 where it is left out."""
    if form == "paper":
        total = torch.arange(height)[:, None] + torch.arange(width)
        return torch.where(total < height, total, -1)  # beyond lie the negative frequencies, mirrored
    longest = max(height, width)
    rows = torch.fft.fftfreq(height, 1 / height, dtype=torch.float64) * (longest / height)
    columns = torch.fft.fftfreq(width, 1 / width, dtype=torch.float64) * (longest / width)
    length = torch.hypot(rows[:, None], columns[None, :])
    return torch.where(length < longest / 2, length.round().long(), -1)  # whole rings only
