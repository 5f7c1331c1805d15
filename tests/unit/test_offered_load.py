"""What is asked of the loaders, over what they can do: the number behind headroom, on recordings counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from strategies import build
from test_change_metrics import facts, recording

from sim.results.point_summary import summarise
from sim.results.records import Recording
from sim.studies.evaluate import facts_of
from sim.traffic.request import DELAYED_HIT, FROM_HOST, FROM_STORAGE, MISS
from sim.world.build import build_world

MEASURED_S = 36.0


def with_loads(count: int, seconds: float, misses: int, delayed_hits: int, tier: int = FROM_STORAGE) -> Recording:
    """Return forty requests of which the first measured ones miss or join a load; loads follow each other."""
    places = range(4, 4 + misses + delayed_hits)
    outcomes = dict(zip(places, [MISS] * misses + [DELAYED_HIT] * delayed_hits, strict=True))
    loads = [(4.0 + i * seconds, 0) for i in range(count)]
    one = recording(outcome=outcomes, tier=dict.fromkeys(places, tier), loads=loads, replica=np.zeros(40, dtype=int))
    one.loads["ended_s"] = one.loads["started_s"] + seconds
    one.loads["tier"] = np.full(count, float(tier))
    return one


def offered(*recordings: Recording, loaders: int = 1, replicas: int = 1) -> float | None:
    point = summarise(list(recordings), facts(loaders=loaders, replicas=replicas, strategies=()), {}, [])
    return point.capacity.loader.offered_load


def test_misses_ask_for_loads_and_delayed_hits_do_not() -> None:
    # Ten loads of 0.5 s each, in 36 s.
    assert offered(with_loads(10, 0.5, misses=10, delayed_hits=20)) == pytest.approx(10 * 0.5 / MEASURED_S)


def test_at_a_full_loader_delayed_hits_would_be_misses_without_its_queue() -> None:
    # Four loads of 9 s keep the loader busy for all of 36 s, and 24 requests want one.
    assert offered(with_loads(4, 9.0, misses=4, delayed_hits=20)) == pytest.approx(24 * 9 / MEASURED_S)


def test_more_loaders_can_do_more() -> None:
    one = with_loads(10, 0.5, misses=10, delayed_hits=0)
    assert offered(one, loaders=3, replicas=2) == pytest.approx(10 * 0.5 / (3 * 2 * MEASURED_S))
    assert offered(one, one) == pytest.approx(offered(one)), "two equal replications offer what one does"


def test_loads_from_host_memory_ask_nothing_of_the_loaders() -> None:
    assert offered(with_loads(10, 0.5, misses=10, delayed_hits=0, tier=FROM_HOST)) == 0.0


@pytest.mark.parametrize(
    ("engine", "blocks"),
    [("vllm", True), ("continuous", False), ("sglang", True), ("tensorrt-llm", True), ("lorax", False)],
)
def test_a_point_says_whether_its_loads_from_storage_block_steps(engine: str, blocks: bool) -> None:
    """TensorRT-LLM's loads block steps too, but only those from host memory, which is filled at arrival."""
    world = build_world(
        build(
            workload={"requests": 40, "arrivals": {"process": "poisson", "rate": "1/s"}},
            adapters={"count": 8},
            cache={"gpu": {"slots": 4}},
            fleet={"engine": engine},
        )
    )
    point = summarise([with_loads(10, 0.5, misses=10, delayed_hits=0)], facts_of(world), {}, [])
    assert point.capacity.loader.blocks_steps == blocks
    assert point.capacity.to_json()["loader"]["blocks_steps"] == blocks


@pytest.mark.parametrize(("host", "holds"), [(None, False), ({"slots": 7}, False), ({"slots": 8}, True)])
def test_a_point_says_whether_host_memory_has_room_for_all_adapters(host: dict[str, int] | None, holds: bool) -> None:
    cache = {"gpu": {"slots": 4}, **({} if host is None else {"host": host})}
    world = build_world(
        build(
            workload={"requests": 40, "arrivals": {"process": "poisson", "rate": "1/s"}},
            adapters={"count": 8},
            cache=cache,
            fleet={"engine": "vllm"},
        )
    )
    assert facts_of(world).host_holds_all is holds
