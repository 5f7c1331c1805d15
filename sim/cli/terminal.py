"""How results look on a terminal: wrapped between words, in columns that fit, with colour and marks.

A pipe gets none of this: each sentence stays on one line there, and each table in one piece.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

LEAST_WIDTH = 40
"""Columns below which nothing is laid out more narrowly."""
_UNIT = re.compile(r"(?<=\d) (?=(?:[µmk]?s|min|h|d|%|[kMGT]i?B|pp)(?![\w]))")
_LABEL = re.compile(r"\S+(?: \S+)? {2,}(?=\S)")
_GLUE = "\N{NO-BREAK SPACE}"
_PROSE = 24
"""Width of a cell from which its column may wrap, if it has several words."""
_GAP = 2
"""Columns between two columns of a table."""
_MARK = 2
"""Columns of a mark and the space behind it."""
_WITHOUT_LINKS = ("", "dumb", "linux")
_STYLES = {"met": ("green", "✓"), "not met": ("red", "✗"), "unclear": ("yellow", "?")}


def width_of_terminal(stream: TextIO | None = None) -> int | None:
    """Return the columns of the terminal that a stream, or stdout, leads to; None: it leads elsewhere."""
    if not (stream or sys.stdout).isatty():
        return None
    return max(LEAST_WIDTH, shutil.get_terminal_size().columns)


def wrapped(line: str, width: int) -> list[str]:
    """Return a line as lines of at most ``width`` columns, broken between words and not before a unit.

    Lines after the first are indented: to the text behind a label, such as ``report  runs/x``, else by two more than
    the first. A word that is longer than a line, such as a path, stays whole.
    """
    indent = len(line) - len(line.lstrip(" "))
    label = _LABEL.match(line, indent)
    hang = label.end() if label and label.end() <= width * 2 // 5 else indent + 2
    text = line if label is None else line[: label.end()].replace(" ", _GLUE) + line[label.end() :]
    return _broken(text, width, hang)


def _broken(text: str, width: int, hang: int = 0) -> list[str]:
    """Return text as lines, broken between words and not before a unit; those after the first are indented."""
    found = textwrap.wrap(
        _UNIT.sub(_GLUE, text),
        width,
        subsequent_indent=" " * hang,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
    return [each.replace(_GLUE, " ") for each in found] or [""]


def wrapped_command(label: str, command: str, width: int) -> list[str]:
    """Return a command behind its label, broken before its options so that a shell reads the lines as one."""
    lines, room = [label], width - 2
    for part in re.split(r" (?=--)", command):
        longer = f"{lines[-1]}{'' if lines[-1] == label else ' '}{part}"
        if len(longer) <= room or lines[-1] == label:
            lines[-1] = longer
        else:
            lines[-1] += " \\"
            lines.append(" " * len(label) + part)
    return lines


def has_marks() -> bool:
    """Return whether stdout shows a check mark."""
    try:
        "✓✗".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def has_links() -> bool:
    """Return whether stdout leads to a terminal that shows links, or at least passes over them."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in _WITHOUT_LINKS


def style_of(verdict: str | None) -> tuple[str, str]:
    """Return the style and the mark of a verdict on an SLO; empty where there is none."""
    style, mark = _STYLES.get(verdict or "", ("", ""))
    return style, mark if has_marks() else ""


@dataclass(frozen=True)
class TerminalTable:
    """A table for rich. A terminal that is too narrow leaves out columns that can be spared, and says which.

    Where that is not enough, columns follow in parts, each with those that name a row.

    :ivar keys: how many columns name a row.
    :ivar words: columns that hold words rather than numbers; they align left.
    :ivar verdicts: the verdict that a cell shows, by row and column; a terminal gives it a mark and a colour.
    :ivar optional: columns that can be spared, the first one first.
    :ivar fits: whether to fit it to the terminal; without one it stays in one piece.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: int = 1
    words: Sequence[int] = ()
    verdicts: Mapping[tuple[int, int], str] = field(default_factory=dict)
    optional: Sequence[int] = ()
    fits: bool = field(default_factory=lambda: width_of_terminal() is not None)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, or its parts."""
        from rich.text import Text

        if not self.fits:
            yield self._part(list(range(len(self.head))), {})
            return
        ranges = {index: self._range(index) for index in range(len(self.head))}
        spared = self._spared(ranges, options.max_width)
        kept = {index: each for index, each in ranges.items() if index not in spared}
        for number, columns in enumerate(self._parts(kept, options.max_width)):
            if number:
                yield Text()
            yield self._part(columns, _widths({each: ranges[each] for each in columns}, options.max_width))
        if spared:
            names = ", ".join(self.head[index] for index in sorted(spared))
            for line in wrapped(f"A wider terminal also shows: {names}", options.max_width):
                yield Text(line, style="dim")

    def lines(self) -> list[str]:
        """Return the table in one piece and without colour: what rich prints, which takes a second for 1,000 rows."""
        from rich.cells import cell_len

        columns = list(range(len(self.head)))
        rows = [row for row in self.rows if self._is_shown(row, columns)]
        if any(self.head):
            rows.insert(0, self.head)
        widths = [max((cell_len(row[index]) for row in rows if index < len(row)), default=0) for index in columns]
        left = [self._aligns_left(index) for index in columns]
        found = []
        for row in rows:
            cells = []
            for index, cell in zip(columns, row, strict=False):
                text = cell.rstrip()
                space = " " * (widths[index] - cell_len(text))
                cells.append(text + space if left[index] else space + text)
            found.append((" " * _GAP).join(cells).rstrip())
        return found

    def _aligns_left(self, index: int) -> bool:
        """Return whether a column aligns left: the first one, words, and verdicts."""
        return index == 0 or index in self.words or any(column == index for _, column in self.verdicts)

    def _is_shown(self, row: Sequence[str], columns: Sequence[int]) -> bool:
        """Return whether a row has something in these columns; those that name rows don't count in later parts."""
        return self.keys in columns or any(row[index] for index in columns[self.keys :])

    def _spared(self, ranges: Mapping[int, tuple[int, int]], width: int) -> list[int]:
        """Return the columns to leave out: as few as let the others fit, or all that can be spared."""
        spared: list[int] = []
        for index in self.optional:
            if sum(least + _GAP for each, (least, _) in ranges.items() if each not in spared) - _GAP <= width:
                break
            spared.append(index)
        return spared

    def _parts(self, ranges: Mapping[int, tuple[int, int]], width: int) -> list[list[int]]:
        """Return the columns of each part."""
        keys = [index for index in ranges if index < self.keys]
        parts = [list(keys)]
        for index in ranges:
            if index in keys:
                continue
            taken = sum(ranges[each][0] + _GAP for each in parts[-1])
            if len(parts[-1]) > len(keys) and taken + ranges[index][0] > width:
                parts.append(list(keys))
            parts[-1].append(index)
        return parts

    def _range(self, index: int) -> tuple[int, int]:
        """Return the least and the most columns that a column takes: numbers don't wrap, many words do."""
        from rich.cells import cell_len

        cells = [row[index] for row in self.rows if index < len(row)]
        mark = _MARK if any(column == index for _, column in self.verdicts) else 0
        longest = max(map(cell_len, cells), default=0) + mark
        words = max((cell_len(word) for cell in cells for word in cell.split()), default=0)
        header = max(map(cell_len, self.head[index].split()), default=0)
        return max(header, min(longest, max(_PROSE, words))), max(longest, cell_len(self.head[index]))

    def _part(self, columns: list[int], widths: Mapping[int, int]) -> Any:
        from rich.table import Table
        from rich.text import Text

        result = Table(box=None, pad_edge=False, header_style="bold", show_header=any(self.head))
        for index in columns:
            justify: Any = "left" if self._aligns_left(index) else "right"
            result.add_column(Text(self.head[index]), justify=justify, width=widths.get(index))
        for number, row in enumerate(self.rows):
            if not self._is_shown(row, columns):
                continue  # a part further down has nothing to say of this row
            result.add_row(*(self._cell(number, index, widths.get(index)) for index in columns if index < len(row)))
        return result

    def _cell(self, row: int, column: int, width: int | None) -> Text:
        from rich.text import Text

        text, style = self.rows[row][column], ""
        if self.fits and (row, column) in self.verdicts:
            style, mark = style_of(self.verdicts[row, column])
            text = f"{mark} {text}".strip()
        return Text(text if width is None else "\n".join(_broken(text, width)), style)


def _widths(ranges: Mapping[int, tuple[int, int]], width: int) -> dict[int, int]:
    """Return widths between least and most; what is left goes to those first that need the least more.

    Where the least is too much, the widest column gets what is left.
    """
    found = {index: least for index, (least, _) in ranges.items()}
    left = width - sum(found.values()) - _GAP * (len(found) - 1)
    if left < 0:
        widest = max(found, key=lambda index: found[index])
        found[widest] = max(1, found[widest] + left)
    for index, (least, most) in sorted(ranges.items(), key=lambda item: item[1][1] - item[1][0]):
        more = max(0, min(left, most - least))
        found[index] += more
        left -= more
    return found
