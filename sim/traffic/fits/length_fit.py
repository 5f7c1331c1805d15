"""Correlations of lengths: prompt with output, and requests of one adapter with each other."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def normal_scores(values: NDArray[np.integer]) -> Floats:
    """Return each value's place in the standard normal law: of rank r among n, its quantile at (r − 1/2) / n."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    return np.asarray(ndtri((rankdata(values) - 0.5) / len(values)))


def correlation(prompt: NDArray[np.integer], output: NDArray[np.integer]) -> float:
    """Return the correlation of the normal scores of prompt and output tokens; 0 where one never changes."""
    if len(prompt) < 3 or prompt.min() == prompt.max() or output.min() == output.max():
        return 0.0
    found = float(np.corrcoef(normal_scores(prompt), normal_scores(output))[0, 1])
    return min(max(found, -0.99), 0.99)


def by_adapter(prompt: NDArray[np.integer], output: NDArray[np.integer], adapter: NDArray[np.integer]) -> float:
    """Return the share of the variance of normal scores that lies between adapters, mean of prompt and output.

    The intraclass correlation by one-way analysis of variance, adapters of different numbers of requests.
    """
    counts = np.bincount(adapter)
    counts = counts[counts > 0]
    groups, total = len(counts), int(counts.sum())
    if groups < 2 or total <= groups:
        return 0.0
    typical = (total - float((counts.astype(np.float64) ** 2).sum()) / total) / (groups - 1)
    shares = []
    for values in (prompt, output):
        if values.min() == values.max():
            continue
        scores = normal_scores(values)
        sums, sizes = np.bincount(adapter, weights=scores), np.bincount(adapter)
        means = sums / np.maximum(sizes, 1)
        within = float(((scores - means[adapter]) ** 2).sum()) / (total - groups)
        between = float((sizes * (means - scores.mean()) ** 2).sum()) / (groups - 1)
        shares.append((between - within) / (between + (typical - 1) * within) if between > 0 else 0.0)
    found = max(0.0, sum(shares) / len(shares)) if shares else 0.0
    return 0.0 if math.isnan(found) else min(found, 0.99)
