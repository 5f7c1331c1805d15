"""Crashes and failing loads by hand, and what a scenario may not set for them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import strategies
from strategies import build, fixed_time, run, write_trace

from sim.results.capacity import _offered_to_loaders
from sim.results.metrics import measure
from sim.results.records import COMPLETED, FAILED, LOAD_FAILED, LOST, REROUTED, UNFINISHED
from sim.spec.scenario import Scenario
from sim.studies.evaluate import facts_of
from sim.traffic.request import MISS
from sim.world.build import build_world
from sim.world.faults.storage_faults import LONGEST_PAUSE_S, Failures, StorageFaults, StorageSpeed
from sim.world.replication import assemble


def services(rows: list[tuple[float, int]], faults: list[dict[str, Any]], **sections: Any) -> Scenario:
    """Services of 1 s on two replicas in turn, behind loads of 0.5 s; rows are arrivals and adapters."""
    given = {"storage": {"load": fixed_time(0.5)}, "router": {"policy": "round-robin"}, "faults": faults}
    given["cache"] = {"gpu": {"slots": 4}, "warm": 4}
    return strategies.services(rows, fleet={"replicas": 2, **sections.pop("fleet", {})}, **(given | sections))


CRASH = {"kind": "crash", "replica": 0, "at": "0.5 s", "down": "4 s", "detected": "1 s"}
ROWS = [(0.0, 0), (0.25, 1), (1.0, 2), (7.0, 0), (7.0, 0)]
"""The first and the third go to replica 0: one is served there, and one is sent there before the router knows."""


def test_requests_of_a_dead_replica_begin_anew_when_the_router_knows() -> None:
    recording = run(services(ROWS, [CRASH]))
    requests, loads = recording.requests, recording.loads
    # At 1.5 s both come to replica 1, which has served the second by then.
    assert requests["status"].tolist() == [COMPLETED] * 5
    assert requests["finished_s"].tolist()[:3] == [2.5, 1.25, 3.5]
    assert requests["arrival_s"].tolist()[:1] == [0.0], "latency counts from there"
    assert requests["marks"].tolist() == [REROUTED, 0, REROUTED, 0, 0]
    # Everybody was warm; replica 0 comes back empty and loads adapter 0 again.
    assert [loads[name].tolist() for name in ("adapter", "replica", "started_s", "ended_s")] == [[0], [0], [7.0], [7.5]]
    assert requests["finished_s"].tolist()[3:] == [8.5, 8.0]
    assert [(event.time_s, event.kind) for event in recording.events] == [
        (0.5, "crash"),
        (1.5, "detected"),
        (4.5, "restart"),
    ]
    # Until the last arrival; the half service of replica 0 kept it busy, too.
    assert recording.busy_by_replica.tolist() == [0.5, 3.0]
    assert recording.inside_area == 2.5 + 1.0 + 2.5 + 1.5 + 1.0


def test_requests_of_a_dead_replica_are_lost() -> None:
    requests = run(services(ROWS, [CRASH | {"requests": "lose"}])).requests
    assert requests["status"].tolist() == [FAILED, COMPLETED, FAILED, COMPLETED, COMPLETED]
    assert requests["marks"].tolist() == [LOST, 0, LOST, 0, 0]


def test_a_replica_that_is_up_before_the_router_knew_goes_on_but_for_those_that_hung() -> None:
    requests = run(services([*ROWS[:3], (1.25, 3), (1.3, 0)], [CRASH | {"down": "0.75 s", "detected": "2 s"}])).requests
    assert requests["marks"].tolist() == [REROUTED, 0, REROUTED, 0, 0]
    # The fifth comes to replica 0 when that is up again: half a second of load, one of service.
    assert requests["replica"].tolist()[4] == 0
    assert requests["finished_s"].tolist()[4] == 1.3 + 1.5
    assert requests["status"].tolist() == [COMPLETED] * 5


def test_without_a_replica_requests_wait_outside_until_one_is_up() -> None:
    one = {"replicas": 1}
    recording = run(services(ROWS, [CRASH], fleet=one))
    assert recording.requests["status"].tolist() == [COMPLETED] * 5
    assert recording.requests["admitted_s"].tolist()[0] == 5.0, "4.5 s, and the load"
    gone = run(services(ROWS, [{key: value for key, value in CRASH.items() if key != "down"}], fleet=one))
    assert gone.requests["status"].tolist() == [UNFINISHED] * 5
    assert gone.requests["marks"].tolist() == [REROUTED] * 3 + [0] * 2, "they were to start again"


def test_those_who_wait_for_a_load_that_fails_leave_and_later_ones_try_again() -> None:
    failing = {"kind": "failing-loads", "probability": 1.0, "retries": 1, "backoff": "0.25 s", "lasts": "3 s"}
    rows = [(0.0, 0), (1.0, 0), (1.5, 0), (2.0, 1)]
    recording = run(services(rows, [failing], fleet={"replicas": 1}, cache={"gpu": {"slots": 1}}))
    # Attempts end at 0.5 and 1.25 s; a new load begins at 1.5 s, and another one waits for the only slot until 2.75 s.
    requests, loads = recording.requests, recording.loads
    assert requests["status"].tolist() == [FAILED, FAILED, FAILED, COMPLETED]
    assert requests["marks"].tolist() == [LOAD_FAILED] * 3 + [0]
    assert requests["load_wait_s"].tolist() == [1.25, 0.25, 1.25, 1.25]
    assert loads["started_s"].tolist() == [0.0, 0.75, 1.5, 2.25, 2.75]
    assert requests["finished_s"].tolist()[3] == 4.25


def test_a_stall_holds_up_loads_under_way() -> None:
    stall = {"kind": "storage-stall", "at": "0.25 s", "lasts": "10 s"}
    recording = run(
        services([(0.0, 0), (1.0, 0), (11.0, 0)], [stall], fleet={"replicas": 1}, cache={"gpu": {"slots": 1}})
    )
    assert recording.requests["finished_s"].tolist() == [11.5, 12.5, 13.5]
    assert [(event.time_s, event.kind) for event in recording.events] == [(0.25, "fault"), (10.25, "over")]


@pytest.mark.parametrize(("engine", "gpu"), [("sglang", {}), ("s-lora", {"unified": True})])
def test_no_place_is_kept_for_a_load_that_failed(engine: str, gpu: dict[str, Any]) -> None:
    """A place that is not given back would stop every later request. Other caches: tests/property/test_faults.py."""
    rows = [(0.0, 0), (0.01, 1), (0.02, 2), (0.3, 1)] + [(40.0 + number, number % 3) for number in range(9)]
    scenario = build(
        workload={"trace": {"file": write_trace([(second, adapter, 8, 4) for second, adapter in rows])}},
        adapters={"size": "1 MB"},
        cache={"gpu": {"slots": 1, **gpu}, "host": {"fill": "load", "slots": 1}},
        fleet={"engine": engine},
        storage={"load": fixed_time(0.25), "host_load": fixed_time(0.01)},
        faults=[{"kind": "failing-loads", "probability": 1.0, "retries": 1, "backoff": "0.1 s", "lasts": "20 s"}],
    )
    world = build_world(scenario)
    fleet = assemble(world, 0, 1).fleet
    requests = fleet.run(world.traffic.chunks(0)).requests
    assert requests["status"].tolist() == [FAILED] * 4 + [COMPLETED] * 9
    assert requests["outcome"].tolist()[4] == MISS
    fleet.servers[0].check_integrity()


def test_a_fault_of_storage_that_nothing_comes_from_is_noted() -> None:
    slow = {"kind": "slow-storage", "at": "0 s", "lasts": "1 s", "factor": 2}
    in_host, on_disk = (
        build(
            workload={"requests": 10, "arrivals": {"process": "poisson", "rate": "1/s"}},
            adapters={"count": 8},
            faults=[slow],
            cache={"gpu": {"slots": 4}, "host": {"fill": fill}},
            fleet={"engine": "sglang"},
        )
        for fill in ("start", "arrival")
    )
    assert any("all adapters are in host memory from the start" in note for note in build_world(in_host).notes)
    assert not any("all adapters are in host memory" in note for note in build_world(on_disk).notes)


def test_a_loader_is_held_in_the_pauses_between_attempts() -> None:
    failing = {"kind": "failing-loads", "probability": 1.0, "retries": 2, "backoff": "1 s", "lasts": "3 s"}
    scenario = services([(0.0, 0), (10.0, 1)], [failing], fleet={"replicas": 1}, cache={"gpu": {"slots": 2}})
    recording = run(scenario)
    # Attempts end at 0.5 and 2 s, and the last one, from 4 s on, succeeds; the run is measured up to 10 s.
    assert recording.loads["started_s"].tolist() == [0.0, 1.5, 4.0, 10.0]
    assert recording.backoffs.tolist() == [[0.5, 1.5, 1, 0], [2.0, 4.0, 1, 0]]
    metrics, measured = measure([recording], facts_of(build_world(scenario)))
    assert metrics["loader_utilization"].value == pytest.approx(4.5 / 10)
    # Two loads occupied it for 5 s, and two requests asked for one.
    assert _offered_to_loaders(measured) == pytest.approx(2 * 2.5 / 10)


def test_a_pause_is_cut_by_a_crash() -> None:
    failing = {"kind": "failing-loads", "probability": 1.0, "retries": 1, "backoff": "2 s", "lasts": "1 s"}
    crash = {"kind": "crash", "replica": 0, "at": "1 s", "requests": "lose"}
    recording = run(services([(0.0, 0), (1.5, 1)], [failing, crash], cache={"gpu": {"slots": 2}}))
    assert recording.backoffs.tolist()[0] == [0.5, 1.0, 0, 0]


def test_pauses_stop_doubling() -> None:
    failures = Failures(0.0, math.inf, 1.0, 100, 1.0, tuple(range(101)))
    faults = StorageFaults(StorageSpeed(()), (), (failures,))
    spans = faults.attempts(0.0, 1.0, 0, 0).spans
    pauses = [after - before for (_, before), (after, _) in itertools.pairwise(spans)]
    assert pauses == [min(2.0**k, LONGEST_PAUSE_S) for k in range(100)]


def test_loads_that_no_request_begins_have_luck_of_their_own() -> None:
    numbers = [
        StorageFaults(StorageSpeed(()), (), (), place=place)._unrequested_number(adapter)
        for place in range(3)
        for adapter in (0, 1, 2**24 - 1)
    ]
    one = StorageFaults(StorageSpeed(()), (), ())
    numbers += [one._unrequested_number(0) for _ in range(100)][1:]
    assert max(numbers) < 0, "requests have the others"
    assert len(set(numbers)) == len(numbers)


def test_a_run_ends_with_its_last_request_and_says_what_never_came() -> None:
    crash = CRASH | {"at": "0.5 s", "down": "2 h", "detected": "0 s"}
    stages = {"strategy": "new-name", "at": "0.5 s", "stages": ["50%", "100%"], "dwell": "1 h"}
    recording = run(services(ROWS, [crash], rollouts=[stages]))
    assert recording.requests["status"].tolist() == [COMPLETED] * 5
    assert recording.stopped_s == recording.requests["finished_s"].max()
    assert [event.text for event in recording.events if event.kind == "end"] == [
        "faults.0: the run ends before replica 0 is up again",
        "rollouts.0: the run ends before stage 2 of 2",
    ]


def test_a_gate_sees_requests_that_failed() -> None:
    """No request for the new version is answered, so there is no latency to judge."""
    failing = {"kind": "failing-loads", "probability": 1.0, "retries": 0, "at": "5 s", "lasts": "6 s"}
    rollout = {
        "strategy": "new-name",
        "at": "5 s",
        "stages": ["50%", "100%"],
        "dwell": "5 s",
        "gate": {"e2e_mean": "1 h", "min_requests": 3},
    }
    rows = [(0.25 * k, 0) for k in range(80)]
    recording = run(services(rows, [failing], rollouts=[rollout], cache={"gpu": {"slots": 4}}))
    logged = [
        (event.time_s, event.kind, event.text) for event in recording.events if event.kind in ("stage", "rollback")
    ]
    assert [entry[:2] for entry in logged] == [(10.0, "rollback")]
    assert logged[0][2].endswith("e2e_mean without end, since requests failed, allowed 3.6e+03 s")


def test_gone_replicas_leave_their_sums() -> None:
    crashes = [CRASH | {"at": f"{2 * k + 0.5} s", "down": "0.5 s", "detected": "1 s"} for k in range(4)]
    recording = run(services([(0.2 * k, k % 4) for k in range(40)], crashes, cache={"gpu": {"slots": 1}}))
    requests = recording.requests
    assert recording.inside_area == pytest.approx(float((requests["finished_s"] - requests["arrival_s"]).sum()))
