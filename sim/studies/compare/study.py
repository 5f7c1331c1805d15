"""Two runs side by side: which points belong together, what differs, and whether the second is better."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reports.answers.points import has_rollout, impact_name, is_changed, latency_name
from reports.axes import Axis, make_axes
from reports.formatting import read_terms
from sim.errors import InputError
from sim.results.catalogue import CATALOGUE, UNITS
from sim.results.model import Difference
from sim.results.pairs import BETTER, NOT_COMPARABLE, UNCLEAR, WORSE, difference_of, same_draws, same_requests
from sim.results.point import Point
from sim.results.run_directory.store import RunData
from sim.results.slo_terms import is_gap, judged, split_term, with_tenants
from sim.results.verdict import MET, NOT_MET, is_overloaded, term_verdict, unserved, verdict
from sim.spec.scenario_file import resolved_values, value_text

# What two scenarios say differently: keys with both values, lists of another length, sections that one lacks.

ABSENT, UNSET = "–", "unset"
"""Values of a key that a scenario has no place for, and of one that it leaves open."""
MIX, RANK = "adapters.mix", "adapters.rank"
POOLS, REPLICAS = "fleet.pools", "fleet.replicas"


@dataclass(frozen=True)
class SettingChanges:
    """What differs by more than a value.

    :ivar counts: entries in A and in B, by the key of each list that differs in length.
    :ivar sections: keys of optional sections that one of both lacks, and whether B is the one that has it.
    """

    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    sections: dict[str, bool] = field(default_factory=dict)

    def part_of(self, key: str) -> str:
        """Return the outermost list or section of these that a key is or lies in; empty where there is none.

        Pools have replicas of their own, and KV that moves between them: where one scenario has no pools, its replicas
        stand against both.
        """
        if POOLS in self.counts and (key == REPLICAS or key.startswith("fleet.kv_transfer")):
            return POOLS
        return next((part for part in _prefixes(key) if part in self.counts or part in self.sections), "")


def changed_settings(
    scenarios: Sequence[Mapping[str, Any]], swept: Sequence[Mapping[str, str]]
) -> tuple[list[tuple[str, str, str]], SettingChanges]:
    """Return the keys that differ with the values of A and B, and what differs by more than a value.

    :param scenarios: as in the manifests of A and B.
    :param swept: by key, what is said in place of the scenario's value.
    """
    said = [resolved_values(scenario) for scenario in scenarios]
    counts = [_counts(values) for values in said]
    for values, entries in zip(said, counts, strict=True):
        if entries.get(POOLS):
            values.pop(REPLICAS, None)  # a default without effect
        if entries.get(MIX):
            values[RANK] = "mixed"  # each kind has its own
    rows = []
    for key in dict.fromkeys([*said[0], *said[1], *swept[0], *swept[1]]):
        a, b = (
            over.get(key, values.get(key, _entries(entries.get(key, 0))))
            for over, values, entries in zip(swept, said, counts, strict=True)
        )
        # A section that one of them lacks is unset there; its keys show the same.
        if a != b and not {a, b} <= {ABSENT, UNSET}:
            rows.append((key, a, b))
    lists = dict.fromkeys([*counts[0], *counts[1]])
    lengths = {key: (counts[0].get(key, 0), counts[1].get(key, 0)) for key in lists}
    differing = {key: pair for key, pair in lengths.items() if pair[0] != pair[1]}
    # Sections that are unset on one side and have keys on the other.
    sections: dict[str, bool] = {}
    for lacking, having, second in ((said[0], said[1], True), (said[1], said[0], False)):
        parents = {part for key in having for part in _prefixes(key)} - having.keys()
        sections |= {key: second for key, value in lacking.items() if value == UNSET and key in parents}
    return rows, SettingChanges(differing, sections)


def _counts(values: Mapping[str, str]) -> dict[str, int]:
    """Return how many entries each list has, by its key; lists of plain values are values."""
    found: dict[str, int] = {}
    for key, value in values.items():
        if value == "[]":
            found[key] = 0
        for part in _prefixes(key):
            parent, _, index = part.rpartition(".")
            if index.isdigit():
                found[parent] = max(found.get(parent, 0), int(index) + 1)
    return found


def _entries(count: int) -> str:
    return f"{count} {'entry' if count == 1 else 'entries'}" if count else ABSENT


def _prefixes(key: str) -> Iterator[str]:
    """Yield a key's sections from the outermost one on, and the key itself."""
    parts = key.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


MIXED, OPEN = "mixed", "open"
"""Better in one metric and worse in another; clear in one while another may be much the other way."""
_DOUBT = 0.25
"""An unclear metric leaves the answer open where its interval reaches this share of A's value to the other side."""
SAME_REQUESTS, SAME_DRAWS, OTHER_TRAFFIC = "same requests", "same draws", "other traffic"
OVERLOAD, SLO = "overload", "SLO"
"""What decides between two points more than any difference of a metric."""
_IDLE_KEYS = ("schema_version", "name", "description", "sweep")
_LISTED = 5
_UNSERVED = 0.01
"""Share of refused or failed requests above which these are judged too: a latency leaves them out."""


@dataclass(frozen=True)
class Pair:
    """Two points that belong together; both have the ``set`` of the pair.

    :ivar differences: by metric; SLO terms first, then in the order of the catalogue.
    :ivar traffic: ``SAME_REQUESTS``, ``SAME_DRAWS`` or ``OTHER_TRAFFIC``.
    :ivar decided: ``BETTER`` or ``WORSE`` where something weighs more than any change; else empty.
    :ivar decided_by: ``OVERLOAD`` where only one of both is overloaded, ``SLO`` where one meets the SLO and the other
        certainly doesn't.
    """

    set: dict[str, Any]
    one: Point
    other: Point
    differences: dict[str, Difference]
    traffic: str
    decided: str = ""
    decided_by: str = ""

    def word(self, judged: Sequence[str]) -> str:
        """Return how the second point compares over these metrics: a word of ``pairs``, ``MIXED`` or ``OPEN``."""
        if self.decided:
            return self.decided
        words = {self.differences[name].word for name in judged if name in self.differences}
        if BETTER in words and WORSE in words:
            return MIXED
        word = next((word for word in (BETTER, WORSE, UNCLEAR) if word in words), NOT_COMPARABLE)
        return OPEN if word in (BETTER, WORSE) and self.doubts(judged, word) else word

    def doubts(self, judged: Sequence[str], word: str) -> list[str]:
        """Return the metrics that may contradict a word clearly: an uncertain p99 must not hide behind the misses."""
        found = []
        for name in judged:
            d = self.differences.get(name)
            if d is not None and d.word == UNCLEAR and d.one and d.lo is not None and d.hi is not None:
                direction = CATALOGUE[split_term(name)[1]].better
                against = d.hi if (direction == "lower") == (word == BETTER) else -d.lo
                if direction != "neither" and against > _DOUBT * abs(d.one):
                    found.append(name)
        return found


@dataclass(frozen=True)
class Comparison:
    """Two runs, paired.

    :ivar terms: the SLO by metric, terms of tenants that both runs have included (``slo_terms``): that of the second
        run, or of the first where it has none.
    :ivar judged: metrics that decide which one is better: the SLO's, else the main ones.
    :ivar changed: key and values of what differs between the scenarios.
    :ivar parts: lists that differ in length, and sections that one of the scenarios lacks.
    :ivar slo_of: A or B, whose SLO judges both; empty where both have the same one, or none. ``slo_of_one``: whether
        the other one has none.
    :ivar tenants_alone: tenants with an SLO that the other run does not have, of A and of B.
    :ivar alone: swept values of points without a partner, of the first and of the second run.
    """

    one: RunData
    other: RunData
    pairs: tuple[Pair, ...]
    terms: dict[str, float]
    judged: tuple[str, ...]
    changed: tuple[tuple[str, str, str], ...]
    slo_of: str
    slo_of_one: bool
    tenants_alone: tuple[tuple[str, ...], tuple[str, ...]]
    alone: tuple[list[dict[str, Any]], list[dict[str, Any]]]
    parts: SettingChanges

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
        return next((word for word in (OPEN, BETTER, WORSE, UNCLEAR) if word in words), NOT_COMPARABLE)


def compare_runs(one: RunData, other: RunData) -> Comparison:
    """Pair the points of two runs and compare them; of a plan, only the design that it recommends.

    :raises InputError: if a run has no points, or none of their points belong together.
    """
    for run in (one, other):
        if not run.points:
            raise InputError("this run has no finished points", file=str(run.path), hint="run it again; it resumes")
    one, other = (run if run.recommended is None else replace(run, points=[run.recommended]) for run in (one, other))
    own_terms, tenants_alone = _terms_of((one, other))
    slo = own_terms[1] or own_terms[0]
    matched = _matched(one.points, other.points)
    if not matched:
        raise InputError(
            "no points of these runs belong together: no swept values are equal",
            got=_sets(one.points[:1]),
            allowed=_sets(other.points),
            hint="sweep the same values of the same keys in both, or compare single runs",
        )
    pairs = tuple(_pair(set_, a, b, slo) for set_, a, b in matched)
    taken = [{id(pair[side]) for pair in matched} for side in (1, 2)]
    alone = tuple([p.set for p in run.points if id(p) not in ids] for run, ids in zip((one, other), taken, strict=True))
    # What the scenarios say differently, defaults included; a swept key says over what it goes.
    rows, parts = changed_settings(
        [run.manifest.get("scenario") or {} for run in (one, other)], [_swept(run) for run in (one, other)]
    )
    changed = tuple(row for row in rows if row[0].partition(".")[0] not in _IDLE_KEYS)
    return Comparison(
        one,
        other,
        pairs,
        slo,
        _judged(pairs, slo),
        changed,
        "" if own_terms[0] == own_terms[1] else "B" if own_terms[1] else "A",
        not all(own_terms),
        (tenants_alone[0], tenants_alone[1]),
        (alone[0], alone[1]),
        parts,
    )


def _terms_of(runs: tuple[RunData, RunData]) -> tuple[list[dict[str, float]], list[tuple[str, ...]]]:
    """Return the SLO terms of each run, and its tenants with an SLO that the other run does not have: theirs are left
    out.
    """
    names = [{tenant.name for point in run.points for tenant in point.tenants} for run in runs]
    found = [with_tenants(read_terms(run.slo), run.points[0]) for run in runs]
    owners = [dict.fromkeys(tenant for name in terms if (tenant := split_term(name)[0])) for terms in found]
    alone = [tuple(t for t in owned if t not in names[1 - side]) for side, owned in enumerate(owners)]
    kept = [
        {name: target for name, target in terms.items() if split_term(name)[0] not in gone}
        for terms, gone in zip(found, alone, strict=True)
    ]
    return kept, alone


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
    # Without the SLOs that tenants have in their own runs: the comparison's terms judge both.
    one, other = (replace(p, set=set_, tenants=[replace(each, slo={}) for each in p.tenants]) for p in (one, other))
    names = dict.fromkeys([*slo, *UNITS])
    found = {name: difference for name in names if (difference := difference_of(one, other, name)) is not None}
    traffic = SAME_REQUESTS if same_requests(one, other) else SAME_DRAWS if same_draws(one, other) else OTHER_TRAFFIC
    decided, by = _decided(one, other, slo)
    return Pair(set_, one, other, found, traffic, decided, by)


def _decided(one: Point, other: Point, slo: Mapping[str, float]) -> tuple[str, str]:
    """Return whether B is better or worse by overload or the SLO, and by which; both empty where neither decides.

    A queue that grows without limit has no latency to compare: its intervals are wide, and the answer is certain.
    """
    full = is_overloaded(one), is_overloaded(other)
    if full[0] != full[1] and not _is_disputed(one, other, slo, full[1]):
        return (WORSE if full[1] else BETTER), OVERLOAD
    met = verdict(one, slo), verdict(other, slo)
    if set(met) == {MET, NOT_MET}:
        return (WORSE if met[0] == MET else BETTER), SLO
    return "", ""


def _is_disputed(one: Point, other: Point, slo: Mapping[str, float], second: bool) -> bool:
    """Return whether a tenant clearly loses by what relieves the fleet.

    :param second: whether the second point is the overloaded one.
    """
    relieved, full, lost = (one, other, BETTER) if second else (other, one, WORSE)
    for name, target in slo.items():
        if split_term(name)[0]:
            d = difference_of(one, other, name)
            verdicts = [term_verdict(point, name, target) for point in (full, relieved)]
            if (d is not None and d.word == lost) or verdicts == [MET, NOT_MET]:
                return True
    return False


def _judged(pairs: Sequence[Pair], slo: Mapping[str, float]) -> tuple[str, ...]:
    """Return the metrics that decide: the SLO's, else p99 latencies and misses; with rollouts and faults the impact,
    with prefill and decode apart the ITL.
    """
    points = [point for pair in pairs for point in (pair.one, pair.other)]
    wanted = list(slo) or ["ttft_p99_s", "e2e_p99_s", "miss_ratio"]
    if is_changed(points):
        own = {name: target for name, target in slo.items() if not split_term(name)[0]}
        during = [f"rollout_{latency_name(points, own)}"] if has_rollout(points) else []
        wanted = [impact_name(points), *during, *(slo or ["e2e_p99_s"])]
    apart = any("hand_over_s" in point.breakdown for point in points)  # prefill and decode: it is done for ITL
    if apart and not any(map(is_gap, slo)):
        wanted.append("itl_p99_s")
    wanted += [name for name in ("refused", "failed") if any(_is_lacking(point, name) for point in points)]
    if slo:
        return tuple(dict.fromkeys([*slo, *wanted]))
    known = [n for n in wanted if any(n in pair.differences for pair in pairs)]
    if "ttft_p99_s" in known and all(map(_ends_at_first_token, pairs)):
        known.remove("ttft_p99_s")  # engine fixed: the first token is the whole answer
    return tuple(known)


def _is_lacking(point: Point, name: str) -> bool:
    """Return whether a count of requests that are not served is more than latencies may leave out of account."""
    return (point.value(name) or 0.0) > _UNSERVED * unserved(point)[1]


def _ends_at_first_token(pair: Pair) -> bool:
    first, second = pair.differences.get("ttft_p99_s"), pair.differences.get("e2e_p99_s")
    return first is not None and second is not None and (first.one, first.other) == (second.one, second.other)


def key_metrics(comparison: Comparison) -> list[str]:
    """Return the metrics that short tables show: what is judged, then what explains it."""
    more = [
        "ttft_p99_s",
        "e2e_p99_s",
        "tpot_mean_s",
        "miss_ratio",
        "loads_per_request",
        "loader_utilization",
        "throughput_rps",
        "slo_attainment",
        "harmed_excess",
        "rollout_ttft_p99_s",
        "replica_load_skew",
        "refused",
        "failed",
        "unfinished",
        "usd_per_m_tokens",
        "usd_per_month",
    ]
    found = dict.fromkeys([*comparison.judged, *more])
    some = {name for pair in comparison.pairs for name, d in pair.differences.items() if _is_shown(d)}
    names = [name for name in found if name in comparison.terms or name in some]
    if all(map(_ends_at_first_token, comparison.pairs)) and "ttft_p99_s" not in comparison.terms:
        names = [name for name in names if name != "ttft_p99_s"]
    return names


def _is_shown(difference: Difference) -> bool:
    """Return whether there is anything to see: a value, and not a count of nothing on both sides."""
    return difference.word != NOT_COMPARABLE and not (
        difference.one == difference.other == 0 and difference.unit in ("requests", "sessions", "loads")
    )


def _swept(run: RunData) -> dict[str, str]:
    found: dict[str, str] = {}
    for axis in make_axes(run.points):
        labels = [axis.label(value) for value in axis.values]
        shown = labels if len(labels) <= _LISTED else [*labels[:2], "…", labels[-1]]
        found[axis.key] = f"swept: {', '.join(shown)}"
    if len(run.points) == 1:
        found |= {key: value_text(value) for key, value in run.points[0].set.items()}
    return found


def is_word(pair: Pair, name: str, word: str) -> bool:
    """Return whether a metric changes in this way."""
    return name in pair.differences and pair.differences[name].word == word


def worse_terms(comparison: Comparison) -> list[str]:
    """Return the SLO terms in which B is clearly worse at any point; what ``--check`` tests.

    A term is worse, too, where A meets it and B certainly doesn't, and a time where B alone is overloaded.
    """
    return [n for n, target in comparison.terms.items() if any(_worse(p, n, target) for p in comparison.pairs)]


def _worse(pair: Pair, name: str, target: float) -> bool:
    (one, metric), (other, _) = judged(pair.one, name), judged(pair.other, name)
    if is_word(pair, name, WORSE) or (not is_overloaded(one) and is_overloaded(other) and UNITS[metric] == "s"):
        return True
    return [term_verdict(point, name, target) for point in (pair.one, pair.other)] == [MET, NOT_MET]
