"""The same train step written well in plain torch: what users get without native kernels.

Forms of one model (hash grid with dense coarse levels, density and colour networks, compositing, MSE, fused Adam):

- `eager`: all levels in one table with int64 hashing, the way published pure-torch hash encodings are written; not
  compiled;
- `tuned`: one table a level (so that gradients stay small), int32 hashing with wrap-around, harmonics once a ray; run
  through `torch.compile`;
- `tuned` under bf16 autocast.

- `truth`: `eager` in float64, for the gates. Lattice positions are rounded to float32 as everybody else's are: at 2048
  steps that rounding alone moves a position by 6e-5 of a cell, which is no fault of anybody's gradients.

The tuned form is that of the prototype that this project was measured against first (587 ms a step there, on two Zen 5
cores); its inputs are the product's, its table sizes too. Samples are packed with the same number for every ray.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polyfield.fields.ops.hash_encode import PRIME_Y, PRIME_Z, HashLevel
from polyfield.fields.ops.radiance_step import RadianceBatch, RadianceParameters, RadianceSpec
from polyfield.fields.ops.spherical_harmonics import spherical_harmonics_reference

PRIMES_INT32 = (1, PRIME_Y - (1 << 32), PRIME_Z)


class TorchModel:
    """Parameters and loss of one form."""

    def __init__(self, start: RadianceParameters, spec: RadianceSpec, form: str) -> None:
        self.spec, self.form = spec, form
        self.levels = spec.grid.level_table()
        rows = [start.table[level.offset : level.offset + level.size] for level in self.levels]
        tables = rows if form == "tuned" else [start.table]
        self.tables = [table.clone().requires_grad_() for table in tables]
        self.density = _weights(start.density, spec.density.layer_shapes)
        self.color = _weights(start.color, spec.color.layer_shapes)

    def parameters(self) -> list[Tensor]:
        return [*self.tables, *self.density, *self.color]

    def gradients(self) -> RadianceParameters:
        """Gradients in the product's layout, after a backward pass."""

        def joined(tensors: list[Tensor]) -> Tensor:
            return torch.cat([t.grad.reshape(-1) for t in tensors if t.grad is not None])

        table = joined(self.tables).view(-1, self.spec.grid.channels)
        return RadianceParameters(table, joined(self.density), joined(self.color))

    def loss(self, batch: RadianceBatch) -> Tensor:
        x, rays = batch.positions, batch.directions.shape[0]
        encoded = self._encode_tuned(x) if self.form == "tuned" else self._encode_eager(x)
        head = _network(encoded, self.density)
        basis = spherical_harmonics_reference(batch.directions, self.spec.sh_bands)
        basis = basis[:, None].expand(rays, x.shape[0] // rays, -1).reshape(x.shape[0], -1)
        rgb = _network(torch.cat([head[:, 1:], basis], 1), self.color).sigmoid()
        raw = head[:, 0] if self.form == "truth" else head[:, 0].float()  # autocast leaves bf16 here
        optical = (raw.exp() * batch.deltas).view(rays, -1)
        before = optical.cumsum(1) - optical
        weights = torch.exp(-before) * (1 - torch.exp(-optical))
        image = (weights[..., None] * rgb.view(rays, -1, 3)).sum(1)
        image = image + (1 - weights.sum(1))[:, None] * batch.backgrounds
        return (image - batch.targets).square().mean()

    def _encode_tuned(self, x: Tensor) -> Tensor:
        features = []
        for level, table in zip(self.levels, self.tables, strict=True):
            index, weight = _corners_int32(x, level)
            features.append((table[index.long()] * weight[..., None]).sum(1))
        return torch.cat(features, 1)

    def _encode_eager(self, x: Tensor) -> Tensor:
        features = []
        for level in self.levels:
            position = x * level.scale + 0.5
            if self.form == "truth":
                position = position.float().double()
            low = position.floor().long()
            fraction = position - low
            total = torch.zeros((), dtype=x.dtype, device=x.device)
            for corner in range(8):
                bits = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2], device=x.device)
                c = low + bits
                if level.hashed:
                    row = (c[:, 0] ^ (c[:, 1] * PRIME_Y) ^ (c[:, 2] * PRIME_Z)) % level.size
                else:
                    row = c[:, 0] + level.resolution * (c[:, 1] + level.resolution * c[:, 2])
                weight = torch.where(bits.bool(), fraction, 1 - fraction).prod(1)
                total = total + weight[:, None] * self.tables[0][row + level.offset]
            features.append(total)
        return torch.cat(features, 1)


def make_step(model: TorchModel, batch: RadianceBatch, *, compiled: bool, bf16: bool) -> Callable[[], None]:
    """One train step: loss, backward, fused Adam. The first call compiles."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.99), eps=1e-15, fused=compiled)

    def loss(batch: RadianceBatch) -> Tensor:
        with torch.autocast(batch.positions.device.type, torch.bfloat16, enabled=bf16):
            return model.loss(batch)

    forward = torch.compile(loss) if compiled else loss

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        forward(batch).backward()
        optimiser.step()

    return step


def _weights(flat: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    parts = flat.split([out * size for out, size in shapes])
    return [part.reshape(shape).clone().requires_grad_() for part, shape in zip(parts, shapes, strict=True)]


def _network(x: Tensor, weights: list[Tensor]) -> Tensor:
    for weight in weights[:-1]:
        x = torch.nn.functional.linear(x, weight).relu()
    return torch.nn.functional.linear(x, weights[-1])


def _corners_int32(x: Tensor, level: HashLevel) -> tuple[Tensor, Tensor]:
    """(N, 8) rows and weights of the cell's corners; int32 throughout."""
    position = x * level.scale + 0.5
    low = position.floor()
    upper = position - low
    lower = 1 - upper
    c = low.to(torch.int32)
    steps = PRIMES_INT32 if level.hashed else (1, level.resolution, level.resolution**2)
    first = [c[:, 0], c[:, 1] * steps[1], c[:, 2] * steps[2]]
    axes = [(value, value + step) for value, step in zip(first, steps, strict=True)]
    rows, weights = [], []
    for corner in range(8):
        i, j, k = corner & 1, corner >> 1 & 1, corner >> 2
        if level.hashed:
            rows.append((axes[0][i] ^ axes[1][j] ^ axes[2][k]) & (level.size - 1))
        else:
            rows.append(axes[0][i] + axes[1][j] + axes[2][k])
        wx, wy, wz = (upper if bit else lower for bit in (i, j, k))
        weights.append(wx[:, 0] * wy[:, 1] * wz[:, 2])
    return torch.stack(rows, 1), torch.stack(weights, 1)
