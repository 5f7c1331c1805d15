"""Screens a design by formulas before simulating it: memory, miss ratio, load of loaders and GPU.

The formulas ignore bursts, queues and interactions, so they decide nothing. They choose where a search begins, and the
report shows them next to the simulated numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats
from sim.errors import ScenarioError
from sim.policies.costs import StepCosts, load_seconds, mean_residual
from sim.policies.replay.lru_curve import che_miss_ratios, che_misses
from sim.results.run_directory.study_records import FormulaRecord
from sim.spec.profile import TierCost
from sim.spec.scenario import Scenario
from sim.spec.sections.laws import TimeLaw
from sim.world.memory.gpu_memory import padded_rank
from sim.world.world import Pool, World


def screen(world: World) -> FormulaRecord:
    """Return the estimates for a world; in a fleet of pools, as if every pool took all kinds of requests."""
    pools = [_of_pool(pool) for pool in world.own_pools]
    return _together(pools) if world.scenario.fleet.pools else pools[0]


def _of_pool(pool: Pool) -> FormulaRecord:
    scenario, traffic = pool.scenario, pool.traffic
    replicas = scenario.fleet.replicas
    shares, own, with_adapter = _shares(pool)
    weights = np.asarray(pool.weights[: len(shares)], dtype=np.int64)
    pooled = replicas if scenario.router_policy.splits_adapters else 1
    miss = float(che_miss_ratios(shares, [pool.capacity * pooled], weights)[0])
    if traffic.rate is None:
        return FormulaRecord(miss)
    rate = traffic.rate * own / replicas
    adapter_rate = rate * with_adapter
    busiest_s, in_steps_s = _loading(pool, shares, pooled)
    loader_load = adapter_rate * busiest_s
    if scenario.fleet.engine == "fixed":
        assert scenario.fleet.service is not None, "checked by the model"
        return FormulaRecord(miss, loader_load, rate * scenario.fleet.service.mean())
    batch, gpu_load, kv_share = _batch(pool, rate, adapter_rate * in_steps_s)
    return FormulaRecord(miss, loader_load, gpu_load, batch, kv_share)


def _together(pools: Sequence[FormulaRecord]) -> FormulaRecord:
    """Return the estimates for a fleet from those of each pool with all the traffic: their capacities add up."""

    def load(of: Callable[[FormulaRecord], float | None]) -> float | None:
        loads = [value for pool in pools if (value := of(pool)) is not None]
        if len(loads) < len(pools):
            return None
        return 0.0 if 0.0 in loads else 1 / sum(1 / value for value in loads)

    miss = sum(pool.miss_ratio for pool in pools) / len(pools)
    return FormulaRecord(miss, load(lambda pool: pool.loader_load), load(lambda pool: pool.gpu_load))


def _loading(pool: Pool, shares: Floats, pooled: int) -> tuple[float, float]:
    """Return what a request for an adapter takes on average, in seconds: of the loaders that have most to do, and of
    the time that steps wait for.

    A miss finds a copy in host memory, or reads storage.

    :param pooled: replicas whose caches add up.
    """
    used = shares > 0
    host = pool.scenario.cache.host
    first = host is not None and host.fill == "arrival"
    sizes = pool.population.size_bytes[: len(used)][used]
    weights = np.asarray(pool.weights[: len(used)], dtype=np.int64)[used]
    missed = shares[used] * che_misses(shares[used], pool.capacity * pooled, weights)
    read = _read(pool.scenario, shares[used], missed, sizes, pooled)
    copied = missed if first else np.maximum(missed - read, 0.0)  # what fetches first, copies afterwards
    storage = pool.scenario.storage
    costs = (None, None) if pool.profile is None else (pool.profile.load.storage, pool.profile.load.host)
    storage_s = float((read * _mean_load_s(storage.load, costs[0], pool)[: len(used)][used]).sum())
    host_s = float((copied * _mean_load_s(storage.host_load, costs[1], pool)[: len(used)][used]).sum())
    if storage.mode == "blocking":
        in_steps_s = host_s + (0.0 if first else storage_s)
        return max(in_steps_s, storage_s / storage.loaders), in_steps_s
    return max(storage_s / storage.loaders, host_s / storage.host_loaders), 0.0


def _read(scenario: Scenario, shares: Floats, missed: Floats, sizes: NDArray[np.int64], pooled: int) -> Floats:
    """Return for each adapter the share of requests that start a load from storage.

    :param missed: share of requests that find the adapter in no slot.
    """
    host, is_vllm = scenario.cache.host, scenario.cache.eviction == "vllm-lru"
    if host is None or host.fill == "start" or (host.slots is None and host.size is None):
        return missed if host is None else np.zeros(len(missed))
    capacity, own = (host.slots, None) if host.slots is not None else (host.size, sizes)
    assert capacity is not None, "it has slots or a size"
    if is_vllm or host.fill == "arrival":  # host memory notices every request
        return shares * che_misses(shares, capacity * pooled, own)
    read, some = np.zeros(len(missed)), missed > 0
    if some.any():  # it notices those that miss a slot
        rates = missed[some] / missed.sum()
        read[some] = missed[some] * che_misses(rates, capacity * pooled, None if own is None else own[some])
    return read


def _mean_load_s(law: TimeLaw | None, tier: TierCost | None, pool: Pool) -> Floats:
    count = len(pool.population)
    if law is not None:
        return np.full(count, float(law.mean()))
    return np.zeros(count) if tier is None else load_seconds(tier, pool.population) * mean_residual(tier)


def _shares(pool: Pool) -> tuple[np.ndarray, float, float]:
    """Return the adapters' shares of the requests for adapters, the share of all requests that go to replicas of the
    base model, and which share of these is for adapters."""
    shares, base = pool.traffic.shares(), pool.traffic.base_share
    if not pool.traffic.population.full_kinds:
        return shares, 1.0, 1.0 - base
    own = np.where(pool.traffic.population.full[: len(shares)], 0.0, shares)
    total = float(own.sum())
    asked = total * (1.0 - base)
    return own / max(total, 1e-300), asked + base, asked / max(asked + base, 1e-300)


def mean_tokens(pool: Pool) -> tuple[float, float]:
    """Return mean prompt and output tokens, of the first requests of the first replication."""
    chunk = next(pool.traffic.chunks(0), None)
    if chunk is None:
        raise ScenarioError(
            "no request arrives in this duration", key="workload.duration", hint="simulate longer, or raise the rate"
        )
    return float(chunk.prompt_tokens.mean()), float(chunk.output_tokens.mean())


def _batch(pool: Pool, rate: float, blocked: float) -> tuple[float | None, float, float | None]:
    """Return the batch at which a replica keeps up, the load of the GPU, and the share of the KV cache.

    A batch of b sequences yields b tokens per step of t(b) seconds, so it serves b / (t(b) · output) requests per
    second; the step also computes a share of their prompts. While a load blocks, nothing runs. With speculation a
    sequence yields as many tokens as the accept length says, and the step verifies and drafts.
    """
    scenario = pool.scenario
    assert pool.profile is not None, "a batching engine has a profile"
    assert pool.kv_tokens is not None, "a batching engine has a KV cache"
    prompt, output = mean_tokens(pool)
    held = prompt + output / 2
    rank = padded_rank(pool.profile, pool.population)
    costs = StepCosts(pool.profile.step, _slots(scenario, pool), pool.batched_tokens, rank, pool.experts)
    most = max(1, min(scenario.fleet.max_num_seqs, int(pool.kv_tokens / held)))
    shares, _, with_adapter = _shares(pool)
    best, enough = 0.0, None
    spec = scenario.fleet.speculation
    drafted = 0 if spec is None else spec.tokens
    each = pool.accept_length
    alone = costs.without_adapters()
    for batch in sorted({*np.unique(np.geomspace(1, most, 40).astype(int)).tolist(), most}):
        prefill = prompt / output * batch * each
        tokens = min(pool.batched_tokens, int(batch * (1 + drafted) + prefill))
        distinct = float(-np.expm1(batch * with_adapter * np.log1p(-np.minimum(shares, 1 - 1e-12))).sum())
        distinct = min(distinct, pool.capacity if scenario.cache.gpu.slots else batch)
        step = costs.step(tokens, int(batch * held), int(distinct), int(distinct * _mean_of_adapters(pool, pool.ranks)))
        if drafted and spec is not None:
            one = alone.step(tokens, int(batch * held), 0, 0)
            step += spec.draft * (one + (drafted - 1) * alone.step(batch, int(batch * held), 0, 0))
        host = costs.host_s(batch)
        step = max(step, host) if pool.asynchronous else step + host
        serves = batch * each / (step * output) * max(0.0, 1 - blocked)
        best = max(best, serves)
        if serves >= rate and enough is None:
            enough = float(batch)
    kv = (enough or most) * held / pool.kv_tokens
    return enough, rate / best if best > 0 else math.inf, min(1.0, kv)


def _slots(scenario: Scenario, pool: Pool) -> int:
    if scenario.cache.gpu.slots is not None:
        return scenario.cache.gpu.slots
    return max(1, int(pool.capacity / max(1.0, _mean_of_adapters(pool, pool.weights))))


def _mean_of_adapters(pool: Pool, values: list[int]) -> float:
    """Return the mean over adapters, without full models."""
    full = pool.traffic.population.full.tolist()
    if not any(full):
        return float(np.mean(values))
    return float(np.mean([value for value, whole in zip(values, full, strict=True) if not whole] or [0]))
