"""The scenarios of a trace, as text: fitted traffic, with the files that it names, and the recorded requests."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from sim.cells import csv_text
from sim.rng import stream
from sim.spec.files.yaml_tree import flow_text
from sim.spec.sections.trace_source import LogColumns, Trace
from sim.studies.trace.findings import burst_fit_words, hole_words
from sim.studies.trace.fits import weights_text, workload_of
from sim.studies.trace.study import TraceStudy
from sim.traffic.fits.describe import by_adapter, correlation
from sim.traffic.traces.data import TraceData

SCENARIO, REPLAY, ADAPTERS, LENGTHS = "traffic.yaml", "replay.yaml", "adapters.csv", "lengths.csv"
_MOST_LENGTHS = 20_000
_UNNAMED = "count: 100"
_RANK = "  rank: 16   # the trace has no ranks: choose one"
_BASE_ALONE = "  mix: [{share: 100%, kind: base}]   # no request names an adapter"
_POPULARITY = "  popularity: {law: zipf, exponent: 0.9}   # the trace names no adapters: choose a law"
_TOKENS = (
    "  tokens:   # the trace has no lengths: choose laws",
    "    prompt: {law: lognormal, mean: 600, p99: 5400, max: 8192}",
    "    output: {law: lognormal, mean: 155, p99: 870, max: 4096}",
)
_NO_TEXT = (
    "# The trace's requests share text, and these share none, so a prefix cache finds nothing. To keep that text,",
    "# replay the trace (workload.trace: {file: ...}) or describe it (workload.prefix, workload.sessions.history).",
)


def scenario_files(study: TraceStudy, trace: TraceData, name: str, *, seed: int) -> dict[str, str]:
    """Return the fitted traffic as a scenario, its weights and its lengths, by file name; nothing if none was fitted.

    Everything is taken from the fitted part of the trace.
    """
    model, part = study.model, study.part
    if model is None or part is None:
        return {}
    trace = trace.for_adapters()
    files = {SCENARIO: scenario_text(study, trace, name)}
    if trace.adapter is not None and model.weights is not None:
        files[ADAPTERS] = weights_text(model, trace.names)
    if trace.prompt_tokens is not None:
        files[LENGTHS] = _lengths(trace, part.rows, seed)
    return files


def replay_text(source: Trace, trace: TraceData, folder: Path, requests: int | None) -> str:
    """Return the scenario that replays the recorded requests, with the columns of a log as they were read.

    :param folder: where the scenario will be.
    """
    name = Path(source.files[0]).name
    lines = [
        f"# The requests of {_one_line(name)} as they were recorded, written by loraplan trace.",
        "schema_version: 1",
        f"name: {_scenario_name(name, 'replay')}",
        "workload:",
        *([f"  requests: {requests}"] if requests is not None else ()),
        *replay_lines(source, trace, folder),
        "adapters:",
        *([f"  {_UNNAMED}"] if trace.adapter is None else ()),
        _BASE_ALONE if trace.base_alone else _RANK,
    ]
    return "\n".join(lines) + "\n"


def replay_lines(source: Trace, trace: TraceData, folder: Path) -> list[str]:
    """Return the lines below ``workload`` that replay a trace, for a scenario in a folder."""
    known = source.model_copy(update={"columns": LogColumns(**trace.columns), "format": "log"} if trace.columns else {})
    given = known.model_dump(exclude_none=True, exclude_defaults=True, exclude={"file"})
    files = [os.path.relpath(Path(file).resolve(), folder.resolve()) for file in source.files]
    return [
        "  trace:",
        f"    file: {json.dumps(files if len(files) > 1 else files[0], ensure_ascii=False)}",
        *(f"    {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in given.items()),
        *(_TOKENS if trace.prompt_tokens is None else ()),
        *([_POPULARITY] if trace.adapter is None else ()),
    ]


def scenario_text(study: TraceStudy, trace: TraceData, name: str) -> str:
    """Return the text of the scenario file.

    :param trace: without requests to the base model, to which nothing was fitted.
    """
    facts, model, part = study.facts, study.model, study.part
    assert model is not None, "there is traffic to write"
    assert part is not None, "fitted to a part"
    model = model.with_bursts(study.bursts, facts.span_s)
    named = trace.adapter is not None
    workload = workload_of(model, ADAPTERS) if named else dict(model.workload)
    if (
        0 < facts.base_share < 1
    ):  # fitted to the requests for adapters; a share of all requests will be for the base model
        rate = float(workload["arrivals"]["rate"].removesuffix("/s")) / (1 - facts.base_share)
        workload["arrivals"] = {**workload["arrivals"], "rate": f"{rate:.6g}/s"}
    lines = [
        f"# Synthetic traffic fitted to {_one_line(name)} by loraplan trace.",
        *[f"# {line}" for line in _said(study)],
        *(_NO_TEXT if trace.text is not None else ()),
        "schema_version: 1",
        f"name: {_scenario_name(name)}",
        f"description: {_quoted(f'Synthetic traffic like that of {_one_line(name)}: {model.words}')}",
        "workload:",
        f"  duration: {facts.span_s:.6g} s",
    ]
    for key, value in workload.items():
        lines.append(f"  {key}: {flow_text(value)}")
    if not named and facts.base_share < 1:
        lines.append(_POPULARITY)
    if trace.prompt_tokens is not None and trace.output_tokens is not None:
        prompt, output = trace.prompt_tokens[part.rows], trace.output_tokens[part.rows]
        between = by_adapter(prompt, output, part.adapter) if named else 0.0
        lines += [
            "  tokens:",
            f"    prompt: {{law: empirical, file: {LENGTHS}, column: input_tokens}}",
            f"    output: {{law: empirical, file: {LENGTHS}, column: output_tokens}}",
            f"    correlation: {correlation(prompt, output):.3g}",
            f"    by_adapter: {between:.3g}",
        ]
    lines.append("adapters:")
    if facts.base_share == 1:
        return "\n".join([*lines, _BASE_ALONE]) + "\n"
    if not named:
        lines.append(f"  {_UNNAMED}")
    elif model.weights is None:
        lines.append(f"  count: {model.adapters}")
    if facts.base_share > 0:
        base = f"{facts.base_share:.6f}"
        lines += [
            "  mix:",
            f"    - {{share: {base}, kind: base}}   # requests that name no adapter",
            f"    - {{share: {1 - float(base):.6f}, rank: 16}}   # the trace has no ranks: choose one",
        ]
    else:
        lines.append(_RANK)
    return "\n".join(lines) + "\n"


def _said(study: TraceStudy) -> list[str]:
    check, part = study.facts.fit, study.part
    assert part is not None, "fitted to a part"
    share = part.span_s / study.facts.span_s
    fitted = "Fitted to all of it" if share >= 1 else f"Fitted to the first {share:.3g} of its time"
    lines = [f"{fitted}, {len(part):,} requests{' for adapters' if 0 < study.facts.base_share < 1 else ''}."]
    lines += filter(None, [hole_words(study.facts), burst_fit_words(study.facts)])
    worst = None if check is None else check.worst()
    if check is None or worst is None:
        return [*lines, "Its miss ratios were checked on nothing."]
    return [
        *lines,
        f"On the next {check.requests_checked:,} requests its LRU miss ratio is off by at most {worst[1]:.3f} "
        f"(at {worst[0]} slots).",
    ]


def _lengths(trace: TraceData, rows: slice, seed: int) -> str:
    """Return pairs of lengths of the fitted part, all or a sample, in random order."""
    assert trace.prompt_tokens is not None, "asked for lengths that are there"
    assert trace.output_tokens is not None, "both or none"
    chosen = rows.start + stream(seed, 0, "lengths-sample").permutation(rows.stop - rows.start)[:_MOST_LENGTHS]
    pairs = zip(trace.prompt_tokens[chosen].tolist(), trace.output_tokens[chosen].tolist(), strict=True)
    return csv_text(["input_tokens", "output_tokens"], pairs)


def _scenario_name(name: str, what: str = "like") -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")
    return f"{what}-{stem or 'trace'}"[:64].rstrip("-._")


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
