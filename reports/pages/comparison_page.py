"""The page of a comparison of two runs, and the tables that the terminal shares with it; one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reports.answers.comparison_text import details, headline
from reports.answers.run_comparison import OPEN, Comparison
from reports.charts.comparison_charts import charts_of
from reports.formatting import metric_words, show
from reports.pages import method
from reports.pages.run_page import template
from reports.table import Table
from reports.tables.comparison_tables import all_table, differs_table, key_table
from sim.results.pairs import BETTER, NOT_COMPARABLE, UNCLEAR, WORSE
from sim.results.run_directory.result_files import write_text
from sim.results.run_directory.store import RunData

_BADGES = {
    BETTER: ("✓", "B is better", "met"), WORSE: ("✕", "B is worse", "not-met"),
    OPEN: ("?", "Open", "unclear"), UNCLEAR: ("?", "No clear difference", "unclear"),
    NOT_COMPARABLE: ("–", "Not comparable", "no-SLO"),
}  # fmt: skip


def write_page(comparison: Comparison, path: Path, command: str) -> Path:
    """Write the page; a reader never sees half a file."""
    write_text(path, template("compare.html.j2").render(**_context(comparison, command)))
    return path


def _context(comparison: Comparison, command: str) -> dict[str, Any]:
    runs = [(letter, run) for letter, run in (("A", comparison.one), ("B", comparison.other))]
    single = len(comparison.pairs) == 1
    return {
        "names": [_name(run) for _, run in runs], "headline": headline(comparison), "details": details(comparison),
        "badge": _BADGES.get(comparison.word, ("◐", "Better in one, worse in another", "partly")),
        "judged": ", ".join(_judged_words(comparison)), "cautions": comparison.cautions,
        "sides": [(letter, _name(run), _side_words(run)) for letter, run in runs],
        "differs": differs_table(comparison), "key": key_table(comparison),
        "all": all_table(comparison) if single else None, "charts": charts_of(comparison),
        "made": _made_table(comparison), "command": command,
    }  # fmt: skip


def _name(run: RunData) -> str:
    return run.path.resolve().name or str(run.path)


def _side_words(run: RunData) -> str:
    name = str(run.manifest.get("name", ""))
    count = f", {len(run.points)} points" if len(run.points) > 1 else ""
    return f"{name}{count}"


def _judged_words(comparison: Comparison) -> list[str]:
    terms = comparison.terms
    return [metric_words(n) + (f" (SLO {show(n, terms[n])})" if n in terms else "") for n in comparison.judged]


def _made_table(comparison: Comparison) -> Table:
    """Return how both runs were made."""
    told = [{"folder": str(run.path), "code": str(run.manifest.get("code", "unknown")),
             **dict(method.provenance(run.manifest)), "command": str(run.manifest.get("command", ""))}
            for run in (comparison.one, comparison.other)]  # fmt: skip
    rows = [[key, *(side.get(key, "–") for side in told)] for key in dict.fromkeys([*told[0], *told[1]])]
    return Table("How the runs were made", ["", "A", "B"], rows, words=(1, 2))
