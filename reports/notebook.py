"""What a notebook shows of a run: the answer and its table, as a piece of HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.axes import make_axes
from reports.build import template
from reports.findings import Answer
from reports.planned import is_plan, looks_table
from reports.tables import metrics_table, terminal_table
from reports.words import read_terms

if TYPE_CHECKING:
    from sim.results.store import RunData


def snippet(run: RunData, answer: Answer) -> str:
    """Return the answer and its table; it has the notebook's own style, and needs neither network nor scripts."""
    terms = read_terms((run.manifest.get("scenario") or {}).get("slo"))
    if is_plan(run.manifest):
        table = looks_table(run)
    elif len(run.points) == 1:
        table = metrics_table(run.points[0])
    else:
        table = terminal_table(run.points, make_axes(run.points), terms)
    return template("notebook.html.j2").render(name=run.manifest.get("name", ""), answer=answer, table=table)
