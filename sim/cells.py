"""Text in tables and messages: what a spreadsheet would run or a terminal obey is made plain."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable

_FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"-?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def text_cell(text: str) -> str:
    """Return a text for a cell of a CSV file: one that a spreadsheet would run as a formula gets a quote before it.

    Numbers such as ``-1`` stay as they are: nothing can be run in them.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def csv_text(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return a CSV file; texts of strangers go through ``text_cell``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return out.getvalue()


def one_line(text: str) -> str:
    """Return a text that stays on one line of a terminal: nothing in it can look like a line of ours.

    Control characters and lone surrogates are escapes, every space a plain one.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(letter: str) -> str:
    if letter.isprintable():
        return letter
    if unicodedata.category(letter) == "Zs":  # no-break spaces do no harm, and not every terminal has them
        return " "
    return letter.encode("unicode_escape").decode("ascii")


def printable(text: str, limit: int = 120) -> str:
    """Return a stranger's text for one place in a sentence: cut short, no control characters, no lone surrogates."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return short if short.isprintable() else ascii(short)
