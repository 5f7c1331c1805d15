"""How commands speak: results to stdout, progress and messages to stderr.

Commands print with the functions below and in no other way: these escape what a terminal would obey. File names,
names of adapters and notes may come from strangers, also those in the middle of a sentence.
"""

from __future__ import annotations

import itertools
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.render.terminal import fitted, piped, style_of, wrapped, wrapped_command
from sim.cells import one_line
from sim.cli.streams import has_links, has_marks, width_of_terminal
from sim.errors import InputError
from sim.timing import Taken, timed

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console

    from reports.document import Report
    from reports.table import Table
    from sim.results.point import Point
    from sim.studies.backends.pool import Pool


_UNDER_WAY = 0.3
"""Share of a task under way that is taken to be done: half on average, less right after a round of equal tasks."""


class TimeLeft:
    """Estimate the time left from the tasks that are done, and those under way.

    The clock starts when work does: at the last report that nothing is done yet. Tasks under way, one for each
    worker but the one that has just reported, count in part. Between two reports the estimate counts down.

    :param workers: how many tasks run at a time.
    :param clock: returns seconds.
    """

    def __init__(self, workers: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers, self._clock = workers, clock
        self._started = self._reported = clock()
        self._left_s: float | None = None

    def report(self, done: int, total: int) -> None:
        """Take note of the tasks done and the tasks there are."""
        now = self._clock()
        if done == 0:
            self._started = now
            self._left_s = None
            return
        under_way = min(self._workers - 1, total - done)  # one worker has just begun
        finished = done + _UNDER_WAY * under_way
        self._reported = now
        self._left_s = (now - self._started) * (total - finished) / finished

    def seconds(self) -> float | None:
        """Return the time left; None before anything is done."""
        if self._left_s is None:
            return None
        return max(0.0, self._left_s - (self._clock() - self._reported))

    def text(self) -> str:
        """Return the time left in words; empty before anything is done."""
        seconds = self.seconds()
        return "" if seconds is None else f"about {round(seconds) // 60}:{round(seconds) % 60:02d} left"


def command_line() -> str:
    """Return the command as it was typed, to be kept with its results."""
    return shlex.join(["loraplan", *sys.argv[1:]])


def say(*lines: object, wraps: bool = True) -> None:
    """Print lines to stdout; a terminal gets them wrapped between words.

    A line break within a line is an escape too: no argument can look like several.

    :param wraps: False for what must stay as it is, such as code.
    """
    width = width_of_terminal() if wraps else None
    for line in lines:
        text = one_line(str(line))
        for each in [text] if width is None else wrapped(text, width):
            print(each)


def say_opening(opening: str, verdict: str | None) -> None:
    """Print the first line of a result; a terminal shows the verdict on the SLO by a mark and a colour."""
    width = width_of_terminal()
    text = one_line(opening)
    if width is None:
        print(text)
        return
    from rich.text import Text

    style, mark = style_of(verdict, marks=has_marks())
    for line in wrapped(f"{mark} {text}".strip(), width):
        _console(width).print(Text(line, style=f"bold {style}".strip()))


def say_file(label: str, path: Path) -> None:
    """Print a path behind its label; terminals that know links (OSC 8) open it on a click."""
    text = one_line(str(path))
    if has_links():
        text = f"\033]8;;{path.resolve().as_uri()}\033\\{text}\033]8;;\033\\"
    print(f"{label}{text}")


def say_command(label: str, command: str) -> None:
    """Print a command behind its label; a terminal gets it in lines that a shell reads as one."""
    text, width = one_line(command), width_of_terminal()
    for line in [f"{label}{text}"] if width is None else wrapped_command(label, text, width):
        print(line)


def say_json(data: Any) -> None:
    """Print data to stdout as JSON that reads back the same, whatever characters stdout can take."""
    encoding = sys.stdout.encoding or "utf-8"
    print(_escaped(to_json(data), lambda letter: letter == letter.encode(encoding, "replace").decode(encoding)))


def print_rich(table: Table) -> None:
    """Print a table to stdout: fitted to a terminal, in one piece to a pipe."""
    clean = replace(
        table, head=[one_line(name) for name in table.head], rows=[[one_line(cell) for cell in r] for r in table.rows]
    )
    width = width_of_terminal()
    if width is None:
        for line in piped(clean):
            print(line)
    else:
        for part in fitted(clean, width, marks=has_marks()):
            _console(width).print(part)


def _console(width: int) -> Console:
    from rich.console import Console

    return Console(width=width, highlight=False)


def prompt(question: str, default: str) -> str:
    """Ask on a terminal, on stderr.

    :raises typer.Abort: at the end of the input.
    """
    import typer
    from rich.console import Console
    from rich.prompt import Prompt
    from rich.text import Text

    class Asked(Prompt):
        def render_default(self, default: object) -> Text:
            return Text(f"[{default}]", "prompt.default")

    try:
        return Asked.ask(Text(one_line(question)), default=one_line(default), console=Console(stderr=True))
    except EOFError:
        raise typer.Abort from None


def message(text: str, quiet: bool) -> None:
    """Print a message to stderr."""
    if not quiet:
        line, width = one_line(text), width_of_terminal(sys.stderr)
        for each in [line] if width is None else wrapped(line, width):
            print(each, file=sys.stderr)


def say_notes(points: Sequence[Point], quiet: bool) -> None:
    """Print to stderr what readers of these points must know, once each."""
    for warning in dict.fromkeys(warning for point in points for warning in point.warnings):
        message(f"note: {warning}", quiet)


def pool_of(backend: list[str] | None, jobs: int, quiet: bool) -> AbstractContextManager[Pool]:
    """Return what opens the pool that ``--backend``, ``--address`` and ``--jobs`` select."""
    from sim.studies.backends.backend_choice import choose_backend, open_pool

    return open_pool(choose_backend(backend or []), jobs, lambda text: message(text, quiet))


def say_timing(taken: Taken) -> None:
    """Print to stderr where the time of a command went: longest first, of workers included."""
    message(f"{'stage':18}{'seconds':>10}{'CPU s':>10}{'of workers':>12}", quiet=False)
    taken = {**taken, "all": [sum(each) for each in zip(*taken.values(), strict=True)]}
    for name, (wall_s, cpu_s, workers_s) in sorted(taken.items(), key=lambda row: (row[0] == "all", -sum(row[1][1:]))):
        message(f"{name:18}{wall_s:10.3f}{cpu_s:10.3f}{workers_s:12.3f}", quiet=False)


def workers_of(jobs: int) -> int:
    """Return how many tasks ``--jobs`` runs at a time on this machine."""
    return jobs if jobs > 0 else os.cpu_count() or 1


_MOST_LINES = 20
"""Lines on the progress of a command without a terminal: one for each task, or for every 5 % of many."""


@contextmanager
def progress_bar(
    quiet: bool, doing: str = "simulating", workers: int = 1, *, lines: bool = False
) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with an estimate of the time left on a terminal.

    :param workers: how many tasks run at a time.
    :param lines: print lines where there is no terminal; nothing otherwise.
    """
    left = TimeLeft(workers)
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _progress_lines(doing, left) if lines and not quiet else lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text

    class Count(MofNCompleteColumn):
        def render(self, task: Task) -> Text:
            return super().render(task) if task.total else Text()

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text() if task.total is None else Text(left.text())

    def report(done: int, total: int) -> None:
        left.report(done, total)
        bar.update(task, completed=done, total=total)

    # A search doesn't know how much there is to do: then the bar says how long it has been at it, and no more.
    columns = (TextColumn(doing), BarColumn(), TimeElapsedColumn(), Count(), Left())
    # Few refreshes: some of what is timed is timed in this process.
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2) as bar:
        task = bar.add_task(doing, total=None)
        yield report


def _progress_lines(doing: str, left: TimeLeft) -> Callable[[int, int], None]:
    printed = 0

    def report(done: int, total: int) -> None:
        nonlocal printed
        left.report(done, total)
        due = done * _MOST_LINES // total if total else 0
        if due > printed:
            printed = due
            message(f"{doing}: {done} of {total}" + (f", {left.text()}" if done < total else ""), quiet=False)

    return report


def rich_rows(head: Sequence[Any], rows: Sequence[Sequence[Any]], **how: Any) -> Table:
    """Return a table for the terminal: the first column to the left, the others to the right.

    :param how: what else a ``Table`` has.
    """
    from reports.table import Table

    return Table("", [str(name) for name in head], [[str(cell) for cell in row] for row in rows], **how)


def file_stem(file: Path) -> str:
    """Return a trace's name without the endings of its format: ``t.csv.gz`` → ``t``."""
    name = file.name
    for suffix in (".gz", ".csv", ".jsonl", ".json", ".parquet"):
        name = name.removesuffix(suffix)
    return name or "trace"


def make_folder(folder: Path) -> None:
    """Make a folder for results.

    :raises InputError: if it can't be made, or holds a run, whose files would be overwritten.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("can't make this folder", key="--out", got=str(folder), hint=error.strerror) from None
    if (folder / "manifest.json").exists():
        raise InputError("this folder holds a run", key="--out", got=str(folder), hint="give another one")


def folder_for(out: Path | None, default: str, *, as_json: bool) -> Path | None:
    """Make the folder for results, if there will be any, and return it.

    :param out: as given; else it is ``default`` in ``runs``, and there is none with ``--json``.
    """
    folder = out or (None if as_json else Path("runs") / default)
    if folder is not None:
        make_folder(folder)
    return folder


@timed("report")
def finish(
    report: Report,
    folder: Path | None,
    *,
    as_json: bool,
    quiet: bool,
    every: bool = False,
    current: bool = False,
) -> None:
    """Print a report, and write its files: what every command ends with that returns a report.

    :param every: whether to print more than the short answer; ``current``: whether the folder has the files already.
    """
    from reports.document import Code, File, Opening
    from reports.render.html import PAGE, write

    for note in report.notes:
        message(f"note: {note}", quiet)
    if report.short and report.terminal:
        (opening, *parts), margin = report.terminal, max(len(label) for label, _ in report.short) + 2
        short = [opening, *(f"  {label:{margin}}{text}" for label, text in report.short)]
        parts = [*short, "", *parts] if every else [*short, "  All numbers and findings: --all, and the report."]
    else:
        parts = list(report.terminal)
    for part in () if as_json else parts:
        if isinstance(part, str):
            say(part)
        elif isinstance(part, Opening):
            say_opening(part.text, part.verdict)
        else:
            shown = part if part.unmarked is None or (width_of_terminal() and has_marks()) else part.unmarked
            print_rich(shown)
            say(*filter(None, [shown.note]))
    if as_json:
        say_json(report.data)
    sys.stdout.flush()  # it can be read while charts are drawn
    if folder is not None and not current:
        write(report, folder)
    if as_json:
        return
    if folder is not None:
        say("")
        files = [File(PAGE, None, "report"), *(file for file in report.files if file.label)]
        for label, group in itertools.groupby(files, lambda file: file.label):
            first, *others = group
            path = folder / first.name
            if others:
                say(f"{label:{report.margin}}{', '.join(map(str, (path, *(folder / each.name for each in others))))}")
            else:
                say_file(f"{label:{report.margin}}", path)
            say(*filter(None, [first.hint.replace("{}", shlex.quote(str(path)))]))
    for line in report.closing:
        say_command(f"{line.label:{report.margin}}", line.text) if isinstance(line, Code) else say(line)


def to_json(data: Any) -> str:
    """Return data as JSON text; control characters, which may stand in it, are escapes."""
    import json

    from sim.results.run_directory.result_files import json_ready

    text = json.dumps(json_ready(data), indent=2, ensure_ascii=False, allow_nan=False)
    return _escaped(text, lambda letter: letter.isprintable() or letter == "\n")


def _escaped(text: str, stays: Callable[[str], bool]) -> str:
    """Return JSON in which other characters than these are escapes of JSON."""
    import json

    if all(map(stays, set(text))):
        return text
    return "".join(letter if stays(letter) else json.dumps(letter)[1:-1] for letter in text)
