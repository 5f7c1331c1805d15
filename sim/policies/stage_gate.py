"""The gate of a rollout: decides whether a new version may proceed to its next stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

NEVER_S = 1e30
"""Seconds of an answer that never comes: above any limit, even as one sample of a mean."""


class Sample(NamedTuple):
    """One request of the new version: seconds to its first and last token, and whether it started a load.

    A failed request has ``NEVER_S`` for both.
    """

    ttft_s: float
    e2e_s: float
    missed: bool


def failed_terms(terms: Mapping[str, float], samples: Sequence[Sample]) -> str:
    """Return the terms that do not hold, in words; empty if all hold.

    :param terms: limits by name: ``ttft_mean``, ``ttft_p99``, ``e2e_mean``, ``e2e_p99`` in seconds, ``miss_ratio``.
    :param samples: one or more.
    """
    columns = {"ttft": [s.ttft_s for s in samples], "e2e": [s.e2e_s for s in samples]}
    failed = []
    for name, limit in terms.items():
        if name == "miss_ratio":
            value = float(np.mean([s.missed for s in samples]))
            if value > limit:
                failed.append(f"{name} {value:.1%}, allowed {limit:.1%}")
            continue
        column, statistic = name.split("_")
        value = float(np.mean(columns[column]) if statistic == "mean" else np.quantile(columns[column], 0.99))
        if value > limit:
            shown = f"{value:.3g} s" if value < 1e-9 * NEVER_S else "without end, since requests failed"
            failed.append(f"{name} {shown}, allowed {limit:.3g} s")
    return "; ".join(failed)
