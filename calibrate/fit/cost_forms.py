"""Compare forms of cost by what they predict without having been fitted to it, and measure how single samples spread.

``multiplicative`` is the rival of ``least_squares.additive``: a base cost times a factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sim.spec.profile import HoldOut, StepResidual
from sim.studies.fidelity.least_squares import (
    Floats,
    Form,
    Mask,
    Predictor,
    Problem,
    hold_out_line,
    rounded,
    significant,
    solve,
)

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


@dataclass(frozen=True, slots=True)
class Product:
    """A multiplicative cost: ``known + (base features @ base) · (1 + factor features @ factor)``.

    :ivar base: coefficients, seconds; ``factor``: coefficients, without unit.
    """

    base_terms: tuple[str, ...]
    factor_terms: tuple[str, ...]
    base: Floats
    factor: Floats

    def __call__(self, problem: Problem) -> Floats:
        base = problem.columns(self.base_terms).features @ self.base
        return np.asarray(problem.known + base * (1 + problem.columns(self.factor_terms).features @ self.factor))


def multiplicative(base: Sequence[str], factor: Sequence[str]) -> Form:
    """Return the rival form, as the digital twin and BLIS have it: what a step costs anyway, times a factor for LoRA.

    Both are fitted in turn, each with Huber's loss while the other stays fixed, until predictions move by less than
    1e-5. The first base is fitted where no factor applies, if such rows are there.

    :param base: the terms of the base cost.
    :param factor: the terms that the factor is linear in, such as distinct adapters.
    """

    def fit(problem: Problem) -> Predictor:
        plain, lora = problem.columns(base), problem.columns(factor)
        without = ~np.any(lora.features > 0, axis=1) & (problem.weight > 0)
        found = Product(
            tuple(base), tuple(factor), solve(plain.rows(without) if without.any() else plain), np.zeros(len(factor))
        )
        before = found(problem)
        for _ in range(_ALTERNATIONS):
            seconds = plain.features @ found.base
            scaled = replace(lora, features=lora.features * seconds[:, None], known=lora.known + seconds)
            found = replace(found, factor=solve(scaled))
            times = 1 + lora.features @ found.factor
            found = replace(found, base=solve(replace(plain, features=plain.features * times[:, None])))
            now = found(problem)
            if np.max(np.abs(now / before - 1)) < _SETTLED:
                break
            before = now
        return found

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


def sample_residual(
    measured: Floats, predicted: Floats, configuration: Sequence[str], quantiles: int = 101
) -> StepResidual:
    """Return how single samples spread around what is predicted for their configuration.

    :param measured: seconds, (n,), in the order of measurement; ``predicted``: the same of the fit.
    :param configuration: of each sample.
    :param quantiles: how many of measured over predicted, equally spaced from 0 to 1.
    """
    ratios = measured / predicted
    return StepResidual(
        quantiles=tuple(significant(np.quantile(ratios, np.linspace(0, 1, quantiles)))),
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
