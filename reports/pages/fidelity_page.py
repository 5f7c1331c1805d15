"""The page of a fidelity study: measured runs and their predictions, worst cases first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.answers.fidelity_findings import METRICS, Compared
from reports.charts.fidelity_charts import scatter_chart, slots_chart
from reports.charts.svg import Chart
from reports.pages.page import Page
from reports.tables.fidelity_tables import error_table, peer_table, worst_of_metric_table, worst_table
from reports.text.fidelity_text import choice_sentence, headline

_MOST_SLOT_CHARTS = 6
_ALWAYS = ("llama-3.1-8b, 128 adapters, 7.5 requests/s", "llama-3.1-8b, 384 adapters, 22.4 requests/s")
"""Workloads that stand first in the charts over slots, where measured: the cliff, and a best slot count in the
middle (docs/validation.md)."""


@dataclass(frozen=True)
class FidelityPage:
    """What the page shows.

    :ivar errors: as ``loraplan fidelity --json`` prints it.
    :ivar peer: (metric, runs, the peer's median error, ours); empty without a peer.
    :ivar provenance: (label, text) lines.
    """

    runs: Sequence[Compared]
    errors: Mapping[str, Any]
    peer: Sequence[tuple[str, int, float, float]]
    provenance: Sequence[tuple[str, str]]
    command: str


def write_page(page: FidelityPage, path: Path) -> Path:
    """Write the page and return its path."""
    compared = [run for run in page.runs if not run.calibrated]
    content = {
        "headline": headline(page.errors),
        "choice": choice_sentence(page.errors),
        "calibrated": len(page.runs) - len(compared),
        "errors": error_table(page.errors),
        "peer": peer_table(page.peer),
        "charts": _charts(compared),
        "slots": _slot_charts(page.runs),
        "worst": worst_table(compared),
    }
    return Page("fidelity.html.j2", "Predicted and measured", page.command, content, page.provenance).write(path)


def _charts(runs: Sequence[Compared]) -> list[Chart]:
    questions = {
        "ttft_p99_ms": "How close is p99 TTFT?",
        "ttft_p50_ms": "How close is p50 TTFT?",
        "tpot_mean_ms": "How close is mean TPOT?",
        "req_per_s": "How close is throughput?",
    }
    charts = []
    for name, title in questions.items():
        points = [
            (run.measured[name], run.predicted[name], run.regime, f"{run.label}, {run.slots} slots")
            for run in runs
            if run.measured[name] > 0 and run.predicted[name] > 0
        ]
        if points:
            charts.append(scatter_chart(name, title, METRICS[name], points, worst_of_metric_table(name, runs)))
    return charts


def _slot_charts(runs: Sequence[Compared]) -> list[Chart]:
    """Return p50 TTFT against slots for workloads where slots matter most: measured and predicted."""
    groups: dict[str, list[Compared]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)

    def span(group: list[Compared]) -> float:
        values = [run.measured["ttft_p50_ms"] for run in group]
        return len(group) * math.log10(max(values) / min(values)) if min(values) > 0 else 0.0

    several = sorted((g for g in groups.values() if len(g) > 2), key=span, reverse=True)
    several.sort(key=lambda group: group[0].label not in _ALWAYS)
    several = several[:_MOST_SLOT_CHARTS]
    return [
        slots_chart(f"slots-{number}", sorted(group, key=lambda run: run.slots)) for number, group in enumerate(several)
    ]
