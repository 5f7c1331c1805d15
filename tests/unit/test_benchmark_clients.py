"""Seeded benchmark clients: their requests against those that the tools themselves sent or drew.

Recorded on NumPy 2.3.5 from vLLM 0.32.0 and SGLang 0.5.23, whose clients ran against a server that wrote down adapters
and lengths (a tokenizer with one special token; 500 conversations), with the times that their own loops wait for; and
from S-LoRA's ``generate_requests`` (commit c1ddf48).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from strategies import build, fixed_time, run

from sim.spec.scenario import Scenario
from sim.studies.plan.what_if import _traffic as traffic_changes
from sim.studies.run.method import assumed
from sim.world.build import build_world

VLLM = {"tool": "vllm-bench", "num_prompts": 12, "input_len": 40, "output_len": 30}
SGLANG = VLLM | {"tool": "sglang-bench", "range_ratio": 0.25, "request_rate": "8/s", "seed": 3}
RECORDED: dict[str, tuple[dict[str, Any], int, str, list[float]]] = {
    "vllm, random": (
        VLLM | {"range_ratio": 0.5, "prefix_len": 5, "request_rate": "8/s", "burstiness": 0.5, "seed": 3},
        4,
        "b58/34 b28/29 c32/23 d34/19 a32/36 a57/37 d60/16 c48/18 b26/29 b28/27 d38/42 d42/31",
        [0.13342380369225734, 0.17027007777823266, 0.8732424770792409, 0.8801095185999593],
    ),
    "vllm, round-robin, a ratio each": (
        VLLM | {"range_ratio": 0.1, "output_range_ratio": 0.9, "lora_assignment": "round-robin", "request_rate": "4/s"},
        3,
        "a43/30 b41/35 c40/56 a38/42 b38/37 c36/32 a36/33 b36/54 c37/17 a43/47 b41/39 c44/2",
        [],
    ),
    "sglang, uniform": (
        SGLANG | {"conversations": 500},
        4,
        "d20/16 d34/17 d35/28 b13/30 b34/13 c18/7 b10/27 b31/19 c39/14 b29/21 c20/24 d21/29",
        [0.0, 0.08481580456785752, 0.39048056335961184, 0.571942121652151],
    ),
    "sglang, skewed": (
        SGLANG | {"lora_request_distribution": "skewed"},
        4,
        "b20/16 c34/17 a35/28 a13/30 a34/13 c18/7 a10/27 c31/19 a39/14 c29/21 b20/24 c21/29",
        [],
    ),
    "sglang, random-ids": (
        SGLANG | {"lora_request_distribution": "skewed", "vocab_size": 1000},
        4,
        "a20/16 a34/17 c35/28 a13/30 c34/13 a18/7 c10/27 b31/19 c39/14 a29/21 b20/24 b21/29",
        [0.0, 0.1104234921550174, 0.1862047482294619, 0.398878838244193],
    ),
    "sglang, distinct": (
        SGLANG | {"lora_request_distribution": "distinct", "vocab_size": 1000},
        4,
        "a20/16 b34/17 c35/28 d13/30 a34/13 b18/7 c10/27 d31/19 a39/14 b29/21 c20/24 d21/29",
        [],
    ),
    "s-lora, table 3": (
        {"tool": "slora", "request_rate": "10/s", "duration": "120 s"},
        5,
        "b388/268 e467/357 d14/509 c36/359 a402/15 a40/327 a141/145 e374/45",
        [0.0503244877027261, 0.08789661433208375, 0.10380343868969605, 0.17071744525808666],
    ),
    "s-lora, bursts": (
        {"tool": "slora", "request_rate": "2/s", "alpha": 0.3, "cv": 4},
        20,
        "a12/410 q473/43 h99/292 d177/195 a324/89 a29/9 a412/392 m333/310",
        [7.899956416611098e-09, 9.483359034175847e-06, 9.483361145886832e-06, 0.023005841014409435],
    ),
}
"""By name: the client, its adapters, what it sent (adapter, prompt and output tokens) and when the first ones."""


def scenario_of(
    client: dict[str, Any], adapters: int | dict[str, Any] = 4, fleet: dict[str, Any] | None = None
) -> Scenario:
    return build(
        workload={"client": client},
        adapters={"count": adapters, "size": "1 MiB"} if isinstance(adapters, int) else adapters,
        cache={"gpu": {"slots": 4}},
        fleet=fleet or {"engine": "fixed", "service": {"law": "exponential", "mean": "300 ms"}},
        storage={"load": fixed_time(0.02)},
        run={"warmup": 0},
    )


@pytest.mark.parametrize("name", RECORDED)
def test_requests_are_those_that_the_tool_sent(name: str) -> None:
    client, adapters, sent, times = RECORDED[name]
    traffic = build_world(scenario_of(client, adapters)).traffic
    (chunk,) = traffic.chunks(0)
    columns = (chunk.adapter, chunk.prompt_tokens, chunk.output_tokens)
    rows = [f"{chr(ord('a') + adapter)}{prompt}/{output}" for adapter, prompt, output in zip(*columns, strict=True)]
    assert " ".join(rows[: len(sent.split())]) == sent
    assert chunk.arrival_s[: len(times)].tolist() == pytest.approx(times, rel=1e-12)
    assert not chunk.stops.any(), "answers go to their limits"
    assert traffic.total == len(chunk) == {"10/s": 1200, "2/s": 600}.get(client["request_rate"], 12)


def test_the_last_request_of_vllm_comes_when_its_rate_says() -> None:
    """So the mean rate is exact: 200 at 4/s take 50 s, and the twelfth is where vLLM's own loop has it."""
    (chunk,) = build_world(scenario_of(VLLM | {"num_prompts": 200, "request_rate": "4/s"})).traffic.chunks(0)
    assert chunk.arrival_s[[0, 11, -1]].tolist() == pytest.approx([0.20199080705912245, 3.6218310964355207, 50.0])


@pytest.mark.parametrize("fleet", [None, {"replicas": 2}], ids=["fixed", "steps of two replicas"])
@pytest.mark.parametrize(("rate", "cap"), [("8/s", 2), ("8/s", 5), (None, 3), (None, None)])
def test_beyond_the_limit_a_request_waits_at_the_client_in_order(
    rate: str | None, cap: int | None, fleet: dict[str, Any] | None
) -> None:
    """As behind a semaphore: a request is sent at its time, or when the first of those under way is answered."""
    client = SGLANG | {"num_prompts": 300, "request_rate": rate, "max_concurrency": cap, "output_len": 300}
    (free,) = build_world(scenario_of(client | {"max_concurrency": None})).traffic.chunks(0)
    due_s = np.maximum(free.arrival_s, 0.0)
    recording = run(scenario_of(client, fleet=fleet))
    sent_s, answered_s = (recording.requests[name].astype(float) for name in ("arrival_s", "finished_s"))
    ends: list[float] = []
    for due, sent, answered in zip(due_s, sent_s, answered_s, strict=True):
        slot = sorted(ends)[-cap] if cap is not None and len(ends) >= cap else 0.0
        assert sent == pytest.approx(max(due, slot), abs=1e-9)
        ends.append(answered)
    assert cap is None or (sent_s > due_s + 1e-6).any()


def test_more_traffic_is_the_same_requests_faster_or_more_at_a_time() -> None:
    for given, twice in (
        ({"request_rate": "8/s"}, {"time_scale": 2.0}),
        ({"request_rate": "8/s", "max_concurrency": 3}, {"time_scale": 2.0, "max_concurrency": 6}),
        ({"request_rate": None, "max_concurrency": 3}, {"max_concurrency": 6}),
        ({"request_rate": None}, {"num_prompts": 24}),
    ):
        scenario = scenario_of(SGLANG | given)
        (change,) = traffic_changes(scenario)
        assert change.set == {f"workload.client.{key}": value for key, value in twice.items()}
    (slow,), (fast,) = (build_world(scenario_of(SGLANG | {"time_scale": scale})).traffic.chunks(0) for scale in (1, 2))
    assert fast.adapter.tolist() == slow.adapter.tolist()
    assert fast.arrival_s.tolist() == pytest.approx((slow.arrival_s / 2).tolist())


def test_the_report_says_whose_requests_they_are() -> None:
    scenario = scenario_of(VLLM).model_dump(mode="json", exclude_unset=True)
    assert any("a benchmark's (vllm-bench)" in sentence for sentence in assumed({"scenario": scenario}))
    assert not any("choose their adapter" in sentence for sentence in assumed({"scenario": scenario}))


def test_kinds_of_s_lora_take_turns_and_a_base_model_alone_draws_as_with_one() -> None:
    client = {"tool": "slora", "request_rate": "10/s", "duration": "1 s"}
    kinds = [{"share": "25%", "rank": rank, "targets": ["q", "k", "v", "o"]} for rank in (64, 32, 16, 8)]
    mixed = build_world(scenario_of(client, adapters={"count": 6, "mix": kinds, "base_model": "llama-2-7b"}))
    assert mixed.traffic.population.rank.tolist() == [64, 32, 16, 8, 64, 32]
    (alone,) = build_world(scenario_of(client, adapters={"mix": [{"share": 1, "kind": "base"}]})).traffic.chunks(0)
    (one,) = build_world(scenario_of(client, 1)).traffic.chunks(0)
    assert set(alone.adapter) == {-1}
    assert alone.output_tokens.tolist() == one.output_tokens.tolist()


def test_prompts_of_vllm_share_their_prefix() -> None:
    (chunk,) = build_world(scenario_of(VLLM | {"prefix_len": 30, "request_rate": "4/s"})).traffic.chunks(0)
    assert set(chunk.text.ends) == {31}, "with the special token"
    assert set(chunk.prompt_tokens) == {70}
