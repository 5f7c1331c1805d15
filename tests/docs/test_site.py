"""The documentation site (``make docs``): every page has its place, and links work with all pages in one folder."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from scripts import ROOT

spec = importlib.util.spec_from_file_location("tools_site", ROOT / "tools" / "site.py")
assert spec is not None
assert spec.loader is not None
site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(site)


def test_every_page_has_one_place_in_the_navigation() -> None:
    assert list(site.navigation_problems()) == []


def test_what_is_wrong_with_a_navigation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = site.CONFIGURATION.read_text(encoding="utf-8")
    changed = tmp_path / "mkdocs.yml"
    wrong = kept.replace("Plan: plan.md", "Plan: plans.md").replace("Home: index.md", "Home: index.md\n  - tutorial.md")
    changed.write_text(wrong, encoding="utf-8")
    monkeypatch.setattr(site, "CONFIGURATION", changed)
    assert list(site.navigation_problems()) == [
        "mkdocs.yml: plan.md is not in nav; add it where a reader would look for it",
        "mkdocs.yml: nav names plans.md, which does not exist",
        "mkdocs.yml: nav names tutorial.md more than once",
    ]


@pytest.mark.parametrize(
    ("written", "on_the_site"),
    [
        ("[changes](../CHANGELOG.md#unreleased)", "[changes](changelog.md#unreleased)"),
        ("[safe](SECURITY.md)", "[safe](security.md)"),
        ("[skill](../skills/loraplan/SKILL.md)", "[skill](skill.md)"),
        ("[plan](docs/plan.md#what-if)", "[plan](plan.md#what-if)"),
        ("![a](pictures/a.png) [b](https://example.org/docs/b.md)",) * 2,
        ("`[x](../CHANGELOG.md)`",) * 2,
        ("<!-- file: a/b.yaml -->\n```yaml\nx: 1\n```", '```yaml title="a/b.yaml"\nx: 1\n```'),
        ("```console\n$ loraplan run [x](docs/a.md)\n```",) * 2,
    ],
)
def test_links_lead_to_the_same_page_on_the_site(written: str, on_the_site: str) -> None:
    assert site.for_site(written) == on_the_site


def test_every_report_that_the_site_links_is_made_by_a_command_of_its_page() -> None:
    text = (ROOT / "docs" / "ui.md").read_text(encoding="utf-8")
    made = re.findall(r"^\$ loraplan .* --out ([\w-]+)$", text, re.MULTILINE)
    assert len(made) == 6
    assert re.findall(r"\[Open the report\]\(reports/([\w-]+)\.html\)", site.for_site(text)) == made


@pytest.mark.parametrize("name", site.pages())
def test_no_page_names_the_file_of_another_instead_of_a_link(name: str) -> None:
    text = site.for_site(site.pages()[name].read_text(encoding="utf-8"))
    prose = "".join(site._CODE.split(text)[::2])
    assert re.findall(r"\bdocs/[\w-]+\.md", prose) == []


def test_agents_find_every_page_with_what_it_is_about() -> None:
    head, summary, *lines = filter(None, site.llms_txt().splitlines())
    assert head == "# loraplan"
    assert summary.startswith("> Capacity planning")
    listed = [
        re.fullmatch(r"- \[[^]]+\]\((\S+\.md)\): (.+[.?:])", line) for line in lines if not line.startswith("## ")
    ]
    assert all(listed)
    assert sorted(found[1] for found in listed if found) == sorted(site.pages())
    assert "- [Plan](plan.md): How many GPUs, slots or host copies meet my SLO" in "\n".join(lines)


def test_pages_that_fetch_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "SITE", tmp_path)
    (tmp_path / "a.html").write_text('<script src="https://cdn.example/x.js"></script><img src="pictures/a.png">')
    (tmp_path / "b.html").write_text(
        '<link rel=stylesheet href=//fonts.example/f.css><a href="https://example.org">x</a>'
    )
    assert list(site.fetches()) == [
        'a.html fetches from elsewhere: <script src="https://cdn.example/x.js">',
        "b.html fetches from elsewhere: <link rel=stylesheet href=//fonts.example/f.css>",
    ]
