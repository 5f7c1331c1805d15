"""From the lives of replicas to replica-seconds and counts over time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.results.records import Recording

Floats = NDArray[np.float64]

PLACE, BEGAN, READY, DRAINED, GONE = range(5)
"""Columns of ``Recording.lives``."""


def seconds_in(begin: Floats, end: Floats, bounds: Floats) -> Floats:
    """Return the summed seconds that intervals spend between each two neighbouring bounds.

    :param begin, end: (n,) times; an infinite end: after the last bound.
    :return: (bounds - 1,) seconds.
    """
    inside = np.minimum(end[:, None], bounds[1:]) - np.maximum(begin[:, None], bounds[:-1])
    return np.asarray(np.maximum(inside, 0.0).sum(axis=0))


def provisioned_s(recording: Recording) -> Floats:
    """Return (sections,) replica-seconds, as a cloud bills them: from the start of the cold start to the end of the
    drain."""
    lives = recording.lives
    return seconds_in(lives[:, BEGAN], lives[:, GONE], recording.bounds)


def counts_at(begin: Floats, end: Floats, times: Floats) -> Floats:
    """Return how many intervals each time lies in."""
    begun = np.searchsorted(np.sort(begin), times, side="right")
    return (begun - np.searchsorted(np.sort(end), times, side="right")).astype(np.float64)


def starting(recording: Recording, times: Floats) -> NDArray[np.bool_]:
    """Return at which times a replica was starting."""
    lives = recording.lives
    until = np.minimum(lives[:, READY], lives[:, GONE])  # a start may be called off
    return counts_at(lives[:, BEGAN], until, times) > 0
