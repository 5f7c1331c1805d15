"""Fit what engines add to their kernels, on half of the measured deployments, and judge it on the other half.

A deployment is an engine on a card with a model, a format of weights and a number of GPUs. Those with at least
``LEAST_POINTS`` points count. Sorted by engine, format, card, model and GPUs, every other deployment of each engine,
format and card calibrates, from the first on; the rest judges. vLLM's deployments have a fit of their own, of the GPU's
and the host's side (``validation.overheads.vllm_overhead``). Smaller deployments only stand in the table. Points
whose requests outgrow the KV cache neither calibrate nor judge here: they wait for each other, which the plain schedule
of a closed loop doesn't know. The simulator does, and is judged by them too (``validation.overheads.replayed_points``).

Coefficients are fitted at three levels: for an engine with a format on a card, for an engine with a format, and for an
engine. A profile takes the first level that was measured. On a card that was not, the error is that of predicting each
measured card from the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.optimize import lsq_linear

from calibrate.kernels.around_kernels import EngineOverhead
from calibrate.kernels.kernel_tables import ENGINES, EXPERTS_ALONE, KernelTables
from sim.arrays import Floats
from sim.errors import InputError
from sim.studies.fidelity.least_squares import significant
from validation.overheads.loop_schedule import LoopSteps, loop_steps
from validation.overheads.serving_points import DeploymentGroup, ServingPoint

LEAST_POINTS = 12
"""Points of a deployment whose 90 % quantile means something."""
UNKNOWN_CARD = 0.15
"""Spread on another card where only one was measured: an assumption."""
FIRST_WEIGHT = 0.3
"""Weight of a time to the first token, next to one between tokens."""
MOST_PER_SEQUENCE_S = 2.3e-5
"""Most seconds of a sequence. The points have up to 128 clients, and a sequence's cost is hardly told apart from its
attention; without this bound it came out twice as large as where batches of up to 1,000 were measured (vLLM 0.8.5 on
the H100-64GB: 7 and 23 us), which matters in large batches."""
_ROUNDS, _LEAST_ERROR = 15, 0.02
Q90 = 1.645
"""Standard deviations within which 90 % of a normal distribution lie."""


@dataclass(frozen=True, slots=True)
class PredictedPoint:
    """A measured point and the sums of its steps."""

    point: ServingPoint
    steps: LoopSteps


@dataclass(frozen=True, slots=True)
class DeploymentError:
    """Relative errors of one deployment's points.

    :ivar role: ``calibrates``, ``judges``, or ``listed``, which is too small for either; under vLLM ``held out``.
    :ivar token: signed errors of the time between tokens.
    :ivar first: signed errors of the time to the first token.
    """

    group: DeploymentGroup
    role: str
    token: Floats
    first: Floats


@dataclass(frozen=True, slots=True)
class OverheadFit:
    """Coefficients by level (``vllm/bf16/h100-80gb``, ``vllm/bf16``, ``vllm``), and the errors of all deployments."""

    overheads: dict[str, EngineOverhead]
    errors: tuple[DeploymentError, ...]


def predict_points(
    points: Sequence[ServingPoint], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[PredictedPoint]:
    """Return the sums of every point's steps; points of deployments that the tables refuse are left out."""
    found = []
    steps_of: dict[DeploymentGroup, Callable[[int, int, int, int, int], float] | None] = {}
    for done, point in enumerate(points, 1):
        if point.group not in steps_of:
            try:
                steps_of[point.group] = lru_cache(maxsize=None)(KernelTables(point.deployment).step_s)
            except InputError:
                steps_of[point.group] = None
        step_s = steps_of[point.group]
        if step_s is not None:
            found.append(PredictedPoint(point, loop_steps(point.loop, step_s)))
        progress(done, len(points))
    return found


def fit_overheads(points: Sequence[PredictedPoint], *, swapped: bool = False) -> OverheadFit:
    """Fit the coefficients of every level, and judge them.

    :param swapped: calibrate on the deployments that judge, and judge by those that calibrate. Nothing was ever chosen
        for this split, so it confirms the other.
    """
    every: dict[DeploymentGroup, list[PredictedPoint]] = defaultdict(list)
    for each in points:
        every[each.point.group].append(each)
    roles = roles_of({group: len(found) for group, found in every.items()})
    if swapped:
        other = {"calibrates": "judges", "judges": "calibrates"}
        roles = {group: other.get(role, role) for group, role in roles.items()}
    groups = {group: [each for each in found if each.point.fits] for group, found in every.items()}
    groups = {group: found for group, found in groups.items() if found}
    overheads = {}
    for level in sorted({level for group in groups for level in levels(group)}):
        chosen = {
            group: found for group, found in groups.items() if level in levels(group) and roles[group] != "listed"
        }
        judging = [group for group in chosen if roles[group] == "judges"]
        if judging and len(judging) < len(chosen):
            overheads[level] = _overhead(level, chosen, judging)
    errors = []
    for group, found in sorted(groups.items()):
        fitted = next((level for level in levels(group) if level in overheads), "")
        coefficients = _coefficients(overheads.get(fitted, EngineOverhead()))
        token, first = _token_errors(coefficients, found), _first_errors(coefficients, found)
        errors.append(DeploymentError(group, roles[group], token, first))
    return OverheadFit(overheads, tuple(errors))


def covered(errors: Floats, spread: float) -> float:
    """Return the share of signed relative errors within the 90 % interval of a spread."""
    return float(np.mean(np.abs(np.log1p(errors)) <= Q90 * spread))


def widened(
    overheads: Mapping[str, EngineOverhead], errors: Mapping[DeploymentGroup, Floats]
) -> dict[str, EngineOverhead]:
    """Return overheads whose intervals hold 90 % of the simulator's errors on their own card as well.

    The plain schedule, which spreads come from, knows no waits for KV blocks and no chunks behind other prompts.

    :param errors: signed relative errors of the time between tokens, of deployments that judge.
    """
    by_level: dict[str, list[Floats]] = defaultdict(list)
    for group, found in errors.items():
        by_level[levels(group)[0]].append(found)
    wider = dict(overheads)
    for level, several in by_level.items():
        if level in wider:
            spread = round(spread_of(np.concatenate(several)), 4)
            wider[level] = replace(wider[level], spread=max(wider[level].spread, spread))
    return wider


def spread_of(errors: Floats) -> float:
    """Return the spread whose 90 % interval holds 90 % of the errors."""
    return float(np.quantile(np.abs(np.log1p(errors)), 0.9)) / Q90


def levels(group: DeploymentGroup) -> tuple[str, str, str]:
    """Return the levels of a deployment, the most specific first; experts say nothing about dense models."""
    by_format = f"{group.engine}/{group.weights}"
    return f"{by_format}/{group.card}", by_format, by_format if group.weights in EXPERTS_ALONE else group.engine


def roles_of(counts: dict[DeploymentGroup, int]) -> dict[DeploymentGroup, str]:
    """Return what each deployment does, from the number of its points."""
    roles = dict.fromkeys(counts, "listed")
    seen: dict[str, int] = defaultdict(int)
    for group in sorted(group for group, count in counts.items() if count >= LEAST_POINTS):
        level = levels(group)[0]
        roles[group] = "judges" if seen[level] % 2 else "calibrates"
        seen[level] += 1
    return roles


def _overhead(
    level: str,
    chosen: dict[DeploymentGroup, list[PredictedPoint]],
    judging: Sequence[DeploymentGroup],
) -> EngineOverhead:
    calibrating = [group for group in chosen if group not in judging]
    coefficients = significant(_fit(_joined(chosen, calibrating)), 5)
    cards = sorted({group.card for group in chosen})
    engine, *rest = level.split("/")
    what = " with ".join([ENGINES[engine], *(f"{weights} weights" for weights in rest[:1])])
    if len(rest) == 2 or len(cards) == 1:
        held = _token_errors(np.array(coefficients), _joined(chosen, judging))
        how = f"{len(held)} measured points of {_deployments(judging)} on {', '.join(cards)} that did not calibrate"
    else:
        others = [
            _token_errors(_fit(_joined(chosen, [g for g in calibrating if g[1] != card])), _joined(chosen, on))
            for card in cards
            if (on := [g for g in chosen if g[1] == card]) and any(g[1] != card for g in calibrating)
        ]
        held = np.concatenate(others)
        how = f"{len(held)} measured points on {', '.join(cards)}, each card predicted from the others"
    spread = spread_of(held)
    if len(rest) < 2 and len(cards) == 1:
        spread = max(spread, UNKNOWN_CARD)
        how += "; how well this holds on another card is not known"
    count = sum(len(chosen[group]) for group in calibrating)
    median, ninety = np.quantile(np.abs(held), (0.5, 0.9))
    factor, step_s, sequence_s, prefill_s, outside_s = coefficients
    return EngineOverhead(
        factor=factor,
        step_s=step_s,
        per_sequence_s=sequence_s,
        prefill_step_s=prefill_s,
        outside_s=outside_s,
        models=tuple(sorted({group.model for group in chosen})),
        spread=round(spread, 4),
        error=f"base model under {what}: TPOT off by {median:.1%} (median) and {ninety:.1%} (90 % of points) on {how}",
        source=f"engine overhead of {what}, fitted on {count} measured points of {_deployments(calibrating)} "
        f"({', '.join(cards)})",
    )


def _deployments(groups: Sequence[DeploymentGroup]) -> str:
    return "1 deployment" if len(groups) == 1 else f"{len(groups)} deployments"


def _joined(
    groups: dict[DeploymentGroup, list[PredictedPoint]],
    names: Iterable[DeploymentGroup],
) -> list[PredictedPoint]:
    return [each for name in names for each in groups[name]]


def _coefficients(overhead: EngineOverhead) -> Floats:
    return np.array(
        (overhead.factor, overhead.step_s, overhead.per_sequence_s, overhead.prefill_step_s, overhead.outside_s)
    )


def _token_errors(coefficients: Floats, points: Sequence[PredictedPoint]) -> Floats:
    return np.array([each.steps.token @ coefficients[:4] / each.point.token_s - 1 for each in points])


def _first_errors(coefficients: Floats, points: Sequence[PredictedPoint]) -> Floats:
    firsts = [each.steps.first @ coefficients[:4] + coefficients[4] for each in points]
    return np.array([first / each.point.first_s - 1 for first, each in zip(firsts, points, strict=True)])


def _fit(points: Sequence[PredictedPoint]) -> Floats:
    """Return non-negative coefficients of the smallest absolute relative errors, nearly: the four of a step, and the
    seconds that a request spends outside of steps before its first token.

    Times to the first token count less: they also have the client's, and the server's queues before the engine.
    """
    tokens = [np.append(each.steps.token, 0.0) for each in points]
    firsts = [np.append(each.steps.first, 1.0) for each in points]
    sums = np.array(tokens + firsts)
    seconds = np.array([each.point.token_s for each in points] + [each.point.first_s for each in points])
    importance = np.repeat((1.0, FIRST_WEIGHT), len(points))
    weights, found = importance / seconds, np.zeros(sums.shape[1])
    most = np.array((np.inf, np.inf, MOST_PER_SEQUENCE_S, np.inf, np.inf))
    for _ in range(_ROUNDS):
        weighted = sums * weights[:, None]
        scale = np.maximum(weighted.max(axis=0), 1e-300)
        bounds = (0, most * scale)
        found = lsq_linear(weighted / scale, seconds * weights, bounds=bounds).x / scale
        weights = importance / seconds / np.sqrt(np.maximum(np.abs(sums @ found / seconds - 1), _LEAST_ERROR))
    return found
