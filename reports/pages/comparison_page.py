"""The page of a comparison of two runs."""

from __future__ import annotations

from pathlib import Path

from reports.answers.run_comparison import OPEN, Comparison
from reports.charts.comparison_charts import charts_of
from reports.formatting import metric_words, show
from reports.pages import method
from reports.pages.page import Page
from reports.table import Table
from reports.tables.comparison_tables import all_table, differs_table, key_table
from reports.text.changes.design_text import change_phrase, side_names
from reports.text.comparison_text import caution_sentences, details, headline
from reports.text.setup_text import setup_line
from sim.results.pairs import BETTER, NOT_COMPARABLE, UNCLEAR, WORSE
from sim.results.run_directory.store import RunData

_BADGES = {
    BETTER: ("✓", "Better", "met"),
    WORSE: ("✕", "Worse", "not-met"),
    OPEN: ("?", "Open", "unclear"),
    UNCLEAR: ("?", "No clear difference", "unclear"),
    NOT_COMPARABLE: ("–", "Not comparable", "no-SLO"),
}
"""Mark, words and style of a verdict."""


def write_page(comparison: Comparison, path: Path, command: str) -> Path:
    """Write the page and return its path."""
    sides = [("A", comparison.one), ("B", comparison.other)]
    content = {
        "headline": headline(comparison),
        "details": details(comparison),
        "badge": _BADGES.get(comparison.word, ("◐", "Better in one, worse in another", "partly")),
        "judged": ", ".join(_judged_words(comparison)),
        "sides": [
            (letter, _name(run) if name == letter else name, _side_words(run))
            for (letter, run), name in zip(sides, side_names(comparison), strict=True)
        ],
        "differs": differs_table(comparison),
        "key": key_table(comparison),
        "all": all_table(comparison) if len(comparison.pairs) == 1 else None,
        "charts": charts_of(comparison),
        "made": _made_table(comparison),
    }
    one, other = _name(comparison.one), _name(comparison.other)
    name = f"{other} against {one}" if one != other else f"{other}: {change_phrase(comparison) or 'twice the same'}"
    return Page("compare.html.j2", name, command, content, notes=caution_sentences(comparison)).write(path)


def _name(run: RunData) -> str:
    return run.path.resolve().name or str(run.path)


def _side_words(run: RunData) -> str:
    name = " · ".join(filter(None, (str(run.path), str(run.manifest.get("name", "")), setup_line(run.points))))
    count = f", {len(run.points)} points" if len(run.points) > 1 else ""
    return f"{name}{count}"


def _judged_words(comparison: Comparison) -> list[str]:
    terms = comparison.terms
    return [metric_words(n) + (f" (SLO {show(n, terms[n])})" if n in terms else "") for n in comparison.judged]


def _made_table(comparison: Comparison) -> Table:
    """Return how both runs were made."""
    one, other = _made(comparison.one), _made(comparison.other)
    rows = [[key, one.get(key, "–"), other.get(key, "–")] for key in dict.fromkeys([*one, *other])]
    return Table("How the runs were made", ["", "A", "B"], rows, words=(1, 2))


def _made(run: RunData) -> dict[str, str]:
    folder = {"folder": str(run.path), "code": str(run.manifest.get("code", "unknown"))}
    return {**folder, **dict(method.provenance(run.manifest)), "command": str(run.manifest.get("command", ""))}
