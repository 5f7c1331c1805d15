"""How close predictions come to measured runs, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
