"""Diagnoses a trace (burstiness, popularity, locality) and fits traffic to a part of it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats
from sim.policies.replay.lru_curve import lru_curve, lru_orders
from sim.studies.trace.facts import (
    BurstFacts,
    Candidate,
    CheckedValue,
    FitCheck,
    LawRow,
    MissCurve,
    SessionFacts,
    TraceFacts,
    is_much_silence,
)
from sim.studies.trace.fits import (
    TraceSpan,
    TrafficModel,
    TrafficSampler,
    curves,
    independent,
    models,
    number_of_models,
    plain_law,
)
from sim.traffic.fits.describe import (
    Burst,
    SessionTable,
    by_adapter,
    correlation,
    counts_in,
    dispersion,
    find_bursts,
    find_silences,
    gap_cv,
    quantiles,
    sessions_by_gap,
    without_bursts,
)
from sim.traffic.fits.popularity_fit import fit_popularity
from sim.traffic.popularity import concentration
from sim.traffic.shared_text import repeated_tokens
from sim.traffic.traces.data import silence_s
from sim.traffic.traces.read import TraceData

Ints = NDArray[np.integer]
Progress = Callable[[int, int], None]

SEED = 1
"""Of shuffles and of the generated traffic: the same trace gives the same answer."""
PAUSE_S = 1800.0
"""The pause that ends a session where neither the trace nor the fit gives one: half an hour, as in GenTD26."""
LEAST_FITTED = 200
"""Requests, at least, in a part of the trace to fit traffic to."""
HIGHEST_RATE = 1e9
"""Requests per second, the most that a scenario allows."""
MOST_FITTED = 400_000
"""Requests used of either part, the first ones. More would change the third digit."""
NEARLY = 0.002
"""A simpler model is preferred if it is at most this much farther off than the best: that is chance."""
BY_BURSTS = 0.01
"""A model that has the bursts and silences of a trace may be this much farther off than one that lacks them."""
OF_ONE = 0.5
"""A burst is one adapter's if its share of the requests is this much larger there than elsewhere."""
MOST_SESSIONS, MOST_LENGTHS = 2_000_000, 1_000_000
"""Requests used to find sessions (the first ones) and to correlate lengths (evenly spread); saves memory on long
traces."""
_SPANS = 240


@dataclass(frozen=True, slots=True)
class TraceStudy:
    """The diagnosis of a trace, and the traffic fitted to it.

    :ivar model: the best candidate, or None where nothing could be fitted; ``part``: the fitted part.
    :ivar bursts: of the whole trace, with its silences where they are long.
    """

    facts: TraceFacts
    model: TrafficModel | None
    part: TraceSpan | None = None
    bursts: tuple[Burst, ...] = ()


def study_trace(
    trace: TraceData, file: str, *, fit_share: float, seed: int = SEED, progress: Progress = lambda done, total: None
) -> TraceStudy:
    """Diagnose a trace and fit traffic to its first part.

    Requests to the base model count for rates, bursts and lengths. Popularity, locality, sessions and the fitted
    traffic are those of the others.

    :param fit_share: share of its time to fit; 1: all of it, so that nothing is left to check the fit on.
    """
    times, prompt, output = trace.arrival_s, trace.prompt_tokens, trace.output_tokens
    requests, base_share = len(trace), trace.base_share
    shares_text = _shared_text_note(trace)
    trace = trace.for_adapters()
    adapter = trace.adapter
    span = float(times[-1]) if len(times) else 0.0
    model, part, check = None, None, None
    notes = list(trace.notes)
    pause = PAUSE_S
    gaps = np.diff(times)
    silence = silence_s(requests, span) if requests > 1 else math.inf
    silent = gaps[gaps > silence]
    silences = find_silences(times, silence) if is_much_silence(float(silent.sum()), span) else ()
    bursts = find_bursts(times, silences)
    unusual = tuple(sorted((*bursts, *silences), key=lambda each: each.begin_s))
    if span > 0:
        model, part, check, found, why = _fit(trace, span, unusual, fit_share, seed, progress)
        notes += why
        pause = found or pause
    notes += shares_text
    some = slice(None, None, max(1, requests // MOST_LENGTHS))
    if adapter is not None and len(trace) > MOST_SESSIONS:
        notes.append(f"sessions are those of the first {MOST_SESSIONS:,} requests")
    asked = None if adapter is None else np.bincount(adapter, minlength=len(trace.names))
    sessions, table = _sessions(trace, span, pause)
    in_sessions = trace.session is not None or (model is not None and model.pause_s is not None)
    facts = TraceFacts(
        file=file,
        requests=requests,
        base_share=base_share,
        adapters=len(trace.names),
        span_s=span,
        rate_rps=requests / span if span > 0 else 0.0,
        gap_cv=gap_cv(times),
        dispersion_1s=dispersion(times, 1.0),
        dispersion_60s=dispersion(times, 60.0),
        longest_gap_s=float(gaps.max(initial=0.0)),
        silences=len(silent),
        silent_s=float(silent.sum()),
        prompt=None if prompt is None else quantiles(prompt),
        output=None if output is None else quantiles(output),
        length_correlation=None if prompt is None or output is None else correlation(prompt[some], output[some]),
        length_by_adapter=None if adapter is None else _length_by_adapter(trace, adapter),
        concentration=None if asked is None else concentration(asked),
        laws=_laws(asked, table if in_sessions else None, seed),
        sessions=sessions,
        curve=None if adapter is None else _curve(adapter, seed),
        timeline=_timeline(times, span),
        fit=check,
        skipped=dict(trace.skipped),
        notes=notes,
        begins_at=trace.begins_at,
        bursts=[_burst_facts(burst, times, trace) for burst in bursts],
        fit_has_bursts=bool(unusual) and model is not None and model.carries_bursts,
    )
    return TraceStudy(facts, model, part, unusual)


def _burst_facts(burst: Burst, times: Floats, trace: TraceData) -> BurstFacts:
    first, last = np.searchsorted(times, (burst.begin_s, burst.end_s), side="left").tolist()
    rate = (last - first) / (burst.end_s - burst.begin_s)
    hottest, share = "", 0.0
    first, last = np.searchsorted(trace.arrival_s, (burst.begin_s, burst.end_s), side="left").tolist()
    if trace.adapter is not None and last > first and len(trace.names) > 1:
        asked = np.bincount(trace.adapter, minlength=len(trace.names))
        inside = np.bincount(trace.adapter[first:last], minlength=len(trace.names))
        shares, usual = inside / inside.sum(), (asked - inside) / max(int((asked - inside).sum()), 1)
        most = int(np.argmax(shares - usual))
        if shares[most] - usual[most] >= OF_ONE:
            hottest, share = trace.names[most], float(shares[most])
    return BurstFacts(burst.begin_s, burst.end_s, rate, burst.times, hottest, share)


def _length_by_adapter(trace: TraceData, adapter: NDArray[np.int32]) -> float | None:
    """Return the share of the variance of lengths that lies between adapters."""
    if trace.prompt_tokens is None or trace.output_tokens is None:
        return None
    some = slice(None, None, max(1, len(trace) // MOST_LENGTHS))
    return by_adapter(trace.prompt_tokens[some], trace.output_tokens[some], adapter[some])


def curve_slots(adapters: int) -> list[int]:
    """Return the slots of the curves: powers of the square root of two, below the number of adapters."""
    halves = {round(2 ** (power / 2)) for power in range(2 * max(adapters, 1).bit_length() + 1)}
    return sorted({slots for slots in halves if slots < adapters} or {1})


def _curve(adapter: NDArray[np.int32], seed: int) -> MissCurve:
    slots = curve_slots(int(adapter.max()) + 1)
    weights = np.ones(int(adapter.max()) + 1, dtype=np.int64)
    orders, _, _ = lru_orders(adapter, weights, np.array(slots), seed)
    return MissCurve(slots, orders.real.tolist(), orders.shuffled.tolist(), orders.independent.tolist())


def _laws(asked: Ints | None, sessions: SessionTable | None, seed: int) -> list[LawRow]:
    if asked is None:
        return []
    ranked: list[tuple[str, Ints]] = [("requests", asked)]
    if sessions is not None:
        ranked.append(("sessions", np.bincount(sessions.adapter)))
    rows = []
    for of, counts in ranked:
        for fit in fit_popularity(counts.astype(np.int64), seed):
            parameters = {name: value for name, value in plain_law(fit.law).items() if name != "law"}
            rows.append(LawRow(fit.law.law, parameters, fit.aic, fit.distance, fit.p_value, of, fit.adapters))
    return rows


def _sessions(trace: TraceData, span: float, longest: float) -> tuple[SessionFacts | None, SessionTable | None]:
    if trace.adapter is None:
        return None, None
    named = trace.session is not None
    pause = None if named else longest
    times, adapter = trace.arrival_s[:MOST_SESSIONS], trace.adapter[:MOST_SESSIONS]
    span = min(span, float(times[-1]))
    found = sessions_by_gap(times, adapter, pause) if pause is not None else trace.session
    assert found is not None, "named or found"
    table = SessionTable(times, adapter, found[:MOST_SESSIONS])
    gaps = table.gaps_s
    facts = SessionFacts(
        named,
        pause,
        len(table),
        table.at_a_time(span),
        float(table.requests.mean()),
        float(np.median(gaps)) if len(gaps) else None,
        float(np.quantile(gaps, 0.99)) if len(gaps) else None,
    )
    return facts, table


def _timeline(times: Floats, span: float) -> dict[str, list[float]]:
    if not span > 0:
        return {"t_s": [], "rate_rps": []}
    spans = min(_SPANS, max(1, len(times) // 20))
    width = span / spans
    counts = counts_in(times, 0.0, width, spans)
    return {"t_s": ((np.arange(spans) + 0.5) * width).tolist(), "rate_rps": (counts / width).tolist()}


def _shared_text_note(trace: TraceData) -> list[str]:
    """Return a note on what a fitted scenario leaves out, if the trace says what its requests share."""
    if trace.text is None or trace.prompt_tokens is None:
        return []
    repeated = repeated_tokens(trace.text, trace.adapter) / int(trace.prompt_tokens.sum())
    whose = "" if trace.adapter is None else " for the same adapter"
    return [
        f"{repeated:.1%} of its prompt tokens repeat the beginning of an earlier prompt{whose}; requests of the fitted "
        "scenario share no text: to keep what they share, replay the trace (workload.trace)"
    ]


def _fit(
    trace: TraceData, span: float, bursts: tuple[Burst, ...], share: float, seed: int, progress: Progress
) -> tuple[TrafficModel | None, TraceSpan | None, FitCheck | None, float | None, list[str]]:
    """Return the best model, what it was fitted to, its check, the pause that ends its sessions, and notes."""
    cut = span * share
    adapter = trace.adapter if trace.adapter is not None else np.zeros(len(trace.arrival_s), dtype=np.int32)
    count = max(len(trace.names), 1)
    first = _part(trace, bursts, adapter, count, 0.0, cut)
    second = _part(trace, bursts, adapter, count, cut, span)
    if not _usable(first):
        few = f"no traffic is fitted: {len(first)} of at least {LEAST_FITTED} requests are in the fitted part"
        if len(first) >= LEAST_FITTED:
            few = "no traffic is fitted: the requests of the fitted part arrive at one instant"
        return None, None, None, None, [few]
    slots = [] if trace.adapter is None else curve_slots(count)
    with tempfile.TemporaryDirectory() as folder:
        sampler = TrafficSampler(Path(folder), seed)
        best, candidates, pause = _best(first, bool(bursts), slots, sampler, progress)
        if share >= 1 or not _usable(second):
            check = None
            if share < 1:
                sizes = len(first), len(second)
                check = FitCheck(first.span_s / span, *sizes, best.name, candidates, [], [], [], [], [])
            return best, first, check, pause, ["nothing is left to check the fitted traffic on"]
        check = _check(trace, (first, second), (best, candidates), slots, first.span_s / span, sampler)
    return best, first, check, pause, []


def _usable(part: TraceSpan) -> bool:
    """Return whether a part has enough requests, and not all at one instant."""
    return len(part) >= LEAST_FITTED and len(part) <= HIGHEST_RATE * part.span_s


def _part(
    trace: TraceData, bursts: tuple[Burst, ...], adapter: Ints, count: int, begin: float, end: float
) -> TraceSpan:
    """Return the requests from ``begin`` to ``end``, the first ``MOST_FITTED`` of them."""
    low, high = np.searchsorted(trace.arrival_s, (begin, end), side="left").tolist()
    if end >= float(trace.arrival_s[-1]):
        high = len(trace)
    if high - low > MOST_FITTED:
        high = low + MOST_FITTED
        end = float(trace.arrival_s[high - 1])
    session = None if trace.session is None or trace.adapter is None else trace.session[low:high]
    rows = slice(low, high)
    within = tuple(
        Burst(max(burst.begin_s, begin) - begin, min(burst.end_s, end) - begin, burst.times)
        for burst in bursts
        if burst.begin_s < end and burst.end_s > begin
    )
    times = trace.arrival_s[rows] - begin
    if len(without_bursts(times, within)) < 2:  # those of the base model made them
        within = ()
    return TraceSpan(rows, times, adapter[rows], session, end - begin, count, within)


def _best(
    part: TraceSpan, unusual: bool, slots: list[int], sampler: TrafficSampler, progress: Progress
) -> tuple[TrafficModel, list[Candidate], float | None]:
    if not slots:
        return independent(part), [], None
    real = curves(part.adapter, slots)
    found: list[tuple[float, TrafficModel]] = []
    total = number_of_models(part)
    for number, model in enumerate(models(part)):
        progress(number, total)
        found.append((sampler.curves(model, part, slots).difference(real), model))
    least = min(error for error, _ in found)
    carry = [each for each in found if each[1].carries_bursts and each[0] <= least + BY_BURSTS] if unusual else []
    near = carry or found
    least = min(error for error, _ in near)
    best = next(model for error, model in near if error <= least + NEARLY)
    in_sessions = min((p for p in found if p[1].name.startswith("sessions")), key=lambda p: p[0], default=None)
    pause = None if in_sessions is None else in_sessions[1].pause_s
    return best, [Candidate(model.name, model.words, error) for error, model in found], pause


def _check(
    trace: TraceData,
    parts: tuple[TraceSpan, TraceSpan],
    fitted: tuple[TrafficModel, list[Candidate]],
    slots: list[int],
    share: float,
    sampler: TrafficSampler,
) -> FitCheck:
    (first, second), (best, candidates) = parts, fitted
    real = synthetic = drawn = np.empty(0)
    if slots:
        real = lru_curve(second.adapter).miss_ratios(slots)
        synthetic = sampler.curves(best, second, slots).lru
        drawn = sampler.curves(independent(first), second, slots).lru
    made, asked, covered_s = sampler.requests(best, second)
    values = [CheckedValue("requests/s", len(second) / second.span_s, len(made) / covered_s, "1/s")]
    for name, measure in (
        ("cv of gaps", gap_cv),
        ("dispersion in 1 s", lambda times: dispersion(times, 1.0)),
        ("dispersion in 60 s", lambda times: dispersion(times, 60.0)),
    ):
        of_trace, of_made = measure(second.times), measure(made)
        if of_trace is not None and of_made is not None:
            values.append(CheckedValue(name, of_trace, of_made))
    if slots:
        hottest = [_hottest(found, second.count) for found in (second.adapter, asked)]
        effective = [concentration(np.bincount(found))["effective_adapters"] for found in (second.adapter, asked)]
        values.append(CheckedValue("effective adapters", effective[0], effective[1]))
        values.append(CheckedValue("requests of the hottest 10 %", hottest[0], hottest[1], "1"))
    for name, tokens in (("prompt", trace.prompt_tokens), ("output", trace.output_tokens)):
        if tokens is not None:  # synthetic requests repeat the lengths of the first part
            before, after = quantiles(tokens[first.rows]), quantiles(tokens[second.rows])
            values += [CheckedValue(f"{name} {key}", after[key], before[key], "tokens") for key in ("mean", "p99")]
    return FitCheck(
        share,
        len(first),
        len(second),
        best.name,
        candidates,
        slots,
        real.tolist(),
        synthetic.tolist(),
        drawn.tolist(),
        values,
    )


def _hottest(adapter: Ints, count: int) -> float:
    """Return the share of the hottest tenth of all ``count`` adapters, whether requested or not."""
    asked = np.sort(np.bincount(adapter))[::-1]
    return float(asked[: max(1, round(count / 10))].sum()) / max(1, int(asked.sum()))
