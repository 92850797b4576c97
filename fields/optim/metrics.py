"""How good a rendered image is: PSNR and SSIM in the forms that papers report.

Images are sRGB-encoded floats in [0, 1]; values outside are clamped first, as they would be on being written to a file.
PSNR of a set is the mean of the per-image PSNRs (not the PSNR of the mean error). SSIM is the form of Wang et al. 2004
(doi 10.1109/TIP.2003.819861): 11x11 Gaussian window with sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1, population
covariance, per channel, mean over those windows that lie wholly inside the image. That is what
`skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)` computes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ShapeError

PSNR_FORM = "mean over images of per-image PSNR, values clamped to [0, 1], at most 100 dB"
SSIM_FORM = "11x11 Gaussian window, sigma 1.5, data range 1, windows wholly inside the image, mean over channels"

_MIN_ERROR = 1e-10  # 100 dB: equal images get a finite figure, which JSON can hold
_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(image: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, mean over the images of a batch.

    Args:
        image, target: (..., H, W, C) in [0, 1]; values outside are clamped. Leading dimensions are the batch.
        mask: (..., H, W), true or non-zero where pixels count; None counts all. An image with an empty mask is left
            out.

    Returns:
        Scalar, at most 100 dB; NaN where nothing counts or a value is NaN. Differentiable inside (0, 1).

    Raises:
        ShapeError: shapes disagree.
    """
    image, target = _prepare(image, target, mask)
    error = (image - target).square().mean(-1)
    if mask is None:
        mean = error.mean((-2, -1))
    else:
        weight = (mask != 0).to(error.dtype)
        count = weight.sum((-2, -1))
        mean = ((error * weight).sum((-2, -1)) / count)[count > 0]
    return (-10.0 * mean.clamp_min(_MIN_ERROR).log10()).mean()


def ssim(image: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Structural similarity, mean over windows, channels and the images of a batch.

    Args:
        image, target: (..., H, W, C) in [0, 1], H and W at least 11; values outside are clamped.
        mask: (..., H, W), true or non-zero where pixels count. The others are made black in both images, and only
            windows whose centre counts enter the mean; an image without any is left out.

    Returns:
        Scalar in [-1, 1], 1 for equal images. Differentiable inside (0, 1).

    Raises:
        ShapeError: shapes disagree or an image is smaller than the window.
    """
    image, target = _prepare(image, target, mask)
    height, width, channels = image.shape[-3:]
    if min(height, width) < _WINDOW:
        raise ShapeError(f"ssim needs images of at least {_WINDOW}x{_WINDOW} pixels; got {height}x{width}")
    if mask is not None:
        counts = (mask != 0)[..., None]
        image, target = torch.where(counts, image, 0), torch.where(counts, target, 0)
    x, y = (v.movedim(-1, -3).reshape(-1, 1, height, width) for v in (image, target))
    score = _ssim_map(x, y).reshape(-1, channels, height - _WINDOW + 1, width - _WINDOW + 1).mean(1)
    if mask is None:
        return score.mean()
    border = _WINDOW // 2
    weight = (
        (mask != 0).reshape(-1, height, width)[:, border : height - border, border : width - border].to(score.dtype)
    )
    count = weight.sum((-2, -1))
    return ((score * weight).sum((-2, -1)) / count)[count > 0].mean()


def _ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """SSIM per window of x and y (B, 1, H, W): (B, 1, H - 10, W - 10). Wang et al. 2004, equation 13."""
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x * mean_x
    var_y = _blur(y * y) - mean_y * mean_y
    cov = _blur(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + _C1) * (2 * cov + _C2)
    return top / ((mean_x * mean_x + mean_y * mean_y + _C1) * (var_x + var_y + _C2))


def _blur(v: Tensor) -> Tensor:
    """Gaussian window means of v (B, 1, H, W): (B, 1, H - 10, W - 10).

    Eleven shifted sums per axis: measured 2 to 10 times as fast as conv2d, which on a CPU is made for many channels.
    """
    weights = [math.exp(-0.5 * ((i - _WINDOW // 2) / _SIGMA) ** 2) for i in range(_WINDOW)]
    total = sum(weights)
    for axis in (-2, -1):
        length = v.shape[axis] - _WINDOW + 1
        blurred = v.narrow(axis, 0, length) * (weights[0] / total)
        for i in range(1, _WINDOW):
            blurred.add_(v.narrow(axis, i, length), alpha=weights[i] / total)
        v = blurred
    return v


def _prepare(image: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if image.dim() < 3 or image.shape != target.shape:
        raise ShapeError(
            f"image and target must have one shape (..., H, W, C); got {tuple(image.shape)} and {tuple(target.shape)}"
        )
    if mask is not None and mask.shape != image.shape[:-1]:
        raise ShapeError(f"mask must be (..., H, W) = {tuple(image.shape[:-1])}; got {tuple(mask.shape)}")
    dtype = torch.promote_types(torch.promote_types(image.dtype, target.dtype), torch.float32)
    return image.to(dtype).clamp(0, 1), target.to(dtype).clamp(0, 1)
