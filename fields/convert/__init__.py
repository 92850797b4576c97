"""Any field into any other: distillation, in which the teacher answers at the student's own samples (PVD, PVD-AL)."""

from .active import ActiveRays as ActiveRays
from .active import Level as Level
from .active import check_levels as check_levels
from .edits import Box as Box
from .edits import Change as Change
from .edits import Edit as Edit
from .edits import Erase as Erase
from .edits import Move as Move
from .edits import Recolour as Recolour
from .edits import Sphere as Sphere
from .edits import apply_edit as apply_edit
from .edits import follow_edit as follow_edit
from .head import head_for as head_for
from .head import learn_head as learn_head
from .shortcuts import SHORTCUT_RATES as SHORTCUT_RATES
from .shortcuts import SHORTCUTS as SHORTCUTS
from .shortcuts import finer as finer
from .task import DistillTask as DistillTask
from .task import DistillWeights as DistillWeights
from .task import inherit as inherit
from .teacher import Teacher as Teacher
from .teacher import TeacherRays as TeacherRays
from .views import orbit_cameras as orbit_cameras
from .views import views_between as views_between
