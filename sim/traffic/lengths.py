"""Token counts of prompts and outputs."""

from __future__ import annotations

import csv
import math

import numpy as np
from numpy.typing import NDArray

from sim.errors import TraceError
from sim.spec.laws import EmpiricalTokens, TokenLaw, lognormal_sigma

Ints = NDArray[np.int64]


class Lengths:
    """Draw token counts of one law; 1 or more."""

    def __init__(self, law: TokenLaw) -> None:
        self._law = law
        self._observed = read_counts(law) if law.law == "empirical" else np.empty(0, dtype=np.int64)

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        """Return ``count`` token counts, int64."""
        law = self._law
        if law.law == "fixed":
            return np.full(count, law.value, dtype=np.int64)
        if law.law == "uniform":
            return rng.integers(law.low, law.high, size=count, endpoint=True)
        if law.law == "empirical":
            return self._observed[rng.integers(0, len(self._observed), size=count)]
        if law.law == "geometric":
            drawn = rng.geometric(1 / law.mean, size=count)
        else:
            sigma = lognormal_sigma(law.mean, law.p99)
            normal = rng.standard_normal(count)
            drawn = np.ceil(np.exp(math.log(law.mean) - sigma**2 / 2 + sigma * normal)).astype(np.int64)
        return np.minimum(drawn, law.max) if law.max is not None else drawn


def read_counts(law: EmpiricalTokens) -> Ints:
    """Read the observed counts of an empirical law.

    :raises TraceError: naming file and row of a value that is not a whole number of 1 or more.
    """
    try:
        with open(law.file, newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            if law.column not in (reader.fieldnames or ()):
                raise TraceError(
                    "no such column",
                    file=law.file,
                    line=1,
                    got=law.column,
                    allowed=", ".join(reader.fieldnames or ()),
                )
            counts = [_count(row[law.column], law.file, reader.line_num) for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError("the file can't be read", file=law.file, got=str(error)) from error
    if not counts:
        raise TraceError("no rows", file=law.file, hint="an empirical law needs at least one count")
    return np.asarray(counts, dtype=np.int64)


def _count(text: str, file: str, line: int) -> int:
    try:
        count = int(float(text))
    except (TypeError, ValueError, OverflowError):
        count = 0
    if not 1 <= count <= 10**9:
        raise TraceError("not a token count", file=file, line=line, got=text, allowed="a whole number, 1 or more")
    return count
