"""What few slow requests wait for: it takes no large share of the time, and decides a tail all the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import samples

import loraplan
from reports.answers.limits import KV_LINK, Evidence, limits
from reports.text.limit_text import limit_line, limit_sentence, remedy_words
from sim.results.model import Capacity, Impact, MemoryUse, Setup, from_plain
from sim.results.point import Metric, Point, SliceResult
from sim.results.run_directory.headroom_record import Headroom
from sim.results.verdict import is_overloaded, strained
from sim.spec.scenario_file import load_scenario
from sim.studies.design import setup_of
from sim.studies.run.answer import answer
from sim.world.build import build_world


def quiet(values: dict[str, float], capacity: dict[str, dict[str, Any]], **stages: float) -> Point:
    """Return a point of a batching replica where nothing takes a large share of the time."""
    parts = {"loader": {"utilization": 0.1}, "compute": {"utilization": 0.4}, "seats": {"blocked_share": 0.0}}
    point = samples.make_point(p99=1.0, miss=0.2, fixed=False, breakdown={"decode_s": 2.0, **stages})
    point = replace(point, setup=Setup("vllm-0.33"))
    metrics = point.metrics | {name: Metric(value, unit="s") for name, value in values.items()}
    return replace(point, metrics=metrics, capacity=from_plain(Capacity, parts | capacity))


BLOCKING = {"loader": {"utilization": 0.1, "blocks_steps": True}}
SELDOM = {"loader": {"utilization": 0.005, "blocks_steps": True}}
SLOTS = {"slots": {"blocked_share": 0.004, "slots": 8}}


@pytest.mark.parametrize(
    ("values", "capacity", "stages", "missed", "name", "remedy"),
    [
        ({"queue_p99_s": 0.9}, SLOTS, {}, "ttft_p99_s", "slots", "add GPU slots"),
        ({"queue_p99_s": 0.1}, SLOTS, {}, "ttft_p99_s", "none", "add replicas"),
        ({"queue_p99_s": 0.9}, SLOTS | {"compute": {"utilization": 0.95}}, {}, "ttft_p99_s", "none", "add replicas"),
        (
            {"queue_p99_s": 0.9},
            {"compute": {"utilization": 0.95}, "slots": {**SLOTS["slots"], "blocked_share": 0.009}},
            {},
            "ttft_p99_s",
            "slots",
            "add GPU slots",
        ),
        ({"queue_p99_s": 0.9}, SLOTS, {}, "ttft_mean_s", "none", "add replicas"),
        (  # most wait for the busy GPU, and few for a slot
            {"queue_p99_s": 0.9, "queue_p50_s": 0.04, "ttft_p50_s": 0.1},
            {"compute": {"utilization": 0.95}, "slots": {**SLOTS["slots"], "blocked_share": 0.009}},
            {},
            "ttft_p99_s",
            "compute",
            "add replicas",
        ),
        ({"ttft_p95_s": 0.9}, {}, {"load_s": 0.08}, "ttft_p95_s", "loader", "keep more copies in host memory"),
        ({"ttft_p95_s": 0.9}, {}, {"load_s": 0.02}, "ttft_p95_s", "none", "add replicas"),
        ({"ttft_p95_s": 0.9}, BLOCKING, {"load_s": 0.02}, "ttft_p95_s", "loader", "keep more copies"),
        ({"ttft_mean_s": 0.5}, {}, {"load_s": 0.08}, "ttft_p95_s", "none", "add replicas"),  # not known
        ({"ttft_mean_s": 0.12}, {}, {"load_s": 0.08}, "ttft_mean_s", "loader", "keep more copies in host memory"),
        ({"ttft_mean_s": 0.12}, {}, {"load_s": 0.08}, "ttft_p50_s", "none", "add replicas"),  # few requests load
        ({"ttft_mean_s": 0.12}, {}, {"load_s": 0.08}, "e2e_mean_s", "none", "add replicas"),
        ({"itl_p99_s": 0.12, "itl_mean_s": 0.03}, {}, {"load_s": 0.02}, "itl_p99_s", "compute", "compute fewer tokens"),
        ({"itl_p99_s": 0.12, "itl_mean_s": 0.03}, BLOCKING, {"load_s": 0.01}, "itl_p99_s", "compute", "compute fewer"),
        (
            {"itl_p99_s": 0.12, "itl_mean_s": 0.03},
            BLOCKING,
            {"load_s": 0.02},
            "itl_p99_s",
            "loader",
            "keep more copies",
        ),
        ({"itl_p99_s": 0.12, "itl_mean_s": 0.03}, SELDOM, {"load_s": 0.02}, "itl_p99_s", "compute", "compute fewer"),
        ({"tpot_p99_s": 0.04}, BLOCKING, {"load_s": 0.02}, "tpot_p99_s", "loader", "keep more copies"),
        ({"tpot_p99_s": 0.04}, SELDOM, {"load_s": 0.02}, "tpot_p99_s", "compute", "compute fewer"),
        ({"tpot_p99_s": 0.03}, SELDOM, {"load_s": 0.02}, "tpot_p99_s", "none", "add replicas"),  # the mean is 0.021
        ({"itl_p99_s": 0.05, "itl_mean_s": 0.03}, {}, {}, "itl_p99_s", "none", "add replicas"),
    ],
)
def test_a_missed_tail_is_traced_to_what_its_requests_wait_for(
    values: dict[str, float],
    capacity: dict[str, dict[str, Any]],
    stages: dict[str, float],
    missed: str,
    name: str,
    remedy: str,
) -> None:
    point = quiet(values, capacity, **stages)
    assert limits(point)[0].name == "none"
    (limit,) = limits(point, [missed])
    assert limit.name == name
    assert remedy_words(limit, point).startswith(remedy)


def test_a_busy_gpu_is_not_why_first_tokens_are_late_that_wait_for_loads() -> None:
    """The median waits little, and 30 % of that in a queue; the mean and the p99 wait for adapters."""
    values = {"queue_p50_s": 0.03, "ttft_p50_s": 0.07, "ttft_mean_s": 0.6, "ttft_p99_s": 6.0}
    point = quiet(values, {"compute": {"utilization": 1.0}}, loader_queue_s=0.44, load_s=0.1, queue_s=0.02)
    assert [limits(point, [term])[0].name for term in ("ttft_p50_s", "ttft_mean_s", "ttft_p99_s")] == [
        "compute",
        "loader",
        "loader",
    ]


def test_a_long_wait_of_few_is_not_called_none() -> None:
    few = limit_line(quiet({"queue_p99_s": 0.9}, {}), ["ttft_p99_s"])
    assert few.startswith(
        "Nothing stands out today: one request in a hundred waits 900 ms or longer, though 100 % of the mean"
    )
    short = quiet({"queue_p99_s": 0.1}, {})
    others = limit_sentence(limits(short)[0], short)
    assert others.startswith("Few requests wait long: 100 % of the mean latency "), "one in a thousand may"
    loads = quiet({"ttft_p95_s": 0.9}, {}, load_s=0.08)
    said = limit_line(loads, ["ttft_p95_s"])
    assert said == "Loader: 20.2 % of requests wait for their adapter to load, 396 ms on average."


def test_with_prompts_in_steps_of_their_own_smaller_steps_are_no_remedy() -> None:
    point = replace(quiet({"itl_p99_s": 0.12, "itl_mean_s": 0.03}, {}), setup=Setup("sglang"))
    (limit,) = limits(point, ["itl_p99_s"])
    assert remedy_words(limit, point) == "add replicas (fleet.replicas)"


def test_remedies_name_the_keys_of_caches_by_size() -> None:
    def remedies(adapters: int, slots: int | None) -> list[str]:
        point = quiet({}, SLOTS | {"slots": {"blocked_share": 0.2}, "kv": {"blocked_share": 0.1}})
        memory = MemoryUse(1, 16, 5, slots, adapters, 1000, 40, 8, 1)
        point = replace(point, setup=Setup("tensorrt-llm", memory=memory))
        return [remedy_words(limit, point) for limit in limits(point)]

    counted, by_size = remedies(8, 8), remedies(8, None)
    assert counted[0] == "add GPU slots (cache.gpu.slots) or replicas (fleet.replicas)"
    assert by_size == [
        "give adapters more GPU memory (cache.gpu.size), or add replicas (fleet.replicas)",
        "add replicas (fleet.replicas), or try less GPU memory for adapters (cache.gpu.size), which the KV cache gets",
    ]
    assert remedies(0, None)[0] == counted[0], "adapters take memory of the KV cache"


def test_kv_offload_is_named_where_prompts_come_back() -> None:
    def remedy(hits: float, engine: str, **values: float) -> str:
        point = quiet({"prefix_hit_ratio": hits, **values}, {"kv": {"blocked_share": 0.1}})
        return remedy_words(limits(point)[0], replace(point, setup=Setup(engine)))

    few = "add replicas (fleet.replicas)"
    assert remedy(0.3, "vllm") == f"{few}, or try KV offload (fleet.kv_offload)"
    assert remedy(0.3, "sglang") == few == remedy(0.001, "vllm")
    assert remedy(0.3, "vLLM 0.33") == remedy(0.3, "vllm")
    assert remedy(0.3, "vllm-0.8") == few, "its offloaded blocks are not simulated"
    assert remedy(0.3, "vllm", host_prefix_hit_ratio=0.1) == few, "it is there"


def test_an_autoscaler_gets_more_replicas_by_its_own_keys() -> None:
    point = quiet({"mean_replicas": 1.9}, {"slots": {"blocked_share": 0.2, "slots": 8}})
    said = remedy_words(limits(point)[0], point)
    assert said == "add GPU slots (cache.gpu.slots) or replicas (fleet.autoscale: a larger max, or a lower target)"


def test_a_remedy_names_the_pool_whose_first_tokens_are_late() -> None:
    def pool(name: str, ttft_s: float) -> SliceResult:
        return SliceResult(name, {"requests": 9}, {"ttft_mean_s": Metric(ttft_s)})

    point = quiet({"ttft_mean_s": 0.5}, {"slots": {"blocked_share": 0.2}})
    in_keys = "add GPU slots (fleet.pools.big.cache.gpu.slots) or replicas (fleet.pools.big.replicas)"
    for other_s, said in ((0.1, in_keys), (0.9, "add GPU slots or replicas")):
        both = replace(point, pools=[pool("big", 0.9), pool("small", other_s)])
        assert remedy_words(limits(both)[0], both) == said
        turns = replace(both, setup=Setup("vllm-0.33", by_load="least-loaded"))
        found = remedy_words(limits(turns)[0], turns)
        first = "send faster pools more requests (router.policy: least-loaded), or "
        assert found == (f"{first}{said}" if said == in_keys else said)


def test_a_router_that_goes_by_load_is_named_where_pools_are_unequal_and_all_may_serve_all() -> None:
    def named(*values: str) -> str | None:
        return setup_of(build_world(load_scenario("two-cards", ["sweep=null", *values]).scenario)).by_load

    assert named("router={policy: round-robin}") == named("router={policy: random}") == "least-loaded"
    assert named("router={policy: hash}") is None
    kinds = ("adapters.mix=[{share: 50%, rank: 8}, {share: 50%, rank: 16}]", "adapters.rank=null")
    assert named("router={policy: round-robin}", *kinds) == "least-loaded"
    assert named("router={policy: round-robin}", *kinds, "fleet.pools.small.serves={kinds: [1]}") is None


def test_a_queue_that_is_a_wait_for_loads_is_not_set_against_them() -> None:
    point = quiet({"queue_p99_s": 0.9}, {}, load_s=3.0)
    assert limit_line(point) == "None today: 60 % of the mean latency is loading adapters."


def test_where_gaps_decide_the_answer_is_about_steps_whatever_waits_in_queues() -> None:
    full = SLOTS | {"slots": {"blocked_share": 0.4, "slots": 8}}
    long, even = {"itl_p99_s": 0.12, "itl_mean_s": 0.03}, {"itl_p99_s": 0.05, "itl_mean_s": 0.03}
    assert [each.name for each in limits(quiet(long, full), ["itl_p99_s", "ttft_p99_s"])] == ["compute", "slots"]
    assert [each.name for each in limits(quiet(even, full), ["tpot_mean_s"])] == ["none", "slots"]
    assert [each.name for each in limits(quiet(long, full), ["ttft_p99_s"])] == ["slots"]
    # With more slots, more sequences run at once, and gaps grow.
    assert [each.name for each in limits(quiet(long, full), ["ttft_p99_s", "itl_p99_s"])] == ["compute", "slots"]
    waits = full | {"loader": {"utilization": 0.99}}
    assert limits(quiet(long, waits), ["ttft_p99_s", "itl_p99_s"])[0].name == "loader"
    over = quiet(even, full | {"compute": {"utilization": 1.0, "offered_load": 1.3}})
    assert [each.name for each in limits(over, ["tpot_mean_s"])] == ["compute", "slots"]
    busy = quiet(even, {"compute": {"utilization": 1.0}}, queue_s=3.0)
    assert [each.name for each in limits(busy, ["tpot_mean_s"])] == ["compute"], "the same for a wait for steps"
    loads = {"loader": {"utilization": 0.8}, "slots": {"blocked_share": 0.0, "slots": 8}}
    for blocks, names in ((False, ["none", "loader"]), (True, ["loader"])):
        loading = quiet(even, loads | {"loader": {"utilization": 0.8, "blocks_steps": blocks}})
        assert [each.name for each in limits(loading, ["tpot_mean_s"])] == names
    uneven = quiet(even | {"replica_load_skew": 1.9}, {})
    assert [each.name for each in limits(uneven, ["tpot_mean_s", "ttft_p99_s"])] == ["none"]
    certain = {"ttft_p99_s": Metric(1.5, 0.5, 2.5, "s"), "itl_p99_s": Metric(0.12, 0.119, 0.121, "s")}
    point = quiet({}, {})
    point = replace(point, metrics=point.metrics | certain)
    terms = {"ttft_p99_s": 1.0, "itl_p99_s": 0.1}
    assert strained(point, terms) == ["itl_p99_s", "ttft_p99_s"], "one is certainly missed"
    point.metrics["ttft_p99_s"] = Metric(9.0, 8.5, 9.5, "s")
    assert strained(point, terms) == ["ttft_p99_s", "itl_p99_s"], "both are, one by more"


@pytest.mark.parametrize(
    ("queue_s", "hand_over_s", "busy", "short"),
    [
        (9.0, 2.0, 1.0, "fleet.pools.prompts.replicas or fleet.pools.more.replicas"),
        (9.0, 2.0, 0.2, "fleet.pools.answers.replicas"),  # idle replicas hold blocks that wait for decode
        (3.5, 2.0, 1.0, "fleet.pools.answers.replicas"),
        (3.5, 0.1, 1.0, "fleet.pools.prompts.replicas or fleet.pools.more.replicas"),
        (2.0, 0.1, 1.0, "fleet.pools.answers.replicas"),
    ],
)
def test_with_prefill_and_decode_apart_the_pools_that_requests_wait_for_get_replicas(
    queue_s: float, hand_over_s: float, busy: float, short: str
) -> None:
    stages = {"queue_s": queue_s, "hand_over_s": hand_over_s, "decode_queue_s": 3.0}
    full = {"compute": {"utilization": 1.0, "offered_load": 1.3}}
    point = quiet({"itl_p99_s": 0.12, "itl_mean_s": 0.03}, full, **stages)
    roles = {"prompts": ("prefill", busy), "answers": ("decode", 1.0), "more": ("prefill", 0.0)}
    pools = [SliceResult(name, {"role": role, "gpu_utilization": use}, {}) for name, (role, use) in roles.items()]
    point = replace(point, pools=pools)
    (limit,) = limits(point, ["ttft_p99_s"])
    assert remedy_words(limit, point) == f"add replicas ({short})"
    assert limits(point, ["itl_p99_s"])[0].evidence is Evidence.COMPUTE_OVERLOADED, "no step has prompts and answers"


def test_a_link_that_is_too_slow_for_the_kv_is_an_overload() -> None:
    values = {"fleet.kv_transfer.bandwidth": "0.5 GB/s", "workload.requests": 1200, "run.replications": 1}
    (point,) = loraplan.run("prefill-decode", values, jobs=1).data.points
    assert is_overloaded(point), "prompts are admitted, and wait for their KV"
    assert limits(point, ["ttft_p99_s"])[0].name == KV_LINK


def test_a_read_of_kv_is_named_where_a_late_first_token_mostly_waits_for_it() -> None:
    point = quiet({}, {}, queue_s=0.1, read_s=0.8)
    linked = replace(
        point, capacity=replace(point.capacity, link=0.75), pools=[SliceResult("a", {"role": "decode"}, {})]
    )
    (limit,) = limits(linked, ["ttft_p99_s"])
    assert remedy_words(limit, linked) == "raise fleet.kv_transfer.bandwidth, or add replicas (fleet.pools.a.replicas)"
    assert limit_sentence(limit, linked).endswith("takes 88.9 % of the mean TTFT: 800 ms.")
    assert limits(linked, ["tpot_p99_s"])[0].name == "none"
    assert limits(linked, ["e2e_p99_s"])[0].name == "none", "most of that is decoding"
    assert limits(replace(linked, breakdown=point.breakdown | {"read_s": 0.05}), ["ttft_p99_s"])[0].name == "none"


def test_a_queue_that_is_most_of_the_latency_is_named_though_it_is_seldom_there() -> None:
    (limit,) = limits(quiet({}, {}, queue_s=3.0))
    assert limit_sentence(limit, quiet({}, {})) == (
        "60 % of the mean latency is queueing, though replicas are busy only 40 % of the time."
    )
    for term in ("miss_ratio", "tpot_p99_s"):
        assert limits(quiet({}, {}, queue_s=3.0), [term])[0].evidence is not Evidence.QUEUE, "no wait is in these"
    assert limits(quiet({}, SLOTS, queue_s=3.0))[0].name == "slots"
    assert limits(quiet({}, SLOTS, queue_s=1.9))[0].name == "none"
    assert limit_sentence(limits(quiet({}, {}, queue_s=2.0))[0], quiet({}, {}, queue_s=2.1)).startswith(
        "Nothing stands"
    )
    uneven = quiet({"replica_load_skew": 1.9}, {}, queue_s=3.0)
    assert [each.name for each in limits(uneven, ["ttft_p99_s"])] == ["router", "compute"]


def test_a_router_is_named_before_replicas_where_one_of_them_gets_most() -> None:
    point = quiet({"queue_p99_s": 0.9, "replica_load_skew": 1.9}, {})
    (limit,) = limits(point, ["ttft_p99_s"])
    assert remedy_words(limit, point).startswith(
        "spread requests more evenly (another router.policy, or router.bound: 1.25 where"
    )
    said = limit_line(point, ["ttft_p99_s"])
    assert said == "Router: the busiest replica gets 1.9 times as many requests as replicas do on average."
    busy = quiet({"replica_load_skew": 1.9}, {"compute": {"utilization": 0.95}}, queue_s=1.0)
    assert [each.name for each in limits(busy, ["ttft_p99_s"])] == ["router", "compute"]
    assert [each.name for each in limits(busy)] == ["compute"], "nothing is missed"
    for other in (
        quiet({"replica_load_skew": 1.2}, {}),
        quiet({"replica_load_skew": 1.9, "replica_seconds": 9.0}, {}),
        quiet({"replica_load_skew": 1.9}, {"slots": {"blocked_share": 0.2, "slots": 8}}),
        replace(point, impact=Impact()),
    ):
        assert "router" not in [each.name for each in limits(other, ["ttft_p99_s"])]
    assert limits(point, ["itl_p99_s"])[0].name != "router", "gaps are long where steps are"


def test_more_of_what_nothing_waits_for_is_no_remedy() -> None:
    point, never = quiet({"tpot_p99_s": 0.03}, {}), Headroom("never", term="e2e_p99_s")
    missed = {"e2e_p99_s": 0.1}
    said = "Relax the target of p99 E2E (missed even with a fraction of the traffic)"
    said += ", or shorten answers, or use faster GPUs."
    assert answer(point, missed, headroom=never).setting == said
    assert answer(point, missed, headroom=Headroom("found", 0.5)).setting.startswith(
        "Add replicas (fleet.replicas); loraplan plan finds how many"
    )
    assert answer(point, {"miss_ratio": 0.1}, headroom=never).setting.startswith("Add GPU slots")
    long, busy = {"itl_p99_s": 0.12, "itl_mean_s": 0.03}, {"compute": {"utilization": 1.0, "offered_load": 1.3}}
    alone, above = quiet(long, {}), {"itl_p99_s": 0.029}
    assert answer(alone, {"itl_p99_s": 0.05}).setting.startswith("Compute fewer tokens in a step")
    assert answer(alone, above).setting.startswith("Add replicas"), "the mean gap is longer than that"
    relaxed = answer(alone, above, headroom=Headroom("never", term="itl_p99_s")).setting
    assert relaxed.startswith("Relax the target of p99 ITL")
    loading = {"loader": {"utilization": 1.0, "offered_load": 1.3, "blocks_steps": False}}
    for over, grows in ((busy, Evidence.COMPUTE_OVERLOADED), (loading, Evidence.LOADER_OVERLOADED)):
        first, *_ = limits(quiet(long, over), ["itl_p99_s"])
        assert first.evidence is grows, "small steps serve no more"


def test_loads_are_first_only_where_far_more_would_be_served_without_them() -> None:
    def first(arrivals: float, **loader: Any) -> tuple[str, str]:
        parts = {"loader": {"utilization": 1.0, **loader}, "compute": {"utilization": 1.0, "offered_load": arrivals}}
        point = quiet({}, parts | {"slots": {"blocked_share": 0.4, "slots": 8}})
        limit, *_ = limits(point, ["ttft_p99_s"])
        return limit.name, remedy_words(limit, point)

    copies, slots = "keep more copies in host memory (cache.host.slots)", "add GPU slots (cache.gpu.slots)"
    blocking = {"storage": 0.5, "blocks_steps": True}
    assert first(2.0, **blocking) == ("loader", copies), "without loads, twice as much is served"
    assert first(5.0, **blocking) == ("slots", f"{slots} or replicas (fleet.replicas)")
    assert first(2.0, offered_load=2.0)[0] == "loader"
    assert first(5.0, offered_load=2.0)[0] == "slots"
