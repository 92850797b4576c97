"""Where is a field of values on a lattice zero, as a mesh, and how far are two meshes apart?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import ShapeError
from ..ops.mesh_bvh import build_bvh, closest_points
from .meshes import Mesh, sample_surface


def zero_surface(values: Tensor, *, first: float, step: float) -> Mesh | None:
    """The surface between negative values, inside, and others, by marching cubes (Lorensen and Cline 1987, in the form
    of Lewiner et al. 2003).

    Args:
        values: (Z, Y, X) of at least 2 per axis, finite.
        first: coordinate of the first value along every axis.
        step: between neighbours.

    Returns:
        A mesh that faces outwards, float32, on the CPU; None where no value is negative, or none positive.

    Raises:
        ShapeError: `values` is not as above.
    """
    if values.dim() != 3 or min(values.shape) < 2:
        raise ShapeError(f"values must be (Z, Y, X) of at least 2 per axis; got {tuple(values.shape)}")
    from skimage.measure import marching_cubes

    field = values.detach().cpu().numpy()
    if not (field.min() < 0 < field.max()):
        return None
    vertices, triangles, _, _ = marching_cubes(field, 0.0, gradient_direction="ascent")
    xyz = torch.from_numpy(np.ascontiguousarray(vertices[:, ::-1])).double() * step + first
    mesh = Mesh(xyz.float(), torch.from_numpy(np.ascontiguousarray(triangles)).long())
    return mesh if bool(mesh.area_vectors().any()) else None


def chamfer_distance(first: Mesh, second: Mesh, *, samples: int = 1 << 16, seed: int = 0) -> float:
    """Mean distance from one mesh to the other, averaged over both ways, in their units.

    Args:
        first, second: float32 and of some area.
        samples: points drawn on each, uniformly by area.

    Raises:
        ConfigError: a mesh has no area.
    """
    generator = torch.Generator().manual_seed(seed)
    means = []
    for source, target in ((first, second), (second, first)):
        points = sample_surface(source, samples, generator).points
        means.append(float(closest_points(build_bvh(target.vertices, target.triangles), points).distance.mean()))
    return sum(means) / 2
