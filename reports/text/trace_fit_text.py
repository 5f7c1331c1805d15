"""Whether traffic fitted to a part of a trace may stand for the rest, in plain words."""

from __future__ import annotations

from reports.answers.trace_fit_findings import Trust, closed_gap, off_values, relative_change, trust_in
from reports.text.trace_words import about, plural, shown, spread_words, with_sign
from sim.results.traces.trace_facts import FitCheck, TraceFacts

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
