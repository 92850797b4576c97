"""Images, films, volumes and surfaces as fields: points in, values out."""

from .kinds import KINDS as KINDS
from .kinds import build as build
from .kinds import config_for as config_for
from .model import ImplicitModel as ImplicitModel
from .signal import GridSignal as GridSignal
from .surface import MeshSignal as MeshSignal
from .surface import make_mesh_signal as make_mesh_signal
