"""llm-d and the Gateway API Inference Extension: scorers, filters, pickers, and the approximate prefix index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import chisquare

from sim.policies.routing import scoring
from sim.policies.routing.prefix_index import Block, PrefixIndex, blocks_of
from sim.traffic.request import Request
from validation.routers import Judge, Judged, largest_error

BLOCK_TOKENS = 64
DRAWS = 20_000
LUCK = 1e-6
"""A chi-square test of a picker that is less likely than this says that it is another picker."""

Table = Mapping[str, Any]


def _scores_of(score: Callable[[Table], list[float]], key: str = "scores", best: str = "best") -> Judge:

    def judge(table: Table) -> Iterator[Judged]:
        for each in table["snapshots"]:
            ours = score(each)
            yield Judged(each["id"], largest_error(ours, each[key]), scoring.highest(ours) == each[best])

    return judge


def _column(snapshot: Table, key: str) -> list[Any]:
    return [replica.get(key, 0) for replica in snapshot["replicas"]]


def _params(snapshot: Table, **defaults: float) -> list[Any]:
    return [snapshot.get("params", {}).get(key, value) for key, value in defaults.items()]


def _lora_affinity(snapshot: Table, union: bool = False) -> list[float]:
    found = []
    for replica in snapshot["replicas"]:
        runs, waits = (list(dict.fromkeys(replica.get(f"{key}_adapters", ()))) for key in ("running", "waiting"))
        listed = len({*runs, *waits}) if union else len(runs) + len(waits)
        model = snapshot["model"]
        found.append(scoring.lora_affinity(model in runs, model in waits, listed, replica.get("max_slots", 0)))
    return found


def _judge_lora_affinity(table: Table) -> Iterator[Judged]:
    yield from _scores_of(_lora_affinity)(table)
    yield from _scores_of(lambda each: _lora_affinity(each, union=True), "scores_union", "best_union")(table)


def _load_state(snapshot: Table) -> list[float]:
    model, replicas, found = snapshot["model"], snapshot["replicas"], []
    base = bool(model) and any(model == replica.get("base_model") for replica in replicas)
    home = scoring.homes([model], [f"default/{replica['name']}" for replica in replicas])[0] if replicas else -1
    load_s, activate_s = _fleet_mean(_column(snapshot, "load_s")), _fleet_mean(_column(snapshot, "activate_s"))
    horizon_s = snapshot.get("load_horizon_s", 0.0) if load_s + activate_s else 0.0
    for place, replica in enumerate(replicas):
        held, running, slots = (
            replica.get("resident", {}),
            replica.get("running_adapters", ()),
            replica.get("max_slots", 0),
        )
        on_gpu = {name for name, tier in held.items() if tier == "gpu"}
        if base:
            found.append(scoring.base_load_state(len(on_gpu.intersection(running)), slots))
            continue
        free, idle = slots - len(on_gpu), on_gpu.difference(running, replica.get("pinned", ()))
        tier = scoring.load_tier(model in on_gpu, model in held, free, bool(idle))
        if horizon_s:
            own_s = replica.get("load_s") or load_s, replica.get("activate_s") or activate_s
            tier = scoring.priced(tier, *own_s, horizon_s)
        found.append(scoring.load_state(tier, model in on_gpu, place == home, free, slots))
    return found


def _fleet_mean(seconds: Sequence[float]) -> float:
    known = [each for each in seconds if each > 0]
    return sum(known) / len(known) if known else 0.0


def _kept_by(keep: Callable[[Table], list[int]]) -> Judge:

    def judge(table: Table) -> Iterator[Judged]:
        for each in table["snapshots"]:
            yield Judged(each["id"], equal=keep(each) == each["kept"])

    return judge


def _residency(snapshot: Table) -> list[int]:
    tiers = [each.get("resident", {}).get(snapshot["model"]) for each in snapshot["replicas"]]
    return scoring.residents(
        [tier == "gpu" for tier in tiers],
        [tier == "cpu" for tier in tiers],
        _column(snapshot, "waiting"),
        _column(snapshot, "kv"),
        queue=8,
        usage=0.8,
        most=snapshot.get("max_replicas", 0),
    )


def _prefix_cache(snapshot: Table) -> list[float]:
    (weight,) = _params(snapshot, matchLengthWeight=0.0)
    return [
        scoring.prefix_match(
            each.get("match_blocks", 0), each.get("total_blocks", 0), each.get("block_tokens", BLOCK_TOKENS), weight
        )
        for each in snapshot["replicas"]
    ]


def _judge_saturation(table: Table) -> Iterator[Judged]:
    for each in table["snapshots"]:
        fresh = [age <= 200 for age in _column(each, "age_ms")]
        readings = _column(each, "waiting"), _column(each, "kv"), fresh
        used = np.maximum(np.divide(readings[0], scoring.QUEUE_LIMIT), np.divide(readings[1], scoring.KV_LIMIT))
        error = abs(float(np.mean(np.where(fresh, used, 1.0)) if fresh else 1.0) - each["saturation"])
        yield Judged(each["id"], error, scoring.unsaturated(*readings) == each["kept"])


def _judge_pickers(table: Table) -> Iterator[Judged]:
    for each in table["snapshots"]:
        sums = each["scores"]
        for picker, shares in each["expect"].items() if sums else ():
            picks = [scoring.pick(picker.removesuffix("-picker"), sums, (i + 0.5) / DRAWS) for i in range(DRAWS)]
            counts, expected = np.bincount(picks, minlength=len(sums)), DRAWS * np.array(shares) / sum(shares)
            some = expected > 0
            unlikely = some.sum() > 1 and chisquare(counts[some], expected[some]).pvalue <= LUCK
            yield Judged(f"{each['id']} {picker}", equal=not unlikely and not counts[~some].any())


def _judge_profile(table: Table) -> Iterator[Judged]:
    for each in table["snapshots"]:
        parts = {
            "queue-scorer": scoring.spread(_column(each, "waiting")),
            "kv-cache-utilization-scorer": [1.0 - used for used in _column(each, "kv")],
            "prefix-cache-scorer": _prefix_cache(each),
            "lora-affinity-scorer": _lora_affinity(each),
        }
        error = max(largest_error(ours, each["parts"][name]) for name, ours in parts.items())
        for lora, sums, best in ((0, "default", "best_default"), (1, "with_lora_weight_1", "best_with_lora")):
            ours = _weighted(list(parts.values()), (2, 2, 3, lora))
            error = max(error, largest_error(ours, each[sums]))
            yield Judged(f"{each['id']} {sums}", error, scoring.highest(ours) == each[best])


def _weighted(parts: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    sums = [0.0] * len(parts[0])
    for part, weight in zip(parts, weights, strict=True):
        sums = [total + weight * each for total, each in zip(sums, part, strict=True)]
    return sums


class Prompts:
    """The prompts of a table as requests: tokens of a segment are the same wherever all before them are."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str | int, ...], int] = {}

    def _key(self, path: tuple[str | int, ...]) -> int:
        return self._keys.setdefault(path, len(self._keys))

    def blocks(self, model: str, segments: Sequence[Sequence[int]]) -> list[Block]:
        """Return the blocks of a prompt."""
        runs, end = list[tuple[int, int]](), 0
        path: tuple[str | int, ...] = ()
        for segment, tokens in segments:
            end += tokens
            runs.append((end, self._key((*path, segment))))
            path = (*path, segment, tokens)
        return blocks_of(Request(0, 0.0, 0, end, 1, shared=tuple(runs)), self._key((model,)), BLOCK_TOKENS)


def _counts_of(index: PrefixIndex, blocks: Sequence[Block], replicas: int) -> list[int]:
    found = index.matches(blocks)
    return [sum(count for mask, count in found if mask >> replica & 1) for replica in range(replicas)]


def _judge_stories(table: Table) -> Iterator[Judged]:
    for story in table["snapshots"]:
        replicas, prompts = story["replicas"], Prompts()
        index = PrefixIndex(replicas, [story["lru_blocks"]] * replicas)
        for number, (what, *step) in enumerate(story["steps"]):
            error = 0.0
            if what == "remove":
                index.forget(step[0])
                continue
            blocks = prompts.blocks(step[0], step[1])
            if what == "add":
                index.add(blocks, step[2])
                ours = [index.length(int(name[1:])) for name in step[3]]
                error = largest_error(ours, list(step[3].values()))
            else:
                error = largest_error([*_counts_of(index, blocks, replicas), len(blocks)], [*step[2], step[3]])
            yield Judged(f"{story['id']} step {number}", error)


def _judge_sequences(table: Table) -> Iterator[Judged]:
    for sequence in table["sequences"]:
        replicas, prompts = sequence["replicas"], Prompts()
        capacity = sequence["gpu_blocks_metric"] or sequence["lru_blocks"]
        index = PrefixIndex(replicas, [capacity] * replicas)
        leaves, _, when = (sequence["removed"] or "r-1 before request -1").partition(" before request ")
        for number, (model, segments, matched, total, choice, *rest) in enumerate(sequence["requests"]):
            if number == int(when):
                index.forget(int(leaves[1:]))
            blocks = prompts.blocks(model, segments)
            counts = _counts_of(index, blocks, replicas)
            parts = [[scoring.prefix_match(count, len(blocks), BLOCK_TOKENS, 0.0) for count in counts]]
            weights = [3, 2, 2]
            *loads, tied = rest
            if loads:
                waiting, kv = loads if len(loads) == 2 else loads[0]
                parts += [scoring.spread(waiting), [1.0 - percent / 100 for percent in kv]]
            best = scoring.highest(_weighted(parts, weights[: len(parts)]))
            error = largest_error([*counts, len(blocks)], [*matched, total])
            yield Judged(f"{sequence['id']} request {number}", error, best == (tied or [choice]))
            index.add(blocks, choice)
        ends = sequence["end_blocks"]
        ours = [index.length(int(name[1:])) for name in ends]
        yield Judged(f"{sequence['id']} end", largest_error(ours, list(ends.values())))


JUDGES: dict[str, Judge] = {
    "llmd_lora_affinity": _judge_lora_affinity,
    "llmd_lora_load_state": _scores_of(_load_state),
    "llmd_lora_residency_filter": _kept_by(_residency),
    "llmd_queue": _scores_of(lambda each: scoring.spread(_column(each, "waiting"))),
    "llmd_running_requests": _scores_of(lambda each: scoring.spread(_column(each, "running"))),
    "llmd_load_aware": _scores_of(lambda each: scoring.load_aware(_column(each, "waiting"))),
    "llmd_active_request": _scores_of(
        lambda each: scoring.active_request(
            _column(each, "in_flight_requests"), *_params(each, idleThreshold=0, maxBusyScore=1.0)
        )
    ),
    "llmd_kv_utilization": _scores_of(lambda each: [1.0 - used for used in _column(each, "kv")]),
    "llmd_token_load": _scores_of(
        lambda each: scoring.token_load(
            [
                sum(pair)
                for pair in zip(_column(each, "in_flight_tokens"), _column(each, "uncached_tokens"), strict=True)
            ],
            *_params(each, queueThresholdTokens=4_194_304),
        )
    ),
    "llmd_prefix_cache": _scores_of(_prefix_cache),
    "llmd_prefix_affinity_filter": _kept_by(
        lambda each: scoring.sticky(
            _prefix_cache(each), _column(each, "in_flight_tokens"), share=0.8, penalty_s=18.0, per_s=15_928
        )
    ),
    "llmd_saturation": _judge_saturation,
    "llmd_pickers": _judge_pickers,
    "llmd_profile": _judge_profile,
    "llmd_prefix_stories": _judge_stories,
    "llmd_prefix_sequence": _judge_sequences,
}
