"""What one replication leaves behind: a row per request and per load, and sums over steps.

The world writes flat rows into growing arrays; ``Recorder`` turns them into columns and, for steps, into sums by
section as it goes, so that a long run stays small.

A run is cut into a warm-up, ``sections`` equal parts of the measured requests, and a drain after the last arrival.
"""

from __future__ import annotations

import bisect
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sim.traffic.request import Request  # policies and results don't import each other

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COMPLETED, UNFINISHED, REFUSED = 0, 1, 2
"""How a request ended: with its last token; not before the simulation stopped; refused (too long for the KV cache)."""

_COLUMNS: dict[str, type] = {
    "index": np.int64, "arrival_s": np.float64, "adapter": np.int32, "prompt_tokens": np.int32,
    "output_tokens": np.int32, "outcome": np.int8, "tier": np.int8, "replica": np.int16, "preemptions": np.int16,
    "load_queue_s": np.float64, "load_wait_s": np.float64, "admitted_s": np.float64, "first_token_s": np.float64,
    "finished_s": np.float64, "status": np.int8,
}  # fmt: skip
_STEP_FIELDS = 9
_LOAD_FIELDS = 5

GAP_LOW_S, GAP_STEP, GAP_BINS = 1e-7, 1.001, 27650
"""Gaps between tokens are counted in bins 0.1 % wide from 0.1 µs to 10^5 s."""
_LOG_STEP = float(np.log(GAP_STEP))


def gap_bin_edges() -> Floats:
    """Return the upper edges of the bins, shape (GAP_BINS,)."""
    return GAP_LOW_S * GAP_STEP ** np.arange(1, GAP_BINS + 1, dtype=np.float64)


@dataclass(slots=True)
class Recording:
    """One replication, ready for statistics.

    :ivar requests: columns of ``_COLUMNS``, sorted by index; times that never came are -1.
    :ivar loads: columns started_s, ended_s, adapter, tier, asked_s.
    :ivar bounds: (sections + 1,) times: section i is from ``bounds[i]`` to ``bounds[i + 1]``, the last is the end
        of the measured time.
    :ivar first_measured: index of the first measured request; ``section_of``: by request, -1 in the warm-up.
    :ivar gap_counts: (sections, GAP_BINS) gaps between tokens; ``gap_sum_s``: (sections,) their sum.
    :ivar busy_s: (sections,) seconds in which a step ran; ``blocked_s``: by reason, (reasons, sections).
    :ivar running_area: sequence-seconds in the batch over the whole run, from steps alone.
    :ivar room_short_s: seconds of the measured time in which a load waited for a slot.
    :ivar inside_area: request-seconds in the replicas over the whole run, counted at arrivals and departures.
    """

    requests: dict[str, NDArray[np.generic]]
    loads: dict[str, Floats]
    bounds: Floats
    section_of: Ints
    gap_counts: NDArray[np.int64]
    gap_sum_s: Floats
    busy_s: Floats
    blocked_s: Floats
    running_area: float
    room_short_s: float
    inside_area: float
    stopped_s: float
    evictions: int = 0
    in_use_peak: int = 0
    kv_peak_share: float = 0.0
    facts: dict[str, float] = field(default_factory=dict)


class Recorder:
    """Take rows from the world and keep them small.

    :param sections: equal parts of the measured requests.
    :ivar bounds: start of each section so far, then the end; told by ``mark`` before time gets there.
    :ivar request_rows: the world extends it by the values of ``_COLUMNS`` for every request that leaves.
    :ivar step_rows: by (start, end, steps, first_s, growth_s, decoding, running, load_s, blocked) for every leap.
    :ivar load_rows: by (start, end, adapter, tier, asked) for every load.
    """

    def __init__(self, sections: int) -> None:
        self.sections = sections
        self.bounds: list[float] = []
        self.step_rows = array("d")
        self.request_rows = array("d")
        self.load_rows = array("d")
        self._tables: list[NDArray[np.float64]] = []
        self._gap_counts = np.zeros((sections, GAP_BINS), dtype=np.int64)
        self._gap_sum = np.zeros(sections)
        self._busy = np.zeros(sections)
        self._blocked = np.zeros((3, sections))
        self._running_area = 0.0
        self._short: list[tuple[float, float]] = []

    def mark(self, time: float) -> None:
        """Tell where the next section starts (or, last, where the measured time ends)."""
        self.bounds.append(time)

    def turned_away(self, r: Request, replica: int, status: int) -> None:
        """Note a request that did not complete: ``UNFINISHED`` or ``REFUSED``."""
        self.request_rows.extend((
            r.index, r.arrival_s, r.adapter, r.prompt_tokens, r.output_tokens, r.outcome, r.tier, replica,
            r.preemptions, r.load_queue_s, r.load_wait_s, r.admitted_s, r.first_token_s, -1.0, status,
        ))  # fmt: skip

    def short_of_room(self, start: float, end: float) -> None:
        """Note a time in which the first load in a queue found no room."""
        self._short.append((start, end))

    def gaps(self, seconds: list[float], now: float) -> None:
        """Note single gaps between tokens that end now: those across a preemption."""
        section = self._section(now)
        if section >= 0:
            bins = np.clip(np.log(np.asarray(seconds) / GAP_LOW_S) / _LOG_STEP, 0, GAP_BINS - 1).astype(np.int64)
            np.add.at(self._gap_counts[section], bins, 1)
            self._gap_sum[section] += sum(seconds)

    def _section(self, time: float) -> int:
        return min(bisect.bisect_right(self.bounds, time), self.sections) - 1

    def flush(self) -> None:
        """Sum up the step rows so far and set request rows aside; sections up to now must be marked."""
        self._flush_steps()
        if self.request_rows:
            self._tables.append(np.array(self.request_rows).reshape(-1, len(_COLUMNS)))
            del self.request_rows[:]

    def _flush_steps(self) -> None:
        if not self.step_rows:
            return
        rows = np.array(self.step_rows).reshape(-1, _STEP_FIELDS)
        del self.step_rows[:]
        start, end, steps, first, growth, decoding, running, load_s, blocked = rows.T
        self._running_area += float(np.sum(running * (end - start)))
        # Gaps after the end of the measured time belong to measured requests: they count in the last section.
        bounds = np.asarray(self.bounds)
        section = np.searchsorted(bounds, start, side="right") - 1
        spans = np.clip(end, None, bounds[-1] if len(bounds) > self.sections else np.inf) - start
        timed = (section >= 0) & (section < self.sections)
        np.add.at(self._busy, section[timed], spans[timed])
        np.add.at(self._blocked, (blocked[timed].astype(np.int64), section[timed]), spans[timed])
        counted = (section >= 0) & (decoding > 0)
        section = np.minimum(section, self.sections - 1)
        self._count_gaps(section[counted], *(column[counted] for column in (steps, first, growth, decoding, load_s)))

    def _count_gaps(
        self, section: Ints, steps: Floats, first: Floats, growth: Floats, decoding: Floats, load_s: Floats
    ) -> None:
        total = load_s + steps * first + growth * steps * (steps - 1) / 2
        np.add.at(self._gap_sum, section, total * decoding)
        # Steps of one leap differ by the growing KV; pieces within half a bin's width count as equal.
        pieces = np.clip(np.ceil(growth * steps / (0.0005 * first)), 1, steps).astype(np.int64)
        leap = np.repeat(np.arange(len(steps)), pieces)
        piece = np.arange(len(leap)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        low = np.floor(piece * steps[leap] / pieces[leap])
        high = np.floor((piece + 1) * steps[leap] / pieces[leap])
        seconds = first[leap] + growth[leap] * (low + high - 1) / 2 + load_s[leap]
        bins = np.clip(np.log(seconds / GAP_LOW_S) / _LOG_STEP, 0, GAP_BINS - 1).astype(np.int64)
        np.add.at(self._gap_counts, (section[leap], bins), ((high - low) * decoding[leap]).astype(np.int64))

    def close(self, stopped_s: float, inside_area: float) -> Recording:
        """Return the recording of a simulation that stopped at ``stopped_s``."""
        self.flush()
        table = np.concatenate(self._tables) if self._tables else np.empty((0, len(_COLUMNS)))
        self._tables = []
        table = table[np.argsort(table[:, 0], kind="stable")]
        requests: dict[str, NDArray[np.generic]] = {
            name: table[:, i].astype(kind) for i, (name, kind) in enumerate(_COLUMNS.items())
        }
        loads = np.array(self.load_rows).reshape(-1, _LOAD_FIELDS)
        bounds = np.asarray(self.bounds)
        arrival = table[:, 1]
        section = np.minimum(np.searchsorted(bounds, arrival, side="right") - 1, self.sections - 1)
        start, end = bounds[0], bounds[-1]
        short = sum(max(0.0, min(b, end) - max(a, start)) for a, b in self._short)
        return Recording(
            requests=requests,
            loads=dict(zip(("started_s", "ended_s", "adapter", "tier", "asked_s"), loads.T, strict=True)),
            bounds=bounds,
            section_of=section,
            gap_counts=self._gap_counts,
            gap_sum_s=self._gap_sum,
            busy_s=self._busy,
            blocked_s=self._blocked,
            running_area=self._running_area,
            room_short_s=short,
            inside_area=inside_area,
            stopped_s=stopped_s,
        )
