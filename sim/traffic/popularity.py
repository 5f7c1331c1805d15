"""Which adapter a request is for: laws of popularity, and changes of the ranking. Adapter 0 leads in every law."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass

import numpy as np

from sim.arrays import Floats, Ints
from sim.errors import TraceError
from sim.reading import open_text
from sim.rng import stream
from sim.spec.sections.traffic_laws import Churn, Drift, Popularity, WeightsPopularity
from sim.traffic.tables.blocks import shown
from sim.traffic.traces.rows import MAX_NAME_BYTES

MAX_WEIGHTS = 10_000_000
"""Rows of a weights file, at most."""


def weights_of(law: Popularity, count: int) -> Floats:
    """Return each adapter's probability, shape (count,), summing to 1. A cyclic law is uniform here.

    :raises TraceError: for a weights file that can't be read, or has another number of weights.
    """
    raw = read_weights(law.file).weight if isinstance(law, WeightsPopularity) else law.weights(count)
    if isinstance(law, WeightsPopularity) and len(raw) != count:
        got, hint = f"{len(raw)} weights, {count} adapters", "or leave adapters.count out"
        raise TraceError("as many weights as adapters are needed", file=law.file, got=got, hint=hint)
    return np.asarray(raw / raw.sum())


class AdapterSampler:
    """Draw adapters for consecutive requests.

    :param probabilities: (adapters,) how likely a request is for each; ``in_turn``: they take turns instead.
    """

    def __init__(self, probabilities: Floats, *, in_turn: bool = False) -> None:
        self._in_turn, self._count = in_turn, len(probabilities)
        self._cumulative = np.cumsum(probabilities)
        # Rounding must not leave a gap above the last adapter that is asked for.
        self._cumulative[int(np.flatnonzero(probabilities)[-1]) :] = 1.0

    def choose(self, rng: np.random.Generator, first: int, count: int) -> Ints:
        """Return the adapters of requests ``first`` to ``first + count - 1``, shape (count,)."""
        if self._in_turn:
            return np.arange(first, first + count, dtype=np.int64) % self._count
        return np.searchsorted(self._cumulative, rng.random(count), side="right").astype(np.int64)


def concentration(asked: Floats | Ints) -> dict[str, float]:
    """Return how concentrated requests are.

    :param asked: (adapters,) requests or weights.
    :returns: ``top_1pct``, ``top_10pct``, ``top_20pct``: share of the requests that the hottest 1, 10, 20 % of the
        adapters get (at least one of them); ``effective_adapters``: exp of the entropy: the traffic is as spread
        out as over this many equally popular adapters.
    """
    share = np.sort(np.asarray(asked, dtype=np.float64))[::-1]
    share = share / max(float(share.sum()), 1e-300)
    positive = share[share > 0]
    tops = {f"top_{part}pct": float(share[: max(1, round(len(share) * part / 100))].sum()) for part in (1, 10, 20)}
    return {**tops, "effective_adapters": float(np.exp(-np.sum(positive * np.log(positive)))) if len(positive) else 0.0}


@dataclass(frozen=True, slots=True)
class Weights:
    """A weights file.

    :ivar weight: (adapters,) relative frequencies, of any scale.
    :ivar cv: (adapters,) coefficient of variation of its gaps; nan where the file gives none.
    """

    names: tuple[str, ...]
    weight: Floats
    cv: Floats


def read_weights(file: str) -> Weights:
    """Read adapter names and weights: one weight a line, or CSV rows ``adapter_id,weight`` or ``adapter_id,weight,cv``.

    :raises TraceError: naming the line of a weight that is not a number above or equal to zero, or of a coefficient
        of variation that is not above zero.
    """
    names: list[str] = []
    weights: list[float] = []
    cvs: list[float] = []
    wrong: TraceError | None = None
    try:
        with open_text(file) as lines:
            reader = csv.reader(lines)
            for row in reader:
                line = reader.line_num
                if not row or (line == 1 and row[-1].strip() in ("weight", "cv")):
                    continue
                try:
                    name, weight, cv = _weight(row, len(names), file, line)
                except TraceError as error:
                    wrong = wrong or error  # raised once the whole file could be read
                    continue
                names.append(name)
                weights.append(weight)
                cvs.append(cv)
                if len(names) > MAX_WEIGHTS:
                    raise TraceError("too many weights", file=file, allowed=f"up to {MAX_WEIGHTS:,}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        got = error.strerror if isinstance(error, OSError) else str(error)
        raise TraceError("the weights file can't be read", file=file, got=got) from error
    if wrong is not None:
        raise wrong
    if not sum(weights) > 0:
        raise TraceError("no weight above zero", file=file, hint="give one weight a line")
    return Weights(tuple(names), np.asarray(weights), np.asarray(cvs))


def _weight(row: list[str], number: int, file: str, line: int) -> tuple[str, float, float]:
    """Return a row's name, weight and coefficient of variation, NaN where it has none."""
    weight, cv = _number(row[min(1, len(row) - 1)]), _number(row[2]) if len(row) > 2 and row[2].strip() else np.nan
    if not (np.isfinite(weight) and weight >= 0) or len(row) > 3:
        raise TraceError(
            "not a weight", file=file, line=line, got=shown(",".join(row[:4])), allowed="a number, or adapter_id,number"
        )
    if not (np.isnan(cv) or 0.01 <= cv <= 100):
        raise TraceError("not a coefficient of variation", file=file, line=line, got=row[2], allowed="0.01 to 100")
    name = row[0].strip() if len(row) > 1 else f"adapter-{number}"
    if len(name) > MAX_NAME_BYTES:
        raise TraceError("the adapter's name is too long", file=file, line=line, allowed=f"at most {MAX_NAME_BYTES:,}")
    return name, weight, cv


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


# Changes of the popularity ranking over time: drift and churn.

_SPARE = 1.5
"""How much longer than expected a run may last before it runs out of new adapters."""


def newcomers(churn: Churn, count: int, expected_s: float) -> int:
    """Return how many new adapters to provide for, besides the ``count`` at the start, in a run of ``expected_s``."""
    return math.ceil(churn.share * count * expected_s * _SPARE / churn.every) + 1


_TRADES = 1024
"""Trades that share a random stream."""


class Turnover:
    """The adapter at each place of the ranking, at any time.

    Churn replaces the adapters at random places with new ones, at equal intervals; the new adapters are ``count``,
    ``count + 1``, …. Drift lets adapters trade places.

    :param count: places in the ranking.
    :param new: new adapters available; after the last one, no more are replaced.
    """

    def __init__(
        self, drift: Drift | None, churn: Churn | None, count: int, new: int, seed: int, replication: int
    ) -> None:
        self._drift = drift
        self._count = count
        self._key = seed, replication
        self._seats = np.arange(count)
        self._epoch = 0
        self._rng: np.random.Generator
        self._churn = None if churn is None else _Replacements(churn, count, new, self._key)

    def adapters(self, places: Ints, times: Floats) -> Ints:
        """Return the adapters at these places and times, shape (n,); times never fall, also from call to call."""
        seats = places if self._drift is None else self._after_trades(places, times, self._drift)
        return seats if self._churn is None else self._churn.adapters(seats, times)

    def _after_trades(self, places: Ints, times: Floats, drift: Drift) -> Ints:
        epochs = np.maximum(times / drift.every, 0).astype(np.int64)
        seats = np.empty_like(places)
        start = 0
        while start < len(places):
            epoch = int(epochs[start])
            while self._epoch < epoch:
                self._trade(drift)
            stop = int(np.searchsorted(epochs, epoch, side="right"))
            seats[start:stop] = self._seats[places[start:stop]]
            start = stop
        return seats

    def _trade(self, drift: Drift) -> None:
        if self._epoch % _TRADES == 0:
            self._rng = stream(*self._key, "drift", self._epoch // _TRADES)
        self._epoch += 1
        moving = self._rng.choice(
            self._count, size=min(self._count, max(2, round(drift.share * self._count))), replace=False, shuffle=False
        )
        self._seats[moving] = self._seats[self._rng.permutation(moving)]


class _Replacements:
    """The adapter at each place after a number of replacements.

    :param new: how many there will be.
    """

    def __init__(self, churn: Churn, count: int, new: int, key: tuple[int, int]) -> None:
        self._every = churn.every / (churn.share * count)
        seats = stream(*key, "churn").integers(0, count, size=new)
        # Replacement j (from 1) happens at j × every. The latest at a place: the last (place, j) below.
        self._width = new + 2
        self._new = new
        self._order = np.sort(seats * self._width + np.arange(1, new + 1))
        self._count = count

    def adapters(self, seats: Ints, times: Floats) -> Ints:
        happened = np.clip(times / self._every, 0, self._new).astype(np.int64)
        place = np.searchsorted(self._order, seats * self._width + happened, side="right") - 1
        latest = self._order[np.maximum(place, 0)]
        replaced = (place >= 0) & (latest // self._width == seats)
        return np.where(replaced, self._count + latest % self._width - 1, seats)
