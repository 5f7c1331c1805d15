"""What tenants pay and cost: prices of tokens and requests, shares of the cost, margins; rates in place of shares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sim.results.fleet_costs import HOURS_PER_MONTH, priced
from sim.results.point import Point
from sim.results.run_directory.result_files import point_key, points_csv, tenants_csv
from sim.spec.profile_choice import prices_of
from sim.spec.scenario_file import load_scenario
from sim.spec.units import parse_request_price, parse_token_price
from sim.studies.design import make_design
from sim.studies.evaluate import EvaluationOptions, evaluate

SCENARIO = """\
schema_version: 1
name: shared
workload:
  requests: 3000
  arrivals: {process: poisson, rate: 10/s}
  popularity: {law: zipf, exponent: 0.9}
adapters: {count: 30, base_model: llama-3.1-8b}
fleet: {gpu: h100-80gb, price: 2.50}
cache: {gpu: {slots: 16}, host: {slots: 30}}
run: {replications: 2}
"""
TENANTS = """\
tenants:
  - {name: noisy, adapters: 10, share: 60%, price: 0.40 USD/1M tokens}
  - {name: quiet, adapters: 20, share: 40%, price: {input: 0.20, output: 0.80, request: 0.001 USD/request}}
"""
RATES = TENANTS.replace("share: 60%", "rate: 6/s").replace("share: 40%", "rate: 4/s")


def load(folder: Path, text: str, *overrides: str):
    file = folder / "shared.yaml"
    file.write_text(text, encoding="utf-8")
    return load_scenario(str(file), overrides)


def point_of(folder: Path, text: str, *overrides: str) -> Point:
    scenario = load(folder, text, *overrides).scenario
    return evaluate(make_design(scenario), EvaluationOptions(draws=False)).point


def test_revenue_follows_from_what_was_served(tmp_path: Path) -> None:
    point = point_of(tmp_path, SCENARIO + TENANTS)
    month_s = HOURS_PER_MONTH * 3600
    noisy, quiet = point.tenants
    tokens = noisy.sold["input"].value + noisy.sold["output"].value
    assert noisy.money["revenue_usd_per_month"].value == pytest.approx(0.4 * tokens)
    sold = {name: metric.value for name, metric in quiet.sold.items()}
    assert sold["request"] == pytest.approx(quiet.metrics["throughput_rps"].value * month_s)
    assert sold["output"] == pytest.approx(quiet.metrics["output_tokens_per_s"].value * month_s / 1e6)
    expected = 0.2 * sold["input"] + 0.8 * sold["output"] + 0.001 * sold["request"]
    assert quiet.money["revenue_usd_per_month"].value == pytest.approx(expected)


def test_costs_and_margins_add_up_to_the_fleet(tmp_path: Path) -> None:
    point = point_of(tmp_path, SCENARIO + TENANTS)
    month = point.metrics["usd_per_month"].value
    assert sum(tenant.money["cost_share"].value for tenant in point.tenants) == pytest.approx(1)
    assert sum(tenant.money["usd_per_month"].value for tenant in point.tenants) == pytest.approx(month)
    for tenant in point.tenants:
        money = tenant.money
        revenue, cost, margin = (money[f"{name}usd_per_month"] for name in ("revenue_", "", "margin_"))
        assert margin.value == pytest.approx(revenue.value - cost.value)
        assert margin.lo == pytest.approx(revenue.lo - cost.hi)
        assert margin.hi == pytest.approx(revenue.hi - cost.lo)
        assert margin.parts == pytest.approx([a - b for a, b in zip(revenue.parts, cost.parts, strict=True)])


def test_costs_are_as_uncertain_as_those_of_an_autoscaled_fleet(tmp_path: Path) -> None:
    waves = "workload.arrivals={process: diurnal, rate: 10/s, swing: 0.9, period: 1 min}"
    scaling = "fleet.autoscale={target: 4, min: 1, max: 4, stabilization_down: 15 s, cold_start: {engine: 5 s}}"
    scaling = scaling.replace("5 s}}", "{law: fixed, value: 5 s}}}")
    point = point_of(tmp_path, SCENARIO + TENANTS, waves, scaling)
    month = point.metrics["usd_per_month"]
    assert month.lo < month.value < month.hi
    for tenant in point.tenants:
        cost, share = tenant.money["usd_per_month"], tenant.cost_share
        assert cost.value == pytest.approx(share.value * month.value)
        assert cost.hi - cost.lo >= share.value * (month.hi - month.lo)
        assert tenant.money["margin_usd_per_month"].lo == pytest.approx(
            tenant.money["revenue_usd_per_month"].lo - cost.hi
        )
    sections = [
        sum(parts) for parts in zip(*(tenant.money["usd_per_month"].parts for tenant in point.tenants), strict=True)
    ]
    assert sections == pytest.approx(month.parts, rel=1e-5)


def test_who_pays_the_same_for_every_token_bears_that_share_of_the_cost(tmp_path: Path) -> None:
    same = ", price: 0.40 USD/1M tokens}\n"
    tenants = TENANTS.split(", price")[0] + same + "  - {name: quiet, adapters: 20, share: 40%" + same
    point = point_of(tmp_path, SCENARIO + tenants, "workload.arrivals.rate=60/s")  # more than it serves
    revenues = [tenant.money["revenue_usd_per_month"].value for tenant in point.tenants]
    shares = [tenant.money["cost_share"].value for tenant in point.tenants]
    assert shares == pytest.approx([revenue / sum(revenues) for revenue in revenues])


def test_another_price_needs_no_simulation(tmp_path: Path) -> None:
    cheap, dear = load(tmp_path, SCENARIO + TENANTS), load(tmp_path, SCENARIO + TENANTS, "tenants.0.price=$2/request")
    assert point_key(cheap.data, {}, "1") == point_key(dear.data, {}, "1")
    plain = SCENARIO + TENANTS.replace(", price: 0.40 USD/1M tokens", "")
    assert point_key(cheap.data, {}, "1") == point_key(load(tmp_path, plain).data, {}, "1")
    first = point_of(tmp_path, SCENARIO + TENANTS)
    second = evaluate(make_design(dear.scenario), EvaluationOptions(draws=False)).point
    repriced = priced(Point.from_json(first.to_json()), *prices_of(dear.scenario))
    assert replace(repriced, cost={}) == replace(second, cost={})
    unpriced = priced(second, None)
    assert all(not tenant.money and not tenant.price for tenant in unpriced.tenants)


def test_without_a_price_of_gpus_there_is_revenue_alone(tmp_path: Path) -> None:
    point = point_of(tmp_path, SCENARIO + TENANTS, "fleet.price=null")
    assert [list(tenant.money) for tenant in point.tenants] == [["revenue_usd_per_month"]] * 2


def test_files_have_money_only_where_tenants_pay(tmp_path: Path) -> None:
    text = points_csv([point_of(tmp_path, SCENARIO + TENANTS)])
    rows = [line.split(",") for line in text.splitlines() if line.startswith("tenants.")]
    assert [row[0] for row in rows][:2] == ["tenants.noisy.revenue_usd_per_month", "tenants.noisy.cost_share"]
    assert [row[4] for row in rows] == ["USD", "1", "USD", "USD"] * 2
    free = TENANTS.split(", price")[0] + "}\n  - {name: quiet, adapters: 20, share: 40%}\n"
    point = point_of(tmp_path, SCENARIO + free)
    assert "tenants." not in points_csv([point])
    assert "revenue" not in tenants_csv([point])


def test_rates_are_shares_of_their_sum_to_the_byte(tmp_path: Path) -> None:
    shares = point_of(tmp_path, SCENARIO + TENANTS)
    without = SCENARIO.replace("poisson, rate: 10/s", "poisson")
    for text in (SCENARIO + RATES, without + RATES):
        rates = point_of(tmp_path, text)
        assert points_csv([rates]) == points_csv([shares])
        assert tenants_csv([rates]) == tenants_csv([shares])


def test_rates_hold_with_arrivals_of_their_own(tmp_path: Path) -> None:
    steps = "{}, steps: [{{time: 5 s, level: 1}}, {{time: 5 s, level: 9}}]"
    points = [
        point_of(tmp_path, SCENARIO + text.replace(own, steps.format(own)))
        for text, own in ((TENANTS, "share: 60%"), (RATES, "rate: 6/s"))
    ]
    assert points_csv([points[0]]) == points_csv([points[1]])


@pytest.mark.parametrize(
    "text", ["0.4 USD/1M tokens", "$0.4/M tokens", "0.4 USD per million tokens", "0.4$/1Mtok", 0.4]
)
def test_prices_of_tokens_are_read(text: object) -> None:
    assert parse_token_price(text) == 0.4


@pytest.mark.parametrize("text", ["0.002 USD/request", "$0.002 per request", 0.002])
def test_prices_of_requests_are_read(text: object) -> None:
    assert parse_request_price(text) == 0.002
