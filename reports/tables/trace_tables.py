"""Tables of what a trace is like, for the page and the terminal."""

from __future__ import annotations

from reports.answers.trace_fit_findings import relative_change
from reports.formatting import number, percent
from reports.table import Table
from reports.text.trace_words import known, parameters, plural, points, shown, with_sign
from sim.results.traces.trace_facts import CheckedValue, FitCheck, LawRow, SessionFacts, TraceFacts
from sim.spec.units import human_seconds
from sim.traffic.fits.popularity_fit import LEAST_P

_CHECKED_SLOTS = (4, 8, 16, 32, 64)
"""Slots at which the terminal's table compares the fitted traffic with the trace."""


def facts_table(facts: TraceFacts) -> Table:
    """Return rate, burstiness, popularity and sessions, each with what it means."""
    rows = [
        ["requests", number(facts.requests), _skipped_words(facts)],
        ["adapters", *([number(facts.adapters), ""] if facts.adapters else ["–", "the trace names none"])],
        ["span", human_seconds(facts.span_s), "from the first request to the last"],
        ["rate", f"{number(facts.rate_rps)}/s" if facts.span_s > 0 else "–", "on average"],
        ["cv of gaps", known(facts.gap_cv), "standard deviation over mean of the gaps between requests; Poisson: 1"],
        ["dispersion, 1 s", known(facts.dispersion_1s), "variance over mean of the requests in a second; Poisson: 1"],
        ["dispersion, 60 s", known(facts.dispersion_60s), "variance over mean of the requests in a minute; Poisson: 1"],
        ["longest gap", human_seconds(facts.longest_gap_s), "without any request"],
    ]
    if facts.base_share > 0:
        rows.insert(2, ["for the base model", percent(facts.base_share), "of requests: they name no adapter"])
    found = facts.concentration
    if found is not None:
        rows += [
            [
                f"hottest {part} %",
                percent(found[f"top_{part}pct"]),
                f"of requests, for {plural(max(1, round(facts.adapters * part / 100)), 'adapter')}",
            ]
            for part in (1, 10, 20)
        ]
        rows.append(
            [
                "effective adapters",
                number(found["effective_adapters"]),
                "exp of the entropy: traffic is as spread out as this many equally popular adapters",
            ]
        )
    if facts.sessions is not None:
        rows += _session_rows(facts.sessions)
    return Table("The trace in numbers", ["", "value", "meaning"], rows, words=(2,))


def _session_rows(sessions: SessionFacts) -> list[list[str]]:
    pause = (
        "named by the trace"
        if sessions.pause_s is None
        else (f"an adapter's requests with pauses up to {human_seconds(sessions.pause_s)}")
    )
    rows = [
        ["sessions", number(sessions.sessions), pause],
        ["sessions at a time", number(sessions.at_a_time), "under way on average, from first to last request"],
        ["requests per session", number(sessions.requests_mean), "on average"],
    ]
    if sessions.gap_median_s is not None and sessions.gap_p99_s is not None:
        rows.append(
            [
                "gap within a session",
                human_seconds(sessions.gap_median_s),
                f"median; p99 {human_seconds(sessions.gap_p99_s)}",
            ]
        )
    return rows


def _skipped_words(facts: TraceFacts) -> str:
    left_out = sum(facts.skipped.values())
    return f"{plural(left_out, 'row')} left out" if left_out else ""


def curve_table(facts: TraceFacts) -> Table | None:
    """Return LRU's miss ratios by slots, in the trace's order and without it."""
    curve = facts.curve
    if curve is None:
        return None
    rows = [
        [number(slots), percent(real), percent(shuffled), percent(draws)]
        for slots, real, shuffled, draws in zip(curve.slots, curve.real, curve.shuffled, curve.independent, strict=True)
    ]
    head = ["slots", "the trace's order", "shuffled", "independent draws*"]
    note = "* Che's approximation in the long run: without the first request of each adapter, which misses at any size."
    return Table("Miss ratio of LRU by slots", head, rows, note)


def laws_table(facts: TraceFacts, of: str | None = None) -> Table | None:
    """Return the popularity laws, the likeliest first.

    :param of: ``requests`` or ``sessions``; None: both.
    """
    laws = [law for law in facts.laws if of in (None, law.of)]
    if not laws:
        return None
    several = len({law.of for law in laws}) > 1
    rows = [
        [
            law.law,
            *([law.of] if several else []),
            parameters(law),
            f"{law.aic:,.1f}",
            percent(law.distance),
            "–" if law.p_value is None else f"{law.p_value:.2g}",
            _verdict(law),
        ]
        for law in laws
    ]
    head = ["law", *(["of"] if several else []), "parameters", "AIC", "distance", "p", "verdict"]
    caption = "Popularity laws, the likeliest first" if several else f"Popularity by {laws[0].of}, likeliest law first"
    return Table(caption, head, rows, words=(1, 2, 6) if several else (1, 5))


def _verdict(law: LawRow) -> str:
    """Return what p says of a law."""
    if law.p_value is None:
        return "not judged"
    return "possible" if law.p_value >= LEAST_P else "ruled out"


def lengths_table(facts: TraceFacts) -> Table | None:
    """Return quantiles of prompt and output tokens."""
    both = (("prompt tokens", facts.prompt), ("output tokens", facts.output))
    rows = [
        [words, *(number(values[key]) for key in ("mean", "p50", "p90", "p99", "max"))]
        for words, values in both
        if values is not None
    ]
    return Table("Tokens per request", ["", "mean", "p50", "p90", "p99", "max"], rows) if rows else None


def check_table(facts: TraceFacts) -> Table | None:
    """Compare the part that was not fitted with the fitted traffic; None where there is nothing to compare."""
    fit = facts.fit
    if fit is None or not (fit.slots or fit.values):
        return None
    rows = _ratio_rows(fit)
    for value in fit.values:
        rows.append(
            [
                value.name,
                shown(value.trace, value.unit),
                shown(value.synthetic, value.unit),
                *(["–"] if fit.slots else []),
                _relative(value),
            ]
        )
    head = ["", "trace", "fitted traffic", *(["independent draws"] if fit.slots else []), "fitted − trace"]
    note = f"Trace: the {plural(fit.requests_checked, 'request')} that the fit did not use."
    if any(value.unit == "tokens" for value in fit.values):
        note += " Tokens: fitted traffic draws those of the first part again."
    return Table("Fitted traffic and the rest of the trace", head, rows, note)


def _ratio_rows(fit: FitCheck) -> list[list[str]]:
    at = {slots: index for index, slots in enumerate(fit.slots)}
    return [
        [
            f"miss ratio, {plural(slots, 'slot')}",
            percent(fit.real[at[slots]]),
            percent(fit.synthetic[at[slots]]),
            percent(fit.independent[at[slots]]),
            points(fit.synthetic[at[slots]] - fit.real[at[slots]]),
        ]
        for slots in ([s for s in _CHECKED_SLOTS if s in at] or fit.slots[:1])
    ]


def candidates_table(facts: TraceFacts) -> Table | None:
    """Return the models that were tried, the closest first."""
    fit = facts.fit
    if fit is None or not fit.candidates:
        return None
    order = sorted(fit.candidates, key=lambda c: float("inf") if c.error is None else c.error)
    rows = [
        [
            f"{c.name} (chosen)" if c.name == fit.chosen else c.name,
            c.words,
            "–" if c.error is None else f"{c.error * 100:.1f} points",
        ]
        for c in order
    ]
    note = (
        "Difference: of miss ratios between a model's traffic and the part it was fitted to, mean over the slots of "
        "the curve, of LRU and of a cache that always holds the hottest adapters. Choosing used that part alone."
    )
    return Table("Models of traffic that were tried", ["model", "in words", "difference"], rows, note, words=(1,))


def _relative(value: CheckedValue) -> str:
    found = relative_change(value)
    return "–" if found is None else with_sign(f"{found * 100:+.0f}", " %")
