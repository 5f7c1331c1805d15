"""Timed steps as equations: which terms each is made of, and the profile section that fitted terms become.

Rival forms of cost are compared here, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats, Mask
from sim.errors import InputError
from sim.spec.profile import HoldOut, StepCost, StepResidual
from sim.studies.fidelity.least_squares import Form, Predictor, Problem, hold_out_line, rounded, significant, solve
from sim.studies.fidelity.step_terms import BASE, LORA, columns, step_cost

if TYPE_CHECKING:
    import pandas as pd


# Compare forms of cost by what they predict without having been fitted to it, and measure how single samples spread.
#
# ``multiplicative`` is the rival of ``least_squares.additive``: a base cost times a factor.

ADDITIVE, MULTIPLICATIVE = "additive", "multiplicative"
FAR_CORNER, IN_SAMPLE = "far corner", "in sample"

_ALTERNATIONS, _SETTLED = 60, 1e-5


def ramps(values: Floats, knots: Sequence[float]) -> Floats:
    """Return features of a monotone table: each rises from 0 to 1 between two knots, the last one without end.

    A non-negative coefficient is what the table gains from one knot to the next.

    :param values: (n,), such as tokens of a step.
    :param knots: at least two, rising; nothing is gained below the first.
    :returns: (n, knots - 1).
    """
    low, high = np.array(knots[:-1], dtype=np.float64), np.array(knots[1:], dtype=np.float64)
    rising = np.maximum((values[:, None] - low) / (high - low), 0.0)
    rising[:, :-1] = np.minimum(rising[:, :-1], 1.0)
    return rising


def multiplicative(base: Sequence[str], factor: Sequence[str]) -> Form:
    """Return the rival form, as the digital twin and BLIS have it: what a step costs anyway, times a factor for LoRA.

    Both are fitted in turn, each with Huber's loss while the other stays fixed, until predictions move by less than
    1e-5. The first base is fitted where no factor applies, if such rows are there.

    :param factor: the terms that the factor is linear in, such as distinct adapters.
    """

    def fit(problem: Problem) -> Predictor:
        plain, lora = problem.columns(base), problem.columns(factor)
        without = ~np.any(lora.features > 0, axis=1) & (problem.weight > 0)
        by_base, by_factor = solve(plain.rows(without) if without.any() else plain), np.zeros(len(factor))

        def predicted(rows: Problem) -> Floats:
            times = 1 + rows.columns(factor).features @ by_factor
            return np.asarray(rows.known + rows.columns(base).features @ by_base * times)

        before = predicted(problem)
        for _ in range(_ALTERNATIONS):
            seconds = plain.features @ by_base
            by_factor = solve(replace(lora, features=lora.features * seconds[:, None], known=lora.known + seconds))
            times = 1 + lora.features @ by_factor
            by_base = solve(replace(plain, features=plain.features * times[:, None]))
            now = predicted(problem)
            if np.max(np.abs(now / before - 1)) < _SETTLED:
                break
            before = now
        return predicted

    return fit


def far_corner(problem: Problem) -> Mask:
    """Return which rows lie at the far end of the grid: at the largest value of any axis that varies within their kind.

    All other rows are smaller on every axis, so that predicting the corner is extrapolation.
    """
    corner = np.zeros(len(problem), dtype=np.bool_)
    kinds = np.array(problem.kind)
    for kind in dict.fromkeys(problem.kind):
        rows = np.flatnonzero((kinds == kind) & (problem.weight > 0))
        for axis in problem.settings[rows].T:
            known = axis[~np.isnan(axis)]
            if len(known) and known.min() < known.max():
                corner[rows] |= axis == known.max()
    return corner


def corner_errors(problem: Problem, form: Form) -> Floats:
    """Return the relative errors of the rows at the far corner, fitted to all others; NaN elsewhere, (n,)."""
    corner = far_corner(problem)
    errors = np.full(len(problem), np.nan)
    if corner.any() and np.any(problem.weight[~corner] > 0):
        errors[corner] = _relative(form(problem.rows(~corner)), problem.rows(corner))
    return errors


def in_sample_errors(problem: Problem, form: Form) -> Floats:
    """Return the relative errors of rows that also fitted, (n,); NaN where a row has no weight."""
    return np.where(problem.weight > 0, _relative(form(problem), problem), np.nan)


def _relative(predict: Predictor, problem: Problem) -> Floats:
    return np.asarray(predict(problem) / problem.seconds - 1)


def hold_outs(problem: Problem, errors: Floats, form: str, method: str) -> tuple[HoldOut, ...]:
    """Return the errors by kind of row, as a profile holds them.

    :param errors: (n,) of ``problem``; NaN where a row was not predicted.
    """
    kinds, names = np.array(problem.kind), np.array(problem.configuration)
    found = []
    for kind in dict.fromkeys(problem.kind):
        rows = (kinds == kind) & ~np.isnan(errors)
        if rows.any():
            count = len(set(names[rows].tolist()))
            found.append(rounded(hold_out_line(kind, form, method, errors[rows], count)))
    return tuple(found)


def sample_residual(measured: Floats, predicted: Floats, configuration: Sequence[str]) -> StepResidual:
    """Return how single samples spread around what is predicted for their configuration.

    :param measured: seconds, (n,), in the order of measurement; ``predicted``: the same of the fit.
    """
    ratios = measured / predicted
    return StepResidual(
        quantiles=tuple(significant(np.quantile(ratios, np.linspace(0, 1, 101)))),
        autocorrelation=round(autocorrelation(ratios, configuration), 4),
    )


def autocorrelation(values: Floats, configuration: Sequence[str]) -> float:
    """Return the correlation of neighbours within a configuration, around its own mean, over all configurations.

    0 where nothing varies.
    """
    names = np.array(configuration)
    products = squares = 0.0
    for name in dict.fromkeys(configuration):
        own = values[names == name]
        own = own - own.mean()
        products += float(own[1:] @ own[:-1])
        squares += float(own @ own)
    return max(-1.0, min(1.0, products / squares)) if squares > 0 else 0.0


_LINEAR = tuple(term.name for term in (*BASE, *LORA) if term.name != "step")
CLASSES = ("base decode steps", "LoRA decode steps", "base prefill steps", "LoRA prefill steps")


@dataclass(frozen=True, slots=True)
class TimedSteps:
    """Medians of timed steps, in the model's full depth.

    :ivar keys: of the configurations; ``classes``: which of ``CLASSES`` each is; (n,).
    :ivar seconds: (n,) medians.
    :ivar samples: all samples of each, in full depth, in the order in which they were taken.
    """

    keys: Sequence[str]
    classes: NDArray[np.str_]
    seconds: Floats
    parameters: Sequence[Mapping[str, Any]]
    samples: Sequence[Floats]

    def column(self, name: str) -> Floats:
        """Return one parameter of all steps, (n,)."""
        return np.array([float(one[name]) for one in self.parameters])


def timed_steps(frame: pd.DataFrame, manifest: Mapping[str, Any], backend: str) -> TimedSteps:
    """Return the steps that one LoRA backend's profile is fitted to: base steps and its own, on all linear layers.

    Where decodes were timed both eagerly and as graphs, graphs count: it is what serving engines run. Steps of fewer
    layers than the model has are scaled: what the output head takes stays, the rest is multiplied. Where a run that was
    cut short has not timed that head, the step is left out.

    :raises InputError: where nothing of this backend was timed.
    """
    layers, full = int(manifest["layers"]), int(manifest["model_layers"])
    groups = {str(key): rows for key, rows in frame.groupby("key", observed=True, sort=False)}
    parameters = {key: rows["parameters"].iloc[0] for key, rows in groups.items()}
    kinds = {key: str(rows["kind"].iloc[0]) for key, rows in groups.items()}
    head = {
        int(parameters[key]["sequences"]): float(np.median(rows["seconds"]))
        for key, rows in groups.items()
        if kinds[key] == "head"
    }
    graphed = {_twin(key) for key in groups if key.endswith(" graph")}
    chosen = [
        key
        for key in groups
        if kinds[key] in ("decode", "prefill", "mixed")
        and parameters[key]["backend"] in ("", backend)
        and (not parameters[key]["targets"] or len(parameters[key]["targets"].split(",")) == 7)
        and not (key.endswith(" eager") and _twin(key) in graphed)
        and (layers == full or int(parameters[key]["sequences"]) in head)
    ]
    if not any(parameters[key]["backend"] for key in chosen):
        timed = sorted({str(one["backend"]) for one in parameters.values() if one.get("backend")})
        raise InputError(
            "no steps of this LoRA backend were timed", key="--backend", got=backend, allowed=", ".join(timed)
        )
    samples = []
    for key in chosen:
        seconds = groups[key].sort_values(["order", "nth"])["seconds"].to_numpy(dtype=np.float64)
        if layers < full:
            fixed = min(head[int(parameters[key]["sequences"])], 0.9 * float(np.median(seconds)))
            seconds = fixed + np.maximum(seconds - fixed, 0.0) * full / layers
        samples.append(seconds)
    return TimedSteps(
        keys=chosen,
        classes=np.array(
            [
                f"{'LoRA' if parameters[key]['distinct'] else 'base'} "
                f"{'decode' if kinds[key] == 'decode' else 'prefill'} steps"
                for key in chosen
            ]
        ),
        seconds=np.array([float(np.median(one)) for one in samples]),
        parameters=[parameters[key] for key in chosen],
        samples=samples,
    )


@dataclass(frozen=True, slots=True)
class StepTerms:
    """The terms that steps are fitted with: a monotone table over tokens, and what is linear.

    :ivar knots: tokens at which the table has an entry, rising.
    """

    knots: tuple[int, ...]

    @classmethod
    def of(cls, steps: TimedSteps, limit: int = 12) -> StepTerms:
        """Return terms with knots at measured sizes of base steps, at most ``limit`` of them."""
        base = np.array(["base" in name for name in steps.classes])
        sizes = np.unique(steps.column("tokens")[base]).astype(int)
        if len(sizes) > limit:
            sizes = np.unique(sizes[np.linspace(0, len(sizes) - 1, limit).round().astype(int)])
        return cls(tuple(sizes.tolist()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all terms, in the order of a problem's columns."""
        return ("step", *(f"tokens_to_{knot}" for knot in self.knots), *_LINEAR)

    @property
    def base(self) -> tuple[str, ...]:
        """The terms of a step without LoRA."""
        return self.names[: -len(LORA)]

    def problem(self, steps: TimedSteps) -> Problem:
        """Return the equations of timed steps; every configuration counts the same.

        ``tokens_to_K`` rises from 0 to 1 between the knot before K and K: non-negative terms make a table that never
        falls.
        """
        ramp = ramps(steps.column("tokens"), (0, *self.knots)).T
        table = {f"tokens_to_{knot}": values for knot, values in zip(self.knots, ramp, strict=True)}
        adapters = steps.column("distinct") > 0
        axes = (
            np.where(steps.column("prefill_tokens") > 0, steps.column("prefill_tokens"), np.nan),
            steps.column("sequences"),
            steps.column("decode_kv_tokens"),
            *(np.where(adapters, steps.column(name), np.nan) for name in ("distinct", "slots", "max_rank")),
        )
        return Problem.of(
            columns(self.names, steps.column, table),
            steps.seconds,
            kind=steps.classes.tolist(),
            configuration=steps.keys,
            settings=np.column_stack(axes),
        )

    def step_cost(self, found: Floats) -> StepCost:
        """Return the profile section of fitted terms, (terms,)."""
        seconds = dict(zip(self.names, significant(found), strict=True))
        table, total = [(0.0, 0.0)], 0.0
        for knot in self.knots:
            total += seconds[f"tokens_to_{knot}"]
            table.append((float(knot), total))
        return step_cost(seconds, table)


def _twin(key: str) -> str:
    return key.rsplit(" ", 1)[0]
