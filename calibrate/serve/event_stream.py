"""An event stream becomes stamps: when each piece with tokens came, and how many tokens had come by then."""

from __future__ import annotations

from typing import Any

from calibrate.serve.http_answer import PIECE_BYTES, Broken
from calibrate.serve.server_json import parse_json, words_of

PENDING_BYTES = 64 << 10
"""Bytes that are kept unread, pieces at ``PIECE_BYTES`` more each; from here on they are read at once."""

EVENT_BYTES = 64 << 10
"""Bytes of an event, at most. Those of vLLM have some 400."""

SPARE_TOKENS = 16
"""Tokens that may come beyond twice those that were asked for."""


class EventStream:
    """What comes of one answer.

    Pieces are kept and read later, a few at a time: reading them as they come would delay the stamps of other answers.

    :param asked: tokens that were asked for. An answer of more than twice as many is broken: some servers that do not
        count their tokens send one in two pieces.
    :param stamps: gets them.
    :ivar problem: what is wrong with the stream, as far as it was read; ``pending``: bytes that are kept unread.
    """

    def __init__(self, asked: int, stamps: list[tuple[float, int]]) -> None:
        self.problem = ""
        self._stamps = stamps
        self._most_tokens = 2 * asked + SPARE_TOKENS
        self._tokens = 0
        self._pieces: list[tuple[float, bytes]] = []
        self.pending = 0
        self._rest = b""

    def add(self, now: float, data: bytes) -> None:
        """Take a piece; an event may come in pieces, or several in one.

        :raises Broken: where something is wrong with those that were read by now.
        """
        self._pieces.append((now, data))
        self.pending += len(data) + PIECE_BYTES
        if self.pending > PENDING_BYTES:
            self.read()
        if self.problem:
            raise Broken(self.problem)

    def read(self) -> None:
        """Read what has come so far; what follows a problem is dropped."""
        pieces, self._pieces, self.pending = self._pieces, [], 0
        try:
            for now, data in pieces:
                if not self.problem:
                    self._read_piece(now, data)
        except ValueError as error:
            self.problem = str(error)

    def end(self) -> None:
        """Read what is left; half an event at the end counts nowhere."""
        self.read()
        self._rest = b""

    def _read_piece(self, now: float, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        before = self._tokens
        for line in lines:
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                self._tokens = self._count(_event(line[5:]))
        if len(self._rest) > EVENT_BYTES:
            raise ValueError(f"an event of more than {EVENT_BYTES >> 10} KiB")
        if self._tokens > before:
            self._stamps.append((now, self._tokens))

    def _count(self, event: dict[str, Any]) -> int:
        """Return the tokens that have come with this event."""
        usage, choices, tokens = event.get("usage"), event.get("choices"), self._tokens
        if usage:
            reported = usage.get("completion_tokens") if isinstance(usage, dict) else usage
            if reported is not None and type(reported) is not int:
                raise ValueError("an event with a number of tokens that is no number")
            tokens = max(tokens, reported or 0)
        elif choices:
            if not isinstance(choices, list) or not isinstance(choices[0], dict):
                raise ValueError("an event that is no completion")
            tokens += bool(choices[0].get("text"))  # a server that doesn't count as it goes: a piece is a token
        if tokens > self._most_tokens:
            raise ValueError("more tokens than were asked for")
        return tokens


def _event(data: bytes) -> dict[str, Any]:
    try:
        event = parse_json(data)
    except ValueError:
        raise ValueError("an event that is not JSON") from None
    if not isinstance(event, dict):
        raise ValueError("an event that is no JSON object")
    if event.get("error"):
        error = event["error"]
        raise ValueError(words_of(error.get("message") or error if isinstance(error, dict) else error))
    return event
