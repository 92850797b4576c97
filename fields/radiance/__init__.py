"""Assembled radiance fields, one architecture a file, and the table that names them."""

from collections.abc import Callable

from .encoded import EncodedField as EncodedField
from .encoded import EncodedFieldConfig as EncodedFieldConfig
from .hash import HashField as HashField
from .hash import HashFieldConfig as HashFieldConfig
from .tensor import TensorField as TensorField
from .tensor import TensorFieldConfig as TensorFieldConfig

FIELDS: dict[str, tuple[Callable[..., EncodedField], type[EncodedFieldConfig]]] = {
    "hash": (HashField, HashFieldConfig),
    "tensor": (TensorField, TensorFieldConfig),
}
"""Name on the command line and in files -> (class, config class)."""
