"""sgl-project/sglang#17913: six adapters take turns in three slots, before SGLang could drain an adapter.

``--rows`` takes a CSV file with a row a run: ``name``, any of the columns of ``SETTINGS`` (missing or empty ones are
those of the thread) and any of ``MEASURED``, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sim.errors import InputError
from sim.results.records import COMPLETED
from sim.spec.scenario import Scenario
from sim.studies.fidelity.measured_runs import RunCells, positive_int, read_table
from sim.world.build import build_world
from sim.world.replication import simulate
from validation.gallery.entry import Bar, Entry, Row, Source

NAME = "sglang-17913"
SETTINGS: Mapping[str, float] = {
    "adapters": 6,
    "slots": 3,
    "requests": 200,
    "rate_per_s": 4.0,
    "input_len": 512,
    "output_len": 512,
    "seed": 1,
    "drain_wait_s": 0.0,
}
"""As the command lines of the thread have them. ``drain_wait_s`` is ``--lora-drain-wait-threshold``; 0: off."""
PUBLISHED = {"e2e_mean_s": 12.06, "e2e_p50_s": 7.05, "e2e_p90_s": 32.93, "e2e_p99_s": 45.9}
MEASURED = tuple(f"{kind}_{which}_s" for kind in ("e2e", "ttft") for which in ("mean", "p50", "p90", "p99"))
BAND, P50, NEAR = (0.05, 0.95), "e2e_p50_s", 0.10

ORDERS = 200
CONVERSATIONS, APART = 94_145, 200
"""The client chooses adapters after it has shuffled its texts, and the thread doesn't say how many they were. Counts so
far apart have no draws in common; neighbouring ones give nearly the same order."""


def latencies(settings: Mapping[str, float], conversations: int) -> dict[str, float]:
    """Return ``MEASURED`` of one order of adapters."""
    client = {
        "tool": "sglang-bench",
        "num_prompts": int(settings["requests"]),
        "request_rate": f"{settings['rate_per_s']}/s",
        "input_len": int(settings["input_len"]),
        "output_len": int(settings["output_len"]),
        "range_ratio": 0,
        "seed": int(settings["seed"]),
        "conversations": conversations,
    }
    fleet = {"engine": "sglang", "profile": "a100-80gb/llama-3.1-8b/vllm-0.14.0"}
    if settings["drain_wait_s"]:
        fleet["drain_wait"] = f"{settings['drain_wait_s']} s"
    scenario = {
        "schema_version": 1,
        "name": NAME,
        "workload": {"client": client},
        "adapters": {"count": int(settings["adapters"])},
        "fleet": fleet,
        "cache": {"gpu": {"slots": int(settings["slots"])}},
        "run": {"warmup": 0, "replications": 1},
    }
    requests = simulate(build_world(Scenario.model_validate(scenario)), 0, 1).requests
    assert (requests["status"] == COMPLETED).all()
    sent = requests["arrival_s"].astype(np.float64)
    values: list[float] = []
    for end in ("finished_s", "first_token_s"):
        seconds = requests[end].astype(np.float64) - sent
        values += [seconds.mean(), *np.percentile(seconds, (50, 90, 99))]
    return dict(zip(MEASURED, map(float, values), strict=True))


def predict(path: Path | None, orders: int = ORDERS) -> list[Row]:
    """Predict each run as the median and band over orders of adapters."""
    return [
        _row(name, settings, published, orders)
        for name, settings, published in (_read(path) if path else [("before the drainer", SETTINGS, PUBLISHED)])
    ]


def _row(name: str, settings: Mapping[str, float], published: Mapping[str, float], orders: int) -> Row:
    found = [latencies(settings, CONVERSATIONS - APART * order) for order in range(orders)]
    values = {key: [each[key] for each in found] for key in published}
    low, middle, high = (
        {key: float(np.quantile(some, share)) for key, some in values.items()} for share in (BAND[0], 0.5, BAND[1])
    )
    near = [all(abs(each[key] / seconds - 1) <= NEAR for key, seconds in published.items()) for each in found]
    predicted = middle | {"share_of_orders_near": sum(near) / orders}
    return Row(NAME, name, published, predicted, band={key: (low[key], high[key]) for key in published})


def _read(path: Path) -> Iterator[tuple[str, Mapping[str, float], Mapping[str, float]]]:
    table = read_table(path)
    known = ("name", *SETTINGS, *MEASURED)
    if unknown := [column for column in table.columns if column not in known]:
        raise InputError("unknown columns", file=table.file, line=1, got=", ".join(unknown), allowed=", ".join(known))
    table.require(["name"])
    for cells in table.rows:
        published = {key: cells.number(key) for key in MEASURED if cells.row.get(key)}
        for key in (key for key, seconds in published.items() if not seconds):
            raise cells.error("not a latency", key, cells.row[key], "seconds above 0")
        if not published:
            raise cells.error("nothing was measured", "e2e_p50_s", "", f"a number in one of {', '.join(MEASURED)}")
        yield cells.row["name"], {key: _setting(cells, key) for key in SETTINGS}, published


def _setting(cells: RunCells, key: str) -> float:
    default = SETTINGS[key]
    if not cells.row.get(key):
        return default
    if isinstance(default, int) and key != "seed":
        return float(cells.parsed(key, positive_int, "a whole number, 1 or more"))
    return cells.number(key)


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Return a bar for the band of each quantity, and one for the p50."""
    found = []
    for key in dict.fromkeys(key for row in rows for key in row.published):
        outside = [
            max(row.band[key][0] / row.published[key], row.published[key] / row.band[key][1])
            for row in rows
            if row.band and key in row.published
        ]
        text = f"{key.removesuffix('_s')} against its band (1: inside)"
        found.append(Bar(text, max(1.0, *outside), 1.0))
    errors = [abs(row.predicted[P50] / row.published[P50] - 1) for row in rows if P50 in row.published]
    return [*found, Bar("e2e_p50, error of the median over orders", max(errors), NEAR)] if errors else found


SOURCE = Source(
    (
        Entry(
            NAME,
            "SGLang before its drainer: six adapters, three slots",
            "https://github.com/sgl-project/sglang/pull/17913 (January 2026): one A100-SXM4-80GB, Llama-3.1-8B",
            "`bench_serving`, `random` 512/512, range ratio 0, seed 1, 200 prompts at 4/s; `--max-loras-per-batch 3`",
            "none; step costs are those of the profile `a100-80gb/llama-3.1-8b/vllm-0.14.0`, from kernel tables",
            bars,
            "The thread doesn't say which request was for which adapter, so predictions are the median and the 5 to "
            "95 % band over 200 orders. The table also has the share of orders in which everything is within 10 %. "
            "A waiting adapter gets a slot when one of the three has no request left, so the tail depends on the "
            "length of steps: if they take 6 % longer than in the profile, which states ±16 %, all four are inside. "
            "Ranks are not in the thread either (16 is the default here), and LoRA's costs are those of vLLM.",
        ),
    ),
    predict,
)
