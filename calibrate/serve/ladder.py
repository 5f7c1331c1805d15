"""Costs over the API: a short ladder of prompts, batches, joins and loads, each a few requests in a closed loop."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from calibrate.serve.client import SentRequest
from calibrate.serve.drive import Driver
from calibrate.serve.http_answer import ServerError
from calibrate.serve.planned_requests import PlannedRequest
from sim.spec.scenario import Scenario

MOST_SEQUENCES = 64
_REPEATS = 7
_ANSWER = 64
_LOADS = 60
_JOINS = 12
_STREAMS = 3
_LEAST_STEPS = 12
_STEPS_APART = 6
_SHORTEST = 8  # tokens of the shortest prompts
_PASSES = 3
"""Every batch is timed so often, at different times, and the median kept, so that a short disturbance has no effect."""


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """A batch that only decodes: its mean step, in the median of several passes.

    :ivar prompt_tokens: of each sequence; ``kv_tokens``: KV tokens of all together, on average.
    """

    sequences: int
    distinct: int
    prompt_tokens: int
    kv_tokens: float
    step_s: float


@dataclass(frozen=True, slots=True)
class TimedLoad:
    """One load: how much later its first token came than that of the same request right after it.

    :ivar storage: whether the adapter's file had to be read.
    """

    adapter: int
    storage: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class JoiningRequest:
    """A request that joined a decoding sequence.

    :ivar held_s: seconds that it added to the sequence's gaps.
    :ivar ttft_s: of the request itself; ``step_s``: the sequence's usual gap.
    """

    prompt_tokens: int
    held_s: float
    ttft_s: float
    step_s: float


@dataclass(slots=True)
class Ladder:
    """What was measured.

    :ivar prefill: (prompt tokens, TTFT) of requests that were alone, their adapter resident.
    """

    prefill: list[tuple[int, float]] = field(default_factory=list)
    batches: list[DecodeBatch] = field(default_factory=list)
    joins: list[JoiningRequest] = field(default_factory=list)
    loads: list[TimedLoad] = field(default_factory=list)


async def measure(driver: Driver, scenario: Scenario, planned: Sequence[PlannedRequest], count: int) -> Ladder:
    """Climb the ladder; a few hundred requests.

    :param count: adapters.
    :raises ServerError: where the server doesn't serve one.
    """
    slots = min(scenario.cache.gpu.slots or count, count)
    host = slots if scenario.cache.host is None else scenario.cache.host.slots or count
    longest = max(r.prompt_tokens + r.output_tokens for r in planned)
    prompts = [r.prompt_tokens for r in planned]
    typical, long = int(np.median(prompts)), int(np.quantile(prompts, 0.9))
    climb = _Climb(driver)
    await climb.send(0, _SHORTEST, 8)
    await climb.loads(slots, min(host, count), count)
    for adapter in range(slots):  # what follows finds these resident
        await climb.send(adapter, _SHORTEST, 1)
    await climb.prefills(sorted({_SHORTEST, typical, long, max(prompts)}))
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size < scenario.fleet.max_num_seqs]
    most = min(scenario.fleet.max_num_seqs, MOST_SEQUENCES)
    await climb.batches(sorted({*sizes, most}), slots, sorted({_SHORTEST, min(typical, longest)}))
    await climb.joins(sorted({_SHORTEST, typical, long}), longest)
    return climb.ladder


async def slowdown(driver: Driver, ladder: Ladder, check: int) -> float | None:
    """Time the largest batch of a ladder once more; return its step now, divided by its step then.

    :param ladder: with a batch at least.
    :param check: number of this check from 1 on, so that its prompts are new.
    :returns: None where the server didn't serve all of it, or the requests hardly overlapped.
    """
    then = max(ladder.batches, key=lambda batch: (batch.sequences, batch.distinct))
    try:
        now = await _Climb(driver, check).batch(then.sequences, then.distinct, then.prompt_tokens)
    except ServerError:
        return None  # what was measured before counts all the same
    return None if now is None else now.step_s / then.step_s


class _Climb:
    """The requests of a ladder; each has a number of its own, so that no two prompts are alike.

    :param check: 0 for the ladder itself; otherwise for what is timed again after it.
    """

    def __init__(self, driver: Driver, check: int = 0) -> None:
        self.driver, self.ladder = driver, Ladder()
        self._numbers = itertools.count(1_000_003 * (check + 1))

    def _request(self, adapter: int, prompt: int, output: int) -> PlannedRequest:
        return PlannedRequest(next(self._numbers), 0.0, adapter, prompt, output)

    async def send(self, adapter: int, prompt: int, output: int) -> SentRequest:
        """Send one request, wait for its end and return it."""
        return await self.driver.one(self._request(adapter, prompt, output))

    async def loads(self, slots: int, host: int, count: int) -> None:
        """Request adapters in turn, each twice: the first request loads, the second finds it resident.

        Going round more adapters than there is room for makes every LRU cache miss every time.
        """

        async def pair(adapter: int, storage: bool) -> None:
            cold = await self.send(adapter, _SHORTEST, 1)
            warm = await self.send(adapter, _SHORTEST, 1)
            seconds = (cold.first - cold.sent) - (warm.first - warm.sent)
            self.ladder.loads.append(TimedLoad(adapter, storage, seconds))

        for adapter in range(min(count, _LOADS)):
            await pair(adapter, True)
        if count > host:
            for number in range(_LOADS):
                await pair(number % count, True)
        if host > slots:
            among = min(host, max(2 * slots, slots + 8))
            for adapter in range(among):
                await self.send(adapter, _SHORTEST, 1)
            for number in range(_LOADS):
                await pair(number % among, False)

    async def prefills(self, prompts: Sequence[int]) -> None:
        """Time the first token of requests that are alone, by prompt length."""
        for tokens in prompts:
            for _ in range(_REPEATS):
                sent = await self.send(0, tokens, 1)
                self.ladder.prefill.append((tokens, sent.first - sent.sent))

    async def batches(self, sizes: Sequence[int], slots: int, prompts: Sequence[int]) -> None:
        """Time decode steps by batch size, distinct adapters and prompt length."""
        found: dict[tuple[int, int, int], list[DecodeBatch]] = {}
        for _ in range(_PASSES):
            for size in sizes:
                for distinct in sorted({1, max(1, min(size, slots) // 2), min(size, slots)}):
                    for prompt in prompts:
                        batch = await self.batch(size, distinct, prompt)
                        if batch is not None:
                            found.setdefault((size, distinct, prompt), []).append(batch)
        for passes in found.values():
            passes.sort(key=lambda batch: batch.step_s)
            self.ladder.batches.append(passes[(len(passes) - 1) // 2])

    async def batch(self, size: int, distinct: int, prompt: int) -> DecodeBatch | None:
        """Let a batch decode side by side; None where its requests hardly overlapped."""
        requests = [self._request(number % distinct, prompt, _ANSWER + size // 4) for number in range(size)]
        sent = await self.driver.together(requests)
        begin, end = max(s.first for s in sent), min(s.last for s in sent)
        steps, contexts = [], []
        for s in sent:
            inside = [(at, tokens) for at, tokens in s.stamps if begin <= at <= end]
            if len(inside) > 1 and inside[-1][1] - inside[0][1] >= _LEAST_STEPS and inside[-1][0] > inside[0][0]:
                steps.append((inside[-1][0] - inside[0][0]) / (inside[-1][1] - inside[0][1]))
                contexts.append(s.request.prompt_tokens + (inside[0][1] + inside[-1][1]) / 2)
        if not steps:
            return None
        return DecodeBatch(size, distinct, prompt, float(np.mean(contexts)) * size, float(np.mean(steps)))

    async def joins(self, prompts: Sequence[int], longest: int) -> None:
        """Let short requests join one that decodes, far enough apart to time how long each holds it up."""
        alone = [batch.step_s for batch in self.ladder.batches if batch.sequences == 1]
        apart_s = _STEPS_APART * (min(alone) if alone else 0.02)
        rng = random.Random(1)
        for _ in range(_STREAMS):  # turn by turn: a noisy minute of the machine is shared by all lengths
            for prompt in prompts:
                stream = asyncio.ensure_future(self.send(0, _SHORTEST, max(_ANSWER, min(longest - _SHORTEST, 400))))
                await asyncio.sleep(apart_s)
                joined: list[SentRequest] = []
                while len(joined) < _JOINS and not stream.done():
                    joined.append(await self.send(0, prompt, 1))
                    await asyncio.sleep(apart_s * rng.uniform(0.9, 1.1))  # at any place within a step
                self.ladder.joins += held_up(await stream, joined)


def held_up(stream: SentRequest, joined: Sequence[SentRequest]) -> list[JoiningRequest]:
    """Return by how much longer a stream's gaps around each joining request were than its other gaps."""
    stamps = np.array([at for at, _ in stream.stamps])
    gaps = np.diff(stamps)
    inside = [other for other in joined if len(stamps) and stamps[0] < other.sent and other.first < stamps[-1]]
    around = [(stamps[1:] > other.sent) & (stamps[:-1] < other.first) for other in inside]
    if not around:
        return []
    others = gaps[~np.logical_or.reduce(around)]
    if len(others) < _LEAST_STEPS:
        return []
    usual = float(np.median(others))
    return [
        JoiningRequest(other.request.prompt_tokens, float((gaps[near] - usual).sum()), other.first - other.sent, usual)
        for other, near in zip(inside, around, strict=True)
    ]
