"""The canvas of charts: where values stand, what is left out, and that two charts share no ids and no colours."""

import math
import re

import pytest

from reports.charts.canvas import Axes, Box, Figure


def axes() -> Axes:
    """Return axes of 200 by 100 units, 10 from the left and 20 from the bottom of a figure."""
    return Figure(300, 150).add_axes(Box(10, 20, 210, 120))


@pytest.mark.parametrize(
    ("log", "ends", "value", "x"),
    [(False, (0, 10), 2.5, 60), (False, (10, 0), 2.5, 160), (True, (1, 100), 10, 110), (True, (100, 1), 100, 10)],
)
def test_values_stand_where_the_axis_says(log: bool, ends: tuple[float, float], value: float, x: float) -> None:
    ax = axes()
    ax.plot([value], [0.5], "s", color="red", markersize=2)  # drawn before limits are known
    ax.set_xscale("log" if log else "linear")
    ax.set_xlim(*ends)
    assert ax.place((value, 0.25)) == pytest.approx((x, 105))  # y downwards: 150 - 20 - 25
    assert f'd="M{x - 1} 79L' in ax.svg()


def test_what_is_missing_leaves_a_gap_and_nothing_else() -> None:
    ax = axes()
    for gap in (math.nan, math.inf):
        ax.plot([0, 0.5, 1, 1], [0, gap, 1, 0], color="red")
        ax.fill_between([0, 0.2, 0.5, 0.8, 1], 0, [1, 1, gap, 1, 1], color="red")
    paths = re.findall(r' d="([^"]*)" clip', ax.svg())
    assert [path.count("M") for path in paths] == [1, 1, 1, 1, 2, 2]  # two areas each, below the lines
    assert not re.search("nan|inf", ax.svg())


def test_ids_and_colours_are_the_charts_own() -> None:
    figure = Figure(300, 150)
    ax = figure.add_axes(Box(10, 20, 210, 120))
    ax.fill([0, 1, 1], [0, 0, 1], facecolor="#010101", hatch="//", edgecolor="#010102")
    ax.annotate("<b> & co", (0, 0))
    svg = figure.svg("mine", {"#010101": "var(--a)", "#010102": "var(--b)"})
    ids = re.findall(r'id="([^"]+)"', svg)
    assert len(ids) == 2  # a pattern and a clip path
    assert all(name.startswith("mine-") and f"url(#{name})" in svg for name in ids)
    assert "#0101" not in svg.replace("url(#", "")
    assert {"var(--a)", "var(--b)"} <= set(re.findall(r"var\(--[ab]\)", svg))
    assert "&lt;b&gt; &amp; co" in svg
