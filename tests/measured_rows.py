"""A row of a table of measured runs, as tests change it."""

from __future__ import annotations

ROW = {
    "model": "llama-3.1-8b-instruct",
    "workload_group": "g",
    "case": "_8_",
    "gpu_slots": "8",
    "host_slots": "16",
    "adapters": "12",
    "max_lora_rank": "32",
    "adapter_rank_mix": "8|8|32",
    "adapter_rates_rps": "0.5|0.25",
    "adapters_per_rate": "4|8",
    "duration_s": "3600.06",
    "waiting_mean": "0",
    "kv_usage_mean": "0.2",
    "req_per_s": "3.99",
    "tpot_mean_ms": "20",
    "itl_mean_ms": "21",
    "itl_p50_ms": "19",
    "ttft_p50_ms": "40",
    "ttft_p99_ms": "200",
    "running_mean": "10",
}
