"""The search itself: which of ordered candidates is the first that meets the SLO, by as few looks as possible.

Nothing here simulates. A look at a candidate costs what its effort says; more effort makes its verdict surer. Far from
the edge little effort decides; at the edge as much is spent as there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from sim.results.verdict import MET, NOT_MET, UNCLEAR

STEER = 1
"""Effort up to which a verdict is made surer while the edge is still far; beyond that the estimate says where to go."""
_WIDE_DOUBT = 3
"""Candidates side by side that stay unclear, after which the search takes larger steps to get out of them."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at one candidate showed.

    :ivar word: ``met``, ``not met`` or ``unclear``.
    :ivar score: the worst of the SLO's terms, value over target: above 1 misses it. Infinite: impossible.
    :ivar final: whether more effort can't change the word.
    """

    word: str
    score: float
    final: bool = False

    @property
    def hopeful(self) -> bool:
        """Whether the candidate meets the SLO, as far as one can tell."""
        return self.word == MET or (self.word == UNCLEAR and self.score <= 1)


Look = Callable[[int, int], Seen]
"""Look at a candidate with an effort, from 0; an effort that was already spent costs nothing again."""


@dataclass(slots=True)
class Edge:
    """Where the first candidates that meet the SLO begin.

    :ivar answer: the first that certainly meets it; None: none does.
    :ivar before: the last candidate before it that certainly does not; -1: there is none in the range.
    :ivar doubtful: candidates between the two, or beyond them, of which it stayed unclear.
    :ivar best: the candidate with the lowest score of all.
    :ivar seen: every candidate that was looked at.
    """

    answer: int | None
    before: int
    doubtful: list[int]
    best: int
    seen: dict[int, Seen] = field(default_factory=dict)

    @property
    def certain(self) -> bool:
        """Whether nothing more wanted may do after all."""
        return not self.doubtful


class Search:
    """Look for the edge among ``count`` candidates, the most wanted first.

    From a start it takes steps that double until one candidate meets the SLO and one before it doesn't, halves what
    lies between, and then makes sure of the two at the edge. Where neither end meets the SLO it goes down to the lowest
    score: more of a resource can be worse, if it is taken from another.

    :param efforts: how many there are.
    :param start: where to begin.
    """

    def __init__(self, count: int, look: Look, efforts: int, start: int = 0) -> None:
        assert count > 0, "there is a candidate"
        self._count = count
        self._look = look
        self._most = efforts - 1
        self._start = min(max(start, 0), count - 1)
        self._spent: dict[int, int] = {}
        self._found: int | None = None
        self.seen: dict[int, Seen] = {}

    def run(self) -> Edge:
        """Return the edge."""
        right = self._first_hopeful()
        doubtful: list[int] = []
        while right is not None:
            left = self._halve(self._before(right), right)
            right = left + 1
            found = self._settle(left, right, doubtful)
            if isinstance(found, Edge):
                return found
            right = found
        unclear = [
            index for index, seen in self.seen.items() if seen.word == UNCLEAR and self._spent[index] == self._most
        ]
        return Edge(None, self._count - 1, sorted({*doubtful, *unclear}), self._best(), self.seen)

    def possible(self, effort: int) -> Seen:
        """Say whether any candidate meets the SLO: the word of the one that looks best.

        :param effort: from 2 on, its verdict is made sure of.
        """
        if self._found is None:
            self._found = self._first_hopeful()
        found = self._best() if self._found is None else self._found
        if self._found is not None and effort > STEER:
            while self._sure(found) == NOT_MET:
                self._found = self._descend()
                if self._found is None:
                    break
                found = self._found
        seen = self.seen[found]
        sure = self._found is None or effort > STEER
        return Seen(seen.word, seen.score, final=sure and (seen.word != UNCLEAR or seen.final or effort >= self._most))

    def _see(self, index: int, effort: int = 0) -> Seen:
        """Look with at least this effort."""
        if index not in self.seen or (self._spent[index] < effort and not self.seen[index].final):
            self.seen[index] = self._look(index, effort)
            self._spent[index] = effort
        return self.seen[index]

    def _steer(self, index: int) -> bool:
        seen = self._see(index)
        if seen.word == UNCLEAR and not seen.final:
            seen = self._see(index, min(STEER, self._most))
        return seen.hopeful

    def _sure(self, index: int) -> str:
        """Spend what it takes to decide on a candidate; return the word."""
        for effort in range(min(STEER, self._most), self._most + 1):
            seen = self._see(index, max(effort, self._spent.get(index, 0)))
            if seen.word != UNCLEAR or seen.final:
                break
        return self.seen[index].word

    def _best(self) -> int:
        return min(self.seen, key=lambda index: (self.seen[index].score, index))

    def _before(self, index: int) -> int:
        """Return the nearest candidate before one that was seen not to meet the SLO; -1: none was."""
        return max((i for i, seen in self.seen.items() if i < index and not seen.hopeful), default=-1)

    def _first_hopeful(self) -> int | None:
        """Return a candidate that seems to meet the SLO, with one before it that doesn't, or at the start of all."""
        at, step = self._start, 1
        if self._steer(at):
            while at > 0:
                ahead = max(0, at - step)
                if not self._steer(ahead):
                    break
                at, step = ahead, 2 * step
            return at
        while at < self._count - 1:
            at, step = min(self._count - 1, at + step), 2 * step
            if self._steer(at):
                return at
        if self._start > 0 and self._steer(0):
            return 0
        return self._descend()

    def _descend(self) -> int | None:
        """Look beside the lowest score so far until a candidate meets the SLO, or none is left to look at."""
        while True:
            best = self._best()
            if not math.isfinite(self.seen[best].score):
                return None
            known = sorted({-1, *self.seen, self._count})
            place = known.index(best)
            gaps = [(known[place - 1], best), (best, known[place + 1])]
            middles = [(low + high) // 2 for low, high in gaps if high - low > 1]
            if not middles:
                return best if self._sure(best) != NOT_MET else None
            for middle in middles:
                if self._steer(middle):
                    return middle

    def _halve(self, left: int, right: int) -> int:
        """Return the last candidate that seems not to meet the SLO, between one that doesn't and one that does."""
        while right - left > 1:
            middle = (left + right) // 2
            if self._steer(middle):
                right = middle
            else:
                left = middle
        return left

    def _settle(self, left: int, right: int, doubtful: list[int]) -> Edge | int | None:
        """Make sure of the edge; return it, or where to look on, or None where nothing is left."""
        word, step = self._sure(right), 1
        while word == UNCLEAR:
            if right not in doubtful:
                doubtful.append(right)
            if right == self._count - 1:
                return None
            step = step if len(doubtful) <= _WIDE_DOUBT else 2 * step
            right = min(self._count - 1, right + step)
            word = self._sure(right)
        if word == NOT_MET:
            ahead = [i for i, seen in self.seen.items() if i > right and seen.hopeful]
            if ahead:
                return min(ahead)
            return right + 1 if right + 1 < self._count and self._steer(right + 1) else None
        tried = 0
        while left >= 0:
            word = self._sure(left)
            if word == MET:
                return left
            if word == NOT_MET:
                break
            if left not in doubtful:
                doubtful.append(left)
            tried += 1
            left -= 1 if tried <= _WIDE_DOUBT else tried
        left = max(left, -1)
        return Edge(right, left, sorted(i for i in doubtful if left < i < right), self._best(), self.seen)
