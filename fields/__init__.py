"""What a scene is made of: fields, the operators under them, rendering and training."""

from .base import Geometry as Geometry
from .base import RadianceField as RadianceField
from .errors import ConfigError as ConfigError
from .errors import FormatError as FormatError
from .errors import NativeError as NativeError
from .errors import ShapeError as ShapeError
from .geometry import Cameras as Cameras
from .geometry import Rays as Rays
from .geometry import Similarity as Similarity
from .model import Model as Model
from .radiance import FIELDS as FIELDS
from .radiance import HashField as HashField
from .radiance import HashFieldConfig as HashFieldConfig
from .render import Frame as Frame
from .render import MarchConfig as MarchConfig
from .render import OccupancyGrid as OccupancyGrid
from .render import render_rays as render_rays
