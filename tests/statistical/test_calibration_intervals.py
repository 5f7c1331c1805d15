"""Calibration intervals hold as often as they say: results whose dependence on a cost is known, fitted again and again.

A cost is fitted with an error; the draws spread around the fit as the fit spreads around the truth, which is what the
bootstrap promises. Counted is how often the interval around the result of the fit holds that of the true cost.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sim.results.calibration import bounds
from sim.results.point import Metric

Result = Callable[[np.ndarray], np.ndarray]

RUNS = 2000


def proportional(cost: np.ndarray) -> np.ndarray:
    return cost


def queueing(cost: np.ndarray) -> np.ndarray:
    """Service, and a wait as in M/M/1 at 80 % load."""
    return cost / (1 - np.minimum(0.8 * cost, 0.995))


def share(result: Result, spread: float, draws: int) -> float:
    rng = np.random.default_rng(7)
    fitted = 1 + rng.normal(0, spread, RUNS)
    drawn = fitted[:, None] + rng.normal(0, spread, (RUNS, draws))
    true = float(result(np.array([1.0]))[0])
    values, results = result(fitted), result(drawn)
    found = [
        bounds("e2e_p99_s", Metric(float(v), unit="s"), [(float(v), float(r)) for r in row])
        for v, row in zip(values, results, strict=True)
    ]
    return sum(low <= true <= high for low, high in found) / RUNS


@pytest.mark.parametrize("draws", [2, 4, 8])
@pytest.mark.parametrize(
    ("result", "spread"),
    [(proportional, 0.02), (proportional, 0.1), (queueing, 0.02), (queueing, 0.05), (queueing, 0.1)],
)
def test_intervals_hold_in_95_of_100_cases(result: Result, spread: float, draws: int) -> None:
    # Three standard errors of a share of .95 over 2,000 runs are .015.
    assert share(result, spread, draws) == pytest.approx(0.95, abs=0.015)
