"""The search itself: which of ordered candidates is the first that meets the SLO, with few evaluations.

Nothing here simulates. Evaluating a candidate costs more with more effort, and its verdict gets surer. Far from the
edge little effort decides; at the edge the search spends all there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from sim.results.verdict import MET, NO_DATA, NOT_MET, PROBABLE, UNCLEAR

STEER = 1
"""Effort up to which a verdict is made surer while the edge is far; beyond it, the estimate gives the direction."""
_WIDE_DOUBT = 3
"""Neighbouring candidates that stay unclear before the search takes larger steps to get past them."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the evaluation of one candidate showed.

    :ivar word: ``met``, ``not met`` or ``unclear``.
    :ivar score: the worst of the SLO's terms, value over target: above 1 misses it. Infinite: it can't be built.
    :ivar final: whether the word stays the same with more effort.
    :ivar probability: how likely it meets the SLO.
    """

    word: str
    score: float
    final: bool = False
    probability: float = NO_DATA

    @property
    def hopeful(self) -> bool:
        """Whether the candidate meets the SLO, as far as is known."""
        return self.word == MET or (self.word == UNCLEAR and self.score <= 1)


Evaluate = Callable[[int, int], Judgement]
"""Evaluates a candidate with an effort, from 0; repeating an effort costs nothing."""


@dataclass(slots=True)
class Edge:
    """Where the first candidates that meet the SLO begin.

    :ivar answer: the first that certainly meets it; None: none does.
    :ivar before: the last candidate before it that certainly misses it; -1: there is none in the range.
    :ivar doubtful: candidates between or beyond the two whose verdict stayed unclear.
    :ivar best: the candidate with the lowest score of all.
    :ivar judgements: of every candidate that was evaluated.
    """

    answer: int | None
    before: int
    doubtful: list[int]
    best: int
    judgements: dict[int, Judgement] = field(default_factory=dict)


class Search:
    """Find the edge among ``count`` candidates, the most wanted first.

    From a start, steps double until one candidate meets the SLO and one before it does not. Bisection narrows the gap,
    and more effort then confirms the two at the edge. Where neither end meets the SLO, the search descends to the
    lowest score: more of a resource can be worse if another pays for it.

    :param efforts: how many there are.
    :param start: where to begin.
    :param sure: the effort from which a verdict counts that isn't unclear.
    """

    def __init__(self, count: int, evaluate: Evaluate, efforts: int, start: int = 0, sure: int = STEER) -> None:
        assert count > 0, "there is a candidate"
        self._count = count
        self._evaluate = evaluate
        self._most = efforts - 1
        self._sure_from = min(sure, self._most)
        self._start = min(max(start, 0), count - 1)
        self._spent: dict[int, int] = {}
        self._scores: dict[int, float] = {}  # of first evaluations: the longer an overloaded run, the worse its score
        self._found: int | None = None
        self._edge: Edge | None = None
        self.judgements: dict[int, Judgement] = {}

    def run(self) -> Edge:
        """Return the edge; calling it again costs nothing."""
        if self._edge is None:
            self._edge = self._search()
        return self._edge

    def _search(self) -> Edge:
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
            index
            for index, effort in self._spent.items()
            if effort == self._most and self.judgements[index].word == UNCLEAR
        ]
        return Edge(None, self._count - 1, sorted({*doubtful, *unclear}), self._best(), self.judgements)

    def possible(self, effort: int) -> Judgement:
        """Judge whether any candidate meets the SLO: the most promising one, or with more effort the whole search."""
        if effort > STEER:
            return self._concluded()
        if self._found is None:
            self._found = self._first_hopeful()
        found = self.judgements[self._best() if self._found is None else self._found]
        return replace(found, final=self._found is None and found.word != UNCLEAR)

    def _concluded(self) -> Judgement:
        edge = self.run()
        if edge.answer is not None:
            return replace(self.judgements[edge.answer], final=True)
        if edge.doubtful:
            return replace(
                max((self.judgements[i] for i in edge.doubtful), key=lambda each: each.probability), final=True
            )
        return replace(self.judgements[edge.best], word=NOT_MET, final=True)

    def _judge(self, index: int, effort: int = 0) -> Judgement:
        if index not in self.judgements or (self._spent[index] < effort and not self.judgements[index].final):
            self.judgements[index] = judgement = self._evaluate(index, effort)
            self._scores.setdefault(index, judgement.score)
            self._spent[index] = effort
        return self.judgements[index]

    def _steer(self, index: int) -> bool:
        judgement = self._judge(index)
        if judgement.word == UNCLEAR and not judgement.final:
            judgement = self._judge(index, min(STEER, self._most))
        return judgement.hopeful

    def _sure(self, index: int) -> str:
        """Spend what it takes to decide on a candidate; return the word."""
        for effort in range(self._sure_from, self._most + 1):
            judgement = self._judge(index, max(effort, self._spent.get(index, 0)))
            if judgement.word != UNCLEAR or judgement.final:
                break
        return self.judgements[index].word

    def _best(self) -> int:
        return min(self._scores, key=lambda index: (self._scores[index], index))

    def _before(self, index: int) -> int:
        """Return the nearest candidate before this one that misses the SLO; -1: none is known."""
        return max((i for i, judgement in self.judgements.items() if i < index and not judgement.hopeful), default=-1)

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
        """Try neighbours of the lowest score so far until a candidate meets the SLO or none is left."""
        if not math.isfinite(self.judgements[self._best()].score):  # those that can't be built cost nothing
            first = next((i for i in range(self._count) if math.isfinite(self._judge(i).score)), None)
            if first is None:
                return None
            if self._steer(first):
                return first
        while True:
            best = self._best()
            known = sorted({-1, *self.judgements, self._count})
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
        """Confirm the edge; return it, the candidate from which to continue, or None where none is left."""
        word, step = self._sure(right), 1
        behind = left
        while word == UNCLEAR:
            behind = right
            if right not in doubtful:
                doubtful.append(right)
            if right == self._count - 1:
                return None
            step = step if len(doubtful) <= _WIDE_DOUBT else 2 * step
            right = min(self._count - 1, right + step)
            word = self._sure(right)
        while word == MET and step > 1 and right - behind > 1:  # a larger step may have gone too far
            middle = (behind + right) // 2
            found = self._sure(middle)
            if found == UNCLEAR and middle not in doubtful:
                doubtful.append(middle)
            behind, right = (behind, middle) if found == MET else (middle, right)
        if word == NOT_MET:
            ahead = [i for i, judgement in self.judgements.items() if i > right and judgement.hopeful]
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
            if self.judgements[left].probability <= 1 - PROBABLE:  # those before it are even less likely
                left = max((i for i, each in self.judgements.items() if i < left and each.word == NOT_MET), default=-1)
                break
            tried += 1
            left -= 1 if tried <= _WIDE_DOUBT else tried
        left = max(left, -1)
        return Edge(right, left, sorted(i for i in doubtful if left < i < right), self._best(), self.judgements)
