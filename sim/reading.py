"""Open files that may come from a stranger: regular files only, and no more of them than fits.

What goes wrong is an ``OSError`` whose ``strerror`` says it, so that readers tell it as they tell a missing file.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO

PROFILE_BYTES = 64 << 20
"""Bytes of a profile, at most. One with 200 bootstrap draws has 1 MB."""

MANIFEST_BYTES = 64 << 20
"""Bytes of a manifest, at most. One of 100,000 points has 10 to 20 MB."""

POINT_BYTES = 32 << 20
"""Bytes of a point's file, at most. They have 20 kB to 2 MB."""

RECORD_BYTES = 256 << 20
"""Bytes of a step record, unpacked, at most."""

TABLE_BYTES = 1 << 30
"""Bytes of a table of weights, counts or runs, at most: 20 million rows."""

ROW_BYTES = 4 << 20
"""Bytes of a row of a table, at most. Rows of 1,440 counts have 10 kB."""

BLOCK_BYTES = 16 << 20
"""Bytes of a block of rows, from which on it ends early: what is kept of them must not add up."""

_BYTES_A_BRACKET = 8
_BRACKETS = 1000
"""What JSON of ours has: an opening bracket in 8 bytes, but for a few. Lists of empty lists, at three bytes each, would
take twenty times their size of memory."""


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file.

    :raises OSError: for pipes, devices, folders and sockets, at once: opening a pipe would wait for a writer.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(mode) else "it is not a file", str(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | Path, limit: int) -> bytes:
    """Return the content of a regular file.

    :raises OSError: if it is none, or has more than ``limit`` bytes.
    """
    with open_regular(path) as file:
        return read_bounded(file, limit, str(path))


def read_bounded(raw: IO[bytes] | gzip.GzipFile, limit: int, path: str) -> bytes:
    """Return what is left of a stream, which may unpack to far more than the file has.

    :raises OSError: if that is more than ``limit`` bytes.
    """
    content = raw.read(limit + 1)
    if len(content) > limit:
        raise too_large(limit, path)
    return content


def open_text(path: str | Path, limit: int = TABLE_BYTES) -> io.TextIOWrapper:
    """Open a regular file as UTF-8 text, for the csv module.

    :raises OSError: if it is none or too large; while it is read, for a line that is longer than ``ROW_BYTES``.
    """
    file = open_regular(path)
    if os.fstat(file.fileno()).st_size > limit:
        file.close()
        raise too_large(limit, str(path))
    bounded = Bounded(file, lambda: OSError(errno.EFBIG, f"a line is longer than {_size(ROW_BYTES)}", str(path)))
    return io.TextIOWrapper(bounded, encoding="utf-8-sig", newline="")


def brackets_fit(raw: bytes) -> bool:
    """Return whether JSON has no more lists and tables than text of its length can mean."""
    return raw.count(b"[") + raw.count(b"{") <= _BRACKETS + len(raw) // _BYTES_A_BRACKET


def too_large(limit: int, path: str) -> OSError:
    """Return the error for a file with more than ``limit`` bytes."""
    return OSError(errno.EFBIG, f"it is larger than {_size(limit)}", path)


def inside(path: Path, root: Path) -> bool:
    """Return whether a path stays below a folder when links are followed."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # a link to itself, a NUL
        return False


class Bounded(io.BufferedIOBase):
    """A binary stream under text that a reader takes row by row: it refuses to go on for ever without a row.

    Line by line would be simpler, and cost a tenth of the time that a trace takes; this looks at whole pieces.

    :param refusal: makes the error for a row that is too long.
    :ivar row_bytes: read since the reader set it to 0, which it does at every row; so for lines that are not rows.
    :ivar block_bytes: the same for blocks; nothing is refused for it.
    """

    def __init__(self, raw: IO[bytes], refusal: Callable[[], Exception], *, rows: bool = False) -> None:
        self._raw, self._refusal, self._rows = raw, refusal, rows
        self.name = str(getattr(raw, "name", ""))  # which a text wrapper hands on
        self.row_bytes = self.block_bytes = 0

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1, /) -> bytes:
        data: bytes = self._raw.read1(size) if hasattr(self._raw, "read1") else self._raw.read(size)
        if not self._rows and b"\n" in data:
            self.row_bytes = 0
        self.row_bytes += len(data)
        self.block_bytes += len(data)
        if self.row_bytes > ROW_BYTES:
            raise self._refusal()
        return data

    def read(self, size: int | None = -1, /) -> bytes:
        return self.read1(-1 if size is None else size)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _size(count: int) -> str:
    return f"{count >> 20} MiB"
