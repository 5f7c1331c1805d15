"""The requests of seeded benchmark clients.

Each function makes the draws of its tool, from the same generators and in the same order. None may be left out, not
even the shuffle of texts that are not used here: all later draws would differ.
"""

from __future__ import annotations

import math
import random

import numpy as np

from sim.arrays import Floats, Ints
from sim.spec.sections.benchmark_clients import SglangBench, SLoraClient, VllmBench
from sim.traffic.traces.data import TraceData

_Drawn = tuple[Floats, "list[int] | Ints", Ints, Ints]
"""Times, adapters, prompt and output tokens."""


def requests_of(client: VllmBench | SglangBench | SLoraClient, adapters: int, most: int | None) -> TraceData:
    """Return what a client sends, as a trace of its first ``most`` requests.

    :param adapters: how many there are; 0: all requests are for the base model.
    """
    if isinstance(client, VllmBench):
        times, adapter, prompt, output = _vllm(client, adapters)
    elif isinstance(client, SglangBench):
        times, adapter, prompt, output = _sglang(client, adapters)
    else:
        times, adapter, prompt, output = _slora(client, adapters)
    kept = slice(most)
    return TraceData(
        arrival_s=times[kept] / client.time_scale,
        prompt_tokens=prompt[kept].astype(np.int32),
        output_tokens=output[kept].astype(np.int32),
        adapter=np.array(adapter[kept], dtype=np.int32) if adapters else None,
        names=tuple(map(str, range(adapters))),
    )


def _vllm(client: VllmBench, adapters: int) -> _Drawn:
    """Draw as vLLM's ``get_sampling_params``, ``benchmark`` and ``get_request``, which draws all gaps at the start."""
    count, rate, choose = client.num_prompts, client.request_rate, random.Random(client.seed).choice
    lengths = np.random.default_rng(client.seed)

    def uniform(mean: int, ratio: float, least: int) -> Ints:
        low, high = max(math.floor(mean * (1 - ratio)), least), max(math.ceil(mean * (1 + ratio)), least)
        return lengths.integers(low, high + 1, size=count)

    prompt = uniform(client.input_len - client.special_tokens, client.range_ratio, 0)
    prompt += client.prefix_len + client.special_tokens
    ratio = client.range_ratio if client.output_range_ratio is None else client.output_range_ratio
    output = uniform(client.output_len, ratio, 1)
    adapter = [0] * count
    if adapters and client.lora_assignment == "random":
        adapter = [choose(range(adapters)) for _ in range(count)]
    elif adapters:
        adapter = [number % adapters for number in range(count)]
    times = np.zeros(count)
    if rate is not None:
        gaps = np.random.RandomState(client.seed).gamma(client.burstiness, 1 / (rate * client.burstiness), count)
        times = np.cumsum(gaps)
        times *= count / rate / times[-1]  # the last request is sent when the mean rate says
    return times, adapter, prompt, output


def _sglang(client: SglangBench, adapters: int) -> _Drawn:
    """Draw as SGLang's ``sample_random_requests`` and ``benchmark``, which draws a request's adapter, then its gap."""
    count, rate, skewed = client.num_prompts, client.request_rate, client.lora_request_distribution == "skewed"
    draws, python = np.random.RandomState(client.seed), random.Random(client.seed)

    def uniform(most: int) -> Ints:
        return draws.randint(max(int(most * client.range_ratio), 1), most + 1, size=count)

    prompt, output = uniform(client.input_len), uniform(client.output_len)
    prompt = np.maximum(prompt, 1 + client.special_tokens)
    if client.vocab_size is not None:
        draws.randint(0, client.vocab_size, size=count)
    elif client.lora_request_distribution == "uniform":
        python.shuffle(list(range(client.conversations)))
    weights = client.lora_zipf_alpha ** -np.arange(max(adapters, 1), dtype=np.float64)
    shares = weights / np.sum(weights)
    adapter, gaps = [number % max(adapters, 1) for number in range(count)], np.zeros(count)
    for number in range(count):
        if adapters and skewed:
            adapter[number] = int(draws.choice(adapters, p=shares))
        elif adapters and client.lora_request_distribution == "uniform":
            adapter[number] = python.choice(range(adapters))
        if rate is not None:
            gaps[number] = draws.exponential(1 / rate)
    return np.concatenate(([0.0], np.cumsum(gaps)[:-1])), adapter, prompt, output


def _slora(client: SLoraClient, adapters: int) -> _Drawn:
    """Draw as ``generate_requests`` of S-LoRA's benchmarks, without adapters as with one."""
    count, draws, cv = client.num_prompts, np.random.RandomState(client.seed), client.cv
    adapter = (draws.power(client.alpha, count) * max(adapters, 1)).astype(np.int64)
    prompt, output = (draws.randint(*bounds, size=count) for bounds in (client.input_range, client.output_range))
    return np.cumsum(draws.gamma(1 / (cv * cv), cv * cv / client.request_rate, count)), adapter, prompt, output
