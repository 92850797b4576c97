"""Rays that fields learn from: what they go through and what they should see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.tiny import tiny_scene

from polyfield.scenes.images import Images
from polyfield.scenes.rays import SceneRays


def scene_of(frames, masks=None):
    scene = tiny_scene()
    side = len(frames[0])
    cameras = replace(scene.cameras, width=torch.full((12,), side).int(), height=torch.full((12,), side).int())
    return replace(scene, cameras=cameras, images=Images.from_frames(frames, masks))


def noise(channels: int, side: int = 64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (side, side, channels)
    return [torch.randint(256, shape, generator=generator, dtype=torch.uint8) for _ in range(12)]


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_a_square_is_the_mean_of_its_pixels(channels, masked):
    frames = noise(channels)
    masks = [(frame[:, :, 0] > 90).to(torch.uint8) for frame in frames] if masked else None
    source = SceneRays(scene_of(frames, masks), torch.arange(12), radii=True)
    for side in (1, 2, 8):
        picked, x, y = source._pixels(40, torch.Generator().manual_seed(side))
        x[0] = y[0] = 63  # the corner
        if masks is not None:
            masks[picked[0]][63, 63] = 1
            source.images = Images.from_frames(frames, masks)
        middles, color = source._squares(side, picked, x, y)
        for ray, frame in enumerate(picked.tolist()):
            left, top = (middles[ray] - side / 2).long().tolist()
            assert 0 <= left <= int(x[ray]) < left + side <= 64
            assert 0 <= top <= int(y[ray]) < top + side <= 64
            square = (slice(top, top + side), slice(left, left + side))
            pixels = frames[frame][square].double() / 255
            if channels == 4:
                pixels[:, :, :3] *= pixels[:, :, 3:]
            seen = torch.ones(side, side) if masks is None else masks[frame][square]
            torch.testing.assert_close(color[ray].double(), pixels[seen > 0].mean(0), rtol=0, atol=1e-6)


def test_half_of_the_rays_see_squares_and_their_cones_are_as_wide():
    scene = scene_of(noise(4))
    batch = SceneRays(scene, torch.arange(12), radii=True).batch(0, 256)
    generator = torch.Generator().manual_seed(0)
    middles = SceneRays(scene, torch.arange(12))._pixels(256, generator)[1:]
    assert batch.rays.radii is not None
    pixels = scene.cameras.rays(batch.frames, torch.stack(middles, 1) + 0.5, radii=True).radii
    assert pixels is not None
    sides = torch.cat([torch.full((n,), float(side)) for n, side in ((128, 1), (64, 2), (32, 4), (32, 8))])
    torch.testing.assert_close(batch.rays.radii / pixels, sides, rtol=0.2, atol=0)  # by how far the middle lies off


def test_rays_go_through_the_middles_of_what_they_see():
    """A picture of its own ray directions: the mean over a square is nearly that of the middle."""
    scene = scene_of(noise(3))
    directions = [scene.cameras.image_rays(k).directions.reshape(64, 64, 3) for k in range(12)]
    scene = scene_of([((d * 0.5 + 0.5) * 255).round().to(torch.uint8) for d in directions])
    batch = SceneRays(scene, torch.arange(12), radii=True).batch(3, 400)
    torch.testing.assert_close(batch.targets * 2 - 1, batch.rays.directions, rtol=0, atol=0.03)


@pytest.mark.parametrize(("side", "sides"), [(64, (1, 2, 4, 8)), (63, (1, 2, 4)), (16, (1, 2)), (7, (1,))])
def test_squares_are_small_beside_their_pictures(side, sides):
    assert SceneRays(scene_of(noise(3, side)), torch.arange(12), radii=True).sides == sides
    assert SceneRays(scene_of(noise(3, side)), torch.arange(12)).sides == (1,)


@pytest.mark.parametrize("count", [1, 3, 256])
def test_rays_of_other_fields_see_pixels(count):
    frames = noise(3)
    batch = SceneRays(scene_of(frames), torch.arange(12)).batch(5, count)
    assert batch.rays.radii is None
    there = torch.stack(frames)[batch.frames].reshape(count, -1, 3)
    found = (batch.targets * 255).round().to(torch.uint8)
    assert bool((there == found[:, None]).all(2).any(1).all())


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_every_ray_has_its_share(count):
    batch = SceneRays(scene_of(noise(3)), torch.arange(12), radii=True).batch(5, count)
    assert batch.rays.radii is not None
    assert batch.targets.shape == batch.rays.directions.shape == (count, 3)
    assert batch.rays.radii.shape == batch.frames.shape == (count,)
