"""Representation in, pixels out."""

from .frame import BACKGROUNDS as BACKGROUNDS
from .frame import Frame as Frame
from .frame import render as render
from .frame import render_rays as render_rays
from .march import MarchConfig as MarchConfig
from .march import PackedSamples as PackedSamples
from .march import march_visible as march_visible
from .occupancy import OccupancyGrid as OccupancyGrid
