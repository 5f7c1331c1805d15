"""Fit costs to measured times: non-negative least squares, held-out errors and bootstrap draws.

Every fit of the repository is a ``Problem``: measured seconds, the terms that they are made of, weights, and the
configuration that each row belongs to. The module knows neither steps nor loads, and lives below ``calibrate`` because
predictions of recorded steps need it too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.arrays import Floats, Mask
from sim.rng import stream
from sim.spec.profile import HoldOut

Places = NDArray[np.intp]
T = TypeVar("T")

Loss = Literal["huber", "relative", "absolute"]
"""Squares of relative errors, linear beyond 5 % (Huber's loss), or squares of relative errors, or of seconds."""

LEFT_OUT = "leave one configuration out"
DRAWS = 16
"""Bootstrap draws in a profile."""

_HUBER = 0.05
"""Relative errors beyond this count linearly, not squared: every table has a few outliers."""
_ITERATIONS = 4


@dataclass(frozen=True, slots=True)
class Problem:
    """Measured seconds and what they are made of: ``features @ coefficients + known = seconds``.

    :ivar terms: names of the columns of ``features``.
    :ivar features: (n, terms).
    :ivar seconds: what was measured, (n,); above 0 wherever relative errors count.
    :ivar known: seconds of each row that no term explains, (n,).
    :ivar weight: of each row's error, (n,); rows of weight 0 neither fit nor count.
    :ivar kind: what each row is, such as ``LoRA decode steps``; errors are reported by kind.
    :ivar configuration: what was measured in each row: rows of one configuration are held out and drawn together.
    :ivar settings: values on the axes of the measured grid, (n, axes), or no columns where there is no grid; NaN where
        an axis doesn't apply.
    """

    terms: tuple[str, ...]
    features: Floats
    seconds: Floats
    known: Floats
    weight: Floats
    kind: tuple[str, ...]
    configuration: tuple[str, ...]
    settings: Floats

    @classmethod
    def of(
        cls,
        columns: Mapping[str, ArrayLike],
        seconds: ArrayLike,
        *,
        kind: Sequence[str] = (),
        configuration: Sequence[str] = (),
        settings: Floats | None = None,
    ) -> Problem:
        """Return the problem of named columns, all rows with the same weight.

        :param kind: of each row; default: all of one kind without a name.
        :param configuration: of each row; default: each row is its own.
        """
        count = len(np.asarray(seconds))
        return cls(
            terms=tuple(columns),
            features=np.column_stack([np.asarray(column, dtype=np.float64) for column in columns.values()]),
            seconds=np.asarray(seconds, dtype=np.float64),
            known=np.zeros(count),
            weight=np.ones(count),
            kind=tuple(kind) or ("",) * count,
            configuration=tuple(configuration) or tuple(map(str, range(count))),
            settings=np.empty((count, 0)) if settings is None else settings,
        )

    def __len__(self) -> int:
        return len(self.seconds)

    def errors(self, coefficients: Floats) -> Floats:
        """Return relative errors of the sum of terms, (n,)."""
        return np.asarray((self.features @ coefficients + self.known) / self.seconds - 1)

    def rows(self, places: Places | Mask) -> Problem:
        """Return the problem of some rows, in their order; a place may occur more than once."""
        order = np.arange(len(self))[places]
        arrays: dict[str, Any] = {
            name: getattr(self, name)[order] for name in ("features", "seconds", "known", "weight", "settings")
        }
        names: dict[str, Any] = {
            name: tuple(getattr(self, name)[i] for i in order) for name in ("kind", "configuration")
        }
        return replace(self, **arrays, **names)

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


def solve(problem: Problem, loss: Loss = "huber") -> Floats:
    """Return the coefficients that fit best, none below zero, in the order of the terms.

    Huber's loss is minimized by iteratively reweighted least squares, in four iterations.
    """
    from scipy.optimize import nnls

    rows = problem.weight if loss == "absolute" else problem.weight / problem.seconds
    features = problem.features * rows[:, None]
    target = (problem.seconds - problem.known) * rows
    scale = features.max(axis=0)  # terms differ by nine orders of magnitude, and nnls would stop early
    scale[scale == 0] = 1.0
    trust = np.ones(len(target))
    for _ in range(_ITERATIONS if loss == "huber" else 1):
        found = nnls(features / scale * trust[:, None], target * trust)[0]
        residual = np.abs(features / scale @ found - target)
        trust = np.sqrt(np.minimum(1.0, _HUBER / np.maximum(residual, 1e-9)))
    return np.asarray(found / scale)


Predictor = Callable[[Problem], Floats]
"""Returns the seconds of each row of a problem, (n,)."""
Form = Callable[[Problem], Predictor]
"""Fits a problem, and returns what predicts others of the same terms."""


def sum_of_terms(fit: Callable[[Problem], Floats]) -> Form:
    """Return the form that predicts the sum of all terms, with the coefficients that ``fit`` returns."""

    def form(problem: Problem) -> Predictor:
        coefficients = fit(problem)
        return lambda other: np.asarray(other.features @ coefficients + other.known)

    return form


additive = sum_of_terms(solve)
"""The sum of terms, fitted with Huber's loss."""


def left_out_seconds(problem: Problem, form: Form, held: Mask | None = None) -> Floats:
    """Return the seconds of each row, predicted by a fit without its configuration.

    :param held: the rows to predict; all others fit always. None: all rows.
    :returns: (n,); NaN where a row isn't predicted.
    """
    seconds = np.full(len(problem), np.nan)
    for rows in problem.places().values():
        if held is not None and not held[rows].any():
            continue
        kept = np.ones(len(problem), dtype=np.bool_)
        kept[rows] = False
        if np.any(problem.weight[kept] > 0):
            seconds[rows] = form(problem.rows(kept))(problem.rows(rows))
    if held is not None:
        seconds[~held] = np.nan
    return seconds


def left_out_errors(problem: Problem, form: Form, held: Mask | None = None) -> Floats:
    """Return the relative errors of ``left_out_seconds``, (n,)."""
    return np.asarray(left_out_seconds(problem, form, held) / problem.seconds - 1)


def hold_out_line(what: str, form: str, method: str, errors: ArrayLike, count: int | None = None) -> HoldOut:
    """Return one line of held-out errors: mean and 90 % quantile of their size, and their mean.

    :param errors: relative ones, predicted over measured less 1, (n,).
    :param count: configurations, where they aren't as many as errors.
    """
    values = np.asarray(errors, dtype=np.float64)
    size = np.abs(values)
    return HoldOut(
        what=what,
        form=form,
        method=method,
        count=count or len(values),
        mean=float(size.mean()),
        p90=float(np.quantile(size, 0.9)),
        bias=float(values.mean()),
    )


def rounded(line: HoldOut, digits: int = 5) -> HoldOut:
    """Return a line with errors rounded to so many decimals."""
    return line.model_copy(update={name: round(getattr(line, name), digits) for name in ("mean", "p90", "bias")})


def resample(
    items: Iterable[T], rng: np.random.Generator, stratum: Callable[[T], Hashable] = lambda item: None
) -> list[T]:
    """Draw as many items with replacement, within each stratum, so that no draw lacks one."""
    strata: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        strata[stratum(item)].append(item)
    return [group[place] for group in strata.values() for place in rng.integers(0, len(group), size=len(group))]


def bootstrap(problem: Problem, draws: int = DRAWS, seed: int = 0) -> list[Floats]:
    """Return the coefficients of the additive form fitted to configurations drawn with replacement.

    Drawn within each kind, by a configuration's first row, so that no draw lacks a kind.

    :returns: ``draws`` arrays, each (terms,).
    """
    rng = stream(seed, 0, "bootstrap")
    configurations = list(problem.places().values())
    drawn = (resample(configurations, rng, lambda rows: problem.kind[rows[0]]) for _ in range(draws))
    return [solve(problem.rows(np.concatenate(rows))) for rows in drawn]


def significant(values: Sequence[float] | Floats, digits: int = 6) -> list[float]:
    """Return numbers rounded to so many significant digits: a profile holds many of them."""
    return [float(f"{value:.{digits}g}") for value in values]
