"""Standard output and error: where they lead, checked at the start, guarded afterwards.

What can't be written stops a command with one sentence and exit code 2; a reader that has seen enough stops nothing.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from sim.errors import InputError, OutputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


_LEAST_WIDTH = 40
"""Columns below which nothing is laid out more narrowly."""
_WITHOUT_LINKS = ("", "dumb", "linux")


def width_of_terminal(stream: TextIO | None = None) -> int | None:
    """Return the columns of the terminal that a stream, or stdout, leads to; None: it leads elsewhere."""
    if not (stream or sys.stdout).isatty():
        return None
    return max(_LEAST_WIDTH, shutil.get_terminal_size().columns)


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


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Guard ``sys.stdout`` and ``sys.stderr`` for as long as a command runs."""
    for descriptor in (0, 1, 2):  # one that is closed would go to the next file, and what is printed into that file
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    before = sys.stdout, sys.stderr
    sys.stdout = _guarded(sys.stdout, "standard output", "replace")
    sys.stderr = _guarded(sys.stderr, None, "backslashreplace") or open(os.devnull, "w")  # noqa: SIM115
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with suppress(OutputError):  # a command that went well has flushed already
                    stream.flush()
        sys.stdout, sys.stderr = before


def check_surroundings() -> None:
    """Refuse to start where results can't be printed, or relative paths lead nowhere.

    :raises InputError: saying so.
    """
    if sys.stdout is None:
        raise OutputError("is closed", file="standard output", hint="to see no results, add >/dev/null")
    if not working_folder_exists():
        raise InputError("no longer exists", file="the working folder", hint="change to another one")


def working_folder_exists() -> bool:
    """Return whether the folder in which the command runs is there."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _guarded(stream: TextIO | None, name: str | None, errors: str) -> Any:
    """Return a stream that writes where another one does, or that one if there is nothing below it.

    :param name: said where it can't be written; None: what can't be written is dropped.
    :param errors: what becomes of characters that the stream's encoding lacks.
    """
    binary = getattr(stream, "buffer", None)
    if stream is None or binary is None:
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Guard(getattr(binary, "raw", binary), name)),
        encoding=stream.encoding,
        errors=errors,
        # A stream that writes through, as stderr does, would still wait in the buffer below.
        line_buffering=getattr(stream, "line_buffering", False) or getattr(stream, "write_through", False),
        write_through=getattr(stream, "write_through", False),
    )


class _Guard(io.RawIOBase):
    """The lowest layer of a stream, so that whatever prints, Typer and Rich too, goes through it.

    Nothing is written after the first failure: the next write would only fail again.
    """

    def __init__(self, raw: Any, name: str | None) -> None:
        self._raw, self._name = raw, name
        self._failed = False

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def fileno(self) -> int:
        number: int = self._raw.fileno()
        return number

    def write(self, data: ReadableBuffer, /) -> int | None:
        if self._failed:
            return memoryview(data).nbytes
        try:
            written: int | None = self._raw.write(data)
        except OSError as error:
            self._failed = True
            if self._name is not None and not isinstance(error, BrokenPipeError):
                raise OutputError(f"can't be written: {error.strerror or error}", file=self._name) from None
            return memoryview(data).nbytes
        return written
