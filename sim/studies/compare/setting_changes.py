"""What two scenarios say differently: keys with both values, lists of another length, sections that one lacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.spec.scenario_file import resolved_values

ABSENT, UNSET = "–", "unset"
"""Values of a key that a scenario has no place for, and of one that it leaves open."""
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

        Pools have replicas of their own: where one scenario has no pools, its replicas stand against them.
        """
        if key == REPLICAS and POOLS in self.counts:
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
    return rows, SettingChanges(differing, _sections(said[0], said[1]))


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


def _sections(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, bool]:
    """Return the sections that are unset on one side and have keys on the other."""
    found: dict[str, bool] = {}
    for lacking, having, second in ((one, other, True), (other, one, False)):
        parents = {part for key in having for part in _prefixes(key)} - having.keys()
        found |= {key: second for key, value in lacking.items() if value == UNSET and key in parents}
    return found


def _prefixes(key: str) -> Iterator[str]:
    """Yield a key's sections from the outermost one on, and the key itself."""
    parts = key.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])
