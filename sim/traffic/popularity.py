"""Which adapter a request asks for; adapter 0 is the most popular one of every law."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.errors import TraceError
from sim.spec.scenario import Popularity

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def weights_of(law: Popularity, count: int) -> Floats:
    """Return each adapter's probability, shape (count,), summing to 1. A cyclic law is uniform here."""
    if law.law == "zipf":
        raw = np.arange(1, count + 1, dtype=np.float64) ** -law.exponent
    elif law.law == "groups":
        raw = np.repeat([group.weight for group in law.groups], [group.adapters for group in law.groups])
    elif law.law == "weights":
        raw = read_weights(law.file)[1]
        if len(raw) != count:
            raise TraceError(
                "as many weights as adapters are needed",
                file=law.file,
                got=f"{len(raw)} weights, {count} adapters",
            )
    else:
        raw = np.ones(count)
    return np.asarray(raw / raw.sum())


class Chooser:
    """Draw adapters for consecutive requests.

    :param count: number of adapters.
    """

    def __init__(self, law: Popularity, count: int) -> None:
        self._cyclic = law.law == "cyclic"
        self._count = count
        self._cumulative = np.cumsum(weights_of(law, count))
        self._cumulative[-1] = 1.0  # rounding must not leave a gap above the last adapter

    def choose(self, rng: np.random.Generator, first: int, count: int) -> Ints:
        """Return the adapters of requests ``first`` to ``first + count - 1``, shape (count,)."""
        if self._cyclic:
            return np.arange(first, first + count, dtype=np.int64) % self._count
        return np.searchsorted(self._cumulative, rng.random(count), side="right").astype(np.int64)


def read_weights(file: str) -> tuple[tuple[str, ...], Floats]:
    """Read adapter names and weights: one weight a line, or CSV rows ``adapter_id,weight``.

    :raises TraceError: naming the line of a weight that is not a number above or equal to zero.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError("the weights file can't be read", file=file, got=str(error)) from error
    names: list[str] = []
    weights: list[float] = []
    for line, row in enumerate(csv.reader(text.splitlines()), start=1):
        if not row or (line == 1 and row[-1].strip() == "weight"):
            continue
        try:
            weight = float(row[-1])
        except ValueError:
            weight = -1.0
        if not (np.isfinite(weight) and weight >= 0) or len(row) > 2:
            raise TraceError(
                "not a weight",
                file=file,
                line=line,
                got=",".join(row),
                allowed="a number, or adapter_id,number",
            )
        names.append(row[0].strip() if len(row) == 2 else f"adapter-{len(names)}")
        weights.append(weight)
    if not sum(weights) > 0:
        raise TraceError("no weight above zero", file=file, hint="give one weight a line")
    return tuple(names), np.asarray(weights)
