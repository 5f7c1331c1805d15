"""The table of adapter modes: each can be had, what breaks a need is refused (refusals/), and nothing else is."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from refusal_tables import refusals
from strategies import build

from sim.spec.adapter_modes import MODES, OTHER_CHOICES, mode_of
from sim.spec.files.problems import known_keys
from sim.spec.needs import broken
from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.replication import assemble

CHOICES = {choice.name: choice for choice in (*OTHER_CHOICES, *MODES)}
NEEDS = [(choice, need) for choice in CHOICES.values() for need in choice.needs]

PER_ADAPTER = {"fleet.admission": "per-adapter", "cache.eviction": "cycle"}
UNIFIED = {"cache.gpu.unified": True, "fleet.kv_check": "whole-answer", "storage.mode": "blocking"}
VLLM = {"cache.eviction": "vllm-lru", "storage.mode": "blocking"}
SGLANG = {"cache.protects": "batch", "storage.mode": "blocking", "cache.gpu": {"slots": 4, "base_model_slot": True}}
FIXED = {"fleet.engine": "fixed", "fleet.service": "1 s"}

HAD: dict[str, list[dict[str, Any]]] = {
    "loads-at-arrival": [{}, FIXED, {"cache.eviction": "sieve", "storage.loaders": 2}],
    "loads-at-admission": [{"fleet.load_at": "admission"}, {"fleet.admission": "stop"}],
    "loads-in-steps": [
        {"storage.mode": "blocking"},
        {"fleet.engine": "sglang", "cache.eviction": "sieve"},
        {"fleet.engine": "tensorrt-llm"},
    ],
    "batch-slots": [SGLANG, {"fleet.engine": "sglang"}, {"fleet.engine": "sglang", "cache.eviction": "fifo"}],
    "vllm-lru": [VLLM, {"fleet.engine": "vllm-0.8"}, {"fleet.engine": "vllm-0.12"}, {"fleet.engine": "vllm"}],
    "per-adapter": [PER_ADAPTER, {"fleet.engine": "lorax"}],
    "unified": [UNIFIED, {"fleet.engine": "s-lora"}],
    "prefetching": [{"cache.prefetch": "queued", "fleet.load_at": "admission"}],
}


def scenario(values: dict[str, Any]) -> Scenario:
    """Return a scenario with values by dotted key."""
    sections: dict[str, Any] = {
        "workload": {"requests": 10, "arrivals": {"process": "poisson", "rate": "1/s"}},
        "adapters": {"count": 8, "size": "1 MiB"},
    }
    for key, value in values.items():
        *path, name = key.split(".")
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        section[name] = {"law": "fixed", "value": value} if name == "service" else value
    return build(**sections)


def test_every_key_of_the_table_is_one_of_a_scenario() -> None:
    keys = {key for choice in CHOICES.values() for key in choice.set_by}
    keys |= {key for _, need in NEEDS for key in (*need.keys, need.at or next(iter(need.keys)))}
    assert keys <= set(known_keys(Scenario))


def test_each_need_has_a_row_among_the_refusals() -> None:
    assert set(HAD) == set(MODES.names)
    answers = [row.values[0].answer for row in refusals(Path(__file__).with_name("refusals"))]
    needed = Counter(f"{need.at or next(iter(need.keys))}: {need.why}" for _, need in NEEDS)
    assert [text for text, count in needed.items() if sum(text in answer for answer in answers) < count] == []


@pytest.mark.parametrize(("name", "values"), [(name, each) for name, several in HAD.items() for each in several])
def test_a_replica_has_the_mode_that_the_scenario_chooses(name: str, values: dict[str, Any]) -> None:
    served = scenario(values)
    assert mode_of(served) == name
    mode = assemble(build_world(served), 0, 1).fleet.servers[0].mode
    assert type(mode) is MODES[name].load()


def fits(s: Scenario) -> bool:
    """Say whether the parts fit together, by rules written out one by one."""
    fleet, cache, storage, gpu, host = s.fleet, s.cache, s.storage, s.cache.gpu, s.cache.host
    fixed, blocking = fleet.engine == "fixed", storage.mode == "blocking"
    vllm, queues = cache.eviction == "vllm-lru", fleet.admission == "per-adapter"
    cycle = cache.eviction == "cycle"
    if fixed:
        in_steps = blocking or vllm or cycle or cache.eviction == "discard-when-idle" or cache.protects == "batch"
        ahead = cache.prefetch == "queued" or (host is not None and host.fill == "arrival")
        return not (in_steps or ahead or gpu.unified)
    if fleet.load_at == "arrival" and (blocking or fleet.admission != "skip"):
        return False
    if blocking and storage.loaders > 1:
        return False
    if queues != cycle or (queues and (blocking or cache.pinned > 0 or cache.warm == 1)):
        return False
    if not {"none": True, "vllm-0.8-scraped": vllm, "s-lora": gpu.unified}[fleet.front_end]:
        return False
    if fleet.passed_requests != "keep-order" and not vllm:
        return False
    if vllm:
        if not blocking or fleet.admission != "skip" or gpu.slots is None or cache.pinned > 0:
            return False
        if gpu.unified or gpu.base_model_slot:
            return False
        if host is not None and (host.fill != "load" or host.slots is None or host.slots < gpu.slots):
            return False
    if fleet.kv_check == "ratio" and cache.protects != "batch":
        return False
    if cache.protects == "batch":
        late = blocking or fleet.load_at == "admission"
        if not late or fleet.admission != "skip" or cache.eviction not in ("lru", "fifo"):
            return False
        if storage.loaders > 1 or cache.prefetch != "none":
            return False
        if gpu.slots is None or gpu.unified or not gpu.base_model_slot:
            return False
    if gpu.unified:
        if gpu.size is not None or gpu.base_model_slot or vllm or cycle or cache.pinned > 0:
            return False
        if not blocking or fleet.kv_check not in ("whole-answer", "peak"):
            return False
    at_admission = fleet.load_at == "admission" or (fleet.load_at is None and fleet.admission == "stop")
    return cache.prefetch == "none" or (at_admission and not blocking and not queues)


DRAWN: dict[str, tuple[Any, ...]] = {
    "fleet.engine": ("continuous", "vllm-0.32", "vllm-0.23", "sglang", "s-lora", "lorax", "tensorrt-llm"),
    "fleet.admission": ("skip", "stop", "per-adapter"),
    "fleet.load_at": ("arrival", "admission"),
    "fleet.kv_check": ("whole-prompt", "first-chunk", "whole-answer", "ratio"),
    "fleet.chunked_prefill": (True,),
    "fleet.front_end": ("none", "vllm-0.8-scraped", "s-lora"),
    "fleet.passed_requests": ("keep-order", "reversed", "own-queue"),
    "cache.eviction": ("lru", "belady", "vllm-lru", "discard-when-idle", "cycle"),
    "cache.protects": ("running", "batch"),
    "cache.gpu": (
        {"slots": 4},
        {"size": "1 GB"},
        {"unified": True},
        {"unified": True, "size": "1 GB"},
        {"slots": 4, "unified": True},
        {"slots": 4, "base_model_slot": True},
    ),
    "cache.host": ({"slots": 2}, {"slots": 8}, {"size": "1 GB"}, {"fill": "arrival"}, {"fill": "start"}),
    "cache.pinned": (0, 1),
    "cache.warm": (0, 1, "steady"),
    "cache.prefetch": ("none", "queued"),
    "storage.mode": ("overlap", "blocking"),
    "storage.loaders": (1, 2),
}


def test_a_scenario_is_refused_if_and_only_if_its_parts_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.spec.scenario.check", lambda scenario: None)
    rng = random.Random(20)
    counts = {True: 0, False: 0}
    for _ in range(1500):
        values = {key: rng.choice(DRAWN[key]) for key in rng.sample(list(DRAWN), rng.choice((1, 2, 3, 5)))}
        if rng.random() < 0.2:
            values = {key: value for key, value in values.items() if not key.startswith("fleet.")} | FIXED
        try:
            unchecked = scenario(values)
        except ValidationError:
            continue  # a section on its own is wrong
        accepted = not broken(unchecked, (*OTHER_CHOICES, *MODES))
        assert accepted == fits(unchecked), values
        counts[accepted] += 1
    assert min(counts.values()) > 300
