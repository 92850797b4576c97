"""The flat store: right pixels, sizes and means of blocks, and a file past the budget that leaves nothing behind."""

import os

import numpy as np
import pytest
import torch
from helpers import datasets as data
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from polyfield.fields.errors import ConfigError, FormatError, ShapeError
from polyfield.scenes import images as store
from polyfield.scenes.images import Images, ImageSource, area_downscale, bytes_needed, load_images, read_headers

SIZES = [(5, 4), (3, 7), (8, 2)]  # width, height


def sources(folder, channels=3, sizes=SIZES):
    paths = []
    for k, (width, height) in enumerate(sizes):
        paths.append(folder / f"{k}.png")
        Image.fromarray(data.picture(k, channels, width, height)).save(paths[-1])
    return [ImageSource(path=p, header=h) for p, h in zip(paths, read_headers(paths), strict=True)]


@pytest.mark.parametrize("budget", [None, 0])
def test_frames_of_any_size_lie_one_after_the_other(tmp_path, budget):
    images, opaque = load_images(sources(tmp_path), byte_budget=budget, cache_dir=tmp_path / "cache")
    assert images.file_backed == (budget == 0)
    assert opaque
    assert images.offsets.tolist() == [0, 20, 41]
    for k, (width, height) in enumerate(SIZES):
        np.testing.assert_array_equal(images.image(k), data.picture(k, 3, width, height))
    np.testing.assert_array_equal(images.image(-1), images.image(2))
    assert images.mask(1).shape == (7, 3)
    assert bool((images.mask(1) == 255).all())


def test_samples_are_the_pixels_at_column_and_row(tmp_path):
    images, _ = load_images(sources(tmp_path))
    frames, x, y = torch.tensor([0, 1, 2, 2]), torch.tensor([4, 0, 7, 0]), torch.tensor([3, 6, 0, 1])
    assert images.sample(frames, x, y).tolist() == [[0, 3, 4], [1, 6, 0], [2, 0, 7], [2, 1, 0]]
    assert images.sample_masks(frames, x, y).tolist() == [255] * 4
    assert images.sample(frames[:0], x[:0], y[:0]).shape == (0, 3)


@pytest.mark.parametrize(("x", "y"), [(5, 0), (0, 4), (-1, 0), (0, -1)])
def test_a_sample_outside_its_frame_is_an_error_and_not_a_pixel_of_the_next(tmp_path, x, y):
    images, _ = load_images(sources(tmp_path))
    with pytest.raises(IndexError, match="outside its frame"):
        images.sample(torch.tensor([0]), torch.tensor([x]), torch.tensor([y]))
    with pytest.raises(IndexError, match="frame 3 of 3"):
        images.image(3)


def test_the_file_past_the_budget_is_gone_from_the_folder_at_once(tmp_path):
    images, _ = load_images(sources(tmp_path), byte_budget=10, cache_dir=tmp_path / "cache")
    if os.name == "posix":
        assert list((tmp_path / "cache").iterdir()) == []
    assert images.file_backed
    assert not load_images(sources(tmp_path), byte_budget=10**6)[0].file_backed


def test_a_disk_without_room_is_a_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(
        ConfigError, match=r"no room for 0.00 GB of pixels \(No space left on device\); raise byte_budget"
    ):
        load_images(sources(tmp_path), byte_budget=0, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_folder_that_is_a_file_is_a_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="file: no room for"):
        load_images(sources(tmp_path), byte_budget=0, cache_dir=tmp_path / "file")


@pytest.mark.parametrize("downscale", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("as_alpha", [False, True])
def test_the_memory_told_beforehand_is_what_is_taken(tmp_path, downscale, masked, as_alpha):
    found = sources(tmp_path)
    if masked:
        Image.new("L", SIZES[1], 255).save(tmp_path / "mask.png")
        found[1] = ImageSource(path=found[1].path, header=found[1].header, mask=tmp_path / "mask.png")
    images, _ = load_images(found, downscale=downscale, masks_as_alpha=as_alpha)
    taken = images.pixels.numel() + (0 if images.masks is None else images.masks.numel())
    assert bytes_needed(found, downscale=downscale, masks_as_alpha=as_alpha) == taken


def test_one_transparent_frame_gives_all_frames_alpha(tmp_path):
    found = sources(tmp_path)
    Image.fromarray(data.picture(9, 4, 4, 4)).save(tmp_path / "9.png")
    found.append(ImageSource(path=tmp_path / "9.png", header=read_headers([tmp_path / "9.png"])[0]))
    images, opaque = load_images(found)
    assert not opaque
    assert bool((images.image(0)[..., 3] == 255).all())
    np.testing.assert_array_equal(images.image(3), data.picture(9, 4, 4, 4))


def test_alpha_that_is_full_everywhere_counts_as_opaque(tmp_path):
    Image.new("RGBA", (4, 4), (1, 2, 3, 255)).save(tmp_path / "a.png")
    images, opaque = load_images([ImageSource(path=tmp_path / "a.png", header=read_headers([tmp_path / "a.png"])[0])])
    assert opaque
    assert images.pixels.shape == (16, 4)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 5), st.sampled_from([3, 4]), st.integers(0, 1 << 30))
@example(factor=1, rows=1, columns=3, channels=4, seed=5)
def test_downscaling_is_the_rounded_mean_of_blocks_weighted_by_alpha(factor, rows, columns, channels, seed):
    shape = (factor * 2 + rows, factor * 3 + columns, channels)
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    small = area_downscale(image, factor)
    height, width = shape[0] // factor, shape[1] // factor
    assert small.shape == (height, width, channels)
    blocks = image[: height * factor, : width * factor].astype(float).reshape(height, factor, width, factor, channels)
    if channels == 3 or factor == 1:  # one to one keeps the colours behind alpha 0
        expected = blocks.mean((1, 3))
    else:
        alpha = blocks[..., 3:]
        colour = (blocks[..., :3] * alpha).sum((1, 3)) / np.maximum(alpha.sum((1, 3)), 1)
        expected = np.concatenate([colour, alpha.mean((1, 3))], axis=2)
    assert np.abs(small - expected).max() <= 0.5 + 1e-9


def test_the_largest_block_does_not_overflow():
    image = np.full((store.MAX_DOWNSCALE, store.MAX_DOWNSCALE, 4), 255, np.uint8)
    assert area_downscale(image, store.MAX_DOWNSCALE).tolist() == [[[255] * 4]]


def test_a_block_that_is_partly_hidden_is_hidden(tmp_path):
    Image.fromarray(data.picture(0, 3, 4, 4)).save(tmp_path / "a.png")
    mask = np.full((4, 4), 255, np.uint8)
    mask[0, 3] = 0
    Image.fromarray(mask).save(tmp_path / "m.png")
    source = ImageSource(path=tmp_path / "a.png", header=read_headers([tmp_path / "a.png"])[0], mask=tmp_path / "m.png")
    images, _ = load_images([source], downscale=2)
    assert images.mask(0).tolist() == [[255, 0], [255, 255]]


def test_object_masks_multiply_the_alpha_of_the_image(tmp_path):
    Image.fromarray(data.picture(0, 4, 4, 4)).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 128, np.uint8)).save(tmp_path / "m.png")
    source = ImageSource(path=tmp_path / "a.png", header=read_headers([tmp_path / "a.png"])[0], mask=tmp_path / "m.png")
    images, opaque = load_images([source], masks_as_alpha=True)
    assert not opaque
    assert images.image(0)[0, :, 3].tolist() == [128, 128, 0, 0]


def test_one_broken_image_among_many_is_named(tmp_path):
    found = sources(tmp_path)
    whole = found[1].path.read_bytes()
    found[1].path.write_bytes(whole[: len(whole) - 30])
    with pytest.raises(FormatError, match=r"1.png: cannot be read as an image"):
        load_images(found)


def test_frames_in_memory_can_be_joined():
    frames = [torch.from_numpy(data.picture(k, 3, *size)) for k, size in enumerate(SIZES)]
    images = Images.from_frames(frames)
    for k, frame in enumerate(frames):
        assert torch.equal(images.image(k), frame)
    assert len(Images.from_frames([])) == 0


def test_parts_that_do_not_fit_together_are_refused():
    good = Images.from_frames([torch.zeros(2, 3, 3, dtype=torch.uint8)])
    with pytest.raises(ShapeError, match=r"pixels must be \(P, 3 or 4\) uint8; got \(6, 2\)"):
        Images(good.pixels[:, :2], good.offsets, good.width, good.height)
    with pytest.raises(ShapeError, match="add up to other than the 5 pixels"):
        Images(good.pixels[:5], good.offsets, good.width, good.height)
    with pytest.raises(ShapeError, match=r"masks must be \(6,\); got \(5,\)"):
        Images(good.pixels, good.offsets, good.width, good.height, good.pixels[:5, 0])


def test_the_memory_of_this_machine_is_found():
    assert 1 << 24 < store.available_memory() < 1 << 45
