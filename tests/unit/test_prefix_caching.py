"""Prefix caching in a fleet: what requests find, what they save, what is refused, and where a router sends them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from catalogue_names import ALWAYS_THERE
from strategies import run

from sim.policies.routing import RouterContext, View, make_router
from sim.results.metrics import measure
from sim.results.records import COMPLETED, OLD_PREFIX
from sim.spec.scenario import Scenario
from sim.studies.evaluate import facts_of
from sim.studies.plan.what_if import Change, changes
from sim.traffic.request import Request
from sim.world.build import build_world
from sim.world.replication import simulate
from sim.world.world import World

BLOCK = 16
HISTORY = {
    "requests": 4,
    "gap_median": "20 s",
    "gap_sigma": 1,
    "gap_max": "2 min",
    "history": True,
    "max_context": 3000,
}
PREFIX = {"shared_by": "adapter", "texts": 2, "tokens": {"law": "uniform", "low": 5, "high": 400}}
TOKENS = {
    "prompt": {"law": "lognormal", "mean": 60, "p99": 300},
    "output": {"law": "lognormal", "mean": 30, "p99": 150},
}


def world(workload: dict[str, Any], requests: int = 1500, rate: str = "4/s", **sections: Any) -> World:
    fleet = {"engine": "vllm-0.32", **sections.pop("fleet", {})}
    data = {
        "schema_version": 1,
        "name": "test",
        "workload": {
            "requests": requests,
            "arrivals": {"process": "poisson", "rate": rate},
            "popularity": {"law": "zipf", "exponent": 0.9},
            "tokens": TOKENS,
            **workload,
        },
        "adapters": {"count": 12, "rank": 16},
        "cache": {"gpu": {"slots": 12}},
        "fleet": fleet,
        "run": {"replications": 1, "warmup": 0.0},
        **sections,
    }
    return build_world(Scenario.model_validate(data))


def counted_by_hand(built: World) -> list[int]:
    """Return the cached tokens of each request, if each has ended before the next one comes and nothing is evicted.

    Every full block is known by its adapter and the keys of all its tokens, one by one.
    """
    known: set[tuple[Any, ...]] = set()
    found = []
    index = 0
    for chunk in built.traffic.chunks(0):
        columns = zip(
            chunk.adapter.tolist(),
            chunk.prompt_tokens.tolist(),
            chunk.output_tokens.tolist(),
            chunk.text.of_requests(),
            strict=True,
        )
        for adapter, prompt, output, (runs, rest) in columns:
            own = ("own", index) if rest < 0 else ("text", rest)
            tokens: list[Any] = []
            for end, key in runs:
                tokens += [("text", key)] * (end - len(tokens))
            tokens += [own] * (prompt + output - 1 - len(tokens))
            blocks = [
                (adapter, place, *tokens[place * BLOCK : (place + 1) * BLOCK]) for place in range(len(tokens) // BLOCK)
            ]
            hits = 0
            while hits < (prompt - 1) // BLOCK and blocks[hits] in known:
                hits += 1
            found.append(hits * BLOCK)
            known.update(blocks)
            index += 1
    return found


@pytest.mark.parametrize(
    "workload",
    [{"prefix": PREFIX}, {"sessions": HISTORY}, {"prefix": {**PREFIX, "shared_by": "all"}, "sessions": HISTORY}],
    ids=["prefix", "history", "both"],
)
def test_with_memory_without_end_requests_find_what_a_hand_count_says(workload: dict[str, Any]) -> None:
    """One request at a time, and more KV memory than all of them need."""
    slow = {**workload, "tokens": {**TOKENS, "output": {"law": "geometric", "mean": 20, "max": 60}}}
    if "sessions" in slow:
        slow["sessions"] = {**HISTORY, "gap_median": "20 h", "gap_max": "100 h"}
    built = world(slow, 400, rate="4/h", fleet={"kv_tokens": 10_000_000}, storage={"loaders": 1})
    recording = run(built)
    arrival, finished = recording.requests["arrival_s"], recording.requests["finished_s"]
    together = np.flatnonzero(np.asarray(finished[:-1] > arrival[1:]))
    assert len(together) < 3, "nearly all requests come alone"
    expected = counted_by_hand(built)
    assert recording.requests["cached_tokens"].tolist() == expected
    assert recording.prefix_blocks_evicted == 0
    assert 0.2 < sum(expected) / recording.requests["prompt_tokens"].sum() < 0.95


def test_a_hit_saves_the_time_of_its_tokens() -> None:
    """Alone in the batch, a request with a long cached prefix has its first token sooner than the first of its text."""
    law = {"prefix": {"shared_by": "all", "tokens": {"law": "fixed", "value": 1600}}}
    tokens = {"prompt": {"law": "fixed", "value": 100}, "output": {"law": "fixed", "value": 5}}
    built = world({**law, "tokens": tokens}, 60, rate="1/h", adapters={"count": 1, "rank": 16})
    requests = run(built).requests
    assert requests["cached_tokens"].tolist() == [0] + [1600] * 59
    ttft = np.asarray(requests["first_token_s"]) - np.asarray(requests["admitted_s"])
    assert np.all(ttft[1:] < ttft[0] / 2)
    off = world({**law, "tokens": tokens}, 60, rate="1/h", fleet={"prefix_caching": False})
    slow = run(off).requests
    assert "cached_tokens" not in slow
    assert np.all(np.asarray(slow["first_token_s"] - slow["admitted_s"])[1:] > ttft[1:] * 2)


def test_off_is_the_same_as_requests_of_that_length_that_share_nothing(tmp_path: Path) -> None:
    shared = world({"prefix": PREFIX, "sessions": HISTORY}, 800, fleet={"prefix_caching": False})
    (chunk,) = shared.traffic.chunks(0)
    begin_s = chunk.arrival_s[0]
    columns = (chunk.arrival_s - begin_s, chunk.adapter, chunk.prompt_tokens, chunk.output_tokens)
    rows = [",".join(map(str, row)) for row in zip(*(column.tolist() for column in columns), strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["timestamp_s,adapter_id,input_tokens,output_tokens", *rows]))
    data = shared.scenario.model_dump(exclude_unset=True)
    data["workload"] = {"trace": {"file": str(tmp_path / "t.csv")}}
    one, other = run(shared).requests, run(build_world(Scenario.model_validate(data))).requests
    np.testing.assert_array_equal(one["prompt_tokens"], other["prompt_tokens"])
    np.testing.assert_allclose(one["finished_s"] - begin_s, other["finished_s"], rtol=1e-9)


def test_more_requests_find_their_prefix_the_more_memory_there_is() -> None:
    ratios, evicted = [], []
    for tokens in (20_000, 60_000, 2_000_000):
        recording = run(world({"prefix": PREFIX, "sessions": HISTORY}, 4000, fleet={"kv_tokens": tokens}))
        assert np.all(recording.requests["status"] == COMPLETED)
        requests = recording.requests
        cached, prompt = np.asarray(requests["cached_tokens"]), np.asarray(requests["prompt_tokens"])
        assert np.all(cached < prompt)
        assert np.all(cached % BLOCK == 0)
        ratios.append(cached.sum() / prompt.sum())
        evicted.append(recording.prefix_blocks_evicted)
    assert ratios == sorted(ratios)
    assert ratios[0] < ratios[2] - 0.1
    assert evicted[0] > evicted[1] > evicted[2] == 0


def test_engines_that_have_a_prefix_cache_use_it() -> None:
    for engine, most in (("vllm-0.8", 0.9), ("vllm-0.32", 0.9), ("sglang", 1.0)):
        requests = run(world({"prefix": PREFIX}, 500, fleet={"engine": engine})).requests
        assert 0.4 < requests["cached_tokens"].sum() / requests["prompt_tokens"].sum() < most
    for engine in ("continuous", "s-lora", "lorax", "tensorrt-llm"):
        fleet = {"engine": engine}
        cache: dict[str, Any] = {"gpu": {"slots": 12}} if engine == "continuous" else {}
        built = world({"prefix": PREFIX}, 200, fleet=fleet, cache=cache)
        assert "cached_tokens" not in run(built).requests
        assert (
            "requests share text, but fleet.prefix_caching is off: every prompt is computed as a whole" in built.notes
        )


def test_a_crash_empties_the_cache() -> None:
    law = {"prefix": {"shared_by": "all", "tokens": {"law": "fixed", "value": 160}}}
    crash = {"kind": "crash", "at": "30 min", "replica": 0, "down": "1 min"}
    fields = {"adapters": {"count": 1, "rank": 16}, "faults": [crash]}
    requests = run(world(law, 60, rate="1/min", **fields)).requests
    admitted, cached = np.asarray(requests["admitted_s"]), np.asarray(requests["cached_tokens"])
    before, after = cached[admitted < 1800], cached[admitted > 1860]
    assert before.tolist() == [0] + [160] * (len(before) - 1)
    assert after.tolist() == [0] + [160] * (len(after) - 1)
    assert len(before) > 10 < len(after)


ONE_TEXT = {"prefix": {"shared_by": "all", "tokens": {"law": "fixed", "value": 160}}}
SWAP = {"strategy": "in-place", "at": "30 min"}


@pytest.mark.parametrize("strategy", ["in-place", "unload-then-load", "drain-then-swap", "new-name"])
def test_a_new_version_does_not_find_what_the_old_one_computed(strategy: str) -> None:
    """One request a minute for one adapter, always with the same system prompt."""
    fields = {"adapters": {"count": 1, "rank": 16}, "rollouts": [{"strategy": strategy, "at": "30 min"}]}
    requests = run(world(ONE_TEXT, 60, rate="1/min", **fields)).requests
    cached, version = np.asarray(requests["cached_tokens"]), np.asarray(requests["version"])
    for each in (1, 2):
        of_version = cached[version == each]
        assert of_version.tolist() == [0] + [160] * (len(of_version) - 1)
        assert len(of_version) > 10


def test_blocks_under_the_name_of_the_adapter_are_found_by_its_new_version() -> None:
    """With the fault named-prefixes, as long as they have not been evicted; and each such request is counted."""
    fields = {"adapters": {"count": 1, "rank": 16}, "rollouts": [SWAP], "faults": [{"kind": "named-prefixes"}]}
    requests = run(world(ONE_TEXT, 60, rate="1/min", **fields)).requests
    cached, version = np.asarray(requests["cached_tokens"]), np.asarray(requests["version"])
    assert cached.tolist() == [0] + [160] * 59, "the swap changes nothing in the cache"
    assert set(version.tolist()) == {1, 2}
    np.testing.assert_array_equal((np.asarray(requests["marks"]) & OLD_PREFIX) > 0, version == 2)

    own = {"prefix": {**PREFIX, "texts": 1}}
    many = {"rollouts": [{**SWAP, "at": "100 s", "adapter": 0}], "faults": [{"kind": "named-prefixes"}]}
    for tokens in (1500, 100_000):
        requests = run(world(own, 2000, fleet={"kv_tokens": tokens}, **many)).requests
        old = (np.asarray(requests["marks"]) & OLD_PREFIX) > 0
        assert not np.any(old & ((requests["adapter"] != 0) | (requests["version"] != 2)))
        assert np.all(np.asarray(requests["cached_tokens"])[old] > 0)
        new = (requests["adapter"] == 0) & (requests["version"] == 2) & (np.asarray(requests["admitted_s"]) > 110)
        if tokens == 100_000:
            assert np.all(old[new]), "its blocks are never evicted"
        else:
            last = np.flatnonzero(old).max(initial=0)
            assert np.sum(requests["cached_tokens"][last + 1 :][new[last + 1 :]] > 0) > 20, "of its own blocks"


def test_overwritten_files_leave_the_cache_as_it_is() -> None:
    """Nobody tells the engine, so a new version finds what the old one computed."""
    fields = {
        "adapters": {"count": 2, "rank": 16},
        "cache": {"gpu": {"slots": 1}, "host": {"slots": 1}},
        "rollouts": [{"strategy": "lazy-reread", "at": "30 min"}],
    }
    requests = run(world(ONE_TEXT, 120, rate="1/min", **fields)).requests
    assert set(np.asarray(requests["version"]).tolist()) == {1, 2}
    for adapter in (0, 1):
        found = np.asarray(requests["cached_tokens"])[requests["adapter"] == adapter]
        assert found.tolist() == [0] + [160] * (len(found) - 1)


# Router ---------------------------------------------------------------------------------------------------------------


def router_of(loads: list[int], bound: float | None = None) -> tuple[View, Any]:
    view = View(loads=loads, up=list(range(len(loads))))
    return view, make_router("affinity-prefix", RouterContext(view, len(loads), key=1, adapters=9, bound=bound))


def choose(view: View, router: Any, texts: list[int], adapter: int = 0, number: int = 0) -> int:
    view.texts = texts
    return int(router.choose(adapter, number))


def test_a_request_goes_where_its_longest_text_went_last() -> None:
    view, router = router_of([0, 5, 5])
    assert choose(view, router, [7, 1]) == 0, "the least loaded"
    view.loads = [9, 0, 5]
    assert choose(view, router, [7, 1]) == 0, "its conversation"
    assert choose(view, router, [8, 1]) == 0, "the same system prompt"
    assert choose(view, router, [8, 1], adapter=1) == 1, "the same text of another adapter is none"
    assert choose(view, router, [9, 2]) == 1
    assert choose(view, router, [7, 2]) == 0, "the longest comes first"
    assert choose(view, router, [6, 2]) == 0, "and takes the shorter ones along"
    view.up = [1, 2]
    assert choose(view, router, [7, 1]) == 1, "its replica is down"


def test_a_full_replica_is_skipped() -> None:
    view, router = router_of([0, 9, 9], bound=1.5)
    assert choose(view, router, [7, 1]) == 0
    view.loads = [9, 9, 0]
    assert choose(view, router, [7, 1]) == 0, "9 is below 1.5 times the mean of 19"
    view.loads = [10, 9, 0]
    assert choose(view, router, [7, 1]) == 2, "10 is not below 1.5 times the mean of 20"
    assert choose(view, router, [7, 1]) == 2, "and there it stays"


def test_requests_without_text_go_to_the_least_loaded_equally_often() -> None:
    view, router = router_of([1, 0, 0, 0])
    chosen = np.bincount([choose(view, router, [], number=number) for number in range(6000)], minlength=4)
    assert chosen[0] == 0
    np.testing.assert_allclose(chosen[1:], 2000, atol=4 * np.sqrt(6000 * 2 / 9))


def test_conversations_stay_on_a_replica_and_find_more() -> None:
    ratios = {}
    for policy in ("round-robin", "affinity-prefix"):
        built = world({"sessions": HISTORY}, 3000, rate="12/s", fleet={"replicas": 3}, router={"policy": policy})
        requests = run(built).requests
        session, replica = np.asarray(requests["session"]), np.asarray(requests["replica"])
        order = np.argsort(session, kind="stable")
        stays = [
            replica[one] == replica[other] for one, other in pairwise(order.tolist()) if session[one] == session[other]
        ]
        ratios[policy] = requests["cached_tokens"].sum() / requests["prompt_tokens"].sum(), np.mean(stays)
    assert ratios["affinity-prefix"][1] > 0.8
    assert ratios["round-robin"][1] < 0.5
    assert ratios["affinity-prefix"][0] > ratios["round-robin"][0] + 0.2


def test_a_router_of_ones_own_may_read_texts() -> None:
    seen: list[list[int]] = []

    class Reader:
        reads = frozenset({"texts"})

        def __init__(self, context: RouterContext) -> None:
            self._view = context.view

        def choose(self, adapter: int, number: int) -> int:
            seen.append(list(self._view.texts))
            return self._view.up[0]

    from sim.spec.policies import Given

    built = world({"prefix": PREFIX, "sessions": HISTORY}, 50, fleet={"replicas": 2})
    data = built.scenario.model_dump(exclude_unset=True) | {"router": {"policy": "reader"}}
    scenario = Scenario.model_validate(data, context=Given.of(None, {"reader": Reader}))
    run(build_world(scenario))
    expected = []
    for chunk in built.traffic.chunks(0):
        expected += [[rest, *(key for _, key in reversed(runs))] for runs, rest in chunk.text.of_requests()]
    assert seen == expected


def test_a_request_that_is_sent_again_shares_what_it_shared() -> None:
    request = Request(3, 0.0, 1, 100, 5)
    request.session, request.shared, request.text_key = 4, ((64, 9),), 17
    again = request.fresh_copy()
    assert (again.shared, again.text_key, again.cached_tokens) == (((64, 9),), 17, 0)


def test_metrics_are_those_of_the_request_rows() -> None:
    built = world({"prefix": PREFIX}, 3000)
    recording = simulate(built, 0, 10)
    metrics, _ = measure([recording], facts_of(built))
    rows = recording.requests
    cached, ttft = np.asarray(rows["cached_tokens"]), np.asarray(rows["first_token_s"] - rows["arrival_s"])
    assert metrics["prefix_hit_ratio"].value == pytest.approx(cached.sum() / rows["prompt_tokens"].sum(), rel=1e-12)
    assert metrics["prefix_blocks_evicted"].value == recording.prefix_blocks_evicted
    assert metrics["prefix_hit_ttft_mean_s"].value == pytest.approx(ttft[cached > 0].mean(), rel=1e-9)
    assert metrics["prefix_miss_ttft_mean_s"].value == pytest.approx(ttft[cached == 0].mean(), rel=1e-9)
    off = world({"prefix": PREFIX}, 300, fleet={"prefix_caching": False})
    found, _ = measure([simulate(off, 0, 10)], facts_of(off))
    assert list(found) == list(ALWAYS_THERE)


def fixed(tokens: int) -> dict[str, Any]:
    return {"law": "fixed", "value": tokens}


def test_texts_that_are_too_long_for_the_model_are_named() -> None:
    prefix = {"tokens": {"law": "uniform", "low": 10, "high": 5000}}
    built = world({"prefix": prefix}, fleet={"max_model_len": 4096})
    assert built.notes == (
        "workload.prefix.tokens goes up to 5,000, and fleet.max_model_len is 4,096: requests that begin with such a "
        "text are refused",
    )


@pytest.mark.parametrize(("prompt", "noted"), [(131_071, False), (131_072, True)])
def test_requests_beyond_the_context_of_the_model_are_named(prompt: int, noted: bool) -> None:
    """Llama-3.1-8B takes 131,072 tokens, prompt and answer together, unless ``max_model_len`` says less."""
    note = (
        "about 100.0% of requests have more than 131,072 tokens, the context of llama-3.1-8b: a server refuses them, "
        "and this run doesn't; set fleet.max_model_len=131072"
    )
    assert world({"tokens": {"prompt": fixed(prompt), "output": fixed(1)}}).notes == ((note,) if noted else ())
    half = {"prompt": {"law": "uniform", "low": 1, "high": 100}, "output": fixed(50)}
    assert world({"tokens": half}, fleet={"max_model_len": 100}).notes == (
        "about 50.0% of requests have more than 100 tokens, fleet.max_model_len: they are refused",
    )


@pytest.mark.parametrize(("most", "noted"), [(389, True), (390, False)])
def test_conversations_that_never_go_on_are_named(most: int, noted: bool) -> None:
    tokens = {"prompt": fixed(100), "output": fixed(20)}
    workload = {"prefix": {"tokens": fixed(150)}, "tokens": tokens, "sessions": {**HISTORY, "max_context": most}}
    built = world(workload, 300, rate="0.1/s")
    note = (
        "workload.sessions.max_context (389) is below a system prompt and two turns of median length (390 tokens): "
        "most conversations start over with their second turn, without history"
    )
    assert built.notes == ((note,) if noted else ())
    longest = max(chunk.prompt_tokens.max() for chunk in built.traffic.chunks(0))
    assert (longest == 250) == noted


def test_prefix_caching_that_changes_nothing_is_named_where_the_scenario_asks_for_it() -> None:
    note = (
        "fleet.prefix_caching changes nothing here, except for preempted requests: no two requests share text; give "
        "workload.prefix, workload.sessions.history, or a trace with prefix_id or hash_ids"
    )
    assert world({}).notes == (), "it is on by default"
    assert world({}, sweep={"fleet.prefix_caching": [False, True]}).notes == (note,)
    assert note in world({}, fleet={"engine": "continuous", "prefix_caching": True}).notes
    assert note not in world({"prefix": PREFIX}, fleet={"engine": "continuous", "prefix_caching": True}).notes


def test_adapters_share_what_comes_before_their_invocation() -> None:
    """Activated LoRA: one text for all, and only the last 40 tokens of each prompt are an adapter's own."""
    workload = {
        "prefix": {"shared_by": "all", "tokens": fixed(1600)},
        "tokens": {"prompt": fixed(100), "output": fixed(5)},
    }
    kinds = [{"share": 0.5, "kind": "lora"}, {"share": 0.5, "kind": "base"}]
    found = {}
    for invocation in (None, 40, 140):
        adapters = {"count": 12, "mix": kinds} | ({"invocation_tokens": invocation} if invocation else {})
        found[invocation] = run(world(workload, 100, rate="1/h", adapters=adapters)).requests["cached_tokens"].tolist()
    assert set(found[None]) == {0, 1600}
    assert found[None].count(0) > 5, "each adapter computes the text itself, and so does the base model"
    assert found[40] == [0] + [1600] * 99
    if_adapter = {0, 1552, 1600}  # (1700 - 140) // 16 blocks of an adapter's prompt are those of the base model
    assert set(found[140]) <= if_adapter
    assert found[140].count(1552) >= 1


def test_activated_lora_without_effect_is_named() -> None:
    adapters = {"count": 12, "rank": 16, "invocation_tokens": 40}
    assert world({}, adapters=adapters).notes == (
        "adapters.invocation_tokens changes nothing here: no two requests share text",
    )
    off = world({"prefix": PREFIX}, adapters=adapters, fleet={"prefix_caching": False}).notes
    assert off[1] == "adapters.invocation_tokens changes nothing here: fleet.prefix_caching is off"
    assert world({"prefix": PREFIX}, adapters=adapters).notes == ()


def what_if_rows(built: World) -> list[Change]:
    return [change for change in changes(built) if change.group == "prefix cache"]


def test_a_what_if_turns_prefix_caching_off_or_on_where_requests_share_text() -> None:
    on, off = (world({"prefix": PREFIX}, fleet={"prefix_caching": caching}) for caching in (True, False))
    assert what_if_rows(on) == [Change("prefix cache", "no prefix caching", {"fleet.prefix_caching": False})]
    assert what_if_rows(off) == [Change("prefix cache", "prefix caching", {"fleet.prefix_caching": True})]
    assert what_if_rows(world({})) == [], "it would change nothing"
    lorax = world({"prefix": PREFIX}, fleet={"engine": "lorax"}, cache={"gpu": {"size": "2 GB"}})
    assert (
        what_if_rows(lorax)[0].refused == "LoRAX has a prefix cache, off by default, but its rules are not known here"
    )
    by_text = world({"prefix": PREFIX}, fleet={"replicas": 2}, router={"policy": "affinity-prefix"})
    assert what_if_rows(by_text)[0].note == "the router still goes by shared text"
