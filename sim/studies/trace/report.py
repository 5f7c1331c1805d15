"""The report on a trace: what it shows of the findings, and the files that come with it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reports.document import (
    Caution,
    Code,
    Columns,
    File,
    Heading,
    Note,
    Paragraph,
    Part,
    Provenance,
    Report,
    Section,
    method,
)
from reports.formatting import number, percent, plural
from reports.table import Table
from sim.results.run_directory.result_files import digest_file
from sim.spec.sections.trace_source import Trace
from sim.spec.units import human_seconds
from sim.studies.trace.charts import check_chart, curve_chart, rate_chart
from sim.studies.trace.facts import FitCheck, LawRow, SessionFacts, TraceFacts
from sim.studies.trace.findings import (
    headline,
    laws_sentences,
    lengths_sentences,
    parameters,
    points,
    relative_change,
    sentences,
    shown,
    with_sign,
)
from sim.studies.trace.scenario import REPLAY, SCENARIO, replay_text, scenario_files
from sim.studies.trace.study import SEED, TraceStudy
from sim.traffic.fits.popularity_fit import LEAST_P
from sim.traffic.traces.data import TraceData
from sim.version import __version__

_LAWS_NOTE = (
    "AIC: smaller is likelier, among laws of the same ranking. Distance: how far the shares of the first adapters, "
    "added up, are from those of the law. p: how often rankings drawn from the law, and fitted in the same way, are at "
    "least as far off; below 0.02 the law is ruled out. It assumes that requests, or sessions, are independent of each "
    "other. With many requests even small distances rule a law out; with few, counts and fitted laws are steeper than "
    "the truth."
)
_PLAN = 'next     loraplan plan {} --minimize fleet.replicas=1..8 --set "slo={ttft_p99: 1 s}"'


def study_report(
    study: TraceStudy, source: Trace, trace: TraceData, *, stem: str, requests: int | None, command: str
) -> Report:
    """Return the report on a trace that was studied, with the scenarios of its traffic.

    :param source: where the trace was read from; ``stem``: what to call it; ``requests``: how many, at most.
    :param command: the command that makes the report again.
    """
    facts = study.facts
    scenario = scenario_files(study, trace, stem, seed=SEED)
    provenance = [
        *(("Trace", f"{Path(each).name}, sha256 {digest_file(Path(each))[:12]}") for each in source.files),
        ("Seed", str(SEED)),
        ("Version", f"loraplan {__version__}"),
    ]
    files = [
        *(File(name, text, "scenario" if name == SCENARIO else "") for name, text in scenario.items()),
        File(REPLAY, lambda folder: replay_text(source, trace, folder, requests), "replay", _PLAN),
        File("trace.json", facts.to_json(), "facts"),
    ]
    return trace_report(facts, Path(source.files[0]).name, command, scenario.get(SCENARIO), provenance, files)


def trace_report(
    facts: TraceFacts,
    name: str,
    command: str,
    scenario: str | None = None,
    provenance: Sequence[tuple[str, str]] = (),
    files: Sequence[File] = (),
) -> Report:
    """Return what a trace is like as a report.

    :param name: the trace, as the reader knows it.
    :param scenario: text of the file with the fitted traffic, or None.
    """
    tables = filter(None, (facts_table(facts), curve_table(facts), laws_table(facts), check_table(facts)))
    return Report(
        kind="trace",
        name=name,
        title=f"Traffic of {name}",
        lead="What the traffic of this trace is like, what that means for adapter slots, and whether synthetic traffic "
        "can replace it.",
        headline=headline(facts),
        statements=sentences(facts),
        data=facts.to_json(),
        terminal=[
            headline(facts),
            *(f"  {text}" for text in sentences(facts)),
            *(part for table in tables for part in ("", table.caption, table)),
        ],
        sections=lambda: _sections(facts, scenario, provenance, command),
        files=files,
        notes=facts.notes,
        margin=9,
    )


def _sections(
    facts: TraceFacts, scenario: str | None, provenance: Sequence[tuple[str, str]], command: str
) -> list[Section]:
    curve = curve_table(facts)
    drawn = curve_chart(facts, curve) or curve
    laws = [laws_table(facts, of) for of in dict.fromkeys(law.of for law in facts.laws)]
    return [
        Section("slots", "Slots and misses", drawn, check_chart(facts.fit), listed="Slots"),
        Section(
            "fitted",
            "Can fitted traffic replace the trace?",
            Columns([check_table(facts)], [candidates_table(facts)]),
            listed="Fitted traffic",
        ),
        Section("rates", "Rate and burstiness", rate_chart(facts), facts_table(facts), listed="Rate"),
        Section(
            "popularity",
            "Popularity",
            *laws_sentences(facts),
            Columns(*([_unbroken(table)] for table in laws if table is not None)),
            Note(_LAWS_NOTE) if laws else None,
            listed="Popularity",
        ),
        Section("lengths", "Lengths", *lengths_sentences(facts), lengths_table(facts), listed="Lengths"),
        method(*_method(facts), *_notes(facts), Provenance(provenance), command=command),
        _scenario_section(scenario),
    ]


def _unbroken(laws: Table) -> Table:
    """Return a table of laws whose verdicts of two words stay on one line."""
    return replace(laws, rows=[[*row[:-1], row[-1].replace(" ", "\u00a0")] for row in laws.rows])


def _method(facts: TraceFacts) -> list[str]:
    texts = []
    checked = ", and compared with the second part" if check_table(facts) else ""
    if facts.curve is not None:
        texts.append(
            "Miss ratios are those of LRU by slots, in the order of the requests: no times, loads take none, nothing "
            "is in use. Real serving protects adapters in use; simulate before deciding on a size."
        )
    if facts.sessions is not None and not facts.sessions.named:
        texts.append(
            "The trace names no sessions: one ends where its adapter pauses for longer than given above. Two users of "
            "one adapter at the same time count as one session."
        )
    if facts.fit is not None and facts.fit.candidates:
        texts.append(
            "Models of traffic are fitted to the first part of the trace; the one whose miss curves (of LRU, and of a "
            f"cache that always holds the hottest) are closest to that part's is chosen{checked}."
        )
    elif facts.fit is not None:
        texts.append(f"Arrivals are fitted to the first part of the trace{checked}.")
    return [
        *texts,
        "Poisson: requests that come independently of each other at a constant rate. Its gaps have a cv of 1, its "
        "counts an index of dispersion of 1.",
    ]


def _notes(facts: TraceFacts) -> list[str]:
    """Return what a reader should know about the file, with the rows left out, by reason."""
    left_out = [f"Rows left out: {number(count)} ({reason})." for reason, count in facts.skipped.items()]
    notes = [Caution(note) for note in (*left_out, *facts.notes)]
    return [Heading("Notes on the file"), *notes] if notes else []


def _scenario_section(scenario: str | None) -> Section:
    parts: list[Part] = []
    if scenario is not None:
        parts = [
            Paragraph(f"In {SCENARIO}, in the folder of this page. Run it there:"),
            Code(f"loraplan run {shlex.quote(SCENARIO)}", "Command that runs the scenario"),
            Heading(SCENARIO),
            Code(scenario, "Scenario", command=False),
        ]
    return Section("scenario", "The fitted traffic as a scenario", *parts, listed="Scenario")


_CHECKED_SLOTS = (4, 8, 16, 32, 64)
"""Slots at which the terminal's table compares the fitted traffic with the trace."""


def facts_table(facts: TraceFacts) -> Table:
    """Return rate, burstiness, popularity and sessions, each with what it means."""
    left_out = sum(facts.skipped.values())
    rows = [
        ["requests", number(facts.requests), f"{plural(left_out, 'row')} left out" if left_out else ""],
        ["adapters", *([number(facts.adapters), ""] if facts.adapters else ["–", "the trace names none"])],
        ["span", human_seconds(facts.span_s), "from the first request to the last"],
        ["rate", f"{number(facts.rate_rps)}/s" if facts.span_s > 0 else "–", "on average"],
        ["cv of gaps", known(facts.gap_cv), "standard deviation over mean of the gaps between requests; Poisson: 1"],
        ["dispersion, 1 s", known(facts.dispersion_1s), "variance over mean of the requests in a second; Poisson: 1"],
        [
            "dispersion, 60 s",
            known(facts.dispersion_60s),
            "variance over mean of the requests in a minute; Poisson: 1",
        ],
        ["longest gap", human_seconds(facts.longest_gap_s), "without any request"],
    ]
    if facts.base_share > 0:
        rows.insert(2, ["for the base model", percent(facts.base_share), "of requests: they name no adapter"])
    found = facts.concentration
    if found is not None:
        rows += [
            [
                f"hottest {part} %",
                percent(found[f"top_{part}pct"]),
                f"of requests, for {plural(max(1, round(facts.adapters * part / 100)), 'adapter')}",
            ]
            for part in (1, 10, 20)
        ]
        rows.append(
            [
                "effective adapters",
                number(found["effective_adapters"]),
                "exp of the entropy: traffic is as spread out as this many equally popular adapters",
            ]
        )
    if facts.sessions is not None:
        rows += _session_rows(facts.sessions)
    return Table("The trace in numbers", ["", "value", "meaning"], rows, words=(2,))


def known(value: float | None) -> str:
    """Return a number, or why there is none."""
    return "too few to say" if value is None else number(round(value, 2))


def _session_rows(sessions: SessionFacts) -> list[list[str]]:
    pause = (
        "named by the trace"
        if sessions.pause_s is None
        else (f"an adapter's requests with pauses up to {human_seconds(sessions.pause_s)}")
    )
    rows = [
        ["sessions", number(sessions.sessions), pause],
        ["sessions at a time", number(sessions.at_a_time), "under way on average, from first to last request"],
        ["requests per session", number(sessions.requests_mean), "on average"],
    ]
    if sessions.gap_median_s is not None and sessions.gap_p99_s is not None:
        rows.append(
            [
                "gap within a session",
                human_seconds(sessions.gap_median_s),
                f"median; p99 {human_seconds(sessions.gap_p99_s)}",
            ]
        )
    return rows


def curve_table(facts: TraceFacts) -> Table | None:
    """Return LRU's miss ratios by slots, in the trace's order and without it."""
    curve = facts.curve
    if curve is None:
        return None
    rows = [
        [number(slots), percent(real), percent(shuffled), percent(draws)]
        for slots, real, shuffled, draws in zip(curve.slots, curve.real, curve.shuffled, curve.independent, strict=True)
    ]
    head = ["slots", "the trace's order", "shuffled", "independent draws*"]
    note = "* Che's approximation in the long run: without the first request of each adapter, which misses at any size."
    return Table("Miss ratio of LRU by slots", head, rows, note)


def laws_table(facts: TraceFacts, of: str | None = None) -> Table | None:
    """Return the popularity laws, the likeliest first.

    :param of: ``requests`` or ``sessions``; None: both.
    """
    laws = [law for law in facts.laws if of in (None, law.of)]
    if not laws:
        return None
    several = len({law.of for law in laws}) > 1
    rows = [
        [
            law.law,
            *([law.of] if several else []),
            parameters(law),
            f"{law.aic:,.1f}",
            percent(law.distance),
            "–" if law.p_value is None else f"{law.p_value:.2g}",
            _verdict(law),
        ]
        for law in laws
    ]
    head = ["law", *(["of"] if several else []), "parameters", "AIC", "distance", "p", "verdict"]
    caption = "Popularity laws, the likeliest first" if several else f"Popularity by {laws[0].of}, likeliest law first"
    return Table(caption, head, rows, words=(1, 2, 6) if several else (1, 5))


def _verdict(law: LawRow) -> str:
    """Return what p says of a law."""
    if law.p_value is None:
        return "not judged"
    return "possible" if law.p_value >= LEAST_P else "ruled out"


def lengths_table(facts: TraceFacts) -> Table | None:
    """Return quantiles of prompt and output tokens."""
    both = (("prompt tokens", facts.prompt), ("output tokens", facts.output))
    rows = [
        [words, *(number(values[key]) for key in ("mean", "p50", "p90", "p99", "max"))]
        for words, values in both
        if values is not None
    ]
    return Table("Tokens per request", ["", "mean", "p50", "p90", "p99", "max"], rows) if rows else None


def check_table(facts: TraceFacts) -> Table | None:
    """Compare the part that was not fitted with the fitted traffic; None where there is nothing to compare."""
    fit = facts.fit
    if fit is None or not (fit.slots or fit.values):
        return None
    rows = _ratio_rows(fit)
    for value in fit.values:
        change = relative_change(value)
        rows.append(
            [
                value.name,
                shown(value.trace, value.unit),
                shown(value.synthetic, value.unit),
                *(["–"] if fit.slots else []),
                "–" if change is None else with_sign(f"{change * 100:+.0f}", " %"),
            ]
        )
    head = ["", "trace", "fitted traffic", *(["independent draws"] if fit.slots else []), "fitted − trace"]
    note = f"Trace: the {plural(fit.requests_checked, 'request')} that the fit did not use."
    if any(value.unit == "tokens" for value in fit.values):
        note += " Tokens: fitted traffic draws those of the first part again."
    return Table("Fitted traffic and the rest of the trace", head, rows, note)


def _ratio_rows(fit: FitCheck) -> list[list[str]]:
    at = {slots: index for index, slots in enumerate(fit.slots)}
    return [
        [
            f"miss ratio, {plural(slots, 'slot')}",
            percent(fit.real[at[slots]]),
            percent(fit.synthetic[at[slots]]),
            percent(fit.independent[at[slots]]),
            points(fit.synthetic[at[slots]] - fit.real[at[slots]]),
        ]
        for slots in ([s for s in _CHECKED_SLOTS if s in at] or fit.slots[:1])
    ]


def candidates_table(facts: TraceFacts) -> Table | None:
    """Return the models that were tried, the closest first."""
    fit = facts.fit
    if fit is None or not fit.candidates:
        return None
    order = sorted(fit.candidates, key=lambda c: float("inf") if c.error is None else c.error)
    rows = [
        [
            f"{c.name} (chosen)" if c.name == fit.chosen else c.name,
            c.words,
            "–" if c.error is None else f"{c.error * 100:.1f} points",
        ]
        for c in order
    ]
    note = (
        "Difference: of miss ratios between a model's traffic and the part it was fitted to, mean over the slots of "
        "the curve, of LRU and of a cache that always holds the hottest adapters. Choosing used that part alone."
    )
    return Table("Models of traffic that were tried", ["model", "in words", "difference"], rows, note, words=(1,))
