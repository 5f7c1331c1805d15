"""Two runs side by side: which points belong together, what differs, and whether the second is better."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reports.axes import Axis, make_axes, point_words
from reports.changes import has_rollout, is_changed
from reports.signed import change_cell, change_words, relative_cell
from reports.verdicts import MET, NOT_MET, capital, verdict
from reports.words import metric_words, number, read_terms, show
from sim.errors import InputError
from sim.results.pairs import (
    BETTER,
    NOT_COMPARABLE,
    UNCLEAR,
    WORSE,
    Difference,
    difference_of,
    same_draws,
    same_requests,
)
from sim.results.point import UNITS, Point
from sim.results.store import RunData
from sim.spec.scenario_file import resolved_values

MIXED = "mixed"
"""Better in one term and worse in another."""
SAME_REQUESTS, SAME_DRAWS, OTHER_TRAFFIC = "same requests", "same draws", "other traffic"
_IDLE_KEYS = ("schema_version", "name", "description", "sweep")
_LISTED, _NAMED = 5, 12
_OTHER_RATE = 0.02
"""Arrival rates further apart than this share: throughput follows them."""


@dataclass(frozen=True)
class Pair:
    """Two points that belong together; both have the ``set`` of the pair.

    :ivar differences: by metric; SLO terms first, then in the order of ``UNITS``.
    :ivar traffic: ``SAME_REQUESTS``, ``SAME_DRAWS`` or ``OTHER_TRAFFIC``.
    """

    set: dict[str, Any]
    one: Point
    other: Point
    differences: dict[str, Difference]
    traffic: str

    def word(self, judged: Sequence[str]) -> str:
        """Return how the second point compares over these metrics: a word of ``pairs``, or ``MIXED``."""
        words = {self.differences[name].word for name in judged if name in self.differences}
        if BETTER in words and WORSE in words:
            return MIXED
        order = (BETTER, WORSE, UNCLEAR)
        return next((word for word in order if word in words), NOT_COMPARABLE)


@dataclass(frozen=True)
class Comparison:
    """Two runs, paired.

    :ivar terms: the SLO by metric: that of the second run, or of the first where it has none.
    :ivar judged: metrics that decide which one is better: the SLO's, else the main ones.
    :ivar changed: key and values of what differs between the scenarios.
    :ivar cautions: what to know before believing the differences.
    :ivar alone: swept values of points without a partner, of the first and of the second run.
    """

    one: RunData
    other: RunData
    pairs: tuple[Pair, ...]
    terms: dict[str, float]
    judged: tuple[str, ...]
    changed: tuple[tuple[str, str, str], ...]
    cautions: tuple[str, ...]
    alone: tuple[list[dict[str, Any]], list[dict[str, Any]]]

    @property
    def axes(self) -> list[Axis]:
        """Return the swept keys along which pairs differ."""
        return make_axes([pair.other for pair in self.pairs])

    @property
    def word(self) -> str:
        """Return the answer over all pairs."""
        words = {pair.word(self.judged) for pair in self.pairs}
        if MIXED in words or {BETTER, WORSE} <= words:
            return MIXED
        return next((word for word in (BETTER, WORSE, UNCLEAR) if word in words), NOT_COMPARABLE)


def compare_runs(one: RunData, other: RunData) -> Comparison:
    """Pair the points of two runs and compare them.

    :raises InputError: if a run has no points, or none of their points belong together.
    """
    for run in (one, other):
        if not run.points:
            raise InputError("this run has no finished points", file=str(run.path), hint="run it again, it goes on")
    terms = [read_terms((run.manifest.get("scenario") or {}).get("slo")) for run in (one, other)]
    slo = terms[1] or terms[0]
    matched = _matched(one.points, other.points)
    if not matched:
        raise InputError(
            "no points of these runs belong together: no swept values are equal", got=_sets(one.points[:1]),
            allowed=_sets(other.points), hint="sweep the same values of the same keys in both, or compare single runs",
        )  # fmt: skip
    pairs = tuple(_pair(set_, a, b, slo) for set_, a, b in matched)
    taken = [{id(pair[side]) for pair in matched} for side in (1, 2)]
    alone = tuple([p.set for p in run.points if id(p) not in ids] for run, ids in zip((one, other), taken, strict=True))
    return Comparison(
        one, other, pairs, slo, _judged(pairs, slo), tuple(_changed(one, other)),
        tuple(_cautions(one, other, pairs, terms)), (alone[0], alone[1]),
    )  # fmt: skip


def _matched(one: Sequence[Point], other: Sequence[Point]) -> list[tuple[dict[str, Any], Point, Point]]:
    if len(one) == 1:
        return [(b.set if len(other) > 1 else {}, one[0], b) for b in other]
    if len(other) == 1:
        return [(a.set, a, other[0]) for a in one]
    partners = {_identity(point.set): point for point in other}
    return [(a.set, a, partners[key]) for a in one if (key := _identity(a.set)) in partners]


def _identity(set_: Mapping[str, Any]) -> str:
    return json.dumps(set_, sort_keys=True, default=str)


def _sets(points: Sequence[Point]) -> str:
    shown = "; ".join(json.dumps(point.set, ensure_ascii=False, default=str) for point in points[:2])
    return shown + (f"; … ({len(points)} points)" if len(points) > 2 else "")


def _pair(set_: dict[str, Any], one: Point, other: Point, slo: Mapping[str, float]) -> Pair:
    names = dict.fromkeys([*slo, *UNITS])
    found = {name: difference for name in names if (difference := difference_of(one, other, name)) is not None}
    traffic = SAME_REQUESTS if same_requests(one, other) else SAME_DRAWS if same_draws(one, other) else OTHER_TRAFFIC
    return Pair(set_, replace(one, set=set_), replace(other, set=set_), found, traffic)


def _judged(pairs: Sequence[Pair], slo: Mapping[str, float]) -> tuple[str, ...]:
    """Return the metrics that decide: the SLO's; else p99 latencies and misses, of rollouts and faults harm."""
    if slo:
        return tuple(slo)
    points = [point for pair in pairs for point in (pair.one, pair.other)]
    wanted = ["ttft_p99_s", "e2e_p99_s", "miss_ratio"]
    if is_changed(points):
        wanted = ["harmed", *(["rollout_ttft_p99_s"] if has_rollout(points) else []), "e2e_p99_s"]
    known = [n for n in wanted if any(n in pair.differences for pair in pairs)]
    if "ttft_p99_s" in known and all(_equal(pair, "ttft_p99_s", "e2e_p99_s") for pair in pairs):
        known.remove("ttft_p99_s")  # engine fixed: the first token is the whole answer
    return tuple(known)


def _equal(pair: Pair, name: str, other: str) -> bool:
    first, second = pair.differences.get(name), pair.differences.get(other)
    return first is not None and second is not None and (first.one, first.other) == (second.one, second.other)


def key_metrics(comparison: Comparison) -> list[str]:
    """Return the metrics that short tables show: what is judged, then what explains it."""
    more = ["ttft_p99_s", "e2e_p99_s", "tpot_mean_s", "miss_ratio", "loads_per_request", "loader_utilization",
            "throughput_rps", "slo_attainment", "harmed", "rollout_ttft_p99_s", "replica_load_skew", "refused",
            "failed", "unfinished"]  # fmt: skip
    found = dict.fromkeys([*comparison.judged, *more])
    some = {name for pair in comparison.pairs for name, d in pair.differences.items() if _tells(d)}
    names = [name for name in found if name in comparison.terms or name in some]
    if (
        all(_equal(pair, "ttft_p99_s", "e2e_p99_s") for pair in comparison.pairs)
        and "ttft_p99_s" not in comparison.terms
    ):
        names = [name for name in names if name != "ttft_p99_s"]
    return names


def _tells(difference: Difference) -> bool:
    """Return whether there is anything to see: a value, and not a count of nothing on both sides."""
    return difference.word != NOT_COMPARABLE and not (
        difference.one == difference.other == 0 and difference.unit in ("requests", "sessions", "loads")
    )


def _changed(one: RunData, other: RunData) -> list[tuple[str, str, str]]:
    """Return what the scenarios say differently, defaults included; a swept key says over what it goes."""
    said = [resolved_values(run.manifest.get("scenario") or {}) for run in (one, other)]
    swept = [_swept(run) for run in (one, other)]
    rows = []
    for key in dict.fromkeys([*said[0], *said[1], *swept[0], *swept[1]]):
        values = [s.get(key, v.get(key, "–")) for s, v in zip(swept, said, strict=True)]
        # A section that one of them lacks is unset there; its keys tell the same.
        nothing = set(values) <= {"–", "unset"}
        if key.partition(".")[0] not in _IDLE_KEYS and values[0] != values[1] and not nothing:
            rows.append((key, values[0], values[1]))
    return rows


def _swept(run: RunData) -> dict[str, str]:
    found: dict[str, str] = {}
    for axis in make_axes(run.points):
        labels = [axis.label(value) for value in axis.values]
        shown = labels if len(labels) <= _LISTED else [*labels[:2], "…", labels[-1]]
        found[axis.key] = f"swept: {', '.join(shown)}"
    if len(run.points) == 1:
        found |= {key: str(value) for key, value in run.points[0].set.items()}
    return found


def _cautions(one: RunData, other: RunData, pairs: Sequence[Pair], terms: Sequence[Mapping[str, float]]) -> list[str]:
    """Return what makes the comparison less than it seems."""
    said = []
    if one.path.resolve() == other.path.resolve():
        said.append("A and B are the same run.")
    a, b = one.manifest, other.manifest
    versions = [run.get("code") or (run.get("versions") or {}).get("loraplan", "unknown") for run in (a, b)]
    if versions[0] != versions[1]:
        said.append(
            f"A was simulated by loraplan {versions[0]}, B by {versions[1]}: a difference may come from the code. "
            "Run the older one again."
        )  # fmt: skip
    profiles = [run.get("profile") or {} for run in (a, b)]
    if profiles[0].get("sha256") != profiles[1].get("sha256"):
        names = [str(profile.get("name", "no profile")) for profile in profiles]
        same = "of the same name with other numbers" if names[0] == names[1] else f"{names[0]} and {names[1]}"
        said.append(f"The profiles differ ({same}): errors of the two don't cancel, and no interval here has them.")
    for key, words in (("seed", "seeds"), ("replications", "numbers of replications")):
        if a.get(key) != b.get(key):
            said.append(f"The {words} differ ({a.get(key)} and {b.get(key)}): luck is part of every difference.")
    if terms[0] and terms[1] and dict(terms[0]) != dict(terms[1]):
        said.append("The SLOs differ: both are held against that of B.")
    rates = [(pair.one.traffic.get("rate_rps", 0.0), pair.other.traffic.get("rate_rps", 0.0)) for pair in pairs]
    apart = [(x, y) for x, y in rates if abs(y - x) > _OTHER_RATE * max(x, y)]
    if apart:
        told = f"{number(apart[0][0])}/s and {number(apart[0][1])}/s" if len(pairs) == 1 else "at some points"
        said.append(f"Arrival rates differ ({told}): throughput and goodput follow them, whatever the design.")
    for letter, run in (("A", a), ("B", b)):
        if run.get("status") != "finished":
            said.append(f"{letter} is not finished: {run.get('points_done')} of {run.get('points_total')} points.")
    if any(not point.traffic_ids for pair in pairs for point in (pair.one, pair.other)):
        said.append("At least one run doesn't say what traffic it met: it is of an older version. Run it again.")
    return said


def traffic_sentence(comparison: Comparison) -> str:
    """Return whether both met the same traffic, and what follows from that."""
    kinds = {pair.traffic for pair in comparison.pairs}
    if kinds == {SAME_REQUESTS}:
        return "A and B met the same requests at the same times: compared part by part, most of the luck cancels."
    if OTHER_TRAFFIC not in kinds:
        return (
            "A and B drew their requests from the same random numbers: compared part by part, much of the luck cancels."
        )
    some = "At some points A" if len(kinds) > 1 else "A"
    return (
        f"{some} and B met different traffic: their intervals are combined as if independent, so only differences "
        "larger than the luck of both are clear."
    )


def headline(comparison: Comparison) -> str:
    """Return in one sentence whether B is better than A."""
    if len(comparison.pairs) > 1:
        return _headline_of_many(comparison)
    (pair,) = comparison.pairs
    word = pair.word(comparison.judged)
    better, worse = ([n for n in comparison.judged if _is(pair, n, w)] for w in (BETTER, WORSE))
    if word == MIXED:
        good, bad = (_told(pair, names, short=True) for names in (better, worse))
        return f"It depends: B is better in {good}, but worse in {bad}."
    if word == BETTER:
        return f"Yes, B is better than A: {_told(pair, better, short=len(better) > 1)}."
    if word == WORSE:
        return f"No, B is worse than A: {_told(pair, worse, short=len(worse) > 1)}."
    names = [name for name in comparison.judged if name in pair.differences]
    if word == UNCLEAR:
        known = [name for name in names if pair.differences[name].word == UNCLEAR]
        if all(pair.differences[name].change == 0 for name in known):
            return (
                f"B is neither better nor worse than A: {_names(known)} {'are' if len(known) > 1 else 'is'} the same."
            )
        return f"No clear difference between A and B: {_told(pair, known, short=len(known) > 1)}."
    return f"A and B can't be compared: {_names(names) or 'every metric that decides'} has no value in one of them."


def _is(pair: Pair, name: str, word: str) -> bool:
    return name in pair.differences and pair.differences[name].word == word


def _headline_of_many(comparison: Comparison) -> str:
    words = [pair.word(comparison.judged) for pair in comparison.pairs]
    total = len(words)
    counts = {word: words.count(word) for word in (BETTER, WORSE, MIXED, UNCLEAR, NOT_COMPARABLE)}
    names = _names(comparison.judged)
    if counts[BETTER] == total:
        return f"Yes, B is better than A at all {total} points: {_clear(comparison, BETTER)}."
    if counts[WORSE] == total:
        return f"No, B is worse than A at all {total} points: {_clear(comparison, WORSE)}."
    if counts[UNCLEAR] == total:
        return f"No clear difference between A and B at any of {total} points in {names}."
    if counts[NOT_COMPARABLE] == total:
        return f"A and B can't be compared: {names} have no value at any of {total} points."
    parts = (
        (counts[BETTER], "better"), (counts[WORSE], "worse"), (counts[MIXED], "better in one and worse in another"),
        (counts[UNCLEAR], "not clearly different"), (counts[NOT_COMPARABLE], "not comparable"),
    )  # fmt: skip
    told = ", ".join(f"{words} at {count}" for count, words in parts if count)
    mostly = "Mostly yes" if counts[BETTER] * 2 > total else "At some points"
    start = {BETTER: mostly, WORSE: "No"}.get(comparison.word, "It depends")
    return f"{start}: of {total} points B is {told}, by {names}."


def _clear(comparison: Comparison, word: str) -> str:
    """Return in which metrics a word holds, and at how many points unless at all: ``p99 TTFT, miss ratio at 3``."""
    counts = [(name, sum(_is(pair, name, word) for pair in comparison.pairs)) for name in comparison.judged]
    total = len(comparison.pairs)
    said = ", ".join(metric_words(n) + ("" if count == total else f" at {count}") for n, count in counts if count)
    unclear = [name for name, count in counts if not count]
    return said + (f"; nowhere clearly in {_names(unclear)}" if unclear else "")


def _where(comparison: Comparison) -> list[str]:
    """Return which points are better and which worse, where they are few and not all the same."""
    if len(comparison.pairs) > _NAMED or len({pair.word(comparison.judged) for pair in comparison.pairs}) == 1:
        return []
    axes, found = comparison.axes, dict[str, list[str]]()
    for pair in comparison.pairs:
        found.setdefault(pair.word(comparison.judged), []).append(point_words(pair.other, axes))
    order = ((BETTER, "better with"), (WORSE, "worse with"), (MIXED, "better in one and worse in another with"),
             (UNCLEAR, "not clearly different with"), (NOT_COMPARABLE, "not comparable with"))  # fmt: skip
    return [f"B is {'; '.join(f'{words} {_listed(found[word])}' for word, words in order if word in found)}."]


def details(comparison: Comparison) -> list[str]:
    """Return further sentences: verdicts, where the differences are largest, what else is clear."""
    said = [*_verdicts(comparison)]
    if len(comparison.pairs) > 1:
        said += _where(comparison)
        said += [text for name in comparison.judged if (text := _extremes(comparison, name))]
        said += _alone(comparison)
    else:
        said += _beside(comparison, comparison.pairs[0])
    return [*said, traffic_sentence(comparison)]


def _verdicts(comparison: Comparison) -> list[str]:
    if not comparison.terms:
        return []
    judged = [[verdict(p, comparison.terms) for p in side] for side in _sides(comparison)]
    if len(comparison.pairs) == 1:
        (a,), (b,) = judged
        if a == b:
            return [
                f"The SLO is {a} with both." if a in (MET, NOT_MET) else "Whether the SLO is met is unclear with both."
            ]
        return [f"The SLO is {a} with A, {b} with B."]
    met = [side.count(MET) for side in judged]
    return [f"The SLO is met at {met[0]} of {len(judged[0])} points with A, at {met[1]} with B."]


def _sides(comparison: Comparison) -> tuple[list[Point], list[Point]]:
    return [pair.one for pair in comparison.pairs], [pair.other for pair in comparison.pairs]


def _beside(comparison: Comparison, pair: Pair) -> list[str]:
    """Return what else is clear at a single point."""
    unclear = [n for n in comparison.judged if _is(pair, n, UNCLEAR)]
    clear = pair.word(comparison.judged) in (BETTER, WORSE, MIXED)
    said = [f"No clear difference in {_told(pair, unclear)}."] if unclear and clear else []
    for word, words in ((BETTER, "better"), (WORSE, "worse")):
        names = [n for n in key_metrics(comparison) if n not in comparison.judged and _is(pair, n, word)]
        if names:
            said.append(f"Beside that, B is clearly {words} in {_told(pair, names[:_LISTED], short=True)}.")
    return said


def _extremes(comparison: Comparison, name: str) -> str:
    """Return between what a metric's changes lie, over the points."""
    axes = comparison.axes
    known = [
        (d.change, pair) for pair in comparison.pairs if (d := pair.differences.get(name)) and d.change is not None
    ]
    if not known:
        return ""
    low, high = min(known, key=lambda item: item[0]), max(known, key=lambda item: item[0])
    if low[0] == high[0]:
        return f"{capital(metric_words(name))} changes by {change_words(low[1].differences[name])} at every point."
    at = [f"{change_cell(pair.differences[name])} at {point_words(pair.other, axes)}" for _, pair in (low, high)]
    return f"Change of {metric_words(name)}: from {at[0]} to {at[1]}."


def _alone(comparison: Comparison) -> list[str]:
    counts = [len(sets) for sets in comparison.alone]
    if not any(counts):
        return []
    return [f"{counts[0]} points of A and {counts[1]} of B have no partner with the same swept values."]


def _told(pair: Pair, names: Sequence[str], *, short: bool = False) -> str:
    """Return values and changes: ``p99 TTFT 612 ms → 540 ms (−72 ms, 95 %: −80 to −64 ms)``.

    :param short: with the relative change alone: ``(−11.8 %)``.
    """
    parts = []
    for name in names:
        d = pair.differences[name]
        values = f"{show(name, d.one, d.unit)} → {show(name, d.other, d.unit)}"
        parts.append(f"{metric_words(name)} {values} ({relative_cell(d) if short and d.one else change_words(d)})")
    return ", ".join(parts)


def _names(names: Sequence[str]) -> str:
    return _listed([metric_words(name) for name in names])


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def worse_terms(comparison: Comparison) -> list[str]:
    """Return the SLO terms in which B is clearly worse at any point; what ``--check`` asks for."""
    return [name for name in comparison.terms if any(_is(pair, name, WORSE) for pair in comparison.pairs)]


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return what ``loraplan compare --json`` prints."""
    return {
        "schema_version": 1,
        "one": _run_json(comparison.one), "other": _run_json(comparison.other),
        "answer": comparison.word, "headline": headline(comparison), "details": details(comparison),
        "slo": comparison.terms, "judged": list(comparison.judged), "worse_slo_terms": worse_terms(comparison),
        "differs": [{"key": key, "one": a, "other": b} for key, a, b in comparison.changed],
        "cautions": list(comparison.cautions),
        "points": [
            {
                "set": pair.set, "answer": pair.word(comparison.judged), "traffic": pair.traffic,
                "slo_one": verdict(pair.one, comparison.terms), "slo_other": verdict(pair.other, comparison.terms),
                "metrics": {name: _difference_json(d) for name, d in pair.differences.items()},
            }
            for pair in comparison.pairs
        ],
        "without_partner": {"one": comparison.alone[0], "other": comparison.alone[1]},
    }  # fmt: skip


def _run_json(run: RunData) -> dict[str, Any]:
    found = {key: run.manifest.get(key) for key in ("name", "scenario_hash", "seed", "replications", "code", "command")}
    return {"path": str(run.path), **found, "profile": (run.manifest.get("profile") or {}).get("name")}


def _difference_json(d: Difference) -> dict[str, Any]:
    names = ("one", "other", "change", "lo", "hi", "relative", "unit", "word", "paired", "note")
    return {name: getattr(d, name) for name in names}
