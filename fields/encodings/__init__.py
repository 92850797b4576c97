"""Maps from points and directions to features."""

from ..ops.factored_encode import FactoredGridSpec as FactoredGridSpec
from ..ops.hash_encode import HashGridSpec as HashGridSpec
from .factored_grid import FactoredGridEncoding as FactoredGridEncoding
from .frequency import FrequencyEncoding as FrequencyEncoding
from .hash_grid import HashGridEncoding as HashGridEncoding
from .spherical_harmonics import SphericalHarmonicsEncoding as SphericalHarmonicsEncoding
