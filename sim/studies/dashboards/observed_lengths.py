"""Laws of prompt and output lengths from histograms of tokens, or from their mean."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.rng import stream
from sim.spec.sections.laws import MAX_TOKENS
from sim.studies.dashboards.bucket_histogram import BucketHistogram

Ints = NDArray[np.int64]

ROWS = 2000
"""Lengths in the file: enough that its p99 is that of the buckets."""

_SEED = 1


@dataclass(frozen=True, slots=True)
class ObservedLengths:
    """Lengths at equally likely ranks.

    :ivar tokens: (rows,) whole tokens, 1 and more, in random order.
    """

    tokens: Ints

    @property
    def mean(self) -> float:
        return float(self.tokens.mean())

    def without(self, prefix: int) -> ObservedLengths:
        """Return what follows a text of so many tokens, so that the mean with that text stays.

        Nothing can be shorter than one token. Where prompts are shorter than the text, what others have beyond one
        token shrinks by as much as these grow.
        """
        rest = np.maximum(self.tokens - prefix, 1)
        beyond = float(rest.mean()) - 1
        wanted = max(self.mean - prefix - 1, 0.0)
        ends = np.cumsum((rest - 1) * (wanted / beyond if beyond > 0 else 0.0))
        whole = np.diff(np.rint(ends), prepend=0.0)  # rounds the sum, so that the mean doesn't drift
        return ObservedLengths(1 + whole.astype(np.int64))


def lengths_of(histogram: BucketHistogram, purpose: str) -> ObservedLengths:
    """Return lengths with the histogram's counts and its mean.

    Whole numbers are at most a bucket's bound, so 0.5 to 1.5 tokens are one.

    :param purpose: ``prompt`` or ``output``; their orders are independent, because metrics have each alone.
    """
    finite = [bound for bound in histogram.bounds if np.isfinite(bound)]
    highest = min(2 * max(finite, default=1.0), float(MAX_TOKENS) / 2)
    tokens = np.clip(np.rint(histogram.spread(ROWS, highest)), 1, MAX_TOKENS // 2).astype(np.int64)
    return ObservedLengths(stream(_SEED, 0, f"observed-{purpose}").permutation(tokens))


def lengths_text(prompt: ObservedLengths, output: ObservedLengths) -> str:
    """Return both as CSV with the columns ``input_tokens`` and ``output_tokens``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["input_tokens", "output_tokens"])
    writer.writerows(zip(prompt.tokens.tolist(), output.tokens.tolist(), strict=True))
    return out.getvalue()
