"""Made-up pages of engines' metrics, and answers of Prometheus."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sim.studies.observe.engine_metrics import read_metrics
from sim.studies.observe.readings import MetricPage

START_S = 1_700_000_000.0


def page(text: str, at_s: float = START_S, name: str = "m.txt", *, is_file: bool = False) -> MetricPage:
    return MetricPage(name, text.encode(), at_s, is_file)


def counted(requests: int, latency_s: float, tokens: int = 40) -> str:
    """A page of vLLM V0 after so many equal requests."""
    rows = [f'vllm:request_success_total{{finished_reason="stop",model_name="m"}} {requests}']
    for name, value, bounds in (
        ("vllm:request_prompt_tokens", tokens, (10, 50, 100)),
        ("vllm:request_generation_tokens", tokens, (10, 50, 100)),
        ("vllm:time_to_first_token_seconds", latency_s / 4, (0.1, 1, 10)),
        ("vllm:time_per_output_token_seconds", latency_s / 100, (0.01, 0.1, 1)),
        ("vllm:e2e_request_latency_seconds", latency_s, (1, 2, 5)),
    ):
        rows += [f'{name}_bucket{{le="{bound}"}} {requests if value <= bound else 0}' for bound in bounds]
        rows += [f'{name}_bucket{{le="+Inf"}} {requests}', f"{name}_sum {requests * value}", f"{name}_count {requests}"]
    return "\n".join(rows) + "\n"


def answer(values: Mapping[float, str]) -> str:
    """What ``/api/v1/query_range`` gives for pages of the text format at these times."""
    series: dict[Any, list[Any]] = {}
    for at_s, text in values.items():
        for sample in read_metrics(text):
            series.setdefault(sample.key, []).append([at_s, str(sample.value)])
    result = [
        {"metric": {"__name__": name, **dict(labels)}, "values": points} for (name, labels), points in series.items()
    ]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})


def lora(running: str, at_s: float) -> str:
    return (
        f'vllm:lora_requests_info{{max_lora="4",running_lora_adapters="{running}",waiting_lora_adapters=""}} {at_s}\n'
    )
