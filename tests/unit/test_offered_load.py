"""What is asked of the loaders, over what they can do: the number behind headroom, on recordings counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from strategies import build
from test_change_metrics import facts, recording

from sim.results.point import Point
from sim.results.point_summary import summarise
from sim.results.records import Recording
from sim.results.sample_data import ScenarioFacts
from sim.studies.evaluate import evaluate_scenario, facts_of
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


def test_what_is_asked_is_the_seconds_of_loads_over_those_of_the_loaders() -> None:
    ten = with_loads(10, 0.5, misses=10, delayed_hits=20)
    assert offered(ten) == pytest.approx(10 * 0.5 / MEASURED_S), "delayed hits ask for none"
    assert offered(ten, ten) == pytest.approx(offered(ten)), "two equal replications offer what one does"
    assert offered(ten, loaders=3, replicas=2) == pytest.approx(10 * 0.5 / (3 * 2 * MEASURED_S))
    assert offered(with_loads(10, 0.5, misses=10, delayed_hits=0, tier=FROM_HOST)) == 0.0
    # Four loads of 9 s keep the loader busy for all of 36 s: without its queue, delayed hits would be misses, too.
    assert offered(with_loads(4, 9.0, misses=4, delayed_hits=20)) == pytest.approx(24 * 9 / MEASURED_S)


def shared_loads(rate: str, adapters: int, requests: int) -> Point:
    return evaluate_scenario(
        build(
            workload={"requests": requests, "arrivals": {"process": "poisson", "rate": rate}},
            adapters={"count": adapters, "size": "1 MB"},
            fleet={"engine": "fixed", "service": "1 ms"},
            cache={"gpu": {"slots": 4}},
            storage={"load": {"law": "fixed", "value": "200 ms"}},
        )
    ).point


def test_a_full_loader_whose_loads_serve_many_is_not_overloaded() -> None:
    """Twenty adapters, at most one load of each in the queue: no request waits longer than 20 loads take, about 4 s."""
    bounded = shared_loads("20/s", 20, 8_000)
    assert bounded.capacity.loader.utilization > 0.98
    assert bounded.capacity.loader.offered_load == pytest.approx(0.98)
    assert bounded.value("ttft_p99_s") < 4.0
    endless = shared_loads("20/s", 100_000, 8_000)
    assert endless.capacity.loader.offered_load == pytest.approx(4.0, rel=0.1), "20/s of 200 ms on one loader"


def facts_of_eight_adapters(engine: str, **cache: dict[str, int]) -> ScenarioFacts:
    return facts_of(
        build_world(
            build(
                workload={"requests": 40, "arrivals": {"process": "poisson", "rate": "1/s"}},
                adapters={"count": 8},
                cache={"gpu": {"slots": 4}, **cache},
                fleet={"engine": engine},
            )
        )
    )


@pytest.mark.parametrize(
    ("engine", "blocks"),
    [("vllm", True), ("continuous", False), ("sglang", True), ("tensorrt-llm", True), ("lorax", False)],
)
def test_a_point_says_whether_its_loads_from_storage_block_steps(engine: str, blocks: bool) -> None:
    """TensorRT-LLM's loads block steps too, but only those from host memory, which is filled at arrival."""
    loads = with_loads(10, 0.5, misses=10, delayed_hits=0)
    point = summarise([loads], facts_of_eight_adapters(engine), {}, [])
    assert point.capacity.loader.blocks_steps == blocks
    assert point.capacity.to_json()["loader"]["blocks_steps"] == blocks


def test_a_point_says_whether_host_memory_has_room_for_all_adapters() -> None:
    assert not facts_of_eight_adapters("vllm").host_holds_all
    assert not facts_of_eight_adapters("vllm", host={"slots": 7}).host_holds_all
    assert facts_of_eight_adapters("vllm", host={"slots": 8}).host_holds_all
