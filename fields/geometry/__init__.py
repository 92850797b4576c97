"""Cameras, rays, similarity transforms, bounds and contractions: data and maths, no files."""

from .bounds import contains as contains
from .bounds import frustum_bounds as frustum_bounds
from .bounds import points_bounds as points_bounds
from .bounds import scene_bounds as scene_bounds
from .bounds import union_bounds as union_bounds
from .cameras import Cameras as Cameras
from .cameras import Projected as Projected
from .cameras import Rays as Rays
from .contraction import CONTRACTIONS as CONTRACTIONS
from .contraction import UNCONTRACTIONS as UNCONTRACTIONS
from .contraction import to_unit_cube as to_unit_cube
from .normalisation import CaptureKind as CaptureKind
from .normalisation import Normalisation as Normalisation
from .normalisation import check_poses as check_poses
from .normalisation import normalise as normalise
from .poses import LlffPoses as LlffPoses
from .poses import from_llff as from_llff
from .poses import from_opengl as from_opengl
from .poses import look_at as look_at
from .poses import refine as refine
from .projection import CameraModel as CameraModel
from .similarity import Similarity as Similarity
