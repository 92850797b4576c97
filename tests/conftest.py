"""Fuzzing draws the same examples in every run, so that a result can be repeated anywhere.

`pytest --hypothesis-profile=explore` draws new ones: for looking for faults.
"""

from hypothesis import settings

settings.register_profile("repeat", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("repeat")
