"""Loads that block steps, at instants that can be computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
from strategies import GRID, build, fixed_time, write_profile, write_trace

from sim.results.records import Recording
from sim.traffic.request import DELAYED_HIT, FROM_GPU, FROM_STORAGE, HIT, MISS
from sim.world.build import build_world
from sim.world.replication import simulate

D = GRID
"""Seconds of every step, whatever it does. A load takes three of them."""


def run(rows: list[tuple[float, int, int, int]], **sections: Any) -> Recording:
    """Run one replica with two adapters; rows give arrivals in steps, adapters, prompt and output tokens."""
    scenario = build(
        workload={"trace": {"file": write_trace([(at * D, *rest) for at, *rest in rows])}},
        adapters={"count": 2, "size": "1 MiB"},
        fleet={
            "profile": write_profile({"fixed_s": D, "tokens": [[0, 0.0], [64, 0.0]]}),
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "block_size": 16,
            "kv_tokens": 16384,
            **sections.pop("fleet", {}),
        },
        storage={"load": fixed_time(3 * D), **sections.pop("storage", {})},
        **sections,
    )
    return simulate(build_world(scenario), 0, 1)


@pytest.mark.parametrize("eviction", ["lru", "vllm-lru"])
def test_requests_without_their_adapter_wait_for_all_loads_of_their_step(eviction: str) -> None:
    # Two requests for adapter 0 and one for adapter 1 join at once; one for adapter 0 joins later and finds it.
    rows = [(0.0, 0, 8, 20), (0.0, 0, 8, 20), (0.0, 1, 8, 20), (12.5, 0, 8, 1)]
    cache = {"gpu": {"slots": 2}, "eviction": eviction}
    recording = run(rows, storage={"mode": "blocking"}, cache=cache, fleet={"load_at": "admission"})
    requests = recording.requests
    assert requests["outcome"].tolist() == [MISS, DELAYED_HIT, MISS, HIT]
    assert requests["tier"].tolist() == [FROM_STORAGE] * 3 + [FROM_GPU]
    assert (requests["load_wait_s"] / D).tolist() == [6, 6, 6, 0]
    assert (requests["load_queue_s"] / D).tolist() == [0, 0, 0, 0]
    assert (requests["first_token_s"] / D).tolist() == [7, 7, 7, 14]
