"""What to train with, by capture kind and model kind."""

from collections.abc import Callable

from .boxes import grid_preset as grid_preset
from .boxes import planes_preset as planes_preset
from .boxes import tensor_preset as tensor_preset
from .boxes import with_form as with_form
from .capacity import LADDERS as LADDERS
from .capacity import rungs as rungs
from .capacity import with_settings as with_settings
from .frequency import FINEST as FINEST
from .frequency import Frequency as Frequency
from .frequency import frequency_of as frequency_of
from .frequency import with_frequency as with_frequency
from .hash import hash_preset as hash_preset
from .hash import rbf_preset as rbf_preset
from .mlp import NETWORKS as NETWORKS
from .mlp import VIEW_CELLS as VIEW_CELLS
from .mlp import cam_preset as cam_preset
from .mlp import mlp_preset as mlp_preset
from .preset import Preset as Preset
from .preset import Surroundings as Surroundings
from .preset import surroundings_of as surroundings_of

PRESETS: dict[str, Callable[[Surroundings], Preset]] = {
    "hash": hash_preset,
    "tensor": tensor_preset,
    "planes": planes_preset,
    "rbf": rbf_preset,
    "grid": grid_preset,
    "mlp": mlp_preset,
    "cam": cam_preset,
}
"""Model kind -> what to train it with, by looking at the scene."""
