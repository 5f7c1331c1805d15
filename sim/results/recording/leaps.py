"""Leaps of equal steps, cut where a section of the measured time begins or ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

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
    return np.asarray(np.clip(np.log(seconds / GAP_LOW_S) / _LOG_STEP, 0, GAP_BINS - 1), dtype=np.int64)


def section_of(time: Floats, bounds: Floats) -> Ints:
    """Return the section in which each time lies; -1 before the first one, and beyond the last after the end.

    :param bounds: where each section starts, then the end; the later ones may be missing while time isn't there yet.
    """
    return np.asarray(np.searchsorted(bounds, time, side="right"), dtype=np.int64) - 1


def seconds_by_section(start: Floats, end: Floats, bounds: Floats, sections: int) -> tuple[Ints, Ints, Floats]:
    """Return the parts of intervals that lie in sections: which interval, which section, how many seconds.

    Nearly all intervals lie within one section, so only the others are compared with every bound.
    """
    first, last = section_of(start, bounds), section_of(end, bounds)
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

    def of(self, rows: Ints | NDArray[np.bool_]) -> Leaps:
        """Return some of the leaps."""
        return Leaps(*(getattr(self, name)[rows] for name in self.COLUMNS))

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


def steps_by_section(leaps: Leaps, bounds: Floats, sections: int) -> tuple[Leaps, Ints]:
    """Return the leaps in which requests decode, cut so that all steps of each start in one section, and that section.

    Steps that start before the first section are left out.

    What starts after the end of the measured time counts in the last section: requests that are measured get these
    tokens.
    """
    last_one = sections - 1
    section = np.minimum(section_of(leaps.start, bounds), last_one)
    beyond = np.minimum(section_of(leaps.start + leaps.seconds(), bounds), last_one)
    decoding = leaps.decoding > 0
    crossing = np.flatnonzero(decoding & (section != beyond) & (leaps.steps > 1))
    inside = decoding & (section >= 0)
    inside[crossing] = False
    whole, whole_section = leaps.of(inside), section[inside]
    if not crossing.size:
        return whole, whole_section
    cut, starts = leaps.of(crossing), bounds[:sections]
    every = cut.of(np.repeat(np.arange(crossing.size), len(starts)))
    before = every.steps_before(np.tile(starts, crossing.size)).reshape(crossing.size, -1)
    before = np.column_stack((before, cut.steps))
    at, cut_section = np.nonzero(np.diff(before, axis=1) > 0)
    parts = cut.of(at).part(before[at, cut_section], before[at, cut_section + 1])
    return joined([whole, parts]), np.concatenate((whole_section, cut_section))


def count_gaps(leaps: Leaps, section: Ints, counts: NDArray[np.int64], sums: Floats) -> None:
    """Add the gaps between tokens that end with the steps of these leaps.

    :param section: of each leap.
    :param counts: (sections, GAP_BINS) gaps so far; ``sums``: (sections,) their seconds.
    """
    loading = (leaps.load_s > 0) & (leaps.steps > 1)
    if loading.any():  # only the first step waits for the loads
        those = leaps.of(loading)
        one = np.ones(len(those.steps))
        leaps = joined([leaps.of(~loading), those.part(0 * one, one), those.part(one, those.steps)])
        section = np.concatenate((section[~loading], section[loading], section[loading]))
    np.add.at(sums, section, leaps.seconds() * leaps.decoding)
    steps, first, growth = leaps.steps, leaps.first, leaps.growth
    # Steps of one leap differ by the growing KV; pieces within half a bin's width count as equal.
    pieces = np.clip(np.ceil(growth * steps / (_HALF_A_BIN * first)), 1, steps).astype(np.int64)
    leap = np.repeat(np.arange(len(steps)), pieces)
    piece = np.arange(len(leap)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    low = np.floor(piece * steps[leap] / pieces[leap])
    high = np.floor((piece + 1) * steps[leap] / pieces[leap])
    seconds = first[leap] + growth[leap] * (low + high - 1) / 2 + leaps.load_s[leap]
    gaps = ((high - low) * leaps.decoding[leap]).astype(np.int64)
    np.add.at(counts, (section[leap], gap_bins(seconds)), gaps)
