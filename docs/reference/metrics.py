"""The table of metrics, in the order in which tables print them."""

from __future__ import annotations

from reference.markdown import table

OVER_REQUESTS = {
    "admitted": "admitted measured requests for adapters",
    "completed": "completed measured requests",
    "measured": "measured requests",
    "time": "the measured time",
}
"""Over what a metric is taken; docs/metrics.md says what each of these means."""


def metric_table() -> str:
    """Return one row a metric: name, words, unit, definition, what it is taken over, interval."""
    from sim.results.catalogue import CATALOGUE
    from sim.spec.scenario import Slo

    slo = {name if name == "miss_ratio" else f"{name}_s": name for name in Slo.model_fields}
    units = {"1": "–", "replica-s": "replica-seconds", "B": "bytes", "USD": "US dollars"}
    rows = []
    for name, each in CATALOGUE.items():
        if each.of_fleet:
            asked = f"`slo.{slo[name]}`" if name in slo else ""
            unit, over = units.get(each.unit, each.unit), OVER_REQUESTS.get(each.over, each.over)
            rows.append([f"`{name}`", each.words, unit, each.about, over, each.interval, asked])
    return table(["name", "in tables", "unit", "definition", "over", "interval", "SLO term"], rows)
