"""The search for the edge, with made-up verdicts: no simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.results.verdict import MET, NOT_MET, UNCLEAR
from sim.studies.plan.candidates import Variable
from sim.studies.plan.questions import _two
from sim.studies.plan.search import STEER, Edge, Judgement, Search

EFFORTS = 5
COSTS = (2, 5, 10, 20, 40)


@dataclass
class World:
    """Scores by candidate; an evaluation shows them with an error that shrinks with effort.

    :ivar resolution: half-width of what the least effort can tell apart.
    """

    score: Callable[[int], float]
    resolution: float = 0.0
    spent: dict[int, int] = field(default_factory=dict)
    cost: int = 0

    def evaluate(self, index: int, effort: int) -> Judgement:
        before = self.spent.get(index, -1)
        assert effort > before, "nothing is evaluated twice"
        self.cost += COSTS[effort] - (COSTS[before] if before >= 0 else 0)
        self.spent[index] = effort
        score, half = self.score(index), self.resolution / math.sqrt(COSTS[effort])
        if math.isinf(score):
            return Judgement(NOT_MET, score, final=True)
        if score + half <= 1:
            return Judgement(MET, score)
        return Judgement(NOT_MET if score - half > 1 else UNCLEAR, score)


def found(world: World, count: int, start: int = 0) -> Edge:
    return Search(count, world.evaluate, EFFORTS, start).run()


@given(st.integers(1, 500), st.data())
def test_a_monotone_edge_is_found_exactly_wherever_the_search_begins(count: int, data: st.DataObject) -> None:
    edge = data.draw(st.integers(0, count - 1))
    start = data.draw(st.integers(0, count - 1))
    world = World(lambda index: 0.5 if index >= edge else 2.0)
    result = found(world, count, start)
    assert (result.answer, result.before, result.doubtful) == (edge, edge - 1, [])
    assert len(world.spent) <= 2 * math.log2(count + 1) + 4


@given(st.integers(2, 300), st.data())
def test_the_left_edge_of_a_window_is_found(count: int, data: st.DataObject) -> None:
    """More of a resource is worse again: scores fall to a lowest one, which meets the SLO, and rise after it."""
    lowest = data.draw(st.integers(0, count - 1))
    slope_before, slope_after = (data.draw(st.floats(0.02, 0.5)) for _ in range(2))
    depth = data.draw(st.floats(0.01, 0.5))

    def score(index: int) -> float:
        away = (lowest - index) * slope_before if index < lowest else (index - lowest) * slope_after
        return 1 - depth + away

    world = World(score)
    result = found(world, count, data.draw(st.integers(0, count - 1)))
    expected = next(index for index in range(count) if score(index) <= 1)
    assert result.answer == expected
    assert result.before == expected - 1


@given(st.integers(1, 200), st.integers(0, 199))
def test_where_nothing_meets_it_the_best_is_named(count: int, lowest: int) -> None:
    world = World(lambda index: 1.5 + 0.1 * abs(index - lowest))
    result = found(world, count, start=count // 2)
    assert result.answer is None
    assert not result.doubtful
    assert result.best == min(lowest, count - 1)


def test_the_nearest_is_found_among_runs_of_the_same_length() -> None:
    def evaluate(index: int, effort: int) -> Judgement:
        if index < 3:
            return Judgement(NOT_MET, 4.0)
        return Judgement(NOT_MET if effort else UNCLEAR, 1.0 * COSTS[effort])  # overloaded: longer is worse

    assert Search(4, evaluate, EFFORTS, 3).run().best == 3


def test_what_cannot_be_built_is_never_the_answer() -> None:
    world = World(lambda index: math.inf if index >= 10 else 2.0 - 0.12 * index)
    result = found(world, 64, start=40)
    assert result.answer == 9
    assert result.before == 8


def test_a_close_call_is_marked_and_the_answer_is_one_that_certainly_does() -> None:
    world = World(lambda index: 1.3 - 0.01 * index, resolution=0.1)  # 30 is exactly at the target
    result = found(world, 64, start=0)
    assert 30 in result.doubtful
    half = 0.1 / math.sqrt(COSTS[-1])
    assert result.answer is not None
    assert world.score(result.answer) + half <= 1
    assert world.score(result.before) - half > 1
    assert all(world.score(i) - half <= 1 < world.score(i) + half for i in result.doubtful)


@given(st.floats(0.05, 1.0))
def test_the_first_that_is_certain_is_found_behind_however_many_close_calls(resolution: float) -> None:
    world = World(lambda index: 1.3 - 0.01 * index, resolution=resolution)
    result = found(world, 64, start=0)
    certain = [i for i in range(64) if world.score(i) + resolution / math.sqrt(COSTS[-1]) <= 1]
    assert result.answer == next(iter(certain), None)


def test_effort_goes_where_the_decision_is() -> None:
    world = World(lambda index: 2.0 if index < 40 else 0.5 if index > 41 else (1.02, 0.98)[index - 40], resolution=0.1)
    result = found(world, 64, start=0)
    assert (result.answer, result.before) == (41, 40)
    assert world.spent[40] == world.spent[41] > 1
    assert all(effort <= 1 for index, effort in world.spent.items() if index not in (40, 41))


@pytest.mark.parametrize("word", [MET, NOT_MET])
def test_a_first_look_that_was_wrong_is_found_out_at_the_edge(word: str) -> None:
    """The first evaluation next to the edge is wrong; the confirmation corrects it."""
    edge = 20
    liar = edge if word == NOT_MET else edge - 1

    def evaluate(index: int, effort: int) -> Judgement:
        truth = MET if index >= edge else NOT_MET
        if index == liar and effort == 0:
            return Judgement(word, 0.9 if word == MET else 1.1)
        return Judgement(truth, 0.9 if truth == MET else 1.1)

    result = Search(64, evaluate, EFFORTS, start=edge).run()
    assert (result.answer, result.before) == (edge, edge - 1)


def test_the_search_stops_at_a_neighbour_that_is_probably_not_enough() -> None:
    """What lies before it is even less likely, so effort there would tell nothing new."""
    chances = {5: 1.0, 4: 0.9, 3: 0.1}
    spent: dict[int, int] = {}

    def evaluate(index: int, effort: int) -> Judgement:
        spent[index] = effort
        chance = chances.get(index, 0.0)
        return Judgement(MET if chance == 1 else UNCLEAR, 1 if chance > 0.5 else 1.1, probability=chance)

    result = Search(6, evaluate, EFFORTS, start=5).run()
    assert (result.answer, result.doubtful) == (5, [3, 4])
    assert spent[3] == EFFORTS - 1
    assert max(spent.get(index, 0) for index in (0, 1, 2)) <= STEER


def test_a_search_says_whether_anything_will_do() -> None:
    assert Search(32, World(lambda index: 2.0 - 0.05 * index).evaluate, EFFORTS).possible(0).hopeful
    nothing = Search(32, World(lambda index: 3.0 - 0.05 * index).evaluate, EFFORTS).possible(4)
    assert (nothing.word, nothing.final) == (NOT_MET, True)
    unsure = Search(8, World(lambda index: 1.0, resolution=1.0).evaluate, EFFORTS).possible(4)
    assert (unsure.word, unsure.final) == (UNCLEAR, True)


def test_a_candidate_that_looked_good_in_a_short_run_does_not_hide_the_next() -> None:
    def evaluate(index: int, effort: int) -> Judgement:
        if index:
            return Judgement(MET, 0.8)
        return Judgement(UNCLEAR, 0.95 if effort < EFFORTS - 1 else 1.8)

    assert Search(3, evaluate, EFFORTS).possible(EFFORTS - 1).word == MET


def test_a_first_value_is_no_answer_before_a_second_value_is_confirmed() -> None:
    """In short runs a value of the first variable looks fine; with more effort no value of the second is certain."""
    searches: dict[int, Search] = {}

    def inner(first: int) -> Search:
        def evaluate(index: int, effort: int) -> Judgement:
            if first == 0 and effort > 0:
                return Judgement(UNCLEAR, 0.9, final=True, probability=0.6 + 0.1 * index)
            return Judgement(MET, 0.5, probability=1.0)

        return searches.setdefault(first, Search(3, evaluate, EFFORTS))

    edge = Search(2, lambda first, effort: inner(first).possible(effort), EFFORTS, sure=STEER + 1).run()
    assert (edge.answer, edge.doubtful) == (1, [0])
    assert edge.judgements[0].probability == pytest.approx(0.8), "of its likeliest second value"
    assert searches[1].run().answer == 0


def test_of_two_keys_every_open_design_is_named_once_and_every_first_value_has_a_row() -> None:
    """Replicas 2 and 3 stay open with several numbers of slots, and no design certainly meets the SLO."""
    made: dict[tuple[int, int], Any] = {}

    def design(set_: dict[str, int], named: object = None) -> Any:
        key = (set_["fleet.replicas"], set_["cache.gpu.slots"])
        return made.setdefault(key, SimpleNamespace(set=set_, world=None, judgement=None))

    def evaluate(one: Any, effort: int) -> Judgement:
        replicas, slots = one.set["fleet.replicas"], one.set["cache.gpu.slots"]
        far = replicas < 2 or slots < 16
        one.judgement = Judgement(NOT_MET, 2.0, True, 0.0) if far else Judgement(UNCLEAR, 0.9, True, 0.3 + replicas / 9)
        return cast(Judgement, one.judgement)

    evaluator: Any = SimpleNamespace(design=design, evaluate=evaluate, terms={})
    outer, inner = Variable("fleet.replicas", (1, 2, 3)), Variable("cache.gpu.slots", (8, 16, 24))
    found = _two(outer, inner, evaluator)
    assert found.answer is None
    named = [tuple(each.set.values()) for each in found.doubtful]
    assert len(named) == len(set(named)) > 2
    assert [each.set["fleet.replicas"] for each in found.frontier] == [2, 3]
