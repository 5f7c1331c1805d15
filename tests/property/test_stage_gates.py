"""Gates between the stages of a rollout: what they judge, when, and what follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_rollouts import Seen
from strategies import GATES, ODD, STAGES, rollout_designs, run, seconds, with_
from test_rollout_cases import crowd
from test_rollout_laws import EXAMPLES

from sim.policies.changes import NEVER_S, Sample, failed_terms, failed_words
from sim.results.records import COMPLETED, Recording
from sim.spec.scenario import Scenario
from sim.spec.sections.changes import Gate
from sim.traffic.request import BASE_MODEL, MISS
from sim.world.build import build_world


@st.composite
def gated(draw: st.DrawFn, **gate: Any) -> Scenario:
    """One rollout of everything, behind a gate."""
    scenario = draw(rollout_designs())
    horizon_s = build_world(scenario).traffic.expected_s()
    limits = gate or draw(st.sampled_from(GATES))
    rollout = {
        "strategy": "new-name",
        "at": seconds(horizon_s * draw(st.integers(0, 80)) / 100 * ODD**-1),
        "stages": list(draw(st.sampled_from(STAGES[1:]))),
        "dwell": seconds(horizon_s / draw(st.integers(1, 20)) * ODD),
        "gate": {"min_requests": draw(st.sampled_from((1, 2, 5))), **limits},
    }
    if draw(st.booleans()):
        rollout["propagation"] = {"law": "uniform", "low": seconds(0.1 * horizon_s), "high": seconds(0.2 * horizon_s)}
    return with_(scenario, rollouts=[rollout])


def holds(gate: Gate, requests: dict[str, np.ndarray], judged: np.ndarray) -> bool:
    """Return whether all limits hold for the requests of a mask."""
    ttft = (requests["first_token_s"] - requests["arrival_s"])[judged]
    e2e = (requests["finished_s"] - requests["arrival_s"])[judged]
    values = {
        "ttft_mean": ttft.mean(),
        "ttft_p99": np.quantile(ttft, 0.99),
        "e2e_mean": e2e.mean(),
        "e2e_p99": np.quantile(e2e, 0.99),
        "miss_ratio": (requests["outcome"][judged] == MISS).mean(),
    }
    return all(values[name] <= limit for name, limit in gate.terms().items())


def expected(scenario: Scenario, recording: Recording) -> list[tuple[str, float]]:
    """Return the stages and the end that the rows of requests lead to."""
    requests, rollout = recording.requests, scenario.rollouts[0]
    of_new = (requests["version"] == 2) & (requests["status"] == COMPLETED)
    finished_s, end_s = requests["finished_s"], scenario.workload.duration or np.inf
    events, begun_s, number = [("rollout", rollout.at)], rollout.at, 0
    time_s = begun_s + rollout.dwell
    if scenario.workload.duration is None:  # it ends with the last request
        end_s = np.nextafter(max(finished_s.max(), requests["arrival_s"].max()), np.inf)
    while time_s < end_s and number < len(rollout.stages) - 1:
        judged = of_new & (finished_s >= begun_s) & (finished_s < time_s)
        if np.sum(judged) < rollout.gate.min_requests:
            time_s += rollout.dwell
        elif holds(rollout.gate, requests, judged):
            number += 1
            events.append(("stage", time_s))
            begun_s, time_s = time_s, time_s + rollout.dwell
        else:
            events.append(("rollback", time_s))
            break
    return events


@settings(max_examples=2 * EXAMPLES)
@given(gated())
def test_stages_follow_from_the_answers_of_the_new_version(scenario: Scenario) -> None:
    recording = run(scenario)
    told = [(event.kind, event.time_s) for event in recording.events if event.kind not in ("complete", "end")]
    assert told == expected(scenario, recording)


@pytest.mark.interpreted
@settings(max_examples=EXAMPLES)
@given(gated(ttft_mean="1 us", min_requests=1))
def test_what_nobody_can_meet_goes_back_for_good(scenario: Scenario) -> None:
    world = build_world(scenario)
    seen = Seen(world)
    recording = seen.recording
    back = [event.time_s for event in recording.events if event.kind == "rollback"]
    missed = [event.missed for event in recording.events if event.kind == "rollback"]
    assert all([(name, limit) for name, _, limit in terms] == [("ttft_mean", 1e-6)] for terms in missed)
    assert len(back) <= 1
    assert not any(event.kind in ("stage", "complete") for event in recording.events)
    assert recording.facts["rolled_back"] == len(back)
    assert np.isnan(recording.facts["rollout_duration_s"])
    if back:
        law = scenario.rollouts[0].propagation
        heard_s = back[0] + (law.ppf(np.array([1.0]))[0] if law else 0.0)
        arrival_s = recording.requests["arrival_s"]
        late = np.array([index for index in seen.asked if arrival_s[index] > heard_s], dtype=int)
        late = late[recording.requests["adapter"][late] != BASE_MODEL]
        assert all(seen.asked[index] < world.traffic.places for index in late), "to the old version"
        if scenario.workload.duration is None and recording.stopped_s > heard_s:
            left = seen.rollouts._progress
            assert not [*left.draining, *left.in_transition, *left.shifting], "the new version goes as an old one does"


def test_a_gate_that_all_meet_lets_the_rollout_complete() -> None:
    gate = {"e2e_p99": "1000 s", "miss_ratio": "100%"}
    recording = run(crowd({"stages": ["5%", "50%", "100%"], "dwell": "4 s", "gate": gate}))
    # 20 requests in 4 s at 5 %, so the first stage goes on until there were 100: for 20 s, but for luck.
    times = {event.kind: event.time_s for event in recording.events}
    stages = [event.time_s for event in recording.events if event.kind == "stage"]
    new = (recording.requests["version"] == 2) & (recording.requests["finished_s"] < stages[0])
    assert np.sum(new) >= 100
    assert np.sum(new & (recording.requests["finished_s"] < stages[0] - 4)) < 100
    assert stages[1] == stages[0] + 4
    assert recording.facts["rolled_back"] == 0
    assert times["complete"] >= stages[1]
    assert recording.facts["rollout_duration_s"] == times["complete"] - 1.0


@pytest.mark.parametrize("least", [1, 1_000_000])
def test_a_run_ends_though_a_gate_waits_for_more_requests(least: int) -> None:
    rollout = {"stages": ["5%", "100%"], "dwell": "1 s", "gate": {"e2e_p99": "1000 s", "min_requests": least}}
    recording = run(crowd(rollout, requests=500))
    assert np.all(recording.requests["status"] == COMPLETED)
    assert np.isnan(recording.facts["rollout_duration_s"]) == (least > 1)
    assert recording.stopped_s < recording.requests["finished_s"].max() + 2


def test_two_gates_that_wait_keep_no_run_going() -> None:
    scenario = crowd({}, requests=500)
    gate = {"e2e_p99": "1000 s", "min_requests": 10_000}
    part = {"strategy": "new-name", "at": "1 s", "stages": ["5%", "100%"], "dwell": "1 s", "gate": gate}
    parts = [part | {"adapter": 0}, part | {"adapter": 1, "dwell": "0.7 s"}]
    recording = run(with_(scenario, adapters={"count": 2}, rollouts=parts))
    assert recording.stopped_s < recording.requests["finished_s"].max() + 3


# The terms of a gate, applied to the answers of a new version


TEN = [Sample(ttft_s=i / 10, e2e_s=float(i), missed=i <= 3) for i in range(1, 11)]
"""First tokens after 0.1 to 1 s, ends after 1 to 10 s, three misses. 99 % lie 0.91 of a step below the last one."""


@pytest.mark.parametrize(
    ("name", "value"),
    [("ttft_mean", 0.55), ("ttft_p99", 0.991), ("e2e_mean", 5.5), ("e2e_p99", 9.91), ("miss_ratio", 0.3)],
)
def test_each_term_fails_above_its_limit_and_holds_at_it(name: str, value: float) -> None:
    assert failed_terms({name: value * (1 + 1e-9)}, TEN) == ()
    assert [term.name for term in failed_terms({name: value * (1 - 1e-9)}, TEN)] == [name]


def test_equal_is_allowed() -> None:
    samples = [Sample(0.25, 0.5, True), Sample(0.25, 0.5, False)]
    limits = {"ttft_mean": 0.25, "ttft_p99": 0.25, "e2e_mean": 0.5, "e2e_p99": 0.5, "miss_ratio": 0.5}
    assert failed_terms(limits, samples) == ()


def test_those_that_fail_are_told_in_words_and_the_others_not() -> None:
    failed = failed_terms({"ttft_p99": 0.5, "e2e_mean": 100.0, "miss_ratio": 0.1}, TEN)
    assert failed_words(failed) == "ttft_p99 0.991 s, allowed 0.5 s; miss_ratio 30.0%, allowed 10.0%"
    (failed_one,) = failed_terms({"e2e_mean": 1.0}, [*TEN, Sample(NEVER_S, NEVER_S, False)])
    assert failed_one == ("e2e_mean", None, 1.0)
    assert failed_words([failed_one]) == "e2e_mean without end, since requests failed, allowed 1 s"


def test_one_answer_is_enough() -> None:
    assert failed_terms({"e2e_p99": 1.0}, [Sample(0.1, 2.0, False)]) == (("e2e_p99", 2.0, 1.0),)
    assert failed_terms({"e2e_p99": 2.0}, [Sample(0.1, 2.0, False)]) == ()
