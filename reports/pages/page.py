"""The one way to write a page: a template, what every page shows, and what only this one does."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.results.run_directory.result_files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment, Template

_TEMPLATES = Path(__file__).parents[1] / "templates"


@dataclass(frozen=True)
class Page:
    """A page as its template needs it.

    :ivar template: file name in ``reports/templates``.
    :ivar name: of the run, trace or scenario that the page is about.
    :ivar command: the command that writes this page again.
    :ivar content: what only pages of this kind show.
    :ivar provenance: label and text of each fact about where the page comes from.
    :ivar notes: what the reader should know about the input.
    :ivar version: of loraplan, as the footer shows it; empty where a run of that version isn't the subject.
    """

    template: str
    name: str
    command: str
    content: Mapping[str, Any]
    provenance: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    version: str = ""

    def html(self) -> str:
        """Return the page as HTML that needs no network, and no JavaScript to be read."""
        shared = {
            "name": self.name,
            "command": self.command,
            "provenance": self.provenance,
            "notes": self.notes,
            "version": self.version,
        }
        return template(self.template).render(**shared, **self.content)

    def write(self, path: Path) -> Path:
        """Write the page and return its path; a reader never sees half a file."""
        write_text(path, self.html())
        return path


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
