"""Independent replications, their mean and its standard error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sim.results.records import Recording
from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.replication import simulate

Floats = NDArray[np.float64]
Measure = Callable[[dict[str, Floats]], Sequence[float]]


def measured(recording: Recording, warmup: float) -> dict[str, Floats]:
    """Return the columns without the first requests, and with waiting and sojourn times."""
    first = int(warmup * len(recording.requests["index"]))
    columns = {name: column[first:] for name, column in recording.requests.items()}
    columns["wait_s"] = columns["admitted_s"] - columns["arrival_s"]
    columns["sojourn_s"] = columns["finished_s"] - columns["arrival_s"]
    return columns


def replicate(scenario: Scenario, measure: Measure, replications: int, warmup: float = 0.1) -> tuple[Floats, Floats]:
    """Return mean and standard error of each value that ``measure`` gives, over independent replications."""
    world = build_world(scenario)
    rows = [measure(measured(simulate(world, index, 1), warmup)) for index in range(replications)]
    values = np.asarray(rows, dtype=np.float64)
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(replications)


def assert_meets(
    names: Sequence[str], exact: Sequence[float], found: tuple[Floats, Floats], extra: float = 0.0
) -> None:
    """Assert that every mean lies within three standard errors, and ``extra``, of the exact value."""
    for name, value, mean, error in zip(names, exact, *found, strict=True):
        message = f"{name}: {mean:.6g} +- {error:.2g} (standard error), expected {value:.6g}"
        # A tolerance that lets everything pass is no test: the error itself must be small.
        assert 3 * error <= 0.15 * abs(value) + extra + 1e-3, f"too noisy to say: {message}"
        assert abs(mean - value) <= 3 * error + extra, message
