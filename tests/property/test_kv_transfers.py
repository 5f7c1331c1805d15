"""KV that goes to host memory or to another replica: what must hold in any fleet, on random ones."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from naive_pairs import PairFleet
from recordings import simulate_checked
from strategies import build, run, write_profile, write_trace

from sim.policies.transfer_scheduler import TransferScheduler
from sim.results.point_summary import summarise
from sim.results.records import COMPLETED, FAILED, REFUSED, Recording
from sim.rng import stream_key, uniform_draw
from sim.spec.scenario import Scenario
from sim.studies.evaluate import facts_of
from sim.world.build import build_world

FLEETS = 60


def fleet_of(random: Random, **fleet: Any) -> dict[str, Any]:
    adapters = random.randint(2, 12)
    tokens = {
        "prompt": {"law": "uniform", "low": 1, "high": random.choice([30, 120])},
        "output": {"law": "uniform", "low": 1, "high": random.choice([8, 60])},
    }
    workload: dict[str, Any] = {
        "requests": 60,
        "arrivals": {"process": "poisson", "rate": f"{random.choice([3, 20, 200])}/s"},
        "tokens": tokens,
    }
    if random.random() < 0.6:
        workload["prefix"] = {"shared_by": "adapter", "tokens": random.choice([16, 40, 90])}
    if random.random() < 0.4:
        workload["sessions"] = {"requests": 3, "gap_median": "200 ms", "gap_sigma": 1, "history": True}
    slots = random.randint(1, 4)
    return {
        "workload": workload,
        "adapters": {"count": adapters, "rank": 8},
        "cache": {"gpu": {"slots": slots}, "host": {"slots": random.randint(slots, adapters + slots)}},
        "fleet": {
            "engine": "vllm",
            "profile": write_profile(step={"fixed_s": 0.01, "tokens": [[0, 0.0], [1000, 0.1]]}),
            "block_size": random.choice([4, 16]),
            "max_num_seqs": random.randint(1, 6),
            "max_num_batched_tokens": random.choice([32, 512]),
            "kv_tokens": random.choice([512, 2048]),
            "max_model_len": 400,
            "async_scheduling": random.random() < 0.5,
            **fleet,
        },
        "run": {"seed": random.randrange(1 << 30), "warmup": 0.0},
    }


def assert_all_are_answered(recording: Recording) -> None:
    requests = recording.requests
    status = requests["status"]
    assert set(status.tolist()) <= {COMPLETED, REFUSED}
    done = status == COMPLETED
    arrival, admitted, first, finished = (
        np.asarray(requests[name], dtype=np.float64)[done]
        for name in ("arrival_s", "admitted_s", "first_token_s", "finished_s")
    )
    assert np.all((arrival <= admitted) & (admitted < first) & (first <= finished))
    assert np.sum(requests["output_tokens"][done] - 1) == np.sum(recording.gap_counts)  # every token but the first


@pytest.mark.parametrize("number", range(FLEETS))
def test_kv_offload_conserves_requests_and_blocks(number: int) -> None:
    random = Random(number)
    offload = {
        "size": f"{random.choice([1, 10, 300]) * 16 * 131072} B",
        "policy": random.choice(["lru", "arc"]),
        "answers": random.random() < 0.3,
        "store_from": random.choice([0, 0, 2]),
        "bandwidth": random.choice(["100 MB/s", "25 GB/s"]),
    }
    sections = fleet_of(random, prefix_caching=True, kv_offload=offload)
    recording, times = simulate_checked(build_world(build(**sections)), 1)
    assert_all_are_answered(recording)
    assert times
    facts = recording.facts
    assert facts["kv_loaded_tokens"] >= 0
    if facts["kv_loaded_tokens"]:
        assert facts["kv_stored_tokens"] > 0
    assert 0 <= facts["kv_host_share"] <= 1
    if number == 6:  # where the pool has room for 300 blocks
        point = summarise([recording], facts_of(build_world(build(**sections))), {}, [])
        prompts = int(np.asarray(recording.requests["prompt_tokens"]).sum())
        assert point.value("host_prefix_hit_ratio") == facts["kv_loaded_tokens"] / prompts > 0
        said = " ".join(point.warnings)
        assert f"starts empty and was {facts['kv_host_share']:.0%} full at the end" in said


@pytest.mark.parametrize("number", range(FLEETS))
def test_prefill_and_decode_conserve_requests_and_blocks(number: int) -> None:
    random = Random(number)
    sections = fleet_of(
        random,
        prefix_caching=random.random() < 0.7,
        kv_transfer={
            "bandwidth": random.choice(["50 MB/s", "25 GB/s"]),
            "latency": random.choice(["0 s", "20 ms"]),
            "streams": random.randint(1, 3),
            "min_prompt": random.choice([0, 0, 40]),
        },
        pools=[
            {"name": "prompts", "role": "prefill", "replicas": random.randint(1, 2)},
            {"name": "answers", "role": "decode", "replicas": random.randint(1, 3)},
        ],
    )
    scenario = build(**sections)
    recording, _ = simulate_checked(build_world(scenario), 1)
    assert_all_are_answered(recording)
    link = scenario.fleet.kv_transfer
    requests, done = recording.requests, recording.requests["status"] == COMPLETED
    read = done & (requests["prompt_tokens"] >= link.min_prompt)
    rows = recording.hand_overs[np.argsort(recording.hand_overs[:, 0])]
    assert rows[:, 0].tolist() == np.flatnonzero(read).tolist()
    assert np.all(np.diff(rows[:, 1:5], axis=1) >= 0)  # prompt complete, read ordered, read, joined
    assert_stages_add_up(scenario, recording, read)
    at_decode = np.asarray(requests["replica"], dtype=np.int64)[done] >= scenario.fleet.pools[0].replicas
    assert at_decode.all()
    least = link.latency * (1 - 1e-9)
    assert np.all(rows[:, 3] - rows[:, 2] >= least)


@pytest.mark.parametrize("number", range(FLEETS // 2))
@pytest.mark.parametrize("policy", ["fail", "recompute"])
def test_failed_reads_end_or_recompute(policy: str, number: int) -> None:
    random = Random(number)
    failures = {"share": 0.3, "policy": policy, "lease": random.choice(["0 s", "500 ms", "30 s"])}
    pools = [{"name": "prompts", "role": "prefill"}, {"name": "answers", "role": "decode", "replicas": 2}]
    sections = fleet_of(random, prefix_caching=random.random() < 0.7, pools=pools, kv_transfer={"failures": failures})
    recording, _ = simulate_checked(build_world(build(**sections)), 1)
    requests = recording.requests
    ended, refused = (requests["status"] == status for status in (COMPLETED, REFUSED))
    key = stream_key(sections["run"]["seed"], 0, "kv-reads")
    fails = np.array([uniform_draw(key, index) < 0.3 for index in range(len(ended))])
    assert fails.any()
    assert not fails.all()
    lost = fails if policy == "fail" else np.zeros(len(fails), dtype=bool)
    assert np.array_equal(requests["status"] == FAILED, lost & ~refused)
    assert np.array_equal(np.sort(recording.hand_overs[:, 0]), np.flatnonzero(ended))
    if not sections["fleet"]["prefix_caching"]:  # the prompt is computed where it is answered, at 0.1 ms a token
        rows = recording.hand_overs[np.argsort(recording.hand_overs[:, 0])]
        again_s = requests["first_token_s"][ended] - rows[:, 4]
        assert np.all((again_s >= 1e-4 * requests["prompt_tokens"][ended])[fails[ended]])


def assert_stages_add_up(scenario: Scenario, recording: Recording, read: Any) -> None:
    """Assert that the breakdown is a partition of the mean latency, and each stage what the requests' own times say."""
    requests, rows = recording.requests, recording.hand_overs[np.argsort(recording.hand_overs[:, 0])]
    stages = summarise([recording], facts_of(build_world(scenario)), {}, []).breakdown
    done = requests["status"] == COMPLETED
    count = int(np.sum(done))
    assert sum(stages.values()) == pytest.approx(np.sum((requests["finished_s"] - requests["arrival_s"])[done]) / count)
    assert min(stages.values()) >= 0
    if not read.any():
        return
    complete_s, joined_s, load_s = rows[:, 1], rows[:, 4], rows[:, 5]
    loads_s = np.asarray(requests["load_wait_s"], dtype=np.float64)[read]
    assert np.all((load_s >= 0) & (load_s <= loads_s + 1e-12))
    prompt_s = np.sum(complete_s - requests["admitted_s"][read] - (loads_s - load_s))
    again_s = np.sum(requests["first_token_s"][read] - joined_s - load_s)
    alone = done & ~read
    alone_s = np.sum((requests["first_token_s"] - requests["admitted_s"] - requests["load_wait_s"])[alone])
    assert stages["prefill_s"] == pytest.approx((prompt_s + again_s + alone_s) / count, abs=1e-9)


def test_each_side_has_its_own_load_times_and_limits() -> None:
    rows = [(float(second), second % 3, 50, 60 if second == 4 else 5) for second in range(8)]
    fleet = {"engine": "vllm", "profile": write_profile(step={"fixed_s": 0.01}), "kv_tokens": 4096}
    law = {"law": "fixed", "value": "2 s"}
    pools = [
        {"name": "p", "role": "prefill"},
        {"name": "d", "role": "decode", "max_model_len": 100, "storage": {"load": law, "host_load": law}},
    ]
    rest = {"adapters": {"rank": 8}, "cache": {"gpu": {"slots": 3}, "host": {"slots": 3}}}
    recording = run(build(workload={"trace": {"file": write_trace(rows)}}, **rest, fleet={**fleet, "pools": pools}))
    seconds = recording.loads["ended_s"] - recording.loads["started_s"]
    assert seconds[recording.loads["replica"] == 1] == pytest.approx(2.0)
    assert np.all(seconds[recording.loads["replica"] == 0] < 0.1)
    assert np.flatnonzero(recording.requests["status"] == REFUSED).tolist() == [4]  # too long for the decode side


def no_ties() -> str:
    """Return a profile with steps of many lengths: no copy ends with a step, where rounding would decide who joins."""
    step = {"fixed_s": 0.01, "tokens": [[0, 0.0], [1000, 0.1]], "per_kv_token_s": 1.7e-6, "per_sequence_s": 3.1e-5}
    return write_profile(step)


@pytest.mark.interpreted
@pytest.mark.parametrize("number", range(FLEETS))
def test_leaps_beside_copies_equal_single_steps(number: int) -> None:
    random = Random(number)
    if number % 2:
        link = {"bandwidth": "700 MB/s", "latency": "17.3 ms", "failures": {"share": 0.2, "policy": "recompute"}}
        pools = [{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode", "replicas": random.randint(1, 2)}]
        sections = fleet_of(random, pools=pools, kv_transfer=link, prefix_caching=random.random() < 0.5)
    else:
        offload = {"size": f"{random.choice([10, 300]) * 16 * 131072} B", "bandwidth": "300 MB/s"}
        sections = fleet_of(random, prefix_caching=True, kv_offload=offload)
    sections["fleet"] |= {"profile": no_ties(), "async_scheduling": random.random() < 0.7}
    world = build_world(build(**sections))
    leaping = run(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransferScheduler, "_equal_steps", lambda self: 1)
        stepping = run(world)
    for name, column in leaping.requests.items():
        np.testing.assert_allclose(column, stepping.requests[name], rtol=1e-9, atol=1e-9, err_msg=f"{name}, {number}")


@pytest.mark.parametrize("number", range(200))
def test_slots_on_both_sides_equal_a_naive_twin(number: int) -> None:
    random = Random(number)
    link = {"bandwidth": f"{random.uniform(0.1, 2)!r} GB/s", "latency": f"{random.uniform(0, 0.03)!r} s"}
    link["streams"] = random.randint(1, 3)
    sections = fleet_of(random, kv_transfer=link)
    for shared in ("prefix", "sessions"):
        sections["workload"].pop(shared, None)
    sections["fleet"] |= {
        "kv_tokens": 100_000,
        "prefix_caching": False,
        "async_scheduling": False,
        "profile": no_ties(),
    }
    del sections["cache"]
    pools = []
    for role in ("prefill", "decode"):
        slots = random.randint(1, 4)
        cache = {"gpu": {"slots": slots}, "host": {"slots": random.randint(slots, slots + 8)}}
        pools.append({"name": role[0], "role": role, "max_num_seqs": random.randint(1, 6), "cache": cache})
    sections["fleet"]["pools"] = pools
    world = build_world(build(**sections))
    recording = run(world)
    twin = PairFleet(world)
    result = twin.run()
    requests, rows = recording.requests, recording.hand_overs[np.argsort(recording.hand_overs[:, 0])]
    prompts, answers = result.jobs, [twin.answers[index] for index in range(len(result.jobs))]
    expected = {
        "admitted_s": [job.admitted_s for job in prompts],
        "first_token_s": [job.first_token_s for job in answers],
        "finished_s": [job.finished_s for job in answers],
        "load_wait_s": [a.load_wait_s + b.load_wait_s for a, b in zip(prompts, answers, strict=True)],
        "outcome": [max(a.outcome, b.outcome) for a, b in zip(prompts, answers, strict=True)],
    }
    for name, column in expected.items():
        np.testing.assert_allclose(requests[name], column, rtol=1e-9, atol=1e-9, err_msg=f"{name}, {number}")
    times = [(p.finished_s, *twin.reads[a.index], a.admitted_s) for p, a in zip(prompts, answers, strict=True)]
    np.testing.assert_allclose(rows[:, 1:5], times, rtol=1e-9, atol=1e-9)
    loads = np.array([recording.loads[name] for name in ("started_s", "ended_s", "adapter", "tier")]).T
    np.testing.assert_allclose(sorted(loads.tolist()), sorted(load[:4] for load in result.loads), rtol=1e-9, atol=1e-9)
    assert recording.evictions == result.evictions
