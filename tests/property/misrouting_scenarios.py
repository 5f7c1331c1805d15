"""Random small scenarios in which requests reach the wrong adapter, with and without rollouts at the same time."""

from __future__ import annotations

from typing import Any

from engine_scenarios import engine_scenarios
from hypothesis import assume
from hypothesis import strategies as st
from strategies import sampled_from, scenarios, seconds

from sim.spec.scenario import Scenario
from sim.world.build import build_world

ROUTERS = (
    "round-robin",
    "least-loaded",
    "random",
    "power-of-two",
    "hash",
    "affinity-residency",
    "affinity-activity",
    "service-per-adapter",
)
KINDS = ("misrouting", "stale-map", "base-model")


def with_(scenario: Scenario, **sections: Any) -> Scenario:
    """Return a scenario with some of its sections, or values of them, replaced."""
    dumped = scenario.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for name, values in sections.items():
        dumped[name] = dumped.get(name, {}) | values if isinstance(values, dict) else values
    return Scenario.model_validate(dumped)


@st.composite
def designs(draw: st.DrawFn, *, endless: bool | None = None) -> Scenario:
    """A scenario in which nothing changes, but something could; ``endless``: whether it runs to the last token."""
    scenario = draw(st.one_of(scenarios(), engine_scenarios()))
    assume(scenario.cache.eviction != "belady" and scenario.adapters.count != 1)
    assume(endless is None or endless == (scenario.workload.duration is None))
    router = {"policy": draw(sampled_from(ROUTERS)), "instances": draw(sampled_from((1, 3)))}
    traffic = build_world(scenario).traffic
    assume(traffic.expected_s() > 0 and traffic.places > 1)
    return with_(scenario, router=router)


@st.composite
def detectors(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "checks": draw(sampled_from((1.0, 0.5, 0.9, 0.0))),
        "retries": draw(sampled_from((1, 0, 2, 5))),
        "delay": draw(sampled_from(("0 s", "50 ms", "3 s"))),
    }


@st.composite
def faults(draw: st.DrawFn, kind: str, *, whole: bool = False) -> dict[str, Any]:
    """One fault of a kind; ``whole``: from the start to the end."""
    fault: dict[str, Any] = {"kind": kind}
    if kind == "stale-map":
        fault["share"] = draw(sampled_from((1.0, 0.9)))  # of two adapters or more that is two
        low = draw(sampled_from((0.0, 0.05, 0.5)))
        fault["propagation"] = {"law": "uniform", "low": seconds(low), "high": seconds(2 * low + 0.1)}
    else:
        fault["probability"] = draw(sampled_from((0.3, 0.05, 0.7, 1.0)))
    if kind == "misrouting":
        fault["to"] = draw(sampled_from(("popular", "any")))
    if not whole and draw(st.booleans()):
        fault["lasts"] = seconds(draw(st.integers(1, 50)) * 0.0173)
    if draw(st.booleans()):
        fault["detector"] = draw(detectors())
    return fault


@st.composite
def crashes(draw: st.DrawFn, expected_s: float) -> dict[str, Any]:
    """The first replica dies while requests come, in the expected time, and comes back."""
    return {
        "kind": "crash",
        "replica": 0,
        "at": seconds(draw(st.integers(0, 9)) * 0.0991 * expected_s),
        "down": "300 ms",
        "detected": draw(sampled_from(("0 s", "100 ms", "400 ms"))),
        "requests": draw(sampled_from(("reroute", "lose"))),
    }


@st.composite
def rollouts(draw: st.DrawFn, expected_s: float) -> dict[str, Any]:
    """A rollout of all adapters that begins while requests come, in the expected time."""
    strategy = draw(
        sampled_from(("new-name", "in-place", "unload-then-load", "drain-then-swap", "lazy-reread", "in-place"))
    )
    at = seconds(draw(st.integers(0, 5)) * 0.1309 * expected_s)
    rollout: dict[str, Any] = {"strategy": strategy, "at": at, "dwell": "100 ms"}
    if strategy == "new-name":
        rollout["stages"] = draw(sampled_from(([1.0], [0.3, 1.0])))
    return rollout


@st.composite
def misrouting_scenarios(
    draw: st.DrawFn,
    *,
    kinds: tuple[str, ...] = KINDS,
    most: int = 2,
    whole: bool = False,
    endless: bool | None = None,
    alone: bool = False,
) -> Scenario:
    """A scenario with one of these faults, or up to ``most``.

    :param alone: nothing else changes; otherwise there is often a rollout of all adapters, or a crash.
    """
    scenario = draw(designs(endless=endless))
    expected_s = build_world(scenario).traffic.expected_s()
    chosen = draw(st.lists(sampled_from(kinds), min_size=1, max_size=most))
    changes: dict[str, Any] = {"faults": [draw(faults(kind, whole=whole)) for kind in chosen]}
    if not alone and draw(st.booleans()):
        changes["rollouts"] = [draw(rollouts(expected_s))]
        if changes["rollouts"][0]["strategy"] not in ("new-name", "lazy-reread") and draw(st.booleans()):
            lifetime = draw(sampled_from(("5 s", "50 ms")))
            changes["faults"].append({"kind": "named-prefixes", "share": 0.7, "lifetime": lifetime})
    if not alone and draw(st.integers(0, 2)) == 0:
        changes["faults"].append(draw(crashes(expected_s)))
    return with_(scenario, **changes)
