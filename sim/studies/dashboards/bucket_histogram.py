"""Histograms as Prometheus counts them: how many values are at most so large, for a few bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BucketQuantile:
    """A quantile as far as buckets show it.

    :ivar value: linear within the bucket, as PromQL's ``histogram_quantile`` has it.
    :ivar low, high: bounds of the bucket, between which the quantile lies; high is infinite in the last one.
    """

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Return whether a value lies in the same bucket as the measured one."""
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class BucketHistogram:
    """Values counted in buckets.

    :ivar bounds: upper bounds, rising; the last one is infinite.
    :ivar counts: values in each bucket; not cumulative.
    :ivar total: the sum of all values, which is exact; None where it is not known.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float | None

    @property
    def count(self) -> float:
        return math.fsum(self.counts)

    @property
    def mean(self) -> float | None:
        """The exact mean; None without values, or without their sum."""
        return self.total / self.count if self.count and self.total is not None else None

    def quantile(self, share: float) -> BucketQuantile:
        """Return the value below which a share of the values is.

        :param share: from 0 to 1.
        """
        rank, below = share * self.count, 0.0
        if not self.count:
            return BucketQuantile(math.nan, math.nan, math.nan)
        last = max(index for index, count in enumerate(self.counts) if count)
        for index, count in enumerate(self.counts[: last + 1]):
            if count and (below + count >= rank or index == last):
                low, high = self.edges(index)
                if math.isinf(high):
                    return BucketQuantile(low, low, high)
                return BucketQuantile(low + (high - low) * min(max((rank - below) / count, 0.0), 1.0), low, high)
            below += count
        raise AssertionError("a bucket holds every rank")

    def half_width(self) -> float:
        """Return the half-width of the mean's 95 % interval, if values are independent; they spread within buckets."""
        finite = [bound for bound in self.bounds if math.isfinite(bound)]
        values = self.spread(1000, 2 * max(finite, default=1.0))
        return 1.96 * float(values.std()) / math.sqrt(self.count)

    def edges(self, index: int) -> tuple[float, float]:
        """Return the lower and the upper bound of a bucket."""
        return (self.bounds[index - 1] if index else 0.0), self.bounds[index]

    def spread(self, points: int, highest: float) -> Floats:
        """Return values at equally spaced ranks that have these counts and this mean.

        Buckets say nothing of what is inside them: there, values rise as a power of the rank, the same power in all
        buckets, chosen so that the mean comes out right. Without a mean they rise evenly, about the bucket's middle.

        :param points: how many values.
        :param highest: the largest value that the last bucket may have.
        """
        shares = np.asarray(self.counts) / self.count
        ends = np.cumsum(shares)
        rank = (np.arange(points) + 0.5) / points
        index = np.minimum(np.searchsorted(ends, rank), len(ends) - 1)
        bounds = np.asarray(self.bounds)
        bounds = np.where(np.isinf(bounds), max(highest, bounds[-2] if len(bounds) > 1 else highest), bounds)
        low, high = np.concatenate([[0.0], bounds[:-1]])[index], bounds[index]
        inside = np.clip((rank - (ends - shares)[index]) / np.maximum(shares[index], 1e-300), 0.0, 1.0)

        def values(log_power: float) -> Floats:
            return np.asarray(low + (high - low) * inside ** math.exp(log_power))

        mean = self.mean
        if mean is None:
            return values(0.0)
        lowest, most = -12.0, 12.0  # the mean falls as the power rises
        for _ in range(60):
            middle = (lowest + most) / 2
            lowest, most = (middle, most) if values(middle).mean() > mean else (lowest, middle)
        return values((lowest + most) / 2)
