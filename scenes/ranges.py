"""Is a number that a user gave within its range? ConfigError says the range."""

from __future__ import annotations

from ..fields.errors import ConfigError

MOST_SEED = 2**31 - 1
"""Seeds are joined with the number of a step in 63 bits."""
MOST_STEPS = 10**9
SAMPLES = 1 << 10, 1 << 24
"""Of a step."""


def check_range(option: str, value: float | None, low: float, high: float) -> None:
    """None is no number and always fits; NaN never does."""
    if value is not None and not low <= value <= high:
        raise ConfigError(f"{option} must be {low} to {high}; got {value}")
