"""The report of one run, of whatever kind: a single point, a sweep, a plan, or the price of remedies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from reports.answers import findings
from reports.answers.change_findings import is_changed
from reports.answers.plan_reading import PlanReading, is_plan, shown_metrics
from reports.answers.verdicts import main_metric, missed_term
from reports.axes import Axis, make_axes, point_words
from reports.charts.chart_selection import choose_charts, unchanged
from reports.charts.tornado_chart import remedy_rows, tornado_chart
from reports.document import Caution, Code, Columns, Heading, Note, Paragraph, Part, Provenance, Report, Section
from reports.formatting import metric_words, read_terms, show
from reports.pages import method
from reports.render.html import page
from reports.tables import change_tables, metric_tables
from reports.tables.change_tables import held_table
from reports.tables.plan_tables import (
    formulas_table,
    frontier_table,
    remedy_tables,
    search_table,
    vetted_table,
    what_if_table,
)
from reports.tables.slice_tables import groups_table, money_table, pools_table, replicas_table, tenants_table
from reports.text import answer_text
from reports.text.answer_text import Answer
from reports.text.impact_text import badge_words
from reports.text.metric_text import unchanged_sentence
from reports.text.plan_text import badge, cures_answer, plan_answer
from reports.text.setup_text import setup_line
from sim.results.point import Point
from sim.results.run_directory.result_files import write_text
from sim.results.slo_terms import split_term, with_tenants
from sim.results.verdict import MET, NO_SLO, NOT_MET, UNCLEAR, grade, met_probability, verdict
from sim.spec.files.yaml_tree import yaml_text
from sim.spec.sections.workload import parse_time_of_day

if TYPE_CHECKING:
    from reports.table import Table
    from sim.results.run_directory.store import RunData
    from sim.results.run_directory.study_records import Headroom


def is_held(points: Sequence[Point]) -> bool:
    """Return whether a rollout was held back at one of these points."""
    return any(point.held_back for point in points)


def is_priced(manifest: Mapping[str, Any]) -> bool:
    """Return whether a run directory holds finished prices of remedies."""
    return manifest.get("kind") == "cures" and "rows" in (manifest.get("cures") or {})


FILE = "report.html"
_PLANNED = {MET: ("✓", "A plan that meets the SLO", "met"), NOT_MET: ("✕", "Nothing meets the SLO", "not-met")}
_MARKS = {MET: "✓", NOT_MET: "✕", UNCLEAR: "?", NO_SLO: "–"}


def run_answer(run: RunData) -> Answer:
    """Return the answer of a run of any kind; at least one of its points must have finished."""
    if is_plan(run.manifest):
        return plan_answer(run)
    if is_priced(run.manifest):
        return cures_answer(run)
    terms, assumed = _terms(run), method.is_assumed(run.manifest)
    if len(run.points) == 1:
        scenario = run.manifest.get("scenario") or {}
        return point_answer(run.points[0], terms, scenario, assumed=assumed, headroom=run.headroom)
    return answer_text.sweep_answer(run.points, terms, assumed=assumed)


def point_answer(
    point: Point,
    terms: Mapping[str, float],
    scenario: Mapping[str, Any],
    *,
    assumed: bool,
    headroom: Headroom | None = None,
) -> Answer:
    """Return the answer of the single point of a run.

    :param terms: SLO targets by metric; ``scenario``: as plain data; ``assumed``: whether its costs are assumed.
    """
    cold = not (scenario.get("cache") or {}).get("warm")
    return answer_text.answer(point, terms, assumed=assumed, cold=cold, headroom=headroom)


def write_report(run: RunData, known: Answer | None = None) -> Path:
    """Write ``report.html`` into the run directory and return its path.

    :param known: the run's answer, where the caller has it already.
    """
    path = Path(run.path) / FILE
    write_text(path, build_report(run, known))
    return path


def current_report(folder: Path) -> Path | None:
    """Return the report of a run directory if nothing it is made from is newer: the tables, and this package."""
    report, tables = folder / FILE, folder / "points.csv"
    if report.is_symlink() or not report.is_file() or not tables.is_file():
        return None
    package = Path(__file__).resolve().parents[1]
    sources = (file for pattern in ("*.py", "templates/**/*") for file in package.rglob(pattern))
    newest = max(file.stat().st_mtime_ns for file in (tables, *sources))
    return report if report.stat().st_mtime_ns >= newest else None


def build_report(run: RunData, known: Answer | None = None) -> str:
    """Return the report of a run as HTML."""
    return page(_with_results(run, known or run_answer(run)) if run.points else _report(run))


def _report(run: RunData, results: Sequence[Section] = (), **found: Any) -> Report:
    """Return the report of a run: what its manifest says, and what was found at its points."""
    manifest = run.manifest
    kind, started = manifest.get("kind") or "run", str(manifest.get("started_at", ""))[:10]
    state, assumed = method.state_note(manifest), _assumed_note(manifest)
    nothing = {
        "headline": "No answer yet" if kind == "plan" else "No point has finished yet",
        "statements": ["There is only the scenario to show. Run the same command again to continue."],
    }
    return Report(
        kind="report",
        name=manifest.get("name", "run"),
        data=None,
        terminal=(),
        kicker=f"{kind} · {started}" if started else kind,
        lead=(manifest.get("scenario") or {}).get("description", ""),
        cautions=[
            *([Markup("<strong>Not complete.</strong> {}").format(state)] if state else []),
            *([Markup("<strong>Assumed, not measured.</strong> {}").format(assumed)] if assumed else []),
        ],
        sections=lambda: [*results, *_behind(run)],
        version=(manifest.get("versions") or {}).get("loraplan", ""),
        **(found or nothing),
    )


def _terms(run: RunData) -> dict[str, float]:
    return read_terms(run.slo)


def _with_results(run: RunData, answer: Answer) -> Report:
    """Return a report with what follows from the points: the answer, and what is shown at the point it is about."""
    points, manifest, terms = run.points, run.manifest, _terms(run)
    axes = make_axes(points)
    planned, priced = is_plan(manifest), is_priced(manifest)
    focus = PlanReading(run).chosen if planned else findings.sweep_focus(points, terms) if axes else points[0]
    assert focus is not None, "a finished plan has a best point"
    where = f" at {point_words(focus, axes)}" if axes else ""
    shown = [focus] if planned else points
    charts = choose_charts(points, axes, terms, focus, planned=planned, day_s=_start_of_day(manifest))
    verdict_, facts_of, study = verdict_badge(points, terms, answer.verdict), "", None
    tornado = None
    if planned:
        verdict_ = _PLANNED.get(answer.verdict, ("?", "Nothing certainly meets the SLO", "unclear"))
        study = _plan(run)
        tornado = tornado_chart(run.what_if, main_metric([focus], terms))
    elif priced:
        verdict_, facts_of = badge(run), " today"
        study = Section(
            "plan",
            "What was found, and what would its remedies cost?",
            *remedy_tables(run),
            vetted_table(run),
            listed="Remedies",
        )
        rows, width = remedy_rows(run.remedies)
        tornado = tornado_chart(rows, main_metric([focus], terms), "as it is", width)
    place = 1 if planned else 0  # the main chart of a plan shows the designs that it chose from
    charts = [*charts[:place], *filter(None, [tornado]), *charts[place:]]
    unchanged_words = unchanged_sentence(points, axes, sorted(unchanged(points, axes, terms)))
    changed = is_changed(points) or is_held(points)
    further, warnings = answer.details[4:], _warnings(shown)
    every = metric_tables.points_table(points, axes, terms) if axes else metric_tables.metrics_table(points[0])
    results = [
        Section(
            "lead",
            "",
            *charts[:1],
            *([Heading("Further findings"), *map(Caution, further)] if further else []),
            *([Heading("Notes"), *map(Caution, warnings)] if warnings else []),
        ),
        *([study] if study is not None else []),
        Section(
            "changes",
            "What changed, and what did it cost?" if changed else "How do the routers compare?",
            *_changes(points, axes, terms, focus, where),
            listed="What changed" if changed else "Routers",
        ),
        Section("charts", "Charts", Paragraph(unchanged_words), *charts[1:], listed="Charts"),
        Section("pools", "What does each pool do?", pools_table(focus, where, bounds=True)),
        Section("replicas", "How even is the load?", replicas_table(focus, where), listed="Replicas"),
        Section(
            "tenants",
            "What did each tenant get?",
            tenants_table(shown, [] if planned else axes),
            money_table(shown, [] if planned else axes),
            listed="Tenants",
        ),
        Section("groups", "Which adapters wait?", groups_table(focus, where), listed="Adapters"),
        Section(
            "metrics",
            "All numbers",
            every,
            Columns([metric_tables.capacity_table(focus)], [metric_tables.traffic_table(focus)]),
            listed="All numbers",
        ),
    ]
    facts = [
        (f"What limits it{facts_of}", _capital(answer.binding), answer.binding_sentence),
        (f"Headroom{facts_of}", answer.headroom_words, answer.headroom),
        (f"Confidence{facts_of}", answer.confidence.capitalize(), f"{_capital(answer.reason)}."),
    ]
    searched = "Searched" if planned else "Swept"
    swept = Markup(" × ").join(_swept(axis) for axis in axes)
    return _report(
        run,
        results,
        setup=setup_line(shown),
        swept=Markup("{}: {}").format(searched, swept) if axes else "",
        verdict=(*verdict_, " · ".join(slo_words(terms, points))),
        headline=answer.headline,
        statements=answer.details[:4],
        facts=[fact for fact in facts if fact[2]],
        tiles=metric_tables.make_tiles(focus, terms),
        where=" as it is" if priced else where,
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _swept(axis: Axis) -> str:
    key = Markup(" <code>{}</code>").format(axis.key) if axis.words != axis.key else ""
    return Markup("{}{}, {} values").format(axis.words, key, len(axis.values))


def _plan(run: RunData) -> Section:
    """Return the section on how the answer of a plan was found, and the flags of what it recommends."""
    record = run.plan
    flags: list[Part] = []
    for engine, line in record.flags.items():
        flags += [Heading(f"{engine} with these settings, for each replica"), Code(line, f"Command for {engine}")]
    beyond = f"In addition to these settings: {'; '.join(record.beyond_flags or [])}."
    return Section(
        "plan",
        "How was it found, and what would change it?",
        *flags,
        Note(record.no_flags),
        Note(beyond) if record.flags and record.beyond_flags else None,
        frontier_table(run),
        what_if_table(run.what_if, shown_metrics(PlanReading(run).terms)),
        search_table(run),
        formulas_table(run),
        listed="Plan",
    )


def _behind(run: RunData) -> list[Section]:
    """Return what is behind the numbers, and how to get them again."""
    manifest = run.manifest
    calibration = method.calibration(manifest, run.points)
    drawn = [Heading("How the calibration intervals are made"), Paragraph(calibration)] if calibration else []
    return [
        Section(
            "method",
            "Method and provenance",
            Columns(
                [Heading("What is modelled"), *method.modelled(manifest)],
                [Heading("What is assumed"), *method.assumed(manifest)],
            ),
            Heading("How the intervals are made"),
            Paragraph(method.intervals(manifest)),
            *drawn,
            Heading("Where this comes from"),
            Provenance(method.provenance(manifest)),
            listed="Method",
        ),
        Section(
            "scenario",
            "Do it again",
            Paragraph("This command reproduces the run; the same seed and versions give the same numbers."),
            Code(manifest.get("command") or ""),
            Heading("The scenario, with every change from the command line merged in"),
            Code(yaml_text(manifest.get("scenario") or {}), "Scenario as YAML", command=False),
            listed="Scenario",
        ),
    ]


def _changes(points: list[Point], axes: list[Axis], terms: dict[str, float], focus: Point, where: str) -> list[Table]:
    """Return the tables of rollouts, faults and routers that there are."""
    held = focus if focus.held_back else next((point for point in points if point.held_back), focus)
    found = [
        held_table(held, where if focus.held_back else ""),
        change_tables.side_by_side(points, axes, terms),
        change_tables.impact_table(focus, where),
        change_tables.events_table(focus, where),
    ]
    return [table for table in found if table is not None]


def slo_words(terms: dict[str, float], points: Sequence[Point]) -> list[str]:
    """Return the terms of the fleet and of the first point's tenants, each with its target."""
    every = with_tenants(terms, points[0]) if points else terms
    return [f"{metric_words(name)} {show(name, target)}" for name, target in every.items()]


def verdict_badge(points: list[Point], terms: dict[str, float], word: str) -> tuple[str, str, str]:
    """Return mark, words and style of the verdict; a sweep counts its points.

    :param terms: those of the fleet. Tenants' SLOs are judged with them; where there are only these, it says so.
    """
    if not terms and (
        judged := Counter(verdict(each, {}) for each in points if any(tenant.slo for tenant in each.tenants))
    ):
        return _tenants_badge(judged)
    good = sum(verdict(point, terms) == MET for point in points)
    if len(points) > 1 and 0 < good < len(points):
        return "◐", f"SLO met at {good} of {len(points):,} points", "partly"
    words = {MET: "SLO met", NOT_MET: "SLO not met", UNCLEAR: "Unclear", NO_SLO: "No SLO given"}[word]
    if len(points) == 1 and word in (NOT_MET, UNCLEAR):
        graded = grade(met_probability(points[0], with_tenants(terms, points[0])))
        tenant = split_term(missed_term(points[0], terms) or "")[0]
        if tenant or graded != UNCLEAR:
            words = f"SLO{f' of {tenant}' if tenant else ''} {graded}"
    everywhere = " at every point" if len(points) > 1 and word == MET else ""
    if word == MET and (impact := badge_words(points)):
        return "◐", f"{words}{everywhere}, but {impact}", "partly"
    return _MARKS[word], words + everywhere, word.replace(" ", "-")


def _start_of_day(manifest: Mapping[str, Any]) -> int | None:
    """Return ``workload.start`` in seconds from midnight."""
    workload = (manifest.get("scenario") or {}).get("workload")
    return parse_time_of_day(workload.get("start")) if isinstance(workload, dict) else None


def _tenants_badge(judged: Counter[str]) -> tuple[str, str, str]:
    """Return the badge of points without an SLO of the fleet, by how many have which verdict on their tenants."""
    start, total = "SLOs of tenants", judged.total()
    if len(judged) > 1:
        mark, style = ("◐", "partly") if judged[MET] else ("?", "unclear")
        return mark, f"{start} met at {judged[MET]} of {total:,} points", style
    (word,) = judged
    everywhere = " at every point" if total > 1 and word == MET else ""
    return _MARKS[word], f"{start} {word}{everywhere}", word.replace(" ", "-")


def _warnings(points: Sequence[Point]) -> list[str]:
    counts = Counter(sentence for point in points for sentence in dict.fromkeys(point.warnings))
    if len(points) == 1:
        return list(counts)
    return [f"{sentence} ({count} of {len(points):,} points)" for sentence, count in counts.most_common(12)]


def _assumed_note(manifest: Mapping[str, Any]) -> str:
    if not method.is_assumed(manifest):
        return ""
    name = (manifest.get("profile") or {}).get("name", "")
    return (
        f"Step, load and memory costs come from the profile {name}, whose numbers are assumed, not measured. "
        "Use them to compare designs, not to predict times on your GPU; for that, calibrate a profile."
    )
