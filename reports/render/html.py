"""A report as one HTML file that needs no network, and no JavaScript to be read."""

from __future__ import annotations

import itertools
from pathlib import Path

from reports.charts.svg import Chart
from reports.document import Part, Report, Section
from reports.pages.page import template
from reports.table import Table
from sim.results.run_directory.result_files import write_json, write_text

PAGE = "report.html"
_GRID = {Table: "grid", Chart: "grid"}


def page(report: Report) -> str:
    """Return a report's page."""
    shown = [(section, _groups(section)) for section in report.sections() if section.parts]
    return template("document.html.j2").render(report=report, sections=shown)


def _groups(section: Section) -> list[tuple[str, list[Part]]]:
    """Return a section's parts, those of one kind that follow each other together; a single table has all the width."""
    found = []
    for kind, group in itertools.groupby(section.parts, lambda part: _GRID.get(type(part), type(part).__name__)):
        parts = list(group)
        found.append(("table" if [type(part) for part in parts] == [Table] else kind, parts))
    return found


def write(report: Report, folder: Path) -> None:
    """Write a report's page and its files, each as a whole."""
    for file in report.files:
        content = file.content(folder) if callable(file.content) else file.content
        if isinstance(content, str):
            write_text(folder / file.name, content)
        elif content is not None:
            write_json(folder / file.name, content)
    write_text(folder / PAGE, page(report))
