"""What a trace is like, in plain words: the same on the page and on the terminal. Tables are shown separately."""

from __future__ import annotations

from datetime import datetime, timedelta

from reports.answers.trace_findings import (
    LEAST_ADAPTERS,
    Gaps,
    OrderEffect,
    RateChange,
    Together,
    gaps_of,
    lengths_by_adapter,
    lengths_together,
    order_finding,
    ranked_laws,
    rate_of,
    session_gain,
)
from reports.answers.trace_fit_findings import Trust, closed_gap, off_values, relative_change, trust_in
from reports.formatting import number, popular_words
from reports.text.trace_words import about, parameters, plural, shown, spread_words, with_sign
from sim.results.traces.trace_facts import FitCheck, MissCurve, TraceFacts
from sim.spec.units import human_seconds

_EFFECT_WORDS = {
    OrderEffect.HELPS: "locality helps",
    OrderEffect.DECIDES: "locality decides",
    OrderEffect.HURTS: "the order hurts: adapters return just after they were evicted",
}
_GAP_WORDS = {
    Gaps.MUCH_MORE_EVEN: "much more even than",
    Gaps.MORE_EVEN: "more even than",
    Gaps.LIKE_POISSON: "about as uneven as",
    Gaps.SOMEWHAT_BURSTIER: "somewhat burstier than",
    Gaps.BURSTIER: "burstier than",
    Gaps.FAR_BURSTIER: "far burstier than",
}
_TOGETHER_WORDS = {
    Together.HARDLY: "are hardly correlated",
    Together.SAME_WAY: "grow together",
    Together.OPPOSITE: "move in opposite directions",
}


def headline(facts: TraceFacts) -> str:
    """Return the answer: a burst, if there is one; then what locality does for a cache, or the rate."""
    return " ".join(filter(None, (_burst_words(facts), _main_finding(facts))))


def _burst_words(facts: TraceFacts) -> str:
    if not facts.bursts:
        return ""
    most = max(facts.bursts, key=lambda burst: burst.times)
    which = f", the highest of {len(facts.bursts)} bursts" if len(facts.bursts) > 1 else ""
    if facts.begins_at:
        start = datetime.fromisoformat(facts.begins_at)
        first, last = (start + timedelta(seconds=seconds) for seconds in (most.begin_s, most.end_s))
        day = f" on {first:%Y-%m-%d}" if facts.span_s > 86400 else ""
        when = f"From {first:%H:%M:%S} to {last:%H:%M:%S}{' UTC' if start.tzinfo else ''}{day}"
    else:
        when = f"From {human_seconds(most.begin_s)} to {human_seconds(most.end_s)} after the first request"
    rate = f"{number(most.rate_rps)}/s, {number(most.times)} times the rate outside of bursts"
    return f"{when}, requests come at {rate}{which}."


def burst_fit_words(facts: TraceFacts) -> str:
    """Return whether the fitted traffic has the trace's bursts, and what to size with; empty without bursts."""
    if not facts.bursts or facts.fit is None:
        return ""
    which = "the burst" if len(facts.bursts) == 1 else "the bursts"
    if facts.fit_has_bursts:
        return f"Fitted traffic has {which} of the whole trace, at the same times."
    return f"Fitted traffic lacks {which}: size with replay.yaml, not with traffic.yaml."


def _main_finding(facts: TraceFacts) -> str:
    if facts.requests == 0:
        return "The trace has no requests."
    curve = facts.curve
    if curve is None or not curve.slots:
        return _rate_headline(facts)
    if facts.adapters == 1:
        if facts.requests == 1:
            return "The trace has a single request: a cache has nothing to decide."
        return f"One adapter gets all of the {plural(facts.requests, 'request')}: a cache has nothing to decide."
    found = order_finding(facts, curve)
    start = f"At {plural(found.slots, 'slot')} LRU misses {about(found.real)} of requests"
    if found.effect is OrderEffect.LITTLE:
        return f"{start}, shuffled {about(found.shuffled)}: their order matters little to the cache."
    return f"{start}, but {about(found.shuffled)} of the same ones shuffled: {_EFFECT_WORDS[found.effect]}."


def _rate_headline(facts: TraceFacts) -> str:
    if not facts.span_s > 0:
        return f"{plural(facts.requests, 'request')}, all at the same time, so there is no rate."
    rate = f"{number(facts.rate_rps)} requests/s over {human_seconds(facts.span_s)}"
    if rate_of(facts).change is RateChange.MOVES:
        return f"{rate}: {_meaning(facts)}."
    if facts.gap_cv is None:
        return f"{rate}: too few to say whether they come in bursts."
    return f"{rate}, with gaps {_GAP_WORDS[gaps_of(facts.gap_cv)]} those of Poisson arrivals."


def sentences(facts: TraceFacts) -> list[str]:
    """Return rate and burstiness, popularity, sessions and how good the fitted traffic is, one short text each."""
    texts = [
        _rate_words(facts),
        _popularity_words(facts),
        _session_words(facts),
        fit_words(facts),
        off_words(facts),
        burst_fit_words(facts),
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
        texts.append(f"Gaps are {_GAP_WORDS[gaps_of(facts.gap_cv)]} those of Poisson arrivals (cv {cv}; Poisson: 1).")
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
    found = rate_of(facts)
    if found.change is RateChange.MOVES:
        moves = [f"{about(share)} from {window} to {window}" for share, window in found.moves]
        return f"beyond chance, the rate moves by {spread_words(moves)}"
    return "less than chance" if found.change is RateChange.EVEN else "no more than chance at that scale"


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
    return f"{shares}: about as spread out as {popular_words(number(found['effective_adapters']))}."


def _session_words(facts: TraceFacts) -> str:
    sessions = facts.sessions
    if sessions is None or facts.curve is None or facts.adapters < 2 or not facts.span_s > 0:
        return ""
    requests = f"{number(sessions.requests_mean)} requests"
    if sessions.pause_s is None:
        text = f"{number(sessions.at_a_time)} sessions of {requests} are active at a time."
    else:
        text = (
            f"With pauses of an adapter up to {human_seconds(sessions.pause_s)}, sessions have {requests}, and "
            f"{number(sessions.at_a_time)} are active at a time."
        )
    return f"{text} {_order_words(facts.curve)}"


def _order_words(curve: MissCurve) -> str:
    """Return from how many slots on sessions help LRU, and how far independent draws are off there."""
    found = session_gain(curve)
    if found is None:
        return "Independent draws overstate misses little, whatever the number of slots."
    overstate = f"independent draws overstate misses up to {found.factor:.1f} times"
    overstate += f" ({plural(curve.slots[found.most], 'slot')})"
    first, at = found.from_place, found.below
    if first is None or at is None:
        return f"{overstate[0].upper()}{overstate[1:]}."
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
    for found in ranked_laws(facts):
        best, of = found.best, found.of
        likeliest = f"{best.law} ({parameters(best)})" if best.parameters else best.law
        text = f"By {of}: likeliest is {likeliest}, off by up to {about(best.distance)} of {of}."
        if found.unseen > 0:
            text += f" Many were seen only once, so there are probably about {plural(found.unseen, 'adapter')} more."
        if found.possible:
            text += f" This ranking may come from {spread_words(found.possible)}."
        elif found.judged:
            text += " No law fits this ranking; `law: weights` takes the shares as they are."
        texts.append(text)
    return texts


def lengths_sentences(facts: TraceFacts) -> list[str]:
    """Return how lengths go together: prompt with output, and within an adapter."""
    texts = []
    together = facts.length_correlation
    if together is not None:
        words = _TOGETHER_WORDS[lengths_together(together)]
        texts.append(f"Prompt and output lengths {words} (correlation of their normal scores: {_signed(together)}).")
    between = facts.length_by_adapter
    if between is not None and facts.adapters > 1:
        texts.append(
            f"Lengths depend on the adapter: {about(between)} of their variance lies between adapters."
            if lengths_by_adapter(between)
            else f"Lengths hardly depend on the adapter: {about(between)} of their variance lies between adapters."
        )
    return texts


def _signed(value: float) -> str:
    """Return a correlation in two decimals, with a true minus."""
    text = f"{value:.2f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


_TRUST_WORDS = {
    Trust.RELIABLE: "its miss ratios are reliable",
    Trust.ROUGH: "its miss ratios are rough",
    Trust.REPLAY: "replay the trace instead where misses matter",
}


def fit_words(facts: TraceFacts) -> str:
    """Return how far fitted traffic is from the rest of the trace; empty where there is nothing to say."""
    fit = facts.fit
    if fit is None:
        return "No traffic was fitted to this trace; the notes say why." if facts.notes and facts.span_s > 0 else ""
    part = "the whole trace" if fit.share >= 1 else f"the first {about(fit.share)} of the time"
    part = "the first half" if fit.share == 0.5 else part
    if not fit.slots and not fit.values:
        return f"Traffic is fitted to {part}, and no data is left to check it: don't rely on it."
    worst = fit.worst()
    if worst is None:
        return f"Traffic fitted to {part}, compared with the rest: {_value_words(fit)}."
    text = (
        f"Traffic fitted to {part} ({_model_words(fit)}) matches the LRU curve of the rest to within "
        f"{plural(round(worst[1] * 100, 1), 'point')}, worst at {plural(worst[0], 'slot')}"
    )
    closed = closed_gap(fit)
    if closed is not None:
        text += (
            f", and closes {about(closed)} of the gap between independent draws and the trace"
            if closed > 0
            else ", and is no closer to it than independent draws"
        )
    return f"{text}: {_TRUST_WORDS[trust_in(worst[1])]}."


def _model_words(fit: FitCheck) -> str:
    return next((candidate.words for candidate in fit.candidates if candidate.name == fit.chosen), fit.chosen)


def _value_words(fit: FitCheck) -> str:
    found = [(value.name, relative_change(value)) for value in fit.values if value.unit != "tokens"]
    return ", ".join(f"{name} {with_sign(f'{by * 100:+.0f}', ' %')}" for name, by in found if by is not None)


def off_words(facts: TraceFacts) -> str:
    """Return where fitted traffic is far from the rest of the trace in other ways than misses."""
    if facts.fit is None:
        return ""
    off = off_values(facts.fit)
    texts = []
    if off.named:
        words = [
            f"{value.name} ({shown(value.synthetic, value.unit)}, trace {shown(value.trace, value.unit)})"
            for value in off.named
        ]
        texts.append(f"Fitted traffic is off in {spread_words(words)}.")
    if off.calmer is not None:
        more, longer = ("calmer", "shorter") if off.calmer else ("burstier", "longer")
        texts.append(f"{'It' if off.named else 'Fitted traffic'} is {more}, so its queues are {longer}.")
    return " ".join(texts)
