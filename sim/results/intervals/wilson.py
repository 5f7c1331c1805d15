"""The interval of a share of independent requests that holds near 0 and 1 too."""

from __future__ import annotations

import math

NORMAL = 1.959964
"""97.5 % quantile of the normal distribution."""


def wilson(value: float, count: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share seen in so many independent requests."""
    square = NORMAL**2 / count
    center = (value + square / 2) / (1 + square)
    half = math.sqrt(square * (value * (1 - value) + square / 4)) / (1 + square)
    # Rounding must not leave the value outside: at 0 and at 1 it is an end.
    return max(0.0, min(value, center - half)), min(1.0, max(value, center + half))
