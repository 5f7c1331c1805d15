"""What ``loraplan trace`` found: plain values, for the terminal, JSON and the page."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

_MUCH_SILENCE = 0.1
"""Share of a trace's time from which silences are no part of its rate."""


def is_much_silence(silent_s: float, span_s: float) -> bool:
    """Return whether silences lower a rate so far that they are no part of it."""
    return _MUCH_SILENCE * span_s <= silent_s < span_s


@dataclass(frozen=True, slots=True)
class MissCurve:
    """Miss ratios of LRU by slots, from an empty cache; all lists have the same length.

    :ivar real: in the order of the trace; ``shuffled``: the same requests in a random order.
    :ivar independent: Che's approximation of independent draws with the trace's popularity.
    """

    slots: list[int]
    real: list[float]
    shuffled: list[float]
    independent: list[float]


@dataclass(frozen=True, slots=True)
class LawRow:
    """A popularity law fitted to the trace.

    :ivar parameters: by name; ``distance`` and ``p_value``: see ``sim.traffic.fits.popularity_fit``.
    :ivar of: what was ranked: ``requests`` or ``sessions``.
    :ivar adapters: how many the law is over, those included that seem to be there but were not seen.
    """

    law: str
    parameters: dict[str, float]
    aic: float
    distance: float
    p_value: float | None
    of: str = "requests"
    adapters: int = 0


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """Sessions of the trace, named by it or found by pauses.

    :ivar named: whether the trace has a ``session_id``; else a session ends where its adapter pauses longer than
        ``pause_s``.
    :ivar at_a_time: sessions under way, on average.
    """

    named: bool
    pause_s: float | None
    sessions: int
    at_a_time: float
    requests_mean: float
    gap_median_s: float | None
    gap_p99_s: float | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model of traffic fitted to the first part, and how far it is from that part.

    :ivar error: mean absolute difference of miss ratios over the slots of the curve, of LRU and of a cache that always
        holds the hottest adapters; None where nothing can miss.
    """

    name: str
    words: str
    error: float | None


@dataclass(frozen=True, slots=True)
class CheckedValue:
    """One value of the second part of the trace, next to that of synthetic traffic."""

    name: str
    trace: float
    synthetic: float
    unit: str = ""


@dataclass(frozen=True, slots=True)
class FitCheck:
    """The fitted traffic, checked on the part that it has not seen.

    :ivar share: share of the trace's time that was fitted; ``requests_fitted``, ``requests_checked``: of the two parts.
    :ivar chosen: name of the best candidate.
    :ivar slots, real, synthetic, independent: miss ratios of LRU on the second part: of the trace, of the fitted
        traffic and of independent draws with the first part's popularity; empty where the trace names no adapters.
    :ivar values: rates, burstiness and lengths of the second part.
    """

    share: float
    requests_fitted: int
    requests_checked: int
    chosen: str
    candidates: list[Candidate]
    slots: list[int]
    real: list[float]
    synthetic: list[float]
    independent: list[float]
    values: list[CheckedValue]

    def worst(self) -> tuple[int, float] | None:
        """Return the slots at which synthetic and real miss ratios differ most, and by how much."""
        if not self.slots:
            return None
        differences = [abs(a - b) for a, b in zip(self.synthetic, self.real, strict=True)]
        return self.slots[differences.index(max(differences))], max(differences)


@dataclass(frozen=True, slots=True)
class BurstFacts:
    """A stretch of time with far more requests than usual.

    :ivar begin_s, end_s: from the first request of the trace on; ``times``: its rate over that outside of
        bursts and long silences.
    :ivar hottest: the adapter whose burst it is, with its share of the requests in it; empty: that of many.
    """

    begin_s: float
    end_s: float
    rate_rps: float
    times: float
    hottest: str = ""
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class TraceFacts:
    """All that is known of a trace.

    :ivar gap_cv: of the gaps; ``dispersion_1s``, ``dispersion_60s``: variance over mean of the requests in such
        windows. None: too few to say.
    :ivar prompt, output: ``mean``, ``p50``, ``p90``, ``p99``, ``max`` in tokens; None where the trace has no lengths.
    :ivar concentration: ``top_1pct``, …, ``effective_adapters``; None, like ``curve``, where it names no adapters.
    :ivar silences: gaps far longer than by chance; ``silent_s``: how long they are in all.
    :ivar timeline: ``t_s`` (middles of equal spans) and ``rate_rps``.
    :ivar skipped: rows left out, by reason.
    :ivar base_share: share of the requests that are for the base model; popularity, locality and sessions are those of
        the others.
    :ivar begins_at: time of the first request in ISO 8601; empty: the times are no dates.
    :ivar bursts: in order; ``fit_has_bursts``: whether the fitted traffic has them, and silences, at the same times.
    """

    file: str
    requests: int
    adapters: int
    span_s: float
    rate_rps: float
    gap_cv: float | None
    dispersion_1s: float | None
    dispersion_60s: float | None
    longest_gap_s: float
    silences: int
    silent_s: float
    prompt: dict[str, float] | None
    output: dict[str, float] | None
    length_correlation: float | None
    length_by_adapter: float | None
    concentration: dict[str, float] | None
    laws: list[LawRow]
    sessions: SessionFacts | None
    curve: MissCurve | None
    timeline: dict[str, list[float]]
    fit: FitCheck | None
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    base_share: float = 0.0
    begins_at: str = ""
    bursts: list[BurstFacts] = field(default_factory=list)
    fit_has_bursts: bool = False

    @property
    def much_silence(self) -> bool:
        """Whether silences lower the rate so far that they are no part of it."""
        return is_much_silence(self.silent_s, self.span_s)

    def to_json(self) -> dict[str, Any]:
        """Return plain data that ``json`` can write."""
        return {"schema_version": 1, **asdict(self)}
