"""A report as a value: what a command found, before it is printed, drawn on a page, or kept in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.charts.svg import Chart
from reports.table import Table


class Heading(str):
    """A heading inside a section."""


class Paragraph(str):
    """Sentences that stand by themselves; a plain string is an entry of a list."""


class Caution(str):
    """What a reader should know about the input, as an entry of a list."""


@dataclass(frozen=True)
class Code:
    """Text to copy.

    :ivar label: what it is, for those who can't see it.
    :ivar command: whether it is one command, which is broken into lines rather than scrolled.
    """

    text: str
    label: str = "Command"
    command: bool = True


@dataclass(frozen=True)
class Provenance:
    """Label and text of each fact about where a report comes from."""

    rows: Sequence[tuple[str, str]]


Part = str | Table | Chart | Code | Provenance


class Section:
    """A part of a page. One without parts is left out, also of the list of sections at the top.

    :ivar title: empty: charts right below the answer.
    :ivar parts: what it shows, in order; tables and charts that follow each other stand side by side.
    :ivar listed: its name in that list; empty: it is not in there.
    :ivar note: on its parts, in small print.
    """

    def __init__(self, ident: str, title: str, *parts: Part | None, listed: str = "", note: str = "") -> None:
        self.ident, self.title, self.listed, self.note = ident, title, listed, note
        self.parts = [part for part in parts if part]


def method(*parts: Part | None, command: str, label: str = "Command") -> Section:
    """Return the section on how a report came about, with the command that makes it again."""
    again = (Heading("Do it again"), Code(command, label))
    return Section("method", "Method and provenance", *parts, *again, listed="Method")


@dataclass(frozen=True)
class File:
    """A file that a command leaves.

    :ivar content: text, or data to write as JSON; a function gets the folder. None: the command has written it.
    :ivar label: what it is, where the terminal names it; empty: it does not.
    :ivar hint: a line for the terminal below it; ``{}`` stands for its path.
    """

    name: str
    content: Any | Callable[[Path], Any]
    label: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Report:
    """What a command found.

    :ivar kind: the command, such as ``trace``; ``name``: of what it is about.
    :ivar data: as ``--json`` prints it.
    :ivar terminal: lines and tables, in order.
    :ivar lead: what the page is for.
    :ivar headline: the answer; ``statements``: what else there is to say, a sentence or a few each.
    :ivar sections: makes those of the page, below the answer: charts are drawn only if there will be a page.
    :ivar notes: what a reader should know about the input, as messages.
    :ivar margin: columns that labels of files take on the terminal.
    :ivar title: of the page, if it isn't the name.
    :ivar facts: label, figure and explanation, shown below the statements.
    :ivar verdict: mark, words, style and terms of a verdict, above the headline; ``cautions``: above the answer.
    """

    kind: str
    name: str
    data: Any
    terminal: Sequence[str | Table]
    lead: str = ""
    headline: str = ""
    statements: Sequence[str] = ()
    sections: Callable[[], Sequence[Section]] = tuple
    files: Sequence[File] = ()
    notes: Sequence[str] = ()
    margin: int = 8
    title: str = ""
    facts: Sequence[tuple[str, str, str]] = ()
    verdict: tuple[str, str, str, str] | None = None
    cautions: Sequence[str] = ()
