"""Laws of misrouting faults: which requests go wrong, what happens to the answers, and which are unaffected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from recordings import assert_sums_agree_at_every_boundary, ends_of, marked, tables
from strategies import MISTAKES, designs, engine_scenarios, misrouting_scenarios, mistakes, run, scenarios, with_

from sim.results.records import (
    COMPLETED,
    FAILED,
    LOST,
    MISROUTED,
    OLD_PREFIX,
    REFUSED,
    RETRIED,
    UNFINISHED,
    WRONG_DETECTED,
    WRONG_LOAD,
    WRONG_SERVED,
    Recording,
)
from sim.spec.scenario import Scenario
from sim.traffic.request import MISS, Request
from sim.world.build import build_world
from sim.world.replica.server import Server


def answers(scenario: Scenario) -> tuple[Recording, list[tuple[int, int, int]]]:
    """Run, and see every answer that comes to its end: index, adapter as the traffic numbers it, outcome.

    The base model is -1.
    """
    world = build_world(scenario)
    count = len(world.pools[0].population)
    names = world.rollout_plan.original.tolist() or list(range(count))
    seen: list[tuple[int, int, int]] = []
    leave = Server._leave

    def watched(self: Any, finished: list[Request], now: float) -> None:
        leave(self, finished, now)
        seen.extend((r.index, names[r.adapter] if r.adapter < count else -1, r.outcome) for r in finished)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "_leave", watched)
        recording = run(world)
    return recording, seen


@examples(100)
@given(misrouting_scenarios())
def test_every_request_ends_in_one_row(scenario: Scenario) -> None:
    recording = run(scenario)
    ends = ends_of(scenario, recording)
    if scenario.workload.duration is None:
        assert not ends["unfinished"], "a run without an end of its own goes on to the last answer"
    failed = recording.requests["status"] == FAILED
    assert np.all(marked(recording, WRONG_DETECTED | LOST)[failed]), "nothing else fails here"


@pytest.mark.interpreted
@examples(100)
@given(misrouting_scenarios())
def test_wrong_answers_are_served_or_detected(scenario: Scenario) -> None:
    recording, seen = answers(scenario)
    requests = recording.requests
    asked = requests["adapter"]
    wrong = [(index, outcome) for index, adapter, outcome in seen if adapter != asked[index]]
    served, detected = marked(recording, WRONG_SERVED), requests["detected"]
    assert len(wrong) == int(np.sum(served)) + int(np.sum(detected))
    of_request = np.bincount([index for index, _ in wrong], minlength=len(asked))
    assert of_request.tolist() == (served + detected).tolist()
    assert np.all(marked(recording, MISROUTED)[of_request > 0])
    assert np.all((detected > 0) == marked(recording, WRONG_DETECTED))
    assert np.all((requests["tries"] > 0) == marked(recording, RETRIED))
    ended = detected - requests["tries"]  # detected and not sent again: that was its end
    failed = (requests["status"] == FAILED) & ~marked(recording, LOST)
    assert ended.tolist() == failed.astype(int).tolist()
    assert np.all(requests["status"][served] == COMPLETED)
    polluting = {index for index, outcome in wrong if outcome == MISS}
    assert set(np.flatnonzero(marked(recording, WRONG_LOAD)).tolist()) == polluting


@pytest.mark.interpreted
@examples(100)
@given(misrouting_scenarios(), st.integers(1, 6))
def test_with_a_check_of_every_answer_no_wrong_one_is_served(scenario: Scenario, retries: int) -> None:
    detector = {"checks": 1.0, "retries": retries, "delay": "20 ms"}
    changed = [fault.model_dump(mode="json", exclude_unset=True) for fault in scenario.faults]
    for fault in changed:
        if fault["kind"] in MISTAKES:
            fault["detector"] = detector
    recording, seen = answers(with_(scenario, faults=changed))
    requests = recording.requests
    assert not np.any(marked(recording, WRONG_SERVED))
    right = {index for index, adapter, _ in seen if adapter == requests["adapter"][index]}
    assert right == set(np.flatnonzero(requests["status"] == COMPLETED).tolist())
    failed = (requests["status"] == FAILED) & ~marked(recording, LOST)
    assert np.all(requests["detected"][failed] == retries + 1)
    assert np.all(requests["tries"] <= retries)


@examples(100)
@given(designs(), st.sampled_from(("misrouting", "base-model")), st.data())
def test_a_fault_that_comes_to_nothing_leaves_every_byte(scenario: Scenario, kind: str, data: st.DataObject) -> None:
    fault = data.draw(mistakes(kind)) | {"probability": 1e-15}
    ours, other = run(scenario), run(with_(scenario, faults=[fault]))
    assert tables(ours) == tables(other)
    assert ours.stopped_s == other.stopped_s
    assert ours.inside_area == pytest.approx(other.inside_area, rel=1e-12)


@examples(100)
@given(st.one_of(engine_scenarios(engine="lorax"), scenarios(engine="vllm-0.8"), engine_scenarios(engine="s-lora")))
def test_a_base_model_that_never_answers_leaves_every_byte(scenario: Scenario) -> None:
    assume(scenario.cache.eviction != "belady" and build_world(scenario).traffic.expected_s() > 0)
    fault = {"kind": "base-model", "probability": 1e-15}
    assert tables(run(scenario)) == tables(run(with_(scenario, faults=[fault])))


@examples(100)
@given(
    misrouting_scenarios(kinds=("misrouting", "base-model"), whole=True, endless=True, alone=True), st.integers(1, 9)
)
def test_the_cache_makes_no_difference_to_who_goes_wrong(scenario: Scenario, slots: int) -> None:
    assume(not scenario.cache.gpu.unified)
    cache: dict[str, Any] = {"gpu": {"slots": slots}, "pinned": 0}
    if scenario.cache.host is not None and scenario.cache.host.fill == "load":
        cache["host"] = {"slots": slots + 3}
    other = with_(scenario, cache=cache)
    ours, theirs = run(scenario), run(other)
    came = (ours.requests["status"] != REFUSED) & (theirs.requests["status"] != REFUSED)
    for name in ("marks", "tries", "detected"):
        mine, yours = (recording.requests[name][came].astype(np.int64) for recording in (ours, theirs))
        if name == "marks":
            mine, yours = mine & ~WRONG_LOAD, yours & ~WRONG_LOAD
        assert mine.tolist() == yours.tolist(), name
    assert not np.any(ours.requests["status"] == UNFINISHED)


@examples(100)
@given(designs())
def test_where_the_base_model_answers_all_nothing_is_loaded_on_anyones_account(scenario: Scenario) -> None:
    recording = run(with_(scenario, faults=[{"kind": "base-model", "probability": 1.0}]))
    requests = recording.requests
    assert len(recording.loads["adapter"]) == 0
    assert recording.evictions == 0 or scenario.cache.warm, "who was there at the start may leave"
    assert np.all(requests["outcome"] == 0)
    assert np.all(requests["load_wait_s"] == 0)
    named = requests["adapter"] >= 0
    done = named & (requests["status"] == COMPLETED)
    assert np.all(marked(recording, WRONG_SERVED)[done])
    came = named & (requests["status"] != REFUSED)
    assert np.all(marked(recording, MISROUTED)[came])
    assert not np.any(marked(recording, MISROUTED)[~named])


@examples(100)
@given(misrouting_scenarios(kinds=("base-model", "base-model", "misrouting")))
def test_running_sums_agree_with_counts_at_every_boundary(scenario: Scenario) -> None:
    assert_sums_agree_at_every_boundary(scenario)


@examples(100)
@given(misrouting_scenarios(kinds=("stale-map",), most=1))
def test_a_stale_map_ends_when_its_routers_have_heard(scenario: Scenario) -> None:
    recording = run(scenario)
    requests = recording.requests
    (fault, *_), came = scenario.faults, (requests["status"] != REFUSED) & (requests["adapter"] >= 0)
    law = fault.propagation
    last_s = fault.lasts if fault.lasts is not None else np.inf
    early, late = requests["arrival_s"] < min(law.low, last_s), requests["arrival_s"] >= min(law.high, last_s)
    assert not np.any(marked(recording, MISROUTED) & late)
    if fault.share == 1 and len(scenario.faults) == 1:  # after a crash, requests may be routed much later
        assert np.all(marked(recording, MISROUTED)[came & early])
    over = [event.time_s for event in recording.events if event.kind == "over" and "own adapters" in event.text]
    assert all(time <= min(law.high, last_s) for time in over)


@examples(100)
@given(misrouting_scenarios())
def test_a_seed_repeats_byte_for_byte(scenario: Scenario) -> None:
    assert tables(run(scenario)) == tables(run(scenario))


@examples(100)
@given(misrouting_scenarios())
def test_old_prefixes_are_found_only_after_a_swap_and_by_right_answers(scenario: Scenario) -> None:
    recording = run(scenario)
    found = marked(recording, OLD_PREFIX)
    assert not np.any(found & marked(recording, WRONG_SERVED))
    named = [fault for fault in scenario.faults if fault.kind == "named-prefixes"]
    if not named:
        assert not np.any(found)
        return
    assert np.all(recording.requests["status"][found] == COMPLETED)
    assert np.all(recording.requests["last_version"][found] > 1), "the swap had been"
