"""Which values a plan considers, and which questions it refuses."""

from __future__ import annotations

import itertools
from typing import Any

from sim.spec.scenario import Plan
from sim.studies.plan.candidates import variables


def values(**question: Any) -> list[Any]:
    (axis,) = variables(Plan.model_validate({"minimize": "cache.gpu.slots", **question}))
    return list(axis.values)


def test_whole_numbers_are_considered_one_by_one() -> None:
    assert values(range=[8, 12]) == [8, 9, 10, 11, 12]


def test_a_step_is_taken_and_the_end_is_always_there() -> None:
    assert values(range=[8, 30], step=8) == [8, 16, 24, 30]
    assert values(range=[0.8, 0.9], step=0.1) == [0.8, 0.9], "the difference of the two is a little less"


def test_values_keep_their_unit() -> None:
    assert values(range=["2/s", "3/s"], step="0.25/s") == ["2/s", "2.25/s", "2.5/s", "2.75/s", "3/s"]
    assert values(range=["1 GB", "2 GB"], step="0.5 GB") == ["1 GB", "1.5 GB", "2 GB"]
    assert values(range=["5%", "15%"], step="5%") == ["5%", "10%", "15%"]


def test_large_ranges_grow_by_a_share() -> None:
    found = values(range=[100, 100_000])
    assert found[0] == 100
    assert found[-1] == 100_000
    assert all(isinstance(value, int) for value in found)
    assert all(1.02 < b / a < 1.09 for a, b in itertools.pairwise(found[:-1]))
    assert values(range=["1/s", "1.2/s"], step="10%") == ["1/s", "1.1/s", "1.2/s"]


def test_the_most_wanted_come_first() -> None:
    (axis,) = variables(Plan.model_validate({"maximize": "adapters.count", "range": [1, 3]}))
    assert axis.values == (3, 2, 1)
    assert values(values=[64, 16, 32]) == [64, 16, 32]


def test_two_keys_have_a_range_each() -> None:
    plan = Plan.model_validate(
        {"minimize": ["fleet.replicas", "cache.gpu.slots"], "range": [[1, 3], [8, 24]], "step": [1, 8]}
    )
    assert [(axis.key, axis.values) for axis in variables(plan)] == [
        ("fleet.replicas", (1, 2, 3)),
        ("cache.gpu.slots", (8, 16, 24)),
    ]
