"""Leaps of equal steps, cut where a section of the measured time begins or ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats, Ints

GAP_LOW_S, GAP_STEP, GAP_BINS = 1e-7, 1.001, 27650
"""Gaps between tokens are counted in bins 0.1 % wide from 0.1 µs to 10^5 s."""
_LOG_STEP = float(np.log(GAP_STEP))
_HALF_A_BIN = 0.0005


@cache
def gap_bin_edges() -> Floats:
    """Return the upper edges of the bins, shape (GAP_BINS,); all callers get the same array, which is read-only."""
    edges: Floats = GAP_LOW_S * GAP_STEP ** np.arange(1, GAP_BINS + 1, dtype=np.float64)
    edges.flags.writeable = False
    return edges


def gap_bins(seconds: Floats) -> Ints:
    """Return the bin of each gap."""
    bins = np.log(np.maximum(seconds, GAP_LOW_S) / GAP_LOW_S) / _LOG_STEP
    return np.asarray(np.minimum(bins, GAP_BINS - 1), dtype=np.int64)


def section_of(time: Floats, bounds: Floats) -> Ints:
    """Return the section in which each time lies; -1 before the first one, and beyond the last after the end.

    :param bounds: where each section starts, then the end; the later ones may be missing while time isn't there yet.
    """
    return np.asarray(np.searchsorted(bounds, time, side="right"), dtype=np.int64) - 1


@dataclass(frozen=True, slots=True)
class Intervals:
    """Intervals of time.

    :ivar first, last: the sections in which they begin and end, by ``section_of``.
    """

    start: Floats
    end: Floats
    first: Ints
    last: Ints

    @staticmethod
    def of(start: Floats, end: Floats, bounds: Floats) -> Intervals:
        """Find the sections of intervals."""
        return Intervals(start, end, section_of(start, bounds), section_of(end, bounds))


def seconds_by_section(intervals: Intervals, bounds: Floats, sections: int) -> tuple[Ints, Ints, Floats]:
    """Return the parts of intervals that lie in sections: which interval, which section, how many seconds.

    Nearly all intervals lie within one section, so only the others are compared with every bound.
    """
    start, end, first, last = intervals.start, intervals.end, intervals.first, intervals.last
    row = np.flatnonzero((first == last) & (first >= 0) & (first < sections))
    section, seconds = first[row], end[row] - start[row]
    crossing = np.flatnonzero(first != last)
    if not crossing.size:
        return row, section, seconds
    low = bounds[:sections]
    high = np.append(bounds[1 : sections + 1], np.inf)[: len(low)]
    overlap = np.minimum(end[crossing, None], high) - np.maximum(start[crossing, None], low)
    at, cut_section = np.nonzero(overlap > 0)
    return (
        np.concatenate((row, crossing[at])),
        np.concatenate((section, cut_section)),
        np.concatenate((seconds, overlap[at, cut_section])),
    )


@dataclass(frozen=True, slots=True)
class Leaps:
    """Leaps, a column each.

    :ivar steps: how many steps; ``first``: seconds of the first one without its loads; ``growth``: by how much each is
        longer than the one before; ``load_s``: seconds of the loads that come before the first.
    :ivar decoding: sequences that get a token at the end of each step.
    """

    COLUMNS: ClassVar = ("start", "steps", "first", "growth", "load_s", "decoding")

    start: Floats
    steps: Floats
    first: Floats
    growth: Floats
    load_s: Floats
    decoding: Floats

    def seconds(self, steps: Floats | None = None) -> Floats:
        """Return how long the first ``steps`` steps take, of every leap; None: all of them.

        The clock counts the same way (``BatchServer``), so that boundaries are met exactly.
        """
        n = self.steps if steps is None else steps
        return self.load_s + n * self.first + self.growth * (n * (n - 1) / 2)

    def of(self, rows: Ints) -> Leaps:
        """Return some of the leaps."""
        return Leaps(*(getattr(self, name).take(rows) for name in self.COLUMNS))

    def part(self, low: Floats, high: Floats) -> Leaps:
        """Return each leap from step ``low`` up to, and without, step ``high``; loads belong to the first step."""
        first_one = low == 0
        return replace(
            self,
            start=np.where(first_one, self.start, self.start + self.seconds(low)),
            steps=high - low,
            first=self.first + self.growth * low,
            load_s=np.where(first_one, self.load_s, 0.0),
        )

    def steps_before(self, time: Floats) -> Floats:
        """Return how many steps of each leap start before a time of its own."""
        gone = np.maximum(time - self.start - self.load_s, 0.0)
        shortest = self.first - self.growth / 2
        guess = np.ceil(2 * gone / (np.sqrt(shortest * shortest + 2 * self.growth * gone) + shortest))
        count = np.clip(guess, 0, self.steps)
        # The guess is rounded; right is where the steps, timed as the clock timed them, start before.
        while np.any(over := (count > 0) & (self._starts(count - 1) >= time)):
            count = count - over
        while np.any(under := (count < self.steps) & (self._starts(count) < time)):
            count = count + under
        return count

    def _starts(self, step: Floats) -> Floats:
        return np.where(step > 0, self.start + self.seconds(step), self.start)


def joined(parts: list[Leaps]) -> Leaps:
    """Return leaps after one another."""
    return Leaps(*(np.concatenate([getattr(part, name) for part in parts]) for name in Leaps.COLUMNS))


def steps_by_section(leaps: Leaps, intervals: Intervals, bounds: Floats, sections: int) -> list[tuple[Leaps, Ints]]:
    """Return leaps that each start all their steps in one section, with that section: those that do so anyway, and the
    parts of the others.

    The former come as an array of all leaps, which takes less time than picking some. In it, leaps that were cut, and
    those that start before the first section, have ``decoding`` 0.

    What starts after the end of the measured time counts in the last section: requests that are measured get these
    tokens.

    :param intervals: from the start of each leap to its end.
    """
    last_one = sections - 1
    section, beyond = np.minimum(intervals.first, last_one), np.minimum(intervals.last, last_one)
    crossing = np.flatnonzero((leaps.decoding > 0) & (section != beyond) & (leaps.steps > 1))
    decoding = np.where(section >= 0, leaps.decoding, 0.0)
    decoding[crossing] = 0.0
    whole = replace(leaps, decoding=decoding), np.maximum(section, 0)
    if not crossing.size:
        return [whole]
    cut, starts = leaps.of(crossing), bounds[:sections]
    every = cut.of(np.repeat(np.arange(crossing.size), len(starts)))
    before = every.steps_before(np.tile(starts, crossing.size)).reshape(crossing.size, -1)
    before = np.column_stack((before, cut.steps))
    at, cut_section = np.nonzero(np.diff(before, axis=1) > 0)
    return [whole, (cut.of(at).part(before[at, cut_section], before[at, cut_section + 1]), cut_section)]


def count_gaps(parts: list[tuple[Leaps, Ints]], counts: NDArray[np.int64], sums: Floats) -> None:
    """Add the gaps between tokens that end with the steps of these leaps.

    :param parts: leaps, and the section of each.
    :param counts: (sections, GAP_BINS) gaps so far; ``sums``: (sections,) their seconds.
    """
    for leaps, section in _with_loads_apart(parts):
        np.add.at(sums, section, leaps.seconds() * leaps.decoding)
        tokens = leaps.steps * leaps.decoding
        # Steps of one leap differ by the growing KV; pieces within half a bin's width count as equal. Few leaps differ
        # by more.
        growing = np.flatnonzero((leaps.growth * leaps.steps > _HALF_A_BIN * leaps.first) & (leaps.steps > 1))
        tokens[growing] = 0.0
        _add_gaps(leaps, 0.0, leaps.steps, tokens, section, counts)
        those = leaps.of(growing)
        pieces = np.clip(np.ceil(those.growth * those.steps / (_HALF_A_BIN * those.first)), 1, those.steps)
        pieces = pieces.astype(np.int64)
        leap = np.repeat(np.arange(len(pieces)), pieces)
        piece = np.arange(len(leap)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        each = those.of(leap)
        low = np.floor(piece * each.steps / pieces[leap])
        high = np.floor((piece + 1) * each.steps / pieces[leap])
        _add_gaps(each, low, high, (high - low) * each.decoding, section[growing[leap]], counts)


def _with_loads_apart(parts: list[tuple[Leaps, Ints]]) -> list[tuple[Leaps, Ints]]:
    """Return the leaps with a first step that waits for loads as two: only that step takes longer."""
    if not any(np.any(leaps.load_s) for leaps, _ in parts):
        return parts
    leaps, section = joined([each for each, _ in parts]), np.concatenate([each for _, each in parts])
    loading = (leaps.load_s > 0) & (leaps.steps > 1)
    split, others = np.flatnonzero(loading), np.flatnonzero(~loading)
    those, one = leaps.of(split), np.ones(len(split))
    pieces = [leaps.of(others), those.part(0 * one, one), those.part(one, those.steps)]
    return [(joined(pieces), np.concatenate((section[others], section[split], section[split])))]


def _add_gaps(
    leaps: Leaps, low: Floats | float, high: Floats, tokens: Floats, section: Ints, counts: NDArray[np.int64]
) -> None:
    """Add as many gaps as there are tokens, each as long as the mean step of its leap from step ``low`` up to, and
    without, step ``high``."""
    seconds = leaps.first + leaps.growth * (low + high - 1) / 2 + leaps.load_s
    # One index into the flat counts: numpy adds at pairs of indexes ten times as slowly.
    np.add.at(counts.reshape(-1), section * GAP_BINS + gap_bins(seconds), tokens.astype(np.int64))
