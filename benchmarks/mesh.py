"""How many queries of a triangle mesh are answered a second, and does their cost grow as the logarithm of its size?

Points near the surface (a normal step of 1 % of the size of the mesh from a point drawn by area) and spread over its
box; rays from a sphere round the mesh to points on it. One thread and two. Gates first: fifty of each query against
brute force in float64. Then the same over balls of growing numbers of triangles.

    python benchmarks/mesh.py [MESH]        # PLY, OBJ, STL, OFF, GLB; without one, a rough ball of 327,680 triangles

Prints one JSON object. Exits with 3 when other work runs (see `quiet.py`), with 1 when a gate is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from machine import facts
from quiet import Watch, accept, demand_quiet
from torch import Tensor

from polyfield.fields.formats import read_mesh
from polyfield.fields.geometry import Mesh, make_icosphere, sample_surface
from polyfield.fields.ops.mesh_bvh import (
    MeshBvh,
    build_bvh,
    closest_points,
    closest_points_reference,
    ray_hits,
    ray_hits_reference,
    signed_distances,
    winding_numbers,
    winding_numbers_reference,
)

GATE = 1e-5
"""Of distances, over the size of the mesh."""
WINDING_GATE = 0.1
"""Far from the 0.5 between inside and outside."""
CHECKED = 50
"""Of each query; brute force takes 0.1 s for each against 300,000 triangles."""
GROWTH = (4, 5, 6, 7, 8)
"""Subdivisions: 5,120 to 1,310,720 triangles."""

Queries = dict[str, Callable[[], Any]]


def make_ball(subdivisions: int) -> Mesh:
    """20 * 4^subdivisions triangles. Rough: about the middle of a sphere all triangles are equally near, which no tree
    can help."""
    ball = make_icosphere(subdivisions)
    x, y, z = ball.vertices.unbind(1)
    rough = 1 + 0.1 * (7 * x + 1).sin() * (8 * y + 2).sin() * (9 * z + 3).sin() + 0.3 * x * y
    return Mesh((ball.vertices * rough[:, None]).float(), ball.triangles)


def make_inputs(mesh: Mesh, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points near the surface and in the box, origins and directions of rays; float32."""
    generator = torch.Generator().manual_seed(0)
    lower, upper = mesh.vertices.amin(0), mesh.vertices.amax(0)
    size = float((upper - lower).max())
    drawn = sample_surface(mesh, n, generator)
    near = drawn.points + torch.randn(n, 1, generator=generator) * (0.01 * size) * drawn.normals
    box = lower + torch.rand(n, 3, generator=generator) * (upper - lower)
    around = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1)
    origins = (lower + upper) / 2 + 2 * size * around
    return near, box, origins, sample_surface(mesh, n, generator).points - origins


def make_queries(bvh: MeshBvh, mesh: Mesh, n: int) -> Queries:
    near, box, origins, directions = make_inputs(mesh, n)
    return {
        "closest point, near the surface": lambda: closest_points(bvh, near),
        "closest point, in the box": lambda: closest_points(bvh, box),
        "winding number, near the surface": lambda: winding_numbers(bvh, near),
        "winding number, in the box": lambda: winding_numbers(bvh, box),
        "signed distance, near the surface": lambda: signed_distances(bvh, near),
        "ray": lambda: ray_hits(bvh, origins, directions),
    }


def measure(queries: Queries, n: int, rounds: int) -> dict[str, float]:
    """Million queries a second; medians."""
    seconds: dict[str, list[float]] = {name: [] for name in queries}
    for turn in range(rounds + 1):
        for name, query in queries.items():
            start = time.perf_counter()
            query()
            if turn:  # the first touches pages and caches
                seconds[name].append(time.perf_counter() - start)
    return {name: round(n / statistics.median(times) / 1e6, 3) for name, times in seconds.items()}


def errors(bvh: MeshBvh, mesh: Mesh) -> dict[str, float]:
    """The largest error of each query, lengths over the size of the mesh."""
    size = float((mesh.vertices.amax(0) - mesh.vertices.amin(0)).max())
    exact = build_bvh(mesh.vertices.double(), mesh.triangles)
    near, _, origins, directions = (x[:CHECKED] for x in make_inputs(mesh, CHECKED))
    near64, origins64, directions64 = near.double(), origins.double(), directions.double()
    distance = closest_points_reference(exact, near64).distance
    winding = winding_numbers_reference(exact, near64)
    found, expected = ray_hits(bvh, origins, directions), ray_hits_reference(exact, origins64, directions64)
    length = directions64.norm(dim=1)
    off = ((found.distance.double() - expected.distance) * length).nan_to_num(math.inf, math.inf, math.inf).abs()
    return {
        "distance": float((closest_points(bvh, near).distance.double() - distance).abs().max()) / size,
        "winding": float((winding_numbers(bvh, near).double() - winding).abs().max()),
        "ray": float(off.max()) / size,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mesh", nargs="?", help="a mesh file; default: a rough ball")
    parser.add_argument("--queries", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--force", action="store_true", help="run although the machine is not quiet; the result says so"
    )
    options = parser.parse_args()
    demand_quiet(options.force)
    mesh = read_mesh(options.mesh) if options.mesh else make_ball(7)
    start = time.perf_counter()
    bvh = build_bvh(mesh.vertices, mesh.triangles)
    build = time.perf_counter() - start
    wrong = errors(bvh, mesh)
    report: dict[str, Any] = {"machine": facts(), "mesh": options.mesh or "rough ball", "errors": wrong}
    report |= {"triangles": mesh.triangles.shape[0], "build seconds": round(build, 3)}
    if max(wrong["distance"], wrong["ray"]) > GATE or wrong["winding"] > WINDING_GATE:
        print(json.dumps(report, indent=2))
        return 1
    with Watch() as watch:
        queries = make_queries(bvh, mesh, options.queries)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            report[f"million queries/s, {threads} thread(s)"] = measure(queries, options.queries, options.rounds)
        table = []
        for k in GROWTH:
            grown = make_ball(k)
            tree = build_bvh(grown.vertices, grown.triangles)
            rates = measure(make_queries(tree, grown, options.queries), options.queries, options.rounds)
            cost = {name: round(1 / rate, 3) for name, rate in rates.items()}
            table.append({"triangles": grown.triangles.shape[0], "microseconds a query": cost})
    report |= {"growth, 2 threads": table, "quiet": accept(watch, options.force)}
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
