"""Token counts of prompts and outputs."""

from __future__ import annotations

import csv
import math
from array import array
from itertools import islice

import numpy as np

from sim.arrays import Floats, Ints
from sim.errors import ScenarioError, TraceError
from sim.reading import open_text
from sim.spec.sections.laws import MAX_TOKENS, EmpiricalTokens, HistogramTokens, LognormalTokens, TokenLaw
from sim.spec.sections.workload import SharedPrefix
from sim.traffic.tables.blocks import listed

MAX_ROWS = 50_000_000
"""Rows of a file of observed counts, at most: as many as requests in a trace."""


class TokenLengths:
    """Draw token counts of one law; 1 or more."""

    def __init__(self, law: TokenLaw) -> None:
        self._law = law
        self._observed = read_counts(law) if law.law == "empirical" else np.empty(0, dtype=np.int64)

    @property
    def longest(self) -> float:
        """The most tokens of a request; for a law without a maximum, its largest parameter."""
        law = self._law
        if law.law == "fixed":
            return law.value
        if law.law == "uniform":
            return law.high
        if law.law == "empirical":
            return int(self._observed.max())
        if law.law == "histogram":
            return law.high * law.stretch()
        if law.max is not None:
            return law.max
        return law.mean if law.law == "geometric" else law.quantile_99()

    @property
    def most(self) -> float:
        """The most tokens of a request; infinite for a law without a maximum."""
        bounded = self._law.law in ("fixed", "uniform", "empirical", "histogram")
        return self.longest if bounded or getattr(self._law, "max", None) is not None else math.inf

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        """Return ``count`` token counts, int64."""
        law = self._law
        if law.law == "fixed":
            return np.full(count, law.value, dtype=np.int64)
        if law.law == "uniform":
            return rng.integers(law.low, law.high, size=count, endpoint=True)
        if law.law == "empirical":
            return self._observed[rng.integers(0, len(self._observed), size=count)]
        if law.law == "histogram":
            return _from_histogram(law, rng.random(count))
        if law.law == "geometric":
            return _cut(rng.geometric(1 / law.mean, size=count), law.max)
        return _lognormal(law, rng.standard_normal(count))

    def at(self, scores: Floats) -> Ints:
        """Return the token counts at normal scores, int64, same shape: 0 gives the median, 2 a long one."""
        from scipy.special import ndtr

        law = self._law
        if law.law == "lognormal":
            return _lognormal(law, scores)
        shares = ndtr(scores)
        if law.law == "fixed":
            return np.full(len(scores), law.value, dtype=np.int64)
        if law.law == "uniform":
            return law.low + np.minimum(shares * (law.high - law.low + 1), law.high - law.low).astype(np.int64)
        if law.law == "empirical":
            observed = np.sort(self._observed)
            return observed[np.minimum(shares * len(observed), len(observed) - 1).astype(np.int64)]
        if law.law == "histogram":
            return _from_histogram(law, shares)
        stop = np.log1p(-1 / law.mean) if law.mean > 1 else -np.inf
        return _cut(np.maximum(np.ceil(np.log1p(-np.minimum(shares, 1 - 1e-16)) / stop), 1).astype(np.int64), law.max)


class LengthPairs:
    """Draw prompt and output tokens of requests whose normal scores are correlated.

    Laws without an upper end are cut where a request would have more than ``MAX_TOKENS``.

    :param by_adapter: share of the scores' variance that comes from the requests' adapters.
    """

    def __init__(
        self, prompt: TokenLengths, output: TokenLengths, correlation: float = 0.0, by_adapter: float = 0.0
    ) -> None:
        self._prompt = prompt
        self._output = output
        self._correlation = correlation
        self._by_adapter = by_adapter

    def draw(
        self, rngs: tuple[np.random.Generator, np.random.Generator], count: int, between: Floats | None = None
    ) -> tuple[Ints, Ints]:
        """Draw prompt and output tokens of ``count`` requests.

        :param rngs: of prompts and of outputs; of the correlation, prompts depend only on whether it is 0.
        :param between: (2, count) standard normal scores of the requests' adapters, for prompts and outputs.
        """
        correlation = self._correlation
        if correlation == 0 and between is None:
            return together(self._prompt.draw(rngs[0], count), self._output.draw(rngs[1], count))
        scores, own = (rng.standard_normal(count) for rng in rngs)
        if between is not None:
            within, among = math.sqrt(1 - self._by_adapter), math.sqrt(self._by_adapter)
            scores, own = within * scores + among * between[0], within * own + among * between[1]
        mixed = correlation * scores + math.sqrt(1 - correlation**2) * own
        return together(self._prompt.at(scores), self._output.at(mixed))


def together(prompt: Ints, output: Ints) -> tuple[Ints, Ints]:
    """Return prompts and outputs that have at most ``MAX_TOKENS`` together; outputs are cut first.

    Both keep 1 or more.
    """
    prompt = np.minimum(prompt, MAX_TOKENS - 1)
    return prompt, np.minimum(output, MAX_TOKENS - prompt)


def check_together(prompt: TokenLengths, output: TokenLengths, prefix: SharedPrefix | None) -> None:
    """Refuse laws under which prompt and output together may be too long.

    :raises ScenarioError: naming the key of what is added last.
    """
    if prompt.longest + output.longest > MAX_TOKENS:
        raise ScenarioError(
            "prompt and output together are too long",
            key="workload.tokens",
            got=f"up to {prompt.longest:,.0f} and {output.longest:,.0f} tokens",
            allowed=f"up to {MAX_TOKENS:,} together",
        )
    if prefix is None:
        return
    shared = TokenLengths(prefix.tokens).longest
    if shared + prompt.longest + output.longest > MAX_TOKENS:
        raise ScenarioError(
            "prefix, prompt and output together are too long",
            key="workload.prefix.tokens",
            got=f"up to {shared:,.0f}, {prompt.longest:,.0f} and {output.longest:,.0f} tokens",
            allowed=f"up to {MAX_TOKENS:,} together",
        )


def _lognormal(law: LognormalTokens, scores: Floats) -> Ints:
    mu, sigma = law.shape()
    return _cut(np.ceil(np.exp(mu + sigma * scores)).astype(np.int64), law.max)


def _from_histogram(law: HistogramTokens, shares: Floats) -> Ints:
    weights = np.asarray(law.shares) / sum(law.shares)
    edges = np.linspace(law.low, law.high, len(weights) + 1)
    lengths = np.interp(shares, np.concatenate(([0.0], np.cumsum(weights))), edges) * law.stretch()
    return np.maximum(np.rint(lengths), 1).astype(np.int64)


def _cut(lengths: Ints, longest: int | None) -> Ints:
    return np.minimum(lengths, longest) if longest is not None else lengths


def read_counts(law: EmpiricalTokens) -> Ints:
    """Read the observed counts of an empirical law.

    :raises TraceError: naming file and row of a value that is not a whole number of 1 or more.
    """
    try:
        with open_text(law.file) as lines:
            reader = csv.DictReader(lines)
            if law.column not in (reader.fieldnames or ()):
                raise TraceError(
                    "no such column",
                    file=law.file,
                    line=1,
                    got=law.column,
                    allowed=listed(list(reader.fieldnames or ())),
                )
            counts = array(
                "q", (_count(row[law.column], law.file, reader.line_num) for row in islice(reader, MAX_ROWS))
            )
            if next(reader, None) is not None:
                raise TraceError("too many rows", file=law.file, allowed=f"up to {MAX_ROWS:,}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        got = error.strerror if isinstance(error, OSError) else str(error)
        raise TraceError("the file can't be read", file=law.file, got=got) from error
    if not counts:
        raise TraceError("no rows", file=law.file, hint="an empirical law needs at least one count")
    return np.frombuffer(counts, dtype=np.int64)


def _count(text: str, file: str, line: int) -> int:
    try:
        count = int(float(text))
    except (TypeError, ValueError, OverflowError):
        count = 0
    if not 1 <= count <= MAX_TOKENS:
        allowed = f"a whole number, 1 to {MAX_TOKENS:,}"
        raise TraceError("not a token count", file=file, line=line, got=text, allowed=allowed)
    return count
