"""Write what commands print into README and docs: run ``python docs/outputs.py [PAGE ...]``.

A page shows commands in blocks of ```` ```console ````, each with the output below it. This script runs them line by
line in an empty folder, one folder a page, and rewrites the outputs. ``tests/docs`` runs the same and compares.

- ``…`` on a line of its own stands for one or more lines that the page leaves out, ``…`` within a line for any text.
  Both stay where they are. Paths of this machine become ``…`` by themselves.
- Where a page shows nothing below a command, the whole output is written.
- A block below ``<!-- file: NAME -->`` is written to that file before the commands after it run.
- A block below ``<!-- long: why -->`` is run with ``--long`` only.
- A block below ``<!-- needs: EXTRA -->`` is run only where that extra is installed, and stays as it is elsewhere.
- A changed exit code is reported and not written: it is a change of behaviour, so somebody has to look at it.

Of the pages in ``WHOLE`` everything that their commands print is kept in ``tests/docs/whole``, and compared line by
line, also what the page leaves out.

Shown lines that found no counterpart, and numbers in the prose that outputs no longer show, are listed to be mended by
hand.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import importlib.util
import io
import itertools
import math
import os
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SKILL = ROOT / "skills" / "loraplan" / "SKILL.md"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    SKILL,
    *sorted((ROOT / "docs").glob("*.md")),
]

WHOLE = {ROOT / "README.md": "readme.txt", ROOT / "docs" / "tutorial.md": "tutorial.txt"}
"""Pages whose whole outputs are kept, in these files of ``tests/docs/whole``."""

EXTRAS = {"kernels": "aiconfigurator_core"}
"""Extras that blocks may need, and the package by which each is recognised."""

CUT = "…"

PROGRESS = re.compile(r"[a-z ]+: \d+ of \d+(, about \d+:\d\d left)?$")
"""What stands for the bar that a terminal shows, and that leaves nothing."""

WIDTH = 200
"""Columns of a page's outputs: what loraplan gives a pipe."""

BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>file|long|needs): (?P<text>.*?) -->\n)?```(?P<kind>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_ADD, _DROP = 0.5, 8.0
"""Costs of aligning two sequences: of showing an item that is new, and of losing one that was shown."""

_ALIKE = 0.7
"""Distance up to which one line may take another's place."""

_NUMBER = re.compile(r"\d[\d,.]*\d(?: (?:ms|s|%|GB|MB)(?!\w)|/s)?")
_WORD = re.compile(rf"{CUT}|\w+|\s+|[^\w\s]")

_ENVIRONMENT = {
    "COLUMNS": str(WIDTH),
    "NO_COLOR": "1",
    "LOKY_MAX_CPU_COUNT": "1",  # starting workers would cost more than these runs
    "FORCE_COLOR": None,
    "PY_COLORS": None,
    "GITHUB_ACTIONS": None,
    "LORAPLAN_DEBUG": None,
}
"""Variables that change what is printed, and how long it takes. None: unset."""


class PageError(Exception):
    """Say what of a page can't be understood."""


@dataclass
class Command:
    """A command of a page, with the output and exit code shown below it.

    :ivar line: line of the page on which it stands, from 1; its output begins on the next.
    :ivar needs: the extra without which it can't run; empty: none.
    """

    line: int
    text: str
    long: bool
    shown: list[str]
    code: int = 0
    needs: str = ""


@dataclass
class File:
    """A file that a page asks the reader to write."""

    name: str
    text: str


@dataclass
class Ended:
    """How a command ended: its exit code, and the lines it printed to stdout and stderr, in that order of time."""

    code: int
    printed: list[str]


def main() -> int:
    """Rewrite the outputs of the pages named, or of all."""
    parser = argparse.ArgumentParser(description="Write what commands print into README and docs.")
    parser.add_argument("pages", nargs="*", type=Path, help="such as docs/tutorial.md; unset: all")
    parser.add_argument("--long", action="store_true", help="also run the blocks marked as long")
    options = parser.parse_args()
    warnings.simplefilter("error")  # as in the tests: a warning is a failure, not a line of a page
    failed = False
    for page in options.pages or PAGES:
        before = page.read_text(encoding="utf-8")
        try:
            with tempfile.TemporaryDirectory() as folder:
                done = list(replay(page, Path(folder), options.long))
            after, problems = rewritten(page, done)
            if (kept := whole_file(page)) is not None:
                kept.parent.mkdir(exist_ok=True)
                kept.write_text(transcript(done), encoding="utf-8")
        except PageError as error:
            after, problems = before, [f" {error}"]
        for problem in problems:
            failed = True
            print(f"{page.name}:{problem}", file=sys.stderr)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(page.name)
            for line in lost_lines(before, after):
                print(f"  no longer shown: {line}")
            for number, value in stale_prose(before, after):
                print(f"  line {number} of the prose says {value}, which no output shows any more")
    return 1 if failed else 0


def whole_file(page: Path) -> Path | None:
    """Return the file with everything that a page's commands print; None: only what the page shows is kept."""
    name = WHOLE.get(page.resolve())
    return None if name is None else ROOT / "tests" / "docs" / "whole" / name


def transcript(done: Sequence[tuple[Command, Ended | None]]) -> str:
    """Return every command that ran, everything it printed, and its exit code if it is not 0."""
    lines = []
    for command, ended in done:
        if ended is not None:
            lines += [f"$ {command.text}", *ended.printed, *([f"exits with {ended.code}"] if ended.code else []), ""]
    return "".join(f"{line}\n" for line in lines)


def rewritten(page: Path, done: Sequence[tuple[Command, Ended | None]]) -> tuple[str, list[str]]:
    """Return the page with current outputs, and what has to be mended by hand: ``line: what is wrong``.

    :param done: its commands and how they ended, as ``replay`` yields them.
    """
    lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
    problems = []
    moved = 0
    for command, ended in done:
        if ended is None:
            continue
        if ended.code != command.code:
            said = "\n".join(ended.printed[-20:])
            problems.append(f"{command.line}: exits with {ended.code}, not {command.code}: {command.text}\n{said}")
            continue
        output = refreshed(command.shown, ended.printed)
        begin = command.line + moved
        lines[begin : begin + len(command.shown)] = [f"{line}\n" for line in output]
        moved += len(output) - len(command.shown)
    return "".join(lines), problems


def lost_lines(before: str, after: str) -> Iterator[str]:
    """Yield the shown lines whose commands now show fewer."""
    old, new = ([step for step in steps(text) if isinstance(step, Command)] for text in (before, after))
    for was, now in zip(old, new, strict=True):
        if len(_whole(was.shown)) > len(_whole(now.shown)):
            yield from (line for line in was.shown if line not in now.shown)


def _whole(shown: list[str]) -> list[str]:
    return [line for line in shown if line != CUT]


def stale_prose(before: str, after: str) -> Iterator[tuple[int, str]]:
    """Yield line and number where the prose repeats what an output showed before and none shows now."""
    gone = set(_NUMBER.findall(_outputs(before))) - set(_NUMBER.findall(_outputs(after)))
    prose = BLOCK.sub(lambda block: "\n" * block[0].count("\n"), after)
    for line, text in enumerate(prose.splitlines(), 1):
        for number in _NUMBER.findall(text):
            if number in gone:
                yield line, number


def _outputs(text: str) -> str:
    return "\n".join(block["body"] for block in BLOCK.finditer(text) if block["kind"] == "console")


# Reading pages and running their commands.


def steps(text: str) -> list[Command | File]:
    """Return what a reader of a page does, in order."""
    found: list[Command | File] = []
    for block in BLOCK.finditer(text):
        if block["mark"] == "file":
            found.append(File(block["text"], block["body"]))
        elif block["kind"] == "console":
            line = text.count("\n", 0, block.start("body")) + 1
            needs = block["text"] if block["mark"] == "needs" else ""
            found += _commands(block["body"].splitlines(), line, block["mark"] == "long", needs)
    return found


def has_extra(name: str) -> bool:
    """Return whether an extra that blocks may need is installed; every other name is an error of the page."""
    if name not in EXTRAS:
        raise PageError(f"a block needs the extra {name!r}, which is none of {', '.join(EXTRAS)}")
    return importlib.util.find_spec(EXTRAS[name]) is not None


def _commands(lines: list[str], first: int, long: bool, needs: str) -> Iterator[Command]:
    command: Command | None = None
    ended = asked = False
    for number, text in enumerate(lines, first):
        if text == "$ echo $?":
            asked = True
        elif asked:
            if command is None:
                raise PageError(f"line {number}: an exit code without a command")
            command.code, asked, ended = int(text), False, True
        elif text.startswith("$ "):
            if command is not None:
                yield command
            command, ended = Command(number, text[2:], long, [], needs=needs), False
        else:
            if command is None:
                raise PageError(f"line {number}: output without a command")
            if ended:
                raise PageError(f"line {number}: output below an exit code")
            command.shown.append(text)
    if command is not None:
        yield command


def replay(page: Path, folder: Path, long: bool) -> Iterator[tuple[Command, Ended | None]]:
    """Do what a page says in an empty folder; yield each command and how it ended.

    What is yielded is None of commands that were not run: those whose extra is not installed.

    :param long: also run commands marked as long; unless it is set, they are only checked.
    """
    for step in steps(page.read_text(encoding="utf-8")):
        if isinstance(step, File):
            (folder / step.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / step.name).write_text(step.text, encoding="utf-8")
        elif step.long and not long:
            checked = run(_as_check(step.text), folder)
            if checked.code:
                raise PageError(f"line {step.line}: {step.text}\n" + "\n".join(checked.printed))
            yield step, None
        elif step.needs and not has_extra(step.needs):
            yield step, None
        else:
            yield step, run(step.text, folder)


def run(text: str, folder: Path) -> Ended:
    """Run a loraplan command in this process."""
    from sim.cli import main

    words = shlex.split(text)
    if words[0] != "loraplan":
        raise PageError(f"only loraplan is run here, not {text!r}")
    said = io.StringIO()
    with (
        contextlib.chdir(folder),
        _variables(_ENVIRONMENT),
        _arguments(words),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        try:
            main()
            code: object = 0
        except SystemExit as stopped:
            code = stopped.code
    printed = said.getvalue()
    for path in (folder.resolve(), folder, ROOT):
        printed = printed.replace(f"{path}{os.sep}", f"{CUT}/")
    lines = [line.rstrip() for line in printed.splitlines() if not PROGRESS.match(line)]
    while lines and not lines[-1]:
        lines.pop()
    return Ended(code if isinstance(code, int) else 0, lines)


@contextlib.contextmanager
def _variables(values: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    _set_variables(values)
    try:
        yield
    finally:
        _set_variables(before)


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


def _as_check(text: str) -> str:
    """Return the command that checks what a long one would simulate."""
    words = shlex.split(text)
    kept = ["loraplan", "check", words[2]]
    for option, value in itertools.pairwise(words):
        if option == "--set":
            kept += ["--set", value]
        if option == "--over":
            key, _, values = value.partition("=")
            kept += ["--set", f"sweep={{{key}: [{values}]}}"]
    return shlex.join(kept)


# Comparing a shown output with a printed one, and bringing it up to date.


def matches(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Return whether a page's lines are the whole output, but for what ``…`` stands for."""
    pattern = "".join(r"(?:.*\n)+" if line == CUT else _line_pattern(line) + r"\n" for line in shown)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None


def _line_pattern(line: str) -> str:
    return ".*".join(re.escape(part) for part in line.split(CUT))


def refreshed(shown: Sequence[str], printed: Sequence[str]) -> list[str]:
    """Return a page's lines with what is printed now, leaving out what they left out.

    Lines are aligned so that the changes are least, whereby ``…`` takes in any number of lines for nothing.
    """
    if matches(shown, printed):
        return list(shown)
    if not shown:
        return list(printed)
    result = _aligned(shown, printed, _distance, _line)
    assert matches(result, printed), "an output that was just written must match"
    return result


def _aligned(
    old: Sequence[str], new: Sequence[str], distance: Callable[[str, str], float], replaced: Callable[[str, str], str]
) -> list[str]:
    """Align two sequences by dynamic programming, and return the new one with the old one's cuts.

    :param distance: how unlike two items are, from 0 to 1; infinite if one can't take the other's place.
    :param replaced: returns what stands in the result for an old item and the new one in its place.
    """
    # cells[i][j]: the least cost of aligning the first i old items with the first j new ones, and its last move.
    cells: list[list[tuple[float, str]]] = []
    for i in range(len(old) + 1):
        cells.append([])
        cut = i > 0 and old[i - 1] == CUT
        for j in range(len(new) + 1):
            options = [] if i or j else [(0.0, "")]
            if i and j and not cut:
                options.append((cells[i - 1][j - 1][0] + _DROP * distance(old[i - 1], new[j - 1]), "pair"))
            if i:
                options.append((cells[i - 1][j][0] + (0 if cut else _DROP), "drop"))
            if j:
                options.append((cells[i][j - 1][0] + (0 if cut else _ADD), "leave out" if cut else "add"))
            cells[i].append(min(options, key=lambda option: option[0]))
    result: list[str] = []
    i, j = len(old), len(new)
    while i or j:
        move = cells[i][j][1]
        if move == "pair":
            result.append(replaced(old[i - 1], new[j - 1]))
        elif move == "add":
            result.append(new[j - 1])
        elif move == "leave out" and result[-1:] != [CUT]:
            result.append(CUT)
        i -= move in ("pair", "drop")
        j -= move != "drop"
    return result[::-1]


def _line(old: str, new: str) -> str:
    if CUT not in old:
        return new
    if re.fullmatch(_line_pattern(old), new):
        return old
    words = _aligned(_WORD.findall(old), _WORD.findall(new), lambda a, b: 0.0 if a == b else math.inf, lambda a, b: b)
    return "".join(words)


@functools.cache
def _distance(old: str, new: str) -> float:
    """Return how unlike two lines are: by label, by words, and by words without their numbers."""
    if re.fullmatch(_line_pattern(old), new):
        return 0.0
    if not old or not new:
        return math.inf
    plain = [re.sub(r"\d+", "0", text) for text in (old, new)]
    same_label = re.split(r"  |:", old.strip())[0] == re.split(r"  |:", new.strip())[0]
    unlike = 1 - (_likeness(old, new) + _likeness(*plain) + same_label) / 3
    return unlike if unlike <= _ALIKE else math.inf


def _likeness(old: str, new: str) -> float:
    return difflib.SequenceMatcher(None, old.split(), new.split(), autojunk=False).ratio()


if __name__ == "__main__":
    sys.exit(main())
