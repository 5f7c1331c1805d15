"""What one design has instead of another, in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reports.formatting import is_counted, key_words, listed, singular
from sim.results.run_directory.store import RunData
from sim.studies.compare.study import ABSENT, POOLS, REPLICAS, UNSET, Comparison

_PHRASED = 3
"""Changes that a sentence names."""
_SLO_KEY = re.compile(r"(tenants\.\d+\.)?slo(\.|$)")
"""Targets: they judge a design and are no part of it."""
_NUMBERED = re.compile(r"(?P<list>fleet\.pools|tenants)\.(?P<place>\d+)\.(?P<rest>.+)")
_ENTRY_WORDS = {
    "tenants": ("tenant", "tenants"),
    "faults": ("fault", "faults"),
    "rollouts": ("rollout", "rollouts"),
    "fleet.pools": ("pool", "pools"),
    "adapters.mix": ("kind of adapter", "kinds of adapters"),
}
"""What an entry of a list is called, and several."""
_LAWS = ("law", "process")
"""Last words of keys on which the other keys of their section depend."""
_TRACE = "workload.trace"
_SECTION_WORDS = {
    "fleet.autoscale": "an autoscaler",
    "router.controller": "a placement controller",
    _TRACE: "a recorded trace",
}
"""What an optional section sets up, where that has an article."""


def change_phrase(comparison: Comparison) -> str:
    """Return what B has instead of A's: ``64 GPU slots instead of 32``; empty where the designs are the same."""
    said = [change.words for change in _design_changes(comparison)]
    if len(said) > _PHRASED:
        said = [*said[: _PHRASED - 1], f"{len(said) - _PHRASED + 1} more changes"]
    return listed(said)


def side_names(comparison: Comparison) -> tuple[str, str]:
    """Return what tells the sides apart: ``32 GPU slots`` and ``64 GPU slots`` if one value differs, else A and B."""
    found = _design_changes(comparison)
    if len(found) != 1:
        return "A", "B"
    (change,) = found
    return change.one, change.other


@dataclass(frozen=True)
class _Change:
    """A change of the design in words.

    :ivar one, other: what A and B have: ``32 GPU slots``, ``no faults``.
    :ivar words: what B has instead of A's; ``arrow``: from A's to B's: ``32 → 64 GPU slots``, ``no faults → 1 fault``.
    """

    one: str
    other: str
    words: str
    arrow: str


def _design_changes(comparison: Comparison) -> list[_Change]:
    """Return what differs in the design: an engine alone, as it changes further keys; nothing that is swept."""
    rows = [
        row
        for row in telling(comparison)
        if not row[0].startswith("run.")
        and not _SLO_KEY.match(row[0])
        and not any(value.startswith("swept: ") for value in row[1:])
    ]
    return changes_of(comparison, [row for row in rows if row[0] == "fleet.engine"] or rows)


def telling(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Return the rows of differing keys without those that go without saying.

    These are what A's law of lengths or arrivals had and B's has not, and where one side replays a trace, how the other
    draws its requests.
    """
    rows = [*comparison.changed]
    laws = tuple(f"{section}." for key, *_ in rows for section, _, last in [key.rpartition(".")] if last in _LAWS)
    rows = [row for row in rows if not (row[2] in (UNSET, ABSENT) and row[0].startswith(laws))]
    if _TRACE in comparison.parts.sections:
        rows = [row for row in rows if not row[0].startswith("workload.") or row[0].startswith(_TRACE)]
    return rows


def changes_of(comparison: Comparison, rows: Sequence[tuple[str, str, str]]) -> list[_Change]:
    """Return in words what these rows of differing keys say.

    What grows or shrinks as a whole, such as a list of faults, is one change, whatever its keys say.
    """
    found: dict[str, _Change] = {}
    for key, a, b in rows:
        part = comparison.parts.part_of(key)
        if (part or key) not in found:
            change = _part_change(comparison, part) if part else _value_change(by_name(comparison, key), a, b)
            found[part or key] = change
    return list(found.values())


def by_name(comparison: Comparison, key: str) -> str:
    """Return a key with the name of its pool or tenant, where both have the same one, instead of its number."""
    found = _NUMBERED.fullmatch(key)
    if found is None or found["rest"] == "name":
        return key
    names = {_name_of(run, found["list"], int(found["place"])) for run in (comparison.one, comparison.other)}
    name = names.pop()
    return f"{found['list']}.{name}.{found['rest']}" if name and not names else key


def _name_of(run: RunData, key: str, place: int) -> str:
    section = run.manifest.get("scenario") or {}
    items = ((section.get("fleet") or {}).get("pools") if key == POOLS else section.get(key)) or []
    return str(items[place].get("name") or "") if place < len(items) else ""


def _value_change(key: str, a: str, b: str) -> _Change:
    one, other = valued(key, a), valued(key, b)
    first, last = _stated(a), _stated(b)
    arrow = f"{first} → {other}" if is_counted(key_words(key)) else f"{one} → {last}"
    return _Change(one, other, f"{other} instead of {'no value' if a == ABSENT else first}", arrow)


def _stated(value: str) -> str:
    return {UNSET: "unset", ABSENT: "unset", "true": "on", "false": "off"}.get(value, value)


def valued(key: str, value: str) -> str:
    """Return a value with its key in words: ``64 GPU slots``, ``arrival rate 25/s``."""
    words, value = key_words(key), _stated(value)
    if is_counted(words):
        return f"{value} {singular(words) if value == '1' else words}"
    return f"{words} {value}"


def _part_change(comparison: Comparison, part: str) -> _Change:
    """Return the change of a list's length, or of a section that one of both lacks."""
    if part in comparison.parts.sections:
        other = _SECTION_WORDS.get(part, key_words(by_name(comparison, part)))
        one = "drawn requests" if part == _TRACE else f"no {other.removeprefix('an ').removeprefix('a ')}"
        if comparison.parts.sections[part]:
            return _Change(one, other, f"{other} instead of none", f"{one} → {other}")
        return _Change(other, one, one, f"{other} → {one}")
    a, b = comparison.parts.counts[part]
    if part == POOLS and not (a and b):
        one, other = (_pools(comparison, side, count) for side, count in ((1, a), (2, b)))
        return _Change(one, other, f"{other} instead of {one}", f"{one} → {other}")
    words = by_name(comparison, part)
    noun = _ENTRY_WORDS.get(part, (f"entry of {words}", f"entries of {words}"))
    one, other = (f"{count or 'no'} {noun[count != 1]}" for count in (a, b))
    return _Change(one, other, f"{other} instead of {a or 'none'}", f"{one} → {other}")


def _pools(comparison: Comparison, side: int, count: int) -> str:
    """Return the pools of a side by name, or its replicas where it has no pools."""
    rows = {row[0]: row[side] for row in comparison.changed}
    if not count:
        return valued(REPLICAS, rows.get(REPLICAS, ABSENT))
    names = [rows.get(f"{POOLS}.{index}.name", ABSENT) for index in range(count)]
    if count > _PHRASED or ABSENT in names:
        return f"{count} pools"
    return f"pool{'' if count == 1 else 's'} {listed(names)}"
