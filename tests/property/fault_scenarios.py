"""Random small scenarios in which replicas die and storage is slow, stalls, fails or lies far away."""

from __future__ import annotations

from typing import Any

from hypothesis import assume
from hypothesis import strategies as st
from misrouting_scenarios import designs, with_
from strategies import ODD, sampled_from, seconds

from sim.spec.scenario import Scenario
from sim.world.build import build_world

KINDS = ("crash", "slow-storage", "storage-stall", "failing-loads", "network-delay")
SPEED = ("slow-storage", "storage-stall", "network-delay")


def may_fail(scenario: Scenario) -> bool:
    """Return whether loads may fail in a scenario."""
    vllm = scenario.cache.eviction == "vllm-lru" and scenario.fleet.batching == "prefill-first"
    return not vllm and scenario.cache.prefetch == "none"


@st.composite
def times(draw: st.DrawFn, scenario: Scenario) -> float:
    """A moment while requests are expected, odd so that little happens at the same instant by chance."""
    end_s = build_world(scenario).traffic.expected_s()
    if scenario.workload.duration is not None:
        end_s = min(end_s, scenario.workload.duration)
    return end_s * draw(st.integers(0, 98)) / 100 * ODD**-1


@st.composite
def spans(draw: st.DrawFn) -> str:
    return seconds(draw(sampled_from((0.01, 0.1, 0.5, 2.0, 20.0))) * ODD)


@st.composite
def crashes(draw: st.DrawFn, scenario: Scenario, **fields: Any) -> dict[str, Any]:
    """One crash of any replica."""
    crash: dict[str, Any] = {
        "kind": "crash",
        "replica": draw(st.integers(0, scenario.fleet.replicas - 1)),
        "at": seconds(draw(times(scenario))),
        "requests": draw(sampled_from(("reroute", "lose"))),
    }
    if draw(st.integers(0, 3)):
        crash["down"] = draw(spans())
    if draw(st.booleans()):
        crash["detected"] = draw(spans())
    return crash | fields


@st.composite
def storage_faults(draw: st.DrawFn, scenario: Scenario, kind: str) -> dict[str, Any]:
    """One fault of storage."""
    fault: dict[str, Any] = {"kind": kind}
    if kind in ("slow-storage", "storage-stall") or draw(st.booleans()):
        fault |= {"at": seconds(draw(times(scenario))), "lasts": draw(spans())}
    if draw(st.integers(0, 2)) == 0:
        fault["replica"] = draw(st.integers(0, scenario.fleet.replicas - 1))
    if kind == "slow-storage":
        fault["factor"] = draw(sampled_from((1.5, 3.0, 20.0)))
    elif kind == "failing-loads":
        fault["probability"] = draw(sampled_from((0.3, 0.05, 0.8, 1.0)))
        fault["retries"] = draw(sampled_from((0, 1, 3)))
        fault["backoff"] = draw(sampled_from(("0 s", "10 ms", "1 s")))
    elif kind == "network-delay":
        fault["delay"] = {"law": "uniform", "low": "5 ms", "high": draw(sampled_from(("5 ms", "200 ms")))}
        fault["share"] = draw(sampled_from((1.0, 0.5)))
    return fault


@st.composite
def rollouts(draw: st.DrawFn, scenario: Scenario, *, failing: bool) -> dict[str, Any]:
    """A rollout of all adapters; ``failing``: one that goes with failing loads."""
    names = ("new-name", "new-name", "lazy-reread")
    swaps = ("in-place", "unload-then-load", "drain-then-swap")
    rollout: dict[str, Any] = {
        "strategy": draw(sampled_from(names if failing else names + swaps)),
        "at": seconds(draw(sampled_from((0.0, draw(times(scenario)))))),
        "dwell": "100 ms",
    }
    if rollout["strategy"] == "new-name":
        rollout["stages"] = draw(sampled_from(([1.0], [0.3, 1.0])))
    return rollout


@st.composite
def faulty_scenarios(draw: st.DrawFn, *, kinds: tuple[str, ...] = KINDS, endless: bool | None = None) -> Scenario:
    """A scenario with one to three of these faults, often a rollout, sometimes requests at the wrong adapter."""
    scenario = draw(designs(endless=endless))
    changes: dict[str, Any] = {"faults": []}
    failing = False
    for kind in draw(st.lists(sampled_from(kinds), min_size=1, max_size=3)):
        if kind == "crash":
            changes["faults"].append(draw(crashes(scenario)))
        elif kind != "failing-loads" or may_fail(scenario):
            failing |= kind == "failing-loads"
            changes["faults"].append(draw(storage_faults(scenario, kind)))
    assume(changes["faults"])
    if draw(st.integers(0, 3)) == 0:
        changes["faults"].append(
            draw(
                sampled_from(
                    (
                        {"kind": "misrouting", "probability": 0.3, "detector": {"retries": 2}},
                        {"kind": "base-model", "probability": 0.3},
                    )
                )
            )
        )
    if draw(st.booleans()):
        changes["rollouts"] = [draw(rollouts(scenario, failing=failing))]
    try:
        return with_(scenario, **changes)
    except ValueError as error:
        assume("is already down" not in str(error))
        raise
