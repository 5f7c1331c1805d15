"""What routers remember of the text that they sent, and to which replica.

A text is the runs of its tokens or characters, as ``Request.shared`` has them: (end, key) each, where equal keys mean
equal text up to there. What comes after the last run belongs to this text alone, and is never found again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sim.traffic.request import Request

Text = Sequence[tuple[int, int]]
"""(end, key) of each run, in order."""

CHARACTERS: Final = 4
"""Characters that stand for a token, for routers that see text."""


def in_characters(text: Text) -> list[tuple[int, int]]:
    """Return a text of tokens as one of characters."""
    return [(CHARACTERS * end, key) for end, key in text]


def text_of(request: Request | None) -> list[tuple[int, int]]:
    """Return the runs of a prompt, in tokens; of none, an empty text."""
    if request is None or (not request.shared and request.text_key < 0):
        return []
    text = beginning(request.shared, request.prompt_tokens)
    if request.text_key >= 0 and (text[-1][0] if text else 0) < request.prompt_tokens:
        text.append((request.prompt_tokens, request.text_key))
    return text


def beginning(text: Text, length: int) -> list[tuple[int, int]]:
    """Return the runs of the first tokens of a text."""
    found = []
    for end, key in text:
        found.append((min(end, length), key))
        if end >= length:
            break
    return found


class SentText:
    """How much of each text went to each replica; equal text of two scopes, such as adapters, counts as two.

    :param capacity: blocks that are remembered; the runs that were used least lately are forgotten first. 0: no limit.
    :param block: characters or tokens of a block.
    """

    def __init__(self, capacity: int = 0, block: int = 1) -> None:
        self._capacity, self._block = capacity, block
        self._ends: dict[int, dict[tuple[int, int], int]] = {}  # by run, then by scope and replica; latest use last
        self._blocks: dict[int, int] = {}  # of each run
        self._total = 0
        self._alone = -1

    def matched(self, text: Text, scope: int = 0) -> dict[int, int]:
        """Return by replica how much of a text has been there, of those that have had any."""
        found: dict[int, int] = {}
        before = 0
        for end, key in text:
            reached = self._ends.get(key)
            if reached is None:
                break
            there = {}
            for (of, replica), to in reached.items():
                if of == scope and (not before or found.get(replica) == before):
                    there[replica] = min(end, to)
            if not there:
                break
            found.update(there)
            before = end
        return found

    def sent(self, text: Text, length: int, replica: int, scope: int = 0) -> None:
        """Note that a text went to a replica.

        :param length: of the whole text, with what is its own.
        """
        begin = 0
        for end, key in text:
            reached = self._ends.pop(key, {})
            reached[scope, replica] = max(end, reached.get((scope, replica), 0))
            self._ends[key] = reached
            self._count(key, end // self._block - begin // self._block)
            begin = end
        if self._capacity:
            if length > begin:
                self._ends[self._alone] = {}
                self._count(self._alone, length // self._block - begin // self._block)
                self._alone -= 1
            while self._total > self._capacity and self._ends:
                oldest = next(iter(self._ends))
                del self._ends[oldest]
                self._total -= self._blocks.pop(oldest)

    def _count(self, key: int, blocks: int) -> None:
        before = self._blocks.get(key, 0)
        if blocks > before:
            self._blocks[key] = blocks
            self._total += blocks - before


class Span:
    """A piece of text in ``TextTree``, from the end of the one before.

    :ivar end: in the text. ``first``: the replica that had it first; ``replicas``: those that have it, in order.
    """

    def __init__(self, end: int, first: int, replicas: list[int]) -> None:
        self.end, self.first, self.replicas = end, first, replicas


class TextTree:
    """The tree of the SGLang gateway (``tree.rs``): every piece of text belongs to the replica that brought it.

    Others that get the same text later never become its owner, until the first is removed; then the next one does, as
    soon as a text ends there.
    """

    def __init__(self) -> None:
        self._spans: dict[int, list[Span]] = {}  # by run

    def matched(self, text: Text) -> tuple[int, int]:
        """Return how much of a text is known, and the owner of the last of it; -1 where nothing is known."""
        known = 0
        last: Span | None = None
        for end, key in text:
            for span in self._spans.get(key, ()):
                known, last = min(end, span.end), span
                if span.end >= end:
                    break
            if known < end:
                break
        if last is None:
            return 0, -1
        if last.first not in last.replicas:
            last.first = last.replicas[0]
        return known, last.first

    def insert(self, text: Text, replica: int) -> None:
        """Add a text that a replica gets."""
        for end, key in text:
            spans = self._spans.setdefault(key, [])
            for place, span in enumerate(spans):
                if span.end > end:
                    spans.insert(place, Span(end, span.first, span.replicas.copy()))
                    span = spans[place]
                if replica not in span.replicas:
                    span.replicas.append(replica)
                if span.end >= end:
                    break
            if not spans or spans[-1].end < end:
                spans.append(Span(end, replica, [replica]))

    def remove(self, replica: int) -> None:
        """Forget all text of a replica."""
        for key, spans in list(self._spans.items()):
            for span in spans:
                if replica in span.replicas:
                    span.replicas.remove(replica)
            spans[:] = [span for span in spans if span.replicas]
            if not spans:
                del self._spans[key]
