"""What to train with, by capture kind and model kind."""

from .hash import Preset as Preset
from .hash import hash_preset as hash_preset
