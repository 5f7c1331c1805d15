"""Popularity laws fitted to the requests of each adapter by maximum likelihood, with their goodness of fit.

Adapters are ranked by their requests, and a law gives each rank its probability. The ranking follows from the counts
themselves, so with few requests per adapter the fitted law is steeper than the truth, and so are the counts. The
goodness of fit is therefore judged against counts drawn from the law, ranked and fitted in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats, Ints
from sim.rng import stream
from sim.spec.sections.traffic_laws import (
    GeometricPopularity,
    HotColdPopularity,
    Popularity,
    SLoraPowerPopularity,
    UniformPopularity,
    ZipfMandelbrotPopularity,
    ZipfPopularity,
)
from sim.traffic.popularity import weights_of

_DRAWS = 99
"""Rankings drawn from a law to judge its distance: p is then right to a few hundredths."""
LEAST_P = 0.02
"""Below this a law is ruled out. With few requests an adapter p is too small somewhat often: a true Zipf-Mandelbrot law
over 200 adapters falls below 0.05 in 6 of 30 traces of 6 requests an adapter and below 0.02 in 2
(tests/statistical/test_trace_fit.py)."""
MOST_JUDGED = 2_000
"""Adapters above which the fit is not judged, which takes a hundred fits of each law."""
_FINE, _COARSE = 40, 14
"""Steps of a search for a parameter; the coarse one finds it to a thousandth of its range."""
_MANY = 20_000
"""Adapters from which only the coarse search is used."""


@dataclass(frozen=True, slots=True)
class PopularityFit:
    """A law with its likeliest parameters.

    :ivar adapters: how many the law covers, including the estimated unseen ones.
    :ivar log_likelihood: natural logarithm, of the requests given the ranking.
    :ivar parameters: how many were fitted; ``aic``: 2 × parameters − 2 × log likelihood, the smaller the better.
    :ivar distance: largest difference between the shares of requests of the first k adapters, as counted and as the law
        has them (Kolmogorov-Smirnov over ranks).
    :ivar p_value: share of rankings drawn from the law that are at least as far from the same kind of law fitted to
        them; None above ``MOST_JUDGED`` adapters.
    """

    law: Popularity
    adapters: int
    log_likelihood: float
    parameters: int
    distance: float
    p_value: float | None

    @property
    def aic(self) -> float:
        return 2 * self.parameters - 2 * self.log_likelihood


def fit_popularity(asked: Ints, seed: int = 1) -> list[PopularityFit]:
    """Fit every law that has parameters, and the uniform one; the likeliest first, by AIC.

    Zipf-Mandelbrot is left out where its likeliest shift is 0.

    :param asked: (adapters,) requests of each adapter, any order; at least one request.
    """
    counts = with_unseen(asked)
    return [_judged(fit, counts, seed) for fit in _fitted(counts)]


def likeliest(asked: Ints, seed: int = 1) -> PopularityFit:
    """Return the first law of ``fit_popularity``, without judging the others."""
    counts = with_unseen(asked)
    return _judged(_fitted(counts)[0], counts, seed)


def with_unseen(asked: NDArray[np.number]) -> Floats:
    """Return the counts from the largest on, with a 0 for each adapter that probably exists but was not seen.

    Their number is Chao's lower bound, from the adapters seen once and twice (A. Chao, Scand. J. Statist. 11, 1984);
    no more than were seen.
    """
    counts = np.sort(asked[asked > 0])[::-1].astype(np.float64)
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    unseen = min(len(counts), round(once * (once - 1) / (2 * (twice + 1))))
    return np.concatenate((counts, np.zeros(unseen)))


_Fit = Callable[[Floats, int], Popularity]


def _of_one(make: Callable[[float], Popularity], span: tuple[float, float]) -> _Fit:
    """Return how a law of one parameter is fitted."""
    return lambda counts, steps: _best(make, span, counts, steps)[0]


def _zipf_mandelbrot(counts: Floats, steps: int) -> Popularity:
    """Search the exponent for each shift, and the shift on a scale of logarithms; 0 is tried on its own."""

    def with_shift(shift: float) -> tuple[Popularity, float]:
        return _best(
            lambda x: ZipfMandelbrotPopularity(law="zipf-mandelbrot", exponent=x, shift=shift),
            (0.0, 8.0),
            counts,
            steps,
        )

    def score(x: float) -> tuple[Popularity, float]:
        return with_shift(round(math.exp(x), 4))

    return max(with_shift(0.0), _golden(score, (-2.0, math.log(2 * len(counts))), steps), key=lambda found: found[1])[0]


def _hot_cold(counts: Floats, steps: int) -> Popularity:
    """Return the likeliest cut: for a given one, the hot adapters' share is that of their requests."""
    total, n = counts.sum(), len(counts)
    share = np.cumsum(counts)[:-1] / total
    hot = np.arange(1, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        cold = np.where(share < 1, (1 - share) * np.log((1 - share) / (n - hot)), 0.0)
        gain = share * np.log(share / hot) + cold
    cut = int(np.argmax(gain))
    return HotColdPopularity(law="hot-cold", hot=float(hot[cut] / n), requests=min(1.0, float(share[cut])))


_FAMILIES: dict[str, tuple[_Fit, int]] = {
    "uniform": (lambda counts, steps: UniformPopularity(law="uniform"), 0),
    "zipf": (_of_one(lambda x: ZipfPopularity(law="zipf", exponent=x), (0.0, 5.0)), 1),
    "zipf-mandelbrot": (_zipf_mandelbrot, 2),
    "geometric": (_of_one(lambda x: GeometricPopularity(law="geometric", ratio=math.exp(x)), (0.0, 3.0)), 1),
    "s-lora-power": (_of_one(lambda x: SLoraPowerPopularity(law="s-lora-power", alpha=math.exp(x)), (-5.0, 2.0)), 1),
    "hot-cold": (_hot_cold, 2),
}
"""How each law is fitted, and how many parameters that takes."""


def _likelihood(law: Popularity, counts: Floats) -> float:
    with np.errstate(divide="ignore"):
        logs = np.log(weights_of(law, len(counts)))
    asked = counts > 0
    return float(counts[asked] @ logs[asked])


def _best(
    make: Callable[[float], Popularity], span: tuple[float, float], counts: Floats, steps: int
) -> tuple[Popularity, float]:
    """Return the law of highest likelihood, and that: these likelihoods have one peak."""

    def score(x: float) -> tuple[Popularity, float]:
        law = make(round(x, 6))
        return law, _likelihood(law, counts)

    return _golden(score, span, steps)


def _golden(
    score: Callable[[float], tuple[Popularity, float]], span: tuple[float, float], steps: int
) -> tuple[Popularity, float]:
    """Return the best law in a span by golden section, with its score."""
    golden = (math.sqrt(5) - 1) / 2
    low, high = span
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = score(left), score(right)
    for _ in range(steps):
        if at_left[1] >= at_right[1]:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = score(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = score(right)
    return max(at_left, at_right, key=lambda found: found[1])


def _fitted(counts: Floats) -> list[PopularityFit]:
    """Return every law with its likeliest parameters, not judged; the likeliest first."""
    found = []
    for name in _FAMILIES if len(counts) > 1 else ("uniform",):
        fit, parameters = _FAMILIES[name]
        law = fit(counts, _FINE if len(counts) < _MANY else _COARSE)
        if isinstance(law, ZipfMandelbrotPopularity) and law.shift == 0:
            continue  # Zipf's law again
        found.append(
            PopularityFit(law, len(counts), _likelihood(law, counts), parameters, _distance(law, counts), None)
        )
    return sorted(found, key=lambda fit: fit.aic)


def _judged(found: PopularityFit, counts: Floats, seed: int) -> PopularityFit:
    if len(counts) > MOST_JUDGED:
        return found
    name = found.law.law
    rng = stream(seed, 0, f"popularity-fit-{name}")
    weights, farther = weights_of(found.law, len(counts)), 0
    for _ in range(_DRAWS):
        drawn = with_unseen(rng.multinomial(int(counts.sum()), weights))
        farther += len(drawn) == 1 or _distance(_FAMILIES[name][0](drawn, _COARSE), drawn) >= found.distance
    return replace(found, p_value=(farther + 1) / (_DRAWS + 1))


def _distance(law: Popularity, ranked: Floats) -> float:
    return float(np.abs(np.cumsum(ranked) / ranked.sum() - np.cumsum(weights_of(law, len(ranked)))).max())
