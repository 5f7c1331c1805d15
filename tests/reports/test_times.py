"""Requests by when they came: the parts of a day, or of another cycle that rates repeat."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import samples

import loraplan as api
from reports.tables.slice_tables import times_table
from sim.results.point import Metric, SliceResult
from sim.spec.sections.traffic_laws import PiecewiseArrivals
from sim.studies.evaluate import facts_of
from sim.studies.run.answer import answer
from sim.world.build import build_world


def piecewise(*steps: tuple[str, float]) -> dict[str, Any]:
    laws = [{"time": time, "level": level} for time, level in steps]
    return {"workload.arrivals": {"process": "piecewise", "rate": "6/s", "steps": laws}}


def tenant(name: str, *times: str) -> dict[str, Any]:
    return {
        "name": name,
        "adapters": 100,
        "share": 0.5,
        "steps": [{"time": time, "level": i + 1} for i, time in enumerate(times)],
    }


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, []),
        (piecewise(("1 h", 1), ("3 h", 2)), ["0 s to 60 min", "60 min to 4 h"]),
        ({"workload.start": "22:30", **piecewise(("1 h", 1), ("23 h", 2))}, ["22:30 to 23:30", "23:30 to 22:30"]),
        ({"workload.start": "22:30", **piecewise(("1 h", 1), ("3 h", 2))}, ["0 s to 60 min", "60 min to 4 h"]),
        ({"tenants": [tenant("a", "0.1 s", "0.2 s"), tenant("b", "0.3 s")]}, ["0 s to 100 ms", "100 ms to 300 ms"]),
        ({"tenants": [tenant("a", "2 s", "4 s"), tenant("b", "6 s")]}, ["0 s to 2 s", "2 s to 6 s"]),
        ({"tenants": [tenant("a", "2 s", "4 s"), tenant("b", "7 s")]}, ["0 s to 2 s", "2 s to 6 s"]),  # b is constant
        ({"tenants": [tenant("a", "2 s", "4 s"), tenant("b", "3 s", "4 s")]}, []),
    ],
)
def test_times_are_the_parts_of_the_cycle_that_all_rates_repeat(values: dict[str, Any], names: list[str]) -> None:
    facts = facts_of(build_world(api.load_scenario("quickstart", values).scenario))
    assert [span.name for span in facts.spans] == names


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"workload.arrivals": {"process": "diurnal", "rate": "6/s", "period": "24 h"}}, 24),
        (piecewise(*((f"{1 + i % 2} s", 1 + i % 2) for i in range(60))), 24),
    ],
)
def test_parts_of_a_sine_or_of_very_many_steps_are_equal(values: dict[str, Any], parts: int) -> None:
    spans = facts_of(build_world(api.load_scenario("quickstart", values).scenario)).spans
    lengths = [span.to_s - span.from_s for span in spans]
    assert lengths == pytest.approx([spans[0].cycle_s / parts] * parts)


def test_an_answer_says_when_it_is_worst() -> None:
    def at(name: str, p99_s: float | None) -> SliceResult:
        return SliceResult(name, {"requests": 10, "request_share": 0.1}, {"ttft_p99_s": Metric(p99_s, unit="s")})

    calm = [at("08:00 to 12:00", 0.2), at("12:00 to 13:00", 0.25), at("13:00 to 14:00", None)]
    point = replace(samples.make_point(), times=[*calm, at("14:00 to 08:00", 3.0)])
    said = "p99 TTFT depends on the time: 3 s from 14:00 to 08:00 and 200 ms from 08:00 to 12:00."
    assert said in answer(point, {}).details
    opening = answer(point, {"ttft_p99_s": 1.0}).headline
    assert opening.endswith("within the 1 s target, but 3 s from 14:00 to 08:00."), "it hides in the mean of the day"
    again = replace(point, times=[*point.times, at("14:00 to 08:00", 0.1)])
    assert answer(again, {"ttft_p99_s": 1.0}).headline == opening, "names need not differ"
    assert "but" not in answer(replace(point, times=calm), {"ttft_p99_s": 1.0}).headline
    assert not any("depends on" in each for each in answer(replace(point, times=calm), {}).details)
    table = times_table(point, "")
    assert table is not None
    assert [row[0] for row in table.rows] == [one.name for one in point.times]


def test_trust_names_the_part_of_a_cycle_that_was_measured() -> None:
    values = {**piecewise(("9 s", 1), ("1 s", 21)), "workload.requests": None, "run.replications": 2}
    part = api.run("quickstart", {**values, "workload.duration": "10 s"}).point.traffic
    assert (part["cycle_s"], part["measured_s"], part["whole_s"]) == pytest.approx((10, 9.5, 10 / 0.95))
    assert "cycle_s" not in api.run("quickstart", {**values, "workload.duration": f"{part['whole_s']} s"}).point.traffic
    point = replace(samples.make_point(), traffic={"cycle_s": 86400.0, "measured_s": 30600.0, "whole_s": 90947.0})
    said = "Only 8.5 h of a cycle of 24 h were measured: set workload.duration to 25.3 h. "
    assert answer(point, {"ttft_p99_s": 1.0}).trust.sentence.startswith(said)


@pytest.mark.parametrize(
    ("start", "hours"),
    [
        ("06:00", [(5, 1), (3, 6), (8, 3), (8, 2)]),
        ("05:30", [(0.5, 2), (5, 1), (3, 6), (8, 3), (7.5, 2)]),
        ("12:00", [(2, 6), (8, 3), (8, 2), (5, 1), (1, 6)]),
        ("00:00", [(6, 2), (5, 1), (3, 6), (8, 3), (2, 2)]),
    ],
)
def test_steps_may_begin_at_times_of_day(start: str, hours: list[tuple[float, float]]) -> None:
    steps = [
        {"at": at, "level": f"{level}/s"} for at, level in (("14:00", 3), ("22:00", 2), ("06:00", 1), ("11:00", 6))
    ]
    values = {"workload.arrivals": {"process": "piecewise", "steps": steps}, "workload.start": start}
    scenario = api.load_scenario("quickstart", values).scenario
    assert isinstance(scenario.workload.arrivals, PiecewiseArrivals)
    assert [(step.time / 3600, step.level) for step in scenario.workload.arrivals.steps] == hours
    assert scenario.workload.arrivals.rate == pytest.approx(sum(time * level for time, level in hours) / 24, rel=1e-5)
    tenants = [{"name": "a", "adapters": 100, "steps": steps}, {"name": "b", "adapters": 100, "rate": "2/s"}]
    arrivals = {"process": "poisson", "rate": None}
    values = {"tenants": tenants, "workload.arrivals": arrivals, "workload.start": start}
    (tenant, _) = api.load_scenario("quickstart", values).scenario.tenants
    assert tenant.steps == scenario.workload.arrivals.steps


def test_levels_may_be_rates_whose_mean_is_then_the_rate() -> None:
    steps = [{"time": "1 h", "level": "12/s"}, {"time": "2 h", "level": "90/min"}, {"time": "1 h", "level": "0/s"}]
    law = {"process": "piecewise", "steps": steps}
    scenario = api.load_scenario("quickstart", {"workload.arrivals": law}).scenario
    numbers = [{**step, "level": level} for step, level in zip(steps, (12, 1.5, 0), strict=True)]
    assert scenario.workload.arrivals == PiecewiseArrivals(process="piecewise", rate="3.75/s", steps=numbers)
    doubled = api.load_scenario("quickstart", {"workload.arrivals": {**law, "rate": "7.5/s"}}).scenario
    assert doubled.workload.arrivals.rate == 7.5
    day = {"name": "a", "adapters": 100, "steps": steps}
    tenants = [day, {"name": "b", "adapters": 100, "rate": "2/s"}]
    values = {"tenants": tenants, "workload.arrivals": {"process": "poisson", "rate": None}}
    scenario = api.load_scenario("quickstart", values).scenario
    assert [tenant.rate for tenant in scenario.tenants] == [3.75, 2.0]
    assert scenario.workload.arrivals.rate == 5.75
