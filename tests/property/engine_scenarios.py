"""Random small scenarios of the engines' rules: each preset, and fields drawn on their own."""

from __future__ import annotations

from typing import Any

import strategies as parts
from hypothesis import assume
from hypothesis import strategies as st

from sim.spec.scenario import Scenario
from sim.world.build import build_world

ENGINES = ("sglang", "s-lora", "lorax", "tensorrt-llm")


@st.composite
def engine_scenarios(draw: st.DrawFn, *, engine: str | None = None, grid: bool | None = None) -> Scenario:
    """A scenario of one preset, of which some fields may be set otherwise; ``continuous``: all fields drawn freely."""
    if grid is None:
        grid = draw(st.integers(0, 3)) == 0
    engine = engine or draw(parts.sampled_from((*ENGINES, "continuous")))
    lengths = draw(parts.sampled_from(((8, 40), (40, 20), (90, 60), (20, 4), (40, 1))))
    adapters = draw(parts._adapters())
    fleet = draw(parts._fleets(grid, lengths)) | {"engine": engine}
    seats = fleet["max_num_seqs"]
    fleet["max_num_batched_tokens"] = draw(parts.sampled_from((lengths[0] + seats, 64 + seats, seats + 30)))
    if draw(st.booleans()):
        fleet["admission_interval"] = draw(parts.sampled_from((2, 3, 5, 20)))
        fleet["waiting_ratio"] = draw(parts.sampled_from((0.0, 0.5, 1.2)))
    cache: dict[str, Any] = draw(parts._caches(adapters))
    storage: dict[str, Any] = {"loaders": draw(st.integers(1, 2)), "host_loaders": draw(st.integers(1, 2))}
    for key in ("load", "host_load"):
        if draw(st.booleans()):
            storage[key] = draw(parts._times(grid))
    if engine in ("lorax", "s-lora"):
        cache |= {"pinned": 0, "warm": 0 if engine == "lorax" else cache["warm"]}
    free = {"continuous": _free, "sglang": _sglang, "s-lora": _s_lora, "lorax": _lorax, "tensorrt-llm": _tensorrt}
    draw(free[engine](fleet, cache, storage))
    if storage.get("mode") == "blocking" or engine in ("sglang", "s-lora", "tensorrt-llm"):
        storage["loaders"] = 1
    base_share = draw(parts.base_shares)
    workload = draw(parts._workloads(grid, adapters, lengths, base_share))
    scenario = parts.build(
        workload=workload,
        adapters=parts.with_base(adapters, workload, base_share),
        cache=cache,
        fleet=fleet,
        storage=storage,
        router={"policy": draw(parts.sampled_from(("round-robin", "least-loaded")))},
        run={"seed": draw(st.integers(0, 999)), "warmup": 0},
    )
    if scenario.workload.duration is not None:
        assume(any(build_world(scenario).traffic.chunks(0)))
    return scenario


def _host(draw: st.DrawFn, cache: dict[str, Any], fills: tuple[str, ...]) -> None:
    fill = draw(parts.sampled_from(fills))
    if fill == "load":
        return
    host: dict[str, Any] = {"fill": fill}
    if fill == "arrival":
        host |= draw(parts.sampled_from(({}, {"slots": 1}, {"slots": 2}, {"slots": 4}, {"size": "9 MiB"})))
        host["full"] = draw(parts.sampled_from(("wait", "reject")))
        if "slots" in host:
            cache["pinned"] = min(cache["pinned"], host["slots"] - 1)
        elif "size" in host:
            cache["pinned"] = 0
    cache["host"] = host


@st.composite
def _free(draw: st.DrawFn, fleet: dict[str, Any], cache: dict[str, Any], storage: dict[str, Any]) -> None:
    fleet["batching"] = draw(parts.sampled_from(("prefill-first", "prefill-first", "mixed")))
    fleet["kv_check"] = draw(parts.sampled_from(("whole-prompt", "first-chunk", "whole-answer", "peak")))
    if fleet["kv_check"] in ("whole-answer", "peak"):
        fleet["chunked_prefill"] = draw(st.booleans())
    if fleet["kv_check"] == "peak":
        fleet["block_size"] = 1
    if "admission_interval" in fleet and fleet["admission_interval"] == 1:
        del fleet["waiting_ratio"]
    way = draw(parts.sampled_from(("arrival", "admission", "blocking", "stop", "stop-blocking", "per-adapter")))
    fleet["admission"] = {"stop": "stop", "stop-blocking": "stop", "per-adapter": "per-adapter"}.get(way, "skip")
    if way in ("arrival", "admission"):
        fleet["load_at"] = way
    if way.endswith("blocking"):
        storage["mode"] = "blocking"
    cache["eviction"] = draw(parts.sampled_from((*parts.PROTECTED, "discard-when-idle", "discard-when-idle")))
    if way in ("admission", "stop"):
        cache["prefetch"] = draw(parts.sampled_from(("queued", "none")))
    if way == "per-adapter":
        cache |= {
            "eviction": "cycle",
            "cycle": draw(parts.sampled_from(("1 s", "50 ms", "1 ms"))),
            "pinned": 0,
            "warm": 0,
        }
    elif "slots" in cache["gpu"]:
        cache["gpu"]["base_model_slot"] = draw(st.booleans())
    _host(draw, cache, ("load", "start", "arrival"))


@st.composite
def _sglang(draw: st.DrawFn, fleet: dict[str, Any], cache: dict[str, Any], storage: dict[str, Any]) -> None:
    cache["gpu"] = {"slots": draw(st.integers(1, 6))}
    cache["protects"] = "running"  # SGLang's own slots have a twin of their own (naive_sglang.py)
    cache["pinned"] = min(cache["pinned"], cache["gpu"]["slots"] - 1)
    cache.pop("host", None)
    if draw(st.booleans()):
        storage["mode"], fleet["load_at"] = "overlap", "admission"
        cache["prefetch"] = draw(parts.sampled_from(("queued", "none")))
    if draw(st.booleans()):
        fleet["block_size"] = 1
    _host(draw, cache, ("load", "arrival"))


@st.composite
def _s_lora(draw: st.DrawFn, fleet: dict[str, Any], cache: dict[str, Any], storage: dict[str, Any]) -> None:
    fleet["block_size"] = 1
    cache.pop("host", None)
    cache["gpu"] = draw(parts.sampled_from(({"unified": True}, {"unified": True, "slots": 2})))
    cache["eviction"] = draw(parts.sampled_from(("discard-when-idle", *parts.PROTECTED)))
    # An adapter of 4 MiB takes 32 tokens of the pool.
    fleet["kv_tokens"] += draw(parts.sampled_from((32, 40, 100, 8)))
    if draw(st.booleans()):
        fleet["kv_check"] = "whole-answer"
    if draw(st.booleans()):
        fleet["budget_kv_share"] = draw(parts.sampled_from((1 / 6, 0.5, 1.0)))
    _host(draw, cache, ("load", "load", "arrival"))


@st.composite
def _lorax(draw: st.DrawFn, fleet: dict[str, Any], cache: dict[str, Any], storage: dict[str, Any]) -> None:
    cache["eviction"] = "cycle"
    cache["cycle"] = draw(parts.sampled_from(("1 s", "100 ms", "20 ms", "1 ms")))
    cache.pop("host", None)
    fleet["kv_tokens"] += fleet["block_size"]
    _host(draw, cache, ("load", "load", "arrival"))


@st.composite
def _tensorrt(draw: st.DrawFn, fleet: dict[str, Any], cache: dict[str, Any], storage: dict[str, Any]) -> None:
    cache.pop("host", None)
    _host(draw, cache, ("arrival", "start"))
