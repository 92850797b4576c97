"""Maps of features and points to values: fully connected networks."""

from .coordinate import CoordinateNetwork as CoordinateNetwork
from .coordinate import CoordinateNetworkConfig as CoordinateNetworkConfig
from .mlp import MLP as MLP
from .rbf import RbfLayer as RbfLayer
from .view import ViewNetwork as ViewNetwork
