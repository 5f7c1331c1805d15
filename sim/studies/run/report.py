"""The report on a run or a sweep; those on a plan and on remedies are made from the same parts."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from reports.answers.verdicts import missed_term
from reports.axes import Axis, make_axes, point_words
from reports.charts.svg import Chart
from reports.document import (
    Caution,
    Code,
    Columns,
    File,
    Heading,
    Opening,
    Paragraph,
    Part,
    Provenance,
    Report,
    Section,
)
from reports.formatting import metric_words, read_terms, show
from reports.table import Table
from reports.tables import metric_tables
from reports.tables.slice_tables import (
    base_model_table,
    groups_table,
    memory_table,
    money_table,
    pools_table,
    replicas_table,
    tenants_table,
    times_table,
)
from reports.text.metric_text import unchanged_sentence
from reports.text.setup_text import setup_line
from sim.results.point import Point
from sim.results.run_directory.headroom_record import Headroom
from sim.results.run_directory.result_files import summary_json
from sim.results.run_directory.store import RunData
from sim.results.slo_terms import split_term, with_tenants
from sim.results.verdict import MET, NO_SLO, NOT_MET, UNCLEAR, graded_verdict, verdict
from sim.spec.files import tree
from sim.spec.files.yaml_tree import yaml_text
from sim.spec.sections.tenants import Slo
from sim.spec.sections.times_of_day import parse_time_of_day, steps_from_start
from sim.spec.sections.traffic_laws import PiecewiseArrivals
from sim.studies.changes.findings import badge_words
from sim.studies.changes.report import changes_section
from sim.studies.run import method
from sim.studies.run.answer import Answer, answer
from sim.studies.run.findings import sweep_answer, sweep_focus

_MARKS = {MET: "✓", NOT_MET: "✕", UNCLEAR: "?", NO_SLO: "–"}
_MOST_RATES = 48


def run_answer(run: RunData) -> Answer:
    """Return the answer of a run or a sweep; at least one of its points must have finished."""
    terms, assumed = read_terms(run.slo), method.is_assumed(run.manifest)
    scenario = run.manifest.get("scenario") or {}
    if len(run.points) > 1:
        return sweep_answer(run.points, terms, assumed=assumed, cold=_starts_cold(scenario))
    return point_answer(run.points[0], terms, scenario, assumed=assumed, headroom=run.headroom)


def _starts_cold(scenario: Mapping[str, Any]) -> bool:
    return not (scenario.get("cache") or {}).get("warm")


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
    return answer(point, terms, assumed=assumed, cold=_starts_cold(scenario), headroom=headroom)


def run_report(run: RunData) -> Report:
    """Return what a run or a sweep found, so far."""
    if not run.points:
        return unfinished_report(run)
    found = run_answer(run)
    tables = ["points.csv", *(["tenants.csv"] if any(point.tenants for point in run.points) else [])]
    return points_report(
        run,
        found,
        data=summary_json(str(run.manifest.get("name", "run")), run.points, run.headroom)
        | {"short_answer": found.to_json()},
        terminal=_terminal(run, found),
        files=[File(name, None, "tables") for name in (*tables, "requests.parquet")],
    )


def unfinished_report(run: RunData) -> Report:
    """Return the report of a run that has no point yet: its scenario."""
    plan = run.manifest.get("kind") == "plan"
    return Report(
        **_about(run),
        headline="No answer yet" if plan else "No point has finished yet",
        statements=["There is only the scenario to show. Run the same command again to continue."],
        sections=lambda: _behind(run),
    )


def points_report(
    run: RunData,
    found: Answer,
    *,
    focus: Point | None = None,
    badge: tuple[str, str, str] | None = None,
    study: Section | None = None,
    tornado: Chart | None = None,
    **more: Any,
) -> Report:
    """Return the report of a run of any kind: its answer, and what is shown at the point that this is about.

    :param focus: the point of a plan's answer; all others are designs that it chose from.
    :param badge: mark, words and style of the verdict, if it isn't that on the points.
    :param study: what else was asked, shown below the answer; ``tornado``: what single changes do.
    :param more: what else the report has, or has in place of what it would.
    """
    points, terms, planned = run.points, read_terms(run.slo), focus is not None
    axes = make_axes(points)
    focus = focus or (sweep_focus(points, terms) if axes else points[0])
    where = f" at {point_words(focus, axes)}" if axes else ""
    shown = [focus] if planned else points
    swept = Markup(" × ").join(_swept(axis) for axis in axes)

    def sections() -> list[Section]:
        from sim.studies.run.charts import choose_charts

        workload = _workload(run.manifest, focus)
        day_s = parse_time_of_day(workload.get("start"))
        rates = _rates(workload, day_s, focus)
        certain = [grade.set for grade in run.plan.grades if grade.verdict == MET] if planned else None
        charts = choose_charts(points, axes, terms, focus, certain=certain, day_s=day_s, rates=rates)
        place = 1 if planned else 0  # the main chart of a plan shows the designs that it chose from
        charts = [*charts[:place], *filter(None, [tornado]), *charts[place:]]
        results = _sections(points, axes, terms, focus, shown, charts, further_findings(found), day_s)
        return [results[0], *([study] if study is not None else []), *results[1:], *_behind(run)]

    known: dict[str, Any] = {
        "setup": setup_line(shown),
        "swept": Markup("{}: {}").format("Searched" if planned else "Swept", swept) if axes else "",
        **answer_box(found, badge or verdict_badge(points, terms, found.verdict), slo_words(terms, points)),
        "tiles": metric_tables.make_tiles(focus, terms),
        "where": where,
        "sections": sections,
    }
    return Report(**{**_about(run), **known, **more})


def answer_box(found: Answer, badge: tuple[str, str, str], slo: Sequence[str]) -> dict[str, Any]:
    """Return what the box of an answer shows, by the names that a ``Report`` has for it: the short answer.

    :param slo: the terms of the SLO in words.
    """
    return {"verdict": (*badge, " · ".join(slo)), "headline": found.headline, "short": found.short()}


def further_findings(found: Answer) -> list[str]:
    """Return what an answer has to say besides its short form."""
    return [*filter(None, (found.binding_sentence, found.headroom)), *found.details]


def _about(run: RunData) -> dict[str, Any]:
    """Return what the manifest of a run says of it."""
    manifest = run.manifest
    kind, started = manifest.get("kind") or "run", str(manifest.get("started_at", ""))[:10]
    state, assumed = method.state_note(manifest), method.assumed_note(manifest)
    return {
        "kind": "report",
        "data": None,
        "terminal": (),
        "name": manifest.get("name", "run"),
        "kicker": f"{kind} · {started}" if started else kind,
        "lead": (manifest.get("scenario") or {}).get("description", ""),
        "cautions": [
            *([Markup("<strong>Not complete.</strong> {}").format(state)] if state else []),
            *([Markup("<strong>Assumed, not measured.</strong> {}").format(assumed)] if assumed else []),
        ],
        "version": (manifest.get("versions") or {}).get("loraplan", ""),
    }


def _terminal(run: RunData, found: Answer) -> list[str | Table | Opening]:
    """Return the answer, and the tables that a terminal has room for."""
    points, terms = run.points, Slo.model_validate(run.slo or {}).terms()  # columns in the order of the reference
    axes = make_axes(points)
    single = points[0] if len(points) == 1 else None
    judged = None if single is None or badge_words(points) else verdict(single, terms)  # else all would seem well
    sentences = (setup_line(points), *further_findings(found), metric_tables.traffic_sentence(points))
    parts: list[str | Table | Opening] = [
        Opening(f"{run.manifest.get('name', 'run')}: {found.headline}", None if judged == NO_SLO else judged),
        *(f"  {sentence}" for sentence in sentences if sentence),
        "",
    ]
    if single is None:
        matrix = metric_tables.matrix_table(points, axes, terms)
        table = metric_tables.terminal_table(points, axes, terms)
        parts.append(table if matrix is None else replace(matrix, unmarked=table))
    else:
        parts.append(metric_tables.metrics_table(single))
    some = () if single is None else (base_model_table(single), pools_table(single, ""), times_table(single, ""))
    tables = (*some, tenants_table(points, axes), money_table(points, axes))
    return parts + [part for table in tables if table for part in ("", table.caption, table)]


def _sections(
    points: list[Point],
    axes: list[Axis],
    terms: dict[str, float],
    focus: Point,
    shown: list[Point],
    charts: Sequence[Chart | Table],
    further: Sequence[str],
    day_s: int | None,
) -> list[Section]:
    """Return what was found at the points; charts, tenants and notes are of those that are shown."""
    from sim.studies.run.charts import unchanged

    where = f" at {point_words(focus, axes)}" if axes else ""
    warnings = _warnings(shown)
    flat = unchanged_sentence(points, axes, sorted(unchanged(points, axes, terms)))
    by = axes if len(shown) == len(points) else []
    every = metric_tables.points_table(points, axes, terms) if axes else metric_tables.metrics_table(points[0])
    changes = changes_section(points, axes, terms, focus, where, day_s)
    first = 2 if (changes.parts or shown is not points) and len(charts) > 3 else len(charts)
    return [
        Section(
            "lead",
            "",
            *charts[:1],
            *([Heading("Further findings"), *map(Caution, further)] if further else []),
            *([Heading("Notes"), *map(Caution, warnings)] if warnings else []),
            Paragraph(flat),
            *charts[1:first],
            listed="" if charts[first:] else "Charts",
        ),
        changes,
        Section("charts", "Charts", *charts[first:], listed="Charts"),
        Section("pools", "What does each pool do?", pools_table(focus, where, bounds=True)),
        Section("replicas", "How even is the load?", replicas_table(focus, where), listed="Replicas"),
        Section(
            "tenants",
            "What did each tenant get?",
            tenants_table(shown, by),
            money_table(shown, by),
            listed="Tenants",
        ),
        Section("times", "When do requests wait?", times_table(focus, where, bounds=True), listed="Times"),
        Section("groups", "Which adapters wait?", groups_table(focus, where), listed="Adapters"),
        Section(
            "metrics",
            "All numbers",
            every,
            Columns(
                [metric_tables.capacity_table(focus), memory_table(focus.setup)], [metric_tables.traffic_table(focus)]
            ),
            listed="All numbers",
        ),
    ]


def _behind(run: RunData) -> list[Section]:
    """Return what is behind the numbers, and how to get them again."""
    manifest = run.manifest
    calibration = method.calibration(manifest, run.points)
    drawn: list[Part] = [Heading("How the calibration intervals are made"), Paragraph(calibration)]
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
            *(drawn if calibration else []),
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


def slo_words(terms: dict[str, float], points: Sequence[Point]) -> list[str]:
    """Return the terms of the fleet and of the first point's tenants, each with its target."""
    every = with_tenants(terms, points[0]) if points else terms
    return [f"{metric_words(name)} {show(name, target)}" for name, target in every.items()]


def verdict_badge(points: list[Point], terms: dict[str, float], word: str) -> tuple[str, str, str]:
    """Return mark, words and style of the verdict, with what rollouts and faults did; a sweep counts its points.

    :param terms: those of the fleet. Tenants' SLOs are judged with them; where there are only these, it says so.
    """
    mark, words, style = _badge(points, terms, word)
    if mark == _MARKS[MET] and (impact := badge_words(points)):
        return "◐", f"{words}, but {impact}", "partly"
    return mark, words, style


def _badge(points: list[Point], terms: dict[str, float], word: str) -> tuple[str, str, str]:
    if not terms and (
        judged := Counter(verdict(each, {}) for each in points if any(tenant.slo for tenant in each.tenants))
    ):
        return _tenants_badge(judged)
    good = sum(verdict(point, terms) == MET for point in points)
    if len(points) > 1 and 0 < good < len(points):
        return "◐", f"SLO met at {good} of {len(points):,} points", "partly"
    words = {MET: "SLO met", NOT_MET: "SLO not met", UNCLEAR: "Unclear", NO_SLO: "No SLO given"}[word]
    if len(points) == 1 and word in (NOT_MET, UNCLEAR):
        graded = graded_verdict(points[0], terms)
        tenant = split_term(missed_term(points[0], terms) or "")[0]
        if tenant or graded != UNCLEAR:
            words = f"SLO{f' of {tenant}' if tenant else ''} {graded}"
    everywhere = " at every point" if len(points) > 1 and word == MET else ""
    return _MARKS[word], words + everywhere, word.replace(" ", "-")


def _tenants_badge(judged: Counter[str]) -> tuple[str, str, str]:
    """Return the badge of points without an SLO of the fleet, by how many have which verdict on their tenants."""
    start, total = "SLOs of tenants", judged.total()
    if len(judged) > 1:
        mark, style = ("◐", "partly") if judged[MET] else ("?", "unclear")
        return mark, f"{start} met at {judged[MET]} of {total:,} points", style
    (word,) = judged
    everywhere = " at every point" if total > 1 and word == MET else ""
    return _MARKS[word], f"{start} {word}{everywhere}", word.replace(" ", "-")


def _workload(manifest: Mapping[str, Any], point: Point) -> Mapping[str, Any]:
    """Return the section ``workload`` at a point."""
    given = tree.planted(manifest.get("scenario") or {}, tree.Origin("scenario"))
    swept = {key: value for key, value in point.set.items() if key.startswith("workload")}
    return tree.plain(tree.changed(given, swept, tree.Origin("sweep"))).get("workload") or {}


def _rates(workload: Mapping[str, Any], day_s: int | None, point: Point) -> list[tuple[float, float]]:
    """Return when ``piecewise`` arrivals change at a point, and the rate from then on; nothing where that is often."""
    law = workload.get("arrivals") or {}
    if law.get("process") != "piecewise" or not point.timeline.t_s:
        return []
    law = PiecewiseArrivals.model_validate(steps_from_start(law, day_s, "workload.arrivals."))
    *begins, period = [0.0, *itertools.accumulate(step.time for step in law.steps)]
    scale = law.rate * period / sum(step.level * step.time for step in law.steps)
    cycles = math.ceil(point.timeline.t_s[-1] / period)
    if cycles * len(begins) > _MOST_RATES:
        return []
    steps = [(at, step.level * scale) for at, step in zip(begins, law.steps, strict=True)]
    found = [(cycle * period + at, rate) for cycle in range(cycles) for at, rate in steps]
    return [(at, rate) for at, rate in found if at < point.timeline.t_s[-1]]


def _swept(axis: Axis) -> str:
    key = Markup(" <code>{}</code>").format(axis.key) if axis.words != axis.key else ""
    return Markup("{}{}, {} values").format(axis.words, key, len(axis.values))


def _warnings(points: Sequence[Point]) -> list[str]:
    counts = Counter(sentence for point in points for sentence in dict.fromkeys(point.warnings))
    if len(points) == 1:
        return list(counts)
    return [f"{sentence} ({count} of {len(points):,} points)" for sentence, count in counts.most_common(12)]
