"""How commands speak: results to stdout, progress and messages to stderr.

Commands print with the functions below and in no other way: these escape what a terminal would obey. File names,
names of adapters and notes may come from strangers, also those in the middle of a sentence.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.cells import one_line
from sim.errors import InputError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sim.results.point import Point
    from sim.studies.backends.pool import Pool


def command_line() -> str:
    """Return the command as it was typed, to be kept with its results."""
    return shlex.join(["loraplan", *sys.argv[1:]])


def say(*lines: object) -> None:
    """Print lines to stdout. A line break within a line is an escape too: every argument stays one line."""
    for line in lines:
        print(one_line(str(line)))


def say_result(name: str, headline: str, points: Sequence[Point]) -> None:
    """Print the first two lines of every result: what was found, and on what it was simulated."""
    from reports.text.setup_text import setup_line

    say(f"{name}: {headline}")
    if line := setup_line(points):
        say(f"  {line}")


def say_json(data: Any) -> None:
    """Print data to stdout as JSON that reads back the same, whatever characters stdout can take."""
    encoding = sys.stdout.encoding or "utf-8"
    print(_escaped(to_json(data), lambda letter: letter == letter.encode(encoding, "replace").decode(encoding)))


def print_rich(renderable: Any) -> None:
    """Print a rich object to stdout; a pipe gets full width, so that nothing is cut off."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(renderable)


def message(text: str, quiet: bool) -> None:
    """Print a message to stderr."""
    if not quiet:
        print(one_line(text), file=sys.stderr)


def pool_of(backend: list[str] | None, jobs: int, quiet: bool) -> AbstractContextManager[Pool]:
    """Return what opens the pool that ``--backend``, ``--address`` and ``--jobs`` select."""
    from sim.studies.backends.backend_choice import choose_backend, open_pool

    return open_pool(choose_backend(backend or []), jobs, lambda text: message(text, quiet))


@contextmanager
def progress_bar(quiet: bool, doing: str = "simulating") -> Iterator[Callable[[int, int], None]]:
    """Show a bar with an estimate of the time left on a terminal, nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def rich_table(table: Any) -> Any:
    """Return a report's table for the terminal."""
    return rich_rows(table.head, table.rows)


def rich_rows(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> Any:
    """Return a table for the terminal: the first column to the left, the others to the right."""
    from rich.table import Table
    from rich.text import Text

    result = Table(box=None, pad_edge=False, header_style="bold", show_header=any(head))
    for index, name in enumerate(head):
        result.add_column(Text(one_line(str(name))), justify="left" if index == 0 else "right")
    for row in rows:
        result.add_row(*(Text(one_line(str(cell))) for cell in row))
    return result


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


def to_json(data: Any) -> str:
    """Return data as JSON text; control characters, which may stand in it, are escapes."""
    import json

    from sim.results.run_directory.result_files import json_ready

    return _escaped(json.dumps(json_ready(data), indent=2, ensure_ascii=False, allow_nan=False), _stays)


def _stays(letter: str) -> bool:
    return letter.isprintable() or letter == "\n"


def _escaped(text: str, stays: Callable[[str], bool]) -> str:
    """Return JSON in which other characters than these are escapes of JSON."""
    import json

    if all(map(stays, set(text))):
        return text
    return "".join(letter if stays(letter) else json.dumps(letter)[1:-1] for letter in text)
