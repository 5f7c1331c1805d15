"""Values that depend on each other: how many independent ones say as much of a mean, and how long a start lasts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.arrays import Floats

BLOCKS = 1000
"""Means of consecutive values that a replication is reduced to, about. The sum of their autocovariances is that of the
values, but takes shorter transforms."""


@dataclass(frozen=True, slots=True)
class Autocorrelation:
    """How much values depend on those before them.

    :ivar size: the effective sample size of their mean.
    :ivar windows: the number of values over the longest lag that counts: how many stretches there are that hardly
        depend on each other. The relative standard error of ``size`` is 2 over the square root of this (Madras and
        Sokal, The pivot algorithm, Journal of Statistical Physics 50, 1988, appendix C), and more for skewed values.
    """

    size: float
    windows: float


def effective_size(replications: Sequence[Floats] | Floats) -> float:
    """Return the effective sample size of the mean over all replications, at most the number of values.

    :param replications: values in the order of their requests.
    """
    return autocorrelation(replications).size


def autocorrelation(replications: Sequence[Floats] | Floats) -> Autocorrelation:
    """Return how much values depend on those before them, as it shows in the mean over all replications.

    The effective size is n times the variance of a value over the sum of its autocovariances at all lags. That sum is
    estimated by the initial monotone sequence (Geyer, Practical Markov Chain Monte Carlo, Statistical Science 7, 1992,
    section 3.3): sums of neighbouring pairs are added up to the first that is not positive, and none counts more than
    the one before.

    :param replications: values in the order of their requests.
    """
    replications = [values for values in replications if len(values)]
    count = sum(map(len, replications))
    mean = sum(float(values.sum()) for values in replications) / count
    variance = sum(float(np.square(values - mean).sum()) for values in replications) / count
    size = max(1, count // (BLOCKS * len(replications)))
    blocks = [values[: len(values) // size * size].reshape(-1, size).mean(axis=1) - mean for values in replications]
    longest = max(map(len, blocks))
    length = 1 << (2 * longest - 1).bit_length()
    spectrum = sum(np.square(np.abs(np.fft.rfft(each, length))) for each in blocks)
    covariances = np.fft.irfft(spectrum, length)[: longest // 2 * 2] / sum(map(len, blocks))
    pairs = covariances[::2] + covariances[1::2]
    ends = np.flatnonzero(pairs <= 0)
    pairs = np.minimum.accumulate(pairs[: ends[0]] if len(ends) else pairs)
    total = size * (2 * float(pairs.sum()) - float(covariances[0])) if len(pairs) else 0.0
    windows = count / (2 * size * max(1, len(pairs)))
    return Autocorrelation(min(float(count), count * variance / total) if total > 0 else float(count), windows)


# How long the start of a run lasts: empty queues and cold caches, which a longer warm-up would leave out.

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
