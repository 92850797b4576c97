"""Assembled radiance fields, one architecture a file, and the table that names them."""

from collections.abc import Callable

from ..base import RadianceField
from .cam import CamField as CamField
from .cam import CamFieldConfig as CamFieldConfig
from .encoded import EncodedField as EncodedField
from .encoded import EncodedFieldConfig as EncodedFieldConfig
from .grid import GridField as GridField
from .grid import GridFieldConfig as GridFieldConfig
from .hash import HashField as HashField
from .hash import HashFieldConfig as HashFieldConfig
from .mlp import MlpField as MlpField
from .mlp import MlpFieldConfig as MlpFieldConfig
from .planes import PlanesField as PlanesField
from .planes import PlanesFieldConfig as PlanesFieldConfig
from .rbf import RbfField as RbfField
from .rbf import RbfFieldConfig as RbfFieldConfig
from .tensor import TensorField as TensorField
from .tensor import TensorFieldConfig as TensorFieldConfig

FieldConfig = EncodedFieldConfig | GridFieldConfig
"""What a field can be made of."""
FIELDS: dict[str, tuple[Callable[..., RadianceField], type[FieldConfig]]] = {
    "hash": (HashField, HashFieldConfig),
    "tensor": (TensorField, TensorFieldConfig),
    "planes": (PlanesField, PlanesFieldConfig),
    "rbf": (RbfField, RbfFieldConfig),
    "grid": (GridField, GridFieldConfig),
    "mlp": (MlpField, MlpFieldConfig),
    "cam": (CamField, CamFieldConfig),
}
"""Name on the command line and in files -> (class, config class)."""
