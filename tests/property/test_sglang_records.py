"""SGLang's rules: the naive twin held against records of a real server, and loraplan against both."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from naive_sglang import Pool, steps

from sim.policies.batch_slots import BatchSlots

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
