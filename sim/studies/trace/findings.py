"""What a trace is like: numbers, and the sentences that state them on the page and on the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

from reports.formatting import listed, number, percent, plural, popular_words
from reports.text.metric_text import capital
from sim.spec.units import human_seconds
from sim.studies.trace.facts import CheckedValue, FitCheck, LawRow, MissCurve, TraceFacts
from sim.traffic.fits.popularity_fit import LEAST_P

GAP = 0.02
"""Miss ratios closer than this are called the same: such a gap does not matter."""
DECIDES = 1.5
"""How many times as many requests miss without locality where locality decides."""
LEAST_ADAPTERS = 20
"""Adapters below which 1, 10 and 20 % of them say little."""
NOISE = 0.2
"""Dispersion this close to 1 counts as Poisson's, or closer than two standard errors: sqrt(2 / windows) each."""
BELIEVED, ROUGH = 0.05, 0.10
"""Largest differences of miss ratios up to which fitted traffic is called reliable, and rough."""
OFF = 0.15
"""Relative differences of rates, burstiness and lengths from which they are named."""
_MOST_NAMED = 3
_FEW_MISS = 0.2
"""Miss ratio up to which few requests miss."""
_NO_GAIN = "Shuffling the requests changes the miss ratio little, whatever the number of slots."
_LOSS = "Fewer requests would miss in a random order."
_CORRELATED = 0.1
"""Correlation of lengths from which it is one."""
_BETWEEN_ADAPTERS = 0.05
"""Share of the variance of lengths from which they depend on the adapter."""
_GAPS = (
    (0.5, "much more even than"),
    (0.85, "more even than"),
    (1.15, "about as uneven as"),
    (1.5, "somewhat burstier than"),
    (3.0, "burstier than"),
)
"""Coefficients of variation of gaps below which each is said of them; Poisson's is 1."""
_SHARES = ("hot", "requests")
"""Parameters of popularity laws that are shares of one."""


def headline(facts: TraceFacts) -> str:
    """Return the answer: a hole and a burst, if there are any; then what locality does for a cache, or the rate."""
    return " ".join(filter(None, (hole_words(facts), _burst_words(facts), _main_finding(facts))))


def hole_words(facts: TraceFacts) -> str:
    """Return that long times without requests lower the rate; empty if they hardly do."""
    if not facts.much_silence:
        return ""
    rest_s = facts.span_s - facts.silent_s
    silent = human_seconds(facts.silent_s)
    gaps = f"for {silent}" if facts.silences == 1 else f"in {facts.silences} gaps of {silent} in all"
    return (
        f"There are no requests {gaps}; the rate in the rest of the time is {number(facts.requests / rest_s)}/s. If "
        "the log lacks requests there, plan with that rate."
    )


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
    whose = f"; {about(most.share)} of them are for {most.hottest}" if most.hottest else ""
    return f"{when}, requests come at {rate}{which}{whose}."


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
    at = _most_visible(curve)
    real, shuffled = curve.real[at], curve.shuffled[at]
    start = f"At {plural(curve.slots[at], 'slot')} LRU misses {about(real)} of requests"
    if abs(shuffled - real) <= _by_chance(shuffled, facts.requests):
        return f"{start}, and {about(shuffled)} when shuffled: their order hardly matters."
    if real > shuffled:
        effect = "the order hurts: adapters return just after they were evicted"
    else:
        effect = "locality decides" if shuffled >= DECIDES * real else "locality helps"
    return f"{start}, but {about(shuffled)} of the same ones shuffled: {effect}."


def _by_chance(share: float, requests: int) -> float:
    """Return up to which difference two orders are alike: three standard errors of a share."""
    return max(GAP, 3 * math.sqrt(max(share * (1 - share), 0.0) / requests))


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


def _rate_headline(facts: TraceFacts) -> str:
    if not facts.span_s > 0:
        return f"{plural(facts.requests, 'request')}, all at the same time, so there is no rate."
    rate = f"{number(facts.rate_rps)} requests/s over {human_seconds(facts.span_s)}"
    if _moves(facts):
        return f"{rate}: {_meaning(facts)}."
    if facts.gap_cv is None:
        return f"{rate}: too few to say whether they come in bursts."
    return f"{rate}, with gaps {_gap_words(facts.gap_cv)} those of Poisson arrivals."


def _gap_words(cv: float) -> str:
    return next((words for below, words in _GAPS if cv < below), "far burstier than")


def _moves(facts: TraceFacts) -> list[tuple[float, str]]:
    """Return the standard deviation of the rate over its mean, beyond chance, and the window; none: only chance.

    The variance of a count beyond Poisson's is that of its rate: (dispersion - 1) * mean = (window * deviation)².
    """
    found = []
    for dispersion, window_s, words in ((facts.dispersion_1s, 1.0, "second"), (facts.dispersion_60s, 60.0, "minute")):
        noise = max(NOISE, 2 * math.sqrt(2 * window_s / facts.span_s)) if facts.span_s > 0 else math.inf
        if dispersion is not None and dispersion > 1 + noise:
            found.append((math.sqrt((dispersion - 1) / (facts.rate_rps * window_s)), words))
    return found


def _meaning(facts: TraceFacts) -> str:
    if moves := _moves(facts):
        texts = [f"{about(share)} from {window} to {window}" for share, window in moves]
        return f"beyond chance, the rate moves by {listed(texts)}"
    known = [dispersion for dispersion in (facts.dispersion_1s, facts.dispersion_60s) if dispersion is not None]
    less = known and max(known) < 1 - NOISE
    return f"the rate moves {'less' if less else 'no more'} than by chance"


def sentences(facts: TraceFacts) -> list[str]:
    """Return rate and burstiness, popularity, sessions and how good the fitted traffic is, one short text each."""
    texts = [
        _rate_words(facts),
        _popularity_words(facts),
        _session_words(facts),
        _fit_words(facts),
        _off_words(facts),
        burst_fit_words(facts) if facts.fit is not None else "",
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
    if facts.curve is not None and (facts.dispersion_1s is not None or facts.dispersion_60s is not None):
        texts.append(f"{capital(_meaning(facts))}.")
    return " ".join(texts)


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
    gain = _gain_words(facts.curve, facts.requests)
    if gain in (_NO_GAIN, _LOSS) and not sessions.named:
        return f"No sessions of users can be seen. {gain}"
    pauses = "" if sessions.pause_s is None else f" with pauses up to {human_seconds(sessions.pause_s)}"
    return (
        f"{number(sessions.at_a_time)} sessions of {number(sessions.requests_mean)} requests{pauses} are active at a "
        f"time. {gain}"
    )


def _gain_words(curve: MissCurve, requests: int) -> str:
    """Return from how many slots on sessions help LRU, and how far independent draws are off there."""
    places = _round_places(curve.slots)
    factors = {
        i: curve.shuffled[i] / curve.real[i]
        for i in places
        if curve.real[i] > 0 and curve.shuffled[i] - curve.real[i] > _by_chance(curve.shuffled[i], requests)
    }
    if not factors:
        loss = any(curve.real[i] - curve.shuffled[i] > _by_chance(curve.shuffled[i], requests) for i in places)
        return _LOSS if loss else _NO_GAIN
    most = max(factors, key=lambda i: factors[i])
    overstate = f"independent draws overstate misses up to {factors[most]:.1f} times"
    overstate += f" ({plural(curve.slots[most], 'slot')})"
    first = next((i for i in places if factors.get(i, 0.0) >= DECIDES), None)
    below = [i for i in places if first is not None and i < first]
    if first is None or not below:  # nowhere, or everywhere
        return f"{overstate[0].upper()}{overstate[1:]}."
    return (
        f"Below {plural(curve.slots[first], 'slot')} LRU gains less from sessions "
        f"(at {plural(curve.slots[below[-1]], 'slot')} {about(curve.real[below[-1]])} miss, "
        f"{about(curve.shuffled[below[-1]])} shuffled); from there on {overstate}."
    )


def _fit_words(facts: TraceFacts) -> str:
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
        found = [(value.name, relative_change(value)) for value in fit.values if value.unit != "tokens"]
        values = ", ".join(f"{name} {with_sign(f'{by * 100:+.0f}', ' %')}" for name, by in found if by is not None)
        return f"Traffic fitted to {part}, compared with the rest: {values}."
    model = next((candidate.words for candidate in fit.candidates if candidate.name == fit.chosen), fit.chosen)
    text = (
        f"Traffic fitted to {part} ({model}) matches the LRU curve of the rest to within "
        f"{plural(round(worst[1] * 100, 1), 'point')}, worst at {plural(worst[0], 'slot')}"
    )
    closed = closed_gap(fit)
    if closed is not None:
        text += (
            f", and closes {about(closed)} of the gap between independent draws and the trace"
            if closed > 0
            else ", and is no closer to it than independent draws"
        )
    if worst[1] <= ROUGH:
        return f"{text}: its miss ratios are {'reliable' if worst[1] <= BELIEVED else 'rough'}."
    return f"{text}: replay the trace instead where misses matter."


def closed_gap(fit: FitCheck) -> float | None:
    """Return the share of the gap between independent draws and reality that fitted traffic closes.

    1 − mean |fitted − real| / mean |independent − real|, over the slots where that gap is at least ``GAP``; None where
    there are none. Below 0: worse than independent draws.
    """
    gaps = [
        (abs(made - real), abs(draws - real))
        for real, made, draws in zip(fit.real, fit.synthetic, fit.independent, strict=True)
        if abs(draws - real) >= GAP
    ]
    return 1 - sum(left for left, _ in gaps) / sum(gap for _, gap in gaps) if gaps else None


def relative_change(value: CheckedValue) -> float | None:
    """Return by which share of the trace's value the synthetic one is larger; None where that is 0."""
    return None if value.trace == 0 else value.synthetic / value.trace - 1


def _chance(value: CheckedValue, facts: TraceFacts) -> float:
    """Return by which share two dispersions of the checked part may differ by chance; 0 for other values."""
    window_s = {"dispersion in 1 s": 1.0, "dispersion in 60 s": 60.0}.get(value.name)
    if window_s is None or facts.fit is None:
        return 0.0
    checked_s = facts.fit.requests_checked / facts.rate_rps if facts.rate_rps > 0 else 0.0
    return 2 * math.sqrt(4 * window_s / checked_s) if checked_s > 0 else math.inf


_RATE = "requests/s"
_SIZE_WITH_REPLAY = ": size with replay.yaml, not with traffic.yaml"


def _off_words(facts: TraceFacts) -> str:
    """Return where fitted traffic is far from the rest of the trace in other ways than misses."""
    fit = facts.fit
    if fit is None:
        return ""
    off = [
        value
        for value in fit.values
        if (by := relative_change(value)) is not None and abs(by) > max(OFF, _chance(value, facts))
    ]
    texts = []
    # Without a miss curve, the sentence on the fit itself has all values but lengths.
    named = [value for value in off if fit.slots or value.unit == "tokens"]
    if named:
        words = [
            f"{value.name} ({shown(value.synthetic, value.unit)}, trace {shown(value.trace, value.unit)})"
            for value in named[:_MOST_NAMED]
        ]
        texts.append(f"Fitted traffic is off in {listed(words)}.")
    if rate := next((value for value in off if value.name == _RATE), None):
        slow = rate.synthetic < rate.trace
        said = f"{'It' if named else 'Fitted traffic'} has {'fewer' if slow else 'more'} requests a second"
        advice = _SIZE_WITH_REPLAY if slow and not lacks_bursts(facts) else ""
        return " ".join([*texts, f"{said}, so its queues are {'shorter' if slow else 'longer'}{advice}."])
    calmer = {value.synthetic < value.trace for value in off if value.name.startswith("dispersion")}
    if len(calmer) == 1:
        more, longer = ("calmer", "shorter") if calmer.pop() else ("burstier", "longer")
        texts.append(f"{'It' if named else 'Fitted traffic'} is {more}, so its queues are {longer}.")
    return " ".join(texts)


def lacks_bursts(facts: TraceFacts) -> bool:
    """Return whether the trace has bursts or long silences that fitted traffic has not, or not for that adapter."""
    of_one = any(burst.hottest for burst in facts.bursts)
    return (bool(facts.bursts) or facts.much_silence) and (of_one or not facts.fit_has_bursts)


def burst_fit_words(facts: TraceFacts) -> str:
    """Return whether the fitted traffic has the trace's bursts and silences, and what to size with."""
    silences = facts.silences if facts.much_silence else 0
    if not (facts.bursts or silences):
        return ""
    kinds = [("burst", len(facts.bursts)), ("silence", silences)]
    which = "the " + listed([name if count == 1 else f"{name}s" for name, count in kinds if count])
    if not facts.fit_has_bursts:
        return f"Fitted traffic lacks {which}{_SIZE_WITH_REPLAY}."
    text = f"Fitted traffic has {which} of the whole trace, at the same times"
    if hottest := next((burst.hottest for burst in facts.bursts if burst.hottest), ""):
        return f"{text}, but spreads the requests for {hottest} over all adapters{_SIZE_WITH_REPLAY}."
    return f"{text}."


def _skipped_words(facts: TraceFacts) -> str:
    left_out = sum(facts.skipped.values())
    if not left_out:
        return ""
    return f"{plural(left_out, 'row')} could not be used and {'is' if left_out == 1 else 'are'} left out."


def laws_sentences(facts: TraceFacts) -> list[str]:
    """Return how well popularity laws fit, by requests and by sessions."""
    texts = []
    for of in dict.fromkeys(law.of for law in facts.laws):
        laws = [law for law in facts.laws if law.of == of]
        best, unseen = laws[0], laws[0].adapters - facts.adapters
        likeliest = f"{best.law} ({parameters(best)})" if best.parameters else best.law
        text = f"By {of}: likeliest is {likeliest}, off by up to {about(best.distance)} of {of}."
        if unseen > 0:
            text += f" Many were seen only once, so there are probably about {plural(unseen, 'adapter')} more."
        judged = [(law.law, law.p_value) for law in laws if law.p_value is not None]
        if possible := [name for name, p_value in judged if p_value >= LEAST_P]:
            text += f" This ranking may come from {listed(possible)}."
        elif judged:
            text += " No law fits this ranking; `law: weights` takes the shares as they are."
        texts.append(text)
    return texts


def lengths_sentences(facts: TraceFacts) -> list[str]:
    """Return how lengths go together: prompt with output, and within an adapter."""
    texts = []
    together = facts.length_correlation
    if together is not None:
        how = "grow together" if together > 0 else "move in opposite directions"
        how = "are hardly correlated" if abs(together) < _CORRELATED else how
        signed = "0" if float(f"{together:.2f}") == 0 else f"{together:.2f}".replace("-", "−")
        texts.append(f"Prompt and output lengths {how} (correlation of their normal scores: {signed}).")
    between = facts.length_by_adapter
    if between is not None and facts.adapters > 1:
        hardly = "" if between >= _BETWEEN_ADAPTERS else "hardly "
        texts.append(
            f"Lengths {hardly}depend on the adapter: {about(between)} of their variance lies between adapters."
        )
    return texts


def about(share: float) -> str:
    """Return a share in two digits, for sentences: ``0.3470`` → ``"35 %"``; tables have three."""
    return percent(float(f"{share:.2g}")) if share < 0.995 else percent(share)


def parameters(law: LawRow) -> str:
    """Return the parameters of a law in words: ``exponent 1.6, shift 32.8``."""
    words = [
        f"{name} {percent(value) if name in _SHARES else f'{value:.4g}'}" for name, value in law.parameters.items()
    ]
    return ", ".join(words) or "none"


def with_sign(text: str, unit: str) -> str:
    """Return a signed number with a true minus, and no sign where it rounds to nothing."""
    plain = text.lstrip("+-")
    return f"0{unit}" if float(plain) == 0 else f"{'−' if text.startswith('-') else '+'}{plain}{unit}"


def points(difference: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return with_sign(f"{difference * 100:+.1f}", " points")


def shown(value: float, unit: str) -> str:
    """Return a checked value with its unit."""
    if unit == "1":
        return percent(value)
    return f"{number(value)}/s" if unit == "1/s" else number(value)
