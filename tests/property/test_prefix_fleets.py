"""Fleets that cache prefixes, whatever happens to them: blocks agree with a count from scratch at every boundary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import simulate_checked

from sim.results.records import COMPLETED, REFUSED, UNFINISHED
from sim.spec.scenario import Scenario
from sim.world.build import build_world

pytestmark = pytest.mark.interpreted

CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"rollouts": [{"strategy": "in-place", "at": "20 s"}]},
    {"rollouts": [{"strategy": "in-place", "at": "20 s"}], "faults": [{"kind": "named-prefixes"}]},
    {"rollouts": [{"strategy": "new-name", "at": "15 s"}]},
    {"rollouts": [{"strategy": "unload-then-load", "at": "20 s", "adapter": 0}]},
    {"faults": [{"kind": "crash", "at": "20 s", "replica": 0, "down": "5 s"}]},
    {"faults": [{"kind": "misrouting", "probability": 0.3, "detector": {"checks": 0.5, "retries": 1, "delay": "1 s"}}]},
)


@st.composite
def fleets(draw: st.DrawFn) -> dict[str, Any]:
    engine = draw(st.sampled_from(["vllm-0.8", "vllm-0.32", "sglang", "continuous"]))
    workload: dict[str, Any] = {
        "requests": 150,
        "arrivals": {"process": "poisson", "rate": draw(st.sampled_from(["2/s", "6/s"]))},
        "popularity": {"law": "zipf", "exponent": 1.0},
        "tokens": {"prompt": {"law": "geometric", "mean": 40}, "output": {"law": "geometric", "mean": 30, "max": 200}},
    }
    shares = draw(st.sampled_from(["prefix", "history", "both", "nothing"]))
    if shares in ("prefix", "both"):
        workload["prefix"] = {
            "shared_by": draw(st.sampled_from(["adapter", "all"])),
            "texts": draw(st.integers(1, 3)),
            "tokens": {"law": "uniform", "low": 1, "high": 200},
        }
    if shares in ("history", "both"):
        workload["sessions"] = {"requests": 3, "gap_median": "4 s", "history": True, "max_context": 600}
    fleet = {
        "engine": engine,
        "prefix_caching": True,
        "replicas": draw(st.integers(1, 3)),
        "kv_tokens": draw(st.sampled_from([2048, 4096, 20_000])),
        "max_num_batched_tokens": draw(st.sampled_from([64, 256, 2048])),
        "max_num_seqs": draw(st.sampled_from([8, 64])),
    }
    if engine == "vllm-0.32":
        fleet["uncached_blocks"] = draw(st.sampled_from(["first", "last"]))
    adapters: dict[str, Any] = {"count": 6, "rank": 16}
    invocation = draw(st.sampled_from([None, 1, 30]))
    if invocation is not None:
        adapters["invocation_tokens"] = invocation
    routers = ["round-robin", "least-loaded"] if shares == "nothing" else ["affinity-prefix", "round-robin"]
    policy = draw(st.sampled_from(routers))
    # Without shared text, the fault needs a chance that a request hits an old prefix.
    change = draw(st.sampled_from([one for one in CHANGES if shares != "nothing" or "named" not in str(one)]))
    return {
        "schema_version": 1,
        "name": "fleet",
        "workload": workload,
        "adapters": adapters,
        "fleet": fleet,
        "cache": {"gpu": {"slots": draw(st.integers(2, 6))}},
        "router": {"policy": policy},
        "run": {"seed": draw(st.integers(1, 1000)), "replications": 1},
        **change,
    }


@settings(max_examples=40, deadline=None)
@given(fleets())
def test_blocks_agree_with_a_count_at_every_boundary(data: dict[str, Any]) -> None:
    built = build_world(Scenario.model_validate(data))
    recording, times = simulate_checked(built, 2)
    requests = recording.requests
    assert times
    assert ("cached_tokens" in requests) == built.traffic.shares_text
    if built.traffic.shares_text:
        cached, prompt = np.asarray(requests["cached_tokens"]), np.asarray(requests["prompt_tokens"])
        assert np.all((cached >= 0) & (cached < prompt))
        assert np.all(cached % data["fleet"].get("block_size", built.scenario.fleet.block_size) == 0)
        assert np.all(cached[requests["status"] == REFUSED] == 0)
    assert not np.any(requests["status"] == UNFINISHED)
    assert np.any(requests["status"] == COMPLETED)
