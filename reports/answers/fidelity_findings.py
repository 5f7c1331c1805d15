"""How close predictions come to measured runs, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METRICS = {
    "req_per_s": "completed requests/s",
    "tpot_mean_ms": "mean TPOT",
    "itl_p50_ms": "median ITL",
    "itl_mean_ms": "mean ITL",
    "ttft_p50_ms": "p50 TTFT",
    "ttft_p99_ms": "p99 TTFT",
    "running_mean": "mean batch size",
}
"""Names of the compared metrics, in the order of the page."""


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


def choice_sentence(errors: Mapping[str, Any]) -> str:
    """Return how well the best slot count is found, in words."""
    choice = errors["slot_choice"]
    if choice is None:
        return "No workload was measured with two slot counts."
    return (
        f"Of {choice['groups']} workloads measured with several slot counts, the one predicted best is within 10 % of "
        f"the best measured p99 TTFT in {choice['within_10pct']:.0%}, and is the best itself in {choice['right']:.0%}."
    )


def headline(errors: Mapping[str, Any]) -> str:
    """Return the answer in a sentence: the median errors of the metrics that matter most."""
    found = errors["metrics"]
    parts = []
    if found.get("req_per_s"):
        parts.append(f"{found['req_per_s']['ape_p50']:.1%} in throughput")
    if found.get("tpot_mean_ms"):
        parts.append(f"{found['tpot_mean_ms']['ape_p50']:.1%} in TPOT")
    if found.get("ttft_p99_ms"):
        parts.append(f"a factor of {10 ** found['ttft_p99_ms']['log10_abs_p50']:.2f} in p99 TTFT")
    if not parts:
        return "No run is left to compare: all of them calibrated the profiles, or measured nothing."
    return f"Half of {errors['runs']} measured runs are predicted within {', '.join(parts)}."
