"""Random small scenarios, random profiles, random traces: all valid, all built to hurt.

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

from sim.spec.engines import ENGINES
from sim.spec.scenario import Scenario
from sim.world.build import build_world

T = TypeVar("T")
_made: dict[str, st.SearchStrategy[Any]] = {}
_FOLDER = Path(tempfile.mkdtemp(prefix="loraplan-tests-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)

MODEL = "llama-3.1-8b"
GRID = 1 / 64
"""Times of grid scenarios are multiples of this: sums are exact and many things happen at the same instant."""
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
ODD = 1.0137159
"""Makes round draws odd, so that elsewhere nothing happens at the same instant by chance."""


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
    base_share = draw(base_shares)
    workload = draw(_workloads(grid, adapters, lengths, base_share))
    scenario = build(
        workload=workload,
        adapters=with_base(adapters, workload, base_share),
        cache=cache,
        fleet=fleet,
        storage=storage,
        router={"policy": draw(sampled_from(("round-robin", "least-loaded")))},
        run={"seed": draw(st.integers(0, 999)), "warmup": 0},
    )
    if scenario.workload.duration is not None:
        assume(any(build_world(scenario).traffic.chunks(0)))  # a run in which nobody comes is refused
    return scenario


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
