"""HTTP/1.1 answers, read piece by piece and within bounds: a server may send anything, and without end.

No sockets here: bytes go in as they come, pieces of the body come out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sim.errors import LoraplanError


class ServerError(LoraplanError):
    """The server can't be used, or failed during the study: exit code 3; what was measured until then is kept."""

    def __init__(self, problem: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(problem)
        self.problem, self.where, self.hint = problem, where, hint

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        return f"{where}{self.problem}{f'; {self.hint}' if self.hint else ''}"


HEAD_BYTES = 64 << 10
"""Bytes of status line and headers, at most; the same for the trailers of a body in chunks."""

PIECE_BYTES = 128
"""What a piece of a body counts for in addition to its bytes: many small ones take more memory than they have bytes."""

_SIZE_BYTES = 1 << 10
_INTERIM = 8
_STATUS = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: .*)?", re.DOTALL)
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_LENGTH = re.compile(r"[0-9]{1,15}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;.*)?", re.DOTALL)


class Broken(Exception):
    """The answer ended early, is not HTTP, or is larger than it may be."""


@dataclass(slots=True)
class Answer:
    """An answer, complete or up to where it broke.

    :ivar sent: when the request was handed to the socket, monotonic seconds.
    """

    sent: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class AnswerReader:
    """Reads one answer.

    :param answer: gets status and headers.
    :param most: bytes of body, each piece with ``PIECE_BYTES`` more.
    :ivar complete: whether the answer has ended.
    """

    def __init__(self, answer: Answer, most: int) -> None:
        self.complete = False
        self._answer = answer
        self._most = self._room = most
        self._buffer = bytearray()
        self._state = "head"
        self._left = 0
        self._interim = 0
        self._persistent = False

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another request: the answer has ended, and nothing came after it."""
        return self.complete and self._persistent and not self._buffer

    def feed(self, data: bytes) -> list[bytes]:
        """Return the pieces of body in what has come.

        :raises Broken: where it is not HTTP, or too large.
        """
        self._buffer += data
        pieces: list[bytes] = []
        while not self.complete and self._step(pieces):
            pass
        return pieces

    def close(self) -> bool:
        """Return whether the answer is complete now that the server has closed the connection."""
        self.complete = self.complete or self._state == "rest"
        return self.complete

    def _step(self, pieces: list[bytes]) -> bool:
        """Read a part; return whether there may be more to read."""
        if self._state == "head":
            return self._read_head()
        if self._state == "size":
            return self._read_size()
        if self._state == "trailers":
            return self._read_trailer()
        return self._read_body(pieces)

    def _read_head(self) -> bool:
        if not b"HTTP/1.".startswith(bytes(self._buffer[:7])):
            raise Broken("what answers is not HTTP")
        end = self._buffer.find(b"\r\n\r\n")
        if end > HEAD_BYTES or (end < 0 and len(self._buffer) > HEAD_BYTES):
            raise Broken(f"the headers of the answer are longer than {HEAD_BYTES >> 10} KiB")
        if end < 0:
            return False
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        found = _STATUS.fullmatch(first)
        if found is None:
            raise Broken("what answers is not HTTP")
        self._answer.status, self._answer.headers = int(found[2]), _headers(lines)
        if self._answer.status >= 200:
            self._begin_body(found[1] == "1")
            return True
        self._interim += 1
        if self._answer.status == 101 or self._interim > _INTERIM:
            raise Broken(f"no final answer came: HTTP {self._answer.status}")
        return True

    def _begin_body(self, kept_alive: bool) -> None:
        headers, status = self._answer.headers, self._answer.status
        self._persistent = kept_alive and "close" not in headers.get("connection", "").lower()
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if coding is not None and length is not None:
            raise Broken("the answer has a length and comes in chunks")
        if coding is not None and coding.lower() != "chunked":
            raise Broken("the answer has an unknown transfer encoding")
        if status in (204, 304):
            self.complete = True
        elif coding is not None:
            self._state = "size"
        elif length is not None:
            self._state, self._left = "length", _length(length)
            self._refuse_more_than(self._room, self._left)
            self.complete = self._left == 0
        else:
            self._state, self._persistent = "rest", False

    def _read_body(self, pieces: list[bytes]) -> bool:
        if not self._buffer:
            return False
        count = len(self._buffer) if self._state == "rest" else min(self._left, len(self._buffer))
        if count:
            self._refuse_more_than(self._room, count)
            pieces.append(bytes(self._buffer[:count]))
            del self._buffer[:count]
            self._room -= count + PIECE_BYTES
            self._left -= count
        if self._state == "chunk" and not self._left:
            return self._end_chunk()
        self.complete = self._state == "length" and not self._left
        return False

    def _read_size(self) -> bool:
        line = self._line(_SIZE_BYTES)
        if line is None:
            return False
        found = _CHUNK.fullmatch(line)
        if found is None:
            raise Broken("what answers is not HTTP: a chunk has no proper size")
        self._left = int(found[1], 16)
        self._refuse_more_than(self._room, self._left)
        self._state = "chunk" if self._left else "trailers"
        return True

    def _end_chunk(self) -> bool:
        if len(self._buffer) < 2:
            return False
        if not self._buffer.startswith(b"\r\n"):
            raise Broken("what answers is not HTTP: a chunk is longer than its size")
        del self._buffer[:2]
        self._state = "size"
        return True

    def _read_trailer(self) -> bool:
        line = self._line(HEAD_BYTES - self._left)  # of trailers, the bytes that came
        if line is None:
            return False
        self._left += len(line) + 2
        self.complete = not line
        return True

    def _line(self, most: int) -> bytes | None:
        """Take a line out of the buffer; None while it isn't complete."""
        end = self._buffer.find(b"\r\n")
        if end > most or (end < 0 and len(self._buffer) > most):
            raise Broken("what answers is not HTTP: a line of the body in chunks has no end")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _refuse_more_than(self, room: int, count: int) -> None:
        if count > room:
            raise Broken(f"the answer is larger than {self._most >> 10:,} KiB")


def _headers(lines: list[str]) -> dict[str, str]:
    values: dict[str, list[str]] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _NAME.fullmatch(name):
            raise Broken("what answers is not HTTP: a header without a name")
        values.setdefault(name.lower(), []).append(value.strip(" \t"))
    return {name: ", ".join(several) for name, several in values.items()}  # of one that stands twice, as HTTP says


def _length(text: str) -> int:
    lengths = {part.strip(" \t") for part in text.split(",")}
    first = lengths.pop()
    if lengths or not _LENGTH.fullmatch(first):
        raise Broken("the answer has no proper length")
    return int(first)
