"""Draws of a profile: what they do to a point, and that a profile without them costs nothing."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from profiles_with_draws import write_profile
from strategies import run

from sim.results.calibration import ReplicationValues, bounds, with_calibration
from sim.results.metrics import measure
from sim.results.point import Metric, Point
from sim.results.point_summary import measure_alone
from sim.results.run_directory.result_files import points_csv, summary_json
from sim.results.statistics import MIN_SECTION_P99
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import load_scenario
from sim.studies.design import MAX_DRAWS, make_design
from sim.studies.evaluate import DRAW, Part, evaluate_scenario, facts_of, simulate_part

COUNTS = ("completed", "unfinished", "refused", "failed", "preemptions", "evictions")


def scenario(profile: str, *, rate: str = "6/s", requests: int = 1500, **run: Any) -> Scenario:
    return Scenario.model_validate(
        {
            "schema_version": 1,
            "name": "drawn",
            "workload": {
                "requests": requests,
                "arrivals": {"process": "poisson", "rate": rate},
                "popularity": {"law": "zipf", "exponent": 0.9},
                "tokens": {"prompt": {"law": "fixed", "value": 200}, "output": {"law": "geometric", "mean": 60}},
            },
            "adapters": {"base_model": "llama-3.1-8b", "count": 60, "rank": 16},
            "fleet": {"engine": "continuous", "profile": profile},
            "cache": {"gpu": {"slots": 24}},
            "slo": {"ttft_p99": "1 s"},
            "run": {"seed": 3, "replications": 2, **run},
        }
    )


def simulated(profile: str, **changes: Any) -> Point:
    return evaluate_scenario(scenario(profile, **changes)).point


def test_draws_like_the_profile_leave_nothing_open(tmp_path: Path) -> None:
    point = simulated(write_profile(tmp_path / "p.json", [(1.0, 1.0)] * 3))
    assert point.calibration == {"draws": 3, "of": 3, "overloaded": 0}
    for name, metric in point.metrics.items():
        if name in COUNTS or not metric.applies:
            assert (metric.calibration_lo, metric.calibration_hi) == (None, None), name
        else:
            assert metric.calibration_lo == pytest.approx(metric.value, rel=1e-12), name
            assert metric.calibration_hi == pytest.approx(metric.value, rel=1e-12), name


def test_the_interval_holds_what_the_drawn_profiles_give(tmp_path: Path) -> None:
    factors = [(0.9, 0.9), (1.1, 1.1)]
    point = simulated(write_profile(tmp_path / "p.json", [factors[0]] * 2 + [factors[1]] * 2))  # on both replications
    for place, (step, load) in enumerate(factors):
        other = simulated(write_profile(tmp_path / f"{place}.json", step=step, load=load))
        assert not other.calibration
        for name, metric in point.metrics.items():
            if metric.calibration_lo is not None and metric.calibration_hi is not None:
                value = other.metrics[name].value
                assert metric.calibration_lo <= value <= metric.calibration_hi, name
    itl = point.metrics["itl_mean_s"]
    # t(0.975, 4) = 2.776. Slower steps make larger batches, so ITL grows by more than its costs.
    assert 1 <= math.log(itl.calibration_hi / itl.value) / (2.776 * math.log(1.1)) <= 1.5


def test_a_draw_sees_the_traffic_that_it_is_compared_on(tmp_path: Path) -> None:
    design = make_design(scenario(write_profile(tmp_path / "p.json", [(1.0, 1.0), (1.0, 1.3), (1.2, 1.0)])))
    world = design.world
    own = [run(world, replication, 10) for replication in range(2)]
    for place in range(3):
        drawn = run(world.with_costs(world.pools[0].profile.draws[place]), place % 2, 10)  # type: ignore[union-attr]
        for column in ("arrival_s", "adapter", "prompt_tokens", "output_tokens"):
            assert (drawn.requests[column] == own[place % 2].requests[column]).all()
    slow, same = (simulate_part(design, Part(DRAW, place)).values["itl_mean_s"] for place in (2, 0))
    assert slow > 1.1 * same


@pytest.mark.parametrize(
    ("count", "chosen"),
    [
        (0, []),
        (1, []),
        (2, [0, 1]),
        (8, list(range(8))),
        (20, [0, 2, 5, 7, 10, 12, 15, 17]),
        (200, [0, 25, 50, 75, 100, 125, 150, 175]),
    ],
)
def test_at_most_eight_draws_evenly_over_all(tmp_path: Path, count: int, chosen: list[int]) -> None:
    assert make_design(scenario(write_profile(tmp_path / "p.json", [(1.0, 1.0)] * count))).draws == chosen
    assert len(chosen) <= MAX_DRAWS


def test_without_draws_nothing_mentions_them(tmp_path: Path) -> None:
    plain, drawn = (simulated(write_profile(tmp_path / "p.json", draws)) for draws in ([], [(0.9, 1.0), (1.1, 1.0)]))
    for text in (str(plain.to_json()), str(summary_json("x", [plain])), points_csv([plain])):
        assert "calibration" not in text
    kept = set(plain.to_json()["metrics"]["ttft_p99_s"]) - {"state"}
    assert kept == {"value", "lo", "hi", "unit", "settled", "note"}
    assert plain.metrics.keys() == drawn.metrics.keys()
    for name, left in plain.metrics.items():  # the draws add to what is there and change none of it
        right = drawn.metrics[name]
        assert (left.value, left.lo, left.hi, left.settled) == (right.value, right.lo, right.hi, right.settled)


def test_tables_show_the_interval_and_a_kept_point_keeps_it(tmp_path: Path) -> None:
    plain, drawn = (simulated(write_profile(tmp_path / "p.json", draws)) for draws in ([], [(0.9, 1.0), (1.1, 1.0)]))
    plain, drawn = replace(plain, set={"fleet.profile": "a"}), replace(drawn, set={"fleet.profile": "b"})
    assert Point.from_json(drawn.to_json()) == drawn
    assert Point.from_json(plain.to_json()) == plain
    entry = summary_json("x", [plain, drawn])["points"]
    metric = drawn.metrics["ttft_p99_s"]
    assert "calibration_lo" not in entry[0]["metrics"]["ttft_p99_s"]
    assert entry[1]["metrics"]["ttft_p99_s"]["calibration_lo"] == metric.calibration_lo
    assert entry[1]["metrics"]["completed"]["calibration_hi"] is None
    rows = list(csv.DictReader(io.StringIO(points_csv([plain, drawn]))))
    assert list(rows[0]) == ["fleet.profile", "metric", "value", "lo", "hi", "unit", "calibration_lo", "calibration_hi"]
    found = {(row["fleet.profile"], row["metric"]): row["calibration_hi"] for row in rows}
    assert found["a", "ttft_p99_s"] == found["b", "completed"] == ""
    assert float(found["b", "ttft_p99_s"]) == metric.calibration_hi


def test_draws_that_cannot_serve_the_load_are_called_so(tmp_path: Path) -> None:
    draws = [(0.9, 1.0), (1.0, 1.0), (1.1, 1.0), (9.0, 1.0)]
    point = simulated(write_profile(tmp_path / "p.json", draws), rate="8/s")
    assert point.calibration == {"draws": 4, "of": 4, "overloaded": 1}
    assert any(
        "with 1 of 4 draws of the profile's costs more requests arrive than are served" in w for w in point.warnings
    )
    p99 = point.metrics["ttft_p99_s"]
    assert p99.calibration_hi > 10 * p99.value


def test_a_single_replication_may_be_too_short_for_a_printed_p99_and_still_compare(tmp_path: Path) -> None:
    profile = write_profile(tmp_path / "p.json", [(0.9, 1.0), (1.1, 1.0)])
    point = simulated(profile, requests=300, replications=5)
    assert point.metrics["ttft_p99_s"].value is not None, "1,425 requests in all"
    assert point.metrics["ttft_p99_s"].calibration_hi is not None, "from 285 of one replication"


def test_doubling_looks_at_the_sampling_interval_and_draws_come_last(tmp_path: Path) -> None:
    profile = write_profile(tmp_path / "p.json", [(0.5, 1.0), (1.5, 1.0)])
    point = simulated(profile, requests=800, half_width="15%", max_requests=3200)
    p99 = point.metrics["e2e_p99_s"]
    assert p99.hi - p99.value <= 0.15 * p99.value < p99.calibration_hi - p99.value


@pytest.mark.parametrize(
    ("name", "metric", "pairs", "low", "high"),
    [
        # Two draws, both 10 % off: t(0.975, 2) = 4.3027 times ln 1.1, around the value.
        ("e2e_p99_s", Metric(2.0, 1.9, 2.1, "s"), [(3.0, 3.3), (3.0, 3.0 / 1.1)], 2 * 1.1**-4.3027, 2 * 1.1**4.3027),
        # Shares by their difference, and never outside 0 to 1.
        ("miss_ratio", Metric(0.4, 0.39, 0.41), [(0.4, 0.41), (0.4, 0.39)], 0.4 - 0.043027, 0.4 + 0.043027),
        ("miss_ratio", Metric(0.02, 0.01, 0.03), [(0.02, 0.05), (0.02, 0.0)], 0.0, 0.02 + 4.3027 * 0.0254951),
        ("slo_attainment", Metric(0.99, 0.98, 1.0), [(0.99, 0.9), (0.99, 1.0)], 0.99 - 4.3027 * 0.0640312, 1.0),
        # Times that may be 0 by their difference too, and so where a draw is more than ten times off.
        ("queue_p50_s", Metric(0.1, 0.1, 0.1, "s"), [(0.0, 0.01), (0.1, 0.11)], 0.1 - 0.043027, 0.1 + 0.043027),
        ("ttft_p99_s", Metric(1.0, 0.9, 1.1, "s"), [(1.0, 21.0), (1.0, 1.0)], 0.0, 1 + 4.3027 * 14.142136),
    ],
)
def test_ends_by_hand(name: str, metric: Metric, pairs: list[tuple[float, float]], low: float, high: float) -> None:
    assert bounds(name, metric, pairs) == pytest.approx((low, high), rel=1e-4)


def test_no_draw_makes_more_requests_good_than_are_served() -> None:
    metrics = {"goodput_rps": Metric(9.0, 8.8, 9.2, "1/s"), "throughput_rps": Metric(10.0, 9.9, 10.1, "1/s")}
    own = ReplicationValues({"goodput_rps": 6.0, "throughput_rps": 10.0}, overloaded=False)
    drawn = [replace(own, values={"goodput_rps": good, "throughput_rps": 10.0}) for good in (4.0, 10.0)]
    found = with_calibration(Point({}, metrics), [own], drawn, 2).metrics
    assert found["goodput_rps"].calibration_hi == 10.1, "15 by the draws alone"
    assert found["goodput_rps"].calibration_lo < 6.0


def test_the_interval_is_never_narrower_than_the_draws() -> None:
    # One draw of eight far off: t(0.975, 8) / sqrt(8) = 0.82 of its distance is not enough.
    pairs = [(1.0, 1.0)] * 7 + [(1.0, 3.0)]
    low, high = bounds("e2e_p99_s", Metric(1.0, 0.9, 1.1, "s"), pairs)
    assert high == pytest.approx(3.0)
    assert low == pytest.approx(3.0**-0.8153, rel=1e-3)


@pytest.mark.parametrize("name", ["quickstart", "noisy-neighbour", "prefix-sharing"])
def test_what_is_only_compared_has_the_same_values_and_no_interval(name: str) -> None:
    world = make_design(load_scenario(name, ["workload.requests=1200"]).scenario).world
    recording, facts = run(world, sections=10), facts_of(world)
    whole, _ = measure([recording], facts, MIN_SECTION_P99)
    alone, _, _ = measure_alone(recording, facts)
    assert {key: each.value for key, each in alone.items()} == {key: each.value for key, each in whole.items()}
    assert whole["ttft_p99_s"].lo is not None
    assert alone["ttft_p99_s"].lo is None
