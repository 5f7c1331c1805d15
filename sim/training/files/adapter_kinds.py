"""Turns the adapters of a census into a few kinds for a scenario's ``mix``, with sizes from the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sim.spec.scenario import Targets
from sim.traffic.adapters import MODULES
from sim.training.files.census import Entry

MOST_KINDS = 16


@dataclass(frozen=True, slots=True)
class MixKind:
    """Adapters that a scenario treats as alike.

    :ivar rank: the largest of them; ``size``: bytes of one adapter's tensors, the mean where ``exact`` is false.
    """

    count: int
    rank: int
    targets: Targets
    size: int
    exact: bool


def kinds_of(entries: Sequence[Entry], most: int = MOST_KINDS) -> list[MixKind]:
    """Return the kinds of the adapters, the most frequent first; their counts add up to all.

    Adapters of equal rank, targets and bytes are a kind. If there are more than ``most``, sizes are merged first, then
    the kinds with the closest sizes: a merged kind has the larger rank, the targets of both and the mean size, so that
    the total bytes stay the same.
    """
    counted: dict[tuple[int, Targets, int], int] = {}
    for entry in entries:
        key = entry.rank, _targets(entry), entry.bytes
        counted[key] = counted.get(key, 0) + 1
    kinds = [MixKind(count, rank, targets, size, True) for (rank, targets, size), count in counted.items()]
    if len(kinds) > most:
        kinds = _one_size_each(kinds)
    kinds.sort(key=lambda kind: (kind.size, kind.rank))
    while len(kinds) > 4 * most:  # thousands of kinds: all neighbours at once, or this would take minutes
        kinds = [_merged(*kinds[at : at + 2]) if at + 1 < len(kinds) else kinds[at] for at in range(0, len(kinds), 2)]
    while len(kinds) > most:
        gaps = [upper.size - lower.size for lower, upper in pairwise(kinds)]
        place = gaps.index(min(gaps))
        kinds[place : place + 2] = [_merged(kinds[place], kinds[place + 1])]
    return sorted(kinds, key=lambda kind: (-kind.count, kind.size, kind.rank))


def _targets(entry: Entry) -> Targets:
    """Return its targets as scenarios have them; all linear layers where it has none of those."""
    ours = tuple(name for name in MODULES if name in entry.modules)
    return "all-linear" if not ours or ours == MODULES else ours  # type: ignore[return-value]


def _one_size_each(kinds: Sequence[MixKind]) -> list[MixKind]:
    alike: dict[tuple[int, Targets], MixKind] = {}
    for kind in kinds:
        key = kind.rank, kind.targets
        alike[key] = _merged(alike[key], kind) if key in alike else kind
    return list(alike.values())


def _merged(one: MixKind, other: MixKind) -> MixKind:
    count = one.count + other.count
    both: Targets = "all-linear"
    if one.targets != "all-linear" and other.targets != "all-linear":
        union = tuple(name for name in MODULES if name in one.targets or name in other.targets)
        both = "all-linear" if union == MODULES else union
    size = round((one.size * one.count + other.size * other.count) / count)
    return MixKind(count, max(one.rank, other.rank), both, size, exact=one.exact and one.size == other.size)
