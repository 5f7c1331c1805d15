"""What a notebook shows of a run: the answer and a table, as a piece of HTML."""

from __future__ import annotations

from collections.abc import Sequence

from reports.render.html import template
from reports.table import Table
from reports.text.answer_text import Answer
from reports.text.setup_text import setup_line
from sim.results.point import Point


def snippet(name: str, answer: Answer, table: Table | None, points: Sequence[Point]) -> str:
    """Return the answer and a table; it has the notebook's own style, and needs neither network nor scripts.

    :param points: those that the answer is about.
    """
    return template("notebook.html.j2").render(name=name, answer=answer, table=table, setup=setup_line(points))
