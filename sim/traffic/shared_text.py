"""Which tokens of a prompt other requests have too: system prompts, conversations, and blocks of a trace.

A key stands for a text from its first token on. If the same key covers a position in two requests, all their tokens up
to there are equal. So requests that leave a shared text have different keys from there on.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Ints
from sim.rng import stream, stream_key, uniform_draws
from sim.spec.sections.workload import SharedPrefix
from sim.traffic.lengths import TokenLengths
from sim.traffic.request import Runs

UNSHARED = -1
"""The key of tokens that no other request has."""


@dataclass(frozen=True, slots=True)
class SharedText:
    """The texts of consecutive requests.

    :ivar first: (n + 1,) place of each request's first run in ``ends`` and ``keys``, and the end of the last request's.
    :ivar ends, keys: (runs,) where a run of tokens ends, and the key of its text.
    :ivar rest: (n,) key of all tokens behind the runs, the answer included; ``UNSHARED``: no other request has them.
    """

    first: Ints
    ends: Ints
    keys: Ints
    rest: Ints

    def part(self, start: int, stop: int) -> SharedText:
        """Return the texts of the requests from ``start`` to before ``stop``."""
        first = self.first[start : stop + 1]
        runs = slice(int(first[0]), int(first[-1]))
        return SharedText(first - first[0], self.ends[runs], self.keys[runs], self.rest[start:stop])

    def pick(self, index: Ints) -> SharedText:
        """Return the texts of these requests, in this order."""
        counts = np.diff(self.first)[index]
        first = np.concatenate(([0], np.cumsum(counts)))
        runs = np.repeat(self.first[index] - first[:-1], counts) + np.arange(first[-1])
        return SharedText(first, self.ends[runs], self.keys[runs], self.rest[index])

    def of_requests(self) -> Iterator[tuple[Runs, int]]:
        """Yield the runs of each request, and the key of its other tokens."""
        return zip(self.runs_of_requests(), self.rest.tolist(), strict=True)

    def runs_of_requests(self) -> Iterator[Runs]:
        """Yield the runs of each request."""
        counts = np.diff(self.first)
        runs = zip(self.ends.tolist(), self.keys.tolist(), strict=True)
        if len(counts) and counts.min() == counts.max() <= 1:
            return zip(runs) if counts[0] else repeat((), len(counts))
        return (tuple(islice(runs, count)) for count in counts.tolist())


def repeated_tokens(text: SharedText, adapter: NDArray[Any] | None) -> int:
    """Return how many tokens of prompts an earlier request with the same adapter had from its first token on.

    :param adapter: (n,) of each request; None: all have the same.
    """
    longest: dict[tuple[int, int], int] = {}  # by adapter and key, the farthest that a request has gone in this text
    adapters = repeat(0) if adapter is None else adapter.tolist()
    repeated = 0
    for runs, number in zip(text.runs_of_requests(), adapters, strict=False):
        known = True
        begin = 0
        for end, key in runs:
            seen = longest.get((number, key), 0)
            if known and seen > begin:
                repeated += min(seen, end) - begin
            known = known and seen >= end
            if end > seen:
                longest[number, key] = end
            begin = end
    return repeated


def one_run_each(ends: Ints, keys: Ints, rest: Ints) -> SharedText:
    """Return texts with one run for each request, from its first token on."""
    return SharedText(np.arange(len(rest) + 1), ends, keys, rest)


class SystemPrompts:
    """The texts at the beginning of prompts, in one replication.

    :param adapters: how many there are, those of churn included.
    :ivar tokens: (texts,) length of each.
    """

    def __init__(self, law: SharedPrefix, adapters: int, seed: int, replication: int) -> None:
        self._by_adapter = law.shared_by == "adapter"
        self._texts = law.texts
        # The base model, adapter -1, has the last texts.
        count = law.texts * (adapters + 1 if self._by_adapter else 1)
        self.tokens: Ints = TokenLengths(law.tokens).draw(stream(seed, replication, "prefix-tokens"), count)
        self._key = stream_key(seed, replication, "prefix-text")

    def of(self, adapter: Ints, number: Ints) -> Ints:
        """Return the text of each request.

        :param number: of its session, or without sessions its own.
        """
        text = np.zeros(len(adapter), dtype=np.int64)
        if self._texts > 1:
            text += (uniform_draws(self._key, number) * self._texts).astype(np.int64)
        return (adapter * self._texts + text) % len(self.tokens) if self._by_adapter else text


class Conversations:
    """The conversations of one replication: how long each is so far, and the key of its text.

    :param max_context: most tokens of a prompt and its answer, unless the conversation has just begun.
    :param first_key: keys count from this one on.
    """

    def __init__(self, max_context: int, first_key: int) -> None:
        self._max_context = max_context
        self._next_key = first_key
        self._tokens = array("q")  # by session; 0: it has not begun
        self._keys = array("q")

    def begun(self, sessions: Ints) -> NDArray[np.bool_]:
        """Return whether each session has had a request."""
        self._make_room(sessions)
        return np.frombuffer(self._tokens, dtype=np.int64)[sessions] > 0

    def extend(self, sessions: Ints, prefix: Ints, own: Ints, output: Ints) -> tuple[Ints, Ints]:
        """Add requests, in order; return their prompts in tokens and the keys of their conversations.

        :param prefix: tokens with which the prompt of a new conversation begins.
        :param own: tokens that each prompt adds to what was said before.
        """
        self._make_room(sessions)
        tokens, keys, most = self._tokens, self._keys, self._max_context
        prompts, used = array("q"), array("q")
        for session, begin, new, answer in zip(
            sessions.tolist(), prefix.tolist(), own.tolist(), output.tolist(), strict=True
        ):
            before = tokens[session]
            prompt = before + new
            if not before or prompt + answer > most:
                prompt = begin + new
                keys[session] = self._next_key
                self._next_key += 1
            tokens[session] = prompt + answer
            prompts.append(prompt)
            used.append(keys[session])
        return np.frombuffer(prompts, dtype=np.int64), np.frombuffer(used, dtype=np.int64)

    def _make_room(self, sessions: Ints) -> None:
        more = int(sessions.max(initial=-1)) + 1 - len(self._tokens)
        if more > 0:
            self._tokens.frombytes(bytes(8 * more))
            self._keys.frombytes(bytes(8 * more))


class TextsOfRun:
    """Makes the prompts of one replication of the texts that they share and of their own tokens.

    :param prefixes: None: there are no system prompts; ``conversations``: None: sessions have no history.
    :param turns_before: by session, requests that it had before the run; sessions beyond begin in the run.
    """

    def __init__(
        self, prefixes: SystemPrompts | None, conversations: Conversations | None, turns_before: Ints | None = None
    ) -> None:
        self._prefixes = prefixes
        self._conversations = conversations
        self._turns_before = np.zeros(0, dtype=np.int64) if turns_before is None else turns_before

    def add(
        self, adapter: Ints, number: Ints, prompt: Ints, output: Ints, lengths: Callable[[Ints], tuple[Ints, Ints]]
    ) -> tuple[Ints, SharedText]:
        """Return the whole prompts of the next requests in tokens, and their texts.

        :param number: of the session of each, or without sessions its own.
        :param prompt: without what they share.
        :param lengths: draws prompts and answers of requests that sessions had before the run, by adapter.
        """
        prefixes, conversations = self._prefixes, self._conversations
        keys, begin = self._beginnings(adapter, number)
        if conversations is None:
            prompt, rest = begin + prompt, np.full(len(begin), UNSHARED)
        else:
            self._catch_up(conversations, adapter, number, lengths)
            prompt, rest = conversations.extend(number, begin, prompt, output)
        if prefixes is None:
            nothing = np.zeros(0, dtype=np.int64)
            return prompt, SharedText(np.zeros(len(rest) + 1, dtype=np.int64), nothing, nothing, rest)
        return prompt, one_run_each(begin, keys, rest)

    def within(self, adapter: Ints, number: Ints) -> SharedText:
        """Return the texts of requests whose prompts are already whole and begin with a system prompt."""
        keys, begin = self._beginnings(adapter, number)
        return one_run_each(begin, keys, np.full(len(begin), UNSHARED))

    def _beginnings(self, adapter: Ints, number: Ints) -> tuple[Ints, Ints]:
        """Return key and tokens of the text with which each prompt begins."""
        if self._prefixes is None:
            return np.full(len(adapter), UNSHARED), np.zeros(len(adapter), dtype=np.int64)
        keys = self._prefixes.of(adapter, number)
        return keys, self._prefixes.tokens[keys]

    def _catch_up(
        self, conversations: Conversations, adapter: Ints, number: Ints, lengths: Callable[[Ints], tuple[Ints, Ints]]
    ) -> None:
        """Give sessions that were under way at the start of the run, and come up now, their history."""
        sessions, place = np.unique(number, return_index=True)
        old = (sessions < len(self._turns_before)) & ~conversations.begun(sessions)
        place = np.sort(place[old])
        before = self._turns_before[number[place]]
        session, adapter = np.repeat(number[place], before), np.repeat(adapter[place], before)
        if len(session):
            _, begin = self._beginnings(adapter, session)
            conversations.extend(session, begin, *lengths(adapter))
