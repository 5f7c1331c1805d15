"""Laws of a fleet that grows and shrinks, and what a scenario may not ask of it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import strategies
from strategies import build, fixed_time, run

from sim.errors import ScenarioError
from sim.results.records import COMPLETED, Recording
from sim.spec.scenario import Fleet, Scenario
from sim.traffic.request import FROM_HOST
from sim.world.build import build_world
from sim.world.pools.autoscaler import mean_cold_start_s
from sim.world.replication import assemble

ROUTERS = ("round-robin", "random", "least-loaded", "power-of-two", "hash", "affinity-residency", "affinity-activity")
WAVES = {"process": "diurnal", "rate": "10/s", "swing": 0.9, "period": "2 min", "peak_at": "30 s"}


def waves(autoscale: dict[str, Any], **sections: Any) -> Scenario:
    """Traffic in waves of two minutes on a fleet of vLLM replicas that needs one to five of them."""
    fleet = {"gpu": "h100-64gb", "engine": "vllm", "replicas": 2, "max_num_seqs": 16}
    tokens = {"prompt": {"law": "fixed", "value": 300}, "output": {"law": "fixed", "value": 60}}
    scaling = {"target": 8, "max": 5, "stabilization_down": "30 s", **autoscale}
    scenario: Scenario = build(
        workload={
            "requests": 2500,
            "arrivals": WAVES,
            "popularity": {"law": "zipf", "exponent": 0.9},
            "tokens": tokens,
        },
        adapters={"count": 60, "base_model": "llama-3.1-8b"},
        cache=sections.pop("cache", {"gpu": {"slots": 8}, "host": {"slots": 60}}),
        fleet=fleet | {"autoscale": scaling} | sections.pop("fleet", {}),
        **sections,
    )
    return scenario


def services(rows: list[tuple[float, int]], autoscale: dict[str, Any], **sections: Any) -> Scenario:
    return strategies.services(rows, fleet={"autoscale": autoscale, **sections.pop("fleet", {})}, **sections)


def counts(recording: Recording) -> list[tuple[float, int, int]]:
    """Return times, and how many replicas are provisioned and how many are wanted from then on, by events."""
    begun = [(row[1], 1, 1) for row in recording.lives]
    drained = [(min(row[3], row[4]), 0, -1) for row in recording.lives]
    gone = [(row[4], -1, 0) for row in recording.lives]
    found, provisioned, wanted = [], 0, 0
    changes = sorted(each for each in begun + drained + gone if each[0] < math.inf)
    for time in sorted({at for at, _, _ in changes}):
        provisioned += sum(change for at, change, _ in changes if at == time)
        wanted += sum(change for at, _, change in changes if at == time)
        found.append((time, provisioned, wanted))
    return found


METRICS = [("waiting", 2), ("gpu_load", 0.5), ("kv_usage", 0.005), ("adapter_waiting", 2)]


@pytest.mark.parametrize(
    ("router", "metric"),
    [*((router, ("in_flight", 8)) for router in ROUTERS), *(("least-loaded", metric) for metric in METRICS)],
)
def test_nothing_is_lost_and_the_bounds_hold(router: str, metric: tuple[str, float]) -> None:
    recording = run(waves({"metric": metric[0], "target": metric[1], "min": 2}, router={"policy": router}))
    requests, lives = recording.requests, recording.lives
    assert requests["index"].tolist() == list(range(2500)), "each request ends once"
    assert (requests["status"] == COMPLETED).all()
    assert all(provisioned <= 5 and wanted >= 2 for _, provisioned, wanted in counts(recording))
    assert len(lives) > 2, "the fleet grows"
    # A request is served by a replica that is ready, and arrives there before the drain begins.
    for place, _, ready, drained, gone in lives:
        here = (requests["replica"] == place) & (requests["arrival_s"] >= ready) & (requests["arrival_s"] < drained)
        assert (requests["finished_s"][here] <= gone).all()
    serving = np.zeros(2500, dtype=int)
    for place, _, ready, drained, _ in lives:
        arrival = requests["arrival_s"]
        serving += (requests["replica"] == place) & (arrival >= ready) & (arrival <= drained)
    assert (serving == 1).all()


def test_replica_seconds_add_up() -> None:
    recording = run(waves({}))
    lives, end = recording.lives, recording.stopped_s
    by_place = np.bincount(lives[:, 0].astype(int), weights=np.minimum(lives[:, 4], end) - lives[:, 1])
    steps = [*counts(recording), (end, 0, 0)]
    integral = sum(count * (after - time) for (time, count, _), (after, _, _) in itertools.pairwise(steps))
    assert by_place.sum() == pytest.approx(integral)
    for place in range(5):  # one life after the other
        own = sorted((row[1], row[4]) for row in lives if row[0] == place)
        assert all(gone <= begun for (_, gone), (begun, _) in itertools.pairwise(own))


@pytest.mark.parametrize("router", ["round-robin", "random", "least-loaded", "power-of-two", "affinity-residency"])
def test_a_fleet_that_need_not_change_is_a_fixed_fleet(router: str) -> None:
    scaled = run(waves({"target": 1000, "min": 2, "max": 4}, router={"policy": router}))
    fixed = run(waves({}, router={"policy": router}, fleet={"autoscale": None}))
    assert len(scaled.lives) == 2
    assert len(fixed.lives) == 0
    for name, column in fixed.requests.items():
        assert (scaled.requests[name] == column).all(), name
    assert (scaled.busy_s == fixed.busy_s).all()


def test_cold_starts_add_up_and_the_new_cache_is_empty() -> None:
    cold = {
        "provision": fixed_time(20.0),
        "image": fixed_time(5.0),
        "weights": fixed_time(3.0),
        "engine": fixed_time(2.0),
    }
    scenario = waves({"cold_start": cold})
    recording = run(scenario)
    new = [row for row in recording.lives if row[1] > 0]
    assert all(row[2] - row[1] == pytest.approx(30.0) or row[2] == math.inf for row in new)
    ready = [row for row in new if row[2] < math.inf]
    for place, _, at, drained, _ in ready:
        first = (recording.requests["replica"] == place) & (recording.requests["admitted_s"] >= at)
        first &= recording.requests["arrival_s"] < drained
        if first.any():
            assert recording.requests["outcome"][np.flatnonzero(first)[0]] != 0, "no hit: nothing is resident"


def test_weights_take_their_bytes_over_the_bandwidth() -> None:
    world = build_world(waves({"cold_start": {"weights_per_s": "2 GB"}}))
    autoscale, profile = world.scenario.fleet.autoscale, world.pools[0].profile
    assert mean_cold_start_s(autoscale.cold_start, world.pools[0]) == pytest.approx(
        34.0 + profile.memory.weights_bytes / 2e9
    )


def test_a_warm_up_list_takes_time_and_is_resident() -> None:
    cold = {"weights": fixed_time(0.0), "engine": fixed_time(10.0), "warm": 4}
    loads = {"load": fixed_time(0.5)}
    recording = run(waves({"cold_start": cold}, storage=loads))
    new = [row for row in recording.lives if row[1] > 0 and row[2] < math.inf]
    assert new
    assert all(row[2] - row[1] == pytest.approx(12.0) for row in new)
    hottest = set(build_world(waves({"cold_start": cold}, storage=loads)).pools[0].warmed_up)
    requests = recording.requests
    for place, _, at, drained, _ in new:
        here = (requests["replica"] == place) & (requests["arrival_s"] >= at) & (requests["arrival_s"] < drained)
        for index in np.flatnonzero(here)[:3]:
            if requests["adapter"][index] in hottest:
                assert requests["outcome"][index] == 0


def test_the_last_ready_drains_first_and_starts_are_called_off() -> None:
    steps = [{"above": 2, "add": 2}, {"below": 0.5, "remove": 2}]
    cold = {"engine": fixed_time(12.0)}
    scaling = {"policy": "step", "max": 4, "interval": "5 s", "cooldown": "5 s", "steps": steps, "cold_start": cold}
    # Five requests from 3 s on: at 5 s two replicas start. At 10 s nothing is left, so both starts are called off.
    recording = run(services([(0.0, 0), *[(3.0, 0)] * 5, (30.0, 0)], scaling))
    assert recording.lives.tolist() == [
        [2, 5, math.inf, math.inf, 10],
        [1, 5, math.inf, math.inf, 10],
        [0, 0, 0, math.inf, math.inf],
    ]
    assert (recording.requests["status"] == COMPLETED).all()


def test_gpu_load_is_that_of_the_last_interval() -> None:
    scaling = {"target": 0.5, "max": 2, "metric": "gpu_load", "interval": "10 s", "stabilization_down": "0 s"}
    # Replica 0 is busy until 40 s. At 10 s its load of 1 asks for two replicas. From 20 s on their mean is on target,
    # and at 50 s it is 0.
    recording = run(services([*[(0.0, 0)] * 40, (60.0, 0)], scaling))
    assert recording.lives.tolist() == [[1, 10, 10, 50, 50], [0, 0, 0, math.inf, math.inf]]


def test_a_replica_that_drains_keeps_its_place() -> None:
    entries = [{"at": "0 s", "replicas": 2}, {"at": "10 s", "replicas": 1}, {"at": "11 s", "replicas": 2}]
    scaling = {"policy": "schedule", "min": 1, "max": 2, "interval": "1 s", "schedule": entries}
    # Replica 1 gets four services of 1 s at 9.5 s. The one that is drained at 10 s is gone at 13.5 s; one that is
    # wanted from 11 s on waits for its place.
    recording = run(services([(0.0, 0), *[(9.5, 0)] * 7, (20.0, 0)], scaling, fleet={"replicas": 2}))
    assert recording.lives.tolist() == [
        [1, 0, 0, 10, 13.5],
        [0, 0, 0, math.inf, math.inf],
        [1, 13.5, 13.5, math.inf, math.inf],
    ]
    assert recording.requests["finished_s"].max() == 21.0


def test_without_any_replica_requests_wait_for_the_first() -> None:
    cold = {"engine": fixed_time(7.0)}
    scaling = {"policy": "keda", "min": 0, "max": 3, "target": 2, "cooldown": "20 s", "interval": "5 s"}
    recording = run(
        services(
            [(0.0, 0), (1.0, 0), (52.0, 0), (53.0, 1)], {**scaling, "stabilization_down": "0 s", "cold_start": cold}
        )
    )
    # The last request ends at 2 s; the last reading above 0 was none, so 20 s count from 5 s. At 55 s two are held, one
    # replica starts, and it is ready at 62 s.
    assert recording.lives[:2, 1:].tolist() == [[0, 0, 25, 25], [55, 62, math.inf, math.inf]]
    assert recording.requests["finished_s"].tolist() == [1.0, 2.0, 63.0, 64.0]
    assert recording.requests["admitted_s"].tolist() == [0.0, 1.0, 62.0, 63.0]


def test_keda_keeps_replicas_while_requests_wait_or_run() -> None:
    """Without a cooldown, and with a cold start longer than the interval: a trigger is active until the last answer."""
    scaling = {"policy": "keda", "min": 0, "max": 2, "target": 1, "interval": "5 s"}
    scaling |= {"cooldown": "0 s", "stabilization_down": "0 s", "cold_start": {"engine": fixed_time(12.0)}}
    recording = run(services([(0.0, 0), *[(1.0, 0)] * 6, (41.0, 0), (41.0, 0)], scaling))
    # The seven last until 7 s, so the replica stops at 10 s, not at 5 s. At 45 s two wait: one replica starts, is ready
    # at 57 s and serves until the run ends at 59 s.
    assert recording.lives[recording.lives[:, 0] == 0, 1:4].tolist() == [[0, 0, 10], [45, 57, math.inf]]
    assert recording.requests["finished_s"].tolist() == [1, 2, 3, 4, 5, 6, 7, 58, 59]


@pytest.mark.parametrize("arrivals", ["trace", "closed"])
def test_a_fleet_that_never_gets_ready_is_an_error(arrivals: str) -> None:
    """A timetable with a replica for 30 s of each minute, which takes 40 s to start."""
    entries = [{"at": "0 s", "replicas": 0}, {"at": "30 s", "replicas": 1}]
    scaling = {"policy": "schedule", "min": 0, "max": 1, "interval": "5 s", "schedule": entries, "every": "1 min"}
    scaling |= {"cold_start": {"engine": fixed_time(40.0)}}
    scenario = services([(0.0, 0), (1.0, 0), (90.0, 0), (200.0, 0)], scaling)
    if arrivals == "closed":
        loop = {"process": "closed", "concurrency": 2, "think": "2 s"}
        fleet = {"engine": "fixed", "service": fixed_time(1.0), "autoscale": scaling}
        scenario = build(
            workload={"requests": 200, "arrivals": loop}, fleet=fleet, adapters={"count": 4, "size": "1 MB"}
        )
    with pytest.raises(ScenarioError, match="requests wait for a replica, and none gets ready"):
        run(scenario)


@pytest.mark.parametrize("at", [20, 47, 75, 118, 200])
@pytest.mark.parametrize("replica", [0, 3])
@pytest.mark.parametrize("requests", ["reroute", "lose"])
def test_crashes_of_replicas_that_come_and_go(at: int, replica: int, requests: str) -> None:
    crash = {
        "kind": "crash",
        "replica": replica,
        "at": f"{at} s",
        "down": "40 s",
        "detected": "3 s",
        "requests": requests,
    }
    scenario = waves({"min": 1, "max": 5}, faults=[crash])
    recording = run(scenario)
    assert recording.requests["index"].tolist() == list(range(2500))
    if requests == "reroute":
        assert (recording.requests["status"] == COMPLETED).all()
    assert all(provisioned <= 5 for _, provisioned, _ in counts(recording))
    again = run(scenario)
    assert (again.requests["finished_s"] == recording.requests["finished_s"]).all()


@pytest.mark.parametrize("staleness", ["0 s", "2 s"])
@pytest.mark.parametrize("router", ["least-loaded", "affinity-activity", "hash"])
def test_caches_and_counts_stay_whole(router: str, staleness: str) -> None:
    world = build_world(waves({}, router={"policy": router, "staleness": staleness}))
    replication = assemble(world, 0, 2)
    recording = replication.fleet.run(world.traffic.chunks(0))
    assert (recording.requests["status"] == COMPLETED).all()
    for server in replication.fleet.servers:
        server.check_integrity()
    assert replication.fleet.inside == [0] * 5


def test_a_rollout_reaches_replicas_that_start_later() -> None:
    rollout = {"strategy": "new-name", "at": "100 s", "count": 5}
    recording = run(waves({}, rollouts=[rollout]))
    assert (recording.requests["status"] == COMPLETED).all()
    assert recording.requests["version"].max() == 2


@pytest.mark.slow
def test_with_instant_starts_and_a_request_each_requests_hardly_wait() -> None:
    """An M/M/c queue: c replicas at most, exponential services, one request for each replica."""
    scaling = {"policy": "keda", "target": 1, "tolerance": 0, "max": 12, "stabilization_down": "0 s", "up_replicas": 12}
    cold = {"engine": fixed_time(0.0)}
    scenario = build(
        workload={"requests": 9000, "arrivals": {"process": "poisson", "rate": "3/s"}},
        adapters={"count": 1, "size": "1 MB"},
        cache={"gpu": {"slots": 1}, "pinned": 0},
        storage={"load": fixed_time(0.0)},
        router={"policy": "least-loaded"},
        fleet={
            "engine": "fixed",
            "service": {"law": "exponential", "mean": "1 s"},
            "autoscale": {**scaling, "interval": "20 ms", "cold_start": cold},
        },
    )
    recording = run(scenario)
    requests = recording.requests
    # A request that finds all replicas busy makes the next decision start one, for the requests after it.
    busy = recording.busy_s.sum() / (recording.bounds[-1] - recording.bounds[0])
    assert busy == pytest.approx(3.0, rel=0.05)
    seconds = np.minimum(recording.lives[:, 4], recording.stopped_s) - recording.lives[:, 1]
    in_system = recording.inside_area / recording.stopped_s
    # There are as many replicas as requests, but at least one: E max(N, 1), with N Poisson in an M/M/12 queue at 3.
    assert seconds.sum() / recording.stopped_s == pytest.approx(in_system + math.exp(-in_system), rel=0.02)
    assert (requests["status"] == COMPLETED).all()


def test_a_fleet_starts_at_its_minimum_unless_it_says_more() -> None:
    scaling = {"target": 8, "min": 3, "max": 5}
    assert Fleet.model_validate({"autoscale": scaling}).replicas == 3
    assert Fleet.model_validate({"autoscale": scaling, "replicas": 4}).replicas == 4
    assert Fleet.model_validate({"autoscale": {"target": 8, "max": 5}}).replicas == 1


def test_a_long_warm_up_list_also_fills_host_memory() -> None:
    cold = {"weights": fixed_time(0.0), "engine": fixed_time(10.0), "warm": 60}
    recording = run(waves({"cold_start": cold}, storage={"load": fixed_time(0.05)}))
    ready = {int(row[0]): row[2] for row in recording.lives if row[1] > 0 and row[2] < math.inf}
    assert ready
    loads = recording.loads
    for place, at in ready.items():
        here = (loads["replica"] == place) & (loads["started_s"] >= at)
        assert (loads["tier"][here] == FROM_HOST).all(), "no adapter comes from storage again"
