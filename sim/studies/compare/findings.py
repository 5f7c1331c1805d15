"""Two runs side by side, in sentences and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from reports.axes import label_of
from reports.formatting import listed, metric_words, money, number
from reports.text.metric_text import capital, change_cell, change_words, short_change, values_of
from reports.text.setup_text import fleet_words, memory_change
from sim.results.model import Difference
from sim.results.pairs import BETTER, NOT_COMPARABLE, UNCLEAR, WORSE
from sim.results.point import Point
from sim.results.run_directory.store import RunData
from sim.results.verdict import MET, NOT_MET, is_overloaded, verdict
from sim.studies.changes.findings import setback
from sim.studies.compare.design_words import change_phrase, changes_of, side_names, telling
from sim.studies.compare.study import (
    MIXED,
    OPEN,
    OTHER_TRAFFIC,
    OVERLOAD,
    SAME_REQUESTS,
    SLO,
    Comparison,
    Pair,
    is_word,
    key_metrics,
    worse_terms,
)
from sim.studies.run.findings import sweep_focus
from sim.studies.run.report import run_answer

_LISTED, _NAMED, _TENANTS = 5, 9, 3
"""Metrics, points and tenants that a sentence names."""
_OTHER_RATE = 0.02
"""Arrival rates further apart than this share: throughput follows them."""
_B_IS = {
    BETTER: "better",
    WORSE: "worse",
    MIXED: "better in one and worse in another",
    OPEN: "clear in one metric and open in another",
    UNCLEAR: "not clearly different",
    NOT_COMPARABLE: "not comparable",
}
"""What is said of B at some points of several, in the order in which it is said."""


def traffic_sentence(comparison: Comparison) -> str:
    """Return whether both met the same traffic, and what follows from that."""
    kinds = {pair.traffic for pair in comparison.pairs}
    if kinds == {SAME_REQUESTS}:
        return (
            "A and B met the same requests at the same times: compared part by part, most of the chance variation "
            "cancels."
        )
    if OTHER_TRAFFIC not in kinds:
        return (
            "A and B drew their requests from the same random numbers: compared part by part, much of the chance "
            "variation cancels."
        )
    some = "At some points A" if len(kinds) > 1 else "A"
    return (
        f"{some} and B met different traffic: their intervals are combined as if independent, so only differences "
        "larger than the chance variation of both are clear."
    )


def caution_sentences(comparison: Comparison) -> list[str]:
    """Return what to know before believing the differences."""
    runs, said = (comparison.one, comparison.other), []
    alone = [f"{len(sets)} of {side}" for side, sets in zip("AB", comparison.alone, strict=True) if sets]
    if alone:
        said.append(f"Left out, without a partner of the same values: {' and '.join(alone)}.")
    if runs[0].path.resolve() == runs[1].path.resolve():
        said.append("A and B are the same run.")
    one, other = (run.manifest.get("code", "unknown") for run in runs)
    if one != other:
        said.append(
            f"A was simulated by loraplan {one}, B by {other}: a difference may come from the code. "
            "Run the older one again."
        )
    profiles = [run.manifest.get("profile") or {} for run in runs]
    if profiles[0].get("sha256") != profiles[1].get("sha256"):
        one, other = (str(profile.get("name", "no profile")) for profile in profiles)
        same = "of the same name with other numbers" if one == other else f"{one} and {other}"
        said.append(
            f"The profiles differ ({same}): their errors don't cancel, and the intervals here don't include them."
        )
    for key, words in (("seed", "seeds"), ("replications", "numbers of replications")):
        one, other = (run.manifest.get(key) for run in runs)
        if one != other:
            said.append(f"The {words} differ ({one} and {other}): every difference includes chance variation.")
    if comparison.slo_of:
        differ = f"Only {comparison.slo_of} has an SLO: both are judged by it."
        said.append(differ if comparison.slo_of_one else "The SLOs differ: both are judged by that of B.")
    for side, tenants in zip("AB", comparison.tenants_alone, strict=True):
        if tenants:
            slos = "its SLO is" if len(tenants) == 1 else "their SLOs are"
            said.append(f"Only {side} has {_tenants(tenants)}: {slos} left out.")
    pairs = [(pair.one, pair.other) for pair in comparison.pairs]
    rates = [[point.traffic.get("rate_rps", 0.0) for point in pair] for pair in pairs]
    rates = [pair for pair in rates if abs(pair[1] - pair[0]) > _OTHER_RATE * max(pair)]
    if rates and any(key.startswith(("workload.", "tenants.")) for key, *_ in comparison.changed):  # else by chance
        which = f"{number(rates[0][0])}/s and {number(rates[0][1])}/s" if len(pairs) == 1 else "at some points"
        said.append(f"Arrival rates differ ({which}): throughput and goodput depend on them, whatever the design.")
    for side, manifest in zip("AB", (run.manifest for run in runs), strict=True):
        if manifest.get("status") != "finished":
            done, total = manifest.get("points_done"), manifest.get("points_total")
            said.append(f"{side} is not finished: {done} of {total} points.")
    return said


def _tenants(names: Sequence[str]) -> str:
    shown = names if len(names) <= _TENANTS else [*names[: _TENANTS - 1], f"{len(names) - _TENANTS + 1} more"]
    return f"the tenant{'' if len(names) == 1 else 's'} {listed(shown)}"


def _slo(comparison: Comparison) -> str:
    """Return the SLO that both are judged by, and whose it is where the two differ."""
    side = comparison.slo_of
    return f"{side}'s SLO" if side else "the SLO"


def _why(names: tuple[str, str], comparison: Comparison, pair: Pair) -> str:
    """Return what decides between two points more than any difference; empty where nothing does.

    :param names: of the two sides.
    """
    a, b = names
    better, worse = (a, b) if pair.decided == WORSE else (b, a)
    return {
        OVERLOAD: f"with {worse} more requests arrive than are served",
        SLO: f"{_slo(comparison)} is met only with {better}",
        "": "",
    }[pair.decided_by]


def headline(comparison: Comparison) -> str:
    """Return whether B is better than A, by what B has instead of A's, and before that whether both are overloaded."""
    said = " ".join(filter(None, (_stopped_rollouts(comparison), _better(comparison))))
    if not all(is_overloaded(point) for pair in comparison.pairs for point in (pair.one, pair.other)):
        return said
    return f"With both, more requests arrive than are served, so differences depend on how long the runs are. {said}"


def _stopped_rollouts(comparison: Comparison) -> str:
    """Return on which side a rollout is held back or does not get through; empty where none is, or both sweep."""
    if len(comparison.pairs) > 1:
        return ""
    (pair,) = comparison.pairs
    what = [("A", pair.one), ("B", pair.other)]
    said = [(side, "a rollout is held back" if point.held_back else setback(point)) for side, point in what]
    return " ".join(f"In {side}, {words}." for side, words in said if words)


def _better(comparison: Comparison) -> str:
    """Return in one sentence whether B is better than A."""
    if len(comparison.pairs) > 1:
        return _headline_of_many(comparison)
    (pair,) = comparison.pairs
    word, change = pair.word(comparison.judged), change_phrase(comparison)
    better, worse = ([n for n in comparison.judged if is_word(pair, n, w)] for w in (BETTER, WORSE))
    if pair.decided:
        names = better if word == BETTER else worse
        why = "; ".join(
            filter(None, [_why(side_names(comparison), comparison, pair), _values(pair, names, short=True)])
        )
        return f"{_opening(comparison, word)}: {why}."
    if word == OPEN:
        clear, side = (better, BETTER) if better else (worse, WORSE)
        doubts, than = pair.doubts(comparison.judged, side), "worse" if better else "better"
        which = f"B, with {change}," if change else "B"
        return (
            f"It is unclear which is better: {which} is {side} in {_values(pair, clear, short=True)}, but may be "
            f"much {than} in {_values(pair, doubts)}."
        )
    if word == MIXED:
        good, bad = (_values(pair, names, short=True) for names in (better, worse))
        which = f"with {change}," if change else "B is"
        return f"It depends: {which} better in {good}, but worse in {bad}."
    if word in (BETTER, WORSE):
        clear = better if word == BETTER else worse
        return f"{_opening(comparison, word)}: {_values(pair, clear, short=len(clear) > 1)}."
    names = [name for name in comparison.judged if name in pair.differences]
    for side, here, there in (("A", pair.one, pair.other), ("B", pair.other, pair.one)):
        only = [name for name in comparison.terms if name in there.metrics and name not in here.metrics]
        if only:
            lacks = f"{_names(only)} {'were' if len(only) > 1 else 'was'} not measured there"
            return f"Run {side} again with the same SLO: {lacks}."
    if word == UNCLEAR:
        known = [name for name in names if pair.differences[name].word == UNCLEAR]
        which = f"with {change}" if change else "between A and B"
        if all(pair.differences[name].change == 0 for name in known):
            return f"No difference {which}: {_names(known)} {'are' if len(known) > 1 else 'is'} the same."
        return f"No clear difference {which}: {_values(pair, known, short=len(known) > 1)}."
    which = f"{_names(names)} {'have' if len(names) > 1 else 'has'}" if names else "every metric that decides has"
    return f"A and B can't be compared: {which} no value in one of them."


def _opening(comparison: Comparison, word: str) -> str:
    """Return whether B is better, as the start of a sentence."""
    change = change_phrase(comparison)
    if change:
        return f"{'Better' if word == BETTER else 'Worse'} with {change}"
    return "Yes, B is better than A" if word == BETTER else "No, B is worse than A"


def _headline_of_many(comparison: Comparison) -> str:
    counts = Counter(pair.word(comparison.judged) for pair in comparison.pairs)
    total = counts.total()
    names, change = _names(comparison.judged), change_phrase(comparison)
    for word in (BETTER, WORSE):
        if counts[word] == total:
            return f"{_opening(comparison, word)} at all {total} points: {_reasons(comparison, word)}."
    if counts[UNCLEAR] == total:
        which = f"with {change}" if change else "between A and B"
        return f"No clear difference {which} at any of {total} points in {names}."
    if counts[NOT_COMPARABLE] == total:
        have = "have" if len(comparison.judged) > 1 else "has"
        return f"A and B can't be compared: {names} {have} no value at any of {total} points."
    phrases = ", ".join(f"{said} at {counts[word]}" for word, said in _B_IS.items() if counts[word])
    mostly = "Mostly yes" if counts[BETTER] * 2 > total else "At some points"
    start = {BETTER: mostly, WORSE: "No", OPEN: "It is unclear"}.get(comparison.word, "It depends")
    return f"{start}: {f'with {change}, it' if change else 'B'} is {phrases} of {total} points, by {names}."


def _reasons(comparison: Comparison, word: str) -> str:
    """Return why all points have this word: overload and the SLO first, then metrics."""
    total = len(comparison.pairs)
    counts = Counter(_why(side_names(comparison), comparison, pair) for pair in comparison.pairs if pair.decided)
    phrases = [f"{why}{'' if count == total else f' at {count}'}" for why, count in counts.most_common()]
    return "; ".join([*phrases, *filter(None, [_clear(comparison, word)])])


def _clear(comparison: Comparison, word: str) -> str:
    """Return in which metrics a word holds, and at how many points unless at all: ``p99 TTFT, miss ratio at 3``."""
    counts = [(name, sum(is_word(pair, name, word) for pair in comparison.pairs)) for name in comparison.judged]
    total = len(comparison.pairs)
    said = ", ".join(metric_words(n) + ("" if count == total else f" at {count}") for n, count in counts if count)
    unclear = [name for name, count in counts if not count]
    if not said:
        return ""
    return said + (f"; nowhere clearly in {_names(unclear)}" if unclear else "")


def _where(comparison: Comparison) -> list[str]:
    """Return which points are better and which worse, where they are few and not all the same."""
    if len(comparison.pairs) > _NAMED or len({pair.word(comparison.judged) for pair in comparison.pairs}) == 1:
        return []
    found: dict[str, list[str]] = {}
    for pair in comparison.pairs:
        found.setdefault(pair.word(comparison.judged), []).append(_at(comparison, pair))
    return [f"B is {'; '.join(f'{said} with {listed(found[word])}' for word, said in _B_IS.items() if word in found)}."]


def details(comparison: Comparison) -> list[str]:
    """Return further sentences: verdicts, where the differences are largest, what else is clear."""
    said = [*_verdicts(comparison)]
    if len(comparison.pairs) > 1:
        said += _where(comparison)
        said += [text for name in comparison.judged if (text := _extremes(comparison, name))]
    else:
        said += _in_addition(comparison, comparison.pairs[0])
    return [*said, traffic_sentence(comparison)]


def short(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what follows the headline in the short answer: label and sentences."""
    changes = [change.arrow for change in changes_of(comparison, telling(comparison))]
    more = f"; {len(changes) - _LISTED} more in the report" if len(changes) > _LISTED else ""
    answers = [run_answer(run) for run in (comparison.one, comparison.other)]
    points = [sweep_focus(run.points, comparison.terms) for run in (comparison.one, comparison.other)]
    fleets, setups = [fleet_words(point) for point in points], [point.setup for point in points]
    said = [
        ("Changed", f"{'; '.join(changes[:_LISTED])}{more}." if changes else "Nothing: the scenarios are the same."),
        ("First limit", of_both([found.first_limit for found in answers])),
        ("Bill", " ".join(filter(None, (of_both(fleets), _saved(*points), memory_change(*setups))))),
        ("Trust", traffic_sentence(comparison)),
    ]
    return [line for line in said if line[1]]


def _saved(one: Point, other: Point) -> str:
    """Return what B costs more or less in a month; empty where that is the same, or not known."""
    a, b = (point.value("usd_per_month") for point in (one, other))
    if a is None or b is None or money(a) == money(b):
        return ""
    return f"B costs {money(abs(b - a))} a month {'more' if b > a else 'less'}."


def of_both(said: Sequence[str]) -> str:
    """Return what there is to say of A and B; once where it is the same."""
    one, other = said
    return one if one == other else f"A: {one.rstrip('.') or 'nothing'}. B: {other or 'nothing.'}"


def _verdicts(comparison: Comparison) -> list[str]:
    if not comparison.terms:
        return []
    sides = [pair.one for pair in comparison.pairs], [pair.other for pair in comparison.pairs]
    judged = [[verdict(p, comparison.terms) for p in side] for side in sides]
    (one, other), slo = side_names(comparison), _slo(comparison)
    if len(comparison.pairs) == 1:
        (a,), (b,) = judged
        if a == b and a not in (MET, NOT_MET):
            return [f"It is unclear with both whether {slo} is met."]
        return [f"{capital(slo)} is {a} with {'both' if a == b else f'{one}, {b} with {other}'}."]
    met = [side.count(MET) for side in judged]
    return [f"{capital(slo)} is met at {met[0]} of {len(judged[0])} points with {one}, at {met[1]} with {other}."]


def _in_addition(comparison: Comparison, pair: Pair) -> list[str]:
    """Return what else is clear at a single point."""
    unclear = [n for n in comparison.judged if is_word(pair, n, UNCLEAR)]
    clear = pair.word(comparison.judged) in (BETTER, WORSE, MIXED)  # else the headline names them
    said = [f"No clear difference in {_values(pair, unclear)}."] if unclear and clear else []
    for word, words in ((BETTER, "better"), (WORSE, "worse")):
        against = pair.decided not in ("", word)  # what decides doesn't make this untrue
        names = [
            n for n in key_metrics(comparison) if is_word(pair, n, word) and (against or n not in comparison.judged)
        ]
        if names:
            said.append(f"Also clearly {words}: {_values(pair, names[:_LISTED], short=True)}.")
    return said


def _extremes(comparison: Comparison, name: str) -> str:
    """Return between what a metric's changes lie, over the points."""
    known = [
        (d.change, pair) for pair in comparison.pairs if (d := pair.differences.get(name)) and d.change is not None
    ]
    if not known:
        return ""
    low, high = min(known, key=lambda item: item[0]), max(known, key=lambda item: item[0])
    if low[0] == high[0] == 0:
        return f"{capital(metric_words(name))} is the same at every point."
    if low[0] == high[0]:
        return f"{capital(metric_words(name))} changes by {change_words(low[1].differences[name])} at every point."
    at = [f"{change_cell(pair.differences[name])} at {_at(comparison, pair)}" for _, pair in (low, high)]
    return f"Change of {metric_words(name)}: from {at[0]} to {at[1]}."


def _at(comparison: Comparison, pair: Pair) -> str:
    """Return where a pair stands in the sweep: ``64 GPU slots``, ``(64 GPU slots, lru)``."""
    axes = comparison.axes
    return f"({label_of(pair.other, axes)})" if len(axes) > 1 else label_of(pair.other, axes)


def _values(pair: Pair, names: Sequence[str], *, short: bool = False) -> str:
    """Return values and changes: ``p99 TTFT 612 ms → 540 ms (−72 ms, 95 %: −80 to −64 ms)``.

    :param short: without the interval: ``(−11.8 %)``.
    """
    parts = []
    for name in names:
        d = pair.differences[name]
        values = " → ".join(values_of(d))
        parts.append(f"{metric_words(name)} {values} ({short_change(d) if short else change_words(d)})")
    return ", ".join(parts)


def _names(names: Sequence[str]) -> str:
    return listed([metric_words(name) for name in names])


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return what ``loraplan compare --json`` prints."""
    return {
        "schema_version": 1,
        "one": _run_json(comparison.one),
        "other": _run_json(comparison.other),
        "answer": comparison.word,
        "headline": headline(comparison),
        "details": details(comparison),
        "slo": comparison.terms,
        "judged": list(comparison.judged),
        "worse_slo_terms": worse_terms(comparison),
        "differs": [{"key": key, "one": a, "other": b} for key, a, b in comparison.changed],
        "cautions": caution_sentences(comparison),
        "points": [
            {
                "set": pair.set,
                "answer": pair.word(comparison.judged),
                "why": _why(("A", "B"), comparison, pair),
                "traffic": pair.traffic,
                "slo_one": verdict(pair.one, comparison.terms),
                "slo_other": verdict(pair.other, comparison.terms),
                "metrics": {name: _difference_json(d) for name, d in pair.differences.items()},
            }
            for pair in comparison.pairs
        ],
        "without_partner": {"one": comparison.alone[0], "other": comparison.alone[1]},
    }


def _run_json(run: RunData) -> dict[str, Any]:
    found = {key: run.manifest.get(key) for key in ("name", "scenario_hash", "seed", "replications", "code", "command")}
    return {"path": str(run.path), **found, "profile": (run.manifest.get("profile") or {}).get("name")}


def _difference_json(d: Difference) -> dict[str, Any]:
    names = ("one", "other", "change", "lo", "hi", "relative", "unit", "word", "paired", "note")
    return {name: getattr(d, name) for name in names}
