"""How far traffic fitted to a part of a trace is from the rest."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sim.results.traces.trace_facts import CheckedValue, FitCheck

GAP = 0.02
"""Miss ratios closer than this are called the same: such a gap does not matter."""
BELIEVED, ROUGH = 0.05, 0.10
"""Largest differences of miss ratios up to which fitted traffic is called reliable, and rough."""
OFF = 0.15
"""Relative differences of rates, burstiness and lengths from which they are named."""
_MOST_NAMED = 3


class Trust(Enum):
    """How far miss ratios of fitted traffic can be trusted."""

    RELIABLE = "reliable"
    ROUGH = "rough"
    REPLAY = "replay the trace instead"


@dataclass(frozen=True)
class OffValues:
    """In what fitted traffic is far from the rest of the trace, apart from misses.

    :ivar named: the values to mention, the first few of them.
    :ivar calmer: whether arrivals are less bursty than the trace's; None where they are not off, or off both ways.
    """

    named: tuple[CheckedValue, ...]
    calmer: bool | None


def trust_in(worst: float) -> Trust:
    """Return how far miss ratios can be trusted, by their largest difference from the trace's."""
    if worst <= BELIEVED:
        return Trust.RELIABLE
    return Trust.ROUGH if worst <= ROUGH else Trust.REPLAY


def relative_change(value: CheckedValue) -> float | None:
    """Return by which share of the trace's value the synthetic one is larger; None where that is 0."""
    return None if value.trace == 0 else value.synthetic / value.trace - 1


def off_values(fit: FitCheck) -> OffValues:
    """Return in what fitted traffic is far from the rest of the trace, apart from misses."""
    off = [value for value in fit.values if (by := relative_change(value)) is not None and abs(by) > OFF]
    # Without a miss curve, the sentence on the fit itself has all values but lengths.
    named = [value for value in off if fit.slots or value.unit == "tokens"]
    calmer = {value.synthetic < value.trace for value in off if value.name.startswith("dispersion")}
    return OffValues(tuple(named[:_MOST_NAMED]), calmer.pop() if len(calmer) == 1 else None)


def closed_gap(fit: FitCheck) -> float | None:
    """Return the share of the gap between independent draws and reality that fitted traffic closes.

    1 − mean |fitted − real| / mean |independent − real|, over the slots where that gap is at least ``GAP``; None where
    there are none. Below 0: worse than independent draws.
    """
    gaps = [
        (abs(made - real), abs(draws - real))
        for real, made, draws in zip(fit.real, fit.synthetic, fit.independent, strict=True)
        if abs(draws - real) >= GAP
    ]
    return 1 - sum(left for left, _ in gaps) / sum(gap for _, gap in gaps) if gaps else None
