"""Costs over the API: a short ladder of prompts, batches, joins and loads, each a few requests in a closed loop."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import platform
import random
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calibrate.serve.client import PlannedRequest, SentRequest, longest_request
from calibrate.serve.drive import Driver
from calibrate.serve.http_answer import ServerError
from sim.arrays import Floats
from sim.rng import stream
from sim.spec.profile import FRONT_END, Profile, StepCost
from sim.spec.scenario import Scenario
from sim.studies.fidelity.least_squares import (
    DRAWS,
    LEFT_OUT,
    Problem,
    hold_out_line,
    left_out_errors,
    resample,
    significant,
    solve,
    sum_of_terms,
)
from sim.studies.fidelity.step_terms import columns, step_cost
from sim.traffic.adapters import DTYPE_BYTES, SHAPES, Population

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

    :raises ServerError: where the server doesn't serve one.
    """
    slots = min(scenario.cache.gpu.slots or count, count)
    host = slots if scenario.cache.host is None else scenario.cache.host.slots or count
    longest = longest_request(planned)
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


# From the ladder to a profile: step and load costs by non-negative least squares.

_QUANTILES = np.linspace(0, 1, 21)
_NO_BANDWIDTH = 1e15  # bytes per second: the size adds nothing
_LEAST_S = 1e-6
_DELAYED = 0.25
"""Quantile of the times by which a join delays a stream: a sum over several gaps also contains other disturbances."""


def fit_profile(
    ladder: Ladder,
    scenario: Scenario,
    command: str,
    *,
    base_model: str,
    population: Population,
    engine: str,
    kv_tokens: int | None = None,
) -> Profile:
    """Return the profile of the server that was measured.

    :param engine: name and version, as far as they are known.
    :param kv_tokens: size of its KV cache, where the server reports it.
    :param command: that made it, without paths, hosts and keys: a profile is passed on.
    :raises ServerError: where too little was measured.
    """
    if len(ladder.batches) < 3 or not ladder.prefill:
        raise ServerError("too few of the ladder's requests decoded side by side to fit step costs", where="--fit")
    step, batches = fit_steps(ladder), _batch_problem(ladder.batches)
    hold_out = hold_out_line("decode steps", "additive", LEFT_OUT, left_out_errors(batches, sum_of_terms(_fit_batches)))
    outside_s = step.pop("front_end")
    slots = scenario.cache.gpu.slots or len(population)
    max_rank = int(population.rank.max())
    if engine.startswith("/"):  # vLLM uses the path of a model without a name
        engine = engine.rstrip("/").rpartition("/")[2]
    return Profile.model_validate(
        {
            "schema_version": 1,
            "name": f"{re.sub(r'[^A-Za-z0-9._]+', '-', engine).strip('-')}/{base_model}/fitted",
            "status": "measured",
            "description": "Fitted over the API of a live server by loraplan calibrate serve --fit.",
            "device": platform.processor() or platform.machine(),
            "model": base_model,
            "dtype": "bf16",
            "step": _step_cost(step),
            "load": _load_cost(ladder.loads, population),
            "draws": _draws(ladder, population),
            "memory": _memory(base_model, population, slots, kv_tokens or 65536),
            "envelope": {
                "sequences": max(batch.sequences for batch in ladder.batches),
                "distinct_adapters": max(batch.distinct for batch in ladder.batches),
                "rank": max_rank,
                "slots": slots,
            },
            "sources": {
                "step": "ladder of batches, prompts and joins over the API",
                "load": "pairs of a cold and a warm request",
                "memory": "KV tokens as reported by the server; the other sizes are placeholders",
            },
            "provenance": {
                "command": command,
                "data": {},
                "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
                "residuals": {"decode steps": float(np.median(np.abs(batches.errors(_fit_batches(batches)))))},
                "device": {FRONT_END: f"{outside_s:.6g}", "measured over": "the API"},
            },
            "conditions": {
                "engine": engine,
                "graphs": "as the server was started",
                "lora_backend": "the server's own",
                "slots": [slots],
                "max_ranks": [max_rank],
            },
            "hold_out": [hold_out],
        }
    )


def public_command(scenario: str, *, launched: bool, settings: Sequence[str]) -> str:
    """Return the command of a fit without paths and hosts; of a file that a setting names, its name is left.

    :param scenario: its name; ``settings``: the values of ``--set``, those with a URL are left out.
    """
    words = ["loraplan", "calibrate", "serve", scenario, *(["--launch", "vllm"] if launched else []), "--fit"]
    for setting in settings:
        if "://" not in setting:
            words += ["--set", re.sub(r"[^\s,{}\[\]=:'\"]*[/\\][^\s,{}\[\]=:'\"]*", _file_name, setting)]
    return shlex.join(words)


def _file_name(found: re.Match[str]) -> str:
    is_rate = re.fullmatch(r"[\d.,_]+/[a-z]+", found[0])
    return found[0] if is_rate else re.split(r"[/\\]", found[0].rstrip("/\\"))[-1]


def _step_cost(step: Mapping[str, float]) -> StepCost:
    return step_cost(dict(zip(step, significant(list(step.values())), strict=True)))


def _load_cost(loads: Sequence[TimedLoad], population: Population) -> dict[str, Any]:
    storage = _tier([load for load in loads if load.storage], population)
    host = _tier([load for load in loads if not load.storage], population)
    nothing = {"open_s": 0.0, "bandwidth_bytes_per_s": _NO_BANDWIDTH}
    return {"storage": storage or host or nothing, "host": host or storage or nothing}


def _draws(ladder: Ladder, population: Population) -> list[dict[str, Any]]:
    rng = stream(0, 0, "bootstrap")
    drawn = [resampled(ladder, rng) for _ in range(DRAWS)]
    return [{"step": _step_cost(fit_steps(one)), "load": _load_cost(one.loads, population)} for one in drawn]


def resampled(ladder: Ladder, rng: np.random.Generator) -> Ladder:
    """Return as many rungs of each kind, drawn with replacement.

    Batches are drawn within their size, prompts and joins within their length, loads within their tier: no draw lacks
    what a fit needs.
    """

    return Ladder(
        resample(ladder.prefill, rng, lambda pair: pair[0]),
        resample(ladder.batches, rng, lambda batch: batch.sequences),
        resample(ladder.joins, rng, lambda join: join.prompt_tokens),
        resample(ladder.loads, rng, lambda load: load.storage),
    )


def fit_steps(ladder: Ladder) -> dict[str, float]:
    """Return seconds by ``step``, ``sequence``, ``token``, ``adapter``, ``kv_token``, ``attended``,
    ``prefill_step`` and ``front_end``."""
    step, sequence, adapter, kv_token = map(float, _fit_batches(_batch_problem(ladder.batches)))
    token, attended = _prefill(*_quantiles(ladder.prefill, 0.5))
    # Decoding sequences pay for their token as well: what a token costs is no more than a sequence does.
    sequence_only = max(0.0, sequence - token)
    prompts, held = _quantiles([(join.prompt_tokens, join.held_s) for join in ladder.joins], _DELAYED)
    rest = sequence_only + token * prompts + attended * prompts**2 / 2
    prefill_step = float(max(0.0, np.median(held - rest))) if len(held) else 0.0
    return {
        "step": step,
        "sequence": sequence_only,
        "token": token,
        "adapter": adapter,
        "kv_token": kv_token,
        "attended": attended,
        "prefill_step": prefill_step,
        "front_end": _front_end(ladder.joins, sequence_only + prefill_step, token, attended),
    }


def _front_end(joins: Sequence[JoiningRequest], base_s: float, token: float, attended: float) -> float:
    """Return the part of a joining request's TTFT that is neither its step nor the wait for it, half a step on average.

    A server without other work answers faster than one that streams to other requests, so lone requests can't be used.
    """
    left = [
        join.ttft_s - 1.5 * join.step_s - base_s - token * join.prompt_tokens - attended * join.prompt_tokens**2 / 2
        for join in joins
    ]
    return max(0.0, float(np.median(left))) if left else 0.0


def _batch_problem(batches: Sequence[DecodeBatch]) -> Problem:
    rows = [(batch.sequences, batch.distinct, batch.kv_tokens) for batch in batches]
    facts = dict(zip(("sequences", "distinct", "decode_kv_tokens"), np.array(rows, dtype=np.float64).T, strict=True))
    made_of = columns(("step", "sequence", "adapter", "kv_token"), facts.__getitem__, {})
    return Problem.of(made_of, [batch.step_s for batch in batches])


def _fit_batches(problem: Problem) -> Floats:
    """Return seconds of a step, of a sequence, of a distinct adapter and of a KV token."""
    found = solve(problem, "relative")  # a ladder spans small and large batches
    found[0] = max(_LEAST_S, found[0])
    return found


def _prefill(lengths: Floats, ttft: Floats) -> tuple[float, float]:
    """Return seconds of a prompt token, and of a pair of attended tokens."""
    if len(lengths) < 2:
        return 0.0, 0.0
    pairs = lengths**2 / 2 * (len(lengths) >= 4)
    problem = Problem.of({"token": lengths, "attended": pairs, "step": np.ones(len(lengths))}, ttft)
    token, attended, _ = solve(problem, "relative")
    return float(token), float(attended)


def _quantiles(pairs: Sequence[tuple[int, float]], q: float) -> tuple[Floats, Floats]:
    keys = sorted({key for key, _ in pairs})
    values = [float(np.quantile([value for other, value in pairs if other == key], q)) for key in keys]
    return np.array(keys, dtype=np.float64), np.array(values)


def _tier(loads: Sequence[TimedLoad], population: Population) -> dict[str, Any] | None:
    """Return the cost of a load: a time and its spread, and bytes per second where sizes differ."""
    if not loads:
        return None
    size = np.array([float(population.size_bytes[load.adapter]) for load in loads])
    seconds = np.maximum([load.seconds for load in loads], _LEAST_S)
    median = float(np.median(seconds))
    open_s, bandwidth = median, _NO_BANDWIDTH
    if len(set(size.tolist())) > 1:
        open_s, byte_s = solve(Problem.of({"load": np.ones(len(size)), "byte": size}, seconds), "absolute").tolist()
        bandwidth = 1 / byte_s if byte_s > 0 else _NO_BANDWIDTH
    predicted = np.maximum(open_s + size / bandwidth, _LEAST_S)
    residual = np.maximum(np.quantile(seconds / predicted, _QUANTILES), 1e-6)
    open_s, bandwidth = significant([open_s, bandwidth])
    return {"open_s": open_s, "bandwidth_bytes_per_s": bandwidth, "residual": significant(residual)}


def _memory(base_model: str, population: Population, slots: int, kv_tokens: int) -> dict[str, Any]:
    """Return memory that leaves just the KV tokens that the server has."""
    shape = SHAPES.get(base_model)
    per_token = 2 * DTYPE_BYTES["bf16"] * shape.layers * shape.kv_heads * shape.head_dim if shape else 1
    adapters = slots * population.slot_bytes
    return {
        "total_bytes": 1 + adapters + kv_tokens * per_token,
        "utilization": 1.0,
        "weights_bytes": 1,
        "overhead_bytes": 0,
        "kv_bytes_per_token": per_token,
    }
