"""Fit what steps cost: closed-loop runs of one batch size, and a calibration subset of served hours.

A served hour is simulated with the costs so far; what its requests' TPOT and TTFT are made of then is exact and linear
in the costs. A non-negative least-squares fit of relative errors over hours and closed-loop runs together gives the
next costs, and so on: the batches that a simulation forms depend on the costs, but not much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from calibrate.step_log import StepLog
from calibrate.step_terms import BUDGET_TOKENS, PASSED_S, TERMS, Steps, step_cost
from sim.policies.front_end import FRONT_ENDS
from sim.spec.profile import Profile
from sim.spec.scenario import Scenario
from sim.studies.fidelity import FRONT_END, fronted_scenario
from sim.studies.measured_runs import MODELS, UNSATURATED, LengthHistograms, MeasuredRun
from sim.studies.parallel import unordered
from sim.world.build import build_world, simulate

Floats = NDArray[np.float64]

STEP_COLUMNS = (
    "model", "max_num_seqs", "input_len", "output_len", "lora_enabled", "max_loras", "max_lora_rank", "adapters_in_use",
    "median_tpot_ms", "total_input_tokens", "completed", "input_throughput",
)  # fmt: skip
"""What ``closed_loop`` reads of ``step_runs.csv``."""

ROUNDS = 4
DAMPING = 0.85
_ITL_WEIGHT = 1.0
_TTFT_WEIGHT = 1.0
_HUBER = 0.05
"""Relative errors beyond this count linearly, not squared: a few runs of the table are odd."""


@dataclass(frozen=True, slots=True)
class Equations:
    """Measured seconds and what they are made of: ``features @ terms + known = seconds``.

    :ivar features: (n, terms); ``known``, ``seconds``, ``weight``: (n,); ``kind``: what each row is.
    """

    features: Floats
    known: Floats
    seconds: Floats
    weight: Floats
    kind: tuple[str, ...]

    def errors(self, terms: Floats) -> Floats:
        """Return relative errors, (n,)."""
        return np.asarray((self.features @ terms + self.known) / self.seconds - 1)


def join(parts: Sequence[Equations]) -> Equations:
    """Return all equations of several sets."""
    return Equations(
        np.vstack([part.features for part in parts]),
        np.concatenate([part.known for part in parts]),
        np.concatenate([part.seconds for part in parts]),
        np.concatenate([part.weight for part in parts]),
        tuple(kind for part in parts for kind in part.kind),
    )


def solve(equations: Equations) -> Floats:
    """Return the terms that fit best, none below zero; large errors count less than squared."""
    rows = equations.weight / equations.seconds
    features = equations.features * rows[:, None]
    target = (equations.seconds - equations.known) * rows
    scale = features.max(axis=0)  # terms differ by nine orders of magnitude
    scale[scale == 0] = 1.0
    trust = np.ones(len(target))
    for _ in range(4):
        found = nnls(features / scale * trust[:, None], target * trust)[0]
        residual = np.abs(features / scale @ found - target)
        trust = np.sqrt(np.minimum(1.0, _HUBER / np.maximum(residual, 1e-9)))
    return np.asarray(found / scale)


def closed_loop(rows: Sequence[dict[str, str]], model: str) -> Equations:
    """Return the equations of ``step_runs.csv``: runs in which a fixed number of requests is always in the batch.

    Output of one token: steps are filled with prompts, and the throughput tells their time. More: the median TPOT is
    that of a decode step, with KV caches half grown.
    """
    features, seconds, kinds = [], [], []
    for row in rows:
        if MODELS[row["model"]] != model or not row["max_num_seqs"]:
            continue
        batch, prompt, output = float(row["max_num_seqs"]), float(row["input_len"]), float(row["output_len"])
        lora = row["lora_enabled"] == "1"
        slots, rank = (float(row["max_loras"]), float(row["max_lora_rank"])) if lora else (0.0, 0.0)
        adapters = float(row["adapters_in_use"]) if lora else 0.0
        if output > 1:
            distinct = adapters * (1 - (1 - 1 / adapters) ** batch) if adapters else 0.0
            made_of = _steps(batch, batch, 0.0, batch * (prompt + output / 2), distinct, slots, rank)
            took = float(row["median_tpot_ms"]) / 1000
        elif batch <= 1500:
            each = float(row["total_input_tokens"]) / float(row["completed"])
            sequences = min(batch, BUDGET_TOKENS / each)
            tokens = sequences * each
            distinct = adapters * (1 - (1 - 1 / adapters) ** sequences) if adapters else 0.0
            made_of = _steps(tokens, sequences, tokens, 0.0, distinct, slots, rank)
            took = tokens / float(row["input_throughput"])
        else:
            continue
        features.append(made_of.features()[0])
        seconds.append(took)
        kinds.append("closed loop: decode" if output > 1 else "closed loop: prefill")
    count = len(seconds)
    return Equations(np.array(features), np.zeros(count), np.array(seconds), np.ones(count), tuple(kinds))


def _steps(
    tokens: float, sequences: float, prompt: float, kv: float, distinct: float, slots: float, rank: float
) -> Steps:
    return Steps(*(np.array([value]) for value in (tokens, sequences, prompt, kv, distinct)), slots, rank)


def served_hour(run: MeasuredRun, scenario: Scenario) -> Equations:
    """Simulate a run and return its equations: of mean TPOT, of the median gap between tokens, and of the median TTFT.

    TTFT counts where hardly anybody waits; elsewhere it is a queue's length and says little of a step.
    """
    log = StepLog()
    simulate(build_world(scenario), 0, 1, log.watching)
    columns = log.columns()
    steps, growth = columns["steps"], (columns["steps"] - 1) / 2
    made_of = Steps(
        columns["tokens"], columns["decoding"] + columns["prefills"], columns["prefill_tokens"],
        columns["kv_tokens"] + columns["decoding"] * growth, columns["distinct"], run.gpu_slots, run.max_lora_rank,
    ).features()  # fmt: skip
    known = columns["passed"] * PASSED_S + columns["load_s"] / steps
    mean, mean_known = _mean_tpot(log, columns["ended_s"], made_of * steps[:, None], known * steps)
    gap_s = columns["seconds"] / steps
    middle = _around_median(gap_s, columns["decoding"] * steps)
    share = (columns["decoding"] * steps)[middle] / (columns["decoding"] * steps)[middle].sum()
    measured_itl = run.measured["itl_p50_ms"] / 1000
    usable = run.itl_usable
    first, first_known = _median_ttft(log, columns, made_of * steps[:, None], known * steps)
    light = run.regime == UNSATURATED
    measured_ttft = run.measured["ttft_p50_ms"] / 1000 - FRONT_ENDS[FRONT_END].request_s
    return Equations(
        np.vstack((mean, share @ made_of[middle], first)),
        np.array([mean_known, share @ known[middle], first_known]),
        np.array([run.measured["tpot_mean_ms"] / 1000, measured_itl if usable else 1.0, measured_ttft]),
        np.array([1.0, _ITL_WEIGHT if usable else 0.0, _TTFT_WEIGHT if light else 0.0]),
        ("served hour: TPOT", "served hour: median ITL", "served hour: median TTFT"),
    )


def _numbered_hour(place: int, run: MeasuredRun, scenario: Scenario) -> tuple[int, Equations]:
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


def _median_ttft(log: StepLog, columns: dict[str, Floats], made_of: Floats, known: Floats) -> tuple[Floats, float]:
    """Return what the TTFT of requests around the median is made of: the rest of the step they find, and what follows.

    Between the start and the end of a leap its features pass in proportion to time; idle time is made of nothing.
    """
    arrival, first, _, _ = log.request_columns()
    middle = _around_median(first - arrival, np.ones(len(first)))
    ends = columns["ended_s"]
    times = np.column_stack((ends - columns["seconds"], ends)).ravel()
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


def fit_steps(
    runs: Sequence[MeasuredRun],
    lengths: LengthHistograms,
    loops: Equations,
    profile: Profile,
    *,
    write: Callable[[Profile], str],
    jobs: int = -1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Profile, dict[str, float]]:
    """Return the profile with fitted step costs, and the median absolute relative error by kind of measurement.

    :param runs: the calibration subset.
    :param profile: the profile so far; its step costs are where the fit starts from.
    :param write: writes a profile where worker processes find it; returns its path.
    """
    terms = solve(loops)
    equations = loops
    for turn in range(ROUNDS):
        profile = profile.model_copy(update={"step": step_cost(dict(zip(TERMS, terms.tolist(), strict=True)))})
        path = write(profile)
        tasks = [(place, run, fronted_scenario(run, lengths, path)) for place, run in enumerate(runs)]
        hours: dict[int, Equations] = {}
        for place, hour in unordered(_numbered_hour, tasks, jobs):
            hours[place] = hour
            progress(turn * len(runs) + len(hours), ROUNDS * len(runs))
        equations = join([loops, *(hours[place] for place in sorted(hours))])
        found = solve(equations)
        terms = found if turn == 0 else (1 - DAMPING) * terms + DAMPING * found
    final = profile.model_copy(update={"step": step_cost(dict(zip(TERMS, terms.tolist(), strict=True)))})
    errors, counted = np.abs(equations.errors(terms)), equations.weight > 0
    kinds = np.array(equations.kind)
    return final, {kind: float(np.median(errors[(kinds == kind) & counted])) for kind in dict.fromkeys(equations.kind)}
