"""Metrics of rollouts, faults and replicas, from small recordings made by hand whose answers can be counted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from catalogue_names import ALWAYS_THERE
from made_recordings import recording_of, scenario_facts

from sim.results.baseline_impact import usual_impact, with_impact
from sim.results.change_metrics import PEAK_SPAN_S, sessions_of_both
from sim.results.metric_state import Cause, State
from sim.results.metrics import measure
from sim.results.model import Impact
from sim.results.point import Metric, Point
from sim.results.point_summary import summarise
from sim.results.records import (
    COMPLETED,
    FAILED,
    GATED,
    LOST,
    MIXED,
    OLD_PREFIX,
    REFUSED,
    REROUTED,
    STALE,
    UNFINISHED,
    WRONG_DETECTED,
    WRONG_SERVED,
    Event,
    Recording,
    mark_words,
    request_table,
)
from sim.results.sample_data import FaultWindow, ScenarioFacts
from sim.results.slices import replica_results
from sim.results.timeline import event_cuts, timeline_latencies, version_mix
from sim.traffic.request import FROM_STORAGE, MISS

T975 = {1: 12.7062, 2: 4.30265}
"""97.5 % quantiles of Student's t by degrees of freedom, from tables."""
COUNT = 40
WARM = 4  # requests before the measured time; one comes every second
BEGINS, ENDS = 20.0, 30.0


def impact_of(point: Point) -> Impact:
    assert point.impact is not None
    return point.impact


def facts(**changes: Any) -> ScenarioFacts:
    two = {"replicas": 2, "size_bytes": np.array([10, 10]), "strategies": ("in-place",)}
    return scenario_facts(**{"slo": {"e2e_p99_s": 2.0}, **two, **changes})


def recording(**changes: Any) -> Recording:
    """Forty requests, one a second, for two adapters on two replicas by turns; each takes a second."""
    arrival = np.arange(COUNT, dtype=np.float64)
    loads = changes.pop("loads", [])
    events, told = changes.pop("events", []), changes.pop("facts", {})
    started = np.array([load[0] for load in loads], dtype=np.float64)
    bounds = np.array([float(WARM), 22.0, float(COUNT)])
    made = recording_of(
        {
            "arrival_s": arrival,
            "adapter": np.arange(COUNT) % 2,
            "prompt_tokens": np.full(COUNT, 10),
            "output_tokens": np.full(COUNT, 3),
            "replica": np.arange(COUNT) % 2,
            "admitted_s": arrival + 0.25,
            "first_token_s": arrival + 0.5,
            "finished_s": arrival + 1.0,
        },
        bounds,
        float(COUNT + 1),
        loads={
            "started_s": started,
            "ended_s": started + 0.1,
            "asked_s": started,
            "adapter": np.zeros(len(started)),
            "tier": np.full(len(started), float(FROM_STORAGE)),
            "replica": np.array([float(load[1]) for load in loads]),
        },
        section_of=None,
        busy_by_replica=np.array([18.0, 9.0]),
        events=events,
        facts={
            "during_from_s": BEGINS,
            "during_to_s": ENDS,
            "rollout_duration_s": 6.0,
            "rolled_back": 0.0,
            "rollout_standstill_s": 0.5,
            "extra_resident_bytes_peak": 500.0,
            **told,
        },
    )
    for name, values in changes.items():
        if isinstance(values, dict):
            for place, value in values.items():
                made.requests[name][place] = value
        else:
            made.requests[name] = np.asarray(values)
    made.requests["finished_s"][made.requests["status"] != COMPLETED] = -1.0
    section = np.searchsorted(bounds, made.requests["arrival_s"], side="right") - 1
    made.section_of = np.minimum(section, 1)
    return made


def metrics(*recordings: Recording, least: int = 5, **changes: Any) -> dict[str, Metric]:
    found, _ = measure(list(recordings), facts(**changes), least)
    assert list(found) == list(ALWAYS_THERE)
    return found


def values(found: dict[str, Metric], *names: str) -> list[float | None]:
    return [found[name].value for name in names]


def test_every_request_ends_in_one_of_four_ways_and_they_add_up() -> None:
    one = recording(status={0: FAILED, 5: FAILED, 6: REFUSED, 7: UNFINISHED, 8: REFUSED})
    found = metrics(one)
    ends = values(found, "completed", "unfinished", "refused", "failed")
    assert ends == [32, 1, 2, 1]  # request 0 came in the warm-up
    assert sum(end or 0 for end in ends) == COUNT - WARM
    attained = found["slo_attainment"].value
    assert attained == pytest.approx(32 / 36)  # the unfinished one has waited 34 s of the 2 s that it may


def test_who_has_no_answer_is_late_once_it_has_waited_beyond_a_target() -> None:
    # The run stops at 41 s. 30 came 11 s before, 39 came 1.5 s before; neither has its last token.
    one = recording(status={30: UNFINISHED, 39: UNFINISHED}, arrival_s={39: 39.5})
    point = summarise([one], facts(faults=frozenset({"crash"}), strategies=()), {}, [])
    assert values(point.metrics, "unfinished", "harmed") == [2, 1]
    assert (impact_of(point).slow, impact_of(point).unanswered, impact_of(point).slow_unanswered) == (1, 2, 1)
    assert point.metrics["slo_attainment"].value == pytest.approx(34 / 35)  # 39 may still be in time: nobody knows
    # A first token in time is no answer in time; one that hasn't come is late by the same rule.
    ttft = facts(slo={"ttft_p99_s": 2.0}, faults=frozenset({"crash"}), strategies=())
    assert impact_of(summarise([one], ttft, {}, [])).slow == 0
    none_yet = recording(status={30: UNFINISHED}, first_token_s={30: -1.0}, admitted_s={30: -1.0})
    assert impact_of(summarise([none_yet], ttft, {}, [])).slow == 1
    no_target = summarise([one], facts(slo={}, faults=frozenset({"crash"}), strategies=()), {}, [])
    assert (impact_of(no_target).slow, impact_of(no_target).unanswered) == (None, 2)
    # What it has streamed so far took longer than its target allows for all of it: 19 s for two gaps of 5 s.
    slow_tokens = facts(slo={"tpot_mean_s": 5.0}, strategies=())
    found = summarise([recording(status={22: UNFINISHED})], slow_tokens, {}, []).metrics
    assert found["slo_attainment"].value == 35 / 36


def with_baseline(changed: list[Recording], baseline: list[Recording], **given: Any) -> Point:
    known = facts(**given)
    return with_impact(
        summarise(changed, known, {}, []), changed, known, [usual_impact(one, known) for one in baseline]
    )


def test_the_impact_is_the_difference_to_the_same_traffic_without_the_change() -> None:
    # Request 0 came in the warm-up. 5 and 6 are late anyway; because of the change 20 to 22 are late, 6 and 30 stale.
    late_anyway = {0: 90.0, 5: 14.0, 6: 15.0}
    usual = recording(finished_s=late_anyway)
    changed = recording(finished_s={**late_anyway, **dict.fromkeys((20, 21, 22), 60.0)}, marks={6: STALE, 30: STALE})
    point = with_baseline([changed], [usual])
    assert values(point.metrics, "harmed", "harmed_excess") == [6, 5]
    assert impact_of(point).beyond == {"stale": 2, "slow": 3}  # they add up, though 6 would be late anyway
    same = with_baseline([usual], [usual])
    assert (same.metrics["harmed_excess"].value, impact_of(same).beyond) == (0, {})
    helps = with_baseline([usual], [recording(finished_s={**late_anyway, 20: 60.0})])
    assert (helps.metrics["harmed_excess"].value, impact_of(helps).beyond) == (-1, {"slow": -1})
    assert Point.from_json(point.to_json()) == point


def test_the_impact_is_that_of_one_replication() -> None:
    usual, one, other = recording(), recording(marks={9: STALE}), recording(marks={9: STALE, 11: STALE, 12: STALE})
    point = with_baseline([one, other], [usual, usual])
    found = point.metrics["harmed_excess"]
    assert (found.value, found.parts) == (2, [1, 3])
    assert found.lo == pytest.approx(2 - T975[1], rel=1e-4), "a change may help, so the interval isn't cut at 0"
    assert impact_of(point).beyond == {"stale": 2}


def test_without_a_baseline_nothing_is_called_usual() -> None:
    point = summarise([recording(finished_s={20: 60.0})], facts(), {}, [])
    assert values(point.metrics, "harmed", "harmed_excess") == [1, None]
    assert point.metrics["harmed_excess"].note == "the same traffic without the rollouts and faults was not simulated"


def test_rerouted_requests_say_how_long_they_take() -> None:
    one = recording(
        marks={10: REROUTED, 11: REROUTED, 12: REROUTED}, finished_s={10: 15.0, 11: 18.0}, status={12: UNFINISHED}
    )
    found = metrics(one, faults=frozenset({"crash"}), strategies=())
    assert values(found, "rerouted", "rerouted_e2e_mean_s") == [3, pytest.approx((5 + 7) / 2)]
    none = metrics(recording(), faults=frozenset({"crash"}), strategies=())["rerouted_e2e_mean_s"]
    assert none.note == "no request was rerouted and completed"


def test_what_is_broken_is_a_share_of_time_and_replicas() -> None:
    broken = (FaultWindow("crash", 22.0, 31.0, 0.5), FaultWindow("storage-stall", 30.0, math.inf, 1.0))
    point = summarise([recording()], facts(faults=frozenset({"crash"}), strategies=(), broken=broken), {}, [])
    assert point.capacity.faults == {"crash": pytest.approx(9 / 36 / 2), "storage-stall": pytest.approx(10 / 36)}
    assert "faults" not in summarise([recording()], facts(), {}, []).capacity.to_json()


def test_marks_are_counted_over_measured_requests() -> None:
    marks = {0: MIXED | STALE, 10: MIXED, 11: MIXED | STALE, 12: STALE, 13: OLD_PREFIX, 14: GATED}
    found = metrics(recording(marks=marks, status={14: REFUSED}))
    assert values(found, "mixed_version_responses", "stale_after_cutover", "refused", "harmed") == [2, 2, 1, 5]
    assert found["mixed_version_responses"].note == "one replication gives no interval"


def test_harmed_counts_each_request_once_and_slow_ones_too() -> None:
    marks = {10: MIXED | WRONG_SERVED, 11: REROUTED, 12: LOST, 13: WRONG_DETECTED}
    one = recording(marks=marks, status={12: FAILED}, finished_s={10: 99.0, 20: 22.5})
    found = metrics(one, faults=frozenset({"crash", "misrouting"}))
    # 10 (mixed, wrong and slow), 12 (failed), 20 (slow); sent elsewhere or noticed has none if the answer is right
    assert found["harmed"].value == 3
    assert metrics(one, slo={}, faults=frozenset({"crash"}))["harmed"].value == 2
    assert values(found, "rerouted", "lost", "failed", "wrong_adapter_served", "wrong_adapter_detected") == [
        1,
        1,
        1,
        1,
        1,
    ]


def test_what_the_scenario_has_not_is_no_zero() -> None:
    found = metrics(recording(), strategies=(), faults=frozenset({"crash"}), replicas=1)
    absent = {name for name, metric in found.items() if not metric.applies}
    assert {
        "rollout_ttft_p99_s",
        "before_miss_ratio",
        "mixed_version_responses",
        "replica_load_skew",
        "misrouted",
        "rollout_duration_s",
        "sessions_saw_both",
    } <= absent
    assert all(found[name].value is None and not found[name].applies for name in absent)
    assert values(found, "rerouted", "lost", "failed", "harmed") == [0, 0, 0, 0]


def test_intervals_come_from_the_spread_of_replications() -> None:
    two = recording(marks={10: MIXED, 11: MIXED}), recording(marks=dict.fromkeys(range(10, 16), MIXED))
    found = metrics(*two)["mixed_version_responses"]
    # counts 2 and 6: mean 4, standard error 2
    assert found.value == 4
    assert (found.lo, found.hi) == (0.0, pytest.approx(4 + T975[1] * 2, rel=1e-4))
    one, three = recording(status={10: REFUSED}), recording(status=dict.fromkeys(range(10, 13), REFUSED))
    refused = metrics(one, three)["refused"]
    # a sum, of 1 and 3: 4, standard error 2
    assert (refused.value, refused.hi) == (4, pytest.approx(4 + T975[1] * 2, rel=1e-4))
    took = [recording(facts={"rollout_duration_s": seconds}) for seconds in (5.0, 6.0, 7.0)]
    duration = metrics(*took)["rollout_duration_s"]
    half = T975[2] / math.sqrt(3)
    assert duration.value == 6
    assert (duration.lo, duration.hi) == (pytest.approx(6 - half, rel=1e-4), pytest.approx(6 + half, rel=1e-4))


def test_during_and_before_are_told_apart_by_arrival() -> None:
    slow = {**{i: i + 3.0 for i in range(20, 30)}, 30: 99.0, 2: 99.0}  # 30 comes after, 2 in the warm-up
    one = recording(finished_s=slow, outcome={19: MISS, 20: MISS, 21: MISS, 29: MISS, 30: MISS})
    found = metrics(one)
    assert values(found, "rollout_e2e_p99_s", "before_e2e_p99_s") == [pytest.approx(3), pytest.approx(1)]
    assert values(found, "rollout_ttft_p99_s", "before_ttft_p99_s") == [pytest.approx(0.5), pytest.approx(0.5)]
    assert values(found, "rollout_miss_ratio", "before_miss_ratio") == [pytest.approx(3 / 10), pytest.approx(1 / 16)]
    few = metrics(one, least=17)
    assert few["before_e2e_p99_s"].note == "not enough data: 16 requests were measured, 17 are needed"
    assert State(Cause.FEW_REQUESTS, 1, 9).note == "not enough data: 1 request was measured, 9 are needed"


def test_a_window_without_end_goes_to_the_end() -> None:
    found = metrics(recording(facts={"during_to_s": math.inf}, outcome={39: MISS}))
    assert found["rollout_miss_ratio"].value == pytest.approx(1 / 20)


def test_a_rollout_within_the_warm_up_has_nothing_before() -> None:
    found = metrics(recording(facts={"during_from_s": 1.0, "during_to_s": 9.0}))
    assert values(found, "before_e2e_p99_s", "before_miss_ratio", "before_peak_loads_per_s") == [None] * 3
    assert found["rollout_miss_ratio"].value == 0  # of requests 4 to 8


def test_loads_peak_over_ten_seconds() -> None:
    loads = [(19.9, 0), *((20.0 + 0.1 * i, 0) for i in range(5)), *((22.0 + 0.2 * i, 1) for i in range(8)), (30.0, 0)]
    found = metrics(recording(loads=loads))
    assert PEAK_SPAN_S == 10
    assert values(found, "rollout_loads", "rollout_peak_loads_per_s") == [13, pytest.approx(1.3)]
    assert found["before_peak_loads_per_s"].value == pytest.approx(0.1)
    far = [(4.0 + i * 6.0, 0) for i in range(3)]  # 4, 10, 16: two within ten seconds
    assert metrics(recording(loads=far))["before_peak_loads_per_s"].value == pytest.approx(0.2)
    each_second = [(4.0 + second, 0) for second in range(11)]  # the last is ten seconds after the first
    assert metrics(recording(loads=each_second))["before_peak_loads_per_s"].value == pytest.approx(1.0)
    assert metrics(recording())["rollout_peak_loads_per_s"].value == 0


def test_a_rollout_that_is_not_complete_has_no_duration() -> None:
    done, open_ = recording(), recording(facts={"rollout_duration_s": math.nan, "rolled_back": 1.0})
    found = metrics(done, open_)["rollout_duration_s"]
    assert (found.value, found.note) == (None, "complete in 1 of 2 replications; rolled back in 1")
    alone = metrics(open_)["rollout_duration_s"]
    assert (alone.value, alone.note) == (None, "not complete before the end of the run; rolled back")


def test_skew_is_the_busiest_replica_over_the_mean() -> None:
    three_to_one = np.where(np.arange(COUNT) % 4 == 0, 1, 0)  # by sections of 18: 13 to 5 and 14 to 4
    other_way = 1 - three_to_one
    found = metrics(recording(replica=three_to_one), recording(replica=other_way))["replica_load_skew"]
    assert found.value == pytest.approx((27 + 27) / 36)
    assert 1 < found.lo < 1.5 < found.hi < 2
    record_unserved = recording(replica={i: -1 for i in range(4, 40) if i % 4 == 0}, status={8: REFUSED})
    assert metrics(record_unserved)["replica_load_skew"].value == pytest.approx(18 / (27 / 2))


def sessions(rows: list[tuple[int, int, int, int]], status: list[int] | None = None) -> tuple[int, int]:
    """Rows of session, adapter, first and last version, in order of arrival."""
    session, adapter, first, last = (np.array(column) for column in zip(*rows, strict=True))
    return sessions_of_both(
        {
            "session": session,
            "adapter": adapter,
            "version": first,
            "last_version": last,
            "index": np.arange(len(rows)),
            "status": np.array(status or [COMPLETED] * len(rows)),
        }
    )


def test_sessions_that_saw_both_and_went_back() -> None:
    assert sessions([(0, 0, 1, 1), (1, 0, 2, 2), (0, 0, 1, 1)]) == (0, 0)
    assert sessions([(0, 0, 1, 1), (0, 0, 2, 2)]) == (1, 0)
    assert sessions([(0, 0, 1, 1), (0, 0, 2, 2), (0, 0, 1, 1)]) == (1, 1)
    assert sessions([(0, 0, 2, 2), (0, 0, 1, 1), (0, 0, 2, 2), (0, 0, 1, 1)]) == (1, 1)  # goes back twice, counts once
    assert sessions([(0, 0, 1, 2)]) == (1, 0)  # one response of both
    assert sessions([(0, 0, 1, 2), (0, 0, 1, 1)]) == (1, 1)
    assert sessions([(0, 0, 2, 2), (0, 0, 1, 2)]) == (1, 1)  # which begins with the old one
    assert sessions([(0, 0, 1, 1), (0, 1, 2, 2)]) == (0, 0)  # other adapters have versions of their own
    assert sessions([(0, 0, 2, 2), (1, 0, 1, 1)]) == (0, 0)
    assert sessions([(0, 0, 3, 3), (0, 0, 2, 2), (0, 1, 1, 1), (0, 1, 2, 2)]) == (2, 1)
    assert sessions([(0, 0, 1, 1), (0, 0, 0, 0), (0, 0, 1, 1)]) == (0, 0)  # one answer was by another adapter
    assert sessions([(0, 0, 0, 0)]) == (0, 0)


def test_only_answers_count_for_sessions() -> None:
    assert sessions([(0, 0, 1, 1), (0, 0, 2, 2)], [COMPLETED, FAILED]) == (0, 0)
    assert sessions([(0, 0, 2, 2)], [REFUSED]) == (0, 0)


def test_traffic_without_sessions_has_none_to_count() -> None:
    found = metrics(recording())
    assert values(found, "sessions_saw_both", "sessions_went_back") == [None, None]
    assert found["sessions_saw_both"].note == "the traffic has no sessions"
    version = np.where(np.arange(COUNT) < 20, 1, 2)
    with_them = recording(session=np.arange(COUNT) % 4, version=version, last_version=version)
    assert values(metrics(with_them), "sessions_saw_both", "sessions_went_back") == [4, 0]


def test_rows_of_replicas_say_what_each_did() -> None:
    one = recording(
        replica=np.where(np.arange(COUNT) % 2 == 0, 1, 0),
        outcome={4: MISS, 8: MISS},
        status={5: FAILED},
        loads=[(1.0, 0), (5.0, 0), (6.0, 1), (7.0, 1), (39.0, 1), (40.5, 1)],
    )
    first, second = (each.row for each in replica_results(one, facts()))
    assert (first["requests"], first["completed"], second["requests"], second["completed"]) == (18, 17, 18, 18)
    assert (first["loads"], second["loads"]) == (1, 3)  # one came in the warm-up, one after the end
    assert (first["miss_ratio"], second["miss_ratio"]) == (0, pytest.approx(2 / 18))
    assert (first["gpu_utilization"], second["gpu_utilization"]) == (0.5, 0.25)
    assert first["e2e_p99_s"] is None  # too few
    assert replica_results(one, facts(replicas=1)) == []


def test_the_mix_of_versions_adds_up_in_every_span() -> None:
    version = np.where(np.arange(COUNT) < 20, 1, 2)
    one = recording(version=version, last_version=version, status={10: REFUSED, 11: FAILED, 12: UNFINISHED})
    mix = version_mix(one, 41)["versions"]  # spans of a second: one request each, the last has none
    assert list(mix) == ["1", "2", "none"]
    assert [mix[name][9] for name in mix] == [1, 0, 0]
    assert [mix[name][10] for name in mix] == [mix[name][11] for name in mix] == [0, 0, 1]
    assert [mix[name][12] for name in mix] == [0, 0, 0]  # the run stopped before it was known
    assert [mix[name][25] for name in mix] == [0, 1, 0]
    assert sum(sum(shares) for shares in mix.values()) == COUNT - 1


def test_latencies_over_time_belong_to_arrivals() -> None:
    r = recording(finished_s={20: 25.0}).requests
    found = timeline_latencies(r, 41.0, 41)
    assert found["e2e_mean_s"][19:22] == [1.0, 5.0, 1.0]
    assert found["e2e_mean_s"][40] is None
    assert found["e2e_p99_s"] == [None] * 41  # five requests are too few


def test_an_effect_does_not_show_before_its_cause() -> None:
    """Whoever comes from 20.25 s on is slow: in a span of two seconds, nobody may be mixed with those before."""
    count = 4000
    arrival = np.arange(count) / 100.0
    slow = arrival >= 20.25
    r = {
        "status": np.full(count, COMPLETED),
        "arrival_s": arrival,
        "first_token_s": arrival + 0.5,
        "finished_s": arrival + np.where(slow, 9.0, 1.0),
    }
    p99 = timeline_latencies(r, 40.0, 20, (20.25,))["e2e_p99_s"]
    assert p99[:10] == [pytest.approx(1.0)] * 10  # the spans before that of 20 to 22 s, whose middle is 21 s
    assert p99[10:] == [pytest.approx(9.0)] * 10
    means = timeline_latencies(r, 40.0, 20, (20.25,))["e2e_mean_s"]
    assert means == [pytest.approx(1.0)] * 10 + [pytest.approx(9.0)] * 10
    assert timeline_latencies(r, 40.0, 20)["e2e_p99_s"][9] == pytest.approx(9.0), "without a cut it would"
    late = timeline_latencies(r, 40.0, 20, (21.5,))["e2e_mean_s"]
    assert late[10] == pytest.approx((25 * 1.0 + 125 * 9.0) / 150), "that span ends at the cut"


def test_what_follows_at_once_is_no_cut_of_its_own() -> None:
    times = [(0.0, "fault"), (10.0, "crash"), (10.5, "detected"), (12.0, "stage"), (16.0, "stage"), (30.0, "restart")]
    one = recording(events=[Event(time, kind, "") for time, kind in times])
    assert event_cuts(one, 41) == [10.0, 16.0]  # five spans of a second apart


def test_a_point_carries_what_a_report_draws() -> None:
    missed = (("ttft_p99", 2.0, 1.0),)
    events = [Event(20.0, "rollback", "b", 0, missed), Event(12.0, "fault", "a")]
    one = recording(marks={10: GATED, 11: LOST, 12: STALE}, status={10: REFUSED, 11: FAILED}, events=events)
    point = summarise([one, recording()], facts(faults=frozenset({"crash"})), {}, [])
    back = {"t_s": 20.0, "kind": "rollback", "text": "b", "rollout": 0, "missed": [["ttft_p99", 2.0, 1.0]]}
    assert point.events == [{"t_s": 12.0, "kind": "fault", "text": "a"}, back]
    wanted = {"requests": 72, "refused_by_rollout": 1, "lost": 1, "failed": 1, "stale": 1, "slow": 0, "mixed": 0}
    assert wanted.items() <= impact_of(point).to_json().items()
    assert point.metrics["stale_after_cutover"].parts == [1, 0]
    assert "1 request was refused: 1 since the adapter was being replaced (unload-then-load)" in point.warnings
    both = summarise(
        [recording(marks={10: GATED}, status={10: REFUSED, 11: REFUSED})], facts(refusals="too long"), {}, []
    )
    assert both.warnings == [
        "2 requests were refused: 1 since the adapter was being replaced (unload-then-load), 1 since too long"
    ]
    assert point.metrics["harmed"].parts == [3, 0]
    assert point.metrics["misrouted"].parts == []
    assert "1 request failed: 1 lost with their replica" in point.warnings
    assert Point.from_json(point.to_json()) == point
    # a failed request is nobody who waits to the end
    assert max(point.timeline.waiting) <= 1
    assert point.timeline.waiting[-1] == 0


def test_a_plain_fleet_has_nothing_of_it() -> None:
    point = summarise([recording(), recording()], facts(strategies=()), {}, [])
    assert (point.impact, point.version_mix, point.events) == (None, {}, [])
    assert len(point.replicas) == 2
    alone = summarise([recording(replica=np.zeros(COUNT))], facts(strategies=(), replicas=1), {}, [])
    assert (alone.replicas, alone.metrics["harmed"].parts) == ([], [])


def test_the_table_of_requests_has_versions_and_marks_in_words() -> None:
    one = recording(
        marks={10: MIXED | STALE},
        version={11: 2},
        last_version={11: 3},
        status={12: FAILED},
        admitted_s={12: -1.0},
        tries={13: 2},
        session=np.arange(COUNT),
    )
    rows = request_table(one, ()).to_pylist()
    assert (rows[10]["marks"], rows[9]["marks"], rows[12]["status"]) == ("mixed stale", "", "failed")
    assert (rows[11]["outcome"], rows[12]["outcome"], rows[12]["tier"]) == ("hit", None, None), "it had no slot"
    assert (rows[11]["version"], rows[11]["last_version"], rows[13]["tries"], rows[5]["session"]) == (2, 3, 2, 5)
    which, texts = mark_words(np.array([0, MIXED, 0]))
    assert [texts[i] for i in which] == ["", "mixed", ""]
