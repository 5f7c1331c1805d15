"""What a trace shows: whether the order of its requests matters to a cache, and how bursty and concentrated it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from reports.answers.trace_fit_findings import GAP
from sim.results.traces.trace_facts import LawRow, MissCurve, TraceFacts
from sim.traffic.fits.popularity_fit import LEAST_P

DECIDES = 1.5
"""How many times as many requests miss without locality where locality decides."""
LEAST_ADAPTERS = 20
"""Adapters below which 1, 10 and 20 % of them say little."""
NOISE = 0.2
"""Dispersion this close to 1 counts as Poisson's, or closer than two standard errors: sqrt(2 / windows) each."""
_FEW_MISS = 0.2
"""Miss ratio up to which few requests miss."""
_CORRELATED = 0.1
"""Correlation of lengths from which it is one."""
_BETWEEN_ADAPTERS = 0.05
"""Share of the variance of lengths from which they depend on the adapter."""


class OrderEffect(Enum):
    """What the order of requests does to an LRU cache."""

    LITTLE = "little"
    HELPS = "helps"
    DECIDES = "decides"
    HURTS = "hurts"


@dataclass(frozen=True)
class OrderFinding:
    """What the order of requests does, at the number of slots where that is most visible."""

    effect: OrderEffect
    slots: int
    real: float
    shuffled: float


class RateChange(Enum):
    """Whether the rate of arrivals changes."""

    MOVES = "moves"
    EVEN = "even"
    CHANCE = "chance"


@dataclass(frozen=True)
class Rate:
    """How the rate changes.

    :ivar moves: standard deviation of the rate over its mean, beyond chance, and the window (``second``, ``minute``).
    """

    change: RateChange
    moves: tuple[tuple[float, str], ...] = ()


class Gaps(Enum):
    """How gaps between arrivals vary, compared with those of Poisson arrivals."""

    MUCH_MORE_EVEN = "much more even"
    MORE_EVEN = "more even"
    LIKE_POISSON = "like Poisson"
    SOMEWHAT_BURSTIER = "somewhat burstier"
    BURSTIER = "burstier"
    FAR_BURSTIER = "far burstier"


_GAPS = (
    (0.5, Gaps.MUCH_MORE_EVEN),
    (0.85, Gaps.MORE_EVEN),
    (1.15, Gaps.LIKE_POISSON),
    (1.5, Gaps.SOMEWHAT_BURSTIER),
    (3.0, Gaps.BURSTIER),
)
"""Coefficients of variation below which each is said."""


@dataclass(frozen=True)
class SessionGain:
    """From how many slots on sessions help LRU, as places on the miss curve.

    :ivar most: where independent draws overstate misses most; ``factor``: by how much.
    :ivar from_place: the first place at which locality decides; ``below``: the one before it. None where it decides
        nowhere, or everywhere.
    """

    most: int
    factor: float
    from_place: int | None = None
    below: int | None = None


@dataclass(frozen=True)
class RankedLaws:
    """Popularity laws of one kind of count.

    :ivar of: ``requests`` or ``sessions``; ``best``: the likeliest.
    :ivar unseen: adapters that are probably there and were not seen.
    :ivar possible: the laws that the ranking may come from; ``judged``: whether any could be judged.
    """

    of: str
    best: LawRow
    unseen: int
    possible: tuple[str, ...]
    judged: bool


class Together(Enum):
    """How prompt and output lengths go together."""

    HARDLY = "hardly"
    SAME_WAY = "same way"
    OPPOSITE = "opposite"


def order_finding(facts: TraceFacts, curve: MissCurve) -> OrderFinding:
    """Return what the order of requests does to LRU."""
    at = _most_visible(curve)
    real, shuffled = curve.real[at], curve.shuffled[at]
    # Chance variation of either order: three standard errors of a share.
    chance = 3 * math.sqrt(max(shuffled * (1 - shuffled), 0.0) / facts.requests)
    if abs(shuffled - real) <= max(GAP, chance):
        effect = OrderEffect.LITTLE
    elif real > shuffled:
        effect = OrderEffect.HURTS
    else:
        effect = OrderEffect.DECIDES if shuffled >= DECIDES * real else OrderEffect.HELPS
    return OrderFinding(effect, curve.slots[at], real, shuffled)


def _most_visible(curve: MissCurve) -> int:
    """Return the place on the curve where the order of requests matters most, or from where on few miss."""
    gaps = [abs(a - b) for a, b in zip(curve.real, curve.shuffled, strict=True)]
    places = _round_places(curve.slots)
    most = max(places, key=lambda i: gaps[i])
    if gaps[most] > GAP:
        return most
    return next((i for i in places if curve.real[i] <= _FEW_MISS), places[-1])


def _round_places(slots: Sequence[int]) -> list[int]:
    """Return the places of powers of two, which people choose from; all of them where there are none."""
    return [i for i, s in enumerate(slots) if s & (s - 1) == 0] or list(range(len(slots)))


def rate_of(facts: TraceFacts) -> Rate:
    """Return how the rate changes from second to second and from minute to minute.

    The variance of a count beyond Poisson's is that of its rate: (dispersion - 1) * mean = (window * deviation)².
    """
    windows = ((facts.dispersion_1s, 1.0, "second"), (facts.dispersion_60s, 60.0, "minute"))
    found = []
    for dispersion, window_s, words in windows:
        noise = max(NOISE, 2 * math.sqrt(2 * window_s / facts.span_s)) if facts.span_s > 0 else math.inf
        if dispersion is not None and dispersion > 1 + noise:
            found.append((math.sqrt((dispersion - 1) / (facts.rate_rps * window_s)), words))
    if found:
        return Rate(RateChange.MOVES, tuple(found))
    known = [dispersion for dispersion, *_ in windows if dispersion is not None]
    return Rate(RateChange.EVEN if known and max(known) < 1 - NOISE else RateChange.CHANCE)


def gaps_of(cv: float) -> Gaps:
    """Return how gaps with this coefficient of variation compare with Poisson's, whose is 1."""
    return next((gaps for below, gaps in _GAPS if cv < below), Gaps.FAR_BURSTIER)


def session_gain(curve: MissCurve) -> SessionGain | None:
    """Return from how many slots on sessions help LRU; None where independent draws overstate misses little."""
    places = _round_places(curve.slots)
    factors = {
        i: curve.shuffled[i] / curve.real[i]
        for i in places
        if curve.real[i] > 0 and curve.shuffled[i] - curve.real[i] >= GAP
    }
    if not factors:
        return None
    most = max(factors, key=lambda i: factors[i])
    first = next((i for i in places if factors.get(i, 0.0) >= DECIDES), None)
    below = [i for i in places if first is not None and i < first]
    if first is None or not below:
        return SessionGain(most, factors[most])
    return SessionGain(most, factors[most], first, below[-1])


def ranked_laws(facts: TraceFacts) -> list[RankedLaws]:
    """Return how well popularity laws fit, by requests and by sessions."""
    found = []
    for of in dict.fromkeys(law.of for law in facts.laws):
        laws = [law for law in facts.laws if law.of == of]
        judged = [(law.law, law.p_value) for law in laws if law.p_value is not None]
        possible = tuple(name for name, p_value in judged if p_value >= LEAST_P)
        found.append(RankedLaws(of, laws[0], laws[0].adapters - facts.adapters, possible, bool(judged)))
    return found


def lengths_together(correlation: float) -> Together:
    """Return how prompt and output lengths go together."""
    if abs(correlation) < _CORRELATED:
        return Together.HARDLY
    return Together.SAME_WAY if correlation > 0 else Together.OPPOSITE


def lengths_by_adapter(share: float) -> bool:
    """Return whether lengths depend on the adapter, by the share of their variance that lies between adapters."""
    return share >= _BETWEEN_ADAPTERS
