"""Costs: on paper, for several GPUs per replica, and with another price without simulating."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from catalogue_names import ALWAYS_THERE, needing
from test_metrics_by_hand import FACTS, recording

import loraplan
import sim.studies.evaluate
import sim.studies.headroom
from reports.formatting import money, show
from reports.tables.metric_tables import metrics_table
from reports.tables.slice_tables import groups_table
from reports.text.setup_text import cheapest_sentence, cost_sentences
from sim.results.catalogue import AUTOSCALER, ONLY_WITH_PRICE
from sim.results.fleet_costs import priced
from sim.results.pairs import difference_of
from sim.results.point import Metric, Point, Usage
from sim.results.point_summary import summarise
from sim.results.run_directory.result_files import scenario_hash
from sim.spec.profile_choice import gpus_per_replica, profile_of
from sim.spec.scenario_file import load_scenario

SMALL = {"workload.requests": 1500, "run.replications": 2}
PROMPTS = np.array([10, 20, 30, 40, 50, 60])


PLAIN = recording()
WITH_PROMPTS = replace(PLAIN, requests={**PLAIN.requests, "prompt_tokens": PROMPTS})
TWO_KINDS = replace(FACTS, gpus=4, kind=np.array([0, 1, 1]), kind_names=("a", "b"))
ON_PAPER = priced(summarise([WITH_PROMPTS] * 25, TWO_KINDS, {}, []), 3.6)
FLEET_USD = 8 * 4 / 3600 * 3.6
"""Of the 8 measured seconds of 4 GPUs."""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("usd_per_request", FLEET_USD / 4),
        ("usd_per_m_input_tokens", FLEET_USD / (10 + 30 + 40 + 50) * 1e6),
        ("usd_per_m_output_tokens", FLEET_USD / (5 + 5 + 3 + 1) * 1e6),
        ("usd_per_m_tokens", FLEET_USD / (130 + 14) * 1e6),
        ("usd_per_month", 3.6 * 4 * 730),
        ("idle_usd_per_month", 3.6 * 4 * 730 * (1 - 4 / 16)),
    ],
)
def test_a_cost_is_what_paper_says(name: str, expected: float) -> None:
    assert ON_PAPER.metrics[name].value == pytest.approx(expected, rel=1e-12)


def test_groups_share_the_cost_by_their_tokens() -> None:
    month = 3.6 * 4 * 730
    assert [group.facts["usd_per_month"] for group in ON_PAPER.groups] == pytest.approx(
        [month * 51 / 192, month * (35 + 43 + 63) / 192]
    )


def test_tables_show_costs_only_with_a_price() -> None:
    for point, shown in ((ON_PAPER, True), (priced(ON_PAPER, None), False)):
        groups = groups_table(point, "")
        assert ("cost a month" in groups.head) == shown
        assert any("$" in cell for row in groups.rows for cell in row) == shown
        assert any("cost" in row[0] for row in metrics_table(point).rows) == shown


def test_another_price_scales_every_part_and_no_price_shows_nothing() -> None:
    twice, none = priced(ON_PAPER, 7.2), priced(ON_PAPER, None)
    for name in ONLY_WITH_PRICE - needing(AUTOSCALER):
        one, other = ON_PAPER.metrics[name], twice.metrics[name]
        assert (other.value, other.parts[0]) == pytest.approx((2 * (one.value or 0), 2 * (one.parts[0] or 0)))
    assert none.metrics.keys() == set(ALWAYS_THERE)
    assert "usd_per_month" not in none.groups[0].facts
    assert cost_sentences(none) == []
    assert priced(none, 3.6) == ON_PAPER
    assert Point.from_json(json.loads(json.dumps(ON_PAPER.to_json()))).usage == ON_PAPER.usage
    older = replace(none, usage=None)
    assert priced(older, 2.0) is older


def test_a_dearer_fleet_is_clearly_worse() -> None:
    found = difference_of(ON_PAPER, priced(ON_PAPER, 7.2), "usd_per_month")
    assert (found.word, found.change) == ("clearly worse", pytest.approx(3.6 * 4 * 730))


def test_replicas_over_several_gpus_pay_for_each() -> None:
    values = {**SMALL, "fleet.price": 2.0, "fleet.replicas": 3, "fleet.tensor_parallel": 2}
    point = loraplan.run("plan-70b-tensor-parallel", values, jobs=1).point
    assert (point.usage.gpus, point.metrics["usd_per_month"].value) == (6, 6 * 2.0 * 730)


def test_another_price_needs_no_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    plain = loraplan.run("quickstart", SMALL, out=out, jobs=1, headroom=True)
    before = (out / "points.csv").read_text()
    assert plain.point.metrics.keys() == set(ALWAYS_THERE)

    def never(*given: object) -> None:
        raise AssertionError("it simulates")

    monkeypatch.setattr(sim.studies.evaluate, "simulate", never)
    monkeypatch.setattr(sim.studies.headroom, "find_headroom", never)
    monkeypatch.setattr("sim.studies.sweep.find_headroom", never)
    for price in (2.5, 5):
        found = loraplan.run("quickstart", {**SMALL, "fleet.price": price}, out=out, jobs=1, headroom=True)
        assert found.point.metrics["usd_per_month"].value == price * 730
        assert found.headroom == plain.headroom
        assert f"usd_per_month,{price * 730:.1f}" in (out / "points.csv").read_text()
    loraplan.run("quickstart", SMALL, out=out, jobs=1)
    assert (out / "points.csv").read_text() == before


def test_a_plan_is_priced_without_simulating_its_designs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"slo.ttft_p99": "60 s", "slo.e2e_p99": "300 s", "slo.miss_ratio": None, **SMALL}
    how = {"minimize": {"cache.gpu.slots": (8, 128, 40)}, "out": tmp_path / "plan", "jobs": 1}
    loraplan.plan("quickstart", asked, **how)  # type: ignore[arg-type]
    simulated: list[object] = []
    real = sim.studies.evaluate.simulate
    monkeypatch.setattr(sim.studies.evaluate, "simulate", lambda *given: (simulated.append(given[1]), real(*given))[1])
    found = loraplan.plan("quickstart", {**asked, "fleet.price": 4}, **how)  # type: ignore[arg-type]
    assert simulated == [0], "the requests of the answer are written anew, nothing else"
    assert all(point.metrics["usd_per_month"].value == 4 * 730 for point in found.points)
    assert any("$4.00 an hour" in sentence for sentence in found.answer.details)


def test_fleets_of_a_plan_have_their_own_prices(tmp_path: Path) -> None:
    fleets = [
        {"name": "a", "price": 3, "gpus": 2, "set": {"fleet.gpu": "h100-64gb"}},
        {"name": "b", "price": "$1/h", "set": {"fleet.gpu": "l40s"}},
    ]
    values = {
        "workload.requests": 400,
        "workload.arrivals.rate": "4/s",
        "run.replications": 1,
        "fleet.price": 99,
        "slo.ttft_p99": "600 s",
        "slo.e2e_p99": "600 s",
        "plan": {"minimize": "price", "range": [1, 2], "fleets": fleets},
    }
    found = loraplan.plan("plan-cheapest-fleet", values, out=tmp_path / "plan", jobs=1)
    months = {tuple(point.set.values()): point.metrics["usd_per_month"].value for point in found.points}
    assert {fleet for fleet, _ in months} == {"a", "b"}
    assert months == {(fleet, count): count * 730 * (6 if fleet == "a" else 1) for fleet, count in months}
    count = found.found["fleet.replicas"]
    assert found.found == {"fleet": "b", "fleet.replicas": count, "price": count}
    assert f" of b for ${count} an hour" in found.answer.headline


def test_a_fleet_of_more_gpus_than_its_profile_is_priced_by_the_gpu(tmp_path: Path) -> None:
    values = {
        **SMALL,
        "slo.ttft_p99": "600 s",
        "slo.e2e_p99": "600 s",
        "plan": {"minimize": "price", "range": [1, 2], "fleets": [{"name": "a", "price": "2 USD/h", "gpus": 4}]},
    }
    found = loraplan.plan("plan-cheapest-fleet", values, out=tmp_path / "plan", jobs=1)
    count = found.found["fleet.replicas"]
    assert found.found == {"fleet": "a", "fleet.replicas": count, "price": 8.0 * count, "gpus": 4 * count}
    assert (found.point.usage.gpus, found.point.usage.price) == (4 * count, 2.0)
    assert found.answer.headline.startswith(f"Use {count} replica")
    assert f"${8 * count} an hour" in found.answer.headline
    month = f"{4 * count} GPUs at $2.00 an hour cost ${8 * count * 730:,} a month."
    assert month in found.answer.details
    again = loraplan.run(str(tmp_path / "plan/recommended.yaml"), SMALL, out=tmp_path / "run", jobs=1)
    assert (again.point.usage.gpus, again.point.usage.price) == (4 * count, 2.0)


def test_a_replica_of_a_profile_of_one_gpu_may_have_several() -> None:
    loaded = load_scenario("quickstart", ["fleet.gpus_per_replica=4"]).scenario
    assert gpus_per_replica(loaded, profile_of(loaded)[0]) == 4


def test_the_cheapest_point_of_a_sweep_is_named() -> None:
    def point(slots: int, replicas: int, ttft_s: float) -> Point:
        month = Metric(730.0 * replicas, 730.0 * replicas, 730.0 * replicas, "USD", parts=[730.0 * replicas])
        usage = Usage(replicas, dict.fromkeys(ONLY_WITH_PRICE, month))
        metrics = {"ttft_p99_s": Metric(ttft_s, ttft_s * 0.99, ttft_s * 1.01, "s")}
        return priced(Point({"fleet.replicas": replicas}, metrics, usage=usage), 2.0)

    points = [point(8, 1, 3.0), point(8, 2, 0.5), point(8, 4, 0.2)]
    said = cheapest_sentence(points, {"ttft_p99_s": 1.0})
    assert said == "The cheapest point that meets the SLO is 2 replicas, for $2,920 a month."
    assert cheapest_sentence(points, {"ttft_p99_s": 0.1}) == ""
    assert cheapest_sentence([priced(each, None) for each in points], {"ttft_p99_s": 1.0}) == ""


@pytest.mark.parametrize(
    ("text", "price"),
    [("2.5", 2.5), ("$2.50/h", 2.5), ("2.50 USD/h", 2.5), ("USD 3 per GPU hour", 3), ("0.9 $ / GPU-h", 0.9)],
)
def test_prices_are_read_as_people_write_them(text: str, price: float) -> None:
    assert load_scenario("quickstart", [f"fleet.price={text}"]).scenario.fleet.price == price


def test_a_price_names_no_other_run() -> None:
    plain, dear = load_scenario("quickstart"), load_scenario("quickstart", ["fleet.price=9"])
    assert scenario_hash(plain.data) == scenario_hash(dear.data)
    assert scenario_hash({"fleet": {"price": 1}}) == scenario_hash({})


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (1825, "$1,825"),
        (0.41234, "$0.412"),
        (2.4, "$2.40"),
        (99.999, "$100"),
        (0.0001149, "$0.000115"),
        (0, "$0"),
        (-3, "−$3.00"),
    ],
)
def test_money_reads_as_people_write_it(amount: float, text: str) -> None:
    assert money(amount) == text
    assert show("usd_per_month", amount) == text
