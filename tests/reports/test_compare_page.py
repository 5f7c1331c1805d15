"""The page of a comparison: sentences, tables, charts; alone, escaped and readable."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import samples
from one_script import without_script
from test_report import Page

from reports.render.html import page
from reports.tables.slice_tables import tenants_table
from reports.text.metric_text import change_cell, interval_words, relative_cell, signed, values_of
from sim.errors import InputError
from sim.results.pairs import Difference, difference_of
from sim.results.point import Metric, Point, TenantResult
from sim.results.run_directory.store import RunData
from sim.studies.compare.charts import charts_of, points_chart
from sim.studies.compare.design_words import change_phrase, side_names
from sim.studies.compare.findings import as_json, caution_sentences, details, headline, short
from sim.studies.compare.report import compare_report, key_table, terminal_table
from sim.studies.compare.study import Comparison, compare_runs, key_metrics, worse_terms

SAME = {"requests": "a", "draws": "b"}


def run(*points: Point, name: str = "x", slo: dict[str, str] | None = None, **more: Any) -> RunData:
    for point in points:
        for key, metric in point.metrics.items():
            if metric.value is not None:
                total = key in ("completed", "unfinished", "refused", "failed", "preemptions", "evictions")
                parts: list[float | None] = [metric.value * f / (3 if total else 1) for f in (0.99, 1.0, 1.01)]
                point.metrics[key] = replace(metric, parts=parts)
    manifest = samples.manifest(kind="run", status="finished")
    manifest |= {"scenario": {**manifest["scenario"], "slo": slo}, **more}
    return RunData(Path(f"/tmp/runs/{name}"), manifest, [replace(point, traffic_ids=dict(SAME)) for point in points])


def single(*, p99: float = 0.25, miss: float = 0.8, slo: dict[str, str] | None = None) -> Comparison:
    return compare_runs(
        run(samples.make_point(fixed=False), name="one", slo=slo),
        run(samples.make_point(p99=p99, miss=miss, fixed=False), name="two", slo=slo),
    )


def swept(values: tuple[float, ...] = (25, 26, 33), other: tuple[float, ...] = (0.2, 0.3, 0.4)) -> Comparison:
    sides = [
        run(
            *(samples.make_point({"cache.gpu.slots": v}, p99=p, fixed=False) for v, p in zip(values, side, strict=True))
        )
        for side in ((0.3,) * len(values), other)
    ]
    return compare_runs(*sides)


def uncertain() -> Comparison:
    """Fewer misses, and latencies that may be anything."""
    comparison = single(miss=0.7)
    for name in ("ttft_p99_s", "e2e_p99_s"):
        for run_, parts in ((comparison.one, [0.2, 0.3, 0.4]), (comparison.other, [0.4, 0.3, 0.2])):
            metrics = run_.points[0].metrics
            metrics[name] = replace(metrics[name], parts=parts)
    return compare_runs(comparison.one, comparison.other)


def overload(*, second: bool) -> Comparison:
    sides = [samples.make_point(fixed=False), samples.make_point(fixed=False, p99=3.0, offered=1.2)]
    return compare_runs(*(run(point, name=str(i)) for i, point in enumerate(sides if second else sides[::-1])))


ALL = {
    "open": uncertain(),
    "overload": overload(second=True),
    "better": single(p99=0.2, slo={"e2e_p99": "1 s"}),
    "same": single(p99=0.3),
    "mixed": single(p99=0.2, miss=0.9),
    "swept": swept(),
    "many": swept(tuple(range(1, 61)), tuple(0.2 + 0.002 * i for i in range(60))),
    "rollouts": compare_runs(run(samples.changed_point()), run(samples.changed_point(harmed=4000, during=1.2))),
    "names": swept((1, 2), (0.2, 0.2)),
}


def test_where_both_are_overloaded_that_comes_first_and_times_have_one_unit() -> None:
    one, other = (run(samples.make_point(fixed=False, p99=p99, offered=1.2)) for p99 in (648.0, 552.0))
    assert headline(compare_runs(one, other)).startswith(
        "With both, more requests arrive than are served, so differences depend on how long the runs are. "
    )
    found = ALL["better"].pairs[0].differences["e2e_p99_s"]
    assert values_of(replace(found, one=648.0, other=552.0)) == ["10.8 min", "9.2 min"]
    assert values_of(replace(found, one=0.05, other=2.0)) == ["50 ms", "2 s"], "far apart"
    assert values_of(replace(found, one=None, other=0.0)) == ["–", "0 s"]


def test_the_answer_is_one_sentence() -> None:
    assert headline(ALL["better"]).startswith("Yes, B is better than A: p99 E2E 300 ms → 200 ms (−100 ms, 95 %: ")
    assert headline(single(p99=0.4, slo={"e2e_p99": "1 s"})).startswith(
        "No, B is worse than A: p99 E2E 300 ms → 400 ms"
    )
    assert headline(ALL["same"]) == "No difference between A and B: p99 TTFT, p99 E2E and miss ratio are the same."
    assert headline(ALL["mixed"]) == (
        "It depends: B is better in p99 TTFT 288 ms → 192 ms (−33.3 %), p99 E2E 300 ms → 200 ms (−33.3 %), but worse "
        "in miss ratio 80 % → 90 % (+10 pp)."
    )
    assert headline(ALL["swept"]).startswith(
        "It depends: B is better at 1, worse at 1, not clearly different at 1 of 3 points, by p99 TTFT, p99 E2E"
    )
    assert headline(ALL["names"]) == (
        "Yes, B is better than A at all 2 points: p99 TTFT, p99 E2E; nowhere clearly in miss ratio."
    )
    assert headline(ALL["open"]).startswith(
        "It is unclear which is better: B is clearly better in miss ratio 80 % → 70 % (−10 pp), but may "
        "be much worse in p99 TTFT 288 ms → 240 ms (−48 ms, 95 %: −566 to +470 ms)"
    )
    assert ALL["open"].word == "open"
    assert headline(ALL["rollouts"]).startswith("No, B is worse than A: affected by the change 220 → 4,000")
    point = samples.changed_point(duration=None)
    end = {"t_s": 900.0, "kind": "end", "text": "rollouts.0: the run ends before stage 2 of 3", "rollout": 0}
    cut_off = compare_runs(run(samples.changed_point()), run(replace(point, events=[point.events[0], end])))
    assert headline(cut_off).startswith("In B, the rollout is complete in none of 4 replications (rollouts.0: the run ")


def test_the_headline_says_what_differs() -> None:
    better, many = ALL["better"], ALL["names"]
    slots = (("cache.gpu.slots", "32", "64"),)
    assert headline(replace(better, changed=slots)).startswith("Better with 64 GPU slots instead of 32: p99 E2E 300 ms")
    assert headline(replace(many, changed=slots)).startswith("Better with 64 GPU slots instead of 32 at all 2 points")
    assert side_names(replace(better, changed=slots)) == ("32 GPU slots", "64 GPU slots")
    two = (*slots, ("cache.eviction", "lru", "sieve"), ("run.seed", "1", "2"))
    assert (
        change_phrase(replace(better, changed=two))
        == "64 GPU slots instead of 32 and eviction policy sieve instead of lru"
    )
    assert side_names(replace(better, changed=two)) == ("A", "B")
    engine = (("fleet.engine", "vllm-0.8", "sglang"), ("cache.eviction", "vllm-lru", "lru"))
    assert change_phrase(replace(better, changed=engine)) == "engine sglang instead of vllm-0.8"
    lost = replace(single(p99=0.5, slo={"e2e_p99": "400 ms"}), changed=slots)
    assert headline(lost).startswith(
        "Worse with 64 GPU slots instead of 32: the SLO is met only with 32 GPU slots; p99"
    )


def test_the_slo_is_judged_on_both_sides() -> None:
    assert "The SLO is met with both." in details(ALL["better"])
    crossed = single(p99=0.5, slo={"e2e_p99": "400 ms"})
    assert "The SLO is met with A, not met with B." in details(crossed)
    assert worse_terms(crossed) == ["e2e_p99_s"]
    assert worse_terms(ALL["better"]) == []
    assert crossed.judged == ("e2e_p99_s",)


def test_overload_and_the_slo_decide_before_any_change() -> None:
    assert headline(ALL["overload"]).startswith("No, B is worse than A: with B more requests arrive than are served")
    assert headline(overload(second=False)).startswith(
        "Yes, B is better than A: with A more requests arrive than are served"
    )
    lost = single(p99=0.5, miss=0.7, slo={"e2e_p99": "400 ms", "miss_ratio": "90%"})
    assert headline(lost).startswith("No, B is worse than A: the SLO is met only with A; p99 E2E 300 ms → 500 ms")
    assert any(text.startswith("Also clearly better: miss ratio 80 % → 70 %") for text in details(lost))
    assert as_json(lost)["points"][0]["why"] == "the SLO is met only with A"
    # A time that an overloaded run has is worse, however wide its interval.
    full = replace(ALL["overload"], terms={"ttft_p99_s": 10.0, "miss_ratio": 1.0})
    assert worse_terms(full) == ["ttft_p99_s"]


def test_without_an_slo_latencies_and_misses_decide() -> None:
    assert ALL["mixed"].judged == ("ttft_p99_s", "e2e_p99_s", "miss_ratio")
    assert ALL["rollouts"].judged == ("harmed_excess", "rollout_e2e_p99_s", "e2e_p99_s")


def test_slo_terms_come_first_and_zero_counts_are_left_out() -> None:
    names = key_metrics(ALL["better"])
    assert names[0] == "e2e_p99_s"
    assert "failed" not in names
    table = key_table(ALL["better"])
    assert table.rows[0][:3] == ["p99 E2E, SLO 1 s", "300 ms", "200 ms"]
    assert table.rows[0][5] == "clearly better"


def test_changes_have_a_sign_and_one_unit() -> None:
    assert signed("e2e_p99_s", -0.072, "s") == "−72 ms"
    assert signed("miss_ratio", 0.031, "1") == "+3.1 pp"
    assert signed("completed", 1204, "requests") == "+1,204"
    assert signed("e2e_p99_s", 0.0, "s") == "0 s"
    difference = Difference("e2e_p99_s", "s", 0.6, 0.5, -0.1, -0.12, -0.08, -1 / 6, "clearly better", True, "")
    assert interval_words(difference) == "−120 to −80 ms"
    assert change_cell(difference) == "−100 ms (−120 to −80 ms)"
    assert relative_cell(difference) == "−16.7 %"
    assert interval_words(replace(difference, hi=1.5)) == "−120 ms to +1.5 s"
    assert relative_cell(replace(difference, relative=None)) == "–"


def test_long_sweeps_are_cut_on_the_terminal_and_whole_in_json() -> None:
    table = terminal_table(ALL["many"])
    assert len(table.rows) == 60
    assert "60 of 180 rows" in table.note
    assert len(as_json(ALL["many"])["points"]) == 60


def test_what_does_not_change_is_the_same() -> None:
    told = details(swept(other=(0.3, 0.3, 0.3)))
    assert "p99 E2E is the same at every point." in told


def test_charts_share_axes() -> None:
    idents = [chart.ident for chart in charts_of(ALL["better"])]
    assert idents == ["changes", "cdf-ttft", "cdf-e2e", "stages"]
    swept_ = charts_of(ALL["swept"])
    assert [chart.ident for chart in swept_][:2] == ["curves-ttft-p99-s", "curves-e2e-p99-s"]
    assert "A goes from 288 ms" in swept_[0].desc
    assert "B goes from 192 ms" in swept_[0].desc
    assert [row[0] for row in swept_[1].table.rows] == ["25", "26", "33"]
    assert charts_of(swept(other=(0.3, 0.3, 0.3))) == []
    many = ALL["many"]
    dots = points_chart(many, many.axes, "ttft_p99_s")
    assert "24 of 60 points" in dots.caption
    assert len(dots.table.rows) == 60


def test_every_difference_of_the_page_is_that_of_the_points() -> None:
    comparison = ALL["better"]
    (pair,) = comparison.pairs
    for name, difference in pair.differences.items():
        assert difference == difference_of(pair.one, pair.other, name)


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_page_is_well_formed(name: str) -> None:
    text = page(compare_report(ALL[name], "loraplan compare a b"))
    read = Page(text)
    assert len(set(read.ids)) == len(read.ids)
    anchors = {(a["href"] or "").removeprefix("#") for a in read.of("a") if (a["href"] or "").startswith("#")}
    assert anchors - {""} <= set(read.ids)
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S).lower().split()


def shared(*, chat: float, p99: float = 0.3, offered: float | None = None) -> Point:
    """A point whose tenants have requests of their own; chat alone has an SLO."""
    point = samples.make_point(fixed=False, p99=p99, offered=offered)
    parts: list[float | None] = [chat * f for f in (0.99, 1.0, 1.01)]
    metric = replace(point.metrics["ttft_p99_s"], value=chat, lo=0.9 * chat, hi=1.1 * chat, parts=parts)
    return replace(
        point,
        tenants=[
            TenantResult("chat", {"ttft_p99_s": 0.4}, {"ttft_p99_s": metric}),
            TenantResult("batch", {}, {"ttft_p99_s": point.metrics["ttft_p99_s"]}),
        ],
    )


def test_tenants_slos_are_judged_too() -> None:
    slo = {"ttft_p99": "1 s"}
    found = compare_runs(run(shared(chat=0.2), slo=slo), run(shared(chat=5.0, p99=0.2), slo=slo, name="two"))
    assert found.judged == ("ttft_p99_s", "tenants.chat.ttft_p99_s")
    assert headline(found) == (
        "No, B is worse than A: the SLO is met only with A; p99 TTFT of chat 200 ms → 5 s (+2,400 %)."
    )
    assert worse_terms(found) == ["tenants.chat.ttft_p99_s"]
    assert ["p99 TTFT of chat, SLO 400 ms", "200 ms", "5 s"] in [row[:3] for row in key_table(found).rows]
    missed = compare_runs(run(shared(chat=3.0), slo=slo), run(shared(chat=80.0, p99=0.2), slo=slo, name="two"))
    assert headline(missed).startswith(
        "It depends: B is better in p99 TTFT 288 ms → 192 ms (−33.3 %), but worse in p99"
    )
    assert worse_terms(missed) == ["tenants.chat.ttft_p99_s"]
    assert as_json(missed)["points"][0]["metrics"]["tenants.chat.ttft_p99_s"]["word"] == "clearly worse"
    alone = compare_runs(run(shared(chat=0.2)), run(shared(chat=0.3), name="two"))
    assert alone.terms == {"tenants.chat.ttft_p99_s": 0.4}
    assert "p99 TTFT of chat" in page(compare_report(missed, ""))


def test_relief_of_the_fleet_does_not_hide_what_a_tenant_loses() -> None:
    full, relieved = shared(chat=0.2, p99=9.0, offered=1.2), shared(chat=5.0)
    for one, other, opening in ((full, relieved, "Better"), (relieved, full, "Worse")):
        found = compare_runs(run(one), run(other, name="two"))
        assert not headline(found).startswith(opening)
        assert "more requests arrive than are served" not in headline(found)
    assert worse_terms(compare_runs(run(full), run(relieved, name="two"))) == ["tenants.chat.ttft_p99_s"]


def test_sweeps_show_tenants_along_the_swept_key() -> None:
    def side(*chats: float) -> RunData:
        points = [replace(shared(chat=c), set={"cache.gpu.slots": i}) for i, c in enumerate(chats, 1)]
        return run(*points)

    found = compare_runs(side(0.2, 0.2, 0.2), side(0.2, 0.3, 5.0))
    (chart,) = charts_of(found)
    assert chart.ident == "curves-ttft-p99-s-0"
    assert "p99 TTFT of chat" in chart.title
    drawn = points_chart(found, found.axes, "tenants.chat.ttft_p99_s")
    assert drawn.table.rows[-1][1:3] == ["200 ms", "5 s"]
    table = tenants_table(side(*[0.2] * 101).points)
    assert table is not None
    assert "of all 202 rows; 200 are shown" in table.note


def test_tenants_that_one_run_lacks_are_left_out() -> None:
    found = compare_runs(run(samples.make_point(fixed=False)), run(shared(chat=5.0), name="two"))
    assert found.terms == {}
    assert "Only B has the tenant chat: its SLO is left out." in caution_sentences(found)
    slo = {"ttft_p99": "1 s"}
    found = compare_runs(run(samples.make_point(fixed=False), slo=slo), run(shared(chat=5.0), slo=slo, name="two"))
    row = as_json(found)["points"][0]
    assert (row["slo_one"], row["slo_other"]) == ("met", "met"), "by the SLO that both have"
    assert "SLO is met with both" in " ".join([headline(found), *details(found)])


def test_whose_slo_is_met_is_said_where_they_differ() -> None:
    def compared(one: dict[str, str] | None, other: dict[str, str] | None, p99: float = 0.2) -> Comparison:
        points = samples.make_point(fixed=False), samples.make_point(fixed=False, p99=p99)
        return compare_runs(run(points[0], slo=one), run(points[1], slo=other, name="two"))

    points = samples.make_point(fixed=False), samples.make_point(fixed=False)
    points[1].metrics["tpot_p99_s"] = Metric(0.04, 0.039, 0.041, "s")
    slos = {"ttft_p99": "1 s"}, {"ttft_p99": "1 s", "tpot_p99": "30 ms"}
    found = compare_runs(run(points[0], slo=slos[0]), run(points[1], slo=slos[1], name="two"))
    assert headline(found) == "Run A again with the same SLO: p99 TPOT was not measured there."
    loose, tight = {"e2e_p99": "1 s"}, {"e2e_p99": "900 ms"}
    both = compared(loose, tight)
    assert "B's SLO is met with both." in details(both)
    assert "The SLOs differ: both are judged by that of B." in caution_sentences(both)
    only = compared(loose, None)
    assert "A's SLO is met with both." in details(only)
    assert "Only A has an SLO: both are judged by it." in caution_sentences(only)
    crossed = compared(loose, {"e2e_p99": "400 ms"}, p99=0.5)
    assert "B's SLO is met with A, not met with B." in details(crossed)
    assert headline(crossed).startswith("No, B is worse than A: B's SLO is met only with A;")
    same = compared(loose, loose)
    assert "The SLO is met with both." in details(same)
    assert not caution_sentences(same)


def test_a_plan_stands_for_what_it_recommends_or_for_the_nearest() -> None:
    points = [samples.make_point(p99=p99) for p99 in (0.3, 0.4)]
    for keys, chosen in (({"answer_key": "a", "best_key": "b"}, 0), ({"answer_key": None, "best_key": "b"}, 1)):
        run = samples.RunData(Path("x"), {**samples.manifest(), "point_keys": ["a", "b"], "plan": keys}, points)
        assert run.recommended is points[chosen]
    assert samples.RunData(Path("x"), samples.manifest(), points).recommended is None


def test_lists_and_sections_are_one_change() -> None:
    def phrase(one: dict[str, Any], other: dict[str, Any]) -> str:
        a, b = (run(samples.make_point(fixed=False), name=name) for name in "ab")
        a.manifest["scenario"], b.manifest["scenario"] = ({**a.manifest["scenario"], **more} for more in (one, other))
        return change_phrase(compare_runs(a, b))

    crash = {"kind": "crash", "replica": 0, "at": "60 s"}
    pools = {"fleet": {"pools": [{"name": "big", "replicas": 1}, {"name": "small", "replicas": 2}]}}
    fewer = {"fleet": {"pools": [{"name": "big", "replicas": 1}, {"name": "small", "replicas": 1}]}}
    tenants = [{"name": "chat", "adapters": 4, "share": "50%"}, {"name": "batch", "adapters": 4, "share": "50%"}]
    assert phrase({"faults": []}, {"faults": [crash]}) == "1 fault instead of none"
    assert phrase({"faults": [crash]}, {"faults": []}) == "no faults instead of 1"
    assert phrase({"tenants": []}, {"tenants": tenants}) == "2 tenants instead of none"
    assert phrase(pools, {"fleet": {"replicas": 2}}) == "2 replicas instead of pools big and small"
    assert phrase({"fleet": {"replicas": 1}}, pools) == "pools big and small instead of 1 replica"
    assert phrase(pools, fewer) == "1 replica of small instead of 2"
    caching = [{"fleet": {"prefix_caching": value}} for value in (True, False)]
    assert phrase(caching[0], caching[1]) == "prefix caching off instead of on"
    scaled = {"fleet": {"autoscale": {"min": 1, "max": 6}}}
    assert phrase({"fleet": {"autoscale": None}}, scaled) == "an autoscaler instead of none"
    assert phrase(scaled, {"fleet": {"autoscale": None}}) == "no autoscaler"
    drafting = {"fleet": {"speculation": {"tokens": 3, "acceptance": ["70%", "60%", "50%"]}}}
    assert phrase({"fleet": {"speculation": None}}, drafting) == "speculation instead of none"
    assert phrase({"slo": {"e2e_p99": "2 s"}}, {"slo": {"e2e_p99": "1 s"}}) == ""
    replayed = {"workload": {"trace": {"file": "log.csv"}}}
    fitted = {"workload": {"trace": None, "tokens": {"prompt": {"law": "empirical"}}}}
    both = compare_runs(*(run(samples.make_point(), scenario=each) for each in (replayed, fitted)))
    assert dict(short(both))["Changed"] == "a recorded trace → drawn requests."
    laws = [{"law": "lognormal", "mean": 120, "p99": 400}, {"law": "fixed", "value": 300}]
    drawn, fixed = ({"workload": {"tokens": {"output": law}}} for law in laws)
    assert phrase(drawn, fixed).endswith("lognormal and workload.tokens.output.value 300 instead of no value")
    kinds = [{"process": "gamma", "rate": "6/s", "cv": 2}, {"process": "poisson", "rate": "6/s"}]
    bursty, plain = ({"workload": {"arrivals": arrivals}} for arrivals in kinds)
    assert phrase(bursty, plain) == "workload.arrivals.process poisson instead of gamma"


def test_keys_of_tenants_and_pools_are_named_not_numbered() -> None:
    def changed(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, str]:
        a, b = (run(samples.make_point(fixed=False), name=name) for name in "ab")
        a.manifest["scenario"], b.manifest["scenario"] = ({**a.manifest["scenario"], **more} for more in (one, other))
        found = compare_runs(a, b)
        return change_phrase(found), dict(short(found))["Changed"]

    tenants = [{"name": "chat", "adapters": 4}, {"name": "batch", "adapters": 4, "bucket": None}]
    bounded = [tenants[0], {**tenants[1], "bucket": {"rate": "300/s"}}]
    assert changed({"tenants": tenants}, {"tenants": bounded}) == (
        "bucket of batch instead of none",
        "no bucket of batch → bucket of batch.",
    )
    faster = [tenants[0], {**tenants[1], "bucket": {"rate": "400/s"}}]
    said = changed({"tenants": bounded}, {"tenants": faster})
    assert said == ("token rate of batch 400/s instead of 300/s", "token rate of batch 300/s → 400/s.")


def test_prefill_and_decode_apart_are_judged_by_itl_too() -> None:
    """Unless the SLO has a target between tokens already."""
    point = samples.make_point(fixed=False)
    point = replace(point, breakdown={**point.breakdown, "hand_over_s": 0.001})
    point.metrics["itl_p99_s"] = replace(point.metrics["ttft_p99_s"])
    for slo, judged in (
        (None, ("ttft_p99_s", "e2e_p99_s", "miss_ratio", "itl_p99_s")),
        ({"ttft_p99": "1 s"}, ("ttft_p99_s", "itl_p99_s")),
        ({"ttft_p99": "1 s", "tpot_mean": "50 ms"}, ("ttft_p99_s", "tpot_mean_s")),
    ):
        assert compare_runs(run(point, slo=slo), run(point, slo=slo)).judged == judged


def test_what_users_write_is_escaped() -> None:
    one, two = (run(samples.make_point(fixed=False), name="<b>1") for _ in "ab")
    two.manifest["scenario"] = {**two.manifest["scenario"], "cache": {"eviction": "<script>alert(1)</script>"}}
    text = page(compare_report(compare_runs(one, two), "<i>x</i>"))
    assert "<script" not in without_script(text)
    assert "<b>1" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_runs_without_points_are_refused() -> None:
    with pytest.raises(InputError, match="no finished points"):
        compare_runs(run(), run(samples.make_point()))


@pytest.mark.parametrize(("b", "said"), [(1500.0, "B costs $500 a month less."), (2000.0, ""), (None, "")])
def test_a_bill_says_what_b_saves(b: float | None, said: str) -> None:
    points = [samples.make_point() for _ in range(2)]
    for point, month in zip(points, (2000.0, b), strict=True):
        point.metrics["usd_per_month"] = Metric(month, unit="USD")
    runs = [samples.RunData(Path(name), samples.manifest(), [point]) for name, point in zip("ab", points, strict=True)]
    bill = dict(short(compare_runs(*runs))).get("Bill", "")
    assert ("B costs" in bill) == bool(said)
    assert said in bill
