"""Traffic of small scenarios, for tests of what arrives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.spec.scenario import Scenario
from sim.traffic.generate import Traffic


def traffic(requests: int | None = 1000, count: int = 50, seed: int = 1, **workload: Any) -> Traffic:
    """Return the traffic of a workload; arrivals are Poisson at 10/s unless it says otherwise."""
    workload.setdefault("arrivals", {"process": "poisson", "rate": "10/s"})
    if requests is not None:
        workload["requests"] = requests
    scenario = {
        "schema_version": 1,
        "name": "test",
        "workload": workload,
        "adapters": {"count": count},
        "run": {"seed": seed},
    }
    return Traffic(Scenario.model_validate(scenario), "llama-3.1-8b")


def drawn(made: Traffic, replication: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return all arrival times and adapters of a replication."""
    pieces = list(made.arrivals(replication))
    return np.concatenate([times for times, _ in pieces]), np.concatenate([adapters for _, adapters in pieces])
