"""A report as one HTML file that needs no network, and no JavaScript to be read; what makes pages of templates."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from reports.charts.svg import Chart
from reports.document import Part, Report
from reports.table import Table
from sim.results.run_directory.result_files import write_json, write_text
from sim.timing import timed

if TYPE_CHECKING:
    from jinja2 import Environment, Template

PAGE = "report.html"
_TEMPLATES = Path(__file__).parents[1] / "templates"
_GRID = {Table: "grid", Chart: "grid"}


def page(report: Report) -> str:
    """Return a report's page."""
    shown = [(section, groups(section.parts)) for section in report.sections() if section.parts]
    return template("report.html.j2").render(report=report, sections=shown, groups=groups, packed=packed)


def groups(parts: Sequence[Part]) -> list[tuple[str, list[Part]]]:
    """Return parts of one kind that follow each other together; tables among charts are of their kind."""
    found = []
    for kind, group in itertools.groupby(parts, lambda part: _GRID.get(type(part), type(part).__name__)):
        some = list(group)
        found.append(("tables" if kind == "grid" and Chart not in map(type, some) else kind, some))
    return found


def packed(parts: Sequence[Part]) -> list[tuple[str, list[Part]]]:
    """Return charts, tables and what stands between them for two columns, each for the one that is shorter so far."""
    found, ends = [], {"left": 0.0, "right": 0.0}
    for _, group in itertools.groupby(parts, lambda part: id(part) if isinstance(part, Chart | Table) else 0):
        some = list(group)
        side = min(ends, key=lambda each: ends[each])
        found.append((side, some))
        for part in some:  # about how many pixels it takes in a wide window
            if isinstance(part, Chart):
                ends[side] += 140 + float(part.svg.split('viewBox="', 1)[1].split('"')[0].split()[3])
            else:
                lines = math.ceil(len(str(part)) / 70)
                ends[side] += 100 + 40 * len(part.rows) if isinstance(part, Table) else 12 + 22 * lines
    return found


def snippet(report: Report) -> str:
    """Return the short answer and the first table of a terminal, for notebooks: in their style, no script."""
    opening, *rest = report.terminal
    sentences = [f"{label}: {text}" for label, text in report.short] or itertools.takewhile(bool, rest)
    found = next((part for part in rest if isinstance(part, Table)), None)
    table = found if found is None or found.unmarked is None else found.unmarked
    return template("notebook.html.j2").render(opening=opening, sentences=list(sentences), table=table)


@timed("report")
def write(report: Report, folder: Path) -> Path:
    """Write a report's page and its files, each as a whole; return the path of the page."""
    for file in report.files:
        content = file.content(folder) if callable(file.content) else file.content
        if isinstance(content, str):
            write_text(folder / file.name, content)
        elif content is not None:
            write_json(folder / file.name, content)
    write_text(folder / PAGE, page(report))
    return folder / PAGE


def current_page(folder: Path) -> bool:
    """Return whether a run directory has a page that is newer than all that it is made from."""
    made, tables = folder / PAGE, folder / "points.csv"
    if made.is_symlink() or not made.is_file() or not tables.is_file():
        return False
    package = Path(__file__).parents[1]
    sources = (file for pattern in ("*.py", "templates/**/*") for file in package.rglob(pattern))
    return made.stat().st_mtime_ns >= max(file.stat().st_mtime_ns for file in (tables, *sources))


def template(name: str) -> Template:
    """Return a page's template."""
    return environment().get_template(name)


@cache
def environment(folder: Path | None = None) -> Environment:
    """Return what makes pages of templates.

    :param folder: with further templates, which may include and import those of reports.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader([*([folder] if folder is not None else []), _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["script"] = page_script()
    made.filters["tied"] = tied
    return made


def tied(text: str) -> str:
    """Return a sentence whose lines don't break between a number and its unit: ``1 s``."""
    return _NUMBER_AND_UNIT.sub("\u00a0", text)


_NUMBER_AND_UNIT = re.compile(r"(?<=\d) (?=(?:µs|ms|s|min|h|%|pp|kB|MB|GB|TB)(?!\w))")


@dataclass(frozen=True)
class Script:
    """The one script of a page.

    :ivar hash: as the page's Content-Security-Policy names it: nothing but this text may run.
    """

    text: str
    hash: str


@cache
def page_script(file: Path = _TEMPLATES / "report.js") -> Script:
    """Return a page's script: of reports, the one that sorts tables and copies commands."""
    text = f"\n{file.read_text(encoding='utf-8')}"
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Script(text, f"sha256-{digest}")
