"""Fit what vLLM adds to its kernels: on the GPU's side of a step and on the host's.

With asynchronous scheduling (the default from 0.14 on) the host works while the GPU computes, so a step takes kernels +
``step_s`` + ``per_sequence_s`` · sequences. With synchronous scheduling the host's work comes on top. So two fits of
the same form, to servers of either kind, give both sides: the host's is the difference.

Kernels count once: a factor on them, a term for steps with prompts, a term per layer or GPU did not predict models
better that were left out of the fit.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import lsq_linear

from calibrate.kernels.around_kernels import EngineOverhead
from calibrate.kernels.base_models import base_model_of
from calibrate.kernels.cards import card_of
from calibrate.kernels.kernel_tables import EXPERTS_ALONE, Deployment, KernelTables
from calibrate.kernels.memory_model import STEP_TOKENS, memory_of
from calibrate.kernels.profile_from_kernels import envelope_of
from calibrate.kernels.surrogate import fit_surrogate, predict
from sim.arrays import Floats
from sim.errors import InputError
from sim.spec.engines import AHEAD_SINCE
from sim.spec.profile import StepCost
from sim.studies.fidelity.least_squares import significant
from sim.studies.fidelity.serving_stages import Stage
from validation.overheads.overhead_fit import (
    LEAST_POINTS,
    MOST_PER_SEQUENCE_S,
    DeploymentError,
    OverheadFit,
    PredictedPoint,
    spread_of,
)
from validation.overheads.serving_points import DeploymentGroup

FITTED = "bf16"
"""The format of weights that calibrates. Tables of others are off by format: by up to 16 % for FP8 on the B200."""
_OVERLOADED_S = 1.0
"""Stages whose requests wait longer for their first token are of servers that did not keep up."""
_BLOCK = 16
_ROUNDS, _LEAST_ERROR = 15, 0.02


@dataclass(frozen=True, slots=True)
class MeasuredGap:
    """A measured mean time between tokens.

    :ivar sums: seconds of kernels, steps, and sequences, for a mean gap.
    """

    group: DeploymentGroup
    is_async: bool
    sums: Floats
    token_s: float


def gaps_of(points: Iterable[PredictedPoint], stages: Iterable[Stage]) -> list[MeasuredGap]:
    """Return what was measured under vLLM: closed loops that fit into the KV cache, and stages that kept up."""
    found = []
    for each in points:
        point = each.point
        if point.group.engine == "vllm" and point.fits:
            found.append(MeasuredGap(point.group, _is_async(point.version), each.steps.token[:3], point.token_s))
    kernels: dict[DeploymentGroup, StepCost | None] = {}
    for stage in stages:
        server = stage.server
        group = DeploymentGroup("vllm", server.gpu, server.model, "bf16", server.tensor_parallel)
        if group not in kernels:
            kernels[group] = _step_costs(group)
        known = kernels[group]
        if known and stage.rate_per_s and stage.measured.get("ttft_mean", 0.0) < _OVERLOADED_S:
            token_s = stage.measured["tpot_mean"]
            found.append(MeasuredGap(group, _is_async(server.engine), _stage_sums(stage, known), token_s))
    return found


def _is_async(version: str) -> bool:
    """Return whether a version schedules asynchronously; what names none is a later one."""
    numbers = re.search(r"(\d+)\.(\d+)", version)
    return numbers is None or (int(numbers[1]), int(numbers[2])) >= AHEAD_SINCE


def _step_costs(group: DeploymentGroup) -> StepCost | None:
    """Return the kernels of a deployment as its profile has them; None where the tables don't cover it."""
    deployment = Deployment(card_of(group.card), base_model_of(group.model), tensor_parallel=group.gpus)
    try:
        envelope = envelope_of(deployment, memory_of(deployment))
        return fit_surrogate(KernelTables(deployment).step_s, envelope).step
    except InputError:
        return None


def _stage_sums(stage: Stage, kernels: StepCost) -> Floats:
    """Return the sums of a mean gap of a stage.

    By Little's law as many sequences decode as arrive while one does. Every arrival puts its prompt into one step.
    """
    token_s = stage.measured["tpot_mean"]
    decoding = max(stage.rate_per_s * stage.answer * token_s, 1.0)
    context = round(stage.prompt + stage.answer / 2)
    new = (stage.prompt - 1) % _BLOCK + 1 if stage.cached else stage.prompt
    prompts = min(stage.rate_per_s * token_s, 1.0)
    low, share = int(decoding), decoding % 1
    steps = [
        (count, context, *prompt) for count in (low, low + 1) for prompt in ((0, 0, 0), (1, new, stage.prompt - new))
    ]
    low_alone, low_mixed, high_alone, high_mixed = predict(kernels, steps, STEP_TOKENS)
    alone, mixed = low_alone + share * (high_alone - low_alone), low_mixed + share * (high_mixed - low_mixed)
    return np.array((alone + prompts * (mixed - alone), 1.0, decoding + prompts))


def fit_vllm(gaps: Sequence[MeasuredGap]) -> OverheadFit:
    """Fit both forms, and judge them on what did not calibrate.

    Each deployment is predicted from other models, synchronous ones from other deployments.
    """
    sizes = Counter(gap.group for gap in gaps)
    fitted = [gap for gap in gaps if gap.group.weights == FITTED]
    ahead, synchronous = ([gap for gap in fitted if gap.is_async == kind] for kind in (True, False))
    step_s, sequence_s = significant(_coefficients(ahead).tolist(), 5)
    whole = np.maximum(_coefficients(synchronous) - (step_s, sequence_s), 0)
    host_s, host_sequence_s = significant(whole.tolist(), 5)
    errors = _held_out(gaps, ahead, synchronous, sizes)
    base = EngineOverhead(
        step_s=step_s,
        per_sequence_s=sequence_s,
        host_s=host_s,
        host_per_sequence_s=host_sequence_s,
        source=f"engine overhead of vLLM: the GPU's side of a step fitted on {len(ahead)} measured loads of servers "
        f"with asynchronous scheduling ({_cards(ahead)}), the host's on {len(synchronous)} with synchronous "
        f"scheduling ({_cards(synchronous)})",
    )
    return OverheadFit(_levels(base, errors), errors)


def _cards(gaps: Sequence[MeasuredGap]) -> str:
    return ", ".join(sorted({gap.group.card for gap in gaps}))


def _coefficients(gaps: Sequence[MeasuredGap]) -> Floats:
    """Return the seconds of a step and of a sequence with the smallest absolute relative errors, nearly.

    A deployment with four times as many loads counts twice as much.
    """
    sums, seconds = np.array([gap.sums for gap in gaps]), np.array([gap.token_s for gap in gaps])
    sizes = Counter(gap.group for gap in gaps)
    importance = np.array([sizes[gap.group] ** -0.25 for gap in gaps])
    weights, found, most = importance / seconds, np.zeros(2), np.array((np.inf, MOST_PER_SEQUENCE_S))
    for _ in range(_ROUNDS):
        x, y = sums[:, 1:] * weights[:, None], (seconds - sums[:, 0]) * weights
        scale = np.maximum(x.max(axis=0), 1e-300)
        found = lsq_linear(x / scale, y, bounds=(0, most * scale)).x / scale
        weights = importance / seconds / np.sqrt(np.maximum(np.abs(_errors(found, gaps)), _LEAST_ERROR))
    return found


def _errors(coefficients: Floats, gaps: Sequence[MeasuredGap]) -> Floats:
    return np.array([gap.sums @ (1.0, *coefficients) / gap.token_s - 1 for gap in gaps])


def _held_out(
    gaps: Sequence[MeasuredGap],
    ahead: Sequence[MeasuredGap],
    synchronous: Sequence[MeasuredGap],
    sizes: Counter[DeploymentGroup],
) -> tuple[DeploymentError, ...]:
    """Return the errors of each deployment, predicted from all other models; synchronous ones, which are of one model,
    from all other deployments."""
    found = []
    groups: dict[tuple[DeploymentGroup, bool], list[MeasuredGap]] = defaultdict(list)
    for gap in gaps:
        groups[gap.group, gap.is_async].append(gap)
    for (group, is_async), several in sorted(groups.items()):
        others = (
            [gap for gap in ahead if gap.group.model != group.model]
            if is_async
            else [gap for gap in synchronous if gap.group != group]
        )
        small = group.weights != "bf16" and sizes[group] < LEAST_POINTS and group.weights not in EXPERTS_ALONE
        role = "listed" if small else "held out" if is_async else "held out, synchronous"
        found.append(DeploymentError(group, role, _errors(_coefficients(others), several), np.empty(0)))
    return tuple(found)


def _levels(base: EngineOverhead, errors: Sequence[DeploymentError]) -> dict[str, EngineOverhead]:
    """Return the overhead with the spread of each class of deployments: a format of weights on a card.

    Few measured loads say little about a class alone: it is then no narrower than all cards with this format. Where a
    card was not measured, it is as wide as the widest that was.
    """
    classes: dict[str, dict[str, Floats]] = defaultdict(dict)
    for each in errors:
        if each.role == "held out":
            known = classes[each.group.weights].get(each.group.card, np.empty(0))
            classes[each.group.weights][each.group.card] = np.concatenate((known, each.token))
    found = {}
    for weights, cards in sorted(classes.items()):
        every = np.concatenate(list(cards.values()))
        models = ("gpt-oss-120b",) if weights in EXPERTS_ALONE else ()
        spreads = {}
        for card, own in sorted(cards.items()):
            spread = spread_of(own) if len(own) >= LEAST_POINTS else max(spread_of(own), spread_of(every))
            spreads[card] = round(spread, 4)
            found[f"vllm/{weights}/{card}"] = replace(
                base, models=models, spread=spreads[card], error=_error_sentence(weights, own, card)
            )
        found[f"vllm/{weights}"] = replace(
            base,
            models=models,
            spread=max(spreads.values()),
            error=f"{_error_sentence(weights, every, ', '.join(sorted(cards)))}; not known on other cards",
        )
    dense = [each for level, each in found.items() if level.count("/") == 1 and not each.models]
    found["vllm"] = max(dense, key=lambda each: each.spread)
    return found


def _error_sentence(weights: str, errors: Floats, cards: str) -> str:
    median, ninety = np.quantile(np.abs(errors), (0.5, 0.9))
    return (
        f"base model under vLLM with {weights} weights: TPOT off by {median:.1%} (median) and {ninety:.1%} (90 % of "
        f"loads) on {len(errors)} measured loads on {cards}, each model predicted from the others"
    )
