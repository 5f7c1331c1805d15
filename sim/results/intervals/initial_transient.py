"""How long the start of a run lasts: empty queues and cold caches, which a longer warm-up would leave out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sim.results.intervals.effective_size import effective_size

Floats = NDArray[np.float64]

BATCH = 5
"""MSER-5 judges means of five."""
SHORT = 0.05
"""A start that takes up to this share of the measured requests hardly moves a value."""
CLEAR = 2.0
"""Standard errors by which the start must differ from the rest."""
LEAST = 200
"""Values in each replication below which nothing is said."""


def initial_transient(replications: Sequence[Floats]) -> float | None:
    """Return after which share of the values their start is over; None where no start is seen.

    MSER-5 (White, An effective truncation heuristic for bias reduction in simulation output, Simulation 69, 1997;
    Franklin and White, Stationarity tests and MSER-5, Winter Simulation Conference 2008), on the mean over
    replications. Its truncation point is the one that leaves the smallest standard error to the mean of the rest. A
    long queue by chance moves that point too. It moves the means of some replications only, but all of them start
    alike: so the start must differ from the rest in the same direction in each, and by ``CLEAR`` standard errors.

    :param replications: values in the order of their requests.
    """
    count = min(map(len, replications)) // BATCH * BATCH
    if count < LEAST:
        return None
    rows = np.array([values[:count] for values in replications])
    means = rows.mean(axis=0).reshape(-1, BATCH).mean(axis=1)
    left = np.arange(len(means), 0, -1.0)
    total, squares = (np.cumsum(each[::-1])[::-1] for each in (means, means**2))
    end = int(np.argmin(((squares - total**2 / left) / left**2)[: len(means) // 2 + 1])) * BATCH
    if end <= SHORT * count:
        return None
    start, rest = rows[:, :end], rows[:, end:]
    differences = start.mean(axis=1) - rest.mean(axis=1)
    if abs(np.sign(differences).sum()) < len(rows):
        return None
    error = math.sqrt(float(rest.var()) / effective_size(rest) * (1 + (count - end) / end))
    return end / count if abs(float(differences.mean())) > CLEAR * error else None
