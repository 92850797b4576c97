import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ShapeError
from polyfield.fields.optim.metrics import psnr, ssim


def pair(height, width, seed=0, noise=0.1):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(height, width, 3, generator=generator, dtype=torch.float64)
    return (image + noise * torch.randn(image.shape, generator=generator, dtype=torch.float64)).clamp(0, 1), image


def test_psnr_of_a_constant_error_is_its_formula():
    image = torch.full((4, 5, 3), 0.6)
    assert psnr(image, torch.full((4, 5, 3), 0.5)).item() == pytest.approx(20.0, abs=1e-4)


def test_psnr_equals_skimage():
    from skimage.metrics import peak_signal_noise_ratio

    image, target = pair(20, 31)
    expected = peak_signal_noise_ratio(target.numpy(), image.numpy(), data_range=1.0)
    assert psnr(image, target).item() == pytest.approx(expected, abs=1e-9)


def test_psnr_is_the_mean_over_images_and_not_of_the_mean_error():
    a, b = torch.full((4, 4, 3), 0.1), torch.full((4, 4, 3), 0.01)
    assert psnr(torch.stack([a, b]), torch.zeros(2, 4, 4, 3)).item() == pytest.approx(30.0, abs=1e-4)


def test_values_outside_the_range_are_clamped():
    image, target = torch.full((12, 12, 3), 7.0), torch.ones(12, 12, 3)
    assert psnr(image, target).item() == 100.0
    assert ssim(image, target).item() == pytest.approx(1.0, abs=1e-6)


def test_equal_images_have_a_finite_psnr_and_ssim_one():
    image, _ = pair(16, 16)
    assert psnr(image, image).item() == 100.0
    assert ssim(image, image).item() == pytest.approx(1.0, abs=1e-12)


def test_nan_stays_visible():
    image = torch.full((12, 12, 3), math.nan)
    assert psnr(image, torch.zeros(12, 12, 3)).isnan()
    assert ssim(image, torch.zeros(12, 12, 3)).isnan()


@pytest.mark.parametrize("size", [(11, 11), (11, 40), (31, 32), (33, 64)])
@pytest.mark.parametrize("noise", [0.02, 0.5])
def test_ssim_equals_skimage(size, noise):
    from skimage.metrics import structural_similarity

    image, target = pair(*size, noise=noise)
    smooth = torch.linspace(0, 1, size[1], dtype=torch.float64)[None, :, None].expand(*size, 3)
    for a, b in ((image, target), (smooth * 0.9, smooth)):
        expected = structural_similarity(
            a.numpy(),
            b.numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=-1,
        )
        assert ssim(a, b).item() == pytest.approx(expected, abs=1e-9)
        assert ssim(a.float(), b.float()).item() == pytest.approx(expected, abs=1e-4)


def test_ssim_of_a_batch_is_the_mean_of_its_images():
    pairs = [pair(16, 20, seed) for seed in range(3)]
    a, b = (torch.stack(v) for v in zip(*pairs, strict=True))
    assert ssim(a, b).item() == pytest.approx(np.mean([ssim(x, y).item() for x, y in pairs]), abs=1e-12)


def test_masked_pixels_do_not_count():
    image, target = pair(24, 24)
    mask = torch.zeros(24, 24, dtype=torch.uint8)
    mask[4:20, 4:20] = 255
    spoiled = image.clone()
    spoiled[mask == 0] = 1 - spoiled[mask == 0]
    assert psnr(spoiled, target, mask=mask).item() == pytest.approx(psnr(image, target, mask=mask).item())
    assert psnr(image, target, mask=mask).item() == pytest.approx(psnr(image[4:20, 4:20], target[4:20, 4:20]).item())
    assert ssim(spoiled, target, mask=mask).item() == pytest.approx(ssim(image, target, mask=mask).item())
    assert ssim(image, spoiled, mask=mask).item() == pytest.approx(ssim(image, image, mask=mask).item(), abs=1e-9)
    full = torch.ones(24, 24)
    assert ssim(image, target, mask=full).item() == pytest.approx(ssim(image, target).item())


def test_images_without_counted_pixels_are_left_out():
    image, target = pair(16, 16)
    masks = torch.stack([torch.ones(16, 16), torch.zeros(16, 16)])
    a, b = torch.stack([image, image]), torch.stack([target, target])
    assert psnr(a, b, mask=masks).item() == pytest.approx(psnr(image, target).item())
    assert ssim(a, b, mask=masks).item() == pytest.approx(ssim(image, target).item())
    assert psnr(image, target, mask=torch.zeros(16, 16)).isnan()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), noise=st.floats(0.01, 1.0))
def test_ssim_is_symmetric_and_at_most_one(seed, noise):
    a, b = pair(13, 17, seed, noise)
    value = ssim(a, b).item()
    assert -1 <= value <= 1
    assert value == pytest.approx(ssim(b, a).item(), abs=1e-12)


def test_both_metrics_have_gradients():
    image, target = (v[..., :1] for v in pair(11, 12))
    inner = (0.1 + 0.8 * image).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ssim(x, 0.1 + 0.8 * target), inner, atol=1e-6, fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: psnr(x, target), inner, fast_mode=True)


def test_shapes_are_checked():
    with pytest.raises(ShapeError, match=r"one shape .* got \(4, 4, 3\) and \(4, 5, 3\)"):
        psnr(torch.zeros(4, 4, 3), torch.zeros(4, 5, 3))
    with pytest.raises(ShapeError, match="at least 11x11 pixels; got 10x40"):
        ssim(torch.zeros(10, 40, 3), torch.zeros(10, 40, 3))
    with pytest.raises(ShapeError, match=r"mask must be .* = \(4, 4\); got \(4, 5\)"):
        psnr(torch.zeros(4, 4, 3), torch.zeros(4, 4, 3), mask=torch.zeros(4, 5))
