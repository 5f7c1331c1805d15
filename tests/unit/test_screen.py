"""Formulas that choose where a plan begins its search: the load of loaders, with and without host memory."""

from __future__ import annotations

from typing import Any

import pytest
from strategies import build, poisson, run, write_profile

from sim.spec.scenario import Scenario
from sim.studies.plan.screen import screen
from sim.traffic.request import FROM_HOST
from sim.world.build import build_world

FIXED = {"law": "fixed"}


def scenario(cache: dict[str, Any], engine: str = "continuous", **storage: Any) -> Scenario:
    """Return 100 adapters with 10 slots, at a load that is far from the largest."""
    return build(
        fleet={"engine": engine},
        workload=poisson(
            12_000,
            "2/s",
            popularity={"law": "zipf", "exponent": 0.8},
            tokens={"prompt": {**FIXED, "value": 50}, "output": {**FIXED, "value": 2}},
        ),
        adapters={"count": 100, "rank": 16},
        cache={"gpu": {"slots": 10}, **cache},
        storage={"load": {**FIXED, "value": "200 ms"}, "host_load": {**FIXED, "value": "20 ms"}, **storage},
    )


def busy_share(given: Scenario) -> float:
    """Return the share of the time that the loaders with most to do were busy; within steps, those of both tiers."""
    loads = run(given).loads
    seconds = loads["ended_s"] - loads["started_s"]
    from_host = loads["tier"] == FROM_HOST
    by_tier = [float(seconds[from_host].sum()), float(seconds[~from_host].sum())]
    together = given.storage.mode == "blocking" and (given.cache.host is None or given.cache.host.fill != "arrival")
    return (sum(by_tier) if together else max(by_tier)) / float(loads["ended_s"].max())


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(scenario({}), id="storage alone"),
        pytest.param(scenario({"host": {"slots": 40}}), id="host LRU"),
        pytest.param(scenario({"host": {"size": "400 MB"}}), id="host in bytes"),
        pytest.param(scenario({"host": {"fill": "start"}}), id="all in host memory"),
        pytest.param(scenario({"host": {"fill": "arrival", "slots": 40}}), id="fetched at arrival"),
        pytest.param(scenario({"host": {"fill": "arrival"}}), id="fetched once"),
        pytest.param(scenario({"host": {"slots": 40}}, mode="blocking"), id="within steps"),
        pytest.param(scenario({}, "vllm"), id="vllm"),
        pytest.param(scenario({"host": {"slots": 40}}, "vllm"), id="vllm, max_cpu_loras 40"),
        pytest.param(scenario({"host": {"slots": 100}}, "vllm"), id="vllm, all in host memory"),
    ],
)
def test_the_load_of_loaders_is_near_the_simulated_one(given: Scenario) -> None:
    """A miss that finds a copy in host memory costs 20 ms, not 200."""
    assert screen(build_world(given)).loader_load == pytest.approx(busy_share(given), rel=0.12)


def drafting(tokens: int, draft: float, acceptance: float = 1.0) -> float:
    """Return the load of a GPU whose steps all take as long, with drafts."""
    given = build(
        fleet={
            "engine": "vllm",
            "profile": write_profile(step={"fixed_s": 0.02, "tokens": [[0, 0.0], [10, 0.0]]}),
            "async_scheduling": False,
            "max_num_seqs": 64,
            "speculation": {"tokens": tokens, "acceptance": acceptance, "draft": draft},
        },
        workload=poisson(2000, "2/s", tokens={"prompt": {**FIXED, "value": 50}, "output": {**FIXED, "value": 200}}),
        adapters={"count": 4, "rank": 16},
        cache={"gpu": {"slots": 4}, "host": {"slots": 4}, "warm": 4},
    )
    load = screen(build_world(given)).gpu_load
    assert load is not None
    return load


def test_capacity_with_drafts_follows_from_tokens_and_time_of_a_step() -> None:
    alone = drafting(0, 0.5)
    assert alone == pytest.approx(2 * 200 * 0.02 / 64)
    assert drafting(3, 0.0) == pytest.approx(alone / 4)
    assert drafting(3, 0.1) == pytest.approx(alone * 1.3 / 4)
    assert drafting(3, 0.1, 0.5) == pytest.approx(alone * 1.3 / 1.875)
