"""What an entry of the gallery is: where a result was published, what is taken from there, and how near we come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True, slots=True)
class Row:
    """One published run and its prediction, both by quantity (``ttft_mean_s``, ``requests_per_s``, …)."""

    entry: str
    name: str
    published: Mapping[str, float]
    predicted: Mapping[str, float]
    anchor: bool = False
    band: Mapping[str, tuple[float, float]] | None = None
    """The 5 to 95 % range of the prediction, where a source leaves something open."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What an entry promises: ``value`` is at most ``limit``, or at least if ``floor``."""

    text: str
    value: float
    limit: float
    floor: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.floor else self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Entry:
    """One result on the page. ``settings`` come from the source alone; ``fitted`` names every number that doesn't."""

    name: str
    title: str
    source: str
    settings: str
    fitted: str
    bars: Callable[[Sequence[Row]], Sequence[Bar]]
    """From the rows of this entry that are no anchors."""
    about: str = ""
    """What is missed and why, or what else a reader of the page has to know."""


@dataclass(frozen=True, slots=True)
class Source:
    """One program of the gallery: the entries whose rows it predicts."""

    entries: Sequence[Entry]
    predict: Callable[[Path | None], Sequence[Row]]
    """The rows of a file or folder with the columns of ``papers/``, or of the bundled source; raises InputError."""


def median_error(rows: Sequence[Row], key: str) -> float:
    """Return the median of the relative errors of one quantity, where it was published; 0 without any."""
    found = [abs(row.predicted[key] / row.published[key] - 1) for row in rows if key in row.published]
    return median(found) if found else 0.0
