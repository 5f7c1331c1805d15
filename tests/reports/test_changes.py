"""What the report says of rollouts, faults and routers: answers with their numbers, and nothing that isn't there."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import samples

from reports.answers.points import certainly_less, impact_of
from reports.axes import make_axes
from reports.charts.axis_ticks import clock_ticks, clock_words, time_ticks
from reports.charts.svg import Chart
from reports.charts.timeline_chart import event_marks, timeline_chart
from reports.formatting import interval, read_terms, show
from reports.table import Table
from sim.results.metric_state import Cause, State
from sim.results.model import Capacity, ComputeUse, Impact, MemoryUse, Setup, from_plain
from sim.results.point import LateShare, Metric, Point
from sim.results.run_directory.headroom_record import FOUND, NEVER, TOO_LONG, Headroom
from sim.results.verdict import PROBABLY_NOT, graded_verdict
from sim.studies.changes.charts import impact_chart, moments_chart, version_chart
from sim.studies.changes.comparison import extremes
from sim.studies.changes.findings import composition, replications_needed, rollouts_begun
from sim.studies.changes.report import side_by_side
from sim.studies.run.answer import answer
from sim.studies.run.findings import sweep_answer
from sim.studies.run.report import verdict_badge

TERMS = {"ttft_p99_s": 1.0}


def test_a_change_without_a_clear_impact_is_called_so() -> None:
    point = samples.changed_point(harmed=60, usual=57, harm={"slow": 60})
    point.metrics["harmed_excess"] = Metric(3.0, -4.0, 10.0, "requests")
    assert answer(point, TERMS).headline == (
        "The SLO is met, and the rollout had no clear impact: 3 (up to 10) of 57,000 requests were affected."
    )
    point.metrics["harmed_excess"] = Metric(3.0, unit="requests")  # of one replication, against its own baseline
    assert answer(point, TERMS).headline == ("The SLO is met, but the rollout affected 3 of 57,000 requests: 3 late.")
    point.metrics["harmed_excess"] = Metric(0.0, unit="requests")
    assert answer(point, {}).headline == "The rollout affected none of 57,000 requests."


def test_an_interval_that_allows_much_impact_is_not_called_none() -> None:
    """Two replications: from none to more than twice the 1 % of the requests that a p99 allows to be late."""
    point = samples.changed_point(harmed=283, usual=57, harm={"slow": 283 * 2, "requests": 57_000, "replications": 2})
    point.metrics["harmed_excess"] = Metric(226.0, -397.0, 849.0, "requests")
    said = answer(point, TERMS)
    assert said.headline == (
        "The SLO is met, and 2 replications are too few to tell what the rollout did: 226 (up to 849) of 28,500 "
        "requests were affected."
    )
    hint = "About 5 replications would tell, if the impact is as large as it seems: --set run.replications=5."
    assert hint in said.details
    # Its half-width over that of 2 replications is t(n − 1)/√n over t(1)/√2: 317 with 9 of them, 295 with 10.
    point.metrics["harmed_excess"] = Metric(300.0, -3400.0, 4000.0, "requests")
    assert replications_needed(point) == 10
    point.metrics["harmed_excess"] = Metric(-2.0, -800.0, 796.0, "requests")
    assert "0 (up to 796) of" in answer(point, TERMS).headline
    assert not any("would tell" in sentence for sentence in answer(point, TERMS).details), "there may be nothing"


def test_the_badge_is_no_plain_check_where_answers_are_wrong() -> None:
    page = samples.build_report(samples.rollout())
    assert "SLO met, but about 125 late requests" in page


def test_wrong_answers_under_a_met_slo_are_no_success() -> None:
    stale = samples.changed_point(harm={"stale": 60, "slow": 5}, harmed=65)
    assert answer(stale, TERMS).setting.startswith("Nothing for the SLO; for fewer wrong answers, compare strategies")


def test_a_rollout_that_never_ends_is_called_so() -> None:
    said = answer(samples.changed_point(duration=None), TERMS)
    assert "The rollout is complete in none of 4 replications." in said.details


def test_a_missed_miss_ratio_wants_slots_not_replicas() -> None:
    said = answer(rolled_back([["miss_ratio", 0.8, 0.01]]), {}).setting
    assert said.startswith(
        "For fewer misses, add GPU slots (cache.gpu.slots) or route by adapter (router.policy), or let the gate"
    )


def rolled_back(missed: list[list[object]]) -> Point:
    """A rollout without a clear impact that its gate sent back in two of three replications, the first among them."""
    point = samples.changed_point(duration=None, harmed=60, usual=57, harm={"slow": 60})
    point.metrics["harmed_excess"] = Metric(3.0, -4.0, 10.0, "requests")
    state = State(Cause.ROLLED_BACK_IN_SOME, 1, 3, 2)
    point.metrics["rollout_duration_s"] = Metric(None, unit="s", state=state)
    back = {"t_s": 500.0, "kind": "rollback", "text": "rollouts.0: back", "rollout": 0, "missed": missed}
    return replace(point, events=[point.events[0], back])


@pytest.mark.parametrize(
    ("limit_s", "setting"),
    [
        (
            0.15,
            "Add replicas (fleet.replicas), or let the gate allow more (rollouts.0.gate): p99 TTFT of the time before, "
            "200 ms, is above its limit, too.",
        ),
        (
            0.4,
            "Let the gate allow more (rollouts.0.gate): p99 TTFT of the time before, 200 ms, is within its limit, but "
            "a new version has to be loaded first.",
        ),
    ],
)
def test_a_rollout_that_went_back_is_no_success(limit_s: float, setting: str) -> None:
    point = rolled_back([["ttft_p99", 2.95, limit_s]])
    said = answer(point, TERMS)
    assert said.headline == (
        "The SLO is met, but the rollout was rolled back in 2 of 3 replications: in the first, p99 TTFT of the new "
        f"version was 2.95 s (the gate allows {show('ttft_p99_s', limit_s)}). The rollout had no clear impact: 3 (up "
        "to 10) of 57,000 requests were affected."
    )
    assert said.setting == setting
    assert verdict_badge([point], TERMS, said.verdict) == ("◐", "SLO met, but rolled back", "partly")
    assert answer(point, {"ttft_p99_s": 0.2881}).setting == setting, "a profile or a longer run undoes no rollback"
    rare = rolled_back([["miss_ratio", 0.9, 0.8]])
    assert answer(rare, TERMS).setting.startswith("Begin with a larger stage (rollouts.0.stages), or let")
    failing = answer(rolled_back([["ttft_p99", None, limit_s]]), {})
    assert ": in the first, requests of the new version failed. The rollout had" in failing.headline
    assert failing.setting == "First keep requests of the new version from failing."


def test_a_design_with_which_the_rollout_goes_back_is_no_choice() -> None:
    strict = replace(rolled_back([["ttft_p99", 2.95, 0.2]]), set={"rollouts.0.gate.ttft_p99": "200 ms"})
    loose = replace(samples.changed_point(harmed=220), set={"rollouts.0.gate.ttft_p99": "1 s"})
    said = sweep_answer([strict, loose], TERMS)
    assert said.headline.startswith("The rollout gets through only with rollouts.0.gate.ttft_p99 1 s. ")
    assert said.setting == "rollouts.0.gate.ttft_p99: 1 s."
    stricter = replace(strict, set={"rollouts.0.gate.ttft_p99": "100 ms"})
    assert "gets through" not in sweep_answer([stricter, strict], TERMS).headline, "with none of them"


def test_a_rollout_that_the_run_cuts_off_is_no_success() -> None:
    point = samples.changed_point(duration=None, harmed=0, harm={"slow": 0})
    end = {"t_s": 900.0, "kind": "end", "text": "rollouts.0: the run ends before stage 2 of 3", "rollout": 0}
    point = replace(point, events=[point.events[0], end])
    said = answer(point, TERMS)
    assert said.headline.startswith(
        "The SLO is met, but the rollout is complete in none of 4 replications (rollouts.0: the run ends before stage "
        "2 of 3). The rollout "
    )
    assert said.setting == "Nothing yet; simulate a longer run (workload.duration), to the last stage."
    starved = replace(point, events=[point.events[0], {**end, "missed": [["min_requests", 14.0, 100.0]]}])
    assert answer(starved, TERMS).setting == (
        "Let the gate wait for fewer requests (rollouts.0.gate.min_requests), or begin with a larger stage "
        "(rollouts.0.stages)."
    )
    assert verdict_badge([point], TERMS, said.verdict)[:2] == ("◐", "SLO met, but not complete")


def test_strategies_without_a_clear_difference_are_not_ranked() -> None:
    run = samples.strategies()
    metrics = run.points[1].metrics
    metrics["harmed_excess"] = replace(metrics["harmed_excess"], parts=[250.0, 210.0, 225.0, 235.0])
    assert not certainly_less(run.points[0], run.points[1], "harmed_excess")
    assert certainly_less(run.points[0], run.points[2], "harmed_excess")
    said = sweep_answer(run.points, TERMS)
    assert said.setting == "rollouts.0.strategy: in-place; its impact isn't clearly less than with drain-then-swap."
    assert said.headline == (
        "Avoid lazy-reread: 8,510 (8,090 to 8,940) affected requests per rollout (8,510 stale "
        "answers). With the others, 220 to 230."
    )
    assert "In-place mixes versions in about 95 answers." in said.details
    assert any("Not complete in every replication: lazy-reread." in sentence for sentence in said.details)
    during = next(s for s in said.details if s.startswith("p99 TTFT during"))
    assert "highest with drain-then-swap, 1.6 s" in during
    assert during.endswith("against 200 ms before.")
    assert "SLO met at every point, but up to about 8,510 stale answers" in samples.build_report(run)


def test_the_others_meet_the_slo_where_some_that_are_left_out_do_not() -> None:
    run = samples.strategies()
    slow = replace(run.points[1].metrics["e2e_p99_s"], value=99.0, lo=98.0, hi=100.0)
    missing = replace(run.points[1], metrics={**run.points[1].metrics, "e2e_p99_s": slow})
    new_name = samples.changed_point({"rollouts.0.strategy": "new-name"}, harmed=222, harm={"slow": 222})
    said = sweep_answer([run.points[0], missing, *run.points[2:], new_name], {"e2e_p99_s": 50.0}).headline
    assert said.startswith("Avoid lazy-reread: ")
    assert " With the others that meet the SLO, 220 to 222." in said


def test_small_differences_do_not_matter_next_to_large_ones() -> None:
    said = sweep_answer(samples.strategies().points, TERMS).headline
    assert said == (
        "Avoid lazy-reread: 8,510 (8,090 to 8,940) affected requests per rollout (8,510 stale "
        "answers). With the others, 220 to 230. Of these, least with in-place."
    )
    two = samples.strategies().points[:2]
    assert sweep_answer(two, TERMS).headline == (
        "Least impact with in-place: the rollout affects 220 (209 to 231) requests (125 late, 95 "
        "mixed versions), against 230 (218 to 242) with drain-then-swap."
    )


def test_many_comparisons_need_larger_differences() -> None:
    one, other, _ = samples.strategies().points
    other.metrics["harmed_excess"] = replace(other.metrics["harmed_excess"], parts=[222.0, 232.0, 230.0, 236.0])
    assert certainly_less(one, other, "harmed_excess")
    assert not certainly_less(one, other, "harmed_excess", comparisons=10)


def test_one_replication_claims_no_order() -> None:
    points = samples.strategies().points
    for point in points:
        metric = point.metrics["harmed_excess"]
        point.metrics["harmed_excess"] = replace(metric, lo=None, hi=None, parts=[metric.value])
    said = sweep_answer(points, TERMS).headline
    assert "least" not in said
    assert said.endswith(" Small differences may be chance: set run.replications=4 for intervals.")


def test_what_another_point_lacks_is_not_certainly_less() -> None:
    assert not certainly_less(samples.changed_point(), samples.make_point(), "harmed")


def test_crashes_say_what_was_lost_and_where_it_went() -> None:
    run = samples.crashes()
    said = sweep_answer(run.points, TERMS)
    text = " ".join(said.details)
    assert said.headline == (
        "Least impact with reroute: with time to notice 5 s, the crash affects 5 (4.8 to 5.2) requests "
        "(5 late), against 145 (138 to 152) with lose."
    )
    assert (
        "With lose, the crash affects 125 (119 to 131) requests with time to notice 0 s, 145 (138 to "
        "152) with 5 s." in text
    )
    assert "Lost: lowest with lose, time to notice 0 s, 120" in text
    assert not any(s.startswith("Failed") for s in said.details)
    assert "Rerouted requests take on average 9 s" in text
    alone = answer(run.points[-1], TERMS)
    assert alone.headline.endswith("requests: 140 lost, 5 late.")  # lost ones have failed, and count once
    assert "140 requests were lost with their replica; 0 were sent to another one." in alone.details
    assert any("8 s on average, against 2 s usually" in s for s in alone.details)


def stalls() -> list[Point]:
    """More slots are slower without a fault, and less affected by one."""
    points = []
    for length in ("0 s", "60 s"):
        for slots, usual, more in ((32, 360, 657), (100, 484, 8)):
            many = usual + (more if length == "60 s" else 0)
            swept = {"faults.0.lasts": length, "cache.gpu.slots": slots}
            points.append(samples.changed_point(swept, harmed=many, usual=usual, rollout=False, harm={"slow": many}))
    return points


def test_designs_are_compared_by_the_impact_of_the_worst_fault() -> None:
    said = sweep_answer(stalls(), TERMS)
    assert said.headline == (
        "Least impact with 100 GPU slots: with length of the fault 60 s, the fault affects 8 (7.6 to 8.4) requests "
        "(8 late), against 657 (624 to 690) with 32 GPU slots."
    )
    assert (
        "With 32 GPU slots, the fault affects 0 requests with length of the fault 0 s, 657 (624 to "
        "690) with 60 s." in said.details
    )


def test_what_misses_the_slo_is_not_recommended() -> None:
    points = stalls()
    slow = points[3].metrics["ttft_p99_s"]
    points[3].metrics["ttft_p99_s"] = replace(slow, value=9.0, lo=8.5, hi=9.5)
    said = sweep_answer(points, TERMS)
    assert said.headline.startswith("Least impact within the SLO, with 32 GPU slots: with length of the fault 60 s, ")
    assert (
        "With length of the fault 60 s, the SLO is not met with 100 GPU slots, which affects 8 (7.6 to 8.4) requests."
        in said.details
    )
    points[3].metrics["ttft_p99_s"] = replace(slow, value=1.5, lo=0.1, hi=2.9, parts=[0.9, 1.5, 2.1])
    assert graded_verdict(points[3], TERMS) == PROBABLY_NOT
    said = sweep_answer(points, TERMS)
    assert said.setting == "cache.gpu.slots: 32."
    assert any(" the SLO is not met, or probably not, with 100 GPU slots" in sentence for sentence in said.details)


def test_a_missed_slo_is_told_with_its_number_and_with_what_would_mend_it() -> None:
    point = samples.changed_point(harmed=50, rollout=False, harm={"slow": 50})
    point = replace(point, metrics={**point.metrics, "ttft_p99_s": Metric(1.3, 1.25, 1.35, "s")})
    found = Headroom(FOUND, multiple=3.6, term="ttft_p99_s", without=("faults",))
    said = answer(point, TERMS, headroom=found)
    assert said.headline.startswith("The SLO is not met: p99 TTFT is 1.3 s, above the 1 s target; the fault affected ")
    assert said.setting == "Nothing in the fleet: without the fault, it would meet the SLO."
    assert not any(detail.startswith("The SLO") for detail in said.details)
    crashed = replace(point, capacity=from_plain(Capacity, {"faults": {"crash": 0.1}, "slots": {"blocked_share": 0.2}}))
    said = answer(crashed, TERMS, headroom=found)
    assert said.setting == "Add replicas (fleet.replicas) that take over.", "slots are short because of the crash"
    noticed = [{"t_s": t, "kind": kind, "text": ""} for t, kind in ((9.0, "crash"), (29.0, "detected"))]
    said = answer(replace(crashed, events=noticed), TERMS, headroom=found)
    assert said.setting == "Add replicas (fleet.replicas) that take over.", "those that are late never were there"
    assert crashed.impact is not None
    noticed_late = replace(crashed, events=noticed, impact=replace(crashed.impact, rerouted=30))
    said = answer(noticed_late, TERMS, headroom=found)
    assert said.setting == "Detect crashes sooner (faults.N.detected), or add replicas (fleet.replicas) that take over."
    losing = replace(crashed, impact=replace(crashed.impact, lost=50))
    said = answer(losing, TERMS, headroom=found)
    assert said.setting == "Send requests of a dead replica to others (faults.N.requests: reroute)."
    setup = Setup("vllm", memory=MemoryUse(1, 16, 5, 8, 8, 1000, 40, 8, 1))
    said = answer(replace(losing, setup=setup), TERMS, headroom=found)
    assert said.setting == "Add replicas (fleet.replicas) that take over.", "there is no other"
    beyond = {"faults": {"crash": 0.1}, "compute": {"utilization": 1.0, "offered_load": 1.5}}
    seats = replace(point, capacity=from_plain(Capacity, {"seats": {"blocked_share": 0.9}}))
    without = replace(found, multiple=0.4, hi=0.4, failing=seats)
    said = answer(replace(point, capacity=from_plain(Capacity, beyond)), TERMS, headroom=without)
    assert said.setting.startswith("Raise fleet.max_num_seqs, or add replicas"), "it fails without the crash, too"
    unknown = answer(
        replace(point, capacity=from_plain(Capacity, beyond)), TERMS, headroom=Headroom(TOO_LONG, period_s=9e4)
    )
    assert unknown.setting == "Add replicas (fleet.replicas) that take over.", "the search found neither"
    said = answer(point, TERMS, headroom=Headroom(NEVER, hi=1 / 64, term="ttft_p99_s", without=("faults",)))
    assert said.setting.startswith("Relax the target of p99 TTFT (missed even with a fraction of the traffic)")
    flooded = {"faults": {"storage-stall": 0.1}, "compute": {"utilization": 1.0, "offered_load": 1.5}}
    calm = replace(point.impact or Impact(), slow_unanswered=0)
    said = answer(replace(point, impact=calm, capacity=from_plain(Capacity, flooded)), TERMS)
    assert not said.setting.startswith("Keep more copies"), "more arrives than is served, stall or not"
    for kind in ("storage-stall", "slow-storage", "failing-loads"):
        stalled = {"faults": {kind: 0.1}, "compute": {"utilization": 0.99}}
        said = answer(replace(point, capacity=from_plain(Capacity, stalled)), TERMS)
        assert said.setting == "Keep more copies in host memory (cache.host.slots), which need no storage."
        whole = stalled | {"loader": {"host_holds_all": True}}
        said = answer(replace(point, capacity=from_plain(Capacity, whole)), TERMS, headroom=found)
        assert said.setting.startswith("Nothing in the fleet: "), "every adapter is there"
    assert said.first_limit == "Faults: without them, the SLO would be met up to about 3.6 times the traffic."


def test_more_replications_narrow_what_happens_once() -> None:
    point = samples.changed_point(harmed=50, rollout=False, harm={"slow": 50})
    point = replace(point, metrics={**point.metrics, "ttft_p99_s": Metric(1.0, 0.9, 1.1, "s")})
    assert answer(point, TERMS).setting == "Nothing yet; simulate more replications (run.replications) first."
    always = replace(point, events=[{"t_s": 0.0, "kind": "fault", "text": "faults.0: 2 % reach another adapter"}])
    assert answer(always, TERMS).setting == "Nothing yet; simulate more requests first."


def test_who_never_got_an_answer_is_told_first() -> None:
    point = samples.changed_point(harmed=5000, rollout=False, harm={"slow": 5000})
    impact = replace(
        impact_of(point), unanswered=4990, slow_unanswered=4960, requests_before=50_000, unanswered_after=4990
    )
    faults = {"crash": 1 / 3, "storage-stall": 0.0}
    capacity = replace(point.capacity, compute=ComputeUse(0.2, 1.3), faults=faults)
    late = {name: LateShare(target, Metric(0.087, 0.085, 0.089)) for name, target in TERMS.items()}
    point = replace(point, impact=impact, capacity=capacity, late=late)
    said = answer(point, TERMS)
    text = " ".join(said.details)
    assert said.headline.startswith("The SLO is not met, and the fault affected 5,000 (4,750 to 5,250) of 57,000")
    assert "4,960 late requests had no answer when the run ended." in said.details
    assert "Of the 7,000 requests after it began, 4,990 had no answer when the run ended." in text
    assert "take longest" not in text
    assert (said.binding, said.verdict) == ("fault", "not met")
    assert said.binding_sentence == "Replicas were down for 33.3 % of their time, and requests waited for that."
    assert "8.7 % (8.50 to 8.90) of the requests had no answer within 1 s" in text
    point = replace(point, impact=replace(impact_of(point), slow=None, slow_unanswered=None))
    assert "4,990 had no answer when the run ended, and no target in the slo" in " ".join(answer(point, {}).details)


def test_overload_is_the_reason_where_it_is_one() -> None:
    point = samples.changed_point(rollout=False)
    point = replace(point, capacity=replace(point.capacity, compute=ComputeUse(1.0, 1.3)))
    text = " ".join(answer(point, TERMS).details)
    assert "but more requests arrive than are served, so that does not show whether the target of 1 s is met" in text
    assert "too uncertain" not in text


def test_the_slowest_time_is_one_after_the_fault_began() -> None:
    point = samples.changed_point(rollout=False)
    point.timeline.e2e_mean_s[2] = 99.0  # long before
    said = next(s for s in answer(point, TERMS).details if "Latency peaks" in s)
    assert said.startswith("Latency peaks at about 4")
    assert "8 s on average" in said


def test_what_may_be_luck_is_no_extreme() -> None:
    run = samples.strategies()
    axes = make_axes(run.points)
    for point, value in zip(run.points, (0.112, 0.114, 0.117), strict=True):
        point.metrics["ttft_p99_s"] = samples.metric("ttft_p99_s", value, 0.05)
    assert extremes(run.points, axes, "ttft_p99_s") == ["p99 TTFT: 112 ms to 117 ms with each."]
    for point, shift in zip(run.points, (0.0, 0.002, 0.005), strict=True):
        parts: list[float | None] = [x + shift for x in (0.107, 0.112, 0.118)]
        point.metrics["ttft_p99_s"] = replace(point.metrics["ttft_p99_s"], parts=parts)
    (said,) = extremes(run.points, axes, "ttft_p99_s")
    assert "lowest with in-place" in said
    assert said.endswith("(clear in the same replications, though the intervals overlap).")


def test_routers_are_compared_by_latency_then_by_loads_and_skew() -> None:
    run = samples.routers()
    said = sweep_answer(run.points, TERMS)
    assert (
        said.headline
        == "Use affinity-residency or hash: p99 TTFT is 99 ms to 105 ms instead of 685 ms with round-robin."
    )
    assert said.details[0].startswith("Loads per request: lowest with affinity-residency, 0.01 (")
    assert said.details[1].startswith("Load skew of replicas: lowest with round-robin, 1 (")
    unsure = replace(run.points[2], set={"router.policy": "random"}, metrics={**run.points[2].metrics})
    wide = replace(unsure.metrics["ttft_p99_s"], value=0.9, lo=0.01, hi=2.0, parts=[0.01, 0.9, 2.0])
    unsure.metrics["ttft_p99_s"] = wide
    also = " The SLO is not certainly met with random."
    assert sweep_answer([*run.points, unsure], TERMS).headline == said.headline + also, "slower by chance, no advice"
    slow = replace(run.points[0], set={"router.policy": "power-of-two"})
    slow = replace(slow, metrics={**slow.metrics, "ttft_p99_s": replace(slow.metrics["ttft_p99_s"], lo=0.6, hi=1.2)})
    said = sweep_answer([slow, *run.points], TERMS)
    assert said.headline.endswith(" The SLO is not certainly met with power-of-two."), "slower, and open"
    none = [replace(p, metrics={**p.metrics, "ttft_p99_s": wide}) for p in run.points[:2]]
    lost = replace(
        run.points[2], metrics={**run.points[2].metrics, "ttft_p99_s": replace(wide, value=5, lo=4.8, hi=5.2)}
    )
    said = sweep_answer([*none, lost], TERMS)
    assert said.headline.endswith(
        f" The SLO is not met with {lost.set['router.policy']}. Whether it is met with the others is not certain."
    )
    likely = replace(wide, value=0.5, lo=0.1, hi=1.5, parts=[0.1, 0.5, 1.5])
    both = [replace(p, metrics={**p.metrics, "ttft_p99_s": likely}) for p in run.points[:2]]
    assert sweep_answer([*both, lost], TERMS).headline.endswith(" It is probably met with the others.")
    same = [
        replace(point, metrics={**point.metrics, "ttft_p99_s": run.points[0].metrics["ttft_p99_s"]})
        for point in run.points
    ]
    assert (
        sweep_answer(same, TERMS).headline
        == "The router makes no clear difference: p99 TTFT is 685 ms with all of them."
    )
    table = side_by_side(run.points, make_axes(run.points), TERMS)
    assert table.head == ["router policy", "round-robin", "hash", "affinity-residency"]
    assert [row[0] for row in table.rows][-2:] == ["loads per request", "load skew of replicas"]


def test_composition_counts_no_request_twice() -> None:
    point = samples.changed_point(harm={"lost": 2, "failed_loads": 1, "failed": 7, "slow": 5})
    assert composition(point) == "5 late, 4 failed, 2 lost, 1 failed loads"
    assert point.impact is not None
    point = replace(point, impact=replace(point.impact, beyond={"mixed": 16.0, "slow": -4.0, "lost": 0.0}))
    assert composition(point) == "16 mixed versions, 4 fewer late"


def test_events_close_together_share_a_label() -> None:
    events = [{"t_s": t} for t in (-5.0, 50.0, 51.0, 52.0, 90.0, 400.0)]
    assert event_marks(events, 0.0, 100.0) == [(0.0, "1"), (50.0, "2–4"), (90.0, "5"), (100.0, "6")]
    many = event_marks([{"t_s": 4.0 * place} for place in range(25)], 0.0, 100.0)
    assert all(there - here > 0.1 for (here, _), (there, _) in itertools.pairwise(many)), "labels take room"
    assert many[0] == (0.0, "1–3")


def test_ticks_of_a_run_with_a_start_are_round_times_of_day() -> None:
    half_past_seven = 7 * 3600 + 1800
    ticks = clock_ticks(60.0, 7300.0, half_past_seven)
    assert [clock_words(tick, half_past_seven) for tick in ticks] == ["08:00", "08:30", "09:00", "09:30"]
    ticks = clock_ticks(10.0, 45.0, 86_380)
    assert [clock_words(tick, 86_380) for tick in ticks] == [
        *("23:59:50", "day 2 00:00", "day 2 00:00:10", "day 2 00:00:20")
    ]
    fortnight = clock_ticks(0.0, 14 * 86400.0, half_past_seven)
    assert [clock_words(tick, half_past_seven) for tick in fortnight] == [f"day {day} 00:00" for day in (4, 7, 10, 13)]
    assert time_ticks(0.0, 7 * 86400.0, None)[1] == ["0 d", "2 d", "4 d", "6 d"]


def test_charts_mark_events_and_draw_versions() -> None:
    run = samples.strategies()
    axes = make_axes(run.points)
    timeline = timeline_chart(run.points[0], "")
    versions = version_chart(run.points, axes)
    by_day = timeline_chart(run.points[0], "", day_s=8 * 3600)
    assert "time of day" in by_day.svg
    assert by_day.table.rows[0][0].startswith("08:00")
    assert moments_chart(run.points, axes) is None  # all lines are equal
    first, second, *others = run.points
    slow = [None if value is None else 4 * value for value in second.timeline.ttft_p99_s]
    slower = replace(second, timeline=replace(second.timeline, ttft_p99_s=slow))
    moments = moments_chart([first, slower, *others], axes)
    assert "1 rollouts.0: in-place on 4 replicas (400 s)" in timeline.caption
    assert "p99 TTFT by arrival" in timeline.table.head
    assert timeline.table.rows[0][timeline.table.head.index("p99 TTFT by arrival")] == "–"
    assert [words for words, _ in versions.legend] == ["version 1", "version 2", "refused or failed"]
    assert (
        "in-place; drain-then-swap; lazy-reread ends with 0 % version 1, 99 % version 2, 1 % refused or failed."
        in versions.desc
    )
    assert "drain-then-swap up to 3.2 s p99 TTFT by arrival" in moments.desc
    assert "E2E" not in moments.desc
    assert moments_chart(run.points, []) is None
    still = samples.rates()
    assert version_chart(still.points, make_axes(still.points)) is None
    assert moments_chart(still.points, make_axes(still.points)) is None


def test_the_impact_is_drawn_by_design_and_by_how_bad_the_fault_is() -> None:
    points = stalls()
    chart = impact_chart(points, make_axes(points))
    assert isinstance(chart, Chart)
    assert "32 goes from 0 at 0 s to 657 at 60 s. 100 goes from 0 at 0 s to 8 at 60 s." in chart.desc
    assert chart.table.rows[0] == ["0 s", "0", "0"]
    assert chart.table.rows[1][1].startswith("657")
    still = samples.rates().points
    assert impact_chart(still, make_axes(still)) is None
    assert impact_chart(samples.rollout().points, []) is None
    named = samples.strategies().points  # no quantity: a chart would show dots at zero
    table = impact_chart(named, make_axes(named))
    assert isinstance(table, Table)
    assert table.head[:2] == ["strategy", "affected by the change"]
    assert [row[0] for row in table.rows] == [point.set["rollouts.0.strategy"] for point in named]


def test_the_timeline_marks_what_happens_where_it_happens() -> None:
    run = samples.single()
    steps = [{"level": 1, "time": "2 min"}, {"level": 3, "time": "2 min"}]
    run.manifest["scenario"]["workload"] |= {
        "arrivals": {"process": "piecewise", "rate": "8/s", "steps": steps},
        "start": "11:58",
    }
    point = run.points[0]
    times = point.timeline.t_s
    grown = [2.0] * 100 + [2.5] + [4.0] * (len(times) - 101)
    run.points[0] = replace(
        point,
        timeline=replace(point.timeline, replicas=grown, serving_replicas=grown),
        events=[{"t_s": times[50], "kind": "fault", "text": "faults.0: a crash"}],
    )
    text = samples.build_report(run)
    chart = text[text.index('<figure id="timeline"') : text.index("</figure>", text.index('<figure id="timeline"'))]
    assert {">+2</text>", ">12/s</text>", ">12:00</text>"} <= set(re.findall(r">[^<>]+</text>", chart))
    rows = [re.sub(r"<[^>]+>", " ", row) for row in re.findall(r"<tr>.*?</tr>", chart)]
    assert all(
        any(what in row for row in rows)
        for what in ("1 faults.0: a crash", "+2 replicas", "12/s from here", "4/s from")
    )
    assert "event\u20021 faults.0: a crash" in chart  # the pointer shows it, too
    assert f"({clock_words(times[50], 11 * 3600 + 58 * 60)})" in chart
    run.manifest["scenario"]["workload"]["arrivals"]["steps"] = [{"level": 1 + i % 2, "time": "1 s"} for i in range(9)]
    assert "from here" not in samples.build_report(run)  # too often
    # Swept as a whole, as is the start of the day: the chart is of one of the points.
    swept = {"workload.arrivals": {"process": "piecewise", "rate": "8/s", "steps": steps}, "workload.start": "06:58"}
    run.points[0] = replace(run.points[0], set=swept)
    text = samples.build_report(run)
    assert {">12/s</text>", ">07:00</text>"} <= set(re.findall(r">[^<>]+</text>", text))


def test_what_is_so_from_the_start_has_no_moment() -> None:
    run = samples.crashes()
    events = [{"t_s": 0.0, "kind": "fault", "text": "faults.0: loads fail"}]
    points = [replace(point, events=events) for point in run.points]
    assert moments_chart(points, make_axes(points)) is None


@pytest.mark.parametrize(("still_s", "clause"), [(0.1, ""), (4.36, "; replicas stand still for 4.36 s")])
def test_a_standstill_that_users_notice_is_said(still_s: float, clause: str) -> None:
    point = samples.changed_point(faults={"rollout_standstill_s": still_s})
    said = answer(point, TERMS)
    assert ("stand still" in said.headline) == bool(clause)
    assert clause in said.headline
    assert any("Replicas compute nothing for up to 4.36 s at a time" in each for each in said.details) == bool(clause)


def test_bytes_and_counts_read_as_such() -> None:
    found = Metric(736e6, 150e6, 1.32e9, "B")
    assert (show("extra_resident_bytes_peak", found.value), interval("extra_resident_bytes_peak", found)) == (
        "736 MB",
        "150 MB to 1.32 GB",
    )
    assert interval("harmed", Metric(12, 3.2, 20.8, "requests")) == "3 to 21"
    assert read_terms({"ttft_p99": "1 s"}) == TERMS


def test_rollouts_are_counted_by_their_numbers_not_by_their_texts() -> None:
    events = [{"t_s": float(n), "kind": "rollout", "text": "a: b", "rollout": n} for n in (0, 1, 1)]
    point = Point({}, {}, events=[*events, {"t_s": 9.0, "kind": "fault", "text": "faults.0: disk stalls"}])
    assert rollouts_begun(point) == 2
    several = replace(samples.changed_point(), events=[*events, *point.events])
    assert "Each rollout is complete after at most 6 s (5.70 to 6.30)." in answer(several, TERMS).details
    assert rollouts_begun(replace(point, events=[{"t_s": 1.0, "kind": "rollout", "text": "rollouts.0: in-place"}])) == 0
