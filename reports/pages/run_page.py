"""The report of one run: a run directory in, one self-contained HTML file out."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.answers.change_findings import is_changed
from reports.answers.findings import answer, sweep_answer, sweep_focus
from reports.answers.held_back_rollouts import is_held
from reports.answers.plan_answer import Read, is_plan, plan_answer, shown_metrics
from reports.answers.remedy_answers import badge, cures_answer, is_priced
from reports.answers.verdicts import main_metric
from reports.axes import Axis, make_axes, point_words
from reports.charts.chart_selection import choose_charts
from reports.charts.tornado_chart import remedy_rows, tornado_chart
from reports.formatting import metric_words, read_terms, show
from reports.pages import method
from reports.tables import change_tables, metric_tables
from reports.tables.held_back_table import held_table
from reports.tables.plan_tables import formulas_table, looks_table
from reports.tables.remedy_tables import cures_tables, vetted_table
from reports.tables.what_if_table import what_if_table
from sim.results.point import Point
from sim.results.run_directory.result_files import write_text
from sim.results.verdict import MET, NO_SLO, NOT_MET, UNCLEAR, verdict
from sim.spec.files.yaml_text import yaml_text

if TYPE_CHECKING:
    from jinja2 import Template

    from reports.table import Table
    from sim.results.run_directory.store import RunData

FILE = "report.html"
_TEMPLATES = Path(__file__).parents[1] / "templates"


def build_report(run: RunData) -> str:
    """Return the report of a run as HTML that needs no network, and no JavaScript to be read."""
    return template("report.html.j2").render(**_context(run))


def write_report(run: RunData) -> Path:
    """Write ``report.html`` into the run directory and return its path; a reader never sees half a file."""
    target = Path(run.path) / FILE
    write_text(target, build_report(run))
    return target


@cache
def template(name: str) -> Template:
    """Return a page's template."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(_TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["script"] = page_script()
    return environment.get_template(name)


@dataclass(frozen=True)
class Script:
    """The one script of a page.

    :ivar hash: as the page's Content-Security-Policy names it: nothing but this text may run.
    """

    text: str
    hash: str


@cache
def page_script() -> Script:
    """Return the script that sorts tables and copies commands."""
    text = f"\n{(_TEMPLATES / 'report.js').read_text(encoding='utf-8')}"
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Script(text, f"sha256-{digest}")


def _context(run: RunData) -> dict[str, Any]:
    manifest = run.manifest
    scenario = manifest.get("scenario") or {}
    terms = read_terms(scenario.get("slo"))
    common = {
        "manifest": manifest, "name": manifest.get("name", "run"), "description": scenario.get("description", ""),
        "slo": [f"{metric_words(name)} {show(name, target)}" for name, target in terms.items()],
        "state_note": method.state_note(manifest), "assumed_note": _assumed_note(manifest),
        "modelled": method.modelled(manifest), "assumptions": method.assumed(manifest),
        "intervals": method.intervals(manifest), "calibration": method.calibration(manifest, run.points),
        "provenance": method.provenance(manifest),
        "scenario_yaml": yaml_text(scenario), "plan": None, "started": str(manifest.get("started_at", ""))[:10],
    }  # fmt: skip
    if not run.points:
        empty = dict.fromkeys(("answer", "badge", "groups", "metrics", "traffic", "capacity", "replicas"))
        return {
            **common,
            **empty,
            "tiles": [],
            "charts": [],
            "warnings": [],
            "where": "",
            "swept": [],
            "changes": [],
            "is_changed": False,
        }
    found = _results(run.points, terms, assumed=method.is_assumed(manifest))
    if is_plan(manifest):
        found |= _planned(run, terms)
    if is_priced(manifest):
        found |= _priced(run, terms)
    return {**common, **found}


def _results(points: list[Point], terms: dict[str, float], *, assumed: bool) -> dict[str, Any]:
    """Return everything that follows from the points."""
    axes = make_axes(points)
    focus = sweep_focus(points, terms) if axes else points[0]
    where = f" at {point_words(focus, axes)}" if axes else ""
    said = (sweep_answer if axes else lambda p, t, *, assumed: answer(p[0], t, assumed=assumed))(
        points, terms, assumed=assumed
    )
    return {
        "answer": said, "badge": _badge(points, terms, said.verdict), "where": where, "facts_of": "",
        "tiles": metric_tables.make_tiles(focus, terms),
        "charts": choose_charts(points, axes, terms, focus), "groups": metric_tables.groups_table(focus, where),
        "metrics": metric_tables.points_table(points, axes, terms) if axes else metric_tables.metrics_table(points[0]),
        "traffic": metric_tables.traffic_table(focus), "capacity": metric_tables.capacity_table(focus),
        "warnings": _warnings(points), "is_changed": is_changed(points) or is_held(points),
        "changes": _changes(points, axes, terms, focus, where),
        "replicas": change_tables.replicas_table(focus, where),
        "swept": [(axis.words, axis.key, len(axis.values)) for axis in axes],
    }  # fmt: skip


def _planned(run: RunData, terms: dict[str, float]) -> dict[str, Any]:
    """Return what the page of a plan says otherwise than that of a sweep."""
    said, focus = plan_answer(run), Read(run).chosen
    assert focus is not None, "a finished plan has a best point"
    axes = make_axes(run.points)
    where = f" at {point_words(focus, axes)}" if axes else ""
    rows = run.manifest.get("what_if") or []
    name = main_metric([focus], terms)
    tornado = tornado_chart(rows, name)
    charts = choose_charts(run.points, axes, terms, focus)
    found = [what_if_table(rows, shown_metrics(terms)), looks_table(run), formulas_table(run)]
    flags = (run.manifest.get("plan") or {}).get("flags") or {}
    mark = {MET: ("✓", "A plan that meets the SLO", "met"), NOT_MET: ("✕", "Nothing meets the SLO", "not-met")}
    return {
        "answer": said, "badge": mark.get(said.verdict, ("?", "Nothing certainly meets the SLO", "unclear")),
        "where": where, "tiles": metric_tables.make_tiles(focus, terms),
        "groups": metric_tables.groups_table(focus, where),
        "charts": [*([] if tornado is None else [tornado]), *charts],
        "traffic": metric_tables.traffic_table(focus), "capacity": metric_tables.capacity_table(focus),
        "replicas": change_tables.replicas_table(focus, where),
        "plan": {"name": "Plan", "heading": "How was it found, and what would change it?",
                 "tables": [table for table in found if table is not None], "flags": list(flags.items()),
                 "beyond": (run.manifest.get("plan") or {}).get("beyond_flags") or []},
    }  # fmt: skip


def _priced(run: RunData, terms: dict[str, float]) -> dict[str, Any]:
    """Return what the page of priced cures says otherwise than that of the run as it is."""
    said, (focus, *_) = cures_answer(run), run.points
    rows, width = remedy_rows(run.manifest["cures"]["rows"])
    tornado = tornado_chart(rows, main_metric([focus], terms), "as it is", width)
    return {
        "answer": said, "badge": badge(run), "where": " as it is", "facts_of": " today",
        "charts": [*([] if tornado is None else [tornado]), *choose_charts(run.points, [], terms, focus)],
        "plan": {"name": "Cures", "heading": "What was found, and what does its cure cost?",
                 "tables": [*cures_tables(run), vetted_table(run)], "flags": [], "beyond": []},
    }  # fmt: skip


def _changes(points: list[Point], axes: list[Axis], terms: dict[str, float], focus: Point, where: str) -> list[Table]:
    """Return the tables of rollouts, faults and routers that there are."""
    found = [
        held_table(focus if focus.held else next((p for p in points if p.held), focus), where if focus.held else ""),
        change_tables.side_by_side(points, axes, terms), change_tables.harm_table(focus, where),
        change_tables.events_table(focus, where),
    ]  # fmt: skip
    return [table for table in found if table is not None]


def _badge(points: list[Point], terms: dict[str, float], word: str) -> tuple[str, str, str]:
    """Return the mark, the words and the style of the verdict; a sweep counts its points."""
    good = sum(verdict(point, terms) == MET for point in points)
    if len(points) > 1 and 0 < good < len(points):
        return "◐", f"SLO met at {good} of {len(points):,} points", "partly"
    words = {MET: "SLO met", NOT_MET: "SLO not met", UNCLEAR: "Unclear", NO_SLO: "No SLO given"}[word]
    everywhere = " at every point" if len(points) > 1 and word == MET else ""
    return {MET: "✓", NOT_MET: "✕", UNCLEAR: "?", NO_SLO: "–"}[word], words + everywhere, word.replace(" ", "-")


def _warnings(points: list[Point]) -> list[str]:
    counts = Counter(sentence for point in points for sentence in dict.fromkeys(point.warnings))
    if len(points) == 1:
        return list(counts)
    return [f"{sentence} ({count} of {len(points):,} points)" for sentence, count in counts.most_common(12)]


def _assumed_note(manifest: dict[str, Any]) -> str:
    if not method.is_assumed(manifest):
        return ""
    name = (manifest.get("profile") or {}).get("name", "")
    return (
        f"Step, load and memory costs come from the profile {name}, whose numbers are assumed, not measured. "
        "Compare designs with them, but don't read times as what your GPU will do; calibrate a profile for that."
    )
