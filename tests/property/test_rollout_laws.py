"""Laws of rollouts: every token has one version, nobody is lost or left behind, nobody in use is evicted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from naive_rollouts import Seen
from recordings import assert_sums_agree_at_every_boundary, ends_of, marked, tables
from strategies import DRAINING, STRATEGIES, rollout_designs, rollout_scenarios, run, with_

from sim.policies.adapter_cache import GpuCache
from sim.results.records import COMPLETED, GATED, MIXED, REFUSED, STALE, UNFINISHED
from sim.spec.scenario import Scenario
from sim.traffic.request import BASE_MODEL, Request
from sim.world.build import build_world
from sim.world.memory.replica_caches import ReplicaCacheListener
from sim.world.replica.modes.protected import OverlappedLoads
from sim.world.replica.server import Server
from sim.world.world import World

EXAMPLES = 60


def begins(world: World) -> list[tuple[int, int, float, float]]:
    """Return name, new version, beginning and cutover of every new version, in order of time, as the scenario says."""
    found = []
    for planned in world.rollout_plan.rollouts:
        rollout = planned.rollout
        for i, (name, version) in enumerate(zip(planned.names, planned.versions, strict=True)):
            first_s = rollout.at + rollout.spread * i / len(planned.names)
            found.append((name, version, first_s, first_s + (len(rollout.stages) - 1) * rollout.dwell))
    return found


def without(scenario: Scenario) -> Scenario:
    return with_(scenario, rollouts=[])


@pytest.mark.interpreted
@settings(max_examples=2 * EXAMPLES)
@given(rollout_scenarios())
def test_every_request_ends_in_one_row_and_nothing_is_left_behind(scenario: Scenario) -> None:
    world = build_world(scenario)
    seen = Seen(world)
    rollouts, ends = seen.rollouts, ends_of(scenario, seen.recording)
    assert ends["failed"] == 0
    for server in seen.fleet.servers:
        server.check_integrity()
    if scenario.workload.duration is None:
        assert ends["unfinished"] == 0, "a run without an end of its own goes on to the last token"
        assert rollouts.barriers.count == 0
        assert rollouts._started == rollouts._progress.draining == {}
        assert not any(seen.fleet.inside)
        for server in seen.fleet.servers:
            assert server.all_requests() == rollouts.held(server.index) == []
            if isinstance(server.mode, OverlappedLoads):
                assert server.mode.loader._renewals == []
                assert server.mode.loader.loads == {}
            pinned = getattr(server.cache, "_pinned", ())
            users = server.cache.users[
                : len(world.pools[0].population)
            ]  # the base model, behind them, is always in use
            assert all(count == 0 or adapter in pinned for adapter, count in enumerate(users))


@pytest.mark.interpreted
@settings(max_examples=3 * EXAMPLES)
@given(rollout_scenarios())
def test_every_token_has_one_version_and_mixed_are_exactly_those_running_at_a_swap(scenario: Scenario) -> None:
    world = build_world(scenario)
    seen = Seen(world)
    recording, requests = seen.recording, seen.recording.requests
    version, last, before = (requests[name] for name in ("version", "last_version", "tokens_before"))
    most = (
        Counter(name for planned in world.rollout_plan.rollouts for name in planned.names)
        if world.rollout_plan
        else Counter()
    )
    answered = (requests["first_token_s"] >= 0) & (requests["adapter"] != BASE_MODEL)  # that one has no versions
    assert np.all((version >= 1) == answered), "who has a token has the version that computed it, others have none"
    assert np.all((version <= last) & (before >= 0) & (before <= requests["output_tokens"]))
    assert all(last[i] <= 1 + most[int(name)] for i, name in enumerate(requests["adapter"]))
    done = np.flatnonzero(answered & (requests["status"] == COMPLETED)).tolist()
    assert [(version[i], last[i], before[i]) for i in done] == [seen.answer(i) for i in done]
    cut_off = np.flatnonzero(answered & (requests["status"] == UNFINISHED)).tolist()
    so_far = [seen.answer_so_far(i, recording.stopped_s) for i in cut_off]
    assert [(version[i], last[i], before[i]) for i in cut_off] == so_far
    assert np.all(marked(recording, MIXED) == (version != last)), "tokens of both were streamed"
    assert not np.any(marked(recording, MIXED | STALE)[~answered])


@settings(max_examples=EXAMPLES)
@given(rollout_scenarios(strategies=("drain-then-swap", "unload-then-load", "new-name")))
def test_where_running_requests_are_waited_for_no_response_mixes_versions(scenario: Scenario) -> None:
    assert not np.any(marked(run(scenario), MIXED))


@pytest.mark.interpreted
@settings(max_examples=EXAMPLES)
@given(rollout_scenarios(strategies=("in-place",), most=1, prompt=True))
def test_in_place_mixes_whoever_ran_across_its_swap(scenario: Scenario) -> None:
    """Told from the rows alone; with preemptions, a row doesn't say when its request ran."""
    seen = Seen(build_world(scenario))
    requests = seen.recording.requests
    assume(not np.any(requests["preemptions"]) and scenario.fleet.engine != "fixed")
    expected = np.zeros(len(requests["index"]), dtype=bool)
    for time_s, replica, adapter, version in seen.swaps:
        assert version == 2
        there = (requests["adapter"] == adapter) & (requests["replica"] == replica)
        expected |= there & (requests["admitted_s"] < time_s) & (requests["finished_s"] > time_s)
    done = (requests["status"] == COMPLETED) & (requests["admitted_s"] >= 0)
    assert marked(seen.recording, MIXED)[done].tolist() == (expected & done)[done].tolist()
    early = expected & done & (requests["first_token_s"] > max((swap[0] for swap in seen.swaps), default=0.0))
    assert np.all(requests["tokens_before"][early] == 0), "only its prompt had been computed"


@settings(max_examples=EXAMPLES)
@given(rollout_scenarios(gates=False))
def test_stale_is_who_came_after_the_cutover_and_got_an_older_version_first(scenario: Scenario) -> None:
    world = build_world(scenario)
    recording = run(scenario)
    requests = recording.requests
    due = np.ones(len(requests["index"]), dtype=np.int64)
    for name, version, _, cutover_s in begins(world):
        due[(requests["adapter"] == name) & (requests["arrival_s"] >= cutover_s)] = version
    answered = (requests["first_token_s"] >= 0) & (requests["adapter"] != BASE_MODEL)
    assert marked(recording, STALE)[answered].tolist() == (requests["version"] < due)[answered].tolist()
    assert not np.any(marked(recording, STALE)[~answered])


@settings(max_examples=EXAMPLES)
@given(rollout_scenarios(strategies=("new-name", *DRAINING), most=1, prompt=True))
def test_where_everybody_hears_of_it_at_once_nobody_is_stale(scenario: Scenario) -> None:
    recording = run(scenario)
    assert not np.any(marked(recording, STALE))
    requests = recording.requests
    for name, version, first_s, _ in begins(build_world(scenario)):
        of_name = (requests["adapter"] == name) & (requests["status"] == COMPLETED)
        assert np.all(requests["version"][of_name & (requests["arrival_s"] >= first_s)] == version)


@settings(max_examples=2 * EXAMPLES)
@given(rollout_scenarios(strategies=("lazy-reread",), prompt=True, most=2))
def test_lazy_reread_answers_by_what_its_last_load_read(scenario: Scenario) -> None:
    """Versions told from the rows of loads and requests alone: who read which file when."""
    assume(scenario.fleet.engine != "fixed" or not scenario.cache.host)
    world = build_world(scenario)
    recording = run(scenario)
    requests, loads = recording.requests, recording.loads
    fetched = scenario.cache.host is not None and scenario.cache.host.fill == "arrival"
    files = begins(world)
    order = np.argsort(loads["started_s"], kind="stable")
    read_s = loads["started_s"].copy()
    if (
        scenario.storage.mode == "blocking"
    ):  # the loads of a step, one after the other, read what lies there as it begins
        follows = {}
        for i in order if not fetched else order[loads["tier"][order] == 1]:
            read_s[i] = follows.get((loads["replica"][i], read_s[i]), read_s[i])
            follows[loads["replica"][i], loads["ended_s"][i]] = read_s[i]

    def stored(name: int, time_s: float) -> int:
        return 1 + sum(begun_s <= time_s for adapter, _, begun_s, _ in files if adapter == name)

    def computed(name: int, replica: int, time_s: float) -> int:
        """Return the version that computed a token which came out at a time."""
        version = copy = 1
        copies: list[tuple[float, int]] = []
        for i in order:
            if loads["adapter"][i] != name or loads["replica"][i] != replica or loads["started_s"][i] >= time_s:
                continue
            if loads["tier"][i] == 2:
                read = stored(name, read_s[i])
                copies.append((loads["ended_s"][i], read))
                if not fetched and loads["ended_s"][i] <= time_s:
                    version = read
            elif loads["ended_s"][i] <= time_s:
                there = [read for ended_s, read in copies if ended_s <= read_s[i]]
                version = there[-1] if there else copy
        return version

    for i in np.flatnonzero((requests["status"] == COMPLETED) & (requests["adapter"] != BASE_MODEL)):
        name, replica = int(requests["adapter"][i]), int(requests["replica"][i])
        if requests["preemptions"][i] == 0:
            assert requests["version"][i] == computed(name, replica, requests["first_token_s"][i])
        assert requests["last_version"][i] == computed(name, replica, requests["finished_s"][i])


@settings(max_examples=EXAMPLES)
@given(rollout_scenarios())
def test_only_unloading_refuses_and_only_until_the_new_version_is_there(scenario: Scenario) -> None:
    world = build_world(scenario)
    recording = run(scenario)
    requests = recording.requests
    gated = marked(recording, GATED)
    assert np.all(requests["status"][gated] == REFUSED)
    unloads = [i for i, rollout in enumerate(scenario.rollouts) if rollout.strategy == "unload-then-load"]
    over = {event.text.split(":")[0]: event.time_s for event in recording.events if event.kind == "complete"}
    allowed = np.zeros(len(gated), dtype=bool)
    for planned in world.rollout_plan.rollouts:
        if planned.number in unloads:
            came = (requests["arrival_s"] >= planned.rollout.at) & np.isin(requests["adapter"], planned.names)
            allowed |= came & (requests["arrival_s"] <= over.get(f"rollouts.{planned.number}", np.inf))
    assert not np.any(gated & ~allowed)
    host = scenario.cache.host
    if not any(rollout.rank for rollout in scenario.rollouts) and (host is None or host.full == "wait"):
        plain = run(without(scenario)).requests["status"] == REFUSED
        assert np.all(plain == ((requests["status"] == REFUSED) & ~gated)), "refused for being too long"


@settings(max_examples=EXAMPLES)
@given(rollout_scenarios())
def test_nobody_in_use_or_pinned_is_evicted_and_sums_agree_at_every_boundary(scenario: Scenario) -> None:
    assume(scenario.cache.eviction != "vllm-lru")
    leave = GpuCache._leave

    def left(cache: Any, victim: int) -> int:
        assert cache.users[victim] == 0, "in use"
        assert victim not in cache._pinned
        return leave(cache, victim)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GpuCache, "_leave", left)
        assert_sums_agree_at_every_boundary(scenario)


@pytest.mark.interpreted
@settings(max_examples=EXAMPLES)
@given(rollout_scenarios(strategies=("new-name",)), st.booleans())
def test_extra_bytes_are_those_of_old_versions_beside_the_newest(scenario: Scenario, keep_old: bool) -> None:
    parts = [part.model_dump(mode="json", exclude_unset=True) | {"keep_old": keep_old} for part in scenario.rollouts]
    world = build_world(with_(scenario, rollouts=parts))
    names, sizes = world.rollout_plan.original.tolist(), world.pools[0].population.size_bytes.tolist()
    there: set[tuple[int, int]] = set()
    peak = 0

    def extra() -> int:
        newest: dict[tuple[int, int], int] = {}
        for replica, adapter in there:
            newest[replica, names[adapter]] = max(adapter, newest.get((replica, names[adapter]), 0))
        return sum(sizes[adapter] for replica, adapter in there if newest[replica, names[adapter]] != adapter)

    def placed(watched: Any, adapter: int) -> None:
        nonlocal peak
        enter(watched, adapter)
        there.add((watched._replica, adapter))
        peak = max(peak, extra())

    def left(watched: Any, adapter: int) -> None:
        leave(watched, adapter)
        there.remove((watched._replica, adapter))

    enter, leave = ReplicaCacheListener.placed, ReplicaCacheListener.left
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplicaCacheListener, "placed", placed)
        patch.setattr(ReplicaCacheListener, "left", left)
        recording = run(world)
    assert recording.facts["extra_resident_bytes_peak"] == peak


# The same runs without rollouts: the same traffic, and nothing else changes


@settings(max_examples=EXAMPLES)
@given(rollout_scenarios())
def test_traffic_and_luck_are_those_of_a_run_without_rollouts(scenario: Scenario) -> None:
    assume(not any(rollout.rank for rollout in scenario.rollouts))
    lucky: list[dict[int, tuple[float, float, float]]] = []
    arrive = Server.arrive

    def arrived(server: Any, request: Request) -> None:
        lucky[-1][request.index] = (request.load_s, request.host_load_s, request.service_s)
        arrive(server, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "arrive", arrived)
        recordings = []
        for design in (scenario, without(scenario)):
            lucky.append({})
            recordings.append(run(design))
    ours, other = (recording.requests for recording in recordings)
    for name in ("index", "arrival_s", "adapter", "prompt_tokens", "output_tokens", "session"):
        assert name not in ours or ours[name].tobytes() == other[name].tobytes(), name
    both = lucky[0].keys() & lucky[1].keys()
    assert {index: lucky[0][index] for index in both} == {index: lucky[1][index] for index in both}


@settings(max_examples=2 * EXAMPLES)
@given(rollout_scenarios())
def test_before_the_first_rollout_all_is_as_without_it(scenario: Scenario) -> None:
    assume(not any(rollout.rank for rollout in scenario.rollouts))
    begins_s = min(rollout.at for rollout in scenario.rollouts)
    ours, other = run(scenario), run(without(scenario))
    early = [(r.requests["finished_s"] >= 0) & (r.requests["finished_s"] < begins_s) for r in (ours, other)]
    assert early[0].tolist() == early[1].tolist()
    for name, column in ours.requests.items():
        assert column[early[0]].tobytes() == other.requests[name][early[1]].tobytes(), name
    over = [r.loads["ended_s"] < begins_s for r in (ours, other)]
    for name, column in ours.loads.items():
        assert column[over[0]].tobytes() == other.loads[name][over[1]].tobytes(), name


@settings(max_examples=EXAMPLES)
@given(rollout_designs(), st.sampled_from(STRATEGIES), st.integers(0, 90))
def test_a_rollout_of_an_adapter_that_nobody_asks_for_changes_nothing(
    scenario: Scenario, strategy: str, percent: int
) -> None:
    world = build_world(scenario)
    asked = {int(adapter) for chunk in world.traffic.chunks(0) for adapter in chunk.adapter}
    idle = set(range(world.traffic.places)) - asked - set(world.pools[0].pinned) - set(world.pools[0].warm)
    assume(idle)
    assume(
        strategy in ("new-name", "lazy-reread") or scenario.cache.host is None or scenario.cache.host.fill != "start"
    )
    at = f"{world.traffic.expected_s() * percent / 100!r} s"
    changed = with_(scenario, rollouts=[{"strategy": strategy, "at": at, "adapter": min(idle)}])
    assert tables(run(changed)) == tables(run(scenario))


@settings(max_examples=EXAMPLES)
@given(rollout_scenarios())
def test_a_seed_repeats_byte_for_byte(scenario: Scenario) -> None:
    ours, other = run(scenario), run(scenario)
    assert tables(ours) == tables(other)
    assert ours.events == other.events
    assert {**ours.facts, "rollout_duration_s": 0} == {**other.facts, "rollout_duration_s": 0}
