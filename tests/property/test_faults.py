"""Laws of faults in the infrastructure: nothing in flight is lost silently, and what broke does nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from recordings import assert_sums_agree_at_every_boundary, ends_of, marked, tables
from strategies import (
    SPEED,
    crashes,
    designs,
    faulty_scenarios,
    fixed_time,
    may_fail,
    run,
    seconds,
    storage_faults,
    with_,
)

import sim.world.replication
from sim.policies.adapter_cache import ABSENT
from sim.results.recording.recorder import Recorder
from sim.results.records import COMPLETED, FAILED, LOAD_FAILED, LOST, REFUSED, REROUTED, UNFINISHED, Recording
from sim.spec.scenario import Scenario
from sim.traffic.request import FROM_STORAGE, HIT, MISS, Request
from sim.world.build import build_world
from sim.world.clock import Clock
from sim.world.faults.crashes import Crashes
from sim.world.replica.modes.protected import OverlappedLoads
from sim.world.replica.server import Server
from sim.world.replication import ReplicaMaker, Replication, assemble

EXAMPLES = 50


def assembled(scenario: Scenario) -> tuple[Replication, Recording]:
    """Run, and return what it was run with as well."""
    world = build_world(scenario)
    assembly = assemble(world, 0, 1)
    return assembly, assembly.fleet.run(world.traffic.chunks(0))


def indices(where: np.ndarray) -> set[int]:
    return set(np.flatnonzero(where).tolist())


def outages(scenario: Scenario) -> list[tuple[int, float, float]]:
    """Return replica, begin and end of each time in which one is down."""
    return [
        (fault.replica, fault.at, np.inf if fault.down is None else fault.at + fault.down)
        for fault in scenario.faults
        if fault.kind == "crash"
    ]


@contextmanager
def watched_steps() -> Iterator[list[np.ndarray]]:
    """See all rows of steps."""
    seen: list[np.ndarray] = []
    flush = Recorder._flush_steps

    def watched(self: Recorder) -> None:
        seen.append(np.frombuffer(self.leap_rows.getvalue(), dtype=sim.results.recording.recorder.LEAP_ROW))
        flush(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "_flush_steps", watched)
        yield seen


@settings(max_examples=EXAMPLES)
@given(faulty_scenarios())
def test_every_request_ends_in_one_row(scenario: Scenario) -> None:
    recording = run(scenario)
    ends = ends_of(scenario, recording)
    if not any(fault.kind in ("misrouting", "base-model") for fault in scenario.faults):
        assert np.all(marked(recording, LOST | LOAD_FAILED) == (recording.requests["status"] == FAILED))
    if all(end < np.inf for _, _, end in outages(scenario)) and scenario.workload.duration is None:
        assert ends["unfinished"] == 0


@pytest.mark.interpreted
@settings(max_examples=EXAMPLES)
@given(faulty_scenarios())
def test_requests_inside_are_counted_at_all_times(scenario: Scenario) -> None:
    """What servers add up at arrivals and departures is the integral of the counts that routers see."""
    area = 0.0
    fleet: Any = None

    class Watched(Clock):
        time = 0.0

        @property
        def now(self) -> float:
            return self.time

        @now.setter
        def now(self, time: float) -> None:
            nonlocal area
            if fleet is not None:
                assert all(count >= 0 for count in fleet.inside)
                area += sum(fleet.inside) * (time - self.time)
            self.time = time

    world = build_world(scenario)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sim.world.replication, "Clock", Watched)
        fleet = assemble(world, 0, 1).fleet
        recording = fleet.run(world.traffic.chunks(0))
    assert recording.inside_area == pytest.approx(area, rel=1e-9, abs=1e-9)
    if scenario.workload.duration is None and not np.any(recording.requests["status"] == UNFINISHED):
        assert not any(fleet.inside)


@settings(max_examples=EXAMPLES)
@given(faulty_scenarios())
def test_caches_and_boards_agree_at_the_end(scenario: Scenario) -> None:
    assembly, _ = assembled(scenario)
    servers = assembly.fleet.servers
    for server in servers:
        server.check_integrity()
    router_state = assembly.router_state
    if router_state.reads("resident"):
        adapters = len(build_world(scenario).pools[0].population)
        router_state.residency.check_integrity([server.cache.state[:adapters] for server in servers])
    if router_state.reads("running"):
        router_state.activity.check_integrity()
    if router_state.reads("running") and len(servers) > 1:
        for counted, server in zip(assembly.fleet.count_inside(), servers, strict=True):
            assert counted == Counter(request.adapter for request in server.all_requests())


@pytest.mark.interpreted
@settings(max_examples=EXAMPLES)
@given(faulty_scenarios(kinds=("crash", "crash", "slow-storage", "failing-loads")))
def test_a_dead_replica_does_nothing(scenario: Scenario) -> None:
    assume(outages(scenario))
    with watched_steps() as seen:
        recording = run(scenario)
    steps, loads, requests = np.concatenate(seen), recording.loads, recording.requests
    ends = (
        steps["start"]
        + steps["load_s"]
        + steps["steps"] * (steps["first"] + steps["growth"] * (steps["steps"] - 1) / 2)
    )
    for replica, begin_s, end_s in outages(scenario):
        of = steps["replica"] == replica
        assert not np.any(of & (steps["start"] < end_s) & (ends > begin_s * (1 + 1e-12) + 1e-12))
        of = loads["replica"] == replica
        assert not np.any(of & (loads["started_s"] < end_s) & (loads["ended_s"] > begin_s))
        of = (requests["replica"] == replica) & (requests["status"] != FAILED)
        assert not np.any(of & (requests["admitted_s"] >= begin_s) & (requests["admitted_s"] < end_s))
        assert not np.any(of & (requests["finished_s"] >= begin_s) & (requests["finished_s"] < end_s))
    assert np.all(loads["ended_s"] >= loads["started_s"])


@settings(max_examples=EXAMPLES)
@given(designs(endless=True), st.data())
def test_a_crash_whose_requests_are_rerouted_loses_nobody(scenario: Scenario, data: st.DataObject) -> None:
    crash = data.draw(crashes(scenario, requests="reroute"))
    assume("down" in crash or scenario.fleet.replicas > 1)
    ours, other = run(with_(scenario, faults=[crash])), run(scenario)
    status = ours.requests["status"]
    assert not np.any((status == FAILED) | (status == UNFINISHED))
    rejects = scenario.cache.host is not None and scenario.cache.host.fill == "arrival"
    if not rejects:  # else who finds no place in host memory is turned away, and that depends on where it comes
        assert indices(status == REFUSED) == indices(other.requests["status"] == REFUSED)
    assert np.all(status[marked(ours, REROUTED)] != FAILED)


def crashed_on(scenario: Scenario) -> tuple[Recording, set[int], set[int]]:
    """Run with one crash; return who was inside, and who was sent there before the router knew."""
    (crash,) = scenario.faults
    until_s = crash.at + min(crash.detected, np.inf if crash.down is None else crash.down)
    inside: set[int] = set()
    sent: set[int] = set()
    die, accept = Server.die, Crashes.accept

    def died(self: Server) -> list[Request]:
        requests = die(self)
        inside.update(request.index for request in requests)
        return requests

    def accepted(self: Crashes, request: Request, replica: int) -> bool:
        now = self._fleet.servers[replica].clock.now
        if replica == crash.replica and crash.at <= now < until_s and request.index not in inside:
            sent.add(request.index)
        return accept(self, request, replica)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "die", died)
        patch.setattr(Crashes, "accept", accepted)
        recording = run(scenario)
    return recording, inside, sent


@pytest.mark.interpreted
@settings(max_examples=EXAMPLES)
@given(designs(), st.data())
def test_a_crash_that_loses_requests_loses_exactly_those_it_meets(scenario: Scenario, data: st.DataObject) -> None:
    crash = data.draw(crashes(scenario, requests="lose"))
    recording, inside, sent = crashed_on(with_(scenario, faults=[crash]))
    assert indices(recording.requests["status"] == FAILED) == inside | sent
    assert indices(marked(recording, LOST)) == inside | sent
    assert not np.any(marked(recording, REROUTED))


@pytest.mark.interpreted
@settings(max_examples=EXAMPLES)
@given(designs(endless=True), st.data())
def test_a_crash_that_reroutes_requests_marks_exactly_those_it_meets(scenario: Scenario, data: st.DataObject) -> None:
    crash = data.draw(crashes(scenario, requests="reroute"))
    recording, inside, sent = crashed_on(with_(scenario, faults=[crash]))
    assert indices(marked(recording, REROUTED)) == inside | sent
    if "down" not in crash and scenario.fleet.replicas == 1:
        arrival_s = recording.requests["arrival_s"]
        late = indices((arrival_s >= scenario.model_copy().run.warmup) & (recording.requests["status"] == UNFINISHED))
        assert inside | sent <= late, "nobody is left to serve them"


@pytest.mark.interpreted
@settings(max_examples=EXAMPLES)
@given(designs(endless=True), st.data())
def test_a_replica_comes_back_empty(scenario: Scenario, data: st.DataObject) -> None:
    crash = data.draw(crashes(scenario))
    crash.setdefault("down", "1 s")
    seen: list[tuple[set[int], set[int]]] = []
    make = ReplicaMaker.__call__

    def made(self: ReplicaMaker, index: int, inside: list[int], **how: bool) -> Server:
        server = make(self, index, inside, **how)
        count = len(self._pool.population)
        there = {adapter for adapter, state in enumerate(server.cache.state[:count]) if state != ABSENT}
        seen.append((there, set(self._pool.pinned)))
        return server

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplicaMaker, "__call__", made)
        recording = run(with_(scenario, faults=[crash]))
    replicas, kinds = scenario.fleet.replicas, [event.kind for event in recording.events]
    assume(kinds)  # everybody is served before the replica would have crashed
    assert len(seen) == replicas + kinds.count("crash") + kinds.count("restart"), "one stands in, one comes back"
    assert ("restart" in kinds) != ("end" in kinds), "unless nobody is left to come back for"
    assert all(there == pinned for there, pinned in seen[replicas:])


@settings(max_examples=EXAMPLES)
@given(designs(), st.data())
def test_a_crash_before_anybody_comes_changes_no_byte(scenario: Scenario, data: st.DataObject) -> None:
    scenario = with_(scenario, cache={"warm": 0})  # what comes back is empty
    first_s = float(next(build_world(scenario).traffic.chunks(0)).arrival_s[0])
    assume(first_s > 0)
    crash = data.draw(crashes(scenario, at="0 s", down=seconds(first_s / 2), detected=seconds(first_s / 4)))
    ours, other = run(with_(scenario, faults=[crash])), run(scenario)
    if scenario.cache.eviction not in ("vllm-lru", "random"):  # another replica draws other luck
        assert tables(ours) == tables(other)
    assert [event.kind for event in ours.events] == ["crash", "detected", "restart"]


@settings(max_examples=EXAMPLES)
@given(designs(), st.data())
def test_storage_that_is_slow_while_nothing_loads_changes_no_byte(scenario: Scenario, data: st.DataObject) -> None:
    other = run(scenario)
    from_storage = other.loads["tier"] == FROM_STORAGE
    edges = [
        (0.0, 0.0),
        *sorted(zip(other.loads["started_s"][from_storage], other.loads["ended_s"][from_storage], strict=True)),
    ]
    end_s = min(build_world(scenario).traffic.expected_s(), scenario.workload.duration or np.inf)
    gaps, busy_until = [], 0.0
    for (_, ended_s), (started_s, _) in zip(edges, [*edges[1:], (end_s, end_s)], strict=True):
        busy_until = max(busy_until, ended_s)
        if min(started_s, end_s) > busy_until:
            gaps.append((float(busy_until), float(min(started_s, end_s))))
    assume(gaps)
    begin_s, until_s = data.draw(st.sampled_from(gaps))
    lasts_s = (until_s - begin_s) / 2
    assume(begin_s + lasts_s < until_s and lasts_s > 0)
    fault = data.draw(storage_faults(scenario, data.draw(st.sampled_from(SPEED))))
    ours = run(with_(scenario, faults=[fault | {"at": seconds(begin_s), "lasts": seconds(lasts_s)}]))
    assert tables(ours) == tables(other)
    assert ours.stopped_s == other.stopped_s


@settings(max_examples=EXAMPLES)
@given(designs(), st.data())
def test_storage_of_half_the_speed_is_storage_whose_loads_take_twice_as_long(
    scenario: Scenario, data: st.DataObject
) -> None:
    milliseconds = data.draw(st.integers(1, 300))
    slow = {"kind": "slow-storage", "at": "0 s", "lasts": "100000 h", "factor": 2}
    ours, other = (
        with_(scenario, storage={"load": fixed_time(factor * milliseconds * 1e-3)}, faults=faults)
        for factor, faults in ((1, [slow]), (2, []))
    )
    assert tables(run(ours)) == tables(run(other))


@settings(max_examples=EXAMPLES)
@given(designs(), st.data())
def test_a_network_of_fixed_length_is_storage_whose_loads_take_longer(scenario: Scenario, data: st.DataObject) -> None:
    ticks, more = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    far = {"kind": "network-delay", "delay": fixed_time(more / 64)}
    ours, other = (
        with_(scenario, storage={"load": fixed_time(value / 64)}, faults=faults)
        for value, faults in ((ticks, [far]), (ticks + more, []))
    )
    assert tables(run(ours)) == tables(run(other))


@settings(max_examples=EXAMPLES)
@given(designs(), st.data())
def test_loads_that_hardly_ever_fail_are_loads_that_do_not(scenario: Scenario, data: st.DataObject) -> None:
    assume(may_fail(scenario))
    fault = data.draw(storage_faults(scenario, "failing-loads")) | {"probability": 1e-12}
    ours, other = run(with_(scenario, faults=[fault])), run(scenario)
    assert tables(ours) == tables(other)
    assert ours.stopped_s == other.stopped_s
    assert ours.inside_area == pytest.approx(other.inside_area, rel=1e-12)


@settings(max_examples=EXAMPLES)
@given(designs(endless=True), st.integers(0, 3), st.sampled_from(("0 s", "20 ms", "3 s")))
def test_where_every_load_fails_exactly_those_who_waited_fail(scenario: Scenario, retries: int, backoff: str) -> None:
    assume(may_fail(scenario))
    fault = {"kind": "failing-loads", "probability": 1.0, "retries": retries, "backoff": backoff}
    assembly, recording = assembled(with_(scenario, faults=[fault]))
    requests, loads = recording.requests, recording.loads
    failed = requests["status"] == FAILED
    assert np.all(requests["tier"][requests["status"] == COMPLETED] != FROM_STORAGE)
    assert not np.any(requests["status"] == UNFINISHED)
    assert np.all(marked(recording, LOAD_FAILED) == failed)
    attempts = int(np.sum(loads["tier"] == FROM_STORAGE))
    if scenario.cache.eviction == "vllm-lru":  # there, an adapter may be lost to those who have it
        assert attempts % (retries + 1) == 0
        assert set(requests["adapter"][failed].tolist()) <= set(loads["adapter"].tolist())
    else:
        assert np.all(requests["tier"][failed] == FROM_STORAGE)
        assert np.all(requests["outcome"][failed] != HIT)
        assert attempts == (retries + 1) * int(np.sum(requests["outcome"][failed] == MISS))
    for server in assembly.fleet.servers:
        server.check_integrity()
        assert not isinstance(server.mode, OverlappedLoads) or not server.mode.loader.loads
        assert not any(assembly.fleet.inside)


@settings(max_examples=EXAMPLES)
@given(faulty_scenarios(kinds=("failing-loads", "failing-loads", "slow-storage")))
def test_each_attempt_is_one_load(scenario: Scenario) -> None:
    """No replica attempts the same adapter twice at a time, and pauses between attempts are kept."""
    recording = run(scenario)
    loads = recording.loads
    storage = loads["tier"] == FROM_STORAGE
    renewals = any(rollout.strategy not in ("new-name", "lazy-reread") for rollout in scenario.rollouts)
    assume(not renewals and scenario.storage.mode == "overlap")
    order = np.lexsort((loads["started_s"], loads["adapter"], loads["replica"]))
    order = order[storage[order]]
    replica, adapter = loads["replica"][order], loads["adapter"][order]
    same = (replica[1:] == replica[:-1]) & (adapter[1:] == adapter[:-1])
    assert np.all(loads["started_s"][order][1:][same] >= loads["ended_s"][order][:-1][same])


@settings(max_examples=EXAMPLES)
@given(faulty_scenarios())
def test_a_seed_repeats_byte_for_byte(scenario: Scenario) -> None:
    assert tables(run(scenario)) == tables(run(scenario))


@settings(max_examples=EXAMPLES)
@given(faulty_scenarios(kinds=("crash", "failing-loads", "failing-loads")))
def test_running_sums_agree_with_counts_at_every_boundary(scenario: Scenario) -> None:
    assert_sums_agree_at_every_boundary(scenario)


@settings(max_examples=EXAMPLES)
@given(faulty_scenarios())
def test_events_are_in_order_and_within_the_run(scenario: Scenario) -> None:
    recording = run(scenario)
    times = [event.time_s for event in recording.events]
    assert times == sorted(times)
    assert all(0 <= time <= recording.stopped_s for time in times)
    crashes = sum(event.kind == "crash" for event in recording.events)
    begins = [begin_s for _, begin_s, _ in outages(scenario)]
    before = sum(begin_s < recording.stopped_s or begin_s == 0 for begin_s in begins)
    # Where nobody is left to serve and none comes back, the crash itself is the end.
    assert before <= crashes <= before + sum(begin_s == recording.stopped_s > 0 for begin_s in begins)
