"""AIBrix, the SGLang gateway and vLLM production-stack by their tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any

from sim.policies.routing import gateways
from sim.policies.routing.gateways import ChunkTrie, SessionRing
from sim.policies.routing.placed import fewest
from sim.policies.routing.prefixes import SentText, TextTree
from validation.routers import Judge, Judged, largest_error

Text = tuple[list[tuple[int, int]], int]
"""The runs of a text, one for each character, and its length."""


@lru_cache(maxsize=4096)
def _segment(segment: Any, length: int) -> str:
    digests = (sha256(f"{segment}/{number}".encode()).hexdigest() for number in range(-(-length // 64)))
    return "".join(digests)[:length]


class Characters:
    """Numbers for characters, equal where all text up to them is: segments may begin alike by chance."""

    def __init__(self) -> None:
        self._of: dict[tuple[int, str], int] = {}

    def of(self, segments: Sequence[Sequence[Any]]) -> Text:
        """Return a text of segments."""
        text: list[tuple[int, int]] = []
        key = -1
        for segment, length in segments:
            for character in _segment(segment, length):
                key = self._of.setdefault((key, character), len(self._of))
                text.append((len(text) + 1, key))
        return text, len(text)


def _aibrix_gateway(table: Mapping[str, Any]) -> Iterator[Judged]:
    for row in table["snapshots"]:
        seen = [place for place, replica in enumerate(row["replicas"]) if not replica.get("missing")]
        names = ("prefill_s", "decode_s", "avg_prompt", "avg_generation")
        prefill, decode, prompt, output = ([row["replicas"][place][name] for place in seen] for name in names)
        latency, real = gateways.expected_latency(prefill, decode, prompt, output), row["least-latency"]
        best = [seen[gateways.last_least(latency)]] if seen else []
        loads = [replica["in_flight"] * (not replica.get("missing")) for replica in row["replicas"]]
        equal = best == real["best"] and gateways.least(loads) == row["least-request"]
        scores = [score for score in real["score"] if score is not None]
        yield Judged(row["id"], largest_error(latency, scores), equal)


def _aibrix_prefix_cache(table: Mapping[str, Any]) -> Iterator[Judged]:
    for row in table["snapshots"]:
        loads, share = row["in_flight"], row["share"]
        chosen = gateways.by_match(loads, row["match_percent"], range(len(loads)))
        yield Judged(row["id"], equal=chosen == [pod for pod, part in enumerate(share) if part > 0])


def _aibrix_sequence(table: Mapping[str, Any]) -> Iterator[Judged]:
    for run in table["sequences"]:
        pods, characters, models = range(run["replicas"]), Characters(), dict[str, int]()
        sent = SentText(gateways.BLOCKS, gateways.BLOCK)
        for number, (model, segments, loads, percent, _, _, real) in enumerate(run["requests"]):
            scope, (text, length) = models.setdefault(model, len(models)), characters.of(segments)
            ours = gateways.match_percent(sent, text, length, scope, len(pods))
            chosen = gateways.by_match(loads, ours, pods)[0]
            yield Judged(f"{run['id']}/{number}", largest_error(ours, percent), chosen == real)
            sent.sent(text, length, real, scope)


def _aibrix_vtc(table: Mapping[str, Any]) -> Iterator[Judged]:
    for row in table["snapshots"]:
        bucket = gateways.vtc_bucket(row["min_tokens"], row["max_tokens"])
        scores = gateways.vtc_scores(row["user_tokens"], bucket, row["running"])
        possible = [pod for pod, score in enumerate(scores) if score - min(scores) < gateways.NOISE - 1e-9]
        error = max(largest_error(scores, row["score_before_noise"]), abs(bucket - row["bucket"]))
        yield Judged(row["id"], error, possible == row["possible"])


def _aibrix_placement(table: Mapping[str, Any]) -> Iterator[Judged]:
    for row in table["snapshots"]:
        counts = row["adapters"]
        spread = fewest(counts, 1, range(len(counts)))[0] if counts else None
        packed = gateways.fullest_with_room(counts)
        yield Judged(
            row["id"], equal=[spread, packed if packed >= 0 else None] == [row["leastAdapters"], row["binPack"]]
        )


def _sglang_balance(table: Mapping[str, Any]) -> Iterator[Judged]:
    for row in table["snapshots"]:
        steps = row.get("steps") or [[row["loads"], [["asked", 1000]], row["branch"], row["match_rate"], row["choice"]]]
        characters, tree = Characters(), TextTree()
        if row.get("prefix_owner") is not None:
            first = round(1000 * row["prefix_share"])
            tree.insert(characters.of([["asked", first]])[0], row["prefix_owner"])
        for number, (loads, segments, branch, rate, choice, *healthy) in enumerate(steps):
            text, real = characters.of(segments), (branch, rate, choice)
            yield _cache_aware(f"{row['id']}/{number}", row, tree, text, loads, healthy, real)


def _sglang_sequence(table: Mapping[str, Any]) -> Iterator[Judged]:
    for run in table["sequences"]:
        characters, tree = Characters(), TextTree()
        for number, (segments, loads, rate, branch, choice, *healthy) in enumerate(run["requests"]):
            text, real = characters.of(segments), (branch, rate, choice)
            yield _cache_aware(f"{run['id']}/{number}", run, tree, text, loads, healthy, real)


def _cache_aware(
    name: str,
    row: Mapping[str, Any],
    tree: TextTree,
    text: Text,
    loads: Sequence[int],
    healthy: Sequence[Any],
    real: Any,
) -> Judged:
    bits = healthy[0] if healthy else (1 << len(loads)) - 1
    up = [w for w in range(len(loads)) if (bits >> w & 1 if isinstance(bits, int) else int(bits[w]))]
    thresholds = {"threshold": row["cache_threshold"], "difference": row["balance_abs"], "ratio": row["balance_rel"]}
    branch, share, chosen = gateways.cache_aware(tree, *text, loads, up, **thresholds)
    digits = 4 if "steps" in row else 5  # as the table was rounded
    equal = chosen == real[2] and branch in (real[0], "stale")  # for which tables may have another word
    return Judged(name, abs(round(share, digits) - real[1]), equal)


def _production_session(table: Mapping[str, Any]) -> Iterator[Judged]:
    for row in table["snapshots"]:
        replicas = range(row["replicas"])
        if row["session"] is None:
            chosen = gateways.lowest_rate(row["qps"], replicas)
        else:
            ring = SessionRing([f"http://r{replica}:8000" for replica in replicas])
            chosen = ring.home(row["session"], replicas)
        yield Judged(row["id"], equal=chosen == row["choice"])


def _production_prefix(table: Mapping[str, Any]) -> Iterator[Judged]:
    for run in table["sequences"]:
        characters, trie, replicas = Characters(), ChunkTrie(), range(run["replicas"])
        for number, (segments, length, candidates, choice, *rates) in enumerate(run["requests"]):
            text, own = characters.of(segments)
            matched, found = trie.matched(text, own, replicas)
            equal = found == candidates
            if matched < run["prefix_min_match_length"] and rates:
                equal = gateways.lowest_rate(rates[0], replicas) == choice
            yield Judged(f"{run['id']}/{number}", abs(matched - length), equal)
            trie.insert(text, own, choice)


JUDGES: dict[str, Judge] = {
    "aibrix_gateway": _aibrix_gateway,
    "aibrix_prefix_cache": _aibrix_prefix_cache,
    "aibrix_prefix_sequence": _aibrix_sequence,
    "aibrix_vtc": _aibrix_vtc,
    "aibrix_placement": _aibrix_placement,
    "sglang_balance": _sglang_balance,
    "sglang_cache_aware": _sglang_sequence,
    "production_stack_session": _production_session,
    "production_stack_prefix_sequence": _production_prefix,
}
