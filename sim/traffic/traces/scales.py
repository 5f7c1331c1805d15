"""Two ways to scale a trace: faster playback, or more users."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sim.errors import TraceError
from sim.rng import stream
from sim.traffic.traces.data import MAX_REQUESTS, Floats, Ints, Ints32, TraceData, too_many


def faster(data: TraceData, scale: float) -> TraceData:
    """Play a trace ``scale`` times as fast; order and locality stay."""
    return data if scale == 1 else replace(data, arrival_s=data.arrival_s / scale)


def with_population(data: TraceData, scale: float, limit: int | None, seed: int, file: str) -> TraceData:
    """Give a trace ``scale`` times as many users of the same adapters.

    Whole copies are rotated by random offsets (except the first), keep separate sessions, and are merged in time. A
    fractional copy keeps each session (or request, without sessions) with that probability.

    :param limit: the most requests to return.
    :raises TraceError: where no request is left, or too many come without a limit.
    """
    if scale == 1:
        return data
    if limit is None and scale * len(data) > MAX_REQUESTS:
        raise too_many(file, scale * len(data))
    index, arrival, copy = _merged(data, scale, limit, seed)
    if len(index) == 0:
        raise TraceError("no request is left at this population_scale", file=file, got=scale)
    order = np.argsort(arrival, kind="stable")[:limit]
    index, arrival, copy = index[order], arrival[order], copy[order]
    picked = replace(data.pick(index), arrival_s=arrival - arrival[0], session=_sessions(data, index, copy))
    if picked.text is None or data.text is None or not data.text_by_user:
        return picked
    # Texts of users: every copy has its own.
    text = picked.text
    apart = np.repeat(copy.astype(np.int64), np.diff(text.first)) * (int(data.text.keys.max(initial=-1)) + 1)
    return replace(picked, text=replace(text, keys=text.keys + apart))


def _merged(data: TraceData, scale: float, limit: int | None, seed: int) -> tuple[Ints, Floats, Ints32]:
    """Return index in the trace, time and copy of the scaled requests up to a horizon that holds ``limit``."""
    count, copies = len(data), math.ceil(scale)
    last_s = float(data.arrival_s[-1])
    period_s = last_s * count / (count - 1) if count > 1 and last_s > 0 else 1.0
    share = 1.0 if limit is None else min(1.0, 2 * limit / (scale * count))
    while True:
        parts = [_copy(data, number, scale, period_s, share * period_s, seed) for number in range(copies)]
        index = np.concatenate([part[0] for part in parts])
        if share >= 1 or limit is None or len(index) >= limit:
            arrival = np.concatenate([part[1] for part in parts])
            copy = np.repeat(np.arange(copies, dtype=np.int32), [len(part[0]) for part in parts])
            return index, arrival, copy
        share = min(1.0, share * 2)


def _copy(
    data: TraceData, number: int, scale: float, period_s: float, horizon_s: float, seed: int
) -> tuple[Ints, Floats]:
    """Return one copy, rotated and up to the horizon: index in the trace, and time.

    Requests beyond the horizon are not touched: there may be 10,000 copies, and few requests needed of each.
    """
    times, end_s = data.arrival_s, horizon_s if horizon_s < period_s else math.inf
    offset_s = float(stream(seed, 0, "population offset", number).random()) * period_s if number else 0.0
    shift_s = period_s - offset_s if number else 0.0
    # The trace from ``begin`` on comes first, then what is before. Both are cut by the times they get, as rounded.
    begin = int(np.searchsorted(times, shift_s, side="left"))
    first = bisect_left(times, end_s, lo=begin, key=lambda time: time - shift_s)
    then = bisect_left(times, end_s, hi=begin, key=lambda time: time + offset_s)
    index = np.concatenate((np.arange(begin, first), np.arange(then)))
    rotated = np.concatenate((times[begin:first] - shift_s, times[:then] + offset_s))
    kept_share = scale - number
    if kept_share >= 1:
        return index, rotated
    rng = stream(seed, 0, "population sample")
    if data.session is None:
        kept: NDArray[np.bool_] = (rng.random(len(data)) < kept_share)[index]
    else:
        kept = (rng.random(int(data.session.max()) + 1) < kept_share)[data.session[index]]
    return index[kept], rotated[kept]


def _sessions(data: TraceData, index: Ints, copy: Ints32) -> Ints32 | None:
    if data.session is None:
        return None
    import pandas as pd

    apart = data.session[index].astype(np.int64) + copy.astype(np.int64) * (int(data.session.max()) + 1)
    return np.asarray(pd.factorize(apart)[0], dtype=np.int32)
