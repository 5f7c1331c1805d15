"""Colours: contrast in light, dark and print, and series that people with any colour vision tell apart."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import reports
from reports.charts.svg import COLOURS, SERIES, dash_of, hatched, marker_of

Colour = NDArray[np.float64]
CSS = (Path(reports.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
THEMES = dict(zip(("light", "dark", "print"), re.findall(r":root \{(.*?)\}", CSS, flags=re.S), strict=True))
DRAWN = ("s1", "s2", "s3", "s4", "s5", "s6", "slo")
# Severity 1.0 in Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision
# deficiency", IEEE TVCG 15 (2009); applied to linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
LEAST = {"normal": 9.0, "protanopia": 9.0, "deuteranopia": 9.0, "tritanopia": 7.0}
"""Distances in OKLab times 100, of which about 2 can just be seen side by side."""


def colours_of(theme: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", THEMES[theme]))


def linear(colour: str) -> Colour:
    """Linear RGB of an sRGB colour."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def oklab(rgb: Colour) -> Colour:
    """Björn Ottosson's perceptual space, from linear RGB."""
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    ) @ np.clip(rgb, 0, 1)
    return np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    ) @ np.cbrt(cones)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    return float(np.array([0.2126, 0.7152, 0.0722]) @ linear(colour))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_distance_is_that_of_known_colours() -> None:
    assert oklab(linear("#ffffff")) == pytest.approx([1, 0, 0], abs=1e-3)
    assert oklab(linear("#ff0000")) == pytest.approx([0.628, 0.225, 0.126], abs=1e-3)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    red, green = (oklab(VISION["deuteranopia"] @ linear(c)) for c in ("#b3122f", "#5f5a00"))
    assert np.linalg.norm(red - green) < 0.08  # as a red and an olive are to many people


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("vision", VISION)
def test_series_differ_for_every_kind_of_colour_vision(theme: str, vision: str) -> None:
    colours = colours_of(theme)
    seen = {name: oklab(VISION[vision] @ linear(colours[name])) for name in DRAWN}
    found = {(a, b): 100 * float(np.linalg.norm(seen[a] - seen[b])) for a, b in itertools.combinations(DRAWN, 2)}
    assert {pair: far for pair, far in found.items() if far < LEAST[vision]} == {}


@pytest.mark.parametrize("theme", THEMES)
def test_texts_and_lines_have_contrast(theme: str) -> None:
    colours = colours_of(theme)
    for ground, words in (
        ("paper", ("ink", "muted", "link", "slo", "good", "bad", "unsure")),
        ("panel", ("ink", "muted", "link", "good", "bad", "unsure")),
    ):
        assert {w for w in words if contrast(colours[w], colours[ground]) < 4.5} == set()
    assert {name for name in DRAWN if contrast(colours[name], colours["paper"]) < 3} == set()
    for step, ink in enumerate(["ink"] * 5 + ["heat-ink"] * 4):
        assert contrast(colours[f"h{step}"], colours[ink]) >= 4.5, (step, ink)


def test_nothing_is_told_by_colour_alone() -> None:
    every = (*SERIES, COLOURS["slo"])
    for looks in (
        [str(dash_of(colour)) for colour in every],
        [marker_of(colour) for colour in SERIES],
        [hatched(colour)["hatch"] for colour in every],
    ):
        assert len(set(looks)) == len(looks)
