"""Arrival processes: gaps between requests over all adapters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.spec.scenario import Arrivals

Floats = NDArray[np.float64]


def gaps(law: Arrivals, rng: np.random.Generator, count: int) -> Floats:
    """Return ``count`` gaps in seconds; their mean is ``1 / law.rate``."""
    if law.process == "poisson":
        return rng.standard_exponential(count) / law.rate
    shape = 1 / law.cv**2  # a gamma law of this shape has the coefficient of variation cv
    return rng.standard_gamma(shape, count) / (shape * law.rate)
