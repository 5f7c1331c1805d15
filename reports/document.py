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


class Note(str):
    """Small print."""


@dataclass(frozen=True)
class Opening:
    """The first line of a result on the terminal, with a mark and a colour for the verdict on the SLO."""

    text: str
    verdict: str | None = None


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


class Columns:
    """Parts in columns side by side; a column without any is left out."""

    def __init__(self, *columns: Sequence[Part | None]) -> None:
        self.columns = [found for parts in columns if (found := [part for part in parts if part])]

    def __bool__(self) -> bool:
        """Return whether there is anything to show."""
        return bool(self.columns)


Part = str | Table | Chart | Code | Provenance | Columns


class Section:
    """A part of a page. One without parts is left out, also of the list of sections at the top.

    :ivar title: empty: it stands right below the answer, in two columns.
    :ivar parts: what it shows, in order. Charts, and tables among them, stand side by side.
    :ivar listed: its name in that list; empty: it is not in there.
    """

    def __init__(self, ident: str, title: str, *parts: Part | None, listed: str = "") -> None:
        self.ident, self.title, self.listed = ident, title, listed
        self.parts = [part for part in parts if part]


def method(*parts: Part | None, command: str) -> Section:
    """Return the section on how a report came about, with the command that makes it again."""
    again = (Heading("Do it again"), Code(command))
    return Section("method", "Method and provenance", *parts, *again, listed="Method")


@dataclass(frozen=True)
class File:
    """A file that a command leaves.

    :ivar content: text, or data to write as JSON; a function gets the folder. None: the command has written it.
    :ivar label: what it is, where the terminal names it; empty: it does not. Files of one label share a line.
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
    :ivar short: label and sentences of each line that follows the headline in the short answer.
    :ivar terminal: lines and tables, in order, with ``--all`` where there is a short answer; ``closing``: what stands
        below the files there.
    :ivar kicker: above the name on the page, after ``loraplan``; default: the kind.
    :ivar title: of the page, if it isn't the name.
    :ivar lead: what the page is for; ``setup``: on what it was simulated; ``swept``: over which values.
    :ivar cautions: what to know before reading the answer.
    :ivar verdict: mark, words, style and terms of a verdict, above the headline.
    :ivar headline: the answer; ``statements``: what else there is to say, a sentence or a few each.
    :ivar facts: label, figure and explanation, shown below them and the lines of ``short``.
    :ivar tiles: key numbers, and ``where`` they hold.
    :ivar sections: makes those of the page, below the answer: charts are drawn only if there will be a page.
    :ivar files: what it leaves besides the page; ``margin``: columns that their labels take on the terminal.
    :ivar notes: what a reader should know about the input, as messages.
    :ivar version: of loraplan, where a run of that version is the subject.
    """

    kind: str
    name: str
    data: Any
    terminal: Sequence[str | Table | Opening]
    kicker: str = ""
    title: str = ""
    lead: str = ""
    setup: str = ""
    swept: str = ""
    cautions: Sequence[str] = ()
    verdict: tuple[str, str, str, str] | None = None
    short: Sequence[tuple[str, str]] = ()
    headline: str = ""
    statements: Sequence[str] = ()
    facts: Sequence[tuple[str, str, str]] = ()
    tiles: Sequence[Any] = ()
    where: str = ""
    sections: Callable[[], Sequence[Section]] = tuple
    files: Sequence[File] = ()
    margin: int = 8
    closing: Sequence[str | Code] = ()
    notes: Sequence[str] = ()
    version: str = ""
