"""Whether traffic fitted to a part of a trace may stand for the rest, in plain words."""

from __future__ import annotations

from reports.answers.trace_fit_findings import _MOST_NAMED, BELIEVED, OFF, ROUGH, closed_gap
from reports.text.trace_words import about, change, plural, shown, spread_words, with_sign
from sim.results.traces.trace_facts import FitCheck, TraceFacts


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
    return f"{text}: {_trust(worst[1])}."


def _trust(worst: float) -> str:
    if worst <= BELIEVED:
        return "its miss ratios are reliable"
    return "its miss ratios are rough" if worst <= ROUGH else "replay the trace instead where misses matter"


def _model_words(fit: FitCheck) -> str:
    return next((candidate.words for candidate in fit.candidates if candidate.name == fit.chosen), fit.chosen)


def _value_words(fit: FitCheck) -> str:
    found = [(value.name, change(value)) for value in fit.values if value.unit != "tokens"]
    return ", ".join(f"{name} {with_sign(f'{by * 100:+.0f}', ' %')}" for name, by in found if by is not None)


def off_words(facts: TraceFacts) -> str:
    """Return where fitted traffic is far from the rest of the trace in other ways than misses."""
    if facts.fit is None:
        return ""
    off = [value for value in facts.fit.values if (by := change(value)) is not None and abs(by) > OFF]
    texts = []
    phrases = [value for value in off if facts.fit.slots or value.unit == "tokens"]  # ``fit_words`` names the others
    if phrases:
        words = [
            f"{value.name} ({shown(value.synthetic, value.unit)}, trace {shown(value.trace, value.unit)})"
            for value in phrases[:_MOST_NAMED]
        ]
        texts.append(f"Fitted traffic is off in {spread_words(words)}.")
    calmer = {value.synthetic < value.trace for value in off if value.name.startswith("dispersion")}
    if len(calmer) == 1:
        more, longer = ("calmer", "shorter") if calmer.pop() else ("burstier", "longer")
        texts.append(f"{'It' if phrases else 'Fitted traffic'} is {more}, so its queues are {longer}.")
    return " ".join(texts)
