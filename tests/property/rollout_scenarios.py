"""Random small scenarios in which new versions go out: every engine, every strategy, many routers, sessions or none."""

from __future__ import annotations

from typing import Any

from engine_scenarios import engine_scenarios
from hypothesis import assume
from hypothesis import strategies as st
from misrouting_scenarios import ROUTERS, with_
from strategies import GRID, ODD, sampled_from, scenarios, seconds

from sim.errors import ScenarioError
from sim.spec.scenario import Scenario
from sim.world.build import build_world

STRATEGIES = ("new-name", "in-place", "unload-then-load", "drain-then-swap", "lazy-reread")
DRAINING = ("unload-then-load", "drain-then-swap")
STAGES = ((1.0,), (0.5, 1.0), (0.05, 0.3, 1.0))
GATES: tuple[dict[str, Any], ...] = (
    {"e2e_p99": "1000000 s"},
    {"ttft_mean": "1 us"},
    {"ttft_p99": "300 ms", "e2e_mean": "1 s"},
    {"miss_ratio": "10%"},
)
"""Limits that all meet, that nobody meets, and that some meet."""


@st.composite
def designs(
    draw: st.DrawFn, *, endless: bool | None = None, engine: str | None = None, sessions: bool | None = None
) -> Scenario:
    """A scenario in which no version changes yet.

    :param endless: whether it goes on to the last token; ``sessions``: whether its requests come in sessions.
    """
    worlds = st.one_of(scenarios(), engine_scenarios()) if engine is None else scenarios(engine=engine)
    scenario = draw(worlds)
    assume(scenario.cache.eviction != "belady")
    assume(endless is None or endless == (scenario.workload.duration is None))
    policy = draw(sampled_from(("round-robin", *ROUTERS)))
    sections: dict[str, Any] = {"router": {"policy": policy, "instances": draw(sampled_from((1, 2, 5)))}}
    assume(not sessions or scenario.workload.trace is None)
    if scenario.workload.trace is None and (sessions or (sessions is None and draw(st.booleans()))):
        gap = seconds(draw(sampled_from((0.01, 0.1, 1.0))) * ODD)
        length = draw(sampled_from((1.5, 4.0)))
        sections["workload"] = {"sessions": {"requests": length, "gap_median": gap, "gap_sigma": 1.0}}
    try:
        scenario = with_(scenario, **sections)
        assume(any(build_world(scenario).traffic.chunks(0)))
    except (ScenarioError, ValueError):  # cyclic popularity has no sessions
        assume(False)
    assume(build_world(scenario).traffic.expected_s() > 0)
    return scenario


@st.composite
def rollouts(
    draw: st.DrawFn,
    horizon_s: float,
    *,
    strategies: tuple[str, ...] = STRATEGIES,
    prompt: bool = False,
    grid: bool = False,
    gates: bool = True,
) -> dict[str, Any]:
    """One rollout of all adapters; ``prompt``: everybody hears of it at once, and there is one stage."""
    strategy = draw(sampled_from(strategies))
    dwell_s = draw(sampled_from((0.05, 0.3, 3.0))) * (1 if grid else ODD)
    at_s = horizon_s * draw(st.integers(0, 95)) / 100
    if grid:
        dwell_s, at_s = (round(time / GRID) * GRID for time in (dwell_s, at_s))
    rollout: dict[str, Any] = {"strategy": strategy, "at": seconds(at_s), "dwell": seconds(max(dwell_s, GRID))}
    if not prompt:
        if strategy != "lazy-reread":
            rollout["stages"] = list(draw(sampled_from(STAGES)))
        if draw(st.booleans()):
            low = draw(sampled_from((0.0, 0.05, 1.0)))
            rollout["propagation"] = {"law": "uniform", "low": seconds(low), "high": seconds(2 * low + 0.1)}
    if strategy == "new-name":
        rollout |= {"sticky": draw(st.booleans()), "keep_old": draw(st.booleans())}
        if draw(st.integers(0, 4)) == 0:
            rollout["rank"] = draw(sampled_from((2, 8)))
        if gates and len(rollout.get("stages", (1.0,))) > 1 and draw(st.booleans()):
            rollout["gate"] = draw(sampled_from(GATES)) | {"min_requests": draw(sampled_from((1, 3, 100)))}
    if "gate" not in rollout and draw(st.integers(0, 3)) == 0:
        rollout["spread"] = seconds(dwell_s)
    return rollout


@st.composite
def rollout_scenarios(
    draw: st.DrawFn,
    *,
    strategies: tuple[str, ...] = STRATEGIES,
    prompt: bool = False,
    most: int = 3,
    gates: bool = True,
    endless: bool | None = None,
    engine: str | None = None,
    sessions: bool | None = None,
) -> Scenario:
    """A scenario with up to ``most`` rollouts, often of the same adapters one after the other."""
    scenario = draw(designs(endless=endless, engine=engine, sessions=sessions))
    traffic = build_world(scenario).traffic
    places, horizon_s = traffic.places, traffic.expected_s()
    grid = draw(st.integers(0, 2)) == 0
    parts = []
    for _ in range(draw(st.integers(1, most))):
        part = draw(rollouts(horizon_s, strategies=strategies, prompt=prompt, grid=grid, gates=gates))
        which = draw(sampled_from(("all", "all", "one", "share")))
        if which == "one":
            part["adapter"] = draw(st.integers(0, places - 1))
        elif which == "share" and places > 1:
            part["share"] = 0.5 if most > 1 else draw(sampled_from((0.5, 1.0)))
        parts.append(part)
    try:
        scenario = with_(scenario, rollouts=parts)
        build_world(scenario)
    except (ScenarioError, ValueError):  # they overlap, or the new version is too large
        assume(False)
    return scenario
