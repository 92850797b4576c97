"""What stands in the built-in scene: its solids, their textures and materials.

A small floating island: a lawn disc with a checkered pattern on a cliff, a lighthouse, a house, a pond, trees and a
glossy balloon tethered by a rod thinner than two pixels. It fills [-1, 1]^3, z up. Textures are functions of the point;
their finest periods (bricks, shingles, lantern bars, the basket) are `FINEST_PERIOD` long, four pixels in the standard
views. Colours below are sRGB hex; materials are given in linear light.

Texture edges are ramps instead of steps and every solid has one palette: sharp enough that blurred or wrong geometry
costs decibels, smooth enough that a 16-level hash grid can fit it within a minute.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .demo_shapes import Ellipsoid, Frustum, Shape, box, gable, rod

FINEST_PERIOD = 0.025
"""Scene units; at the standard distance of 3.2 and a focal length of 512 pixels this is 4 pixels."""
ROD_RADIUS = 0.0042
"""Scene units; the tether is 1.3 pixels wide in the middle of a standard view and under 2 in the nearest."""
LAWN = -0.30
"""Height of the lawn."""

BALLOON, TETHER, POND = "balloon", "tether", "pond"


class Material(NamedTuple):
    """What the surface is made of at N points."""

    albedo: Tensor
    """(3, N) linear, [0, 1]."""
    roughness: Tensor
    """(N,) GGX roughness in (0, 1]; alpha is its square."""
    metallic: Tensor
    """(N,) 0 for dielectrics, 1 for metals."""


@dataclass(frozen=True, kw_only=True)
class Solid:
    """One solid and the texture on it."""

    name: str
    shape: Shape
    paint: Callable[[Tensor, Tensor], Tensor]
    """(points (3, N), normals (3, N)) -> albedo (3, N), linear."""
    roughness: float = 0.9
    metallic: float = 0.0

    def material(self, points: Tensor, normals: Tensor) -> Material:
        """Material at surface points."""
        count = points.shape[1]
        albedo = self.paint(points, normals).expand(3, count)
        return Material(albedo, points.new_full((count,), self.roughness), points.new_full((count,), self.metallic))


def rgb(code: str) -> Tensor:
    """(3, 1) linear colour of an sRGB hex code such as 'd8433b'."""
    encoded = torch.tensor([int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)], dtype=torch.float32)
    return torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4).reshape(3, 1)


def mix(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """a where weight is 0, b where it is 1."""
    return a + (b - a) * weight


def band(x: Tensor, duty: float = 0.5, edge: float = 0.12) -> Tensor:
    """Periodic bar of period 1: 1 for |x - 0.5| < duty/2 (modulo 1), 0 elsewhere, ramps `edge` wide."""
    return ((0.5 * duty - (x - x.floor() - 0.5).abs()) / edge + 0.5).clamp(0, 1)


def cell_noise(i: Tensor, j: Tensor) -> Tensor:
    """[0, 1) pseudo-random number of an integer cell, exact on every machine."""
    n = (i.to(torch.int32) * 374761393) ^ (j.to(torch.int32) * 668265263)
    n = (n ^ (n >> 13)) * 1274126177
    return ((n ^ (n >> 16)) & 0xFFFF).float() / 65536.0


def _angle(points: Tensor, x: float, y: float) -> Tensor:
    """Angle about the vertical through (x, y), in turns [-0.5, 0.5]."""
    return torch.atan2(points[1] - y, points[0] - x) / (2 * math.pi)


def _plain(code: str) -> Callable[[Tensor, Tensor], Tensor]:
    colour = rgb(code)
    return lambda points, normals: colour


# --- the lawn and the cliff -------------------------------------------------------------------------------------------

GRASS_LIGHT, GRASS_DARK, SOIL = rgb("a9cf6b"), rgb("6fa84f"), rgb("6b4a32")
SAND, STONE_LIGHT, STONE_DARK = rgb("ead9a8"), rgb("d9d2c3"), rgb("8f8a80")
POND_AT, POND_RADIUS = (0.16, -0.42), 0.24
TILE = 0.115
"""Side of a lawn square: 18 pixels in the standard views."""


def _paint_pond(p: Tensor, n: Tensor) -> Tensor:
    """Deep in the middle, pale at the shore, with wavering rings of two blues."""
    x, y = p[0] - POND_AT[0], p[1] - POND_AT[1]
    rho = (x * x + y * y).sqrt() / POND_RADIUS
    waver = 0.10 * torch.sin(5 * torch.atan2(y, x)) * rho
    depth = mix(rgb("1f78a8"), rgb("5cc2d6"), (rho * rho).clamp(0, 1))
    return mix(depth, rgb("c5eef2"), 0.55 * band(4.0 * (rho + waver), 0.16, 0.14))


def _paint_lawn(p: Tensor, n: Tensor) -> Tensor:
    checks = band(p[0] / (2 * TILE), edge=0.06) - band(p[1] / (2 * TILE), edge=0.06)
    grass = mix(GRASS_DARK, GRASS_LIGHT, checks.abs())
    # A shore of sand round the pond.
    shore = ((p[0] - POND_AT[0]) ** 2 + (p[1] - POND_AT[1]) ** 2).sqrt() - POND_RADIUS
    grass = mix(grass, SAND, ((0.055 - shore) / 0.012).clamp(0, 1))
    grass = mix(grass, _path_stones(p), _on_path(p))
    top = mix(SOIL, grass, ((p[2] - (LAWN - 0.03)) / 0.012).clamp(0, 1))
    return torch.where(n[2] > 0.5, grass, top)


def _on_path(p: Tensor) -> Tensor:
    """1 on the winding path from the house to the lighthouse and on to the rim."""
    along = (p[0] + 0.80) / 1.25
    centre = -0.02 + 0.10 * torch.sin(6.0 * p[0] + 0.6)
    inside = ((0.062 - (p[1] - centre).abs()) / 0.012).clamp(0, 1)
    return inside * ((along > 0) & (along < 1))


def _path_stones(p: Tensor) -> Tensor:
    u, v = p[0] / 0.042, p[1] / 0.042
    row = v.floor()
    u = u + 0.5 * (row.to(torch.int32) & 1)
    tone = cell_noise(u.floor(), row)
    stone = mix(STONE_DARK, STONE_LIGHT, 0.35 + 0.65 * tone)
    return mix(SOIL, stone, band(u, 0.8, 0.2) * band(v, 0.8, 0.2))


CLIFF = [rgb(c) for c in ("8a5a3c", "b98559", "6e4630", "cfa274")]


def _paint_cliff(p: Tensor, n: Tensor) -> Tensor:
    turn = _angle(p, 0.0, 0.0) * (2 * math.pi)
    level = p[2] * 9.0 + 0.35 * torch.sin(3 * turn) + 0.18 * torch.sin(7 * turn + 1.0)
    colour = mix(CLIFF[0], CLIFF[1], band(level, 0.5, 0.15))
    colour = mix(colour, CLIFF[2], band(level * 0.5 + 0.2, 0.25, 0.08))
    colour = mix(colour, CLIFF[3], 0.8 * band(level * 2.3 + 0.3 * torch.sin(5 * turn), 0.22, 0.15))
    tone = cell_noise((turn * 7.0).floor(), (level * 2.0).floor())
    return colour * (0.82 + 0.3 * tone)


# --- the lighthouse ---------------------------------------------------------------------------------------------------

LIGHTHOUSE_AT = (-0.42, 0.34)
RED, CREAM, NAVY, GLASS, GLOW = rgb("d4382f"), rgb("f7f0e1"), rgb("2b3a55"), rgb("35526b"), rgb("ffd35a")


def _paint_tower(p: Tensor, n: Tensor) -> Tensor:
    turn = _angle(p, *LIGHTHOUSE_AT)
    colour = mix(CREAM, RED, band(p[2] * 4.2 + turn, edge=0.05))
    window = band(turn * 4 + 0.35, 0.22, 0.04) * band((p[2] - LAWN) / 0.19 + 0.05, 0.36, 0.06)
    return mix(colour, NAVY, window)


def _paint_lantern(p: Tensor, n: Tensor) -> Tensor:
    # 22 bars round a circumference of 0.553: FINEST_PERIOD.
    return mix(GLOW, NAVY, band(_angle(p, *LIGHTHOUSE_AT) * 22, 0.36, 0.2))


def _paint_lighthouse_roof(p: Tensor, n: Tensor) -> Tensor:
    return mix(RED, rgb("9e2a2b"), band(_angle(p, *LIGHTHOUSE_AT) * 12))


def _lighthouse() -> list[Solid]:
    x, y = LIGHTHOUSE_AT
    return [
        Solid(name="plinth", shape=Frustum((x, y, LAWN), (x, y, LAWN + 0.05), 0.24, 0.21), paint=_plain("c9c0ae")),
        Solid(name="tower", shape=Frustum((x, y, LAWN + 0.05), (x, y, 0.38), 0.175, 0.105), paint=_paint_tower),
        Solid(name="gallery", shape=Frustum((x, y, 0.38), (x, y, 0.415), 0.155, 0.155), paint=_plain("2b3a55")),
        Solid(name="lantern", shape=rod((x, y, 0.415), (x, y, 0.56), 0.088), paint=_paint_lantern),
        Solid(name="cap", shape=Frustum((x, y, 0.56), (x, y, 0.73), 0.135, 0.0), paint=_paint_lighthouse_roof),
        Solid(name="mast", shape=rod((x, y, 0.70), (x, y, 0.92), ROD_RADIUS), paint=_plain("2b3a55")),
        Solid(name="ball", shape=Ellipsoid((x, y, 0.92), (0.022, 0.022, 0.022)), paint=_plain("e8b23a")),
    ]


# --- the house --------------------------------------------------------------------------------------------------------

HOUSE_AT, HOUSE_TURN, HOUSE_HALF = (0.30, 0.42), -24.0, (0.245, 0.17, 0.13)
BRICK, MORTAR = rgb("c8643f"), rgb("ecdcc5")
SHINGLE, SHINGLE_DARK = rgb("5b7f99"), rgb("28415a")


def _house_frame(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates along the ridge, across it, and above the lawn."""
    c, s = math.cos(math.radians(HOUSE_TURN)), math.sin(math.radians(HOUSE_TURN))
    x, y = p[0] - HOUSE_AT[0], p[1] - HOUSE_AT[1]
    return c * x + s * y, c * y - s * x, p[2] - LAWN


def _bricks(u: Tensor, v: Tensor) -> Tensor:
    v = v / FINEST_PERIOD
    row = v.floor()
    u = u / (2.2 * FINEST_PERIOD) + 0.5 * (row.to(torch.int32) & 1)
    tone = cell_noise(u.floor(), row)
    return mix(MORTAR, BRICK * (0.72 + 0.45 * tone), band(u, 0.84, 0.14) * band(v, 0.72, 0.3))


def _paint_house(p: Tensor, n: Tensor) -> Tensor:
    u, w, h = _house_frame(p)
    c, s = math.cos(math.radians(HOUSE_TURN)), math.sin(math.radians(HOUSE_TURN))
    along = (n[0] * c + n[1] * s).abs() < 0.5  # the long walls
    x = torch.where(along, u, w)
    colour = _bricks(x + 0.5, h)
    x = x.abs()
    pane = _rectangle(torch.where(along, (x - 0.13).abs(), x), (h - 0.14).abs(), 0.042, 0.05)
    frame = _rectangle(torch.where(along, (x - 0.13).abs(), x), (h - 0.14).abs(), 0.055, 0.063)
    colour = mix(mix(colour, CREAM, frame), GLASS, pane)
    front = along & (w < 0)
    door = _rectangle(x, (h - 0.08).abs(), 0.045, 0.085) * front
    return mix(colour, rgb("1f6f64"), door)


def _rectangle(x: Tensor, y: Tensor, half_x: float, half_y: float) -> Tensor:
    return ((half_x - x) / 0.006).clamp(0, 1) * ((half_y - y) / 0.006).clamp(0, 1)


def _paint_roof(p: Tensor, n: Tensor) -> Tensor:
    u, w, h = _house_frame(p)
    v = w.abs() * 1.35 / (1.25 * FINEST_PERIOD)
    row = v.floor()
    u = u / 0.045 + 0.5 * (row.to(torch.int32) & 1)
    shade = (1 - (v - row)) * 0.75 * band(u, 0.9, 0.12)
    slope = mix(SHINGLE_DARK, SHINGLE * (0.85 + 0.35 * cell_noise(u.floor(), row)), 0.25 + shade)
    return torch.where(n[2] > 0.3, slope, mix(CREAM, rgb("d9b98c"), band(h / 0.05, 0.2, 0.1)))


def _house() -> list[Solid]:
    x, y = HOUSE_AT
    hx, hy, hz = HOUSE_HALF
    c, s = math.cos(math.radians(HOUSE_TURN)), math.sin(math.radians(HOUSE_TURN))
    chimney = (x + 0.13 * c - 0.08 * s, y + 0.13 * s + 0.08 * c)
    return [
        Solid(name="walls", shape=box((x, y, LAWN + hz), HOUSE_HALF, HOUSE_TURN), paint=_paint_house),
        Solid(
            name="roof",
            shape=gable((x, y, LAWN + 2 * hz + 0.10), (hx + 0.035, hy + 0.05, 0.10), HOUSE_TURN),
            paint=_paint_roof,
        ),
        Solid(
            name="chimney",
            shape=box((*chimney, 0.14), (0.035, 0.035, 0.11), HOUSE_TURN),
            paint=lambda p, n: _bricks(p[0] + p[1], p[2]),
        ),
    ]


# --- trees, balloon ---------------------------------------------------------------------------------------------------

LEAF_LIGHT, LEAF_DARK, BARK = rgb("4f9a5a"), rgb("1e5a43"), "7a5236"


def _fir(name: str, x: float, y: float, size: float) -> list[Solid]:
    def paint(p: Tensor, n: Tensor) -> Tensor:
        turn = _angle(p, x, y)
        tiers = band((p[2] - LAWN) / (0.085 * size) + 0.25 * torch.sin(turn * 2 * math.pi * 7), 0.5, 0.3)
        return mix(LEAF_DARK, LEAF_LIGHT, tiers)

    return [
        Solid(
            name=f"{name} trunk",
            shape=rod((x, y, LAWN), (x, y, LAWN + 0.1 * size), 0.03 * size),
            paint=_plain(BARK),
        ),
        Solid(
            name=f"{name} skirt",
            shape=Frustum((x, y, LAWN + 0.08 * size), (x, y, LAWN + 0.34 * size), 0.15 * size, 0.05 * size),
            paint=paint,
        ),
        Solid(
            name=f"{name} top",
            shape=Frustum((x, y, LAWN + 0.26 * size), (x, y, LAWN + 0.62 * size), 0.115 * size, 0.0),
            paint=paint,
        ),
    ]


def _round_tree(name: str, x: float, y: float, size: float) -> list[Solid]:
    light, dark = rgb("f2a65a"), rgb("cf6a32")

    def paint(p: Tensor, n: Tensor) -> Tensor:
        leaves = band(p[0] / 0.075, edge=0.3) * band(p[1] / 0.075, edge=0.3)
        return mix(dark, light, (leaves + 0.4 * band(p[2] / 0.08, 0.3, 0.3)).clamp_max(1.0))

    h = LAWN + 0.30 * size
    return [
        Solid(name=f"{name} trunk", shape=rod((x, y, LAWN), (x, y, h), 0.028 * size), paint=_plain(BARK)),
        Solid(name=f"{name} crown", shape=Ellipsoid((x, y, h), (0.14 * size, 0.14 * size, 0.16 * size)), paint=paint),
    ]


BALLOON_AT, BALLOON_RADIUS = (0.40, -0.22, 0.66), 0.27
TEAL, CORAL = rgb("12807a"), rgb("ff6f59")


def _paint_balloon(p: Tensor, n: Tensor) -> Tensor:
    turn = _angle(p, BALLOON_AT[0], BALLOON_AT[1])
    height = (p[2] - BALLOON_AT[2]) / BALLOON_RADIUS
    gores = mix(CORAL, CREAM, band(turn * 8, edge=0.06))
    waist = ((0.20 - (height + 0.12 + 0.07 * torch.cos(turn * 16 * math.pi)).abs()) / 0.03).clamp(0, 1)
    return mix(gores, TEAL, waist)


def _paint_basket(p: Tensor, n: Tensor) -> Tensor:
    weave = band((p[0] + p[1]) / FINEST_PERIOD, edge=0.4) - band(p[2] / FINEST_PERIOD, edge=0.4)
    return mix(rgb("6b4423"), rgb("d9a866"), weave.abs())


def _balloon() -> list[Solid]:
    x, y, z = BALLOON_AT
    neck = z - 1.02 * BALLOON_RADIUS
    parts = [
        Solid(
            name=BALLOON,
            shape=Ellipsoid(BALLOON_AT, (BALLOON_RADIUS, BALLOON_RADIUS, 1.08 * BALLOON_RADIUS)),
            paint=_paint_balloon,
            roughness=0.28,
        ),
        Solid(
            name="collar",
            shape=Frustum((x, y, neck - 0.10), (x, y, neck + 0.06), 0.062, 0.145),
            paint=_plain("0e5f5b"),
        ),
        Solid(name="basket", shape=box((x, y, neck - 0.25), (0.058, 0.058, 0.045), 20.0), paint=_paint_basket),
        Solid(name=TETHER, shape=rod((x, y, LAWN), (x, y, neck - 0.29), ROD_RADIUS), paint=_plain("5a4632")),
    ]
    for k in range(4):
        turn = math.radians(20 + 45 + 90 * k)
        dx, dy = math.cos(turn), math.sin(turn)
        foot = (x + 0.075 * dx, y + 0.075 * dy, neck - 0.21)
        head = (x + 0.06 * dx, y + 0.06 * dy, neck - 0.09)
        parts.append(Solid(name=f"rope {k}", shape=rod(foot, head, ROD_RADIUS), paint=_plain("5a4632")))
    return parts


def build_world() -> list[Solid]:
    """Every solid of the scene; a solid's index is its object id in ground-truth buffers."""
    return [
        Solid(name="lawn", shape=Frustum((0, 0, LAWN - 0.06), (0, 0, LAWN), 0.93, 0.95), paint=_paint_lawn),
        Solid(name="cliff", shape=Frustum((0, 0, -0.66), (0, 0, LAWN - 0.06), 0.42, 0.88), paint=_paint_cliff),
        Solid(name="cliff tip", shape=Frustum((0, 0, -0.97), (0, 0, -0.66), 0.05, 0.42), paint=_paint_cliff),
        Solid(
            name=POND,
            shape=rod((*POND_AT, LAWN - 0.02), (*POND_AT, LAWN + 0.006), POND_RADIUS),
            paint=_paint_pond,
            roughness=0.4,
        ),
        *_lighthouse(),
        *_house(),
        *_fir("fir 1", -0.66, -0.24, 1.0),
        *_fir("fir 2", -0.42, -0.44, 0.8),
        *_fir("fir 3", 0.05, 0.74, 0.9),
        *_fir("fir 4", 0.73, 0.12, 0.75),
        *_round_tree("maple 1", -0.20, -0.70, 1.0),
        *_round_tree("maple 2", 0.68, -0.46, 0.8),
        *_balloon(),
    ]
