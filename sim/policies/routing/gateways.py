"""The rules of gateways as they are deployed: AIBrix, SGLang, vLLM production-stack. Pure functions over their inputs.

Lists are by replica. ``python -m validation.routers`` judges these functions by tables of the real ones.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from hashlib import md5
from math import sqrt
from typing import Final

from sim.policies.routing.prefixes import SentText, Text, TextTree

# AIBrix e3e10f9e, after v0.7.0 (pkg/plugins/gateway/algorithms, pkg/controller/modeladapter/scheduling).

IMBALANCED: Final = 8
"""``prefix-cache``: difference of requests in flight above which only the least loaded pods are candidates."""
BLOCK: Final = 4
"""Characters of a block; ``BLOCKS``: how many of them the gateway remembers, of all pods and models together."""
BLOCKS: Final = 200_000
UNKNOWN_PROMPT: Final = 10.0
UNKNOWN_OUTPUT: Final = 100.0
"""Mean tokens of requests before any has ended."""
FULLEST: Final = 10
"""Adapters from which ``binPack`` takes a pod to be full, whatever its slots are."""
NOISE: Final = 0.1
"""``vtc-basic``: the width of the uniform noise of each score."""


def least(values: Sequence[float], among: Sequence[int] | None = None) -> list[int]:
    """Return the replicas with the least value."""
    places = range(len(values)) if among is None else among
    lowest = min((values[place] for place in places), default=0.0)
    return [place for place in places if values[place] == lowest]


def by_match(loads: Sequence[float], percent: Sequence[int], up: Sequence[int]) -> list[int]:
    """Return the pods of ``prefix-cache``, of which one is drawn.

    :param loads: requests in flight; ``percent``: of the full blocks of a prompt that each pod has had.
    :param up: pods that are ready.
    """
    if not up:
        return []
    there = [loads[pod] for pod in up]
    candidates = least(loads, up) if max(there) - min(there) > IMBALANCED else list(up)
    mean = sum(there) / len(there)
    limit = mean + sqrt(sum([(load - mean) ** 2 for load in there]) / max(1, len(there) - 1))
    matched = [pod for pod in candidates if percent[pod] > 0 and loads[pod] <= limit]
    if not matched:
        return least(loads, up)
    best = min((-percent[pod], loads[pod]) for pod in matched)
    return [pod for pod in matched if (-percent[pod], loads[pod]) == best]


def match_percent(sent: SentText, text: Text, length: int, scope: int, replicas: int) -> list[int]:
    """Return by pod the share of the full blocks of a text that it has had.

    :param length: characters of the text; ``scope``: the adapter.
    """
    found, blocks = [0] * replicas, length // BLOCK
    for pod, end in sent.matched(text, scope).items():
        found[pod] = end // BLOCK * 100 // blocks if blocks else 0
    return found


def expected_latency(
    prefill_s: Sequence[float], decode_s: Sequence[float], prompt: Sequence[float], output: Sequence[float]
) -> list[float]:
    """Return the scores of ``least-latency``, without the queue time, which AIBrix always reads as 0.

    :param prefill_s: means per request since the start, as the others; ``prompt``: tokens; 0: not known.
    """
    usual_prompt = _known_mean(prompt, UNKNOWN_PROMPT)
    usual_output = _known_mean(output, UNKNOWN_OUTPUT)
    return [
        prefill / (own_prompt or usual_prompt) * usual_prompt + decode / (own_output or usual_output) * usual_output
        for prefill, decode, own_prompt, own_output in zip(prefill_s, decode_s, prompt, output, strict=True)
    ]


def _known_mean(values: Sequence[float], otherwise: float) -> float:
    known = [value for value in values if value > 0]
    return sum(known) / len(known) if known else otherwise


def last_least(values: Sequence[float]) -> int:
    """Return the replica with the least value, the last of equal ones; -1 of none."""
    places = least(values)
    return places[-1] if places else -1


def vtc_bucket(least_tokens: float, most_tokens: float) -> float:
    """Return the tokens that stand for one pod in ``vtc-basic``, given the least and the most of any user."""
    return max(1000.0, (least_tokens + most_tokens) / 2)


def vtc_scores(tokens: float, bucket: float, running: Sequence[int]) -> list[float]:
    """Return the scores of ``vtc-basic`` before the noise; the least wins.

    :param tokens: of the user in the last minutes.
    """
    wanted = min(tokens / bucket, float(len(running) - 1))
    return [abs(pod - wanted) + min(requests / 100, 1.0) for pod, requests in enumerate(running)]


def fullest_with_room(counts: Sequence[int]) -> int:
    """Return where ``binPack`` puts an adapter: the pod with the most below ``FULLEST``, the first of equal ones; -1
    where all are full."""
    room = [count for count in counts if count < FULLEST]
    return counts.index(max(room)) if room else -1


# SGLang gateway 0.3.2 (src/policies/cache_aware.rs); its tree is ``TextTree``.


def cache_aware(
    tree: TextTree,
    text: Text,
    length: int,
    loads: Sequence[float],
    up: Sequence[int],
    *,
    threshold: float,
    difference: float,
    ratio: float,
) -> tuple[str, float, int]:
    """Choose a worker and add the text to the tree; return why, the share that matched (-1: not asked) and the worker.

    :param length: characters of the text; ``threshold``: share that must match.
    :param difference: with ``ratio``, how much loads of all workers, healthy or not, must differ for text not to count.
    """
    most, fewest = max(loads), min(loads)
    if most - fewest > difference and most > fewest * ratio:
        chosen = min(up, key=loads.__getitem__)
        tree.insert(text, chosen)
        return "imbalanced", -1.0, chosen
    matched, owner = tree.matched(text)
    share = matched / length if length else 0.0
    if share <= threshold:
        chosen = min(up, key=loads.__getitem__)
        tree.insert(text, chosen)
        return "min-load", share, chosen
    if owner in up:
        tree.insert(text, owner)
        return "match", share, owner
    tree.remove(owner)
    return "stale", share, up[0]


# vLLM production-stack a6c01db0, after vllm-stack-0.1.12 (routers/routing_logic.py, prefix/hashtrie.py).

CHUNK: Final = 128
"""Characters of a chunk. The rest of a text is one too, and counts as many."""
POINTS: Final = 160
"""Points of each replica on the ring of uhashring 2.4."""


class SessionRing:
    """Consistent hashing of sessions, without a bound on loads.

    :param urls: of the replicas, by index.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        ring = sorted(
            (_hashed(f"{url}-{point}"), replica) for replica, url in enumerate(urls) for point in range(POINTS)
        )
        self._points, self._owners = [point for point, _ in ring], [owner for _, owner in ring]

    def home(self, session: str, up: Collection[int]) -> int:
        """Return the replica of a session, which is one of ``up``."""
        place = bisect_right(self._points, _hashed(session))
        while True:  # as in a ring of those that are up
            owner = self._owners[place % len(self._owners)]
            if owner in up:
                return owner
            place += 1


def _hashed(name: str) -> int:
    return int.from_bytes(md5(name.encode(), usedforsecurity=False).digest(), "big")


def lowest_rate(rates: Sequence[float | None], up: Sequence[int]) -> int:
    """Return the replica with the fewest requests a second, the first of equal ones; before it one without any."""
    chosen, lowest = up[0], float("inf")
    for replica in up:
        rate = rates[replica]
        if rate is None:
            return replica
        if rate < lowest:
            chosen, lowest = replica, rate
    return chosen


class ChunkTrie:
    """The trie of ``prefixaware``: the replicas that got a text with the same first chunks. It forgets nothing."""

    def __init__(self) -> None:
        self._sent = SentText()
        self._whole: dict[tuple[int, int], set[int]] = {}  # by the last run and length, who got exactly this text

    def matched(self, text: Text, length: int, up: Sequence[int]) -> tuple[int, list[int]]:
        """Return how many characters match, and the replicas that have all of them: all of ``up`` where none has."""
        chunks = dict.fromkeys(up, 0)
        for replica, end in self._sent.matched(text).items():
            if replica in chunks:
                chunks[replica] = end // CHUNK
                rest = end == length and length % CHUNK > 0
                if rest and replica in self._whole.get((text[-1][1], length), ()):
                    chunks[replica] += 1
        most = max(chunks.values())
        return CHUNK * most, [replica for replica, matched in chunks.items() if matched == most]

    def insert(self, text: Text, length: int, replica: int) -> None:
        """Add a text that a replica gets."""
        self._sent.sent(text, length, replica)
        if text and text[-1][0] == length and length % CHUNK:
            self._whole.setdefault((text[-1][1], length), set()).add(replica)
