"""Traffic of small scenarios, and what is read of a small trace, for tests of what arrives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sim.errors import TraceError
from sim.spec.scenario import Scenario
from sim.spec.sections.trace_source import Trace
from sim.traffic.generate import Traffic
from sim.traffic.traces.read import TraceData, read_trace


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


def read(folder: Path, content: bytes | str, limit: int | None = None, **settings: object) -> TraceData:
    """Return what is read of a trace with this content, the file ``t`` of a folder."""
    file = folder / "t"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_trace(Trace.model_validate({"file": str(file), **settings}), limit)


def error_of(folder: Path, content: bytes | str, **settings: object) -> str:
    """Return what is said of a trace that can't be read, from the name of its file on."""
    with pytest.raises(TraceError) as raised:
        read(folder, content, **settings)
    text = str(raised.value)
    text.encode()  # can be printed
    assert "\n" not in text
    assert text.startswith(f"{folder}/t")
    return text.removeprefix(f"{folder}/")
