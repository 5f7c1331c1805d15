"""The rules of llm-d's scorers, filters and pickers, as pure functions of what a router knows of its candidates.

After llm-d/llm-d-router v0.10.0 (``pkg/epp/framework/plugins/scheduling``), which took them over from the Gateway API
Inference Extension; the rules on residency are from its open pull request 2792. Lists are by candidate, in one order.
``python -m validation.routers`` judges them by tables of what the published functions return.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

QUEUE_LIMIT: Final = 5
KV_LIMIT: Final = 0.8
"""Waiting requests and share of the KV cache from which ``utilization`` takes a replica to be saturated."""
LONG_MATCH: Final = 8192
"""Matched tokens from which ``prefix-cache`` counts a match as long."""
FNV_START: Final = 14695981039346656037
FNV_PRIME: Final = 1099511628211

# Scorers: from 0 to 1, the best replica has the highest.


def spread(values: Sequence[int]) -> list[float]:
    """Return 1 for the least value and 0 for the highest, in proportion between; 1 if all are equal.

    Of waiting requests it is ``queue``, of running ones ``running-requests``. One request against none is worth as much
    as a hundred.
    """
    if not values:
        return []
    most = max(values)
    span = most - min(values)
    if span == 0:
        return [1.0] * len(values)
    return [(most - value) / span for value in values]


def load_aware(waiting: Sequence[int]) -> list[float]:
    """Return half of what is left of a queue of 128."""
    return [0.5 * (1.0 - min(each, 128) / 128) for each in waiting]


def active_request(in_flight: Sequence[int], idle: int, busy: float) -> list[float]:
    """Return 1 up to ``idle`` requests, and beyond them a share of ``busy`` that falls to 0 for the most of all."""
    most = max(in_flight, default=0)
    return [1.0 if each <= idle else (most - each) / most * busy for each in in_flight]


def token_load(tokens: Sequence[int], limit: int) -> list[float]:
    """Return what is left of a limit, given the tokens in flight with those that the request would add."""
    return [1.0 - min(each, limit) / limit for each in tokens]


def prefix_match(matched: int, blocks: int, block_tokens: int, length_weight: float) -> float:
    """Return the share of a prompt's blocks that matched; with a weight, partly how long the match is."""
    if not blocks:
        return 0.0
    ratio = matched / blocks
    if not length_weight:
        return ratio
    length = min(1.0, matched * block_tokens / LONG_MATCH)
    return length_weight * length * length + (1.0 - length_weight) * ratio


def lora_affinity(runs: bool, waits: bool, listed: int, slots: int) -> float:
    """Return how well a replica suits an adapter by the two lists in its metrics.

    :param listed: adapters in both lists together, which counts those twice that are in both; since pull request 2625
        (after v0.10.0): different adapters.
    """
    if runs:
        return 1.0
    if listed < slots:
        return 0.8
    return 0.6 if waits else 0.0


ON_GPU: Final = 1.0
IN_HOST: Final = 0.7
FREE_SLOT: Final = 0.6
EVICTABLE: Final = 0.3
SATURATED: Final = 0.0
"""Tiers of ``lora-load-state``: where the adapter is, or what its load needs."""


def load_state(tier: float, on_gpu: bool, home: bool, free: int, slots: int) -> float:
    """Return how near a replica is to serving an adapter.

    :param home: whether rendezvous hashing gives it the adapter; ``free``: slots without an adapter.
    """
    score = 0.94 * tier
    if home and not on_gpu:
        score += 0.03
    return score + (0.03 * free / slots if free > 0 else 0.0)


def base_load_state(busy: int, slots: int) -> float:
    """Return the same for the base model: the share of slots that no running adapter takes."""
    return 0.94 * (max(0, slots - busy) / slots) if slots else 0.94


def load_tier(on_gpu: bool, in_host: bool, free: int, evictable: bool) -> float:
    """Return the tier of an adapter on a replica."""
    if on_gpu:
        return ON_GPU
    if in_host:
        return IN_HOST
    if free > 0:
        return FREE_SLOT
    return EVICTABLE if evictable else SATURATED


def priced(tier: float, load_s: float, activate_s: float, horizon_s: float) -> float:
    """Return a tier by the time until the adapter can serve: from host memory ``activate_s``, else both times."""
    if tier in (ON_GPU, SATURATED):
        return tier
    seconds = activate_s if tier == IN_HOST else load_s + activate_s
    price = max(SATURATED, ON_GPU * max(0.0, 1.0 - seconds / horizon_s))
    return price * EVICTABLE / FREE_SLOT if tier == EVICTABLE else price


def homes(adapters: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the place of each adapter's home: the highest FNV-1a of its name, a zero byte and the replica's name."""
    start = []
    for adapter in adapters:
        value = FNV_START
        for byte in f"{adapter}\0".encode():
            value = (value ^ byte) * FNV_PRIME & 0xFFFFFFFFFFFFFFFF
        start.append([value])
    hashes = np.zeros((len(adapters), len(names)), np.uint64)
    for length in {len(name) for name in names}:
        places = [place for place, name in enumerate(names) if len(name) == length]
        letters = np.array([list(names[place].encode()) for place in places], np.uint64)
        values = np.repeat(np.array(start, np.uint64), len(places), axis=1)
        for at in range(length):
            values = (values ^ letters[:, at]) * np.uint64(FNV_PRIME)
        hashes[:, places] = values
    found: list[int] = hashes.argmax(axis=1).tolist()  # the first of equal ones
    return found


# Saturation, and filters: the places of the candidates that are left.


def unsaturated(waiting: Sequence[int], kv: Sequence[float], fresh: Sequence[bool]) -> list[int]:
    """Return those with a short queue, KV cache to spare and a fresh reading; all if there is none."""
    found = [
        place for place, queued in enumerate(waiting) if queued < QUEUE_LIMIT and kv[place] < KV_LIMIT and fresh[place]
    ]
    return found or list(range(len(waiting)))


def sticky(
    matched: Sequence[float], tokens: Sequence[int], *, share: float, penalty_s: float, per_s: float
) -> list[int]:
    """Return those that hold most of the prompt, unless waiting for them costs much more than computing it elsewhere.

    :param matched: share of the prompt's blocks; ``tokens``: in flight, of which a replica computes ``per_s`` a second.
    :param penalty_s: how much; 0: whatever it costs.
    """
    every = list(range(len(matched)))
    found = [place for place in every if matched[place] >= share]
    others = [place for place in every if matched[place] < share]
    if not found or not others:
        return every
    later_s = (min(tokens[place] for place in found) - min(tokens[place] for place in others)) / per_s
    return every if 0 < penalty_s < later_s else found


def residents(
    on_gpu: Sequence[bool],
    in_host: Sequence[bool],
    waiting: Sequence[int],
    kv: Sequence[float],
    *,
    queue: int,
    usage: float,
    most: int,
) -> list[int]:
    """Return those that hold the adapter on the GPU; if all of these are saturated, others to spread it to.

    :param queue: waiting requests, and ``usage``: share of the KV cache, above which a replica is saturated; 0: never.
    :param most: replicas that may hold the adapter; 0: any number.
    """
    every = list(range(len(on_gpu)))
    homes = [place for place in every if on_gpu[place]]
    free = [place for place in every if (not queue or waiting[place] <= queue) and (not usage or kv[place] <= usage)]
    if not homes or len(every) == 1:
        return every
    if (most and len(homes) >= most) or any(on_gpu[place] for place in free):
        return homes
    return [place for place in free if in_host[place]] or free or homes


# Pickers: one candidate by the sums of their scores.


def highest(sums: Sequence[float]) -> list[int]:
    """Return the places of the highest sum."""
    most = max(sums, default=0.0)
    return [place for place, each in enumerate(sums) if each == most]


def pick(picker: str, sums: Sequence[float], drawn: float) -> int:
    """Return the place of the candidate that a picker takes.

    :param drawn: a number from 0 to 1, exclusive, which decides between equal sums, or in proportion to them.
    """
    if picker == "weighted-random":
        total = sum(sums)
        if total > 0:
            left = drawn * total
            last = 0
            for place, each in enumerate(sums):
                if each > 0:
                    last = place
                    left -= each
                    if left < 0:
                        return place
            return last
    if picker == "max-score":
        most = max(sums)
        if sums.count(most) == 1:
            return sums.index(most)
        best = highest(sums)
        return best[int(drawn * len(best))]
    return int(drawn * len(sums))
