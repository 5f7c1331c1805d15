"""What a trace is like, in plain words: the same on the page and on the terminal. Tables are shown separately."""

from __future__ import annotations

import math

from reports.answers.trace_findings import DECIDES, LEAST_ADAPTERS, NOISE, round_places, telling
from reports.answers.trace_fit_findings import GAP
from reports.formatting import number
from reports.text.trace_fit_text import fit_words, off_words
from reports.text.trace_words import about, parameters, plural, spread_words
from sim.results.traces.trace_facts import MissCurve, TraceFacts
from sim.spec.units import human_seconds
from sim.traffic.fits.popularity_fit import LEAST_P


def headline(facts: TraceFacts) -> str:
    """Return the answer in a sentence: what locality does for a cache; without adapters, the rate."""
    if facts.requests == 0:
        return "The trace has no requests."
    curve = facts.curve
    if curve is None or not curve.slots:
        return _rate_headline(facts)
    if facts.adapters == 1:
        return f"One adapter gets all of the {plural(facts.requests, 'request')}: a cache has nothing to decide."
    at = telling(curve)
    slots, real, shuffled = plural(curve.slots[at], "slot"), curve.real[at], curve.shuffled[at]
    # Chance variation of either order: three standard errors of a share.
    chance = 3 * math.sqrt(max(shuffled * (1 - shuffled), 0.0) / facts.requests)
    if abs(shuffled - real) <= max(GAP, chance):
        return (
            f"At {slots} LRU misses {about(real)} of requests, shuffled {about(shuffled)}: their order matters little."
        )
    verdict = "locality decides" if shuffled >= DECIDES * real else "locality helps"
    if real > shuffled:
        verdict = "the order hurts: adapters return just after they were evicted"
    return (
        f"At {slots} LRU misses {about(real)} of requests, but {about(shuffled)} of the same ones shuffled: {verdict}."
    )


def _rate_headline(facts: TraceFacts) -> str:
    if not facts.span_s > 0:
        return f"{plural(facts.requests, 'request')}, all at the same time, so there is no rate."
    rate = f"{number(facts.rate_rps)} requests/s over {human_seconds(facts.span_s)}"
    if _moves(facts):
        return f"{rate}: {_meaning(facts)}."
    if facts.gap_cv is None:
        return f"{rate}: too few to say whether they come in bursts."
    return f"{rate}, with gaps {_gap_words(facts.gap_cv)} those of Poisson arrivals."


def _moves(facts: TraceFacts) -> list[str]:
    """Return the standard deviation of the rate over its mean, beyond chance, by the second and by the minute; none
    where there is none to be seen.

    The variance of a count beyond Poisson's is that of its rate: (dispersion - 1) * mean = (window * deviation)².
    """
    found = []
    for dispersion, window_s, words in ((facts.dispersion_1s, 1.0, "second"), (facts.dispersion_60s, 60.0, "minute")):
        noise = max(NOISE, 2 * math.sqrt(2 * window_s / facts.span_s)) if facts.span_s > 0 else math.inf
        if dispersion is not None and dispersion > 1 + noise:
            moves = math.sqrt((dispersion - 1) / (facts.rate_rps * window_s))
            found.append(f"{about(moves)} from {words} to {words}")
    return found


def sentences(facts: TraceFacts) -> list[str]:
    """Return rate and burstiness, popularity, sessions and how good the fitted traffic is, one short text each."""
    texts = [
        _rate_words(facts),
        _popularity_words(facts),
        _session_words(facts),
        fit_words(facts),
        off_words(facts),
        _skipped_words(facts),
    ]
    return [text for text in texts if text]


def _rate_words(facts: TraceFacts) -> str:
    if facts.requests < 2:
        return ""
    if not facts.span_s > 0:
        return "All requests arrive at the same time, so there is no rate, no burstiness, and no traffic to fit."
    texts = []
    if facts.curve is not None:  # else the headline says it
        texts.append(f"{number(facts.rate_rps)} requests/s over {human_seconds(facts.span_s)}.")
    if facts.gap_cv is not None:
        cv = number(round(facts.gap_cv, 2))
        texts.append(f"Gaps are {_gap_words(facts.gap_cv)} those of Poisson arrivals (cv {cv}; Poisson: 1).")
    counted = [
        f"{number(round(dispersion, 2))} by the {words}"
        for dispersion, words in ((facts.dispersion_1s, "second"), (facts.dispersion_60s, "minute"))
        if dispersion is not None
    ]
    if counted:
        text = f"Counts have an index of dispersion of {spread_words(counted)} (Poisson: 1)"
        texts.append(text + (f": {_meaning(facts)}." if facts.curve is not None else "."))
    return " ".join(texts)


def _meaning(facts: TraceFacts) -> str:
    found = _moves(facts)
    if found:
        return f"beyond chance, the rate moves by {spread_words(found)}"
    known = [d for d in (facts.dispersion_1s, facts.dispersion_60s) if d is not None]
    return "less than chance" if max(known) < 1 - NOISE else "no more than chance at that scale"


def _gap_words(cv: float) -> str:
    bands = (
        (0.5, "much more even than"),
        (0.85, "more even than"),
        (1.15, "about as uneven as"),
        (1.5, "somewhat burstier than"),
        (3.0, "burstier than"),
    )
    return next((words for below, words in bands if cv < below), "far burstier than")


def _popularity_words(facts: TraceFacts) -> str:
    found = facts.concentration
    if found is None or facts.adapters < 2:
        return ""
    if facts.adapters < LEAST_ADAPTERS:
        shares = f"The hottest of {facts.adapters} adapters gets {about(found['top_1pct'])} of requests"
    else:
        one, ten, twenty = (about(found[f"top_{part}pct"]) for part in (1, 10, 20))
        shares = (
            f"The hottest 1 % of {number(facts.adapters)} adapters get {one} of requests, 10 % get {ten}, 20 % {twenty}"
        )
    return f"{shares}: about as spread out as {number(found['effective_adapters'])} equally popular adapters."


def _session_words(facts: TraceFacts) -> str:
    sessions = facts.sessions
    if sessions is None or facts.curve is None or facts.adapters < 2 or not facts.span_s > 0:
        return ""
    requests = f"{number(sessions.requests_mean)} requests"
    if sessions.pause_s is None:
        text = f"{number(sessions.at_a_time)} sessions of {requests} are under way at a time."
    else:
        text = (
            f"With pauses of an adapter up to {human_seconds(sessions.pause_s)}, sessions have {requests}, and "
            f"{number(sessions.at_a_time)} are under way at a time."
        )
    return f"{text} {_order_words(facts.curve)}"


def _order_words(curve: MissCurve) -> str:
    """Return from how many slots on sessions help LRU, and how far independent draws are off there."""
    places = round_places(curve.slots)
    factors = {
        i: curve.shuffled[i] / curve.real[i]
        for i in places
        if curve.real[i] > 0 and curve.shuffled[i] - curve.real[i] >= GAP
    }
    if not factors:
        return "Independent draws overstate misses little, whatever the number of slots."
    most = max(factors, key=lambda i: factors[i])
    overstate = f"independent draws overstate misses up to {factors[most]:.1f} times"
    overstate += f" ({plural(curve.slots[most], 'slot')})"
    first = next((i for i in places if factors.get(i, 0.0) >= DECIDES), None)
    below = [i for i in places if first is not None and i < first]
    if first is None or not below:
        return f"{overstate[0].upper()}{overstate[1:]}."
    at = below[-1]
    return (
        f"Below {plural(curve.slots[first], 'slot')} LRU gains less from sessions "
        f"(at {plural(curve.slots[at], 'slot')} {about(curve.real[at])} miss, {about(curve.shuffled[at])} shuffled); "
        f"from there on {overstate}."
    )


def _skipped_words(facts: TraceFacts) -> str:
    left_out = sum(facts.skipped.values())
    if not left_out:
        return ""
    share = left_out / (left_out + facts.requests)
    return (
        f"{plural(left_out, 'row')} ({about(share)}) could not be used and {'is' if left_out == 1 else 'are'} left out."
    )


def laws_sentences(facts: TraceFacts) -> list[str]:
    """Return how well popularity laws fit, by requests and by sessions."""
    texts = []
    for of in dict.fromkeys(law.of for law in facts.laws):
        laws = [law for law in facts.laws if law.of == of]
        best, judged = laws[0], [law for law in laws if law.p_value is not None]
        possible = [law.law for law in judged if law.p_value is not None and law.p_value >= LEAST_P]
        likeliest = f"{best.law} ({parameters(best)})" if best.parameters else best.law
        text = f"By {of}: likeliest is {likeliest}, off by up to {about(best.distance)} of {of}."
        unseen = best.adapters - facts.adapters
        if unseen > 0:
            text += f" Many were seen only once, so there are probably about {plural(unseen, 'adapter')} more."
        if possible:
            text += f" This ranking may come from {spread_words(possible)}."
        elif judged:
            text += " No law fits this ranking; `law: weights` takes the shares as they are."
        texts.append(text)
    return texts


def lengths_sentences(facts: TraceFacts) -> list[str]:
    """Return how lengths go together: prompt with output, and within an adapter."""
    texts = []
    together = facts.length_correlation
    if together is not None:
        words = "are hardly correlated"
        if abs(together) >= 0.1:
            words = "grow together" if together > 0 else "move in opposite directions"
        texts.append(f"Prompt and output lengths {words} (correlation of their normal scores: {_signed(together)}).")
    between = facts.length_by_adapter
    if between is not None and facts.adapters > 1:
        texts.append(
            f"Lengths depend on the adapter: {about(between)} of their variance lies between adapters."
            if between >= 0.05
            else f"Lengths hardly depend on the adapter: {about(between)} of their variance lies between adapters."
        )
    return texts


def _signed(value: float) -> str:
    """Return a correlation in two decimals, with a true minus."""
    text = f"{value:.2f}"
    return "0" if float(text) == 0 else text.replace("-", "−")
