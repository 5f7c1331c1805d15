"""The table of metrics, in the order in which tables print them."""

from __future__ import annotations

from reference.markdown import table

_OVER = {"the measured time": "time", "the window": "during", "the time before": "before"}
"""Short words for what a metric is taken over; docs/metrics.md says what each of these means."""


def metric_table() -> str:
    """Return one row a metric: name, words, unit, definition, what it is taken over, interval."""
    from sim.results.catalogue import CATALOGUE

    units = {"1": "–", "replica-s": "replica-seconds", "B": "bytes"}
    rows = []
    for name, each in CATALOGUE.items():
        if each.of_fleet:
            unit, over = units.get(each.unit, each.unit), _OVER.get(each.over, each.over)
            rows.append([f"`{name}`", each.words, unit, each.about, over, each.interval])
    return table(["name", "in tables", "unit", "definition", "over", "interval"], rows)
