"""What to train with, by capture kind and model kind."""

from .boxes import grid_preset as grid_preset
from .boxes import planes_preset as planes_preset
from .boxes import tensor_preset as tensor_preset
from .frequency import FINEST as FINEST
from .frequency import Frequency as Frequency
from .frequency import frequency_of as frequency_of
from .frequency import with_frequency as with_frequency
from .hash import hash_preset as hash_preset
from .hash import rbf_preset as rbf_preset
from .mlp import NETWORKS as NETWORKS
from .mlp import cam_preset as cam_preset
from .mlp import mlp_preset as mlp_preset
from .preset import Preset as Preset
