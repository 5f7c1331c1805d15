"""The columns of a trace that say which tokens of a prompt other requests have too, and arrays that grow with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Ints, Ints32
from sim.errors import TraceError
from sim.spec.sections.laws import MAX_TOKENS
from sim.traffic.shared_text import UNSHARED, SharedText
from sim.traffic.traces.rows import Rows, hashes

PIECE = 1 << 18
"""Entries of a piece: 1 MB or more, so that its memory is mapped by itself and never leaves holes in the heap."""


class GrowingArray:
    """Append arrays of one type, and join them with no more than a piece in memory twice.

    :param kind: the type, such as ``np.float64``.
    """

    def __init__(self, kind: type[np.generic]) -> None:
        self._kind = kind
        self._pieces: list[NDArray[Any]] = []
        self._filled = 0
        self.count = 0

    def append(self, values: NDArray[Any]) -> None:
        """Append a one-dimensional array."""
        self.count += len(values)
        while len(values):
            if not self._pieces or self._filled == PIECE:
                self._pieces.append(np.empty(PIECE, dtype=self._kind))
                self._filled = 0
            room = values[: PIECE - self._filled]
            self._pieces[-1][self._filled : self._filled + len(room)] = room
            self._filled += len(room)
            values = values[len(room) :]

    def take(self) -> NDArray[Any]:
        """Return everything that was appended, and hold nothing any more."""
        whole = np.empty(self.count, dtype=self._kind)
        end = self.count
        while self._pieces:
            piece = self._pieces.pop()
            begin = len(self._pieces) * PIECE
            whole[begin:end] = piece[: end - begin]
            end = begin
        self.count = self._filled = 0
        return whole


PREFIX_ID, PREFIX_TOKENS, HASH_IDS = "prefix_id", "prefix_tokens", "hash_ids"
TEXT_COLUMNS = (PREFIX_ID, PREFIX_TOKENS, HASH_IDS)
TEXTS = ({PREFIX_ID, PREFIX_TOKENS}, {HASH_IDS})
"""The columns that go together; a log with others, such as ``prefix_tokens`` alone, means something else by them."""
MAX_RUNS = 500_000_000
"""Blocks with a hash of a whole trace, at most: they take 12 GB."""
_MAX_HASH = 1 << 62


def text_columns(header: Sequence[str], file: str) -> tuple[str, ...]:
    """Return those of ``TEXT_COLUMNS`` that a file has.

    :raises TraceError: where they do not go together.
    """
    there = tuple(column for column in TEXT_COLUMNS if column in header)
    if HASH_IDS in there and len(there) > 1:
        raise TraceError(
            "either hashes or prefixes say what requests share",
            file=file,
            line=1,
            got=", ".join(there),
            allowed=f"{HASH_IDS}, or {PREFIX_ID} and {PREFIX_TOKENS}",
        )
    if len(there) == 1 and HASH_IDS not in there:
        other = PREFIX_TOKENS if PREFIX_ID in there else PREFIX_ID
        raise TraceError(f"column {other} is missing", file=file, line=1, hint=f"{there[0]} needs it")
    return there


class TextReader:
    """Reads the text columns of a trace, block by block.

    :param columns: those that it has; :param hash_block: tokens of a block with a hash.
    """

    def __init__(self, columns: tuple[str, ...], hash_block: int) -> None:
        self._columns = columns
        self._hash_block = hash_block
        self._counts, self._ends = GrowingArray(np.int32), GrowingArray(np.int32)
        self._keys = GrowingArray(np.uint64)

    @property
    def by_user(self) -> bool:
        """Whether the texts are those of single users: blocks are, and prefixes are not."""
        return HASH_IDS in self._columns

    def check(self, rows: Rows, prompt: Ints32) -> _Block:
        """Check the cells of a block and return what they say."""
        return self._check_hashes(rows, prompt) if self.by_user else _check_prefixes(rows, prompt)

    def keep(self, block: _Block, good: NDArray[np.bool_]) -> None:
        """Keep what a block says of its good rows."""
        runs = np.repeat(good, block.counts)
        self._ends.append(block.ends[runs])
        self._keys.append(block.keys[runs])
        self._counts.append(block.counts[good])

    def finish(self) -> SharedText:
        """Return the texts of all requests."""
        import pandas as pd

        counts = self._counts.take()
        first = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)))
        keys = np.asarray(pd.factorize(self._keys.take())[0], dtype=np.int64)
        return SharedText(first, self._ends.take().astype(np.int64), keys, np.full(len(counts), UNSHARED))

    def _check_hashes(self, rows: Rows, prompt: Ints32) -> _Block:
        """Read the hashes of each prompt's blocks; an incomplete last block may have one or not."""
        size = self._hash_block
        lists = [_numbers(cell) for cell in rows.texts(HASH_IDS)]
        unreadable = np.array([found is None for found in lists], dtype=np.bool_)
        rows.refuse(unreadable, HASH_IDS, "not a list of hashes", "whole numbers, such as [17, 18, 40]")
        counts = np.array([0 if found is None else len(found) for found in lists], dtype=np.int64)
        wrong = rows.good & ((counts < prompt // size) | (counts > -(-prompt // size)))
        if wrong.any():
            place = int(np.argmax(wrong))
            rows.refuse(
                wrong,
                HASH_IDS,
                "the hashes contradict the length of the prompt",
                f"one for every {size:,} tokens (hash_block), with or without an incomplete last block",
                f"{counts[place]:,} hashes stand for {prompt[place]:,} tokens",
            )
        counts = np.where(rows.good, counts, 0)
        flat = [
            number for found, good in zip(lists, rows.good.tolist(), strict=True) if found and good for number in found
        ]
        first = np.concatenate(([0], np.cumsum(counts)))
        block_of = np.arange(first[-1]) - np.repeat(first[:-1], counts)
        ends = np.minimum((block_of + 1) * size, np.repeat(prompt, counts))
        if self._keys.count + len(flat) > MAX_RUNS:
            raise TraceError("too many hashes", key=HASH_IDS, allowed=f"up to {MAX_RUNS:,}")
        return _Block(counts, ends, np.array(flat, dtype=np.int64).astype(np.uint64))


class _Block(NamedTuple):
    """What the rows of a block share; bad rows have no runs."""

    counts: Ints
    ends: Ints
    keys: NDArray[np.uint64]


def _check_prefixes(rows: Rows, prompt: Ints32) -> _Block:
    """Read the name and length of each prompt's prefix; an empty name: it has none."""
    names = [cell.strip() for cell in rows.texts(PREFIX_ID)]
    named = np.array([bool(name) for name in names], dtype=np.bool_)
    tokens = np.nan_to_num(rows.numbers_where(PREFIX_TOKENS, named))
    bad = (tokens != np.floor(tokens)) | (tokens < 0) | (tokens > MAX_TOKENS)
    rows.refuse(bad, PREFIX_TOKENS, "not a token count", f"a whole number, 0 to {MAX_TOKENS:,}")
    rows.refuse(
        ~bad & (tokens > prompt), PREFIX_TOKENS, "the prefix is longer than the prompt", "up to the prompt's tokens"
    )
    has = rows.good & (tokens > 0)
    kept = [name for name, there in zip(names, has.tolist(), strict=True) if there]
    return _Block(has.astype(np.int64), tokens[has].astype(np.int64), hashes(kept))


def _numbers(cell: str) -> list[int] | None:
    """Return a list of whole numbers, written as in JSON or with spaces between them; None: it is none."""
    text = cell.strip()
    if text.startswith("[") != text.endswith("]") or not text.isascii() or "_" in text:
        return None
    try:
        found = list(map(int, text.removeprefix("[").removesuffix("]").replace(",", " ").split()))
    except ValueError:
        return None
    return found if all(-_MAX_HASH < number < _MAX_HASH for number in found) else None
