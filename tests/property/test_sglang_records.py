"""SGLang's rules: the naive twin held against records of a real server, and loraplan against both."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from naive_sglang import Batch, Pool, Server, steps

from sim.policies.batch_slots import BatchSlots
from sim.studies.fidelity.sglang_record import Replayer, SglangRecord, read_any_record, replay_any_record

RECORDS = (
    "base_slots4",
    "drain",
    "ignore_eos",
    "kv_chunked",
    "kv_retract",
    "kv_retract_bursts",
    "mixed_chunked",
    "overlap_loading",
    "overlap_schedule",
    "overlap_schedule_radix",
    "pinned",
    "radix_lpm",
    "radix_page16",
    "radix_plenty",
    "radix_retract",
    "radix_retract_bursts",
    "radix_sessions",
    "radix_tight",
    "slots16_wide",
    "slots2_fifo",
    "slots4_zipf",
    "slots8_fifo",
    "slots8_uniform",
)


def read(shared: Path, name: str) -> dict[str, Any]:
    with gzip.open(shared / "sglang_steps" / f"{name}.json.gz") as file:
        return json.load(file)  # type: ignore[no-any-return]


def test_no_record_is_left_out(shared: Path) -> None:
    assert {file.name.removesuffix(".json.gz") for file in (shared / "sglang_steps").glob("*.gz")} == set(RECORDS)


@pytest.mark.parametrize("name", RECORDS)
def test_the_twin_meets_a_record_step_for_step(shared: Path, name: str) -> None:
    record = read(shared, name)
    config = record["config"]
    first, least, _ = config["ratio"]
    config["ratio"][2] = (first - least) / 600  # some records have it rounded
    ours = steps(config, record["requests"])
    assert len(ours) == len(record["steps"])
    for mine, theirs in zip(ours, record["steps"], strict=True):
        found = json.loads(json.dumps(mine))
        for step in (found, theirs):
            step["loads"] = [adapter for adapter, _ in step["loads"]]
        assert {key: found.get(key) for key in theirs} == theirs


@pytest.mark.parametrize("name", RECORDS)
def test_loraplan_meets_a_record_step_for_step(shared: Path, name: str) -> None:
    record = read_any_record(shared / "sglang_steps" / f"{name}.json.gz")
    assert isinstance(record, SglangRecord)
    result = replay_any_record(record)
    assert result.first_difference is None  # of tokens, cached ones too, retractions, loads, evictions, in their order
    assert result.equal_steps == result.steps > 0
    assert result.equal_loads == result.predicted_loads == result.loads > 0
    assert result.predicted_cached_tokens == result.cached_tokens
    assert set(result.late_steps.values()) == {0}


@pytest.mark.parametrize("seed", range(300))
def test_slots_that_protect_a_batch_are_those_of_the_twin(seed: int) -> None:
    rng = Random(seed)
    adapters, slots = rng.randint(2, 12), rng.randint(1, 6)
    order = rng.sample(range(adapters), adapters)
    pinned = rng.sample(range(adapters), rng.randint(0, min(slots - 1, adapters - 1)))
    fifo = rng.random() < 0.4
    twin = Pool({"slots": slots, "order": order, "eviction": "fifo" if fifo else "lru", "pinned": pinned})
    cache = BatchSlots(slots, [order.index(adapter) for adapter in range(adapters)], fifo=fifo, pinned=pinned)
    base = cache.serve_base_model()
    named = {base: None, **{adapter: adapter for adapter in range(adapters)}}
    for _ in range(60):
        batch: list[int] = []
        for adapter in rng.sample(range(adapters + 1), adapters + 1):
            fits = cache.can_claim(adapter)
            assert fits == twin.fits({named[other] for other in (*batch, adapter)})
            if fits and rng.random() < 0.7:
                cache.acquire(adapter)
                batch.append(adapter)
        cache.victims, twin.loads, twin.evictions = [], [], []
        twin.fetch({named[adapter] for adapter in batch})
        assert [named[adapter] for adapter in cache.fetch(batch)] == twin.loads
        assert [named[adapter] for adapter in cache.victims] == twin.evictions
        cache.check_integrity()
        for adapter in batch:
            cache.release(adapter)


class Uncounted(list[int]):
    """A list with a place for each adapter, of which nothing may look at all."""

    def __iter__(self) -> Any:
        raise AssertionError("this takes time for every adapter there is")


def test_loads_ahead_take_no_time_for_adapters_that_nothing_wants() -> None:
    cache = BatchSlots(2, range(1000))
    cache.users = Uncounted(cache.users)
    assert cache.fetch_ahead(7)
    cache.arrived(7)
    cache.acquire(7)
    assert cache.fetch_ahead(8)
    assert not cache.fetch_ahead(9)


def drawn(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A small server and its requests; ``came_s`` is between two steps of a second."""
    rng = Random(seed)
    pick = rng.choice
    adapters, slots, page = rng.randint(1, 12), rng.randint(1, 6), pick((1, 1, 1, 4, 16))
    first = 0.7 * pick((1.0, 1.0, 0.3, 0.05))
    caching = rng.random() < 0.6
    config: dict[str, Any] = {
        "slots": slots,
        "adapters": adapters,
        "max_num_seqs": pick((1, 4, 16)),
        "max_num_batched_tokens": pick((32, 64, 300)),
        "max_prefill_tokens": 16384,
        "block_size": page,
        "kv_tokens": page * (rng.randint(320, 900) // page),
        "prefix_caching": caching,
        "texts": rng.randint(1, 4) if caching else 0,
        "eviction": pick(("lru", "lru", "fifo")),
        "pinned": list(range(rng.randint(0, min(slots, adapters) - 1))) if rng.random() < 0.3 else [],
        "policy": "lpm" if caching and rng.random() < 0.25 else "fcfs",
        "mixed": rng.random() < 0.2,
        "overlap_schedule": rng.random() < 0.5,
        "overlap_loading": rng.randint(1, 4) if rng.random() < 0.2 else 0,
        "drain": rng.choice((3, 20)) if rng.random() < 0.2 else 0,
        "ignore_eos": rng.random() < 0.2,
        "ratio": [first, first * 0.14, first * 0.86 / 600],
        "order": rng.sample(range(adapters), adapters),
    }
    if config["mixed"]:
        config["max_num_seqs"] = min(config["max_num_seqs"], 4)
    requests: list[dict[str, Any]] = []
    came_s, gap_s = 0.5, pick((0.0, 0.5, 4.0, 30.0))
    lengths = [pick((0, 10, 40, 100)) for _ in range(config["texts"])]
    for place in range(rng.randint(3, 40)):
        came_s += int(rng.expovariate(1 / gap_s)) if gap_s else 0
        output = rng.randint(1, 50)
        limit = output if config["ignore_eos"] else output * pick((100, 100, 120, 250)) // 100
        r = {"id": place, "adapter": rng.randrange(adapters), "output_tokens": output, "max_tokens": limit}
        r |= {"prompt_tokens": rng.randint(1, 60), "came_s": came_s}
        if rng.random() < 0.15:
            r["adapter"] = None
        if config["texts"]:
            text = rng.randrange(config["texts"])
            r |= {"prefix": [text, lengths[text]], "prompt_tokens": r["prompt_tokens"] + lengths[text]}
        requests.append(r)
    return config, requests


@pytest.mark.parametrize("seed", [*range(400), 2016])  # 2016: a try that only waits for memory
def test_loraplan_meets_the_twin_step_for_step(seed: int) -> None:
    config, requests = drawn(seed)
    for r in requests:
        r["before_try"] = 1 + int(r["came_s"])
    record = {"engine": "sglang 0.5.23 (cpu)", "mode": "steps", "config": config, "requests": requests}
    record["steps"] = steps(config, requests)
    result = replay_any_record(SglangRecord.model_validate(record))
    assert result.first_difference is None
    assert result.equal_steps == result.steps
    assert result.equal_loads == result.predicted_loads == result.loads


class Clocked(Server):
    """The twin with a clock: a step takes a second, and everything else no time."""

    def __init__(self, config: dict[str, Any], requests: list[dict[str, Any]]) -> None:
        super().__init__(config, requests)
        self.now_s = 0.0
        self.first_s: dict[int, float] = {}
        self.ended_s: dict[int, float] = {}

    def due(self, r: dict[str, Any]) -> bool:
        return bool(r["came_s"] <= self.now_s)

    def plan(self) -> Batch | None:
        batch = super().plan()
        if batch is not None:
            batch.ends_s = self.now_s + 1
        return batch

    def take_result(self, batch: Batch) -> None:
        given = {asked: asked.given for asked in batch.requests}
        super().take_result(batch)
        for asked in batch.requests:
            if asked.given > given[asked]:
                self.first_s.setdefault(asked.id, batch.ends_s)
                self.ended_s[asked.id] = batch.ends_s

    def run(self) -> None:
        while self.coming or not all(asked.done for asked in self.asked):
            assert self.tries < 20_000, "nothing ends"
            self.one_try()
            if self.last is not None:
                self.now_s += 1
            elif self.idle and self.coming:  # only now has it set its ratio back
                self.now_s = max(self.now_s, min(r["came_s"] for r in self.coming))


def leap(config: dict[str, Any], requests: list[dict[str, Any]]) -> tuple[list[int | None], dict[int, float]]:
    """Run loraplan's scheduler as a replica does, equal steps at once; return the loads, and the ends."""
    record = {"engine": "sglang 0.5.23", "mode": "", "config": config, "requests": requests, "steps": [{"try": 1}]}
    replayer = Replayer(SglangRecord.model_validate(record))
    scheduler, cache, waiting = replayer.scheduler, replayer.cache, replayer.scheduler.waiting
    coming = [(requests[request.index]["came_s"], request) for request in replayer.requests]
    now, loads, done = 0.0, [], {}
    while len(done) < len(requests):
        assert now < 20_000, "nothing ends"
        while coming and coming[0][0] <= now:
            waiting.push(coming.pop(0)[1])
        step = scheduler.compose(now)
        scheduler.check_integrity()
        waiting.unloaded.clear()
        if not step.steps:
            now = coming[0][0]
            continue
        decodes = step.decoding or scheduler.overrunning
        batch = (*scheduler.running, *scheduler.overrunning) if decodes else step.prefills
        loads += cache.fetch({request.adapter for request in batch})
        count = 1
        while count < step.steps:
            while coming and coming[0][0] <= now + count:
                cut = scheduler.may_change(coming[0][1].index << 20)
                waiting.push(coming.pop(0)[1])
                if cut:
                    step.steps = count
            count += count < step.steps
        now += count
        for request in scheduler.complete(count, now):
            cache.release(request.adapter)
            done[request.index] = now
    return [None if adapter == replayer.base_model else adapter for adapter in loads], done


@pytest.mark.parametrize("seed", range(1000, 1400))
def test_leaps_are_as_many_steps_of_the_twin(seed: int) -> None:
    config, requests = drawn(seed)
    config |= {"drain": 0, "overlap_loading": 0}  # their clock counts tries
    for r in requests:
        r["before_try"] = 1
    twin = Clocked(config, [dict(r) for r in requests])
    twin.run()
    loads, done = leap(config, requests)
    assert done == twin.ended_s
    assert loads == [adapter for step in twin.steps for adapter, _ in step["loads"]]
