"""Token lengths from the mean and quantiles of each client (ServeGen's lengths file)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats, Ints32
from sim.errors import TraceError
from sim.rng import stream
from sim.spec.sections.laws import MAX_TOKENS
from sim.traffic.tables.blocks import BLOCK_ROWS, BadRows
from sim.traffic.tables.text_files import open_table
from sim.traffic.traces.formats import check_columns, no_rows
from sim.traffic.traces.rows import MAX_NAME_BYTES, Names, Rows, kept

STATISTICS = ("mean", "p50", "p90", "p99")
SHARES = np.array([0.5, 0.9, 0.99])
"""Shares of requests below the quantiles."""

MAX_CLIENTS = 2_000_000
"""Rows of a lengths file, at most."""

COLUMNS = ("client", *(f"{side}_tokens_{name}" for side in ("input", "output") for name in STATISTICS))
OPTIONAL = ("pool", "requests")


def draw_lengths(
    file: str, adapter: Ints32, names: tuple[str, ...], seed: int, skip_bad: bool
) -> tuple[Ints32, Ints32, str]:
    """Draw prompt and output tokens, independently, for requests of the clients ``names``.

    Of several pools in the file, the one that shares most clients with the trace is used.

    :return: prompt and output tokens, (n,) int32, and a note on the pool and on clients that got its average.
    """
    pool_of, client, requests, statistics = _load(file, skip_bad)
    pool = _nearest_pool(pool_of, client, set(names))
    rows = np.flatnonzero(pool_of == pool)
    place = {name: int(row) for name, row in zip(client[rows].tolist(), rows.tolist(), strict=True)}
    weight = requests[rows] if requests[rows].sum() > 0 else np.ones(len(rows))
    average = np.average(statistics[rows], axis=0, weights=weight)
    prompt, output = np.ones(len(adapter), dtype=np.int32), np.ones(len(adapter), dtype=np.int32)
    order = np.argsort(adapter, kind="stable")
    edges = np.searchsorted(adapter[order], np.arange(len(names) + 1))
    absent = 0
    for index, name in enumerate(names):
        mine = order[edges[index] : edges[index + 1]]
        absent += name not in place
        own = statistics[place[name]] if name in place else average
        for side, tokens in ((0, prompt), (1, output)):
            rng = stream(seed, 0, f"{('prompt', 'output')[side]} of {name}")
            tokens[mine] = tokens_at(rng.random(len(mine)), own[side])
    np.minimum(prompt, MAX_TOKENS - 1, out=prompt)
    np.minimum(output, MAX_TOKENS - prompt, out=output)
    pools = len(np.unique(pool_of)) > 1
    note = f"{file}: lengths of {len(names) - absent:,} clients" + (f" of pool {pool}" if pools else "")
    if absent:
        note += f"; {absent:,} are not in it and have" if absent > 1 else "; 1 is not in it and has"
        note += " its average"
    return prompt, output, note


def tokens_at(shares: Floats, statistics: Floats) -> Ints32:
    """Return the token counts below which these shares of requests lie, for a mean, p50, p90 and p99.

    Between the quantiles the curve bends to match the mean, as far as the quantiles allow; above p99 the excess is
    exponential, as between p90 and p99.
    """
    mean, *quantiles = statistics.tolist()
    edges = np.array([0.0, *SHARES])
    values = np.array([0.0, *quantiles])
    tail = (values[3] - values[2]) / np.log(10)
    # A part from a to b bent by w**g has mean a + (b - a) / (1 + g): one g for all parts gives the mean.
    weights = np.diff(edges)
    fixed = float(weights @ values[:-1]) + 0.01 * (values[3] + tail)
    free = float(weights @ np.diff(values))
    bend = 1 / np.clip((mean - fixed) / free, 0.05, 0.95) - 1 if free > 0 else 1.0
    part = np.minimum(np.searchsorted(edges, shares, side="right") - 1, 3)
    low = np.minimum(part, 2)
    inside = np.clip((shares - edges[low]) / weights[low], 0.0, 1.0)
    lengths = values[low] + (values[low + 1] - values[low]) * inside**bend
    beyond = values[3] - tail * np.log(np.maximum(1 - shares, 1e-16) / 0.01)
    return np.asarray(np.clip(np.rint(np.where(part == 3, beyond, lengths)), 1, MAX_TOKENS), dtype=np.int32)


def _load(file: str, skip_bad: bool) -> tuple[NDArray[np.object_], NDArray[np.object_], Floats, Floats]:
    """Return pool and client of each row, how many requests it stands for, and their statistics, (rows, 2, 4)."""
    bad_rows, names = BadRows(file, skip_bad), Names(file)
    parts = []
    with open_table(file) as table:
        columns = (*COLUMNS, *(name for name in OPTIONAL if name in table.header))
        check_columns(table, file, COLUMNS, columns)
        while not bad_rows.hopeless and (block := table.read(columns, BLOCK_ROWS, bad_rows)) is not None:
            rows = Rows(block, bad_rows)
            client = rows.names(("client",), names)
            statistics = _statistics(rows)
            requests = rows.numbers("requests", least=0) if "requests" in columns else np.ones(len(rows.good))
            pool = rows.texts("pool") if "pool" in columns else [""] * len(client)
            long = np.fromiter((len(cell) > MAX_NAME_BYTES for cell in pool), np.bool_, len(pool))
            rows.refuse(long, "pool", "the pool's name is too long", f"at most {MAX_NAME_BYTES:,} letters")
            good = rows.good
            parts.append((kept(pool, good), kept(client, good), requests[good], statistics[good]))
            if bad_rows.rows > MAX_CLIENTS:
                raise TraceError("too many rows", file=file, got=f"{bad_rows.rows:,}", allowed=f"up to {MAX_CLIENTS:,}")
    count = sum(len(part[0]) for part in parts)
    bad_rows.settle(count)
    if count == 0:
        raise no_rows(file, bad_rows)
    pools, clients, counts, values = zip(*parts, strict=True)
    texts = ([cell.strip() for part in each for cell in part] for each in (pools, clients))
    # Objects: numpy's own type of text reserves the longest length for each.
    pool_of, client_of = (np.array(cells, dtype=object) for cells in texts)
    return pool_of, client_of, np.concatenate(counts), np.concatenate(values)


def _statistics(rows: Rows) -> Floats:
    """Return mean, p50, p90 and p99 of both sides, (n, 2, 4), refusing the quantiles are not in order."""
    sides = []
    for side in ("input", "output"):
        allowed = f"tokens, 0 to {MAX_TOKENS:,}"
        values = [rows.numbers(f"{side}_tokens_{name}", 0, MAX_TOKENS, allowed) for name in STATISTICS]
        falls = (values[1] > values[2]) | (values[2] > values[3])
        rows.refuse(falls, f"{side}_tokens_p50", "the quantiles are not in order", "p50 up to p90, p90 up to p99")
        sides.append(np.stack(values, axis=1))
    return np.stack(sides, axis=1)


def _nearest_pool(pool_of: NDArray[np.object_], client: NDArray[np.object_], clients: set[str]) -> str:
    """Return the pool that shares the largest part of its clients with the trace (Jaccard's index)."""
    best, nearest = -1.0, ""
    for pool in dict.fromkeys(pool_of.tolist()):
        own = set(client[pool_of == pool].tolist())
        alike = len(own & clients) / len(own | clients)
        if alike > best:
            best, nearest = alike, pool
    return nearest
