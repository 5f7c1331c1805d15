"""Popularity of adapters: which adapter a request is for. Adapter 0 is the most popular one of every law."""

from __future__ import annotations

import csv
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.errors import TraceError
from sim.reading import open_text
from sim.spec.sections.popularity_laws import Popularity, WeightsPopularity
from sim.traffic.tables.bad_rows import shown
from sim.traffic.traces.rows import MAX_NAME_BYTES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_WEIGHTS = 10_000_000
"""Rows of a weights file, at most."""


def weights_of(law: Popularity, count: int) -> Floats:
    """Return each adapter's probability, shape (count,), summing to 1. A cyclic law is uniform here.

    :raises TraceError: for a weights file that can't be read, or has another number of weights.
    """
    raw = read_weights(law.file).weight if isinstance(law, WeightsPopularity) else law.weights(count)
    if isinstance(law, WeightsPopularity) and len(raw) != count:
        got = f"{len(raw)} weights, {count} adapters"
        raise TraceError("as many weights as adapters are needed", file=law.file, got=got)
    return np.asarray(raw / raw.sum())


class AdapterSampler:
    """Draw adapters for consecutive requests.

    :param count: number of adapters.
    """

    def __init__(self, law: Popularity, count: int) -> None:
        self._in_turn = law.in_turn
        self._weigh(weights_of(law, count))

    @staticmethod
    def by_weights(weights: Floats) -> AdapterSampler:
        """Return a sampler of adapters with these relative frequencies, (adapters,)."""
        found = AdapterSampler.__new__(AdapterSampler)
        found._in_turn = False
        found._weigh(weights / weights.sum())
        return found

    def _weigh(self, probabilities: Floats) -> None:
        self._count = len(probabilities)
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
