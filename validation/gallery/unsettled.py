"""What is not settled: predictions without a measurement, results that are missed, and results without traffic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sim.errors import InputError
from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.replication import simulate
from validation.gallery.entry import Entry, Row, Source

GATEWAY, SGLANG, SLORA = "gateway-multi-lora", "sglang-13349", "s-lora-without-anchor"
WINDOW_S, OF_TABLE = 300.0, ("requests_per_s", "ttft_mean_s", "latency_mean_s")


def requests_of(**sections: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what became of the requests of a scenario, by column."""
    rest = {"schema_version": 1, "name": "unsettled", "run": {"warmup": 0, "replications": 1}}
    return simulate(build_world(Scenario.model_validate(rest | sections)), 0, 1).requests


def gateway(rate: int) -> Row:
    """Predict one rate of the regression setup: ten replicas that run three of fifteen adapters at a time."""
    return Row(GATEWAY, f"{rate}/s", {}, _routed("round-robin", rate) | _routed("affinity-activity", rate))


def _routed(policy: str, rate: int) -> dict[str, float]:
    lengths = {"prompt": (200, 120), "output": (400, 300)}
    workload = {
        "arrivals": {"process": "poisson", "rate": f"{rate}/s"},
        "duration": f"{WINDOW_S} s",
        "popularity": {"law": "groups", "groups": [{"adapters": 5, "weight": weight} for weight in (12, 6, 2)]},
        "tokens": {k: {"law": "lognormal", "mean": m, "p50": p50, "max": 1024} for k, (m, p50) in lengths.items()},
    }
    fleet = {"engine": "vllm-0.8", "profile": "h100-64gb/llama-3.1-8b/vllm-0.8.5", "prefix_caching": False}
    fleet |= {"replicas": 10, "max_num_seqs": 2048, "kv_tokens": 410_000}
    cache = {"gpu": {"slots": 3}, "host": {"slots": 15}}
    adapters, router = {"count": 15, "rank": 8}, {"policy": policy}
    columns = requests_of(workload=workload, adapters=adapters, fleet=fleet, cache=cache, router=router)
    done = (columns["finished_s"] > 0) & (columns["finished_s"] <= WINDOW_S)
    tokens = columns["output_tokens"][done].sum()
    per_s = {"requests_per_s": float(done.sum() / WINDOW_S), "output_tok_per_s": float(tokens / WINDOW_S)}
    return {f"{policy}: {key}": value for key, value in per_s.items()}


def sglang(adapters: int, published_s: float) -> Row:
    """Predict the median TTFT of 100 requests on one H100 instead of two."""
    client: dict[str, Any] = {"tool": "sglang-bench", "num_prompts": 100, "request_rate": "4/s", "seed": 1}
    client |= {"input_len": 4096, "output_len": 2048}
    fleet: dict[str, Any] = {"engine": "sglang", "profile": "h100-80gb/llama-3.1-8b/vllm-0.24.0", "admission": "stop"}
    cache = {"gpu": {"slots": 8}}
    columns = requests_of(workload={"client": client}, adapters={"count": adapters}, fleet=fleet, cache=cache)
    ttft = float(np.median(columns["first_token_s"] - columns["arrival_s"]))
    return Row(SGLANG, f"{adapters} adapters", {"ttft_p50_s": published_s}, {"ttft_p50_s": ttft})


def slora(adapters: int, published: Sequence[float]) -> Row:
    """Predict a row of S-LoRA's Table 3 (S1) with costs measured by another lab on another card."""
    client = {"tool": "slora", "request_rate": "10/s", "duration": "120 s"}
    population = {"count": adapters, "rank": 8, "targets": ["q", "k", "v", "o"], "base_model": "llama-2-7b"}
    fleet: dict[str, Any] = {"engine": "s-lora", "profile": "unnamed-64gb/llama-2-7b/s-lora", "front_end": "s-lora"}
    fleet |= {"kv_tokens": 125_000, "max_num_seqs": 1000}
    columns = requests_of(workload={"client": client}, adapters=population, fleet=fleet)
    finished, sent = columns["finished_s"].astype(np.float64), columns["arrival_s"]
    found = (len(sent) / finished.max(), (columns["first_token_s"] - sent).mean(), (finished - sent).mean())
    truth, guess = (dict(zip(OF_TABLE, map(float, each), strict=True)) for each in (published, found))
    return Row(SLORA, f"{adapters} adapters", truth, guess)


def _rows() -> Iterator[Row]:
    yield from map(gateway, (20, 40, 60, 100, 200))
    yield from (sglang(adapters, seconds) for adapters, seconds in ((8, 0.03965), (16, 6.278)))
    table = {5: (8.046, 0.5986, 20.841), 1000: (7.6406, 1.898, 25.935), 2000: (7.6068, 2.019, 26.218)}
    yield from (slora(adapters, published) for adapters, published in table.items())


def predict(path: Path | None) -> list[Row]:
    """Predict what has settings enough."""
    if path:
        raise InputError("this source takes no rows", key="--rows", got=str(path), hint="each has settings of its own")
    return list(_rows())


SOURCE = Source(
    (
        Entry(
            GATEWAY,
            "Unchecked: the Gateway API's regression test with 15 adapters",
            "kubernetes-sigs/gateway-api-inference-extension, `site-src/performance/regression-testing` and "
            "`config/manifests/regression-testing`: ten replicas of vLLM 0.8.5 on H100 with 80 GB, Llama-3.1-8B",
            "15 adapters of rank 8, of which five each get 12 %, 6 % and 2 % of the traffic; `max_loras` 3 (a later "
            "manifest has 15), `max_num_seqs` 2048; 300 s at each rate. Only what completes within them counts",
            "none. Assumed: lengths, which the source only limits to 1,024: log-normal, means 200 and 400 tokens, "
            "medians 120 and 300",
            lambda rows: (),
            "This was predicted on 2026-11-30, and nothing is published to compare with: if you run it, tell us. The "
            "endpoint picker is `affinity-activity`; a plain Service is nearest to `round-robin`. Costs are those of "
            "an H100 with 64 GB, the KV cache is that of 80 GB.",
        ),
        Entry(
            SGLANG,
            "Missed: SGLang with twice as many adapters as slots",
            "https://github.com/sgl-project/sglang/pull/13349 (November 2025): two H100, Llama-3.1-8B",
            "100 requests of 4,096 and 2,048 tokens at 4/s; 8 slots. Not given: seed and range ratio (the defaults "
            "are taken), ranks, flags of the server",
            "none",
            lambda rows: (),
            "This is predicted on one H100, because loraplan has no costs of two for this model, which may explain the "
            "factor of 2 with 8 adapters. With 16, SGLang of that time stopped its queue at a request over the limit, "
            "as simulated (`fleet.admission: stop`). If others passed it (`skip`), half of the requests would hardly "
            "wait. The published 6.3 s lies between, and we don't know why.",
        ),
        Entry(
            SLORA,
            "Missed: S-LoRA's Table 3 without an anchor",
            "S-LoRA/S-LoRA, benchmarks/paper (MLSys 2024): Llama-7B, adapters of rank 8, one A100 with 80 GB",
            "10/s for 120 s, seeded client, KV pool of 125,000 tokens",
            "the rank term of the profile, on rows of this paper. All else is what another lab's GPU with 64 GB showed",
            lambda rows: (),
            "That GPU, probably an H100, is about twice as fast as an A100, so latency is less than half. A profile "
            "needs one measured run of the card itself, as an anchor.",
        ),
        Entry(
            "chameleon",
            "Missed: Chameleon",
            "Iliakopoulou et al., MICRO 2025 (arXiv 2411.17741): one A40, Llama-7B; within its SLO S-LoRA serves 8.7 "
            "requests/s and Chameleon 12.9",
            "not enough: we have neither the production trace of lengths nor the SLO that loads come from",
            "–",
            lambda rows: (),
            "Of Chameleon, loraplan has the eviction policy (`refcount-score`), but not the scheduler.",
        ),
        Entry(
            "dlora-11b",
            "Listed only: figure 11b of dLoRA",
            "LLMServe/dLoRA-artifact (OSDI 2024), `ae_scripts/fig11b.sh`: 32 models, 8/s, 1,000 prompts",
            "lengths of texts from ShareGPT and arrivals of Azure Functions 2021; the artifact has neither",
            "–",
            lambda rows: (),
            "dLoRA merges adapters into the weights and migrates requests, which loraplan doesn't simulate.",
        ),
    ),
    predict,
)
