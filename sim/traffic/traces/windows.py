"""Traces of rates or counts, from which requests are generated: ServeGen windows, Azure Functions 2019."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats, Ints, Ints32
from sim.errors import TraceError
from sim.rng import stream
from sim.traffic.arrivals import weibull_shape
from sim.traffic.tables.blocks import BLOCK_CELLS, BLOCK_ROWS, BadRows, TraceTable
from sim.traffic.traces.client_lengths import draw_lengths
from sim.traffic.traces.data import MAX_REQUESTS, ReadOptions, TraceData, too_many
from sim.traffic.traces.formats import check_columns, in_use, no_rows
from sim.traffic.traces.rows import MAX_SECONDS, Names, Rows, kept

# Stationary renewal processes whose law changes from window to window.

DrawUnitGaps = Callable[[int], Floats]

DRAWN = 4096
"""Gaps drawn at once, at most."""


def gaps_of(family: str, shape: float, rng: np.random.Generator) -> DrawUnitGaps:
    """Return a function that draws n gaps of mean 1."""
    if family == "gamma":
        return lambda count: rng.gamma(shape, 1 / shape, count)
    if family == "weibull":
        from scipy.special import gamma

        scale = 1 / float(gamma(1 + 1 / shape))
        return lambda count: rng.weibull(shape, count) * scale
    return rng.standard_exponential


def shape_of_cv(family: NDArray[np.str_], cv: Floats) -> Floats:
    """Return the shapes of Gamma and Weibull laws with these coefficients of variation."""
    return np.where(family == "weibull", weibull_shape(cv), 1 / cv**2)


class CarriedGaps:
    """Carries the gap across the end of each client's window into the next window.

    In a stationary renewal process the gap that covers a fixed moment is drawn with a probability in proportion to its
    length, and the moment lies anywhere in it, independent of that length (Cox, Renewal Theory, 1962, chapter 5). When
    the law changes, the gap is replaced by that of the same rank in the new law; what of it is left keeps its share.
    So the process is stationary under the new law from the first moment, and a regular client stays regular.

    :param clients: how many there are.
    """

    def __init__(self, clients: int) -> None:
        self._rank = np.full(clients, np.nan)
        self._share = np.zeros(clients)
        self._gap = np.zeros(clients)
        self._rest = np.zeros(clients)
        self._family = np.full(clients, "exponential", dtype="<U11")
        self._shape = np.ones(clients)

    def enter(
        self, client: NDArray[np.int32], family: NDArray[np.str_], shape: Floats, rngs: list[np.random.Generator]
    ) -> None:
        """Begin a window of these clients (each at most once) under new laws."""
        rank = _rank(self._gap[client], self._family[client], self._shape[client])
        share = np.where(self._gap[client] > 0, self._rest[client] / np.maximum(self._gap[client], 1e-300), 0.0)
        fresh = np.isnan(self._rank[client])
        for place in np.flatnonzero(fresh).tolist():
            rank[place], share[place] = rngs[place].random(2)
        self._rank[client] = rank
        gap = _gap(np.clip(rank, 1e-300, 1 - 2**-53), family, shape)
        self._gap[client], self._rest[client] = gap, gap * share
        self._family[client], self._shape[client] = family, shape

    def run(self, client: int, work: float, gaps: DrawUnitGaps) -> Floats:
        """Return the moments of a client's requests in a window, in operational time from 0 to ``work``."""
        first = float(self._rest[client])
        if first >= work:
            self._rest[client] = first - work
            return np.zeros(0)
        parts, end = [np.array([first])], first
        last_gap = 0.0
        while end < work:
            drawn = gaps(int(min(DRAWN, (work - end) * 1.1 + 8)))
            moments = end + np.cumsum(drawn)
            inside = int(np.searchsorted(moments, work, side="left"))
            parts.append(moments[:inside])
            if inside < len(drawn):
                last_gap, end = float(drawn[inside]), float(moments[inside])
                break
            end = float(moments[-1])
        self._gap[client], self._rest[client] = last_gap, end - work
        return np.concatenate(parts)


def _rank(gap: Floats, family: NDArray[np.str_], shape: Floats) -> Floats:
    """Return how large a gap is among those that cover a fixed moment (the length-biased law), 0 to 1."""
    from scipy.special import gamma, gammainc

    # Length-biased: Gamma(k) becomes Gamma(k + 1); x^k of a Weibull becomes Gamma(1 + 1/k).
    by_gamma = gammainc(shape + 1, shape * gap)
    with np.errstate(over="ignore"):
        by_weibull = gammainc(1 + 1 / shape, (gap * gamma(1 + 1 / shape)) ** shape)
    return np.where(family == "weibull", by_weibull, by_gamma)


def _gap(rank: Floats, family: NDArray[np.str_], shape: Floats) -> Floats:
    """Return the gap of a rank: the inverse of ``_rank``."""
    from scipy.special import gamma, gammaincinv

    by_gamma = gammaincinv(shape + 1, rank) / shape
    by_weibull = gammaincinv(1 + 1 / shape, rank) ** (1 / shape) / gamma(1 + 1 / shape)
    return np.where(family == "weibull", by_weibull, by_gamma)


MAX_COUNT = 10**9
"""Calls of a function in a minute, at most."""

WINDOW_COLUMNS = ("client_id", "timestamp_s", "rate_rps", "cv", "pattern", "shape")
WINDOW_S = 600.0
"""Length of a window where the file has only one (ServeGen, data/language: 600 s)."""

MINUTES = tuple(str(minute) for minute in range(1, 1441))
FUNCTION_COLUMN = "HashFunction"

PATTERNS = {"": "exponential", "gamma": "gamma", "weibull": "weibull", "exponential": "exponential"}
SHAPES = (0.01, 1e6)
"""Shapes that can be drawn; below them, Weibull gaps exceed floating point."""

MAX_RATE = 1e6
MAX_WINDOWS = 1_000_000


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows in order of time; arrays have one entry a row of the file.

    :ivar start: (rows,) int64, the window's number, from 0; never falling.
    :ivar rate: (rows,) requests per second.
    :ivar family: (rows,) ``exponential``, ``gamma`` or ``weibull``.
    :ivar shape: (rows,) of Gamma or Weibull.
    """

    length_s: float
    start: Ints
    client: Ints32
    rate: Floats
    family: NDArray[np.str_]
    shape: Floats
    names: tuple[str, ...]


def read_windows(table: TraceTable, ask: ReadOptions) -> TraceData:
    """Read ServeGen windows and generate their requests, with one adapter per client.

    A client's requests are a renewal process in operational time (the integral of its rate), with the gaps of its
    window: Gamma or Weibull of the fitted shape, exponential where there were too few requests to fit one. The process
    is stationary in every window, so that a window of rate r and length T has r·T requests on average, be it
    0.3 or 50,000, and a gap across a window's end continues in the next. Source: ServeGen, arXiv 2505.09999.

    :raises TraceError: as any reader; also for windows on no grid, and for too many requests.
    """
    check_columns(table, ask.file, WINDOW_COLUMNS[:3], [name for name in WINDOW_COLUMNS if name in table.header])
    bad_rows = BadRows(ask.file, ask.skip_bad)
    windows = _load_windows(table, bad_rows, ask)
    notes = list(bad_rows.settle(len(windows.start)))
    expected = float(windows.rate.sum()) * windows.length_s
    if ask.limit is None and expected > MAX_REQUESTS:
        raise too_many(ask.file, expected)
    arrival, adapter = _collect(_window_requests(windows, ask.seed), ask)
    adapter, names = in_use(adapter, windows.names)
    prompt = output = None
    if ask.lengths_file is not None:
        prompt, output, note = draw_lengths(ask.lengths_file, adapter, names, ask.seed, ask.skip_bad)
        notes.append(note)
    return TraceData(
        arrival_s=arrival - arrival[0],
        prompt_tokens=prompt,
        output_tokens=output,
        adapter=adapter,
        names=names,
        notes=tuple(notes),
        skipped=dict(bad_rows.skipped),
    )


def _load_windows(table: TraceTable, bad_rows: BadRows, ask: ReadOptions) -> Windows:
    columns = [name for name in WINDOW_COLUMNS if name in table.header]
    names = Names(ask.file)
    parts: list[tuple[Ints, Ints32, Floats, Floats, NDArray[np.str_], Floats]] = []
    while not bad_rows.hopeless and (block := table.read(columns, BLOCK_ROWS, bad_rows)) is not None:
        rows = Rows(block, bad_rows)
        cells = rows.names(("client_id",), names)
        start_s = rows.numbers("timestamp_s", -MAX_SECONDS, MAX_SECONDS, "seconds")
        rate = rows.numbers("rate_rps", 0, MAX_RATE, f"requests per second, 0 to {MAX_RATE:,.0f}")
        family, shape = _laws(rows, columns)
        good = rows.good
        parts.append(
            (rows.lines[good], names.codes(kept(cells, good)), start_s[good], rate[good], family[good], shape[good])
        )
    if not any(len(part[0]) for part in parts):
        bad_rows.settle(0)
        raise no_rows(ask.file, bad_rows)
    lines, client, start_s, rate, family, shape = (np.concatenate(column) for column in zip(*parts, strict=True))
    length_s = _grid(start_s, lines, ask.file)
    start = np.rint((start_s - start_s.min()) / length_s).astype(np.int64)
    order = np.lexsort((client, start))
    same = (np.diff(start[order]) == 0) & (np.diff(client[order]) == 0)
    for first, second in zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True):
        line, name = int(lines[max(first, second)]), names.all()[client[first]]
        problem = "a second row for this client and window"
        bad_rows.add(TraceError(problem, key="client_id", line=line, got=name))
    order = order[np.concatenate(([True], ~same))]
    return Windows(
        length_s, start[order], client[order], rate[order] * ask.rate_scale, family[order], shape[order], names.all()
    )


def _laws(rows: Rows, columns: list[str]) -> tuple[NDArray[np.str_], Floats]:
    """Return each row's family and shape; the fitted shape where there is one, else that of the cv."""
    count = len(rows.good)
    cells = rows.texts("pattern") if "pattern" in columns else [""] * count
    patterns = [cell.strip().lower() for cell in cells]
    known = np.fromiter((pattern in PATTERNS for pattern in patterns), np.bool_, count)
    if not known.all():
        rows.refuse(~known, "pattern", "an unknown pattern", "Gamma, Weibull, Exponential or nothing")
    family = np.array([PATTERNS.get(pattern, "exponential") for pattern in patterns], dtype=np.str_)
    free = family == "exponential"
    shape = np.ones(count)
    if free.all():
        return family, shape
    column = "shape" if "shape" in columns else "cv" if "cv" in columns else None
    if column is None:
        rows.refuse(~free, "pattern", "a pattern needs a column shape or cv", "nothing")
        return family, shape
    # A window that had too few requests for a fit has no numbers either.
    values = rows.numbers_where(column, ~free)
    if column == "cv":
        rows.refuse(~free & ~(values > 0), "cv", "not a coefficient of variation", "above 0")
        values = shape_of_cv(family, np.where(values > 0, values, 1.0))
    bad = ~free & ~((values >= SHAPES[0]) & (values <= SHAPES[1]))
    rows.refuse(bad, column, "a shape that can't be drawn", f"{SHAPES[0]:g} to {SHAPES[1]:g}")
    return family, np.where(free | bad, 1.0, values)


def _grid(start_s: Floats, lines: Ints, file: str) -> float:
    """Return the length of the windows: the smallest distance of two."""
    distinct = np.unique(start_s)
    if len(distinct) == 1:
        return WINDOW_S
    length_s = float(np.diff(distinct).min())
    off = np.zeros(len(start_s), dtype=np.bool_)
    many = float(distinct[-1] - distinct[0]) > MAX_WINDOWS * length_s
    if not many:
        number = (start_s - distinct[0]) / length_s
        off = np.abs(number - np.rint(number)) > 1e-3
    if off.any() or many:
        first = int(lines[np.argmax(off)]) if off.any() else None
        got = f"windows of {length_s:g} s"
        raise TraceError(
            "the windows don't lie on a grid",
            key="timestamp_s",
            file=file,
            line=first,
            got=got,
            allowed=f"starts that are all multiples of one length apart, at most {MAX_WINDOWS:,} windows",
        )
    return length_s


def _window_requests(windows: Windows, seed: int) -> Iterator[tuple[Floats, Ints32]]:
    """Yield the requests of one window after the other, each in order of time."""
    edges = np.flatnonzero(np.diff(windows.start, prepend=-1, append=-1))
    straddling = CarriedGaps(len(windows.names))
    for low, high in pairwise(edges.tolist()):
        span = slice(low, high)
        number = int(windows.start[low])
        client, work = windows.client[span], windows.rate[span] * windows.length_s
        busy = work > 0
        if not busy.any():
            continue
        client, work, rate = client[busy], work[busy], windows.rate[span][busy]
        family, shape = windows.family[span][busy], windows.shape[span][busy]
        rngs = [stream(seed, 0, f"window {windows.names[index]}", number) for index in client.tolist()]
        straddling.enter(client, family, shape, rngs)
        times, clients = [], []
        for place, index in enumerate(client.tolist()):
            gaps = gaps_of(family[place], float(shape[place]), rngs[place])
            done = straddling.run(index, float(work[place]), gaps)
            times.append(done / rate[place])
            clients.append(np.full(len(done), index, dtype=np.int32))
        joined, owner = np.concatenate(times), np.concatenate(clients)
        order = np.argsort(joined, kind="stable")
        yield number * windows.length_s + joined[order], owner[order]


def read_function_counts(table: TraceTable, ask: ReadOptions) -> TraceData:
    """Read Azure Functions 2019 (a day's calls per function and minute): one adapter per function, no lengths.

    The calls of a minute are spread over it at random. Source: Azure/AzurePublicDataset, AzureFunctionsDataset2019.md.

    :raises TraceError: as any reader; also for too many calls.
    """
    minutes = tuple(minute for minute in MINUTES if minute in table.header)
    check_columns(table, ask.file, (FUNCTION_COLUMN, "1"), (FUNCTION_COLUMN, *minutes))
    bad_rows, names = BadRows(ask.file, ask.skip_bad), Names(ask.file)
    found: list[tuple[Ints32, Ints32, Ints]] = []
    block_rows = max(1, BLOCK_CELLS // len(table.header))
    read = 0
    while not bad_rows.hopeless:
        block = table.read((FUNCTION_COLUMN, *minutes), block_rows, bad_rows)
        if block is None:
            break
        rows = Rows(block, bad_rows)
        cells = rows.names((FUNCTION_COLUMN,), names)
        counts = np.stack([rows.whole(minute, 0, MAX_COUNT, "not a count") for minute in minutes], axis=1)
        read += int(np.count_nonzero(rows.good))
        codes = names.codes(kept(cells, rows.good))
        row, minute = np.nonzero(counts[rows.good])
        found.append((minute.astype(np.int32), codes[row], counts[rows.good][row, minute]))
    notes = bad_rows.settle(read)
    if read == 0:
        raise no_rows(ask.file, bad_rows)
    minute, function, count = (np.concatenate(column) for column in zip(*found, strict=True))
    total = float(count.sum()) * ask.rate_scale
    if ask.limit is None and total > MAX_REQUESTS:
        raise too_many(ask.file, total)
    places = np.array([int(name) - 1 for name in minutes])
    order = np.argsort(minute, kind="stable")
    requests = _minute_requests(places[minute[order]], function[order], count[order] * ask.rate_scale, ask.seed)
    arrival, adapter = _collect(requests, ask)
    adapter, used = in_use(adapter, names.all())
    return TraceData(
        arrival_s=arrival - arrival[0], adapter=adapter, names=used, notes=notes, skipped=dict(bad_rows.skipped)
    )


def _minute_requests(minute: Ints, function: Ints32, mean: Floats, seed: int) -> Iterator[tuple[Floats, Ints32]]:
    """Yield the calls of one minute after the other; a mean that is no whole number is rounded at random."""
    edges = np.flatnonzero(np.diff(minute, prepend=-1, append=-1))
    for low, high in pairwise(edges.tolist()):
        number = int(minute[low])
        rng = stream(seed, 0, "calls of a minute", number)
        whole = np.floor(mean[low:high])
        calls = (whole + (rng.random(high - low) < mean[low:high] - whole)).astype(np.int64)
        owner = np.repeat(function[low:high], calls)
        times = rng.random(len(owner)) * 60
        order = np.argsort(times, kind="stable")
        yield number * 60.0 + times[order], owner[order]


def _collect(requests: Iterator[tuple[Floats, Ints32]], ask: ReadOptions) -> tuple[Floats, Ints32]:
    """Return the first ``limit`` requests of all windows."""
    times: list[Floats] = []
    owners: list[Ints32] = []
    count = 0
    for arrival, owner in requests:
        times.append(arrival)
        owners.append(owner)
        count += len(arrival)
        if ask.limit is not None and count >= ask.limit:
            break
        if ask.limit is None and count > 2 * MAX_REQUESTS:
            raise too_many(ask.file, count)
    if count == 0:
        raise TraceError("the rates or counts are too small for a single request", file=ask.file)
    return np.concatenate(times)[: ask.limit], np.concatenate(owners)[: ask.limit]
