"""Predictions against measurements: the line on which they agree, and the band around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.charts.svg import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAND = 1.25
"""Factor up to which a prediction lies inside the band."""


def is_within(measured: float, predicted: float) -> bool:
    """Return whether a prediction lies inside the band."""
    return 1 / BAND <= predicted / measured <= BAND


def draw_agreement(ax: Axes, low: float, high: float) -> None:
    """Draw the line of equal values and the band around it."""
    ends = [low, high]
    below, above = [end / BAND for end in ends], [end * BAND for end in ends]
    ax.fill_between(ends, below, above, color=COLOURS["muted"], alpha=0.16, linewidth=0)
    ax.plot(ends, ends, color=COLOURS["muted"], linewidth=1)
