"""Routers as they are deployed, next to naive twins with real tokens, and in whole fleets."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from random import Random
from typing import Any

import numpy as np
import pytest
from prefix_traffic import Coming, Traffic
from strategies import build, run

from sim.policies.placement import Demand, Placement, PlacerContext, make_placer
from sim.policies.routing import RouterContext, View
from sim.policies.routing.dynamo import ActiveBlocks, Dynamo, KvIndex, choice_weights, worker_cost
from sim.policies.routing.dynamo_placement import adapter_name, copies_by_share, home_scores, placed_by_flow, rankings
from sim.policies.routing.gateways import ChunkTrie, by_match, cache_aware, match_percent
from sim.policies.routing.prefixes import SentText, TextTree, in_characters, text_of
from sim.results.records import COMPLETED, FAILED
from sim.spec.policies import ROUTERS
from sim.spec.sections.control_plane import Router as RouterSpec
from sim.world.build import build_world
from sim.world.replication import assemble

FLEETS = 200
DEPLOYED = [name for name in ROUTERS.names if name.startswith(("dynamo", "aibrix", "sglang", "production"))]

Tokens = tuple[int, ...]


def requests(seed: int) -> tuple[Random, int, list[Coming]]:
    """A fleet's luck, its replicas and its requests, which share beginnings and come in conversations."""
    luck = Random(seed)
    traffic = Traffic(luck, size=16, adapters=3, base_share=0.2, longest=luck.choice((20, 60)))
    return luck, luck.randint(1, 5), traffic.requests(luck.randint(5, 30), 10)


def prefixes(tokens: list[int], step: int) -> list[Tokens]:
    """All beginnings of a prompt with whole steps."""
    return [tuple(tokens[:end]) for end in range(step, len(tokens) + 1, step)]


def test_dynamo_counts_blocks_as_sets_of_real_blocks_do() -> None:
    """Blocks in flight, stored blocks with the quirk of the index, and so the costs and the choice."""
    for seed in range(FLEETS):
        luck, workers, coming = requests(seed)
        active, index = [ActiveBlocks(16) for _ in range(workers)], KvIndex(16)
        inside: list[tuple[int, Coming]] = []
        stored: list[set[tuple[int, Tokens]]] = [set() for _ in range(workers)]
        first: dict[tuple[int, Tokens], int] = {}
        for each in coming:
            request, text, tokens = each.request, text_of(each.request), each.job.prompt
            scope, blocks = request.adapter, [(request.adapter, block) for block in prefixes(tokens, 16)]
            found = index.matched(text, scope)
            costs = []
            for worker in range(workers):
                alone = Counter(
                    block
                    for on, other in inside
                    if on == worker
                    for block in ((other.request.adapter, prefix) for prefix in prefixes(other.job.prompt, 16))
                )
                needed = active[worker].needed(text, len(tokens), scope)
                assert needed == len(alone.keys() | set(blocks)), f"seed {seed}, request {request.index}"
                known = next((n for n, block in enumerate(blocks) if block not in stored[worker]), len(blocks))
                assert found.get(worker, 0) == known, f"seed {seed}, request {request.index}"
                costs.append(worker_cost(len(tokens), known, needed, active[worker].requests, block=16))
            weights = choice_weights(costs, 0.0)
            chosen = luck.choices(range(workers), weights)[0]
            known = found.get(chosen, 0)
            if not known or first[blocks[known - 1]] == chosen:
                for block in blocks[known:]:
                    stored[chosen].add(block)
                    first.setdefault(block, chosen)
            index.stored(text, len(tokens), chosen, scope)
            active[chosen].add(text, len(tokens), scope)
            inside.append((chosen, each))
            while inside and luck.random() < 0.4:
                worker, gone = inside.pop(luck.randrange(len(inside)))
                active[worker].remove(text_of(gone.request), len(gone.job.prompt), gone.request.adapter)
        for worker, each in inside:
            active[worker].remove(text_of(each.request), len(each.job.prompt), each.request.adapter)
        assert all((each.blocks, each.requests) == (0, 0) for each in active)


def test_sglangs_tree_is_one_owner_for_each_beginning() -> None:
    for seed in range(FLEETS):
        luck, workers, coming = requests(seed)
        tree, owners = TextTree(), dict[Tokens, int]()  # by beginning, who had it first
        for each in coming:
            tokens = each.job.prompt
            loads, up = (
                [luck.choice((0, 3, 90)) for _ in range(workers)],
                sorted(luck.sample(range(workers), luck.randint(1, workers))),
            )
            text, length = in_characters(text_of(each.request)), 4 * len(tokens)
            branch, share, chosen = cache_aware(tree, text, length, loads, up, threshold=0.3, difference=64, ratio=1.5)
            known = [prefix for prefix in prefixes(tokens, 1) if prefix in owners]
            fewest = min(up, key=lambda worker: loads[worker])
            rate = len(known) / len(tokens)
            if max(loads) - min(loads) > 64 and max(loads) > 1.5 * min(loads):
                expected = ("imbalanced", -1.0, fewest)
            elif rate <= 0.3:
                expected = ("min-load", rate, fewest)
            elif owners[known[-1]] in up:
                expected = ("match", rate, owners[known[-1]])
            else:
                expected = ("stale", rate, up[0])
            assert (branch, pytest.approx(share), chosen) == expected, f"seed {seed}, request {each.request.index}"
            if branch == "stale":  # who owns the texts of a worker that is gone follows the order of a hash map
                break
            for prefix in prefixes(tokens, 1):
                owners.setdefault(prefix, chosen)


def test_aibrix_and_production_stack_find_the_beginnings_that_were_sent() -> None:
    for seed in range(FLEETS):
        luck, replicas, coming = requests(seed)
        sent, pods = SentText(200_000, 4), dict[tuple[int, Tokens], set[int]]()
        trie, chunks = ChunkTrie(), dict[tuple[Tokens, ...], set[int]]()
        for each in coming:
            tokens, scope = each.job.prompt, each.request.adapter
            text, length = in_characters(text_of(each.request)), 4 * len(tokens)
            percent = match_percent(sent, text, length, scope, replicas)
            blocks = prefixes(tokens, 1)
            for pod in range(replicas):
                known = next((n for n, b in enumerate(blocks) if pod not in pods.get((scope, b), ())), len(blocks))
                assert percent[pod] == known * 100 // len(blocks), f"seed {seed}, request {each.request.index}"
            chosen = luck.choice(by_match([0] * replicas, percent, range(replicas)))
            assert percent[chosen] == max(percent)
            sent.sent(text, length, chosen, scope)
            for block in blocks:
                pods.setdefault((scope, block), set()).add(chosen)

            up = sorted(luck.sample(range(replicas), luck.randint(1, replicas)))
            path = tuple(tuple(tokens[start : start + 32]) for start in range(0, len(tokens), 32))
            matched, having = 0, set(up)
            for end in range(1, len(path) + 1):
                if not chunks.get(path[:end], set()) & having:
                    break
                matched, having = 128 * end, chunks[path[:end]] & having
            assert trie.matched(text, length, up) == (matched, sorted(having))
            went = luck.choice(sorted(having))
            trie.insert(text, length, went)
            for end in range(1, len(path) + 1):
                chunks.setdefault(path[:end], set()).add(went)


def test_aibrix_forgets_the_oldest_blocks() -> None:
    sent = SentText(10, 4)
    sent.sent([(20, 0)], 24, 0)  # 5 blocks and one of its own
    sent.sent([(16, 1)], 16, 0)  # 4 more: full
    assert sent.matched([(20, 0)]) == {0: 20}
    sent.sent([(8, 2)], 8, 0)
    assert sent.matched([(20, 0)]) == {}
    assert sent.matched([(16, 1)]) == {0: 16}


def test_rendezvous_scores_are_blake3() -> None:
    """Recorded from the reference implementation, with names of one block and of several."""
    assert f"{home_scores(['med'], [57])[0, 0]:016x}" == "6b8d1b8e7c086e6d"
    assert rankings(["sum"], (1, 12, 90)) + rankings(["faq"], (33, 41, 68, 91)) == [[1, 12, 90], [41, 91, 33, 68]]
    one, other = home_scores(["a" * 1012, "a" * 1011 + "b"], [1])
    assert one[0] != other[0]
    with pytest.raises(ValueError, match="at most 1,012 bytes"):
        home_scores(["a" * 1013], [1])


def test_busy_adapters_get_copies_by_share_and_a_lone_one_gets_every_worker() -> None:
    luck = Random(1)
    for _ in range(FLEETS):
        workers = luck.randint(1, 9)
        slots = workers * luck.randint(1, 8)
        loads = {f"adapter-{i}": luck.choice((1, 2, 40, 400)) for i in range(luck.randint(1, 30))}
        copies = copies_by_share(loads, slots, workers)
        assert len(copies) == min(len(loads), slots)
        assert all(1 <= each <= workers for each in copies.values())
        assert copies_by_share({"alone": luck.randint(1, 9)}, slots, workers) == {"alone": workers}
    shares, tenth = dict.fromkeys(range(10), 10.0), PlacerContext(8, 1, [1.0] * 10, [8] * 10)
    for policy, copies_of in (("dynamo", 4), ("popularity", 1)):  # as the page on routers says
        assert len(make_placer(policy, tenth).place(Demand(shares, (0, 1, 2, 3)), {})[0]) == copies_of


def decisions(counts: list[dict[int, float]], slots: int = 8) -> list[Placement]:
    """What Dynamo's controller of four workers decides, by the requests in its window at each decision."""
    placer = make_placer("dynamo", PlacerContext(slots, 1, [1.0] * 9, [8] * 9))
    found: list[Placement] = [{}]
    for count in counts:
        found.append(placer.place(Demand(count, (0, 1, 2, 3)), found[-1]))
    return found[1:]


def test_dynamos_flow_is_the_cheapest_of_all_placements_and_what_is_frozen_stays() -> None:
    luck, names = Random(2), ("a", "b", "c")
    for _ in range(FLEETS):
        room = {worker: luck.randint(0, 2) for worker in luck.sample(range(9), luck.randint(1, 3))}
        copies = {name: luck.randint(0, 3) for name in names}
        before = {name: luck.sample(range(9), 4) for name in luck.sample(names, 2)}
        homes, overflow, cost = placed_by_flow(room, copies, before)
        subsets = [[each for size in range(copies[name] + 1) for each in combinations(room, size)] for name in names]
        ranks = {name: order.index for name, order in zip(names, rankings(names, room), strict=True)}
        found = []
        for placed in product(*subsets):
            used = Counter(worker for workers in placed for worker in workers)
            if all(used[worker] <= room[worker] for worker in used):
                pairs = [(name, worker) for name, workers in zip(names, placed, strict=True) for worker in workers]
                prices = [ranks[n](w) + (-250 if w in before.get(n, ()) else 1000) for n, w in pairs]
                found.append((sum(copies.values()) - len(pairs), sum(prices)))
        assert min(found) == (overflow, cost - 10**12 * overflow)
        again, more, _ = placed_by_flow(room, {**copies, "d": 1}, homes, ["d"])
        if not overflow:
            assert {name: again.get(name) for name in homes} == homes
            assert more == (sum(room.values()) == sum(copies.values()))


def test_dynamos_controller_drops_copies_at_the_third_decision_that_asks_for_it() -> None:
    alone, shared = {0: 10.0}, {0: 1.0, 1: 400.0}
    sizes = [len(each[0]) for each in decisions([alone, *[shared] * 5])]
    assert sizes == [4, 4, 4, 4, 1, 1]
    idle = decisions([alone, *[{}] * 9])
    assert [len(each[0]) for each in idle][-1] == 1, "its home alone"
    assert idle[-1][0] == (rankings([adapter_name(0)], range(4))[0][0],)


def test_a_full_worker_gets_an_adapter_only_where_all_are_full() -> None:
    placed = decisions([dict.fromkeys(range(9), 5.0)], slots=1)[0]
    assert len(placed) == 9, "each stays routable"
    assert Counter(worker for homes in placed.values() for worker in homes).most_common()[-1][1] >= 1
    within = sorted(placed, key=lambda adapter: adapter_name(adapter))[:4]
    assert sorted(worker for adapter in within for worker in placed[adapter]) == [0, 1, 2, 3]


def fleet(policy: str, **more: Any) -> dict[str, Any]:
    sections: dict[str, Any] = {
        "workload": {
            "requests": 600,
            "arrivals": {"process": "poisson", "rate": "20/s"},
            "popularity": {"law": "zipf", "exponent": 1.0},
            "tokens": {"prompt": {"law": "uniform", "low": 50, "high": 400}, "output": {"law": "fixed", "value": 30}},
            "prefix": {"shared_by": "adapter", "tokens": {"law": "fixed", "value": 200}},
            "sessions": {"requests": 3, "gap_median": "2 s", "history": True},
        },
        "adapters": {"count": 20, "base_model": "llama-3.1-8b"},
        "cache": {"gpu": {"slots": 6}},
        "fleet": {"engine": "vllm", "gpu": "h100-64gb", "replicas": 3, "max_num_seqs": 16},
        "router": {"policy": policy},
        "faults": [{"kind": "crash", "replica": 1, "at": "8 s", "down": "6 s"}],
    }
    if policy == "aibrix-vtc":
        sections["tenants"] = [{"name": "a", "adapters": 12, "share": 0.7}, {"name": "b", "adapters": 8, "share": 0.3}]
    return {**sections, **more}


@pytest.mark.parametrize("policy", DEPLOYED)
def test_every_request_ends_once_and_the_routers_counts_are_empty_then(policy: str) -> None:
    world = build_world(build(**fleet(policy)))
    made = assemble(world, 0, 2)
    recording = made.fleet.run(world.traffic.chunks(0))
    assert recording.requests["index"].tolist() == list(range(600))
    assert set(recording.requests["status"].tolist()) <= {COMPLETED, FAILED}
    assert len(np.unique(recording.requests["replica"])) > 1
    router = made.fleet._router
    if isinstance(router, Dynamo):
        assert all((each.blocks, each.requests) == (0, 0) for each in router._active)
        assert not any(router._prefilling)
    again = run(world, sections=2)
    assert again.requests["replica"].tobytes() == recording.requests["replica"].tobytes()


def test_without_text_in_common_routers_by_text_are_the_least_loaded() -> None:
    """One term left: the idealised router that it stands for."""
    plain = {"requests": 600, "arrivals": {"process": "poisson", "rate": "20/s"}}
    worlds = (
        build_world(build(**fleet(it, workload=plain, faults=[]))) for it in ("sglang-cache-aware", "least-loaded")
    )
    ours, least = (run(world, sections=2).requests for world in worlds)
    assert ours["replica"].tobytes() == least["replica"].tobytes()


def test_dynamo_at_a_high_temperature_is_random() -> None:
    view = View(loads=[0] * 4, up=[0, 1, 2, 3], resident=[0] * 9)
    router = Dynamo(
        RouterContext(view, 4, 1, 8, base_model=8, spec=RouterSpec(policy="dynamo", settings={"temperature": 1e9}))
    )
    counts = Counter(router.choose(8, number) for number in range(4000))
    assert all(abs(count - 1000) < 120 for count in counts.values())  # four standard deviations
