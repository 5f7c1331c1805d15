"""From the ladder to a profile: step and load costs by non-negative least squares."""

from __future__ import annotations

import datetime
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrate.serve.http_answer import ServerError
from calibrate.serve.ladder import DecodeBatch, JoiningRequest, Ladder, TimedLoad
from sim.rng import stream
from sim.spec.profile import FRONT_END, Profile, StepCost
from sim.spec.scenario import Scenario
from sim.studies.fidelity.least_squares import (
    DRAWS,
    LEFT_OUT,
    Floats,
    Problem,
    hold_out_line,
    left_out_errors,
    resample,
    significant,
    solve,
    sum_of_terms,
)
from sim.studies.fidelity.step_terms import columns, step_cost
from sim.traffic.adapters import DTYPE_BYTES, SHAPES, Population

_QUANTILES = np.linspace(0, 1, 21)
_NO_BANDWIDTH = 1e15  # bytes per second: the size adds nothing
_LEAST_S = 1e-6
_DELAYED = 0.25
"""Quantile of the times by which a join delays a stream: a sum over several gaps also contains other disturbances."""


@dataclass(frozen=True, slots=True)
class MeasuredServer:
    """The server that a ladder was measured on.

    :ivar engine: name and version, as far as they are known.
    :ivar kv_tokens: size of its KV cache, where the server reports it.
    """

    base_model: str
    population: Population
    engine: str
    kv_tokens: int | None = None


def fit_profile(ladder: Ladder, scenario: Scenario, server: MeasuredServer, command: str) -> Profile:
    """Return the profile of the server that was measured.

    :param command: that made it, without paths, hosts and keys: a profile is passed on.
    :raises ServerError: where too little was measured.
    """
    if len(ladder.batches) < 3 or not ladder.prefill:
        raise ServerError("too few of the ladder's requests decoded side by side to fit step costs", where="--fit")
    step, batches = fit_steps(ladder), _batch_problem(ladder.batches)
    hold_out = hold_out_line("decode steps", "additive", LEFT_OUT, left_out_errors(batches, sum_of_terms(_fit_batches)))
    outside_s = step.pop("front_end")
    base_model, population, engine = server.base_model, server.population, server.engine
    slots = scenario.cache.gpu.slots or len(population)
    max_rank = int(population.rank.max())
    if engine.startswith("/"):  # vLLM uses the path of a model without a name
        engine = engine.rstrip("/").rpartition("/")[2]
    return Profile.model_validate(
        {
            "schema_version": 1,
            "name": f"{_slug(engine)}/{base_model}/fitted",
            "status": "measured",
            "description": "Fitted over the API of a live server by loraplan calibrate serve --fit.",
            "device": platform.processor() or platform.machine(),
            "model": base_model,
            "dtype": "bf16",
            "step": _step_cost(step),
            "load": _load_cost(ladder.loads, population),
            "draws": _draws(ladder, population),
            "memory": _memory(base_model, population, slots, server.kv_tokens or 65536),
            "envelope": {
                "sequences": max(batch.sequences for batch in ladder.batches),
                "distinct_adapters": max(batch.distinct for batch in ladder.batches),
                "rank": max_rank,
                "slots": slots,
            },
            "sources": {
                "step": "ladder of batches, prompts and joins over the API",
                "load": "pairs of a cold and a warm request",
                "memory": "KV tokens as reported by the server; the other sizes are placeholders",
            },
            "provenance": {
                "command": command,
                "data": {},
                "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
                "residuals": {"decode steps": float(np.median(np.abs(batches.errors(_fit_batches(batches)))))},
                "device": {FRONT_END: f"{outside_s:.6g}", "measured over": "the API"},
            },
            "conditions": {
                "engine": engine,
                "graphs": "as the server was started",
                "lora_backend": "the server's own",
                "slots": [slots],
                "max_ranks": [max_rank],
            },
            "hold_out": [hold_out],
        }
    )


def public_command(scenario: str, *, launched: bool, settings: Sequence[str]) -> str:
    """Return the command of a fit without paths and hosts; of a file that a setting names, its name is left.

    :param scenario: its name; ``settings``: the values of ``--set``, those with a URL are left out.
    """
    words = ["loraplan", "calibrate", "serve", scenario, *(["--launch", "vllm"] if launched else []), "--fit"]
    for setting in settings:
        if "://" not in setting:
            words += ["--set", re.sub(r"[^\s,{}\[\]=:'\"]*[/\\][^\s,{}\[\]=:'\"]*", _file_name, setting)]
    return shlex.join(words)


def _file_name(found: re.Match[str]) -> str:
    is_rate = re.fullmatch(r"[\d.,_]+/[a-z]+", found[0])
    return found[0] if is_rate else re.split(r"[/\\]", found[0].rstrip("/\\"))[-1]


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-")


def _step_cost(step: Mapping[str, float]) -> StepCost:
    return step_cost(dict(zip(step, significant(list(step.values())), strict=True)))


def _load_cost(loads: Sequence[TimedLoad], population: Population) -> dict[str, Any]:
    storage = _tier([load for load in loads if load.storage], population)
    host = _tier([load for load in loads if not load.storage], population)
    return {"storage": storage or host or _nothing(), "host": host or storage or _nothing()}


def _draws(ladder: Ladder, population: Population) -> list[dict[str, Any]]:
    """Return costs fitted to ladders that are drawn with replacement from this one."""
    rng = stream(0, 0, "bootstrap")
    drawn = [resampled(ladder, rng) for _ in range(DRAWS)]
    return [{"step": _step_cost(fit_steps(one)), "load": _load_cost(one.loads, population)} for one in drawn]


def resampled(ladder: Ladder, rng: np.random.Generator) -> Ladder:
    """Return as many rungs of each kind, drawn with replacement.

    Batches are drawn within their size, prompts and joins within their length, loads within their tier: no draw lacks
    what a fit needs.
    """

    return Ladder(
        resample(ladder.prefill, rng, lambda pair: pair[0]),
        resample(ladder.batches, rng, lambda batch: batch.sequences),
        resample(ladder.joins, rng, lambda join: join.prompt_tokens),
        resample(ladder.loads, rng, lambda load: load.storage),
    )


def fit_steps(ladder: Ladder) -> dict[str, float]:
    """Return seconds by ``step``, ``sequence``, ``token``, ``adapter``, ``kv_token``, ``attended``,
    ``prefill_step`` and ``front_end``."""
    step, sequence, adapter, kv_token = map(float, _fit_batches(_batch_problem(ladder.batches)))
    token, attended = _prefill(*_quantiles(ladder.prefill, 0.5))
    # Decoding sequences pay for their token as well: what a token costs is no more than a sequence does.
    sequence_only = max(0.0, sequence - token)
    prompts, held = _quantiles([(join.prompt_tokens, join.held_s) for join in ladder.joins], _DELAYED)
    rest = sequence_only + token * prompts + attended * prompts**2 / 2
    prefill_step = float(max(0.0, np.median(held - rest))) if len(held) else 0.0
    return {
        "step": step,
        "sequence": sequence_only,
        "token": token,
        "adapter": adapter,
        "kv_token": kv_token,
        "attended": attended,
        "prefill_step": prefill_step,
        "front_end": _front_end(ladder.joins, sequence_only + prefill_step, token, attended),
    }


def _front_end(joins: Sequence[JoiningRequest], base_s: float, token: float, attended: float) -> float:
    """Return the part of a joining request's TTFT that is neither its step nor the wait for it, half a step on average.

    A server without other work answers faster than one that streams to other requests, so lone requests can't be used.
    """
    left = [
        join.ttft_s - 1.5 * join.step_s - base_s - token * join.prompt_tokens - attended * join.prompt_tokens**2 / 2
        for join in joins
    ]
    return max(0.0, float(np.median(left))) if left else 0.0


def _batch_problem(batches: Sequence[DecodeBatch]) -> Problem:
    rows = [(batch.sequences, batch.distinct, batch.kv_tokens) for batch in batches]
    facts = dict(zip(("sequences", "distinct", "decode_kv_tokens"), np.array(rows, dtype=np.float64).T, strict=True))
    made_of = columns(("step", "sequence", "adapter", "kv_token"), facts.__getitem__, {})
    return Problem.of(made_of, [batch.step_s for batch in batches])


def _fit_batches(problem: Problem) -> Floats:
    """Return seconds of a step, of a sequence, of a distinct adapter and of a KV token."""
    found = solve(problem, "relative")  # a ladder spans small and large batches
    found[0] = max(_LEAST_S, found[0])
    return found


def _prefill(lengths: Floats, ttft: Floats) -> tuple[float, float]:
    """Return seconds of a prompt token and of a pair of attended tokens."""
    if len(lengths) < 2:
        return 0.0, 0.0
    pairs = lengths**2 / 2 * (len(lengths) >= 4)
    problem = Problem.of({"token": lengths, "attended": pairs, "step": np.ones(len(lengths))}, ttft)
    token, attended, _ = solve(problem, "relative")
    return float(token), float(attended)


def _quantiles(pairs: Sequence[tuple[int, float]], q: float) -> tuple[Floats, Floats]:
    keys = sorted({key for key, _ in pairs})
    values = [float(np.quantile([value for other, value in pairs if other == key], q)) for key in keys]
    return np.array(keys, dtype=np.float64), np.array(values)


def _tier(loads: Sequence[TimedLoad], population: Population) -> dict[str, Any] | None:
    """Return the cost of a load: a time and its spread, and bytes per second where sizes differ."""
    if not loads:
        return None
    size = np.array([float(population.size_bytes[load.adapter]) for load in loads])
    seconds = np.maximum([load.seconds for load in loads], _LEAST_S)
    median = float(np.median(seconds))
    open_s, bandwidth = median, _NO_BANDWIDTH
    if len(set(size.tolist())) > 1:
        open_s, byte_s = solve(Problem.of({"load": np.ones(len(size)), "byte": size}, seconds), "absolute").tolist()
        bandwidth = 1 / byte_s if byte_s > 0 else _NO_BANDWIDTH
    predicted = np.maximum(open_s + size / bandwidth, _LEAST_S)
    residual = np.maximum(np.quantile(seconds / predicted, _QUANTILES), 1e-6)
    open_s, bandwidth = significant([open_s, bandwidth])
    return {"open_s": open_s, "bandwidth_bytes_per_s": bandwidth, "residual": significant(residual)}


def _nothing() -> dict[str, Any]:
    return {"open_s": 0.0, "bandwidth_bytes_per_s": _NO_BANDWIDTH}


def _memory(base_model: str, population: Population, slots: int, kv_tokens: int) -> dict[str, Any]:
    """Return memory that leaves just the KV tokens that the server has."""
    shape = SHAPES.get(base_model)
    per_token = 2 * DTYPE_BYTES["bf16"] * shape.layers * shape.kv_heads * shape.head_dim if shape else 1
    adapters = slots * population.slot_bytes
    return {
        "total_bytes": 1 + adapters + kv_tokens * per_token,
        "utilization": 1.0,
        "weights_bytes": 1,
        "overhead_bytes": 0,
        "kv_bytes_per_token": per_token,
    }
