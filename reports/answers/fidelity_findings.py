"""Measured runs next to their predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

METRICS = {
    "req_per_s": "completed requests/s",
    "tpot_mean_ms": "mean TPOT",
    "itl_p50_ms": "median ITL",
    "itl_mean_ms": "mean ITL",
    "ttft_p50_ms": "p50 TTFT",
    "ttft_p99_ms": "p99 TTFT",
    "ttft_mean_ms": "mean TTFT",
    "loads_per_request": "loads per request",
    "running_mean": "mean batch size",
}
"""Names of the compared metrics, in the order of the page; a table of runs has some of them."""


@dataclass(frozen=True)
class Compared:
    """One run.

    :ivar group: runs of the same workload, which differ in slots alone.
    :ivar label: the workload in words.
    :ivar measured, predicted: by metric.
    """

    name: str
    model: str
    group: str
    label: str
    slots: int
    regime: str
    calibrated: bool
    measured: Mapping[str, float]
    predicted: Mapping[str, float]
