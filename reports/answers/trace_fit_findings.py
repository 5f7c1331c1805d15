"""How far traffic fitted to a part of a trace is from the rest."""

from __future__ import annotations

from sim.results.traces.trace_facts import FitCheck

GAP = 0.02
"""Miss ratios closer than this are called the same: such a gap does not matter."""
BELIEVED, ROUGH = 0.05, 0.10
"""Largest differences of miss ratios up to which fitted traffic is called reliable, and rough."""
OFF = 0.15
"""Relative differences of rates, burstiness and lengths from which they are named."""
_MOST_NAMED = 3


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
