"""Assembled radiance fields, one architecture a file, and the table that names them."""

from .hash import HashField as HashField
from .hash import HashFieldConfig as HashFieldConfig

FIELDS = {"hash": (HashField, HashFieldConfig)}
"""Name on the command line and in files -> (class, config class)."""
