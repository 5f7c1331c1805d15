"""The table of metrics, in the order in which tables print them."""

from __future__ import annotations

from reference.markdown import table

_OVER = {"the window": "during", "the time before": "before"}
"""Short words for what a metric is taken over; docs/metrics.md says what each of these means."""


def metric_table() -> str:
    """Return one row a metric: name, words, unit, definition, what it is taken over, interval."""
    from sim.results.catalogue import CATALOGUE

    units = {"1": "–", "replica-s": "replica-seconds", "B": "bytes"}
    rows: list[list[str]] = []
    for name, each in CATALOGUE.items():
        if each.of_fleet:
            unit, over = units.get(each.unit, each.unit), _OVER.get(each.over, each.over)
            row = [f"`{name}`", each.words, unit, each.about, over, each.interval]
            if each.about == "The same.":  # of what the row before defines, such as another quantile
                for column in (0, 1, 5):
                    rows[-1][column] += f", {row[column]}"
            else:
                rows.append(row)
    return table(["name", "in tables", "unit", "definition", "over", "interval"], rows)
