"""Queues and caches whose answers are known exactly, or by Che's approximation: ``shared/data/oracles``.

Every check takes ten or more independent replications; a mean may be three of its standard errors off.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from replicate import assert_meets, replicate
from scipy.optimize import brentq
from strategies import build, fixed_time, poisson, run, seconds, write_profile

from sim.spec.scenario import Scenario
from sim.world.build import build_world

REPLICATIONS = 10
SERVICE_S = 0.01
LOADER = {"law": "uniform", "low": "20 ms", "high": "50 ms"}
LOADS = (0.5, 0.7, 0.9)
REQUESTS = {0.5: 8_000, 0.7: 25_000, 0.9: 110_000}
"""By load: a busy queue forgets slowly, so its replications are longer."""


@pytest.fixture(scope="session")
def oracles(shared: Path) -> dict[str, list[list[float]]]:
    path = shared / "oracles" / "oracles.json"
    if not path.exists():
        pytest.skip(f"no oracles at {path}")
    tables: dict[str, list[list[float]]] = json.loads(path.read_text(encoding="utf-8"))
    return tables


def row(table: list[list[float]], *key: float) -> list[float]:
    return next(entry[len(key) :] for entry in table if tuple(entry[: len(key)]) == key)


def one_by_one(requests: int, rate: float, service: dict[str, Any], load: dict[str, Any], **sections: Any) -> Scenario:
    """Engine ``fixed``: a queue with one server, behind a cache with one loader unless set otherwise."""
    popularity = sections.pop("popularity", {"law": "uniform"})
    sections = {"adapters": {"count": 1, "size": "1 MB"}, "cache": {"gpu": {"slots": 1}}} | sections
    return build(
        workload=poisson(requests, f"{rate!r}/s", 1, 1, popularity=popularity),
        fleet={"engine": "fixed", "service": service},
        storage={"load": load} | sections.pop("storage", {}),
        **sections,
    )


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(
    ("table", "service"),
    [
        ("md1_wait_ms_mean_p50_p95_p99", fixed_time(SERVICE_S)),
        ("mm1_wait_ms_mean_p50_p95_p99", {"law": "exponential", "mean": seconds(SERVICE_S)}),
    ],
)
def test_waits_of_a_single_server(
    oracles: dict[str, list[list[float]]], table: str, service: dict[str, Any], load: float
) -> None:
    scenario = one_by_one(REQUESTS[load], load / SERVICE_S, service, fixed_time(0.0))
    exact = [1e-3 * value for value in row(oracles[table], load)]
    names, shares = ["mean wait", "wait p50", "wait p95", "wait p99"], [0.5, 0.95, 0.99]
    if exact[1] == 0:  # half wait exactly 0: a sample median is 0 or above, never below
        del exact[1], names[1], shares[0]

    def measure(columns: dict[str, Any]) -> list[float]:
        wait = columns["wait_s"]
        return [np.mean(wait), *np.quantile(wait, shares), np.mean(wait > 0)]

    assert_meets([*names, "share that waits"], [*exact, load], replicate(scenario, measure, REPLICATIONS))


@pytest.mark.parametrize("load", LOADS)
def test_all_miss_tandem(oracles: dict[str, list[list[float]]], load: float) -> None:
    """Loads end 20 ms apart or more, so no request waits for the server of 10 ms behind the loader."""
    (wait_ms,) = row(oracles["mg1_uniform20_50_loader_wait_ms"], load)
    scenario = one_by_one(
        REQUESTS[load] // 2,
        load / 0.035,
        fixed_time(SERVICE_S),
        LOADER,
        popularity={"law": "cyclic"},
        adapters={"count": 1000, "size": "1 MB"},
        cache={"gpu": {"slots": 200}},
    )

    def measure(columns: dict[str, Any]) -> list[float]:
        assert np.all(columns["outcome"] == 2), "cyclic use of 1,000 adapters misses 200 slots of LRU always"
        queue = columns["load_queue_s"]
        return [np.mean(columns["sojourn_s"]), np.mean(queue), np.max(columns["wait_s"] - columns["load_wait_s"])]

    found = replicate(scenario, measure, REPLICATIONS)
    assert_meets(["mean sojourn", "mean queue"], [1e-3 * wait_ms + 0.045, 1e-3 * wait_ms], tuple(f[:2] for f in found))
    assert found[0][2] <= 1e-9, "no request waits for the server"


@pytest.mark.parametrize("exponent", [0, 0.6, 0.8, 0.9, 1.0, 1.2])
@pytest.mark.parametrize("adapters", [1000, 10000])
def test_lru_miss_ratio_at_almost_no_load(
    oracles: dict[str, list[list[float]]], adapters: int, exponent: float
) -> None:
    """Che's approximation holds to 0.005 at these sizes; requests never meet, so every load is a miss of its own."""
    (miss,) = row(oracles["lru_che_miss"], adapters, 200, exponent)
    scenario = one_by_one(
        22_000,
        0.01,
        fixed_time(0.001),
        fixed_time(0.001),
        popularity={"law": "zipf", "exponent": exponent},
        adapters={"count": adapters, "size": "1 MB"},
        cache={"gpu": {"slots": 200}},
    )
    found = replicate(scenario, lambda c: [np.mean(c["outcome"] == 2)], REPLICATIONS, warmup=0.1)
    assert abs(found[0][0] - miss) <= 0.005, f"{found[0][0]:.4f}, Che {miss}"
    assert 3 * found[1][0] <= 0.005, "too noisy to say"


@pytest.mark.parametrize(("index", "requests"), [(0, 12_000), (1, 40_000)])
def test_batching_is_a_birth_death_chain(oracles: dict[str, list[list[float]]], index: int, requests: int) -> None:
    """Geometric outputs end in a step of a + b n seconds with probability n / mean.

    The chain lets requests join and leave at once; a real batch does so at a boundary, hence one step of tolerance.
    """
    chain = oracles["batching_lam_a_b_B_tok_N_Ws_Wqs_Pwait"][index]
    rate, a, b, batch_slots, mean_tokens, running, sojourn_s, wait_s, _ = chain
    scenario = build(
        workload=poisson(
            requests,
            f"{rate}/s",
            tokens={"prompt": {"law": "fixed", "value": 1}, "output": {"law": "geometric", "mean": mean_tokens}},
        ),
        adapters={"count": 1, "size": "1 MB"},
        cache={"gpu": {"slots": 1}},
        storage={"load": fixed_time(0.0)},
        fleet={
            "profile": write_profile({"fixed_s": a, "per_sequence_s": b}),
            "max_num_seqs": int(batch_slots),
            "kv_tokens": 10**6,
        },
    )

    def measure(columns: dict[str, Any]) -> list[float]:
        return [np.mean(columns["sojourn_s"]), np.mean(columns["wait_s"])]

    found = replicate(scenario, measure, REPLICATIONS)
    assert_meets(["mean sojourn", "mean wait"], [sojourn_s, wait_s], found, extra=a + b * min(running, batch_slots))


def che_with_load_time(rate: float, load_s: float, exponent: float, *, loading_takes_slot: bool) -> list[float]:
    """Return miss ratio, delayed-hit ratio and mean wait of LRU with loads that take time: 1,000 adapters, 200 slots.

    A cycle of one adapter: a miss, ``load_s`` in which further requests are delayed hits, uses less than T apart, and
    an absence; lambda times its length is ``lambda load_s + e^(lambda T)``. T fills the slots.
    """
    share = np.arange(1, 1001) ** -exponent
    share /= share.sum()
    each = rate * share

    def cycle(time: float) -> tuple[Any, Any]:
        grown = np.exp(np.minimum(each * time, 600))
        return grown, each * load_s + grown

    def overfull(time: float) -> float:
        grown, length = cycle(time)
        occupied = grown - 1 + (each * load_s if loading_takes_slot else 0)
        return float(np.sum(occupied / length)) - 200

    _, length = cycle(brentq(overfull, 1e-9, 1000))
    miss, delayed = np.sum(share / length), np.sum(share * each * load_s / length)
    return [miss, delayed, miss * load_s + delayed * load_s / 2]


def test_delayed_hits(oracles: dict[str, list[list[float]]]) -> None:
    """The oracle lets loads run outside the slots; here a load takes its slot when it starts (model.md 3).

    The same formula with that one change is what the simulator is compared with, where loads are few enough for Che.
    """
    for rate, load_s, exponent, *published, wait_ms in oracles["delayed_hits_lam_Z_alpha_miss_delayed_waitms"]:
        outside = che_with_load_time(rate, load_s, exponent, loading_takes_slot=False)
        assert outside == pytest.approx([*published, wait_ms / 1e3], rel=1e-6)
    rate, load_s, exponent = 70.0, 0.2, 0.9
    scenario = one_by_one(
        12_000,
        rate,
        fixed_time(0.0),
        fixed_time(load_s),
        popularity={"law": "zipf", "exponent": exponent},
        adapters={"count": 1000, "size": "1 MB"},
        cache={"gpu": {"slots": 200}},
        storage={"loaders": 1000},
    )

    def measure(columns: dict[str, Any]) -> list[float]:
        return [np.mean(columns["outcome"] == 2), np.mean(columns["outcome"] == 1), np.mean(columns["load_wait_s"])]

    (miss, delayed, wait), errors = replicate(scenario, measure, REPLICATIONS, warmup=0.25)
    exact = che_with_load_time(rate, load_s, exponent, loading_takes_slot=True)
    assert abs(miss - exact[0]) <= 0.005
    assert abs(delayed - exact[1]) <= 3 * errors[1] + 0.0002
    assert abs(wait - exact[2]) <= 0.005 * load_s


@pytest.mark.parametrize("stage", ["prefill", "read", "decode"])
def test_each_stage_of_prefill_and_decode_is_an_mg1_queue(stage: str) -> None:
    """One stage takes one request at a time, the two others next to no time: Pollaczek and Khinchine's mean wait."""
    instant = {"fixed_s": 1e-7}
    steps = {"prefill": instant, "decode": instant} | {stage: {"tokens": [[0, 0.0], [1000, 0.1]]}}
    link = {"bandwidth": "1000 TB/s", "latency": "0 s"}
    if stage == "read":
        link["bandwidth"] = f"{131072 / 1e-4!r} B/s"  # a token takes as long as in a step
    pools = [
        {
            "name": role[0],
            "role": role,
            "profile": write_profile(steps[role]),
            "max_num_seqs": 1 if role == stage else 200,
        }
        for role in ("prefill", "decode")
    ]
    low, high = 1, 400
    amounts = np.arange(low, high + 1)
    seconds = 1e-4 * (amounts if stage != "read" else 16 * np.ceil(amounts / 16))
    law = {"law": "uniform", "low": low, "high": high}
    one = {"law": "fixed", "value": 1}
    tokens = {"prompt": one, "output": law} if stage == "decode" else {"prompt": law, "output": one}
    rate = 0.6 / float(np.mean(seconds))
    scenario = build(
        workload=poisson(3000, f"{rate!r}/s", tokens=tokens),
        adapters={"count": 1, "rank": 8},
        cache={"gpu": {"slots": 1}, "warm": 1},
        fleet={
            "engine": "vllm",
            "async_scheduling": False,
            "pools": pools,
            "kv_transfer": link,
            "kv_tokens": 10**6,
            "max_num_batched_tokens": 2000,
            "block_size": 16,
            "prefix_caching": False,
        },
    )
    world, waits = build_world(scenario), []
    for replication in range(REPLICATIONS):
        recording = run(world, replication)
        columns = recording.requests
        rows = recording.hand_overs[np.argsort(recording.hand_overs[:, 0])]
        through_s = {"prefill": rows[:, 1] - columns["arrival_s"], "read": rows[:, 3] - rows[:, 1]}
        through_s["decode"] = columns["finished_s"] - rows[:, 1]
        waits.append(float(np.mean(through_s[stage][300:])) - float(np.mean(seconds)))
    exact = rate * float(np.mean(seconds**2)) / (2 * 0.4)
    found = np.array([np.mean(waits)]), np.array([np.std(waits, ddof=1) / np.sqrt(REPLICATIONS)])
    assert_meets([f"mean wait of {stage}"], [exact], found)
