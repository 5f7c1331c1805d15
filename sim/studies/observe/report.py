"""The report of ``observe``: what metrics measured, and what the simulated scenario does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.document import Report
from reports.formatting import measured_value, measured_words
from reports.table import Table
from sim.spec.units import human_seconds
from sim.studies.observe.findings import ComparedMetric
from sim.studies.observe.study import ObservedService


def observe_report(
    path: Path, service: ObservedService, source: str, rows: Sequence[ComparedMetric] | None, notes: Sequence[str]
) -> Report:
    """Return the report on a scenario that was drafted.

    :param source: where the readings come from.
    :param rows: measured and simulated; None: the scenario could not be simulated, as ``notes`` say.
    """
    data = {
        "schema_version": 1,
        "scenario": str(path),
        "engine": service.engine,
        "servers": service.servers,
        "seconds": service.seconds,
        "requests": service.finished,
        "aborted": service.aborted,
        "offered_rps": service.offered_rps,
        "adapters": len(service.adapters.names),
        "metrics": None if rows is None else {row.name: _plain(row) for row in rows},
        "notes": list(notes),
    }
    if rows is None:
        return Report("observe", path.stem, data, [f"scenario {path}"], notes=notes)
    aborted = f" ({service.aborted:,.0f} of them aborted)" if service.aborted >= 1 else ""
    terminal: list[str | Table] = [
        f"{service.ended:,.0f} requests{aborted} in {human_seconds(service.seconds)}, {service.offered_rps:.3g}/s, "
        f"from {service.servers} {'server' if service.servers == 1 else 'servers'} of {service.engine}",
        f"  {source}",
        "",
        Table("", ["", "measured", "between", "simulated", "difference"], [_cells(row) for row in rows]),
        "",
    ]
    return Report("observe", path.stem, data, terminal)


def _plain(row: ComparedMetric) -> dict[str, Any]:
    bucket = {} if row.bucket is None else {"bucket": [row.bucket.low, row.bucket.high], "within": row.within}
    return {"measured": row.measured, "simulated": row.simulated, "error": row.error, **bucket}


def _cells(row: ComparedMetric) -> list[str]:
    about, between = "", ""
    if row.bucket is not None:
        low, high = ("∞" if edge == float("inf") else human_seconds(edge) for edge in (row.bucket.low, row.bucket.high))
        about, between = "≈ ", f"{low} … {high}"
    return [
        measured_words(row.name),
        f"{about}{measured_value(row.name, row.measured)}",
        between,
        measured_value(row.name, row.simulated),
        _difference(row),
    ]


def _difference(row: ComparedMetric) -> str:
    if row.within or row.error is None:
        return "within" if row.within else ""
    if row.bucket is None:
        return f"{row.error:+.1%}"
    return f"at least {abs(row.error):.1%} {'lower' if row.error < 0 else 'higher'}"
