"""Numbers, units, axes: three digits, and intervals in the unit of the value."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import samples

from reports.axes import make_axis, spread
from reports.charts.axis_ticks import nice_linear, nice_log
from reports.charts.svg import place_labels
from reports.formatting import number, percent, popular_words, read_terms, show
from reports.render.html import tied
from reports.tables.metric_tables import capacity_table, traffic_sentence
from reports.text.metric_text import capital, with_interval
from sim.results.metric_state import Cause, State
from sim.results.model import SlotUse
from sim.results.point import Metric, TenantResult

BOTH = Metric(0.3, 0.295, 0.305, "s")


@pytest.mark.parametrize(
    ("name", "metric", "text"),
    [
        ("e2e_p99_s", BOTH, "300 ms (295 to 305)"),
        (
            "e2e_p99_s",
            replace(BOTH, calibration_lo=0.28, calibration_hi=0.32),
            "300 ms (295 to 305; calibration 280 to 320)",
        ),
        ("e2e_p99_s", replace(BOTH, calibration_lo=0.29999, calibration_hi=0.30001), "300 ms (295 to 305)"),
        ("e2e_p99_s", Metric(1.0004, 0.95, 1.05, "s"), "1 s (0.95 to 1.05)"),
        ("e2e_p99_s", Metric(0.98, 0.9, 1.06, "s"), "980 ms (900 ms to 1.06 s)"),
        ("e2e_p99_s", Metric(0.5, 0.02, 0.98, "s"), "500 ms (20 to 980)"),
        ("miss_ratio", Metric(0.7991, 0.798, 0.801), "79.9 % (79.8 to 80.1)"),
        ("loader_utilization", Metric(0.97, 0.93, 1.02), "97 % (93.0 to 100.0)"),
        ("throughput_rps", Metric(26.0, 25.9, 26.1, "1/s"), "26/s (25.9 to 26.1)"),
        ("evictions", Metric(0.0, 0.0, 0.0), "0"),
        (
            "itl_p99_s",
            Metric(None, unit="s", state=State(Cause.NO_TOKENS)),
            "not enough data (engine fixed has no tokens)",
        ),
    ],
)
def test_value_unit_interval(name: str, metric: Metric, text: str) -> None:
    assert with_interval(name, metric) == text


def test_plain_numbers() -> None:
    assert [number(v) for v in (0.8123, 12, 999.7, 123456.7)] == ["0.812", "12", "1,000", "123,457"]
    assert [percent(v) for v in (0, 0.7991, 1, 11.2, 0.00012)] == ["0 %", "79.9 %", "100 %", "1,120 %", "0.012 %"]
    assert show("loads_per_request", 1.25) == "1.25"


def test_slo_block_becomes_terms() -> None:
    assert read_terms({"ttft_p99": "1 s", "miss_ratio": "20%", "e2e_p99": None}) == {
        "ttft_p99_s": 1.0,
        "miss_ratio": 0.2,
    }
    assert read_terms(None) == {}


@pytest.mark.parametrize(
    ("values", "kind", "ordered"),
    [
        (["34.2/s", "25/s"], "rate", ("25/s", "34.2/s")),
        (["10 GB", "500 MB"], "bytes", ("500 MB", "10 GB")),
        (["1 s", "20 ms"], "seconds", ("20 ms", "1 s")),
        (["20%", "5%"], "share", ("5%", "20%")),
        ([64, 8], "number", (8, 64)),
        (["sieve", "lru"], "category", ("sieve", "lru")),
        ([True, False], "category", (True, False)),
        ([{"law": "zipf"}, {"law": "uniform"}], "category", ({"law": "zipf"}, {"law": "uniform"})),
    ],
)
def test_axis_knows_quantities(values: list[object], kind: str, ordered: tuple[object, ...]) -> None:
    axis = make_axis("some.key", [samples.make_point({"some.key": value}) for value in values])
    assert (axis.kind, axis.values) == (kind, ordered)
    assert list(axis.places) == sorted(axis.places)


def test_axis_is_logarithmic_beyond_a_factor_of_twenty() -> None:
    wide = make_axis("k", [samples.make_point({"k": v}) for v in (1, 21)])
    narrow = make_axis("k", [samples.make_point({"k": v}) for v in (1, 20)])
    zero = make_axis("k", [samples.make_point({"k": v}) for v in (0, 21)])
    assert (wide.log, narrow.log, zero.log) == (True, False, False)


def test_ticks_are_round_few_and_inside() -> None:
    assert nice_linear(0, 1.3) == pytest.approx([0, 0.5, 1.0])
    assert nice_linear(0, 6) == pytest.approx([0, 2, 4, 6])
    assert nice_log(0.01, 2) == pytest.approx([0.01, 0.03, 0.1, 0.3, 1])
    for low, high in ((0.9, 1.1), (1e-6, 1e6), (3, 3.0001)):
        assert 0 < len(nice_linear(low, high)) <= 7
        assert all(low * 0.99 <= tick <= high * 1.01 for tick in nice_log(low, high))
        assert len(nice_log(low, high)) <= 7


def test_a_swept_section_reads_as_its_name_with_its_values() -> None:
    swap = {"serve": "swap", "resident": 2, "turn": "20 s"}
    models = make_axis("fleet.full_models", [samples.make_point({"fleet.full_models": {"serve": "dedicated"}})])
    assert (models.phrase({"serve": "dedicated"}), models.label(swap)) == (
        "full models dedicated",
        "swap (resident 2, turn 20 s)",
    )
    assert models.label({"turn": "20 s"}) == "turn 20 s"
    assert [models.label(value) for value in (64, 1e6, 1234.5, 0.25)] == ["64", "1,000,000", "1,234.5", "0.25"]
    bucket = {"rate": "5000/s", "burst": 20_000, "full": "queue"}
    assert models.label(bucket) == "rate 5000/s (burst 20,000, full: queue)"


def test_a_swept_key_of_a_tenant_names_it() -> None:
    points = [
        replace(samples.make_point({"tenants.1.share": value}), tenants=[TenantResult(name, {}, {}) for name in "ab"])
        for value in ("10%", "20%")
    ]
    assert make_axis("tenants.1.share", points).words == "share of the requests of b"


def test_labels_keep_their_distance_and_order() -> None:
    places = place_labels([50, 52, 51, 200], 16, 0, 210)
    assert sorted(places) == [places[0], places[2], places[1], places[3]]
    assert all(b - a >= 16 for a, b in itertools.pairwise(sorted(places)))


def test_spread_keeps_both_ends() -> None:
    assert spread(list(range(1000)), 6) == [0, 200, 400, 599, 799, 999]
    assert spread([1, 2], 6) == [1, 2]


def test_lines_do_not_break_between_a_number_and_its_unit() -> None:
    said = "p99 is 140 ms (136 to 144), within the 1 s target, 5 seconds or 51 % of 10 GB"
    assert tied(said) == said.replace("140 ms", "140\u00a0ms").replace("1 s t", "1\u00a0s t").replace(
        "51 %", "51\u00a0%"
    ).replace("10 GB", "10\u00a0GB")


@pytest.mark.parametrize(
    ("effective", "words"), [("1", "traffic to a single adapter"), ("42.3", "42.3 equally popular adapters")]
)
def test_traffic_is_as_spread_out_as_over_so_many_adapters(effective: str, words: str) -> None:
    assert popular_words(effective) == words
    made = samples.make_point()
    alone = replace(made, traffic={**made.traffic, "effective_adapters": float(effective)})
    assert f"it is about as spread out as {popular_words(f'{float(effective):.0f}')}." in traffic_sentence([alone])


@pytest.mark.parametrize(
    ("base_share", "said"),
    [
        (0.0, "Traffic: all requests are for one adapter."),
        (0.25, "Traffic: 25 % of the requests are for the base model, all others for one adapter."),
    ],
)
def test_one_adapter_has_no_hottest_part(base_share: float, said: str) -> None:
    made = samples.make_point()
    traffic = {**made.traffic, "adapters": 1.0, "effective_adapters": 1.0, "base_share": base_share}
    assert traffic_sentence([replace(made, traffic=traffic)]) == said


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        ("miss ratio is 3 %.", "Miss ratio is 3 %."),
        ("p99 TTFT is 1 s.", "p99 TTFT is 1 s."),
        ("fleet.block_size 16 is enough.", "fleet.block_size 16 is enough."),
        ("none.", "None."),
    ],
)
def test_a_sentence_starts_with_a_capital_unless_it_starts_with_a_name(start: str, sentence: str) -> None:
    assert capital(start) == sentence


def test_labels_that_are_cut_keep_what_they_differ_in() -> None:
    def cut(*values: Any) -> list[str]:
        return make_axis("k", [samples.make_point({"k": value}) for value in values]).short_labels(15)

    buckets = [{"rate": "5000/s", "burst": 20000, "full": full} for full in ("queue", "refuse")]
    assert cut(None, *buckets) == ["null", "…full: queue", "…full: refuse"]
    scorers = [{"policy": "scorers", "scorers": ["queue", "prefix-cache", last]} for last in ("lora", "load-state")]
    assert cut({"policy": "scorers"}, *scorers, {"policy": "hash"}) == ["scorers", "…lora", "…load-state", "hash"]
    assert cut("h100-64gb/assumed", "h100-64gb/vllm-0.24.0") == ["…assumed", "…vllm-0.24.0"]
    assert cut("a", "a" * 20) == ["a", f"{'a' * 14}…"]


@pytest.mark.parametrize(("count", "said"), [(1, "1 loader"), (11, "11 loaders")])
def test_one_of_what_could_limit_a_point_is_singular(count: int, said: str) -> None:
    point = samples.single().points[0]
    loader = replace(point.capacity.loader, loaders=count)
    table = capacity_table(replace(point, capacity=replace(point.capacity, loader=loader)))
    assert table is not None
    assert said in {row[-1] for row in table.rows}


@pytest.mark.parametrize(
    ("slots", "said"),
    [(32, ["slots", "up to 24 wanted at once"]), (None, ["memory for adapters", "up to 1.35 GB wanted at once"])],
)
def test_a_cache_that_counts_bytes_shows_bytes(slots: int | None, said: list[str]) -> None:
    point = samples.single().points[0]
    use = SlotUse(0.2, 24 if slots else 1_350_000_000, slots)
    table = capacity_table(replace(point, capacity=replace(point.capacity, slots=use)))
    assert table is not None
    assert said in [row[:2] for row in table.rows]
