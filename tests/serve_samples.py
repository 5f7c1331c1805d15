"""A short scenario of live traffic, and a profile to predict it with."""

from __future__ import annotations

from pathlib import Path

SCENARIO = """
schema_version: 1
name: short
workload:
  requests: 30
  arrivals: {process: poisson, rate: 60/s}
  popularity: {law: uniform}
  tokens: {prompt: {law: fixed, value: 20}, output: {law: fixed, value: 6}}
adapters: {base_model: tiny, count: 4, rank: 8}
fleet: {engine: vllm-0.32, max_num_seqs: 8, max_model_len: 512}
cache: {gpu: {slots: 2}, host: {slots: 4}}
run: {seed: 1}
"""

PROFILE = """{
  "schema_version": 1, "name": "test/tiny", "status": "assumed", "description": "For tests.", "device": "none",
  "model": "tiny", "dtype": "bf16",
  "step": {"fixed_s": 0.002, "tokens": [[0, 0], [1, 0.00001]], "lora": {"per_adapter_s": 0.0001}},
  "load": {"storage": {"open_s": 0.001, "bandwidth_bytes_per_s": 1e12},
           "host": {"open_s": 0.0005, "bandwidth_bytes_per_s": 1e12}},
  "memory": {"total_bytes": 1073741824, "utilization": 1.0, "weights_bytes": 1, "overhead_bytes": 0,
             "kv_bytes_per_token": 1024},
  "envelope": {"sequences": 8, "distinct_adapters": 8, "rank": 8, "slots": 8}, "sources": {"step": "a guess"}
}
"""


def write_samples() -> None:
    """Write ``short.yaml`` and ``profile.json`` into the working folder."""
    Path("short.yaml").write_text(SCENARIO, encoding="utf-8")
    Path("profile.json").write_text(PROFILE, encoding="utf-8")
