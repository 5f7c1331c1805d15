"""Record what loraplan says: commands and the files they leave, with the text below each.

A transcript is a text file. A line at its left edge says what to do, in a folder that begins empty; the indented lines
below it are what came of it:

- ``$ loraplan …``: run the command. Everything it prints, to stdout and stderr; ``[exit 2]`` if the code is not 0.
- ``$ show FILE …``: of a report the text that a reader sees, of any other file its lines.
- ``$ write FILE``: here the lines below are what to write.
- ``>>> …``: Python, with ``loraplan``; the value of an expression.
- ``# …``: a comment.

What differs from run to run (paths, times, versions) stands as ``…``. Of what is long the beginning stands, and a
digest of the rest, so that no change goes unseen. In the folder, ``repository`` leads to the checkout.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(__file__).with_name("same")
INDENT = "    "
FILE_LINES, TABLE_LINES, COLUMNS = 80, 8, 500
"""What stands of a file or of what a command prints, of a table in a report, and of a line."""

_VOLATILE = (
    (r"…/\S*?site-packages/", "…/"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?", "…"),
    (r"\b\d+\.\d+\.\d+\+[0-9a-f]{8}\b", "…"),
    (r"(loraplan|version) \d+\.\d+\.\d+", r"\1 …"),
    (r"^(took|versions) \|.*", r"\1 | …"),
    (r"\d[\d.,]* core seconds, \S+ a run", "… core seconds"),
    (r"(\"wall_s\": )[\d.e-]+", r"\1…"),
    (r"\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{8,64}\b", "…"),
)
_DISPLAY = ("display.max_rows", None, "display.max_columns", None, "display.width", 200, "display.precision", 6)
_SILENT = frozenset({"script", "style", "svg"})
_CELLS = frozenset({"dd", "td", "th"})
_WITHIN_A_LINE = frozenset(
    {"a", "abbr", "b", "code", "em", "i", "label", "small", "span", "strong", "sub", "sup", "time"}
)


def names(only: str, *, long: bool = False) -> list[str]:
    """Return the transcripts whose names (``text/plan``) contain a text.

    :param long: also those that take minutes (``long/answers``): every bundled scenario at its own size.
    """
    found = [f"text/{file.stem}" for file in FOLDER.glob("*.txt")]
    found += [f"long/{file.stem}" for file in FOLDER.glob("long/*.txt")] if long else []
    return sorted(name for name in found if only in name)


def file_of(name: str) -> Path:
    """Return the file of a transcript."""
    return FOLDER / f"{name.removeprefix('text/')}.txt"


def difference(name: str, found: str) -> list[str]:
    """Return a unified diff of what is recorded and what was found; empty: they are the same."""
    recorded = file_of(name).read_text(encoding="utf-8").splitlines()
    return list(difflib.unified_diff(recorded, found.splitlines(), f"{name} recorded", f"{name} now", lineterm=""))


def steps(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield what a transcript says to do, and the lines below each."""
    step, below = "", list[str]()
    for line in text.splitlines():
        if line and not line.startswith(INDENT):
            if step:
                yield step, below
            step, below = line, []
        elif line or below:
            below.append(line.removeprefix(INDENT))
    if step:
        yield step, below


def replay(text: str, folder: Path) -> str:
    """Do what a transcript says in an empty folder, and return the transcript of that."""
    import loraplan

    outputs = _outputs()
    (folder / "repository").symlink_to(ROOT)
    scope: dict[str, Any] = {"loraplan": loraplan}
    lines = []
    for step, below in steps(text):
        kind, _, rest = step.partition(" ")
        if step.startswith("$ loraplan "):
            ended = outputs.run(rest, folder)
            printed = shortened(ended.printed, FILE_LINES) + ([f"[exit {ended.code}]"] if ended.code else [])
        elif step.startswith("$ show "):
            printed = [line for name in rest.split()[1:] for line in shown(folder / name)]
        elif step.startswith("$ write "):
            while below and not below[-1]:
                below.pop()
            (folder / rest.split()[1]).write_text("".join(f"{line}\n" for line in below), encoding="utf-8")
            lines += [step, *(INDENT + line if line else "" for line in below), ""]
            continue
        elif kind == ">>>":
            with contextlib.chdir(folder):
                printed = shortened(evaluated(rest, scope).splitlines(), FILE_LINES)
        elif kind == "#":
            printed = []
        else:
            raise SystemExit(f"a transcript can't do this: {step}")
        lines += [step, *(INDENT + line if line else "" for line in map(constant, printed)), ""]
    return "\n".join(lines)


def _outputs() -> Any:
    """Return ``docs/outputs.py``, which runs the commands of the documents."""
    if "docs_outputs" not in sys.modules:
        spec = importlib.util.spec_from_file_location("docs_outputs", ROOT / "docs" / "outputs.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["docs_outputs"]


def evaluated(code: str, scope: dict[str, Any]) -> str:
    """Return the value of an expression as text, a table in full; of a statement nothing."""
    import pandas as pd

    try:
        expression = compile(code, "transcript", "eval")
    except SyntaxError:
        exec(code, scope)
        return ""
    with pd.option_context(*_DISPLAY):
        value = eval(expression, scope)
        return "" if value is None else value if isinstance(value, str) else repr(value)


def shown(file: Path) -> list[str]:
    """Return what a reader sees of a file."""
    if not file.exists():
        return ["(no such file)"]
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".html":
        return shortened(text.splitlines(), FILE_LINES)
    page = _PageText()
    page.feed(text)
    page.close()
    return page.lines


class _PageText(HTMLParser):
    """The visible text of a page: a line for each block and each row of a table; of charts their descriptions."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._line = ""
        self._silent: list[str] = []
        self._begins: list[int] = []  # of the tables and listings that are open
        self._listing = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SILENT or (self._silent and tag == "desc"):
            self._silent.append(tag)
        elif tag in _CELLS:
            self._line += " | " if self._line.strip() else ""
        elif not self._silent and tag not in _WITHIN_A_LINE:
            self._end_line()
        if tag in ("table", "pre"):
            self._begins.append(len(self.lines))
            self._listing = tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        ends = not self._silent or self._silent[-1] == "desc"
        if self._silent and tag == self._silent[-1]:
            self._silent.pop()
        if ends and tag != "dt" and tag not in _WITHIN_A_LINE and tag not in _CELLS:
            self._end_line()
        if tag in ("table", "pre"):
            begin = self._begins.pop()
            self.lines[begin:] = shortened(self.lines[begin:], TABLE_LINES)
            self._listing = False

    def handle_data(self, data: str) -> None:
        if self._silent and self._silent[-1] != "desc":
            return
        first, *others = data.split("\n") if self._listing else [re.sub(r"\s+", " ", data)]
        self._line += first
        for part in others:
            self._end_line()
            self._line = part

    def close(self) -> None:
        super().close()
        self._end_line()

    def _end_line(self) -> None:
        if self._line.strip():
            self.lines.append(self._line.rstrip() if self._listing else self._line.strip())
        self._line = ""


def shortened(lines: list[str], most: int) -> list[str]:
    """Return the first lines, and a digest of the others if there are more."""
    if len(lines) <= most + 1:
        return lines
    return [*lines[:most], f"(and {len(lines) - most} lines, {digest(map(constant, lines[most:]))})"]


def digest(lines: Iterable[str]) -> str:
    """Return a short digest of lines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:7]


def constant(line: str) -> str:
    """Return a line with ``…`` in place of what differs from run to run, and cut short with a digest if it is long."""
    for pattern, instead in _VOLATILE:
        line = re.sub(pattern, instead, line)
    line = re.sub(r"(?:\.\./)+[\w./-]*?(?=scenarios/)", "…/", line).replace(str(ROOT), "…")
    line = line.replace(f"{datetime.now(UTC):%Y-%m-%d}", "…").rstrip()
    return line if len(line) <= COLUMNS else f"{line[:COLUMNS]} (and more, {digest([line])})"
