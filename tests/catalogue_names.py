"""Metrics of the catalogue by what they need."""

from __future__ import annotations

from sim.results.catalogue import CATALOGUE, ONLY_WITH_PRICE, UNITS, Need

ALWAYS_THERE = tuple(
    name for name in UNITS if name not in ONLY_WITH_PRICE and all(need.cause for need in CATALOGUE[name].needs)
)
"""Those that every point has, if only to say why there is no value."""


def needing(need: Need) -> frozenset[str]:
    """Return those that need something, such as ``AUTOSCALER``."""
    return frozenset(name for name, each in CATALOGUE.items() if need in each.needs)
