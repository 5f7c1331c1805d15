"""The page as a whole: well-formed, alone, escaped, small, quick, and readable by everyone."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import samples
from one_script import without_script

from reports.render.html import template, write
from reports.table import Table
from sim.results.metric_state import Cause, State
from sim.results.model import Capacity, Timeline
from sim.studies.run.report import run_report

VOID = frozenset(["meta", "link", "br", "img", "input", "hr"])
LOADING = frozenset(["src", "href", "xlink:href", "data", "srcset", "poster", "action"])


class Page(HTMLParser):
    """Reads a page, checks that tags match, and keeps what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value or "" for key, value in attrs if key == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.text.append((self.open[-1], data.strip()))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


OTHERS = ("trace", "cache", "compare", "fidelity", "serve", "plan")
"""Documents of other studies, which the same laws hold for."""


@pytest.fixture(scope="module", params=[*sorted(samples.ALL), *OTHERS])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    from test_accessibility import PAGES

    file = tmp_path_factory.mktemp("page") / "page.html"
    PAGES[request.param](file)
    text = file.read_text(encoding="utf-8")
    return text, Page(text)


def test_is_well_formed_with_unique_ids(page: tuple[str, Page]) -> None:
    _, read = page
    assert len(read.ids) == len(set(read.ids))
    for attrs in (attrs for _, attrs in read.tags):
        for wanted in re.findall(r"url\(#([^)]+)\)", " ".join(value or "" for value in attrs.values())):
            assert wanted in read.ids
        for key in ("aria-labelledby", "aria-describedby", "href"):
            value = attrs.get(key) or ""
            if key != "href" or value.startswith("#"):
                assert all(part.lstrip("#") in read.ids for part in value.split())


def test_loads_nothing_and_runs_its_own_script_alone(page: tuple[str, Page]) -> None:
    text = without_script(page[0])
    for tag, attrs in Page(text).tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "img")
        for key, value in attrs.items():
            assert not key.startswith("on")
            if key in LOADING:
                assert (value or "").startswith(("#", "data:,"))
    assert not re.search(r"@import|url\((?!#)", text)


def test_nothing_stands_in_the_page_that_only_the_script_can_do(page: tuple[str, Page]) -> None:
    text = without_script(page[0])
    assert "<button" not in text
    assert "aria-sort=" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S)
    assert "can be read" in text[text.index("<footer>") :]


def test_charts_have_names_and_numbers(page: tuple[str, Page]) -> None:
    text, read = page
    figures = re.findall(r"<figure.*?</figure>", text, flags=re.S)
    assert len(figures) == len(read.of("svg"))
    for figure in figures:
        assert re.search(r'<svg viewBox="[\d. ]+" role="img" aria-label="[^"]{8,}" aria-describedby="', figure)
        assert re.search(r"<desc id=[^>]*>[^<]{20,}</desc>", figure)
        table = re.search(r"<details>.*<table>.*</table>.*</details>", figure, flags=re.S)
        assert len(re.findall(r"<td", table[0])) >= 2
        assert "<svg width" not in figure
        tips = re.findall(r'<g class="tip"><rect x="([^"]+)" y="([^"]+)" width="([^"]+)" height="([^"]+)"', figure)
        _, _, width, height = map(float, re.search(r'viewBox="([^"]+)"', figure)[1].split())  # type: ignore[index]
        assert tips
        for left, top, wide, tall in (map(float, tip) for tip in tips):
            assert -1 < left <= left + wide < width + 1
            assert -1 < top <= top + tall < height + 1


def test_every_chart_asks_a_question(page: tuple[str, Page]) -> None:
    titles = re.findall(r"<figcaption><h3>(.*?)</h3>", page[0])
    assert titles == [title for title in titles if title.count("?") == 1 and title.endswith("?")]


def test_charts_take_the_colours_of_the_page(page: tuple[str, Page]) -> None:
    text, read = page
    for tag, attrs in read.tags:
        if tag == "text" and "text-anchor" not in attrs:  # those that the pointer shows have theirs from the stylesheet
            assert re.search(r"fill: (currentColor|var\(--[a-z0-9-]+\))", attrs.get("style") or "")
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.S):
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
        assert "font-family" not in svg
        assert "<style" not in svg
        assert "nan" not in re.sub(r"<(title|desc|text)[^>]*>.*?</\1>", "", svg).lower()
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", text))
    assert used <= set(re.findall(r"--([a-z0-9-]+):", text))


def test_headings_tables_and_landmarks(page: tuple[str, Page]) -> None:
    text, read = page
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for landmark in ("header", "nav", "main", "footer"):
        assert len(read.of(landmark)) == 1
    assert len(read.of("caption")) == len(read.of("table"))
    assert all(attrs.get("scope") in ("col", "row") for attrs in read.of("th"))
    assert '<html lang="en">' in text
    assert text.count("prefers-color-scheme: dark") == 1


def test_is_small(page: tuple[str, Page]) -> None:
    assert len(page[0].encode()) < 600_000


def test_names_with_markup_stay_text() -> None:
    text = without_script(samples.build_report(samples.policies()))
    assert "<script" not in text
    assert "<img" not in text
    assert "<b>bold" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text


def test_says_when_a_run_is_not_complete() -> None:
    run = samples.nothing_yet()
    assert "0 of 6 points are finished" in samples.build_report(run)
    plan = samples.build_report(replace(run, manifest={**run.manifest, "kind": "plan", "points_total": 0}))
    assert "and has no answer yet" in plan
    assert "points are finished" not in plan


def bare(**changes: Any) -> samples.RunData:
    """A run whose points lack all that a point may lack."""
    point = samples.make_point()
    for name, metric in point.metrics.items():
        point.metrics[name] = samples.metric(name, None, state=State(Cause.NO_REQUESTS)) if metric else metric
    point = replace(point, cdf={}, breakdown={}, groups=[], traffic={}, timeline=Timeline(), capacity=Capacity())
    return samples.RunData(Path("x"), samples.manifest(**changes), [point])


def test_a_point_without_data_still_makes_a_page() -> None:
    text = samples.build_report(bare())
    Page(text)
    assert "not enough data" in text


def test_nulls_in_curves_leave_gaps() -> None:
    def strokes(*, queue: bool = True, null_at: int | None = None) -> int:
        run = samples.single()
        point = run.points[0]
        point.timeline.replicas.extend([1.0] * len(point.timeline.t_s))  # with it, latencies are drawn
        point.timeline.e2e_mean_s.extend([0.3] * len(point.timeline.t_s))
        if null_at is not None:
            point.timeline.e2e_mean_s[null_at] = None
        if not queue:
            point.cdf["queue_s"] = [None] * len(samples.QUANTILES)  # type: ignore[list-item]
        text = samples.build_report(run)
        Page(text)
        return sum(path.count("M") for path in re.findall(r' d="([^"]*)"', text))

    assert strokes(null_at=90) == strokes() + 1, "a line goes on behind a gap"
    assert strokes(queue=False) == strokes() - 2, "a curve without values goes, and its sign in the legend"


def test_writes_the_file_whole(tmp_path: Path) -> None:
    run = samples.single()
    written = write(run_report(samples.RunData(tmp_path, run.manifest, run.points)), tmp_path)
    assert written == tmp_path / "report.html"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert written.read_text(encoding="utf-8") == samples.build_report(run)


def test_brackets_are_set_small_where_they_hold_an_interval_and_not_in_a_sentence() -> None:
    rows = [["a", "612 ms (588 to 635)", "1.01 half-way (steps 250 to 350) and 1 at the end (steps 500 to 600)"]]
    page = str(template("macros.html.j2").module.data_table(Table("t", ["", "value", "evidence"], rows, words=(2,))))
    assert "612 ms <small>(588 to 635)</small>" in page
    assert '<td class="l">1.01 half-way (steps 250 to 350) and 1 at the end (steps 500 to 600)</td>' in page
