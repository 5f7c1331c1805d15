"""Random small scenarios, random profiles, random traces: all valid, all built to hurt.

Every engine, alone, and with faults, requests at the wrong adapter and new versions.

Profiles and traces are written to a folder that goes when the tests end; the name of a file is the hash of its text, so
the same example names the same file in every run.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import assume
from hypothesis import strategies as st

from sim.errors import ScenarioError
from sim.results.records import Recording
from sim.spec.engines import ENGINES
from sim.spec.policies import FILTERS, SCORERS
from sim.spec.policies import ROUTERS as ROUTER_POLICIES
from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.replication import simulate
from sim.world.world import World

T = TypeVar("T")
_made: dict[str, st.SearchStrategy[Any]] = {}
_FOLDER = Path(tempfile.mkdtemp(prefix="loraplan-tests-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)

MODEL = "llama-3.1-8b"
GRID = 1 / 64
"""Times of grid scenarios are multiples of this: sums are exact and many things happen at the same instant."""
ODD = 1.0137159
"""Makes round draws odd, so that elsewhere nothing happens at the same instant by chance."""
VLLM = ("vllm-0.8", "vllm-0.9.2", "vllm-0.18", "vllm-0.23", "vllm-0.32")
PROTECTED = (
    "lru",
    "lru",
    "fifo",
    "clock",
    "lfu",
    "lfu-history",
    "sieve",
    "s3-fifo",
    "gdsf",
    "random",
    "belady",
    "refcount-score",
)
"""Evictions that ask nothing of the engine."""
PRESETS = ("sglang", "s-lora", "lorax", "tensorrt-llm")
ROUTERS = (
    "round-robin",
    "least-loaded",
    "random",
    "power-of-two",
    "hash",
    "affinity-residency",
    "affinity-activity",
    "service-per-adapter",
)
STRATEGIES = ("new-name", "in-place", "unload-then-load", "drain-then-swap", "lazy-reread")
DRAINING = ("unload-then-load", "drain-then-swap")
STAGES = ((1.0,), (0.5, 1.0), (0.05, 0.3, 1.0))
GATES: tuple[dict[str, Any], ...] = (
    {"e2e_p99": "1000000 s"},
    {"ttft_mean": "1 us"},
    {"ttft_p99": "300 ms", "e2e_mean": "1 s"},
    {"miss_ratio": "10%"},
)
"""Limits that all meet, that nobody meets, and that some meet."""
MISTAKES = ("misrouting", "stale-map", "base-model")
BREAKAGES = ("crash", "slow-storage", "storage-stall", "failing-loads", "network-delay")
SPEED = ("slow-storage", "storage-stall", "network-delay")


def write_file(suffix: str, text: str) -> str:
    """Write a file named after its content and return its path."""
    path = _FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}{suffix}"
    if not path.exists():
        path.write_text(text, encoding="utf-8")
    return str(path)


def write_profile(
    step: dict[str, Any], storage: dict[str, Any] | None = None, host: dict[str, Any] | None = None
) -> str:
    """Write a valid profile with these costs and return its path."""
    free = {"bandwidth_bytes_per_s": 1e12}
    profile = {
        "schema_version": 1,
        "name": "test",
        "status": "assumed",
        "description": "Made up for a test.",
        "device": "none",
        "model": MODEL,
        "dtype": "bf16",
        "step": step,
        "load": {"storage": storage or free, "host": host or free},
        "memory": {
            "total_bytes": 80 * 2**30,
            "utilization": 0.9,
            "weights_bytes": 16 * 10**9,
            "overhead_bytes": 4 * 10**9,
            "kv_bytes_per_token": 131072,
        },
        "envelope": {"sequences": 1000, "distinct_adapters": 1000, "rank": 256, "slots": 10000},
        "sources": {"step": "made up"},
    }
    return write_file(".json", json.dumps(profile))


def write_trace(rows: list[tuple[float, int, int, int]]) -> str:
    """Write (seconds, adapter, prompt, output) rows as a plain CSV trace and return its path; adapter -1: none."""
    lines = [
        f"{seconds!r},{'' if adapter < 0 else f'a{adapter}'},{prompt},{output}"
        for seconds, adapter, prompt, output in rows
    ]
    return write_file(".csv", "\n".join(["timestamp_s,adapter_id,input_tokens,output_tokens", *lines]) + "\n")


def seconds(value: float) -> str:
    """Return a time as a scenario file has it; reads back as the same float."""
    return f"{value!r} s"


def fixed_time(value: float) -> dict[str, Any]:
    return {"law": "fixed", "value": seconds(value)}


def build(**sections: Any) -> Scenario:
    """Return a scenario of these sections: unless they say so, of the idealised engine, measured as one section.

    Preempted requests compute everything again, and no step is scheduled ahead, as in most naive twins, unless
    ``prefix_caching`` and ``async_scheduling`` are given.
    Costs are round numbers, unless a profile or a GPU is given. No time passes between clients and engine.
    """
    sections.setdefault("run", {"seed": 1, "warmup": 0})
    sections["fleet"] = {"engine": "continuous", **sections.get("fleet", {})}
    if sections["fleet"]["engine"] != "fixed":
        sections["fleet"].setdefault("front_end_time", 0)
    if "gpu" not in sections["fleet"]:
        sections["fleet"].setdefault("profile", "h100-64gb/llama-3.1-8b/assumed")
    preset = ENGINES[sections["fleet"]["engine"]].preset.get("fleet", {})
    for key in ("prefix_caching", "async_scheduling"):
        if key in preset:
            sections["fleet"].setdefault(key, False)
    return Scenario.model_validate({"schema_version": 1, "name": "test", **sections})


def services(rows: Sequence[tuple[float, int]], seconds: float = 1.0, **sections: Any) -> Scenario:
    """Return services of so many seconds on engine ``fixed``, with four slots and no time for loads unless sections say
    so; rows are arrivals and adapters."""
    given = {"adapters": {"size": "1 MB"}, "cache": {"gpu": {"slots": 4}}, "storage": {"load": fixed_time(0.0)}}
    fleet = {"engine": "fixed", "service": fixed_time(seconds), **sections.pop("fleet", {})}
    trace = write_trace([(second, adapter, 1, 1) for second, adapter in rows])
    return build(workload={"trace": {"file": trace}}, fleet=fleet, **(given | sections))


def poisson(
    requests: int, rate: str, prompt: int | None = None, output: int | None = None, **more: Any
) -> dict[str, Any]:
    """Return a workload of so many requests that come at random; prompts and answers have this length if given."""
    lengths = {} if prompt is None else {"tokens": {"prompt": prompt, "output": output}}
    return {"requests": requests, "arrivals": {"process": "poisson", "rate": rate}, **lengths, **more}


def run(given: Scenario | World, replication: int = 0, sections: int = 1) -> Recording:
    """Simulate one replication of a scenario, or of the world that was built of it."""
    return simulate(given if isinstance(given, World) else build_world(given), replication, sections)


def sampled_from(values: Sequence[T]) -> st.SearchStrategy[T]:
    """Return Hypothesis's strategy of that name, the same one for the same values where these can't change.

    Hypothesis examines each new strategy before it draws from it: a tenth of the time of tests that draw scenarios.
    """
    try:
        hash(tuple(values))
    except TypeError:  # a drawn dictionary may be changed
        return st.sampled_from(values)
    name = repr(values)
    if name not in _made:
        _made[name] = st.sampled_from(values)
    return _made[name]


@st.composite
def _times(draw: st.DrawFn, grid: bool) -> dict[str, Any]:
    """The law of a load or service time: tenths to hundreds of milliseconds."""
    if grid:
        return fixed_time(draw(st.integers(1, 40)) * GRID)
    low = draw(st.integers(1, 100)) * ODD * 1e-3
    law = draw(sampled_from(("fixed", "uniform", "exponential")))
    if law == "fixed":
        return fixed_time(low)
    if law == "exponential":
        return {"law": law, "mean": seconds(low)}
    return {"law": law, "low": seconds(low), "high": seconds(low * draw(st.integers(2, 10)))}


@st.composite
def _profiles(draw: st.DrawFn, grid: bool) -> str:
    """All-positive costs: steps of 2 to 60 ms, a good part of it for the KV cache. On the grid: whole ticks."""
    if grid:
        ticks = sampled_from((0, 0, 0, GRID))
        step: dict[str, Any] = {
            "fixed_s": draw(st.integers(1, 3)) * GRID,
            "tokens": [[0, 0.0], [64, draw(ticks) * 64]],
            "per_sequence_s": draw(ticks),
            "per_kv_token_s": draw(sampled_from((0, 0, GRID / 16, GRID))),
            "prefill_step_s": draw(ticks),
            "decode_step_s": draw(ticks),
            "per_passed_s": draw(ticks),
            "lora": {"per_slot_s": draw(ticks), "per_adapter_s": draw(ticks)},
        }
        storage, host = (
            {"open_s": draw(st.integers(1, most)) * GRID, "bandwidth_bytes_per_s": 2.0**80} for most in (60, 10)
        )
        return write_profile(step, storage, host)
    milli = 1e-3

    def some(most: int, unit: float) -> float:
        return draw(st.integers(1, most)) * unit * ODD

    per_token = some(8, milli / 64)
    step = {
        "fixed_s": some(8, milli),
        "tokens": [[0, 0.0], [64, 64 * per_token], [96, 64 * per_token + some(20, 1e-4)]],
        "per_sequence_s": some(8, milli / 32),
        "per_kv_token_s": some(16, milli / 256),
        "per_attended_token_s": some(8, milli / 4096),
        "prefill_step_s": some(8, milli / 2),
        "decode_step_s": some(8, milli / 2),
        "per_passed_s": some(8, milli / 8),
        "lora": {
            "fixed_s": some(4, milli / 8),
            "per_slot_s": some(4, milli / 32),
            "per_adapter_s": some(8, milli / 8),
            "per_slot_token_s": some(4, milli / 1024),
            "per_adapter_max_rank_s": some(4, milli / 512),
            "per_slot_prefill_token_s": some(4, milli / 1024),
            "per_adapter_rank_s": some(8, milli / 256),
            "per_token_rank_s": some(8, milli / 2048),
        },
    }
    storage = {
        "open_s": some(60, milli),
        "per_tensor_s": some(9, milli / 1024),
        "bandwidth_bytes_per_s": 2.0**26 * ODD,
        "residual": draw(sampled_from(([1.0], [0.5, 1.0, 4.0]))),
    }
    host = {"open_s": some(10, milli), "bandwidth_bytes_per_s": 2.0**30 * ODD}
    return write_profile(step, storage, host)


@st.composite
def _adapters(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(sampled_from((6, 3, 12, 1)))
    if draw(st.booleans()):
        return {"count": count, "size": f"{draw(st.integers(1, 4))} MiB", "rank": draw(sampled_from((4, 16)))}
    kinds = draw(st.lists(st.tuples(st.integers(1, 8), sampled_from((4, 8, 32))), min_size=2, max_size=3))
    share = 1 / len(kinds)
    return {"count": count, "mix": [{"share": share, "size": f"{size} MiB", "rank": rank} for size, rank in kinds]}


def _largest(adapters: dict[str, Any]) -> int:
    sizes = [adapters["size"]] if "size" in adapters else [kind["size"] for kind in adapters["mix"]]
    return max(int(size.split()[0]) for size in sizes)


@st.composite
def _caches(draw: st.DrawFn, adapters: dict[str, Any]) -> dict[str, Any]:
    gpu: dict[str, Any] = {"slots": draw(st.integers(1, 6))}
    if draw(st.booleans()):
        gpu = {"size": f"{_largest(adapters) + draw(st.integers(0, 12))} MiB"}
    cache: dict[str, Any] = {"gpu": gpu, "eviction": draw(sampled_from(PROTECTED))}
    room = gpu["slots"] - 1 if "slots" in gpu else int(gpu["size"].split()[0]) // _largest(adapters) - 1
    cache["pinned"] = min(draw(sampled_from((0, 0, 0, 1, 2, 4))), room, adapters["count"])
    cache["warm"] = draw(sampled_from((0, 0, 1, 3, 8)))
    if draw(st.booleans()):
        host = {"slots": draw(st.integers(1, 8))}
        cache["host"] = draw(sampled_from((host, {"size": f"{draw(st.integers(2, 24))} MiB"})))
    return cache


@st.composite
def _touched_caches(draw: st.DrawFn, adapters: dict[str, Any]) -> dict[str, Any]:
    """Slots that are few for the adapters, and a host that holds little more."""
    slots = min(draw(sampled_from((4, 3, 2, 6, 1))), adapters["count"] + 1)
    cache: dict[str, Any] = {"gpu": {"slots": slots}, "warm": draw(sampled_from((0, 0, 1, 2, 9)))}
    more = draw(sampled_from((2, 1, 5, 0, None)))
    if more is not None:
        cache["host"] = {"slots": slots + more}
    return cache


base_shares = sampled_from((0.0, 0.0, 0.0, 0.1, 0.3, 0.6))
"""Shares of requests to the base model."""


def with_base(adapters: dict[str, Any], workload: dict[str, Any], share: float) -> dict[str, Any]:
    """Return adapters with a share of requests to the base model, unless a trace says which these are."""
    if share == 0 or "trace" in workload:
        return adapters
    kinds = adapters.get("mix") or [{"share": 1.0, "size": adapters["size"], "rank": adapters["rank"]}]
    others = [{**kind, "share": kind["share"] * (1 - share)} for kind in kinds]
    return {"count": adapters["count"], "mix": [{"share": share, "kind": "base"}, *others]}


@st.composite
def _workloads(
    draw: st.DrawFn, grid: bool, adapters: dict[str, Any], lengths: tuple[int, int], base_share: float = 0.0
) -> dict[str, Any]:
    prompt_most, output_most = lengths
    if grid or draw(st.integers(0, 3)) == 0:
        ticks = sampled_from((0, 0, 0, 1, 2, 3, 5, 8, 40))
        columns = st.tuples(
            ticks, st.integers(0, adapters["count"] - 1), st.integers(1, prompt_most), st.integers(1, output_most)
        )
        least = draw(sampled_from((1, 12, 25)))
        rows, horizon = [], 0.0
        for gap, adapter, prompt, output in draw(st.lists(columns, min_size=least, max_size=40)):
            horizon += gap * (GRID if grid else GRID * ODD)
            names_none = rows and base_share and draw(st.integers(0, 9)) < 10 * base_share
            rows.append((horizon, -1 if names_none else adapter, prompt, output))
        workload: dict[str, Any] = {"trace": {"file": write_trace(rows)}}
    else:
        rate = draw(sampled_from((300, 60, 20, 5)))
        arrivals: dict[str, Any] = {"process": "poisson", "rate": f"{rate}/s"}
        if draw(st.booleans()):
            arrivals |= {"process": "gamma", "cv": draw(sampled_from((60.0, 10.0, 2.0, 0.3)))}
        count = draw(sampled_from((60, 40, 25, 10, 1)))
        horizon = count / rate
        workload = {
            "requests": count,
            "arrivals": arrivals,
            "popularity": draw(
                sampled_from(
                    (
                        {"law": "uniform"},
                        {"law": "cyclic"},
                        {"law": "zipf", "exponent": 1.0},
                    )
                )
            ),
            "tokens": {
                "prompt": {"law": "uniform", "low": 1, "high": prompt_most},
                "output": draw(
                    sampled_from(
                        (
                            {"law": "uniform", "low": 1, "high": output_most},
                            {"law": "fixed", "value": output_most},
                            {"law": "geometric", "mean": output_most / 2 + 0.5},
                        )
                    )
                ),
            },
        }
    if draw(st.integers(0, 5)) == 5:
        # Odd, so that nothing lies exactly on the end: what does has a test of its own.
        workload["duration"] = seconds((horizon + 0.3) * draw(st.integers(1, 12)) / 9 * ODD)
        workload.pop("requests", None)
    return workload


@st.composite
def _fleets(draw: st.DrawFn, grid: bool, lengths: tuple[int, int]) -> dict[str, Any]:
    """Batching; the KV cache holds from somewhat less than the longest request to twenty of them."""
    seats = draw(sampled_from((8, 6, 4, 3, 2, 1)))
    block = draw(sampled_from((1, 2, 4, 5, 16, 32)))
    longest = sum(lengths)
    kv_tokens = int(longest * draw(sampled_from((1.0, 1.2, 1.5, 2.0, 20.0, 0.8))))
    return {
        "replicas": draw(sampled_from((1, 1, 1, 2, 4))),
        "profile": draw(_profiles(grid)),
        "max_num_seqs": seats,
        "max_num_batched_tokens": draw(sampled_from((16 + seats, seats + 3, 64, 512, seats))),
        "block_size": block,
        "kv_tokens": -(-kv_tokens // block) * block,
    }


def _whole(
    draw: st.DrawFn,
    grid: bool,
    lengths: tuple[int, int],
    adapters: dict[str, Any],
    **sections: dict[str, Any],
) -> Scenario:
    """Return a scenario with traffic, a share of it for the base model, in which something arrives."""
    base_share = draw(base_shares)
    workload = draw(_workloads(grid, adapters, lengths, base_share))
    scenario = build(
        workload=workload,
        adapters=with_base(adapters, workload, base_share),
        router={"policy": draw(sampled_from(("round-robin", "least-loaded")))},
        run={"seed": draw(st.integers(0, 999)), "warmup": 0},
        **sections,
    )
    if scenario.workload.duration is not None:
        assume(any(build_world(scenario).traffic.chunks(0)))  # a run in which nobody comes is refused
    return scenario


@st.composite
def scenarios(
    draw: st.DrawFn, *, engine: str | None = None, grid: bool | None = None, prefetch: bool | None = None
) -> Scenario:
    """A small scenario of every kind that this version simulates.

    :param prefetch: True: with prefetch (engine ``continuous``); None: sometimes.
    :param grid: whether all times are multiples of ``GRID``, so that much happens at the same instant; None: either.
    """
    if grid is None:
        grid = draw(st.integers(0, 3)) == 0
    kind = engine or draw(sampled_from(("continuous",) * 4 + ("fixed",) + VLLM))
    lengths = draw(sampled_from(((8, 40), (40, 20), (90, 60), (20, 4), (40, 1))))
    storage: dict[str, Any] = {"loaders": draw(st.integers(1, 3)), "host_loaders": draw(st.integers(1, 2))}
    if kind == "fixed":
        replicas = draw(sampled_from((1, 1, 2, 4)))
        fleet = {"engine": kind, "service": draw(_times(grid)), "profile": draw(_profiles(grid)), "replicas": replicas}
    elif kind in VLLM:
        fleet = draw(_fleets(grid, lengths)) | {"engine": kind}
        storage["loaders"] = 1
        reserved = draw(sampled_from((1, 1, 1, 1, 0, 2)))
        if reserved != 1:
            fleet["reserved_kv_blocks"] = reserved
        # Often those blocks come on top, or a tight cache would mostly refuse.
        more = fleet["block_size"] * draw(sampled_from((reserved, reserved + 1, 0)))
        fleet["kv_tokens"] = max(fleet["kv_tokens"] + more, fleet["block_size"] * (reserved + 1))
    else:
        fleet = draw(_fleets(grid, lengths)) | draw(_admissions(ahead=prefetch is True))
        fleet["kv_check"] = draw(sampled_from(("whole-prompt", "whole-prompt", "first-chunk")))
        storage["mode"] = fleet.pop("mode")
        if storage["mode"] == "blocking":
            storage["loaders"] = 1
    for key in ("load", "host_load"):
        if draw(st.booleans()):
            storage[key] = draw(_times(grid))
    adapters = draw(_adapters())
    cache = draw(_touched_caches(adapters) if kind in VLLM else _caches(adapters))
    if storage.get("mode") == "overlap" and fleet.get("load_at") != "arrival":
        cache["prefetch"] = "queued" if prefetch else draw(sampled_from(("queued", "none")))
    return _whole(draw, grid, lengths, adapters, cache=cache, fleet=fleet, storage=storage)


def _admissions(*, ahead: bool) -> st.SearchStrategy[dict[str, Any]]:
    """The five ways in which requests and loads can meet; ``ahead``: the two in which loads can come earlier."""
    if ahead:
        return sampled_from(
            (
                {"admission": "skip", "load_at": "admission", "mode": "overlap"},
                {"admission": "stop", "mode": "overlap"},
            )
        )
    return sampled_from(
        (
            {"admission": "skip", "load_at": "arrival", "mode": "overlap"},
            {"admission": "skip", "load_at": "admission", "mode": "overlap"},
            {"admission": "skip", "mode": "blocking"},
            {"admission": "stop", "mode": "overlap"},
            {"admission": "stop", "mode": "blocking"},
        )
    )


@st.composite
def engine_scenarios(draw: st.DrawFn, *, engine: str | None = None, grid: bool | None = None) -> Scenario:
    """A scenario of one preset, of which some fields may be set otherwise; ``continuous``: all fields drawn freely."""
    if grid is None:
        grid = draw(st.integers(0, 3)) == 0
    engine = engine or draw(sampled_from((*PRESETS, "continuous")))
    lengths = draw(sampled_from(((8, 40), (40, 20), (90, 60), (20, 4), (40, 1))))
    adapters = draw(_adapters())
    fleet = draw(_fleets(grid, lengths)) | {"engine": engine}
    seats = fleet["max_num_seqs"]
    fleet["max_num_batched_tokens"] = draw(sampled_from((lengths[0] + seats, 64 + seats, seats + 30)))
    if draw(st.booleans()):
        fleet["admission_interval"] = draw(sampled_from((2, 3, 5, 20)))
        fleet["waiting_ratio"] = draw(sampled_from((0.0, 0.5, 1.2)))
    cache: dict[str, Any] = draw(_caches(adapters))
    storage: dict[str, Any] = {"loaders": draw(st.integers(1, 2)), "host_loaders": draw(st.integers(1, 2))}
    for key in ("load", "host_load"):
        if draw(st.booleans()):
            storage[key] = draw(_times(grid))
    if engine in ("lorax", "s-lora"):
        cache |= {"pinned": 0, "warm": 0 if engine == "lorax" else cache["warm"]}
    free = {"continuous": _free, "sglang": _sglang, "s-lora": _s_lora, "lorax": _lorax, "tensorrt-llm": _tensorrt}
    draw(free[engine](fleet, cache, storage))
    if storage.get("mode") == "blocking" or engine in ("sglang", "s-lora", "tensorrt-llm"):
        storage["loaders"] = 1
    return _whole(draw, grid, lengths, adapters, cache=cache, fleet=fleet, storage=storage)


def _host(draw: st.DrawFn, cache: dict[str, Any], fills: tuple[str, ...]) -> None:
    fill = draw(sampled_from(fills))
    if fill == "load":
        return
    host: dict[str, Any] = {"fill": fill}
    if fill == "arrival":
        host |= draw(sampled_from(({}, {"slots": 1}, {"slots": 2}, {"slots": 4}, {"size": "9 MiB"})))
        host["full"] = draw(sampled_from(("wait", "reject")))
        if "slots" in host:
            cache["pinned"] = min(cache["pinned"], host["slots"] - 1)
        elif "size" in host:
            cache["pinned"] = 0
    cache["host"] = host


@st.composite
def _free(draw: st.DrawFn, fleet: dict[str, Any], cache: dict[str, Any], storage: dict[str, Any]) -> None:
    fleet["batching"] = draw(sampled_from(("prefill-first", "prefill-first", "mixed")))
    fleet["kv_check"] = draw(sampled_from(("whole-prompt", "first-chunk", "whole-answer", "peak")))
    if fleet["kv_check"] in ("whole-answer", "peak"):
        fleet["chunked_prefill"] = draw(st.booleans())
    if fleet["kv_check"] == "peak":
        fleet["block_size"] = 1
    if "admission_interval" in fleet and fleet["admission_interval"] == 1:
        del fleet["waiting_ratio"]
    way = draw(sampled_from(("arrival", "admission", "blocking", "stop", "stop-blocking", "per-adapter")))
    fleet["admission"] = {"stop": "stop", "stop-blocking": "stop", "per-adapter": "per-adapter"}.get(way, "skip")
    if way in ("arrival", "admission"):
        fleet["load_at"] = way
    if way.endswith("blocking"):
        storage["mode"] = "blocking"
    cache["eviction"] = draw(sampled_from((*PROTECTED, "discard-when-idle", "discard-when-idle")))
    if way in ("admission", "stop"):
        cache["prefetch"] = draw(sampled_from(("queued", "none")))
    if way == "per-adapter":
        cache |= {
            "eviction": "cycle",
            "cycle": draw(sampled_from(("1 s", "50 ms", "1 ms"))),
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
        cache["prefetch"] = draw(sampled_from(("queued", "none")))
    if draw(st.booleans()):
        fleet["block_size"] = 1
    _host(draw, cache, ("load", "arrival"))


@st.composite
def _s_lora(draw: st.DrawFn, fleet: dict[str, Any], cache: dict[str, Any], storage: dict[str, Any]) -> None:
    fleet["block_size"] = 1
    cache.pop("host", None)
    cache["gpu"] = draw(sampled_from(({"unified": True}, {"unified": True, "slots": 2})))
    cache["eviction"] = draw(sampled_from(("discard-when-idle", *PROTECTED)))
    # An adapter of 4 MiB takes 32 tokens of the pool.
    fleet["kv_tokens"] += draw(sampled_from((32, 40, 100, 8)))
    if draw(st.booleans()):
        fleet["kv_check"] = "whole-answer"
    if draw(st.booleans()):
        fleet["budget_kv_share"] = draw(sampled_from((1 / 6, 0.5, 1.0)))
    _host(draw, cache, ("load", "load", "arrival"))


@st.composite
def _lorax(draw: st.DrawFn, fleet: dict[str, Any], cache: dict[str, Any], storage: dict[str, Any]) -> None:
    cache["eviction"] = "cycle"
    cache["cycle"] = draw(sampled_from(("1 s", "100 ms", "20 ms", "1 ms")))
    cache.pop("host", None)
    fleet["kv_tokens"] += fleet["block_size"]
    _host(draw, cache, ("load", "load", "arrival"))


@st.composite
def _tensorrt(draw: st.DrawFn, fleet: dict[str, Any], cache: dict[str, Any], storage: dict[str, Any]) -> None:
    cache.pop("host", None)
    _host(draw, cache, ("arrival", "start"))


def with_(scenario: Scenario, **sections: Any) -> Scenario:
    """Return a scenario with some of its sections, or values of them, replaced."""
    dumped = scenario.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for name, values in sections.items():
        dumped[name] = dumped.get(name, {}) | values if isinstance(values, dict) else values
    return Scenario.model_validate(dumped)


@st.composite
def designs(
    draw: st.DrawFn,
    *,
    endless: bool | None = None,
    engine: str | None = None,
    sessions: bool | None = False,
    adapters: int = 2,
    routers: tuple[str, ...] = ROUTERS,
    instances: tuple[int, ...] = (1, 3),
    several: bool = False,
) -> Scenario:
    """A scenario in which nothing changes, but something could.

    :param endless: whether it runs to the last token; None: either.
    :param sessions: whether its requests come in sessions; None: either.
    :param adapters: how many it has at least.
    :param several: whether it has several replicas, and a router that pools can have.
    """
    if several:
        routers = tuple(name for name in routers if not ROUTER_POLICIES[name].places_adapters)
    scenario = draw(st.one_of(scenarios(), engine_scenarios()) if engine is None else scenarios(engine=engine))
    assume(scenario.cache.eviction != "belady")
    assume(endless is None or endless == (scenario.workload.duration is None))
    router: dict[str, Any] = {"policy": draw(sampled_from(routers)), "instances": draw(sampled_from(instances))}
    if router["policy"] == "scorers":
        router["scorers"] = [{"name": name} for name in SCORERS.names[:: draw(st.integers(1, 3))]]
        router["filters"] = [{"name": name} for name in FILTERS.names[: draw(st.integers(0, 3))]]
        router["staleness"] = draw(sampled_from(("0 s", "50 ms")))
    sections: dict[str, Any] = {"router": router}
    if several and scenario.fleet.replicas == 1:
        sections["fleet"] = {"replicas": draw(sampled_from((2, 3)))}
    assume(not sessions or scenario.workload.trace is None)
    if scenario.workload.trace is None and (sessions or (sessions is None and draw(st.booleans()))):
        gap = seconds(draw(sampled_from((0.01, 0.1, 1.0))) * ODD)
        length = draw(sampled_from((1.5, 4.0)))
        sections["workload"] = {"sessions": {"requests": length, "gap_median": gap, "gap_sigma": 1.0}}
    try:
        scenario = with_(scenario, **sections)
        traffic = build_world(scenario).traffic
    except (ScenarioError, ValueError):  # cyclic popularity has no sessions
        assume(False)
    assume(any(traffic.chunks(0)) and traffic.expected_s() > 0 and traffic.places >= adapters)
    return scenario


def rollout_designs(sessions: bool | None = None, **asked: Any) -> st.SearchStrategy[Scenario]:
    """Scenarios in which no version changes yet; in half of them requests may come in sessions."""
    routers = ("round-robin", *ROUTERS)
    return designs(sessions=sessions, adapters=1, routers=routers, instances=(1, 2, 5), **asked)


@st.composite
def times(draw: st.DrawFn, scenario: Scenario) -> float:
    """A moment while requests are expected, odd so that little happens at the same instant by chance."""
    end_s = build_world(scenario).traffic.expected_s()
    if scenario.workload.duration is not None:
        end_s = min(end_s, scenario.workload.duration)
    return end_s * draw(st.integers(0, 98)) / 100 * ODD**-1


@st.composite
def spans(draw: st.DrawFn) -> str:
    return seconds(draw(sampled_from((0.01, 0.1, 0.5, 2.0, 20.0))) * ODD)


@st.composite
def crashes(draw: st.DrawFn, scenario: Scenario, **fields: Any) -> dict[str, Any]:
    """One crash of any replica."""
    crash: dict[str, Any] = {
        "kind": "crash",
        "replica": draw(st.integers(0, scenario.fleet.replicas - 1)),
        "at": seconds(draw(times(scenario))),
        "requests": draw(sampled_from(("reroute", "lose"))),
    }
    if draw(st.integers(0, 3)):
        crash["down"] = draw(spans())
    if draw(st.booleans()):
        crash["detected"] = draw(spans())
    return crash | fields


@st.composite
def storage_faults(draw: st.DrawFn, scenario: Scenario, kind: str) -> dict[str, Any]:
    """One fault of storage."""
    fault: dict[str, Any] = {"kind": kind}
    if kind in ("slow-storage", "storage-stall") or draw(st.booleans()):
        fault |= {"at": seconds(draw(times(scenario))), "lasts": draw(spans())}
    if draw(st.integers(0, 2)) == 0:
        fault["replica"] = draw(st.integers(0, scenario.fleet.replicas - 1))
    if kind == "slow-storage":
        fault["factor"] = draw(sampled_from((1.5, 3.0, 20.0)))
    elif kind == "failing-loads":
        fault["probability"] = draw(sampled_from((0.3, 0.05, 0.8, 1.0)))
        fault["retries"] = draw(sampled_from((0, 1, 3)))
        fault["backoff"] = draw(sampled_from(("0 s", "10 ms", "1 s")))
    elif kind == "network-delay":
        fault["delay"] = {"law": "uniform", "low": "5 ms", "high": draw(sampled_from(("5 ms", "200 ms")))}
        fault["share"] = draw(sampled_from((1.0, 0.5)))
    return fault


def may_fail(scenario: Scenario) -> bool:
    """Return whether loads may fail in a scenario."""
    vllm = scenario.cache.eviction == "vllm-lru" and scenario.fleet.batching == "prefill-first"
    return not vllm and scenario.cache.prefetch == "none"


@st.composite
def detectors(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "checks": draw(sampled_from((1.0, 0.5, 0.9, 0.0))),
        "retries": draw(sampled_from((1, 0, 2, 5))),
        "delay": draw(sampled_from(("0 s", "50 ms", "3 s"))),
    }


@st.composite
def mistakes(draw: st.DrawFn, kind: str, *, whole: bool = False) -> dict[str, Any]:
    """One way to reach the wrong adapter; ``whole``: from the start to the end."""
    fault: dict[str, Any] = {"kind": kind}
    if kind == "stale-map":
        fault["share"] = draw(sampled_from((1.0, 0.9)))  # of two adapters or more that is two
        low = draw(sampled_from((0.0, 0.05, 0.5)))
        fault["propagation"] = {"law": "uniform", "low": seconds(low), "high": seconds(2 * low + 0.1)}
    else:
        fault["probability"] = draw(sampled_from((0.3, 0.05, 0.7, 1.0)))
    if kind == "misrouting":
        fault["to"] = draw(sampled_from(("popular", "any")))
    if not whole and draw(st.booleans()):
        fault["lasts"] = seconds(draw(st.integers(1, 50)) * 0.0173)
    if draw(st.booleans()):
        fault["detector"] = draw(detectors())
    return fault


@st.composite
def plain_rollouts(draw: st.DrawFn, strategies: tuple[str, ...], at_s: st.SearchStrategy[float]) -> dict[str, Any]:
    """A rollout of all adapters."""
    rollout = {"strategy": draw(sampled_from(strategies)), "at": seconds(draw(at_s)), "dwell": "100 ms"}
    if rollout["strategy"] == "new-name":
        rollout["stages"] = draw(sampled_from(([1.0], [0.3, 1.0])))
    return rollout


@st.composite
def rollouts(
    draw: st.DrawFn,
    horizon_s: float,
    *,
    strategies: tuple[str, ...] = STRATEGIES,
    prompt: bool = False,
    grid: bool = False,
    gates: bool = True,
) -> dict[str, Any]:
    """One rollout of all adapters; ``prompt``: everybody hears of it at once, and there is one stage."""
    strategy = draw(sampled_from(strategies))
    dwell_s = draw(sampled_from((0.05, 0.3, 3.0))) * (1 if grid else ODD)
    at_s = horizon_s * draw(st.integers(0, 95)) / 100
    if grid:
        dwell_s, at_s = (round(time / GRID) * GRID for time in (dwell_s, at_s))
    rollout: dict[str, Any] = {"strategy": strategy, "at": seconds(at_s), "dwell": seconds(max(dwell_s, GRID))}
    if not prompt:
        if strategy != "lazy-reread":
            rollout["stages"] = list(draw(sampled_from(STAGES)))
        if draw(st.booleans()):
            low = draw(sampled_from((0.0, 0.05, 1.0)))
            rollout["propagation"] = {"law": "uniform", "low": seconds(low), "high": seconds(2 * low + 0.1)}
    if strategy == "new-name":
        rollout |= {"sticky": draw(st.booleans()), "keep_old": draw(st.booleans())}
        if draw(st.integers(0, 4)) == 0:
            rollout["rank"] = draw(sampled_from((2, 8)))
        if gates and len(rollout.get("stages", (1.0,))) > 1 and draw(st.booleans()):
            rollout["gate"] = draw(sampled_from(GATES)) | {"min_requests": draw(sampled_from((1, 3, 100)))}
    if "gate" not in rollout and draw(st.integers(0, 3)) == 0:
        rollout["spread"] = seconds(dwell_s)
    return rollout


@st.composite
def faulty_scenarios(
    draw: st.DrawFn, *, kinds: tuple[str, ...] = BREAKAGES, endless: bool | None = None, several: bool = False
) -> Scenario:
    """A scenario with one to three of these faults, often a rollout, sometimes requests at the wrong adapter."""
    scenario = draw(designs(endless=endless, several=several))
    changes: dict[str, Any] = {"faults": []}
    failing = False
    for kind in draw(st.lists(sampled_from(kinds), min_size=1, max_size=3)):
        if kind == "crash":
            changes["faults"].append(draw(crashes(scenario)))
        elif kind != "failing-loads" or may_fail(scenario):
            failing |= kind == "failing-loads"
            changes["faults"].append(draw(storage_faults(scenario, kind)))
    assume(changes["faults"])
    if draw(st.integers(0, 3)) == 0:
        changes["faults"].append(
            draw(
                sampled_from(
                    (
                        {"kind": "misrouting", "probability": 0.3, "detector": {"retries": 2}},
                        {"kind": "base-model", "probability": 0.3},
                    )
                )
            )
        )
    if draw(st.booleans()):
        strategies = ("new-name", "new-name", "lazy-reread")
        if not failing:
            strategies += ("in-place", "unload-then-load", "drain-then-swap")
        at_s = sampled_from((0.0, draw(times(scenario))))
        changes["rollouts"] = [draw(plain_rollouts(strategies, at_s))]
    try:
        return with_(scenario, **changes)
    except ValueError as error:
        assume("is already down" not in str(error))
        raise


@st.composite
def misrouting_scenarios(
    draw: st.DrawFn,
    *,
    kinds: tuple[str, ...] = MISTAKES,
    most: int = 2,
    whole: bool = False,
    endless: bool | None = None,
    alone: bool = False,
) -> Scenario:
    """A scenario with one of these faults, or up to ``most``.

    :param alone: nothing else changes; otherwise there is often a rollout of all adapters, or a crash.
    """
    scenario = draw(designs(endless=endless))
    expected_s = build_world(scenario).traffic.expected_s()
    chosen = draw(st.lists(sampled_from(kinds), min_size=1, max_size=most))
    changes: dict[str, Any] = {"faults": [draw(mistakes(kind, whole=whole)) for kind in chosen]}
    if not alone and draw(st.booleans()):
        at_s = st.integers(0, 5).map(lambda step: step * 0.1309 * expected_s)
        changes["rollouts"] = [draw(plain_rollouts((*STRATEGIES, "in-place"), at_s))]
        if changes["rollouts"][0]["strategy"] not in ("new-name", "lazy-reread") and draw(st.booleans()):
            lifetime = draw(sampled_from(("5 s", "50 ms")))
            changes["faults"].append({"kind": "named-prefixes", "share": 0.7, "lifetime": lifetime})
    if not alone and draw(st.integers(0, 2)) == 0:
        crash = {"kind": "crash", "replica": 0, "at": seconds(draw(st.integers(0, 9)) * 0.0991 * expected_s)}
        crash |= {"down": "300 ms", "detected": draw(sampled_from(("0 s", "100 ms", "400 ms")))}
        changes["faults"].append(crash | {"requests": draw(sampled_from(("reroute", "lose")))})
    return with_(scenario, **changes)


@st.composite
def rollout_scenarios(
    draw: st.DrawFn,
    *,
    strategies: tuple[str, ...] = STRATEGIES,
    prompt: bool = False,
    most: int = 3,
    gates: bool = True,
    endless: bool | None = None,
    engine: str | None = None,
    sessions: bool | None = None,
    several: bool = False,
) -> Scenario:
    """A scenario with up to ``most`` rollouts, often of the same adapters one after the other."""
    scenario = draw(rollout_designs(sessions, endless=endless, engine=engine, several=several))
    traffic = build_world(scenario).traffic
    places, horizon_s = traffic.places, traffic.expected_s()
    grid = draw(st.integers(0, 2)) == 0
    parts = []
    for _ in range(draw(st.integers(1, most))):
        part = draw(rollouts(horizon_s, strategies=strategies, prompt=prompt, grid=grid, gates=gates))
        which = draw(sampled_from(("all", "all", "one", "share")))
        if which == "one":
            part["adapter"] = draw(st.integers(0, places - 1))
        elif which == "share" and places > 1:
            part["share"] = 0.5 if most > 1 else draw(sampled_from((0.5, 1.0)))
        parts.append(part)
    try:
        scenario = with_(scenario, rollouts=parts)
        build_world(scenario)
    except (ScenarioError, ValueError):  # they overlap, or the new version is too large
        assume(False)
    return scenario
