"""Fit what steps cost: closed-loop runs of one batch size, and a calibration subset of served hours.

A served hour is simulated with the costs so far; what its requests' TPOT and TTFT are made of then is exact and linear
in the costs. A non-negative least-squares fit of relative errors over hours and closed-loop runs together gives the
next costs, and so on: the batches that a simulation forms depend on the costs, but not much.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibrate.fit.sample_terms import (
    ADDITIVE,
    FAR_CORNER,
    IN_SAMPLE,
    MULTIPLICATIVE,
    corner_errors,
    hold_outs,
    in_sample_errors,
    multiplicative,
)
from sim.arrays import Floats
from sim.policies.front_end import FRONT_ENDS
from sim.spec.profile import HoldOut, Profile, StepCost
from sim.spec.scenario import Scenario
from sim.studies.backends.pool import unordered
from sim.studies.fidelity.least_squares import LEFT_OUT, Problem, additive, left_out_errors, solve
from sim.studies.fidelity.measured_runs import MODELS, UNSATURATED, LengthHistograms, MeasuredRun
from sim.studies.fidelity.step_terms import LORA, PASSED_S, columns, step_cost
from sim.world.build import build_world
from sim.world.replication import simulate
from validation.published.step_log import StepLog

GRAPH_TOKENS = 512
"""vLLM captures CUDA graphs up to so many tokens; larger steps run eagerly."""
BUDGET_TOKENS = 2048
BENDS = (128, 256, 512, 1024)
"""Tokens of a step beyond which each more may cost more."""
BASE_TERMS = (
    "step",
    "token",
    *(f"token_beyond_{bend}" for bend in BENDS),
    "eager",
    "sequence",
    "kv_token",
    "prefill_step",
)
"""What a step costs without LoRA; ``eager``: a step that runs eagerly."""
TERMS = (*BASE_TERMS, *(term.name for term in LORA if term.name not in ("adapter_rank", "token_rank")))
FACTOR_TERMS = ("lora", "slot", "adapter", "adapter_max_rank")
"""What the multiplicative rival's factor is linear in: LoRA on, slots, distinct adapters, and those times rank."""

# By hand: a plain list of names reads better in lines than one name a line.
STEP_COLUMNS = (
    "model",
    "max_num_seqs",
    "input_len",
    "output_len",
    "lora_enabled",
    "max_loras",
    "max_lora_rank",
    "adapters_in_use",
    "median_tpot_ms",
    "total_input_tokens",
    "completed",
    "duration",
    "median_ttft_ms",
    "p99_ttft_ms",
)
"""What ``closed_loop`` reads of ``step_runs.csv``."""

FACTS = ("tokens", "sequences", "prefill_tokens", "decode_kv_tokens", "distinct", "slots", "max_rank")
"""What is known of these steps."""

BASE_DECODE, LORA_DECODE, PREFILL = "base decode steps", "LoRA decode steps", "prefill steps"
"""Kinds of closed-loop rows."""
ALONE = ", closed loops alone"
"""Added to the method of held-out errors where served hours took no part in the fit."""

ROUNDS = 4
DAMPING = 0.85


def features(steps: Mapping[str, Floats]) -> Floats:
    """Return what each term is multiplied with, (n, len(TERMS))."""
    tokens = steps["tokens"]
    beyond = {f"token_beyond_{bend}": np.maximum(tokens - bend, 0.0) for bend in BENDS}
    more = {"token": tokens, "eager": tokens > GRAPH_TOKENS, **beyond}
    return np.column_stack(list(columns(TERMS, steps.__getitem__, more).values())).astype(np.float64)


def cost_of(seconds: Mapping[str, float]) -> StepCost:
    """Return the profile section of fitted terms."""

    def token_s(tokens: int) -> float:
        beyond = sum(seconds[f"token_beyond_{bend}"] * max(tokens - bend, 0) for bend in BENDS)
        return round(seconds["token"] * tokens + beyond + seconds["eager"] * (tokens > GRAPH_TOKENS), 12)

    knots = sorted({0, *BENDS, GRAPH_TOKENS + 1, BUDGET_TOKENS})
    cost = step_cost(seconds, [(knot, token_s(knot)) for knot in knots])
    return cost.model_copy(update={"per_passed_s": PASSED_S})


@dataclass(frozen=True, slots=True)
class ClosedLoops:
    """The usable rows of ``step_runs.csv``.

    :ivar left_out: why others aren't usable, and how many rows each reason holds for.
    """

    problem: Problem
    left_out: dict[str, int]


def closed_loop(
    rows: Sequence[Mapping[str, str]], model: str, kv_tokens: Callable[[int, int], float] = lambda slots, rank: np.inf
) -> ClosedLoops:
    """Return the equations of ``step_runs.csv``: runs in which a fixed number of requests is always in the batch.

    Runs with one output token fill every step with prompts, so their rate gives the time of a step. In the others the
    median TPOT is the time of a decode step with half-grown KV caches. Rows that measure steps made of the same are one
    configuration: the batch size does not matter where the token budget fills a step.

    :param kv_tokens: how many KV tokens are left by so many slots of such a rank: a run that needs more preempts, so
        that its median is not the time of a decode step.
    """
    steps, seconds, kinds, settings = [], [], [], []
    left_out: dict[str, int] = {}
    for row in rows:
        if MODELS[row["model"]] != model:
            continue
        reason = _unusable(row, kv_tokens)
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        batch, output = float(row["max_num_seqs"]), float(row["output_len"])
        prompt = float(row["total_input_tokens"]) / float(row["completed"])
        slots, rank, adapters = _lora(row)
        if output > 1:
            tokens, sequences, prefill_tokens, kv = batch, batch, 0.0, batch * (prompt + output / 2)
            seconds.append(float(row["median_tpot_ms"]) / 1000)
            kinds.append(LORA_DECODE if slots else BASE_DECODE)
        else:
            sequences, kv = min(batch, BUDGET_TOKENS / prompt), 0.0
            tokens = prefill_tokens = sequences * prompt
            seconds.append(tokens / float(row["total_input_tokens"]) * _busy_s(row))
            kinds.append(PREFILL)
        steps.append((tokens, sequences, prefill_tokens, kv, _distinct(adapters, sequences), slots, rank))
        settings.append((batch if output > 1 else np.nan, prompt, output, adapters))
    made_of = features(dict(zip(FACTS, np.array(steps).T, strict=True)))
    names = ["/".join(f"{value:.10g}" for value in row) for row in made_of]
    terms = dict(zip(TERMS, made_of.T, strict=True))
    problem = Problem.of(terms, seconds, kind=kinds, configuration=names, settings=np.array(settings))
    return ClosedLoops(problem, left_out)


def _unusable(row: Mapping[str, str], kv_tokens: Callable[[int, int], float]) -> str:
    """Return why a row can't be used to time steps; empty where it can."""
    if not row["max_num_seqs"]:
        return "no batch size given"
    batch, completed = float(row["max_num_seqs"]), float(row["completed"])
    if completed < batch:
        return "fewer requests than the batch holds"
    longest = float(row["total_input_tokens"]) / completed + float(row["output_len"])
    slots, rank, _ = _lora(row)
    if float(row["output_len"]) > 1 and batch * longest > kv_tokens(int(slots), int(rank)):
        return "sequences outgrow the KV cache and are preempted"
    return ""


def _lora(row: Mapping[str, str]) -> tuple[float, float, float]:
    """Return slots, their rank, and adapters in use; zeros without LoRA."""
    if row["lora_enabled"] != "1":
        return 0.0, 0.0, 0.0
    return float(row["max_loras"]), float(row["max_lora_rank"]), float(row["adapters_in_use"])


def _distinct(adapters: float, sequences: float) -> float:
    """Return how many distinct adapters so many sequences are expected to use, drawn uniformly."""
    return adapters * (1 - (1 - 1 / adapters) ** sequences) if adapters else 0.0


def _busy_s(row: Mapping[str, str]) -> float:
    """Return how long the engine worked on the requests of a run with one output token.

    All requests are sent at once and the server takes them all in, one by one, before any token comes out: some 4 s for
    4,096 of them, whatever their prompts. From then on first tokens come evenly, so that TTFT rises linearly from one
    request to the next; that line, drawn through its median and p99, starts where the engine does.
    """
    median_s, p99_s = float(row["median_ttft_ms"]) / 1000, float(row["p99_ttft_ms"]) / 1000
    return float(row["duration"]) - (median_s - (p99_s - median_s) * 0.5 / 0.49)


def served_hour(run: MeasuredRun, scenario: Scenario) -> Problem:
    """Simulate a run and return its equations: of mean TPOT, of the median gap between tokens, and of the median TTFT.

    TTFT counts only where hardly any request waits; elsewhere it measures a queue rather than a step.
    """
    log = StepLog()
    simulate(build_world(scenario), 0, 1, log.watching)
    logged = log.columns()
    steps = logged["steps"]
    made_of = features(log.facts(run.gpu_slots, run.max_lora_rank))
    known = logged["passed"] * PASSED_S + logged["load_s"] / steps
    mean, mean_known = _mean_tpot(log, logged["ended_s"], made_of * steps[:, None], known * steps)
    gap_s = logged["seconds"] / steps
    middle = _around_median(gap_s, logged["decoding"] * steps)
    share = (logged["decoding"] * steps)[middle] / (logged["decoding"] * steps)[middle].sum()
    measured_itl = run.measured["itl_p50_ms"] / 1000
    usable = run.itl_usable
    first, first_known = _median_ttft(log, logged, made_of * steps[:, None], known * steps)
    light = run.regime == UNSATURATED
    measured_ttft = run.measured["ttft_p50_ms"] / 1000 - FRONT_ENDS[run.front_end].request_s
    equations = Problem.of(
        dict(zip(TERMS, np.vstack((mean, share @ made_of[middle], first)).T, strict=True)),
        [run.measured["tpot_mean_ms"] / 1000, measured_itl if usable else 1.0, measured_ttft],
        kind=("served hour: TPOT", "served hour: median ITL", "served hour: median TTFT"),
        configuration=(run.name,) * 3,
    )
    return replace(
        equations,
        known=np.array([mean_known, share @ known[middle], first_known]),
        weight=np.array([1.0, float(usable), float(light)]),
    )


def _numbered_hour(place: int, run: MeasuredRun, scenario: Scenario) -> tuple[int, Problem]:
    return place, served_hour(run, scenario)


def _mean_tpot(log: StepLog, ended_s: Floats, made_of: Floats, known: Floats) -> tuple[Floats, float]:
    """Return the features of the mean TPOT: of each request, what its steps after the first token were made of."""
    _, first, last, tokens = log.request_columns()
    several = tokens > 1
    start = np.searchsorted(ended_s, first[several], side="right")
    end = np.searchsorted(ended_s, last[several], side="right")
    gaps = (tokens[several] - 1)[:, None]
    total = np.vstack((np.zeros(made_of.shape[1]), np.cumsum(made_of, axis=0)))
    total_known = np.concatenate(([0.0], np.cumsum(known)))
    mean = ((total[end] - total[start]) / gaps).mean(axis=0)
    return mean, float(((total_known[end] - total_known[start]) / gaps[:, 0]).mean())


def _median_ttft(log: StepLog, logged: dict[str, Floats], made_of: Floats, known: Floats) -> tuple[Floats, float]:
    """Return what the TTFT of requests around the median is made of: the rest of the step they find, and what follows.

    Between the start and the end of a leap its features pass in proportion to time; idle time is made of nothing.
    """
    arrival, first, _, _ = log.request_columns()
    middle = _around_median(first - arrival, np.ones(len(first)))
    ends = logged["ended_s"]
    times = np.column_stack((ends - logged["seconds"], ends)).ravel()
    parts = []
    for column in np.column_stack((made_of, known)).T:
        total = np.cumsum(column)
        passed = np.column_stack((total - column, total)).ravel()
        parts.append(
            float(np.mean(np.interp(first[middle], times, passed) - np.interp(arrival[middle], times, passed)))
        )
    return np.array(parts[:-1]), parts[-1]


def _around_median(seconds: Floats, weight: Floats) -> NDArray[np.intp]:
    """Return the places of those between the 45 % and the 55 % quantile."""
    order = np.argsort(seconds)
    below = np.cumsum(weight[order]) / weight.sum()
    return order[np.searchsorted(below, 0.45) : np.searchsorted(below, 0.55) + 1]


@dataclass(frozen=True, slots=True)
class FittedSteps:
    """Fitted step costs.

    :ivar profile: with these costs.
    :ivar residuals: median absolute relative error by kind of measurement.
    :ivar problem: the equations of the last round, closed loops first: what hold-outs and draws are made from.
    """

    profile: Profile
    residuals: dict[str, float]
    problem: Problem


@dataclass(frozen=True, slots=True)
class ServedHours:
    """The calibration subset.

    :ivar rounds: how often the hours are simulated, each time with the costs of the round before.
    """

    runs: Sequence[MeasuredRun]
    lengths: LengthHistograms
    rounds: int = ROUNDS


def fit_steps(
    hours: ServedHours,
    loops: Problem,
    profile: Profile,
    *,
    jobs: int = -1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FittedSteps:
    """Fit step costs to closed loops and served hours; all else in the profile stays.

    :param loops: the closed loops.
    """
    with tempfile.TemporaryDirectory(prefix="loraplan-") as folder:
        return _fit_rounds(hours, loops, profile, Path(folder) / "profile.json", jobs, progress)


def _fit_rounds(
    hours: ServedHours, loops: Problem, profile: Profile, path: Path, jobs: int, progress: Callable[[int, int], None]
) -> FittedSteps:
    """Fit round by round; ``path``: where worker processes find the profile so far."""
    runs, rounds = hours.runs, hours.rounds
    terms = solve(loops)
    problem = loops
    for turn in range(rounds):
        profile = _with_costs(profile, terms)
        path.write_text(profile.model_dump_json(), encoding="utf-8")
        scenarios = [run.as_measured(hours.lengths, str(path), path.with_name("trace.csv")) for run in runs]
        tasks = [(place, run, scenario) for place, (run, scenario) in enumerate(zip(runs, scenarios, strict=True))]
        equations: dict[int, Problem] = {}
        for place, equations_of_hour in unordered(_numbered_hour, tasks, jobs):
            equations[place] = equations_of_hour
            progress(turn * len(runs) + len(equations), rounds * len(runs))
        problem = join([loops, *(equations[place] for place in sorted(equations))])
        found = solve(problem)
        terms = found if turn == 0 else (1 - DAMPING) * terms + DAMPING * found
    errors, counted = np.abs(problem.errors(terms)), problem.weight > 0
    kinds = np.array(problem.kind)
    residuals = {kind: float(np.median(errors[(kinds == kind) & counted])) for kind in dict.fromkeys(problem.kind)}
    return FittedSteps(_with_costs(profile, terms), residuals, problem)


def join(parts: Sequence[Problem]) -> Problem:
    """Return the rows of several problems over the same terms, without their settings."""
    features, seconds, known, weight = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("features", "seconds", "known", "weight")
    )
    kind, configuration = (sum((getattr(part, name) for part in parts), ()) for name in ("kind", "configuration"))
    return Problem(parts[0].terms, features, seconds, known, weight, kind, configuration, np.empty((len(seconds), 0)))


def _with_costs(profile: Profile, terms: Floats) -> Profile:
    return profile.model_copy(update={"step": cost_of(dict(zip(TERMS, terms.tolist(), strict=True)))})


def step_hold_outs(loops: Problem, problem: Problem) -> tuple[HoldOut, ...]:
    """Return how well closed-loop steps are predicted by fits that don't know them.

    First in the profile's own fit, served hours included, with the batches of the hours as they were simulated last.
    Then, to compare forms, by closed loops alone: an hour's mean of a product isn't the product of its means, so the
    multiplicative rival can't use hours. The far corner is held out only there, since the hours reach beyond it.

    :param loops: the closed loops.
    :param problem: ``loops``, followed by the served hours.
    """
    held = np.arange(len(problem)) < len(loops)
    found = [*hold_outs(problem, left_out_errors(problem, additive, held), ADDITIVE, LEFT_OUT)]
    within = np.where(held, in_sample_errors(problem, additive), np.nan)
    found += hold_outs(problem, within, ADDITIVE, IN_SAMPLE)
    for name, form in ((ADDITIVE, additive), (MULTIPLICATIVE, multiplicative(BASE_TERMS, FACTOR_TERMS))):
        found += hold_outs(loops, left_out_errors(loops, form), name, LEFT_OUT + ALONE)
        found += hold_outs(loops, corner_errors(loops, form), name, FAR_CORNER + ALONE)
    return tuple(found)
