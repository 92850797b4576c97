"""Model and camera in, pictures out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ShapeError
from ..geometry import Cameras, Rays
from ..ops.composite import composite
from .march import MarchConfig, march_visible
from .occupancy import OccupancyGrid

if TYPE_CHECKING:
    from ..base import RadianceField
    from ..model import Model

BACKGROUNDS = {"white": 1.0, "black": 0.0, "none": 0.0}
RENDER_STOP = 1e-2
"""Transmittance at which a ray ends when rendering: the rest could change a channel by 1 % at most (instant-ngp)."""
CHUNK = 1 << 15
"""Most rays rendered at once."""
CHUNK_SAMPLES = 1 << 20
"""Marched samples aimed at per chunk: their features, in and out of the networks, stay within about 500 MB."""


class RayColors(NamedTuple):
    """What R rays see."""

    rgb: Tensor
    """(R, 3) in [0, 1]."""
    alpha: Tensor
    """(R,) opacity."""
    depth: Tensor
    """(R,) distance at which transmittance crosses one half, scene units; inf where it does not."""
    samples: int
    """How many samples were marched for them."""


class Frame(NamedTuple):
    """A rendered picture."""

    rgb: Tensor
    """(H, W, 3) in [0, 1], sRGB-encoded."""
    alpha: Tensor
    """(H, W) opacity."""
    depth: Tensor
    """(H, W) distance along the ray to where half of the light is stopped, scene units; inf where it is not."""
    normal: Tensor
    """(H, W, 3) unit normals of the depth surface, scene frame, facing the camera; zero where there is no depth."""


@torch.no_grad()
def render_rays(
    field: RadianceField,
    occupancy: OccupancyGrid,
    rays: Rays,
    march: MarchConfig,
    background: Tensor,
) -> RayColors:
    """Colour, opacity and median depth of R rays.

    Args:
        rays: (R, 3) origins and unit directions, scene frame; with radii where the field integrates its encoding (to
            others they are nothing).
        background: (3,) or (R, 3) colour behind the scene.
    """
    if not field.integrates:
        rays = rays._replace(radii=None)

    def density_pass(x: Tensor, footprint: Tensor | None) -> tuple[Tensor, Tensor]:
        geometry = field.geometry(x, footprint=footprint)
        return geometry.density_raw, geometry.features

    count = rays.origins.shape[0]
    samples = march_visible(rays, occupancy, density_pass, march, activation=field.density_activation)
    rows = samples.rows.long()
    if rows.numel() == 0:
        nothing = torch.zeros(count, device=rays.origins.device)
        return RayColors(background.expand(count, 3).clone(), nothing, nothing + float("inf"), samples.marched)
    assert samples.cache is not None
    out = composite(
        samples.density_raw[rows],
        field.radiance(samples.cache[rows], rays.directions[samples.ray_ids()], x=samples.positions[rows]),
        samples.distances[rows],
        samples.deltas[rows],
        samples.offsets,
        background.expand(count, 3).contiguous(),
        activation=field.density_activation,
        threshold=march.stop,
    )
    return RayColors(out.rgb, out.alpha, out.median_depth, samples.marched)


@torch.no_grad()
def render(
    model: Model,
    cameras: Cameras,
    *,
    background: str | Tensor | None = None,
    stop: float = RENDER_STOP,
) -> Frame:
    """Render one camera.

    Args:
        cameras: exactly one, scene frame.
        background: "white", "black", or a (3,) colour in [0, 1]; the model's own by default.
        stop: transmittance at which rays end.

    Raises:
        ShapeError: not exactly one camera.
    """
    if len(cameras) != 1:
        raise ShapeError(f"render takes one camera; got {len(cameras)}. Index them: cameras[i : i + 1]")
    device = model.occupancy.bits.device
    if background is None:
        background = model.background
    behind = torch.full((3,), BACKGROUNDS[background]) if isinstance(background, str) else background
    behind = behind.to(device=device, dtype=torch.float32)
    march = replace(model.march, stop=stop)
    height, width = int(cameras.height[0]), int(cameras.width[0])
    rays = cameras.to(device).image_rays(0, radii=model.representation.integrates)
    parts = []
    begin, size = 0, CHUNK // 16  # the first chunk shows how many samples a ray takes
    while begin < height * width:
        chunk = rays.rows(slice(begin, begin + size))
        parts.append(render_rays(model.representation, model.occupancy, chunk, march, behind))
        begin += size
        size = min(CHUNK, max(256, size * CHUNK_SAMPLES // max(1, parts[-1].samples)))
    rgb = torch.cat([p.rgb for p in parts]).clamp(0, 1).reshape(height, width, 3)
    alpha = torch.cat([p.alpha for p in parts]).reshape(height, width)
    depth = torch.cat([p.depth for p in parts]).reshape(height, width)
    return Frame(rgb, alpha, depth, depth_normals(rays, depth))


def depth_normals(rays: Rays, depth: Tensor) -> Tensor:
    """Unit normals (H, W, 3) of the surface given by distances (H, W) along H*W rays, by central differences.

    Facing the camera; zero where the depth, or that of a neighbour, is not finite.
    """
    height, width = depth.shape
    points = rays.origins + rays.directions * depth.reshape(-1, 1)
    grid = points.reshape(1, height, width, 3).permute(0, 3, 1, 2)
    padded = F.pad(grid, (1, 1, 1, 1), mode="replicate")[0].permute(1, 2, 0)
    across = padded[1:-1, 2:] - padded[1:-1, :-2]
    down = padded[2:, 1:-1] - padded[:-2, 1:-1]
    normal = torch.linalg.cross(down, across, dim=-1)
    length = normal.norm(dim=-1, keepdim=True)
    normal = torch.where(torch.isfinite(length) & (length > 0), normal / length, torch.zeros_like(normal))
    away = (normal * rays.directions.reshape(height, width, 3)).sum(-1, keepdim=True) > 0
    return torch.where(away, -normal, normal)
