"""What does a camera see of the built-in scene? An analytic ray tracer in torch, with exact geometry and materials.

Light: a distant sun (irradiance pi * SUN, with hard shadows by shadow rays) and a sky that grades from GROUND below to
SKY above. Reflection: Lambert plus GGX (Smith visibility in Hammon's approximation, Schlick Fresnel, F0 = 0.04 or the
albedo of a metal); the sky is reflected with the Fresnel weight times (1 - roughness)^2. No exposure or tone curve but
the clamp to [0, 1] and the sRGB encoding. Sub-samples are averaged after encoding, over those that hit; alpha is the
share that hit. So the view composited on white equals the mean of the sub-samples' encoded colours, which is what a
radiance field that is trained on encoded colours can reproduce exactly.

Work is cut into tiles whose tensors fit the cache, and drawn by one thread; several pictures are shared among forked
processes where there is fork. Operators here take 20 microseconds: torch's own threads and Python's both measured
slower than one thread alone, by waiting for each other. The results do not depend on who draws what.
"""

from __future__ import annotations

import math
import mmap
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from ..fields.geometry import Cameras
from .demo_shapes import column, dot
from .demo_world import HOUSE_AT, LAWN, LIGHTHOUSE_AT, Material, Solid, build_world

SUN_DIRECTION = (0.52, -0.46, 0.72)
"""Towards the sun, before normalisation."""
SUN = (1.02, 0.93, 0.78)
SKY, GROUND = (0.46, 0.54, 0.68), (0.30, 0.26, 0.22)
_TILE = 80
"""Pixels; 2x2 sub-samples of a tile are 25600 rays, 100 KB a row of numbers: measured best of 40, 56, 64, 80, 88."""


class GroundTruth(NamedTuple):
    """One view of the scene. Geometry and materials are those of the ray through the pixel's centre."""

    rgba: Tensor
    """(H, W, 4) uint8, sRGB-encoded, straight alpha."""
    depth: Tensor
    """(H, W) float32 distance along the unit ray, scene units; inf where nothing is hit."""
    normal: Tensor
    """(H, W, 3) float32 outward unit normal, scene frame; 0 where nothing is hit."""
    albedo: Tensor
    """(H, W, 3) float32 linear; 0 where nothing is hit."""
    roughness: Tensor
    """(H, W) float32 GGX roughness."""
    metallic: Tensor
    """(H, W) float32."""
    solid: Tensor
    """(H, W) int16 index into `demo_world.build_world()`; -1 where nothing is hit."""


class World(NamedTuple):
    """Solids and their bounding spheres, stacked for culling."""

    solids: list[Solid]
    centres: Tensor
    """(K, 3)."""
    radii: Tensor
    """(K, 1)."""


@cache
def world() -> World:
    """The built-in scene, built once."""
    solids = build_world()
    centres = torch.cat([s.shape.centre for s in solids], 1).T.contiguous()
    return World(solids, centres, torch.tensor([[1.0001 * s.shape.radius] for s in solids]))


def nearest_hit(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """First solid along each ray.

    Args:
        origins: (3, N) or (3, 1), scene frame, outside every solid.
        directions: (3, N) unit.

    Returns:
        (N,) float32 distances, inf where nothing is hit, and (N,) int64 indices of solids, -1 there.
    """
    scene = world()
    count = directions.shape[1]
    best = torch.full((count,), math.inf)
    which = torch.full((count,), -1)
    for k, rays in _candidates(origins, directions):
        start = origins if origins.shape[1] == 1 else origins.index_select(1, rays)
        t = scene.solids[k].shape.intersect(start, directions.index_select(1, rays))
        before = best.index_select(0, rays)
        closer = (t < before).nonzero().squeeze(1)
        if closer.numel():
            rays = rays.index_select(0, closer)
            best.index_copy_(0, rays, t.index_select(0, closer))
            which.index_fill_(0, rays, k)
    return best, which


def is_lit(points: Tensor, normals: Tensor) -> Tensor:
    """(N,) bool: the sun is above the surface and nothing stands between."""
    sun = _sun_direction()
    scene = world()
    lit = dot(normals, sun) > 0
    above = lit.nonzero().squeeze(1)
    origins = torch.add(points, normals, alpha=1e-3).index_select(1, above)
    for k, rays in _candidates(origins, sun, upwards=True):
        t = scene.solids[k].shape.intersect(origins.index_select(1, rays), sun)
        lit.index_fill_(0, above.index_select(0, rays).index_select(0, (t < math.inf).nonzero().squeeze(1)), False)
    return lit


def _candidates(origins: Tensor, directions: Tensor, *, upwards: bool = False) -> Iterable[tuple[int, Tensor]]:
    """For every solid: the rays whose line passes its bounding sphere ahead of the origin.

    Solids that miss the cone round all the rays are dropped first: in a tile of an image nearly all are. `upwards` says
    that no ray descends, so that solids wholly below an origin are left out: the island shades nothing above it.
    """
    if not origins.shape[1]:
        return
    scene = world()
    solids = _solids_in_cone(origins, directions)
    if upwards:
        lowest = float(origins[2].min())
        solids = [k for k in solids if scene.solids[k].shape.top > lowest]
    along_origin = dot(origins, directions)
    square_origin = dot(origins, origins)
    for k in solids:
        x, y, z = scene.centres[k].tolist()
        radius = float(scene.radii[k])
        ahead = (x * directions[0]).add_(directions[1], alpha=y).add_(directions[2], alpha=z) - along_origin
        apart = torch.add(square_origin, origins[0], alpha=-2 * x).add_(origins[1], alpha=-2 * y)
        across = apart.add_(origins[2], alpha=-2 * z) - ahead * ahead
        limit = radius * radius - (x * x + y * y + z * z) + 1e-5
        passing = (across < limit) & (ahead > -radius)
        if upwards:
            passing &= origins[2] < scene.solids[k].shape.top
        rays = passing.nonzero().squeeze(1)
        if rays.numel():
            yield k, rays


def _solids_in_cone(origins: Tensor, directions: Tensor) -> list[int]:
    """Solids whose bounding sphere meets the cone that holds all rays."""
    scene = world()
    low, high = origins.amin(1), origins.amax(1)
    apex, spread = 0.5 * (low + high), 0.5 * float((high - low).norm())
    axis = directions.mean(1)
    axis = axis / axis.norm()
    cosine = float(dot(axis, directions).min()) - 1e-6
    offset = scene.centres - apex
    along = offset @ axis
    across = (offset.square().sum(1) - along.square()).clamp_min(0.0).sqrt()
    reach = scene.radii[:, 0] + spread
    near = across * cosine - along * math.sqrt(max(0.0, 1 - cosine * cosine)) <= reach
    return (near & (along > -reach)).nonzero().squeeze(1).tolist()


def surface(points: Tensor, which: Tensor) -> tuple[Tensor, Material]:
    """Normals (3, N) and materials at points of solids `which` (N,)."""
    normals = torch.empty_like(points)
    material = Material(torch.empty_like(points), torch.empty_like(points[0]), torch.empty_like(points[0]))
    for k in which.unique().tolist():
        here = (which == k).nonzero().squeeze(1)
        solid = world().solids[k]
        p = points[:, here]
        n = solid.shape.normal(p)
        normals[:, here] = n
        for target, values in zip(material, solid.material(p, n), strict=True):
            target[..., here] = values
    return normals, material


def shade(points: Tensor, normals: Tensor, directions: Tensor, material: Material) -> Tensor:
    """(3, N) linear colour, unclamped, seen along `directions` (3, N) at surface points."""
    sun, sun_colour = _sun_direction(), column(SUN)
    n_l = dot(normals, sun).clamp_min(0.0) * is_lit(points, normals)
    n_v = (-dot(normals, directions)).clamp_min(1e-4)
    albedo, roughness, metallic = material
    base = 0.04 + (albedo - 0.04) * metallic

    half = sun - directions
    half = half / dot(half, half).sqrt().clamp_min(1e-6)
    alpha = roughness * roughness
    d = dot(normals, half).square() * (alpha * alpha - 1) + 1
    distribution = alpha * alpha / (d * d)  # pi cancels against the sun's irradiance
    visibility = 0.5 / (2 * n_l * n_v * (1 - alpha) + (n_l + n_v) * alpha).clamp_min(1e-4)
    fresnel = base + (1 - base) * (1 - dot(half, sun).clamp(0, 1)).pow(5)
    specular = distribution * visibility * n_l * fresnel * sun_colour

    mirror_z = directions[2] + 2 * n_v * normals[2]
    gloss = (1 - roughness).square()
    edge = base + (1 - base) * (gloss * (1 - n_v).clamp_min(0.0).pow(5))
    specular = specular + gloss * edge * _sky(mirror_z, 3.0)

    diffuse = n_l * sun_colour + ambient_occlusion(points, normals) * _sky(normals[2], 1.0)
    return albedo * (1 - metallic) * diffuse + specular


def ambient_occlusion(points: Tensor, normals: Tensor) -> Tensor:
    """(N,) share of the sky's light that reaches a point: a smooth darkening where things stand on the lawn."""
    x, y, z = points
    # (centre, radius) of what stands on the lawn and is large enough for its contact shade to be seen.
    shade = torch.zeros_like(x)
    for (cx, cy), radius in ((LIGHTHOUSE_AT, 0.22), (HOUSE_AT, 0.24)):
        gap = ((x - cx).square() + (y - cy).square()).sqrt() - radius
        shade = torch.maximum(shade, 0.45 * (1 - gap / 0.12).clamp(0, 1).square())
    flat = (normals[2] > 0.5) & (z < LAWN + 0.02)
    wall = 0.35 * (1 - (z - LAWN) / 0.12).clamp(0, 1).square() * (z >= LAWN)
    return 1 - torch.where(flat, shade, wall)


def encode_srgb(linear: Tensor) -> Tensor:
    """Linear light to sRGB in [0, 1], clamped."""
    linear = linear.clamp(0.0, 1.0)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(0.0031308).pow(1 / 2.4) - 0.055)


def render_images(cameras: Cameras, *, supersample: int = 2) -> list[Tensor]:
    """Colour and alpha of every camera: a list of (H, W, 4) uint8.

    Args:
        cameras: of any model, scene frame, outside every solid.
        supersample: n for n x n samples a pixel.
    """
    shapes = [(int(h), int(w), 4) for h, w in zip(cameras.height, cameras.width, strict=True)]
    sizes = [math.prod(shape) for shape in shapes]
    workers = max(1, min(torch.get_num_threads(), len(shapes) // 4)) if sys.platform == "linux" else 1
    # Anonymous shared memory: children write where the parent reads, and no /dev/shm of a container runs out.
    shared = torch.frombuffer(mmap.mmap(-1, sum(sizes)), dtype=torch.uint8)
    images = [part.view(shape) for part, shape in zip(shared.split(sizes), shapes, strict=True)]

    def draw(worker: int) -> None:
        for frame in range(worker, len(images), workers):
            _draw_image(cameras, frame, supersample, images[frame])

    _share_work(draw, workers)
    return [image.clone() for image in images]


def render_view(camera: Cameras, *, supersample: int = 2) -> GroundTruth:
    """Everything that is known of one view.

    Args:
        camera: one camera (F = 1) of any model, scene frame; outside every solid.
        supersample: n for n x n colour samples a pixel.
    """
    rgba = render_images(camera, supersample=supersample)[0]
    height, width = rgba.shape[:2]
    depth, solid = torch.full((height, width), math.inf), torch.full((height, width), -1, dtype=torch.int16)
    planes = torch.zeros(8, height, width)
    for top, left, rows, columns in _tiles(height, width):
        origins, directions = _tile_rays(camera, 0, top, left, rows, columns, 1)
        t, which = nearest_hit(origins, directions)
        hit = (which >= 0).nonzero().squeeze(1)
        normals, material = surface(_points_at(origins, directions, t, hit), which[hit])
        values = torch.zeros(8, rows * columns)
        values[:, hit] = torch.cat([normals, material.albedo, material.roughness[None], material.metallic[None]])
        area = slice(top, top + rows), slice(left, left + columns)
        planes[(slice(None), *area)] = values.view(8, rows, columns)
        depth[area] = t.view(rows, columns)
        solid[area] = which.view(rows, columns).to(torch.int16)
    normal, albedo = planes[0:3].permute(1, 2, 0).contiguous(), planes[3:6].permute(1, 2, 0).contiguous()
    return GroundTruth(rgba, depth, normal, albedo, planes[6], planes[7], solid)


def _share_work(draw: Callable[[int], None], workers: int) -> None:
    """Calls draw(0) here and draw(1..) in forked children; what a child does not finish is done here."""
    children: dict[int, int] = {}
    started = time.monotonic()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # before the fork: OpenMP's threads do not survive it, and a child would wait for them
    try:
        for worker in range(1, workers):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python 3.12 warns of any fork while other threads exist
                child = os.fork()
            if child == 0:
                _run_child(draw, worker)
            children[child] = worker
        draw(0)
        # Shares are equal: a child that takes three times as long as this process, and 20 s, hangs.
        deadline = time.monotonic() + 20 + 2 * (time.monotonic() - started)
        for child in list(children):
            failed = not _wait(child, deadline)
            worker = children.pop(child)
            if failed:
                draw(worker)
    finally:
        torch.set_num_threads(threads)
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _run_child(draw: Callable[[int], None], worker: int) -> NoReturn:
    code = 1
    try:
        draw(worker)
        code = 0
    finally:
        os._exit(code)  # no clean-up, no traceback: both belong to the parent


def _wait(child: int, deadline: float) -> bool:
    """True when the child ended well; one that is late is ended."""
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _tiles(height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """(top, left, rows, columns) of every tile."""
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            yield top, left, min(_TILE, height - top), min(_TILE, width - left)


@torch.inference_mode()
def _draw_image(cameras: Cameras, frame: int, supersample: int, image: Tensor) -> None:
    for top, left, rows, columns in _tiles(image.shape[0], image.shape[1]):
        tile = _render_tile(cameras, frame, top, left, rows, columns, supersample)
        image[top : top + rows, left : left + columns] = tile


def _tile_rays(
    cameras: Cameras, frame: int, top: int, left: int, rows: int, columns: int, supersample: int
) -> tuple[Tensor, Tensor]:
    """Rays of a tile as (3, N) origins and directions; sub-sample first, then row, then column."""
    steps = (torch.arange(supersample) + 0.5) / supersample
    y = (top + torch.arange(rows)).view(1, 1, rows, 1) + steps.view(-1, 1, 1, 1)
    x = (left + torch.arange(columns)).view(1, 1, 1, columns) + steps.view(1, -1, 1, 1)
    shape = (supersample, supersample, rows, columns)
    pixels = torch.stack([x.expand(shape), y.expand(shape)], -1).reshape(-1, 2)
    rays = cameras.rays(torch.full((pixels.shape[0],), frame), pixels)
    origins = rays.origins.T.contiguous()
    if bool((origins == origins[:, :1]).all()):
        origins = origins[:, :1]  # one centre of projection: (3, 1) saves gathers
    return origins, rays.directions.T.contiguous()


def _render_tile(
    cameras: Cameras, frame: int, top: int, left: int, rows: int, columns: int, supersample: int
) -> Tensor:
    origins, directions = _tile_rays(cameras, frame, top, left, rows, columns, supersample)
    t, which = nearest_hit(origins, directions)
    hit = (which >= 0).nonzero().squeeze(1)
    if not hit.numel():
        return torch.zeros(rows, columns, 4, dtype=torch.uint8)
    points = _points_at(origins, directions, t, hit)
    directions = directions.index_select(1, hit)
    normals, material = surface(points, which[hit])
    colours = torch.zeros(4, t.numel())
    colours[:3, hit] = encode_srgb(shade(points, normals, directions, material))
    colours[3, hit] = 1.0
    mean = colours.view(4, supersample * supersample, rows, columns).mean(1)
    mean[:3] /= mean[3].clamp_min(1e-6)
    return (mean * 255 + 0.5).to(torch.uint8).permute(1, 2, 0)


def _points_at(origins: Tensor, directions: Tensor, t: Tensor, rays: Tensor) -> Tensor:
    """(3, M) points at distance t of the chosen rays."""
    start = origins if origins.shape[1] == 1 else origins.index_select(1, rays)
    return start + t.index_select(0, rays) * directions.index_select(1, rays)


@cache
def _sun_direction() -> Tensor:
    direction = column(SUN_DIRECTION)
    return direction / direction.norm()


def _sky(z: Tensor, sharpness: float) -> Tensor:
    """(3, N) radiance of the sky towards height z in [-1, 1]."""
    weight = (0.5 + 0.5 * sharpness * z).clamp(0, 1)
    return column(GROUND) + (column(SKY) - column(GROUND)) * weight
