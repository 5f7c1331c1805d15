"""How reports look on a terminal: lines wrapped between words, tables in columns that fit, with colour and marks.

A pipe gets none of this: each sentence stays on one line there, and each table in one piece.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table as RichTable
    from rich.text import Text

    from reports.table import Table

_UNIT = re.compile(r"(?<=\d) (?=(?:[µmk]?s|min|h|d|%|[kMGT]i?B|pp)(?![\w]))")
_LABEL = re.compile(r"\S+(?: \S+)? {2,}(?=\S)")
_GLUE = "\N{NO-BREAK SPACE}"
_PROSE = 24
"""Width of a cell from which its column may wrap, if it has several words."""
_GAP = 2
"""Columns between two columns of a table."""
_MARK = 2
"""Columns of a mark and the space behind it."""
_STYLES = {"met": ("green", "✓"), "not met": ("red", "✗"), "unclear": ("yellow", "?")}


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


def style_of(verdict: str | None, *, marks: bool) -> tuple[str, str]:
    """Return the style and the mark of a verdict on an SLO; empty where there is none.

    :param marks: whether the terminal has the letters.
    """
    style, mark = _STYLES.get(verdict or "", ("", ""))
    return style, mark if marks else ""


def piped(table: Table) -> list[str]:
    """Return a table in one piece and without colour: what rich prints, which takes a second for 1,000 rows."""
    from rich.cells import cell_len

    columns = list(range(len(table.head)))
    rows: list[Sequence[str]] = [row for row in table.rows if _is_shown(table, row, columns)]
    if any(table.head):
        rows.insert(0, table.head)
    widths = [max((cell_len(row[index]) for row in rows if index < len(row)), default=0) for index in columns]
    left = [_aligns_left(table, index) for index in columns]
    found = []
    for row in rows:
        cells = []
        for index, cell in zip(columns, row, strict=False):
            text = cell.rstrip()
            space = " " * (widths[index] - cell_len(text))
            cells.append(text + space if left[index] else space + text)
        found.append((" " * _GAP).join(cells).rstrip())
    return found


def fitted(table: Table, width: int, *, marks: bool) -> Iterator[RichTable | Text]:
    """Yield a table for rich, with the marks and colours of its verdicts.

    A terminal that is too narrow leaves out columns that can be spared, and says which. Where that is not enough,
    columns follow in parts, each with those that name a row.
    """
    from rich.text import Text

    ranges = {index: _range(table, index) for index in range(len(table.head))}
    spared: list[int] = []
    for index in table.optional:  # as few as let the others fit, or all
        if sum(least + _GAP for each, (least, _) in ranges.items() if each not in spared) - _GAP <= width:
            break
        spared.append(index)
    for number, columns in enumerate(_parts(table, [each for each in ranges if each not in spared], ranges, width)):
        if number:
            yield Text()
        widths = _widths({each: ranges[each] for each in columns}, width)
        yield rich_table(table, columns, widths, marks=marks)
    if spared:
        names = ", ".join(table.head[index] for index in sorted(spared))
        for line in wrapped(f"A wider terminal also shows: {names}", width):
            yield Text(line, style="dim")


def _aligns_left(table: Table, index: int) -> bool:
    """Return whether a column aligns left: the first one, words, and verdicts."""
    return index == 0 or index in table.words or any(column == index for _, column in table.verdicts)


def _is_shown(table: Table, row: Sequence[str], columns: Sequence[int]) -> bool:
    """Return whether a row has something in these columns; those that name rows don't count in later parts."""
    return table.keys in columns or any(row[index] for index in columns[table.keys :])


def _range(table: Table, index: int) -> tuple[int, int]:
    """Return the least and the most columns that a column takes: numbers don't wrap, many words do."""
    from rich.cells import cell_len

    cells = [row[index] for row in table.rows if index < len(row)]
    mark = _MARK if any(column == index for _, column in table.verdicts) else 0
    longest = max(map(cell_len, cells), default=0) + mark
    words = max((cell_len(word) for cell in cells for word in cell.split()), default=0)
    header = max(map(cell_len, table.head[index].split()), default=0)
    return max(header, min(longest, max(_PROSE, words))), max(longest, cell_len(table.head[index]))


def _parts(table: Table, columns: Sequence[int], ranges: Mapping[int, tuple[int, int]], width: int) -> list[list[int]]:
    """Return the columns of each part."""
    keys = [index for index in columns if index < table.keys]
    parts = [list(keys)]
    for index in columns[len(keys) :]:
        taken = sum(ranges[each][0] + _GAP for each in parts[-1])
        if len(parts[-1]) > len(keys) and taken + ranges[index][0] > width:
            parts.append(list(keys))
        parts[-1].append(index)
    return parts


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


def rich_table(table: Table, columns: Sequence[int], widths: Mapping[int, int], *, marks: bool) -> RichTable:
    """Return some columns of a table for rich; those without a width take what they need."""
    from rich.table import Table as RichTable
    from rich.text import Text

    part = RichTable(box=None, pad_edge=False, header_style="bold", show_header=any(table.head))
    for index in columns:
        justify: Any = "left" if _aligns_left(table, index) else "right"
        part.add_column(Text(table.head[index]), justify=justify, width=widths.get(index))
    for number, row in enumerate(table.rows):
        if not _is_shown(table, row, columns):
            continue  # a part further down has nothing to say of this row
        cells = []
        for index in columns:
            if index < len(row):
                style, mark = style_of(table.verdicts.get((number, index)), marks=marks)
                text = f"{mark} {row[index]}".strip() if mark else row[index]
                width = widths.get(index)
                cells.append(Text(text if width is None else "\n".join(_broken(text, width)), style))
        part.add_row(*cells)
    return part
