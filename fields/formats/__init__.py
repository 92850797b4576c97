"""Model files and exchange formats. Files are data: reading one never runs code."""

from .atomic import atomic_write as atomic_write
from .atomic import is_leftover as is_leftover
from .atomic import remove_leftovers as remove_leftovers
from .atomic import write_json as write_json
from .mesh_file import MESH_FORMATS as MESH_FORMATS
from .mesh_file import read_mesh as read_mesh
from .mesh_file import write_mesh as write_mesh
from .model_file import FORMAT_VERSION as FORMAT_VERSION
from .model_file import read_tensors as read_tensors
from .model_file import write_tensors as write_tensors
