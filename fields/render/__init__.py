"""Representation in, pixels out."""

from .march import MarchConfig as MarchConfig
from .march import PackedSamples as PackedSamples
from .march import march_visible as march_visible
from .occupancy import OccupancyGrid as OccupancyGrid
from .render import BACKGROUNDS as BACKGROUNDS
from .render import Frame as Frame
from .render import render as render
from .render import render_rays as render_rays
