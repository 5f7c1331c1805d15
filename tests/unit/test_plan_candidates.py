"""Which values a plan considers, and which questions it refuses."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from scenario_samples import BASE, write

from sim.errors import InputError
from sim.spec.scenario_file import load_scenario
from sim.spec.sections.plan_question import Plan
from sim.studies.planning.candidates import variables
from sim.studies.planning.plan_study import make_plan

SLO = "slo: {ttft_p99: 1 s}\n"


def values(**question: Any) -> list[Any]:
    (axis,) = variables(Plan.model_validate({"minimize": "cache.gpu.slots", **question}))
    return list(axis.values)


def test_whole_numbers_are_considered_one_by_one() -> None:
    assert values(range=[8, 12]) == [8, 9, 10, 11, 12]


def test_a_step_is_taken_and_the_end_is_always_there() -> None:
    assert values(range=[8, 30], step=8) == [8, 16, 24, 30]


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


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("{}", "plan.minimize: a plan needs exactly one of minimize and maximize; give either minimize or maximize"),
        ("{minimize: cache.gpu.slots, maximize: cache.gpu.slots, range: [1, 2]}", "plan.minimize: a plan needs"),
        ("{minimize: cache.gpu.slots}", "plan.range: the range is missing"),
        ("{minimize: cache.gpu.slots, range: [64, 8]}", "plan.range: a range must rise (got [64, 8])"),
        ("{minimize: cache.gpu.slots, range: [8, 64], step: 0}", "plan.step: a step must be above zero"),
        ("{minimize: cache.gpu.slots, range: [8, 64], step: 1.5}", "plan.step: a range of whole"),
        ("{minimize: cache.gpu.slots, range: [8 GB, 64]}", "plan.range: both ends of a range need the same unit"),
        ("{minimize: cache.gpu.slots, range: [a, b]}", "plan.range: not a number with its unit (got a"),
        ("{minimize: cache.gpu.slots, range: [1, 64], values: [2]}", "plan.values: give either values or a range"),
        ("{minimize: cache.gpu.slots, values: [2, 2]}", "plan.values: a value occurs twice"),
        ("{minimize: workload.arrivals.rate, range: [0/s, 2/s]}", "plan.range: a range from 0 needs a step"),
        ("{minimize: workload.arrivals.rate, range: [1/s, 2/s], step: 0.00001/s}", "plan.step: too many values"),
        ("{minimize: cache.gpu.slotz, range: [8, 64]}", "unknown key"),
        ("{minimize: cache.eviction, range: [8, 64]}", "cache.eviction"),
        ("{minimize: price, range: [1, 4]}", "plan.fleets: minimize: price and fleets go together"),
        ("{minimize: price, range: [1, 4], fleets: [{name: a, price: 0}]}", "plan.fleets.0.price"),
        ("{minimize: price, range: [1, 4], fleets: [{name: a, price: 1}, {name: a, price: 2}]}", "two fleets have"),
        ("{minimize: [a.b, c.d, e.f], range: [[1, 2], [1, 2]]}", "plan.minimize: not one or two different keys"),
        ("{minimize: [cache.gpu.slots, fleet.replicas], range: [1, 2]}", "plan.range: two keys have a range each"),
        ("{minimize: cache.gpu.slots, range: [8, 64], confidence: 120%}", "plan.confidence: "),
    ],
)
def test_questions_that_make_no_sense_are_refused_with_their_line(tmp_path: Path, plan: str, message: str) -> None:
    path = write(tmp_path / "p.yaml", f"{BASE}{SLO}plan: {plan}\n")
    with pytest.raises(InputError) as caught:
        make_plan(load_scenario(str(path)), tmp_path / "run")
    message_of_error = str(caught.value)
    assert message in message_of_error
    assert message_of_error.startswith(f"{path}:{BASE.count(chr(10)) + 2}: "), message_of_error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BASE, "plan: the scenario has no plan"),
        (BASE + "plan: {minimize: cache.gpu.slots, range: [4, 8]}\n", "slo: a plan needs an SLO to meet"),
        (
            BASE + "plan: {minimize: cache.gpu.slots, range: [4, 8]}\nslo: {tpot_mean: 1 s}\n"
            "fleet: {engine: fixed, service: {law: fixed, value: 1 ms}}\n",
            "slo.tpot_mean: engine fixed has no tokens, so this is never measured",
        ),
    ],
)
def test_what_is_missing_for_a_plan_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "p.yaml", text)
    with pytest.raises(InputError) as caught:
        make_plan(load_scenario(str(path)), tmp_path / "run")
    assert message in str(caught.value)
