"""Fit costs to measured times, say how well a form predicts what it was not fitted on, and how sure its terms are.

Knows nothing of steps or loads: a ``Problem`` is a table of measured seconds and of what they are made of. A form of
cost is a function that fits a problem: ``additive``, or ``multiplicative(base, factor)``, the rival.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from sim.rng import stream
from sim.spec.profile import HoldOut, StepResidual

Floats = NDArray[np.float64]
Places = NDArray[np.intp]
Mask = NDArray[np.bool_]

ADDITIVE, MULTIPLICATIVE = "additive", "multiplicative"
LEFT_OUT, FAR_CORNER, IN_SAMPLE = "leave one configuration out", "far corner", "in sample"
DRAWS = 16

_HUBER = 0.05
"""Relative errors beyond this count linearly, not squared: a few measurements of any table are odd."""
_TURNS = 4
_ALTERNATIONS, _SETTLED = 60, 1e-5


@dataclass(frozen=True, slots=True)
class Problem:
    """Measured seconds and what they are made of: ``features @ coefficients + known = seconds``.

    :ivar features: (n, terms).
    :ivar known: seconds of each row that no term explains, (n,).
    :ivar seconds: what was measured, (n,), above 0.
    :ivar weight: of each row's relative error, (n,); rows of weight 0 neither fit nor count.
    :ivar kind: what each row is, such as ``LoRA decode steps``; errors are reported by kind.
    :ivar configuration: what was measured in each row: rows of one configuration are held out and drawn together.
    :ivar terms: names of the columns of ``features``.
    :ivar settings: values on the axes of the measured grid, (n, axes), or no columns where there is no grid; NaN where
        an axis doesn't apply.
    """

    features: Floats
    known: Floats
    seconds: Floats
    weight: Floats
    kind: tuple[str, ...]
    configuration: tuple[str, ...]
    terms: tuple[str, ...]
    settings: Floats

    def __len__(self) -> int:
        return len(self.seconds)

    def errors(self, coefficients: Floats) -> Floats:
        """Return relative errors of the additive form, (n,)."""
        return np.asarray((self.features @ coefficients + self.known) / self.seconds - 1)

    def rows(self, places: Places | Mask) -> Problem:
        """Return the problem of some rows, in their order; a place may occur more than once."""
        order = np.arange(len(self))[places]
        return replace(
            self, features=self.features[order], known=self.known[order], seconds=self.seconds[order],
            weight=self.weight[order], kind=tuple(self.kind[i] for i in order),
            configuration=tuple(self.configuration[i] for i in order), settings=self.settings[order],
        )  # fmt: skip

    def columns(self, names: Sequence[str]) -> Problem:
        """Return the problem with only these terms."""
        return replace(self, features=self.features[:, [self.terms.index(n) for n in names]], terms=tuple(names))

    def places(self) -> dict[str, Places]:
        """Return the rows of each configuration that count, in the order of the table."""
        found: dict[str, list[int]] = defaultdict(list)
        for place, name in enumerate(self.configuration):
            if self.weight[place] > 0:
                found[name].append(place)
        return {name: np.array(rows, dtype=np.intp) for name, rows in found.items()}


def join(parts: Sequence[Problem]) -> Problem:
    """Return the rows of several problems over the same terms; settings are dropped unless all have as many axes."""
    axes = {part.settings.shape[1] for part in parts}
    return Problem(
        np.vstack([part.features for part in parts]),
        np.concatenate([part.known for part in parts]),
        np.concatenate([part.seconds for part in parts]),
        np.concatenate([part.weight for part in parts]),
        tuple(kind for part in parts for kind in part.kind),
        tuple(name for part in parts for name in part.configuration),
        parts[0].terms,
        np.vstack([part.settings if len(axes) == 1 else np.empty((len(part), 0)) for part in parts]),
    )


def ramps(values: Floats, knots: Sequence[float]) -> Floats:
    """Return features of a monotone table: between two knots each rises from 0 to 1, the last one goes on rising.

    A non-negative coefficient is what the table gains from one knot to the next.

    :param values: (n,), such as tokens of a step.
    :param knots: at least two, rising; nothing is gained below the first.
    :returns: (n, knots - 1).
    """
    low, high = np.array(knots[:-1], dtype=np.float64), np.array(knots[1:], dtype=np.float64)
    rising = np.maximum((values[:, None] - low) / (high - low), 0.0)
    rising[:, :-1] = np.minimum(rising[:, :-1], 1.0)
    return rising


def solve(problem: Problem) -> Floats:
    """Return the coefficients that fit best, none below zero; large errors count less than squared.

    Non-negative least squares of relative errors, weighted anew four times (Huber's weights).
    """
    rows = problem.weight / problem.seconds
    features = problem.features * rows[:, None]
    target = (problem.seconds - problem.known) * rows
    scale = features.max(axis=0)  # terms differ by nine orders of magnitude
    scale[scale == 0] = 1.0
    trust = np.ones(len(target))
    for _ in range(_TURNS):
        found = nnls(features / scale * trust[:, None], target * trust)[0]
        residual = np.abs(features / scale @ found - target)
        trust = np.sqrt(np.minimum(1.0, _HUBER / np.maximum(residual, 1e-9)))
    return np.asarray(found / scale)


Predictor = Callable[[Problem], Floats]
"""Returns the seconds of each row of a problem, (n,)."""
Form = Callable[[Problem], Predictor]
"""Fits a problem, and returns what predicts others of the same terms."""


def additive(problem: Problem) -> Predictor:
    """Fit a sum of terms."""
    coefficients = solve(problem)
    return lambda other: np.asarray(other.features @ coefficients + other.known)


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

    Both are fitted in turn, each a robust non-negative least-squares fit while the other is held, until predictions
    move by less than 1e-5. The first base is fitted where no factor applies, if such rows are there.

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


def left_out_errors(problem: Problem, form: Form, held: Mask | None = None) -> Floats:
    """Return the relative error of each row, predicted by a fit without its configuration.

    :param held: the rows to predict; all others fit always. None: all rows.
    :returns: (n,); NaN where a row isn't predicted.
    """
    errors = np.full(len(problem), np.nan)
    for rows in problem.places().values():
        if held is not None and not held[rows].any():
            continue
        kept = np.ones(len(problem), dtype=np.bool_)
        kept[rows] = False
        if np.any(problem.weight[kept] > 0):
            errors[rows] = _relative(form(problem.rows(kept)), problem.rows(rows))
    if held is not None:
        errors[~held] = np.nan
    return errors


def far_corner(problem: Problem) -> Mask:
    """Return which rows lie at the far end of the grid: at the largest value of any axis that varies within their kind.

    What is left lies below them on every axis, so that predicting them is extrapolation.
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
            found.append(summary(kind, form, method, errors[rows], count=len(set(names[rows].tolist()))))
    return tuple(found)


def summary(what: str, form: str, method: str, errors: Floats, count: int | None = None) -> HoldOut:
    """Return one line of held-out errors: mean and 90 % quantile of their size, and their mean.

    :param errors: relative ones, predicted over measured less 1, (n,).
    :param count: configurations, where they aren't as many as errors.
    """
    size = np.abs(errors)
    mean, p90, bias = float(size.mean()), float(np.quantile(size, 0.9)), float(errors.mean())
    return HoldOut(
        what=what, form=form, method=method, count=count or len(errors), mean=round(mean, 5), p90=round(p90, 5),
        bias=round(bias, 5),
    )  # fmt: skip


def bootstrap(problem: Problem, draws: int = DRAWS, seed: int = 0) -> list[Floats]:
    """Return the coefficients of the additive form fitted to configurations drawn with replacement.

    Drawn within each kind, by a configuration's first row, so that no draw lacks a kind.

    :returns: ``draws`` arrays, each (terms,).
    """
    strata: dict[str, list[Places]] = defaultdict(list)
    for rows in problem.places().values():
        strata[problem.kind[rows[0]]].append(rows)
    rng = stream(seed, 0, "bootstrap")
    found = []
    for _ in range(draws):
        chosen = [
            groups[place] for groups in strata.values() for place in rng.integers(0, len(groups), size=len(groups))
        ]
        found.append(solve(problem.rows(np.concatenate(chosen))))
    return found


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


def significant(values: Sequence[float] | Floats, digits: int = 6) -> list[float]:
    """Return numbers rounded to so many significant digits: a profile holds many of them."""
    return [float(f"{value:.{digits}g}") for value in values]
