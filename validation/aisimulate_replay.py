"""Prefill and decode apart, against the disaggregated replay of NVIDIA's aisimulate, at equal step costs.

``python -m validation.aisimulate_replay --python ENV/bin/python`` replays the same requests to the base model in both.
ENV is an environment of its own: ``pip install --no-deps --pre --only-binary aisimulate aisimulate``.

aisimulate has two kinds of step costs that need no tables: fixed ones, and a polynomial in the prompt tokens of a step
and the share u of the KV cache that decodes attend to. Here u is a few percent, so our profile drops its -25.74 ms·u².
Both sides go round the replicas, schedule synchronously, and have no prefix cache and no limit of reads at a time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from sim.arrays import Floats
from sim.spec.profile import load_profile
from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.replication import simulate

THEIRS: Final = "import sys; from aisimulate import _runtime; print(_runtime.run_replay_json(sys.stdin.read()))"
REQUESTS, BUDGET, BLOCK = 2000, 2048, 16  # the last two: tokens of a step at most, and of a KV block
FIXED_MS: Final = (40.0, 10.0)  # of a step on a prefill replica, and of one on a decode replica
BASIS: Final = load_profile("h100-64gb/llama-3.1-8b/assumed")[0]  # with other step costs
MEASURED: Final = ("mean TTFT, ms", "mean ITL, ms", "output tokens/s", "p99 TTFT, ms")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A deployment and its traffic: a Poisson process with exponential lengths, or equal ones unless ``drawn``.

    :ivar replicas: prefill and decode. ``prompt``, ``output``: mean tokens. ``link``: GB/s of a read; 0: at once.
    """

    name: str
    rate_per_s: float
    replicas: tuple[int, int] = (1, 1)
    prompt: int = 1024
    output: int = 128
    drawn: bool = True
    max_num_seqs: int = 64
    kv_tokens: int = 4_000_000
    link: float = 0.0
    fixed: bool = False

    def traffic(self) -> Floats:
        """Return a row for each request: arrival in seconds, the first at 0, prompt tokens, output tokens."""
        rng = np.random.default_rng(7)
        arrivals = np.cumsum(rng.exponential(1 / self.rate_per_s, REQUESTS))
        means = np.array([[self.prompt], [self.output]])
        drawn = rng.exponential(means, (2, REQUESTS)) if self.drawn else means + np.zeros((2, REQUESTS))
        return np.column_stack([arrivals - arrivals[0], *np.rint(np.clip(drawn, 2, 8 * means))])


SETTINGS: Final = (
    Setting(name="light, equal lengths", rate_per_s=12, drawn=False, fixed=True),
    Setting(name="half load", rate_per_s=20),
    Setting(name="near saturation", rate_per_s=36),
    Setting(name="reads at 10 GB/s", rate_per_s=20, link=10),
    Setting(name="2 + 1 replicas", rate_per_s=40, replicas=(2, 1)),
    Setting(name="1 + 2, long answers", rate_per_s=20, replicas=(1, 2), output=512, link=25),
    Setting(name="3 + 2", rate_per_s=80, replicas=(3, 2), link=25),
    Setting(name="8 batch slots", rate_per_s=5.5, max_num_seqs=8, fixed=True),
    Setting(name="prompts of 10,000", rate_per_s=6, replicas=(2, 1), prompt=10_000, link=25),
    Setting(name="little KV memory", rate_per_s=5, output=256, kv_tokens=24_000, fixed=True),
)


def measured(setting: Setting, first_s: Floats, last_s: Floats) -> tuple[float, ...]:
    """Return ``MEASURED``, counted in the same way for both: from the first and the last token of each request."""
    arrived_s, _, outputs = setting.traffic().T
    ttft_ms, itl_s = (first_s - arrived_s) * 1000, (last_s - first_s).sum() / (outputs - 1).sum()
    return float(ttft_ms.mean()), itl_s * 1000, outputs.sum() / last_s.max(), float(np.quantile(ttft_ms, 0.99))


def step_costs(setting: Setting) -> list[dict[str, Any]]:
    """Return the step costs of a prefill and of a decode replica, as a profile has them."""
    if setting.fixed:
        return [{"fixed_s": milliseconds / 1000} for milliseconds in FIXED_MS]
    tokens = [(n, (4.209989e-7 * n**2 + 1.518344e-2 * n) / 1000) for n in range(0, BUDGET + 1, 32)]
    kv_s = 0.05401 / setting.kv_tokens
    decode = {"fixed_s": 0.00574, "per_kv_token_s": kv_s, "per_attended_token_s": kv_s}
    return [{"fixed_s": 0.01650142, "tokens": tokens}, decode]


def ours(setting: Setting, folder: Path) -> tuple[float, ...]:
    """Simulate a setting."""
    rows = "".join([f"{time!r},{prompt:.0f},{output:.0f}\n" for time, prompt, output in setting.traffic().tolist()])
    (trace := folder / "trace.csv").write_text(f"timestamp_s,input_tokens,output_tokens\n{rows}", encoding="utf-8")
    costs, pools = BASIS.model_dump(mode="json"), []
    for role, replicas, step in zip(("prefill", "decode"), setting.replicas, step_costs(setting), strict=True):
        (profile := folder / f"{role}.json").write_text(json.dumps({**costs, "step": step}), encoding="utf-8")
        pools.append({"name": role, "role": role, "replicas": replicas, "profile": str(profile)})
    link = {"bandwidth": f"{setting.link or 1e6} GB/s", "latency": "0 s", "streams": 1024}
    fleet = {"engine": "vllm", "pools": pools, "kv_transfer": link, "front_end_time": "0 s", "prefix_caching": False,
             "async_scheduling": False, "kv_tokens": setting.kv_tokens, "block_size": BLOCK, "reserved_kv_blocks": 0,
             "max_num_seqs": setting.max_num_seqs, "max_num_batched_tokens": BUDGET}  # fmt: skip  # a table
    workload = {"trace": {"file": str(trace), "columns": {"adapter": "none"}}}
    scenario = {"schema_version": 1, "name": "aisimulate", "workload": workload, "fleet": fleet,
                "adapters": {"mix": [{"kind": "base", "share": "100%"}]}}  # fmt: skip  # a table
    of = simulate(build_world(Scenario.model_validate(scenario)), 0, 1).requests
    return measured(setting, of["first_token_s"].astype(np.float64), of["finished_s"].astype(np.float64))


def theirs(setting: Setting, python: str) -> tuple[float, ...]:
    """Replay a setting in aisimulate, with the interpreter that has it."""
    fixed = {"type": "fixed", "prefill_ms": FIXED_MS[0], "decode_ms": FIXED_MS[1]}
    rank = {"backend": "vllm", "num_gpu_blocks": setting.kv_tokens // BLOCK, "block_size": BLOCK,
            "max_num_seqs": setting.max_num_seqs, "max_num_batched_tokens": BUDGET, "enable_prefix_caching": False,
            "kv_transfer_bytes_per_token": BASIS.memory.kv_bytes_per_token, "kv_transfer_bandwidth": setting.link,
            "timing_model": fixed if setting.fixed else {"type": "polynomial"}}  # fmt: skip  # a table
    prefill, decode = ({"initial_workers": replicas, "startup_delay_ms": 0.0} for replicas in setting.replicas)
    engine = {"dp_size": 1, "num_gpu_blocks_is_explicit": True, "rank": rank}
    requests = [
        {"id": str(number), "arrival_time_ms": time * 1000, "input_tokens": int(prompt), "output_tokens": int(output)}
        for number, (time, prompt, output) in enumerate(setting.traffic().tolist())
    ]
    policies = {"placement": {"provider": "round_robin"}, "scaling": {"provider": "none"}}
    spec = {"version": 1, "requests": requests, "record_per_request": True, "adapters": policies,
            "topology": {"kind": "disaggregated", "prefill": prefill, "decode": decode},
            "engine": {"prefill": engine, "decode": engine}}  # fmt: skip  # a table
    report = subprocess.check_output([python, "-c", THEIRS], input=json.dumps(spec), text=True)
    answers = sorted(json.loads(report)["per_request"], key=lambda answer: int(answer["request_id"]))
    return measured(setting, *np.array([(of["first_token_ms"], of["last_token_ms"]) for of in answers]).T / 1000)


def main() -> None:
    """Print ours, theirs and the difference, setting by setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="interpreter of the environment with aisimulate")
    given = parser.parse_args()
    print(" " * 20 + "".join(f"{name:>28}" for name in MEASURED))
    for setting in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            pairs = zip(ours(setting, Path(folder)), theirs(setting, given.python), strict=True)
        print(f"{setting.name:20}" + "".join(f"{us:10.1f} {them:8.1f} {us / them - 1:+8.1%}" for us, them in pairs))


if __name__ == "__main__":
    main()
