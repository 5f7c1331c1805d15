"""What a notebook shows of a run: the answer and its table, as a piece of HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.answers.plan_reading import PlanReading, is_plan
from reports.axes import make_axes
from reports.formatting import read_terms
from reports.render.html import template
from reports.tables.metric_tables import metrics_table, terminal_table
from reports.tables.plan_tables import frontier_table, search_table
from reports.text.answer_text import Answer
from reports.text.setup_text import setup_line

if TYPE_CHECKING:
    from sim.results.run_directory.store import RunData


def snippet(run: RunData, answer: Answer) -> str:
    """Return the answer and its table; it has the notebook's own style, and needs neither network nor scripts."""
    terms = read_terms((run.manifest.get("scenario") or {}).get("slo"))
    points = run.points
    if is_plan(run.manifest):
        table = frontier_table(run) or search_table(run)
        points = [chosen] if (chosen := PlanReading(run).chosen) is not None else points
    elif len(run.points) == 1:
        table = metrics_table(run.points[0])
    else:
        table = terminal_table(run.points, make_axes(run.points), terms)
    setup = setup_line(points)
    return template("notebook.html.j2").render(
        name=run.manifest.get("name", ""), answer=answer, table=table, setup=setup
    )
