"""What a trace shows about a cache: where on its miss curve the order of requests matters most."""

from __future__ import annotations

from collections.abc import Sequence

from reports.answers.trace_fit_findings import GAP
from sim.results.traces.trace_facts import MissCurve

DECIDES = 1.5
LEAST_ADAPTERS = 20
"""Adapters below which 1, 10 and 20 % of them say little."""
NOISE = 0.2
"""Dispersion this close to 1 counts as Poisson's, or closer than two standard errors: sqrt(2 / windows) each."""


def telling(curve: MissCurve) -> int:
    """Return the place on the curve where the order of requests matters most, or from where on few miss."""
    gaps = [abs(a - b) for a, b in zip(curve.real, curve.shuffled, strict=True)]
    places = round_places(curve.slots)
    most = max(places, key=lambda i: gaps[i])
    if gaps[most] > GAP:
        return most
    return next((i for i in places if curve.real[i] <= 0.2), places[-1])


def round_places(slots: Sequence[int]) -> list[int]:
    """Return the places of powers of two, which people choose from; all of them where there are none."""
    return [i for i, s in enumerate(slots) if s & (s - 1) == 0] or list(range(len(slots)))
