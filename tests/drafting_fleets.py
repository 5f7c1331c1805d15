"""Random small fleets of one replica that speculate, with every adapter in its slot."""

from __future__ import annotations

from random import Random
from typing import Any

from strategies import write_profile, write_trace

STEP: dict[str, Any] = {
    "fixed_s": 0.01,
    "tokens": [[0, 0.0], [1000, 0.1]],
    "per_kv_token_s": 3e-6,
    "per_sequence_s": 2e-4,
    "per_attended_token_s": 1e-7,
}
HOST_S = 0.0013


def twin_sections(random: Random, *, ahead: bool = False) -> dict[str, Any]:
    """Return the sections of a random fleet.

    :param ahead: whether it schedules ahead. Some of its answers then end by a stop token, and requests of some fleets
        nearly fill the longest context.
    """
    size, tokens = random.choice([1, 4, 16]), random.randint(1, 6)
    seqs, longest = random.randint(1, 6), 160
    adapters = random.randint(2, 6)
    profile = {**STEP, "host_s": HOST_S}
    sections = {
        "workload": {
            "requests": 40,
            "arrivals": {"process": "poisson", "rate": f"{random.choice([2, 15, 200])}/s"},
            "tokens": {
                "prompt": {"law": "uniform", "low": 1, "high": random.choice([20, 90])},
                "output": {"law": "uniform", "low": 1, "high": random.choice([6, 60])},
            },
        },
        "adapters": {
            "count": adapters,
            "mix": [
                {"kind": "base", "share": 0.3},
                {"share": 0.4, "rank": 8, "acceptance": random.choice([0.0, 0.3, [0.9, 0.2]])},
                {"share": 0.3, "rank": 8},
            ],
        },
        "cache": {"gpu": {"slots": adapters}, "host": {"slots": adapters}, "warm": adapters},
        "fleet": {
            "engine": "vllm",
            "profile": write_profile(step=profile),
            "block_size": size,
            "max_num_seqs": seqs,
            "max_num_batched_tokens": max(random.choice([16, 64, 512]), seqs * (1 + tokens)),
            "kv_tokens": random.choice([longest + 16, 208, 2000]) // 16 * 16,  # a block is vLLM's own
            "max_model_len": random.choice([longest, 151]),
            "async_scheduling": ahead,
            "front_end_time": 0.0,
            "prefix_caching": random.random() < 0.5,
            "speculation": {
                "tokens": tokens,
                "acceptance": random.choice([0.0, 0.6, 1.0, [0.8, 0.5, 0.4]]),
                "draft": random.choice([0.0, 0.07]),
                "method": random.choice(["ngram", "eagle3"]),
            },
        },
        "run": {"seed": random.randrange(1 << 30), "warmup": 0.0},
    }
    if ahead:
        sections["fleet"]["speculation"]["method"] = random.choice(["eagle3", "draft_model"])
        if random.random() < 0.4:
            fill_contexts(sections, random)
        sections["workload"]["tokens"]["stop"] = random.choice([0.0, 0.5, 1.0])
    return sections


def fill_contexts(sections: dict[str, Any], random: Random) -> None:
    """Let each request nearly fill the longest context, after a prompt of any length, and KV memory be short."""
    longest, adapters = random.choice([32, 80]), sections["adapters"]["count"]
    now, rows = 0.0, []
    for _ in range(40):
        now += random.expovariate(random.choice([2, 20, 200]))
        prompt = random.randint(1, longest - 3)
        rows.append((now, random.randrange(adapters), prompt, longest - prompt - random.randint(0, 2)))
    sections["workload"] = {"trace": {"file": write_trace(rows)}, "tokens": {}}
    sections["adapters"]["mix"] = [{"share": 0.5, "rank": 8, "acceptance": random.random()}, {"share": 0.5, "rank": 8}]
    sections["fleet"]["max_model_len"] = longest
    sections["fleet"]["kv_tokens"] = random.choice([longest + 16, 2 * longest])
