"""Which metric and which term of an SLO an answer is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sim.results.point import Point
from sim.results.slo_terms import is_tail, with_tenants
from sim.results.verdict import MET, NOT_MET, UNCLEAR, by_need, strain, term_verdict, verdict


def main_metric(points: Sequence[Point], slo_terms: Mapping[str, float]) -> str:
    """Return the metric that the answer is about: the SLO's first p99, else TTFT, else E2E."""
    targets = [name for name in slo_terms if is_tail(name)] or list(slo_terms)
    for name in (*targets, "e2e_p99_s", "ttft_p99_s"):
        if any(point.value(name) is not None for point in points):
            return name
    return targets[0] if targets else "e2e_p99_s"


def deciding_term(point: Point, slo_terms: Mapping[str, float], found: str) -> str:
    """Return the term that the headline is about.

    With SLOs of tenants, and where it is unclear whether they are met, that is the least likely one, the fleet's first.
    Where all are met, it is the fleet's main one, else the one that is nearest to its target.
    """
    terms = with_tenants(slo_terms, point)
    if found == MET:
        if slo_terms:
            return main_metric([point], slo_terms)
        return max(terms, key=lambda name: strain(point, name, terms[name]))
    each = [name for name, target in terms.items() if term_verdict(point, name, target) == found]
    if found != UNCLEAR and len(terms) == len(slo_terms):
        return each[0]
    return by_need(point, {name: terms[name] for name in each})[0]


def missed_term(point: Point, slo_terms: Mapping[str, float]) -> str | None:
    """Return the first term that decides a verdict other than met, the fleet's first; None where no term does."""
    found = verdict(point, slo_terms)
    if found not in (NOT_MET, UNCLEAR):
        return None
    terms = with_tenants(slo_terms, point)
    return next((name for name, target in terms.items() if term_verdict(point, name, target) == found), None)
