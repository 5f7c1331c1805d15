"""Charts as PNG, for agents: with the title and the legend that the page has around them."""

from __future__ import annotations

import re
from functools import partial

import pytest
import resvg_py
from samples import strategies

from reports.render import picture
from sim.studies.reports import report_of


def test_a_picture_has_title_legend_and_colours_but_nothing_that_shows_on_hover() -> None:
    run = strategies()
    charts = [chart for section in report_of(run).sections() for chart in picture._charts(section.parts)]
    (versions,) = [chart for chart in charts if chart.legend]
    svg = picture._whole(versions)
    assert versions.title in svg
    assert [words for words, _ in versions.legend] == re.findall(r'fill="#\w+"/><text [^>]*>([^<]+)</text>', svg)
    assert "tip" in versions.svg
    assert "tip" not in svg
    assert "var(" not in svg
    assert resvg_py.svg_to_bytes(svg, width=300).startswith(b"\x89PNG")


def test_without_fonts_there_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of(strategies())
    monkeypatch.setattr(resvg_py, "svg_to_bytes", partial(resvg_py.svg_to_bytes, skip_system_fonts=True))
    picture._has_font.cache_clear()
    assert picture.pictures(report, 2) == []
    monkeypatch.undo()
    picture._has_font.cache_clear()
