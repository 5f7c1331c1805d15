"""Models of traffic fitted to a part of a trace: independent draws, adapters in bursts, sessions.

Each candidate is the ``workload`` section of a scenario. Its requests are compared with the part it was fitted to by
two miss curves: LRU's shows locality, that of a cache which always holds the hottest adapters shows popularity. The
best candidate is then checked against the rest of the trace (``study``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats
from sim.cells import csv_text, text_cell
from sim.policies.replay.lru_curve import lru_curve
from sim.spec.scenario import Scenario
from sim.spec.sections.traffic_laws import Popularity
from sim.spec.units import human_seconds
from sim.traffic.fits.describe import Burst, SessionTable, sessions_by_gap, without_bursts
from sim.traffic.fits.gaps import GapFit, cvs_by_adapter, fit_gaps, fit_modulation
from sim.traffic.fits.popularity_fit import LEAST_P, likeliest
from sim.traffic.generate import Traffic

Ints = NDArray[np.integer]

PAUSES_S = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 900.0, 1800.0, 3600.0)
"""Pauses that may end a session where the trace names none."""
LEAST_SESSIONS = 100
"""Sessions, at least, to fit a law to."""
_REPLICATIONS = 2
_MOST_MADE, _ALWAYS_MADE = 10, 100_000
"""A stream ends at this many times the requests of its part, but never before this number: by then the model's rate is
known to be far too high, and the rest would only take time."""


@dataclass(frozen=True, slots=True)
class TraceSpan:
    """A stretch of a trace.

    :ivar rows: its requests in the trace.
    :ivar times: (n,) from 0 at its beginning; ``span_s``: its length.
    :ivar adapter: (n,) index into all of the trace's adapters; ``count``: of these.
    :ivar session: (n,) or None.
    :ivar bursts: those within it and its long silences, from its beginning on.
    """

    rows: slice
    times: Floats
    adapter: Ints
    session: Ints | None
    span_s: float
    count: int
    bursts: tuple[Burst, ...] = ()

    def __len__(self) -> int:
        return len(self.times)

    @property
    def rate(self) -> float:
        """Requests per second outside of bursts and long silences."""
        inside_s = sum(burst.end_s - burst.begin_s for burst in self.bursts)
        return len(without_bursts(self.times, self.bursts)) / (self.span_s - inside_s)


@dataclass(frozen=True, slots=True)
class TrafficModel:
    """A candidate.

    :ivar workload: arrivals outside of bursts, popularity (without the file of its weights) and sessions, as a scenario
        has them.
    :ivar weights: (adapters,) of a weights file, or None; ``cvs`` its third column, or None.
    :ivar adapters: how many there are.
    :ivar pause_s: the pause of an adapter that ends a session, where it was found so.
    """

    name: str
    words: str
    workload: dict[str, Any]
    weights: Floats | None
    cvs: Floats | None
    adapters: int
    pause_s: float | None = None

    @property
    def carries_bursts(self) -> bool:
        """Whether its traffic can have bursts of all adapters at given times."""
        arrivals = self.workload["arrivals"]
        return bool(arrivals["process"] != "mmpp" and arrivals.get("per") != "adapter")

    def with_bursts(self, bursts: Sequence[Burst], span_s: float) -> TrafficModel:
        """Return it with these bursts within ``span_s``, if it can carry them."""
        if not bursts or not self.carries_bursts:
            return self
        steps, at = [], 0.0
        for burst in bursts:
            begin = max(burst.begin_s, at)  # an instant that is taken to last may reach into a silence
            steps += [(begin - at, 1.0), (burst.end_s - begin, burst.times)]
            at = burst.end_s
        steps = [(time, level) for time, level in [*steps, (span_s - at, 1.0)] if time > 0]
        calm = self.workload["arrivals"]
        arrivals = {
            "process": "piecewise",
            "rate": _rate(float(calm["rate"].removesuffix("/s")) * sum(time * level for time, level in steps) / span_s),
            **({"cv": calm["cv"]} if "cv" in calm else {}),
            "steps": [{"time": _seconds(time), "level": _number(level)} for time, level in steps],
        }
        return replace(self, workload={**self.workload, "arrivals": arrivals})


def models(part: TraceSpan) -> Iterator[TrafficModel]:
    """Fit every kind of model to a part of a trace; the simplest first."""
    yield independent(part)
    for process in ("weibull", "gamma"):
        yield _bursts(part, process)
    if part.session is not None:
        yield _in_sessions(part, part.session, "sessions", "sessions as the trace names them")
        return
    for pause in _pauses(part):
        found = sessions_by_gap(part.times, part.adapter, pause)
        words = f"sessions that end where an adapter pauses longer than {human_seconds(pause)}"
        name = f"sessions-{human_seconds(pause).replace(' ', '')}"
        yield replace(_in_sessions(part, found, name, words), pause_s=pause)


def number_of_models(part: TraceSpan) -> int:
    """Return how many models ``models`` gives."""
    return 4 if part.session is not None else 3 + len(_pauses(part))


def _pauses(part: TraceSpan) -> list[float]:
    return [pause for pause in PAUSES_S if pause < part.span_s / 20]


def independent(part: TraceSpan) -> TrafficModel:
    """Return the model in which every request draws its adapter independently, with the frequencies of the part."""
    arrivals = _arrivals(without_bursts(part.times, part.bursts), part)
    asked = np.bincount(part.adapter, minlength=part.count).astype(np.float64)
    words = "every request draws its adapter independently"
    return TrafficModel("independent", words, {"arrivals": arrivals}, asked, None, part.count)


def _bursts(part: TraceSpan, process: str) -> TrafficModel:
    cvs = cvs_by_adapter(part.times, part.adapter, part.count, process)
    asked = np.bincount(part.adapter, minlength=part.count).astype(np.float64)
    arrivals = {
        "process": process,
        "rate": _rate(len(part) / part.span_s),
        "cv": _number(float(np.median(cvs))),
        "per": "adapter",
    }
    words = f"every adapter's requests come on their own, with {process.capitalize()} gaps"
    return TrafficModel(f"bursts-{process}", words, {"arrivals": arrivals}, asked, cvs, part.count)


def _in_sessions(part: TraceSpan, session: Ints, name: str, words: str) -> TrafficModel:
    table = SessionTable(part.times, part.adapter, session)
    begun, whole = _inner(table, part.span_s)
    begins = without_bursts(table.begin_s[begun], part.bursts)
    workload: dict[str, Any] = {"arrivals": _arrivals(begins, part)}
    workload["sessions"] = _session_law(table.requests[whole], table.gaps_s)
    asked = np.bincount(table.adapter, minlength=part.count)
    law = likeliest(asked)
    if law.p_value is not None and law.p_value >= LEAST_P:
        workload["popularity"] = plain_law(law.law)
        return TrafficModel(name, words, workload, None, None, law.adapters)
    return TrafficModel(name, words, workload, asked.astype(np.float64), None, part.count)


def _inner(table: SessionTable, span_s: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which sessions began in the part, and which of them also ended in it.

    A session with an early first request may have begun before the part, and seems shorter; likewise at the end. Where
    too few would be left, all are taken.
    """
    gap = float(np.quantile(table.gaps_s, 0.99)) if len(table.gaps_s) else 0.0
    lasting = float(np.quantile(table.end_s - table.begin_s, 0.99))
    begun = table.begin_s > gap
    whole = begun & (table.begin_s < span_s - lasting)
    if whole.sum() < LEAST_SESSIONS:
        whole = np.ones(len(table), dtype=bool)
    return (begun if begun.sum() >= LEAST_SESSIONS else np.ones(len(table), dtype=bool)), whole


def plain_law(law: Popularity) -> dict[str, Any]:
    """Return a law's fields as numbers, without their units."""
    return {name: getattr(law, name) for name in type(law).model_fields}


def _session_law(sizes: NDArray[np.integer], gaps: Floats) -> dict[str, Any]:
    mean = float(sizes.mean())
    if not (gaps > 0).any():
        return {"requests": _number(mean), "gap_median": "1 ms", "gap_sigma": 0.0, "gap_max": "1 ms"}
    logs = np.log(np.maximum(gaps, float(gaps[gaps > 0].min()) / 2))
    return {
        "requests": _number(mean),
        "gap_median": _seconds(math.exp(float(logs.mean()))),
        "gap_sigma": _number(min(float(logs.std()), 10.0)),
        "gap_max": _seconds(float(gaps.max())),
    }


def _arrivals(times: Floats, part: TraceSpan) -> dict[str, Any]:
    """Return a process like that of these arrivals, with the rate of a part: outside of bursts, if it can carry them.

    A changing rate explains dispersion over minutes; without one, the law of the gaps is used.
    """
    if len(times) < 2:
        times = part.times
    moving = fit_modulation(times, len(times) / max(float(times[-1] - times[0]), 1e-9))
    if moving is not None:
        states = zip(moving.levels, moving.times_s, strict=True)
        return {
            "process": "mmpp",
            "rate": _rate(len(part) / part.span_s),
            "states": [{"level": _number(level), "time": _seconds(time)} for level, time in states],
        }
    gaps = np.diff(times)
    fit = fit_gaps(gaps) if len(gaps) and gaps.max() > 0 else GapFit("poisson", 1.0, 0.0)
    cv = {} if fit.process == "poisson" else {"cv": _number(fit.cv)}
    return {"process": fit.process, "rate": _rate(part.rate), **cv}


def _rate(rate: float) -> str:
    return f"{rate:.6g}/s"


def _seconds(seconds: float) -> str:
    return f"{seconds:.6g} s"


def _number(value: float) -> float:
    return float(f"{value:.6g}")


def weights_text(model: TrafficModel, names: Sequence[str]) -> str:
    """Return a model's weights file, with every adapter that it requests."""
    assert model.weights is not None, "only a model of weights has a file"
    rows = []
    for index in np.flatnonzero(model.weights > 0).tolist():
        cv = [] if model.cvs is None else [f"{model.cvs[index]:.4g}"]
        rows.append([text_cell(names[index]), f"{model.weights[index]:.8g}", *cv])
    return csv_text(["adapter_id", "weight", *(["cv"] if model.cvs is not None else [])], rows)


def workload_of(model: TrafficModel, weights_file: str) -> dict[str, Any]:
    """Return the workload section of a model, without its end and lengths."""
    if model.weights is None:
        return model.workload
    return {**model.workload, "popularity": {"law": "weights", "file": weights_file}}


@dataclass(frozen=True, slots=True)
class TrafficSampler:
    """Generates the traffic of models through a scenario.

    :ivar folder: for weights files.
    """

    folder: Path
    seed: int

    def requests(self, model: TrafficModel, part: TraceSpan, replication: int = 0) -> tuple[Floats, Ints, float]:
        """Return times and adapters of a model's requests, and the seconds that they cover.

        They have the same bursts as a part of the trace and last as long, unless the model's rate is far too high.
        """
        model = model.with_bursts(part.bursts, part.span_s)
        file = self.folder / f"{model.name}.csv"
        adapters: dict[str, Any] = {}
        if model.weights is None:
            adapters["count"] = model.adapters
        elif not file.exists():
            file.write_text(
                weights_text(model, [str(number) for number in range(len(model.weights))]), encoding="utf-8"
            )
        scenario = Scenario.model_validate(
            {
                "schema_version": 1,
                "name": "fitted",
                "run": {"seed": self.seed},
                "adapters": adapters,
                "workload": {"duration": _seconds(part.span_s), **workload_of(model, str(file))},
            }
        )
        found: list[tuple[Floats, Ints]] = [(np.empty(0), np.empty(0, dtype=np.int64))]
        made, covered_s = 0, part.span_s
        for block in Traffic(scenario, "llama-3.1-8b").arrivals(replication):
            found.append(block)
            made += len(block[0])
            if made > max(_MOST_MADE * len(part), _ALWAYS_MADE):
                covered_s = float(block[0][-1])
                break
        times, asked = (np.concatenate(columns) for columns in zip(*found, strict=True))
        return times, asked, covered_s

    def curves(self, model: TrafficModel, part: TraceSpan, slots: list[int]) -> Curves:
        """Return the curves of a model's requests, mean of a few replications."""
        found = [curves(self.requests(model, part, each)[1], slots) for each in range(_REPLICATIONS)]
        return Curves(np.mean([one.lru for one in found], axis=0), np.mean([one.hottest for one in found], axis=0))


@dataclass(frozen=True, slots=True)
class Curves:
    """Miss ratios at some slots, shape (slots,) each.

    :ivar lru: of LRU from an empty cache; ``hottest``: of a cache that always holds the most requested adapters.
    """

    lru: Floats
    hottest: Floats

    def difference(self, other: Curves) -> float:
        """Return the mean absolute difference of the two kinds of curves: locality and popularity count alike."""
        return float((np.abs(self.lru - other.lru).mean() + np.abs(self.hottest - other.hottest).mean()) / 2)


def curves(adapter: Ints, slots: list[int]) -> Curves:
    """Return the curves of a stream of requests; an empty stream misses always."""
    if not len(adapter):
        return Curves(np.ones(len(slots)), np.ones(len(slots)))
    held = np.cumsum(np.sort(np.bincount(adapter))[::-1]) / len(adapter)
    return Curves(lru_curve(adapter).miss_ratios(slots), 1 - held[np.minimum(slots, len(held)) - 1])
