"""Requests a second of a cache-only replay, beside a bare OrderedDict; run by ``make bench`` after ``bench.py``.

Zipf draws over adapters of equal size, 200 of which fit: 1,000 adapters with many and with few misses and in bursts,
and 10,000 of which nearly every request misses. Every policy is measured in turn with the bare loop, in the same
process; medians of CPU seconds, which a busy machine disturbs least. ``beside bare`` is a policy's time over that of
the bare loop, which serves slots of one size and counts misses only.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sim.policies.replay.cache_replay import CHUNK, KERNELS
from sim.policies.replay.lru_curve import lru_curve

FIT, SIZE = 200, 50_000_000
REPETITIONS = 7


def bare(objects: NDArray[np.int32], slots: int) -> int:
    """Return the misses of the shortest LRU that Python's library allows."""
    order: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for start in range(0, len(objects), CHUNK):
        for adapter in objects[start : start + CHUNK].tolist():
            if adapter in order:
                order.move_to_end(adapter)
            else:
                misses += 1
                if len(order) >= slots:
                    order.popitem(last=False)
                order[adapter] = None
    return misses


def zipf(adapters: int, exponent: float, requests: int, repeats: float = 0.0) -> NDArray[np.int32]:
    """Return draws by Zipf's law; ``repeats`` of them repeat one of the 16 before instead."""
    rng = np.random.default_rng(1)
    shares = np.arange(1, adapters + 1) ** -exponent
    drawn = rng.permutation(adapters)[rng.choice(adapters, requests, p=shares / shares.sum())]
    back = np.where(rng.random(requests) < repeats, rng.integers(1, 17, requests), 0)
    source = np.maximum(np.arange(requests) - back, 0)
    for _ in range(5):  # what repeats a repeat goes on to its source
        source = source[source]
    return drawn[source].astype(np.int32)


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of some work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Print the table."""
    quick = "--quick" in sys.argv
    requests = 200_000 if quick else 1_000_000
    streams = {
        "zipf 0.9": zipf(1000, 0.9, requests),
        "zipf 1.2": zipf(1000, 1.2, requests),
        "zipf 0.9 in bursts": zipf(1000, 0.9, requests, 0.5),
        "zipf 0.6 of 10,000": zipf(10_000, 0.6, requests),
    }
    print(f"\n{'cache replay, one core':24} {'policy':8} {'misses':>8} {'requests/s':>12} {'beside bare':>12}")
    for label, objects in streams.items():
        sizes = np.full(int(objects.max()) + 1, SIZE, dtype=np.int64)
        for policy, kernel in KERNELS.items():
            misses, _ = kernel(objects, sizes, FIT * SIZE)
            assert policy != "lru" or misses == bare(objects, FIT), "both are LRU"
            times = [
                (seconds(partial(kernel, objects, sizes, FIT * SIZE)), seconds(partial(bare, objects, FIT)))
                for _ in range(REPETITIONS)
            ]
            own, beside = (statistics.median(side) for side in zip(*times, strict=True))
            print(f"{label:24} {policy:8} {misses / requests:8.1%} {requests / own:12,.0f} {own / beside:11.2f}x")
        curve = statistics.median(seconds(partial(lru_curve, objects)) for _ in range(3))
        print(f"{label:24} {'whole LRU curve, every size':30} {curve * 1e6 / requests:10.2f} s a million requests")


if __name__ == "__main__":
    main()
