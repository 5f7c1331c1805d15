"""What stands before an engine: measured front ends, and token buckets of tenants."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from sim.rng import stream

# A token bucket: how many tokens may pass, at a mean rate and in bursts.


class TokenBucket:
    """Tokens flow in at a constant rate up to a limit; a request takes as many as it has. Full at the start.

    So in any time of t seconds, requests of at most ``burst + rate × t`` tokens pass.

    :param rate: tokens per second.
    :param burst: the most tokens that it holds.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._level = float(burst)
        self._at_s = 0.0

    def take(self, tokens: int, now: float) -> bool:
        """Take tokens if there are enough; return whether there were."""
        self._flow(now)
        if tokens > self._level:
            return False
        self._level -= tokens
        return True

    def take_due(self, tokens: int, now: float) -> None:
        """Take tokens at the time that ``ready_s`` gave for them: rounding may leave a trace too few."""
        self._flow(now)
        self._level = max(0.0, self._level - tokens)

    def ready_s(self, tokens: int, now: float) -> float:
        """Return when there are as many tokens, if nothing is taken before."""
        self._flow(now)
        return now + max(0.0, tokens - self._level) / self._rate

    def _flow(self, now: float) -> None:
        self._level = min(self._burst, self._level + self._rate * (now - self._at_s))
        self._at_s = now


# The server between clients and an engine, to reproduce measurements with all their side effects.
#
# S-LoRA's requests pass four processes (HTTP server, router, detokenization, the client's own): a constant time each.
#
# vLLM 0.8's API server is a single thread. While it works, requests wait and tokens are sent late, although the engine
# continues in its own process:
#
# - The gauge ``vllm:lora_requests_info`` (``v1/metrics/loggers.py``) keeps a time series for every pair of a set of
# running and a set of waiting adapters that it has ever seen, and writes all of them out whenever its metrics are
# scraped.
# - The first request of each adapter makes it look for a tokenizer of that adapter (``transformers_utils/
# tokenizer_group.py``).
#
# The times were measured on the runs of docs/validation.md.


@dataclass(frozen=True, slots=True)
class FrontEndCosts:
    """Times of a front end, in seconds.

    :ivar scrape_interval_s: from the end of one scrape to the start of the next.
    :ivar scrape_s, series_s, name_s: time of a scrape: a fixed part, a part for every series, and a part for every
        adapter name in a series.
    :ivar tokenizer_s: time to look for a tokenizer, at the first request of each adapter.
    :ivar request_s: time between client and engine, for each request.
    :ivar max_in_flight: most requests that the client keeps open; more of them fail at once.
    """

    scrape_interval_s: float
    scrape_s: float
    series_s: float
    name_s: float
    tokenizer_s: float
    request_s: float
    max_in_flight: int


FRONT_ENDS = {
    "vllm-0.8-scraped": FrontEndCosts(
        scrape_interval_s=2.0,
        scrape_s=0.007,
        series_s=11.6e-6,
        name_s=0.135e-6,
        tokenizer_s=0.30,
        request_s=0.0005,
        max_in_flight=25_500,
    ),
    # The constant is the median of measured less simulated p50 TTFT over 15 unsaturated runs (docs/validation.md). The
    # client opens a connection for each request, and Linux has ports 32,768 to 60,999 for them.
    "s-lora": FrontEndCosts(
        scrape_interval_s=math.inf,
        scrape_s=0.0,
        series_s=0.0,
        name_s=0.0,
        tokenizer_s=0.0,
        request_s=0.03,
        max_in_flight=28_232,
    ),
}
"""Costs by the names of ``fleet.front_end``."""


class FrontEnd:
    """One server thread: delays requests on their way to the engine, and tokens on their way to clients.

    Times must not decrease from call to call.
    """

    def __init__(self, costs: FrontEndCosts, adapters: int) -> None:
        rng = stream(0, 0, "front-end")
        # A set of adapters is identified by the exclusive or of its members' numbers, so a change is one operation.
        self._numbers: list[list[int]] = rng.integers(1, 2**62, size=(2, adapters)).tolist()
        self._costs = costs
        self._base_model = adapters  # its number: it is in no series, and its tokenizer is there from the start
        self._counts = ([0] * adapters, [0] * adapters)  # waiting, running
        self._set = 0
        self._names_in_set = 0
        self._known: set[int] = set()
        self._names = 0
        self._greeted = [*[False] * adapters, True]
        self._next_scrape_s = costs.scrape_interval_s
        self._starts: list[float] = []
        self._ends: list[float] = []

    @property
    def max_in_flight(self) -> int:
        """Most requests that the client keeps open."""
        return self._costs.max_in_flight

    def enter(self, now: float, adapter: int) -> float:
        """Take in a request; return the time at which it reaches the engine."""
        self._scrape_until(now)
        if not self._greeted[adapter]:
            self._greeted[adapter] = True
            self._stall(now, self._costs.tokenizer_s)
        return max(now, self._ends[-1] if self._ends else 0.0) + self._costs.request_s

    def seen(self, time: float) -> float:
        """Return the time at which clients see a token that the engine computed at ``time``."""
        place = bisect_right(self._starts, time) - 1
        return max(time, self._ends[place]) if place >= 0 else time

    def stalled_between(self, start: float, end: float) -> tuple[float, int]:
        """Return the seconds of stalls between two times, and the number of stalls begun by ``end``."""
        last = bisect_right(self._starts, end)
        seconds, place = 0.0, last - 1
        while place >= 0 and self._ends[place] > start:
            seconds += min(end, self._ends[place]) - max(start, self._starts[place])
            place -= 1
        return seconds, last

    def waits(self, adapter: int) -> None:
        """Note that a request for this adapter waits in the engine."""
        self._count(0, adapter, 1)

    def runs(self, adapter: int) -> None:
        """Note that a waiting request has joined the batch."""
        self._count(0, adapter, -1)
        self._count(1, adapter, 1)

    def ends(self, adapter: int) -> None:
        """Note that a request of the batch has ended."""
        self._count(1, adapter, -1)

    def step_ended(self, now: float) -> None:
        """Note the end of an engine step, which makes a series of the current sets of waiting and running adapters."""
        if self._set not in self._known:
            self._known.add(self._set)
            self._names += self._names_in_set
        self._scrape_until(now)

    def _count(self, kind: int, adapter: int, change: int) -> None:
        if adapter == self._base_model:
            return
        counts = self._counts[kind]
        before = counts[adapter]
        counts[adapter] = after = before + change
        if (before == 0) != (after == 0):
            self._set ^= self._numbers[kind][adapter]
            self._names_in_set += 1 if after else -1

    def _scrape_until(self, now: float) -> None:
        costs = self._costs
        while self._next_scrape_s <= now:
            seconds = costs.scrape_s + len(self._known) * costs.series_s + self._names * costs.name_s
            self._next_scrape_s = self._stall(self._next_scrape_s, seconds) + costs.scrape_interval_s

    def _stall(self, start: float, seconds: float) -> float:
        """Stall for ``seconds`` from ``start``, or from the end of the current stall; return the end."""
        if self._ends and self._ends[-1] >= start:
            self._ends[-1] += seconds
        else:
            self._starts.append(start)
            self._ends.append(start + seconds)
        return self._ends[-1]
