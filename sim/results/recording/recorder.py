"""Turn what happens in a replication into a ``Recording``.

The world tells ``Recorder`` of requests, leaps and loads as they end. It packs them into rows, and turns these into
columns and, for steps, into sums by section as it goes, so that a long run stays small.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
from librt.strings import BytesWriter, write_f64_le, write_i16_le, write_i32_le, write_i64_le
from numpy.typing import NDArray

from sim.arrays import Floats, Ints
from sim.results.recording.leaps import (
    GAP_BINS,
    Intervals,
    Leaps,
    count_gaps,
    gap_bins,
    seconds_by_section,
    section_of,
    steps_by_section,
)
from sim.results.records import COMPLETED, HOST_FILL_ROW, WRONG_SERVED, Event, Recording
from sim.traffic.request import BASE_MODEL, BY_ADAPTER_LIMIT, FROM_STORAGE

if TYPE_CHECKING:
    from sim.traffic.generate import Chunk
    from sim.traffic.request import Request

_KNOWN: dict[str, type] = {
    "arrival_s": np.float64,
    "adapter": np.int32,
    "prompt_tokens": np.int32,
    "output_tokens": np.int32,
}
"""Columns that are known before a request comes."""


def _row(fields: str) -> np.dtype[np.void]:
    """Return the layout of packed rows. Whoever writes them writes these fields, in this order.

    Written value by value, compiled, no value becomes a Python object on its way. Lengths of rows are multiples of 8
    bytes, and so is the place of each field of 8, because numpy reads unaligned columns at half the speed.
    """
    return np.dtype([(name, f"<{kind}") for name, kind in (field.split(":") for field in fields.split())])


LEAP_ROW = _row("start:f8 first:f8 growth:f8 load_s:f8 steps:i4 decoding:i4 running:i4 blocked:i2 replica:i2")
PAUSE_ROW = _row("start:f8 seconds:f8 count:f8")
_LOAD_ROW = _row("started_s:f8 ended_s:f8 asked_s:f8 adapter:i4 tier:i2 replica:i2")
_MARK_ROW = _row("index:i8 marks:i4 version:i2 last_version:i2 tokens_before:i4 tries:i2 detected:i2")
_REQUEST_ROW = _row(
    "index:i8 outcome:i2 tier:i2 replica:i4 preemptions:i4 cached_tokens:i4 "
    "load_queue_s:f8 load_wait_s:f8 admitted_s:f8 first_token_s:f8 finished_s:f8 status:i8"
)
_NARROW: dict[str, type] = {
    "outcome": np.int8,
    "tier": np.int8,
    "replica": np.int16,
    "preemptions": np.int16,
    "status": np.int8,
}
"""Columns of requests that are kept in fewer bytes than they are written in."""
REQUEST_COLUMNS: dict[str, type] = {
    "index": np.int64,
    **_KNOWN,
    **{name: _NARROW.get(name, _REQUEST_ROW[name].type) for name in (_REQUEST_ROW.names or ())[1:]},
}


class Recorder:
    """Take rows from the world and keep them small.

    :param sections: equal parts of the measured requests.
    :param own: replicas with slots for adapters; those behind them swap whole models, and lack no slots.
    :param prefix_cache: whether requests may find tokens cached, so that there is a column for them.
    :ivar bounds: start of each section so far, then the end; set by ``mark`` before time gets there.
    :ivar leap_rows, pause_rows: rows of ``record_leap`` and ``record_pause`` since the last flush.
    :ivar backoffs: rows of ``Recording.backoffs``.
    :ivar events: what happens to the fleet, in order.
    :ivar hand_overs: rows of ``Recording.hand_overs``.
    :ivar lives: rows of ``Recording.lives``; ``moves``, ``held``: rows of ``Recording.moves`` and
        ``Recording.held``.
    :ivar settled: times, adapters and versions: what ends from then on, and has no other mark, is by this version.
    """

    def __init__(self, sections: int, replicas: int = 1, own: int | None = None, *, prefix_cache: bool = False) -> None:
        self.sections = sections
        self.prefix_cache = prefix_cache
        self._kinds = {name: kind for name, kind in REQUEST_COLUMNS.items() if prefix_cache or name != "cached_tokens"}
        self._own = replicas if own is None else own
        self._mark_rows = BytesWriter()
        self._host_fill_rows = BytesWriter()
        self.events: list[Event] = []
        self.backoffs: list[tuple[float, float, bool, int]] = []
        self.lives: list[tuple[int, float, float, float, float]] = []
        self.moves: list[tuple[float, int, int, bool]] = []
        self.held: list[tuple[int, float]] = []
        self.hand_overs: list[tuple[int, float, float, float, float, float]] = []
        self.settled: list[tuple[float, Ints, Ints]] = []
        self._busy_by_replica = np.zeros(replicas)
        self._sessions = bytearray()
        self.bounds: list[float] = []
        self.leap_rows = BytesWriter()
        self.pause_rows = BytesWriter()
        self._request_rows = BytesWriter()
        self._load_rows = BytesWriter()
        # Bytes that grow, for arrays of each chunk would leave holes in memory too small for a whole column.
        self._columns = {name: bytearray() for name in self._kinds}
        self._gap_counts = np.zeros((sections, GAP_BINS), dtype=np.int64)
        self._gap_sum = np.zeros(sections)
        self._busy = np.zeros(sections)
        self._blocked = np.zeros((4, sections))
        self._running_area = 0.0
        self._short: list[tuple[float, float]] = []
        self._busy_so_far: Floats | None = None  # by replica; None: nobody reads it
        self._rows_read = 0  # bytes of ``leap_rows`` that it includes

    def mark(self, time: float) -> None:
        """Tell where the next section starts (or, last, where the measured time ends)."""
        self.bounds.append(time)

    def to_come(self, chunk: Chunk) -> None:
        """Take what is known of the next requests before they come."""
        for name in _KNOWN:
            self._columns[name] += getattr(chunk, name).astype(REQUEST_COLUMNS[name]).tobytes()
        if chunk.session is not None:
            self._sessions += chunk.session.astype(np.int64).tobytes()

    def record_leap(
        self,
        start_s: float,
        first_s: float,
        growth_s: float,
        load_s: float,
        steps: int,
        decoding: int,
        running: int,
        blocked: int,
        replica: int,
    ) -> None:
        """Note equal steps that have ended, one after the other.

        :param first_s: seconds of the first step without ``load_s``, for which it waited for loads; each further step
            takes ``growth_s`` longer.
        :param decoding: sequences that got a token from each step, without those of ``record_pause``.
        :param blocked: why no other request joined, one of ``sim.traffic.request``.
        """
        rows = self.leap_rows
        write_f64_le(rows, start_s)
        write_f64_le(rows, first_s)
        write_f64_le(rows, growth_s)
        write_f64_le(rows, load_s)
        write_i32_le(rows, steps)
        write_i32_le(rows, decoding)
        write_i32_le(rows, running)
        write_i16_le(rows, blocked)
        write_i16_le(rows, replica)

    def record_pause(self, start_s: float, seconds: float, count: int) -> None:
        """Note gaps between tokens that end with the step that started then, and are longer than that step.

        :param count: -1: a gap that was noted before, since its token is lost.
        """
        rows = self.pause_rows
        write_f64_le(rows, start_s)
        write_f64_le(rows, seconds)
        write_f64_le(rows, float(count))

    def record_load(
        self, started_s: float, ended_s: float, asked_s: float, adapter: int, tier: int, replica: int
    ) -> None:
        """Note a load of an adapter that has ended, or will end then."""
        rows = self._load_rows
        write_f64_le(rows, started_s)
        write_f64_le(rows, ended_s)
        write_f64_le(rows, asked_s)
        write_i32_le(rows, adapter)
        write_i16_le(rows, tier)
        write_i16_le(rows, replica)

    def record_host_fill(self, index: int, wait_s: float) -> None:
        """Note for how long a completed request waited for host memory."""
        write_i64_le(self._host_fill_rows, index)
        write_f64_le(self._host_fill_rows, wait_s)

    def mark_request(
        self,
        index: int,
        marks: int,
        versions: tuple[int, int] = (0, 0),
        tokens_before: int = 0,
        tries: int = 0,
        detected: int = 0,
    ) -> None:
        """Note more about a request, any number of times: marks, tries and ``detected`` add up.

        :param versions: of its first and of its last token; 0 where this call doesn't speak of them, like
            ``tokens_before``.
        """
        rows = self._mark_rows
        write_i64_le(rows, index)
        write_i32_le(rows, marks)
        write_i16_le(rows, versions[0])
        write_i16_le(rows, versions[1])
        write_i32_le(rows, tokens_before)
        write_i16_le(rows, tries)
        write_i16_le(rows, detected)

    def record_completed(self, requests: Sequence[Request], replica: int, now: float) -> None:
        """Note requests that have their last token."""
        for request in requests:
            self._record_request(request, now, replica, COMPLETED)

    def record_unserved(self, request: Request, replica: int, status: int) -> None:
        """Note a request that did not complete: ``UNFINISHED``, ``REFUSED`` or ``FAILED``."""
        self._record_request(request, -1.0, replica, status)

    def _record_request(self, request: Request, finished_s: float, replica: int, status: int) -> None:
        rows = self._request_rows
        write_i64_le(rows, request.index)
        write_i16_le(rows, request.outcome)
        write_i16_le(rows, request.tier)
        write_i32_le(rows, replica)
        write_i32_le(rows, request.preemptions)
        write_i32_le(rows, request.cached_tokens)
        write_f64_le(rows, request.load_queue_s)
        write_f64_le(rows, request.load_wait_s)
        write_f64_le(rows, request.admitted_s)
        write_f64_le(rows, request.first_token_s)
        write_f64_le(rows, finished_s)
        write_i64_le(rows, status)

    def load_attempts(
        self, spans: Iterable[tuple[float, float]], asked_s: float, adapter: int, replica: int, now: float = inf
    ) -> None:
        """Note the attempts at one load from storage, and the pauses between them, up to ``now``.

        :param spans: when each attempt starts and ends.
        """
        before = inf
        for started_s, ended_s in spans:
            if before <= min(started_s, now):
                self.backoffs.append((before, min(started_s, now), started_s <= now, replica))
            if started_s <= now:
                self.record_load(started_s, min(ended_s, now), asked_s, adapter, FROM_STORAGE, replica)
            before = ended_s

    def short_of_room(self, start: float, end: float) -> None:
        """Note a time in which the first load in a queue found no room."""
        self._short.append((start, end))

    def cut_loads(self, replica: int, now: float) -> None:
        """End the loads of a replica that were noted with an end to come, and drop those that were to begin."""
        self.backoffs = [
            (a, min(b, now) if owner == replica else b, again and (owner != replica or b <= now), owner)
            for a, b, again, owner in self.backoffs
            if owner != replica or a <= now
        ]
        rows = np.frombuffer(self._load_rows.getvalue(), dtype=_LOAD_ROW).copy()
        there = rows["replica"] == replica
        rows["ended_s"][there & (rows["ended_s"] > now)] = now
        self._load_rows = BytesWriter()
        self._load_rows.write(rows[~(there & (rows["started_s"] > now))].tobytes())

    def gaps(self, seconds: list[float], step_start_s: float) -> None:
        """Note single gaps between tokens that end with the step that started then: those across a preemption."""
        section = min(bisect.bisect_right(self.bounds, step_start_s), self.sections) - 1
        if section >= 0:
            np.add.at(self._gap_counts[section], gap_bins(np.asarray(seconds)), 1)
            self._gap_sum[section] += sum(seconds)

    def flush(self) -> None:
        """Sum up the step rows so far and set request rows aside; sections up to now must be marked."""
        self._flush_steps()
        if self._request_rows:
            rows = np.frombuffer(self._request_rows.getvalue(), dtype=_REQUEST_ROW)
            for name, kind in self._kinds.items():
                if name not in _KNOWN:
                    self._columns[name] += rows[name].astype(kind).data
            self._request_rows = BytesWriter()

    def busy_so_far(self) -> Floats:
        """Return (replicas,) seconds of the steps that have ended.

        Call it from the first step on, now and then: each call reads the steps since the last one.
        """
        if self._busy_so_far is None:
            self._busy_so_far = np.zeros(len(self._busy_by_replica))
        rows = np.frombuffer(self.leap_rows.getvalue(), dtype=LEAP_ROW)[self._rows_read // LEAP_ROW.itemsize :]
        self._rows_read = len(self.leap_rows)
        leaps = Leaps(*(rows[name].astype(np.float64) for name in Leaps.COLUMNS))
        self._busy_so_far += np.bincount(rows["replica"], weights=leaps.seconds(), minlength=len(self._busy_so_far))
        return self._busy_so_far

    def _flush_steps(self) -> None:
        if self.pause_rows:
            self._flush_pauses()
        if not self.leap_rows:
            return
        if self._busy_so_far is not None:
            self.busy_so_far()
            self._rows_read = 0
        rows = np.frombuffer(self.leap_rows.getvalue(), dtype=LEAP_ROW)
        self.leap_rows = BytesWriter()
        leaps = Leaps(*(rows[name].astype(np.float64) for name in Leaps.COLUMNS))
        end = leaps.start + leaps.seconds()
        self._running_area += float(np.sum(rows["running"] * (end - leaps.start)))
        bounds = np.asarray(self.bounds)
        intervals = Intervals.of(leaps.start, end, bounds)
        row, section, seconds = seconds_by_section(intervals, bounds, self.sections)
        np.add.at(self._busy, section, seconds)
        replica, blocked = rows["replica"][row], rows["blocked"][row].astype(np.int64)
        self._busy_by_replica += np.bincount(replica, weights=seconds, minlength=len(self._busy_by_replica))
        if self._own < len(self._busy_by_replica):
            blocked = np.where((blocked == BY_ADAPTER_LIMIT) & (replica >= self._own), 0, blocked)
        np.add.at(self._blocked.reshape(-1), blocked * self.sections + section, seconds)
        count_gaps(steps_by_section(leaps, intervals, bounds, self.sections), self._gap_counts, self._gap_sum)

    def _flush_pauses(self) -> None:
        rows = np.frombuffer(self.pause_rows.getvalue(), dtype=PAUSE_ROW)
        self.pause_rows = BytesWriter()
        section = section_of(rows["start"], np.asarray(self.bounds))
        measured = section >= 0
        section, seconds, count = np.minimum(section, self.sections - 1)[measured], rows["seconds"], rows["count"]
        seconds, count = seconds[measured], count[measured]
        np.add.at(self._gap_sum, section, seconds * count)
        np.add.at(self._gap_counts, (section, gap_bins(seconds)), count.astype(np.int64))

    def _requests(self) -> dict[str, NDArray[np.generic]]:
        """Return the columns of all request rows, sorted by index.

        One after the other, each let go before the next: two copies of ten million requests would take too much.
        """
        index = np.frombuffer(self._columns.pop("index"), dtype=np.int64)
        order = np.argsort(index)
        ordered = index.take(order)
        del index
        columns: dict[str, NDArray[np.generic]] = {"index": ordered}
        for name, kind in self._kinds.items():
            if name != "index":
                column: NDArray[Any] = np.frombuffer(self._columns.pop(name), dtype=kind)
                columns[name] = column.take(ordered if name in _KNOWN else order)
        if self._sessions:
            columns["session"] = np.frombuffer(self._sessions, dtype=np.int64)[ordered]
        return columns | self._marks(columns)

    def _marks(self, requests: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Return the columns of ``mark_request`` for requests, which are sorted by index."""
        index = requests["index"]
        columns: dict[str, NDArray[np.generic]] = {
            name: np.zeros(len(index), np.int32) for name in (_MARK_ROW.names or ())[1:]
        }
        rows = np.frombuffer(self._mark_rows.getvalue(), dtype=_MARK_ROW)
        at = np.searchsorted(index, rows["index"])
        np.bitwise_or.at(columns["marks"], at, rows["marks"])
        np.add.at(columns["tries"], at, rows["tries"])
        np.add.at(columns["detected"], at, rows["detected"])
        for name in ("version", "last_version", "tokens_before"):
            known = rows[name] > 0
            columns[name][at[known]] = rows[name][known]
        columns["version"] = self._settled_versions(requests, columns["version"])
        columns["last_version"] = np.maximum(columns["last_version"], columns["version"])
        # Answered by no version of its adapter.
        wrongly_served = (np.asarray(columns["marks"], dtype=np.int64) & WRONG_SERVED) > 0
        columns["version"][wrongly_served] = columns["last_version"][wrongly_served] = 0
        return columns

    def _settled_versions(self, requests: dict[str, NDArray[np.generic]], recorded: NDArray[Any]) -> NDArray[np.int32]:
        """Return versions with gaps filled from ``settled``; 0: no token was computed."""
        answered = (requests["status"] == COMPLETED) | (np.asarray(requests["first_token_s"], dtype=np.float64) >= 0)
        version = (answered & (requests["adapter"] != BASE_MODEL)).astype(np.int32)  # the base model has none
        if self.settled:
            adapter = np.asarray(requests["adapter"], dtype=np.int64)
            finished_s = np.asarray(requests["finished_s"], dtype=np.float64)
            size = int(max(adapter.max(initial=0), *(names.max() for _, names, _ in self.settled))) + 2  # last: base
            for time, names, versions in self.settled:  # in order of time: the last one counts
                of_adapter = np.zeros(size, dtype=np.int32)
                of_adapter[names] = versions
                later = (finished_s >= time) & (of_adapter[adapter] > 0)
                version[later] = of_adapter[adapter][later]
        return np.asarray(np.where(recorded > 0, recorded, version), dtype=np.int32)

    def close(self, stopped_s: float, inside_area: float) -> Recording:
        """Return the recording of a simulation that stopped at ``stopped_s``."""
        self.flush()
        requests = self._requests()
        loads = np.frombuffer(self._load_rows.getvalue(), dtype=_LOAD_ROW)
        bounds = np.asarray(self.bounds)
        section = np.searchsorted(bounds, requests["arrival_s"], side="right").astype(np.int32) - 1
        start, end = bounds[0], bounds[-1]
        short = sum(max(0.0, min(b, end) - max(a, start)) for a, b in self._short)
        return Recording(
            requests=requests,
            loads={name: loads[name].astype(np.float64) for name in _LOAD_ROW.names or ()},
            bounds=bounds,
            section_of=np.minimum(section, self.sections - 1),
            gap_counts=self._gap_counts,
            gap_sum_s=self._gap_sum,
            busy_s=self._busy,
            blocked_s=self._blocked,
            busy_by_replica=self._busy_by_replica,
            host_fills=np.frombuffer(self._host_fill_rows.getvalue(), dtype=HOST_FILL_ROW),
            backoffs=np.array(self.backoffs, dtype=np.float64).reshape(-1, 4),
            events=self.events,
            lives=np.array(self.lives, dtype=np.float64).reshape(-1, 5),
            moves=np.array(self.moves, dtype=np.float64).reshape(-1, 4),
            held=np.array(self.held, dtype=np.float64).reshape(-1, 2),
            hand_overs=np.array(self.hand_overs, dtype=np.float64).reshape(-1, 6),
            running_area=self._running_area,
            room_short_s=short,
            inside_area=inside_area,
            stopped_s=stopped_s,
        )
