"""Random packed samples, occupancy grids and rays: what the tests of the rendering operators have in common."""

import math

import torch
from torch import Tensor

from polyfield.fields.ops.occupancy import pack_bitfield

SIZES = (0, 1, 31, 32, 33, 1000)
STEP = math.sqrt(3) / 512


def generator(seed: int) -> torch.Generator:
    """On the default device."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def packed_samples(
    rays: int, dtype: torch.dtype = torch.float32, seed: int = 0, longest: int = 24
) -> dict[str, Tensor]:
    """Samples of rays of 0 to `longest` samples: density_raw, rgb, distances, deltas, offsets, background."""
    g = generator(seed)
    counts = torch.randint(0, longest + 1, (rays,), generator=g)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
    n = int(offsets[-1])
    deltas = torch.rand(n, generator=g, dtype=dtype) * 0.1 + 0.01
    ray = torch.repeat_interleave(torch.arange(rays), counts)
    ends = deltas.cumsum(0)
    before = torch.cat([deltas.new_zeros(1), ends])[offsets[:-1].long()]
    return {
        "density_raw": torch.randn(n, generator=g, dtype=dtype) * 2,
        "rgb": torch.rand(n, 3, generator=g, dtype=dtype),
        "distances": 0.5 + ends - deltas / 2 - before[ray],
        "deltas": deltas,
        "offsets": offsets,
        "background": torch.rand(rays, 3, generator=g, dtype=dtype),
    }


def random_grid(cascades: int, resolution: int, share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Bits and coarse mip of a grid with this share of occupied cells, a third of it left empty."""
    values = (torch.rand(cascades, *[resolution] * 3, generator=generator(seed)) < share).float()
    values[:, : resolution // 3] = 0
    return pack_bitfield(values, torch.tensor(0.5))


def random_rays(rays: int, reach: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rays from in and around [-reach, reach]^3 that mostly cross it."""
    g = generator(seed)
    origins = torch.randn(rays, 3, generator=g) * reach
    directions = torch.randn(rays, 3, generator=g) * 0.5 * reach - origins
    return origins, torch.nn.functional.normalize(directions, dim=1)


def relative_error(value: Tensor, expected: Tensor) -> float:
    if value.numel() == 0:
        return 0.0
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm().clamp(min=1e-12))
