"""What agents may ask over MCP: commands as tools, within the limits that the page sets for strangers.

Tools run in a worker process like the page's, and see the chosen folder, which is the working folder here, and nothing
outside it. All imports of tools stand at the top: a tool that is stopped must leave no module half imported.
"""

from __future__ import annotations

import base64
import inspect
import io
import json
import os
import select
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, cast

from pydantic import Field, ValidationError

import sim.studies.plan.what_if  # noqa: F401 — a plan imports it when it needs it
from reports.document import Report
from reports.formatting import plural
from reports.render.html import PAGE, current_page, write
from reports.render.picture import pictures
from sim.api import compare as compare_runs
from sim.api import plan_question
from sim.cells import one_line
from sim.errors import InputError, LoraplanError
from sim.reading import Bounded, inside
from sim.results.run_directory.result_files import json_ready
from sim.results.run_directory.store import blamed_on, read_run
from sim.spec.files.problems import value_problem
from sim.spec.files.tree import Origin
from sim.spec.scenario_file import bundled_scenarios
from sim.spec.sections.trace_source import Trace
from sim.studies.design import checked
from sim.studies.plan.checks import check_plan
from sim.studies.profile_listing import list_profiles
from sim.studies.reports import report_of
from sim.studies.study_identity import finished_study, free_folder
from sim.studies.trace.report import study_report
from sim.studies.trace.scenario import SCENARIO
from sim.studies.trace.study import study_trace
from sim.traffic.traces.read import read_trace
from sim.ui.following import PageRequest
from sim.ui.library import SAVED, ChosenDesign, Library
from sim.ui.simulating import tasks
from sim.ui.simulating.broker import ANSWER_S, PLAN_S
from sim.ui.simulating.workers import FIRST, TooSlow, Worker
from sim.version import __version__

MOST_LETTERS, MOST_WHOLE = 12_000, 400_000
"""Letters of a result's JSON, and with ``full``."""
_MOST_ITEMS, _MOST_PICTURES = 20, 2

Answer = tuple[list[str], dict[str, Any], list[tuple[str, bytes]]]
"""Sentences, what ``--json`` prints, and captions of charts with these as PNG."""

_ABOUT = """Capacity planning for multi-LoRA LLM serving, by simulation. Start from a bundled scenario and change its \
values with `set` (dotted keys, such as {"cache.gpu.slots": 64, "workload.arrivals.rate": "12/s"}), or write one that \
begins with `extends: quickstart`. `check` with full=true shows every key. Verdicts hold with their intervals: \
"unclear" means that a longer run is needed (workload.requests). Bundled scenarios: """

Scenario = Annotated[str, Field(description="YAML text of a scenario, or the name of a bundled one or of a file here.")]
Values = Annotated[dict[str, Any] | None, Field(description='By dotted key, such as {"cache.gpu.slots": 64}.')]
Ranges = Annotated[
    dict[str, list[Any]] | None, Field(description='First, last and perhaps step: {"cache.gpu.slots": [8, 64, 8]}.')
]
Full = Annotated[bool, Field(description="Return all of the JSON, unrounded. Default: what fits a context.")]
Run = Annotated[str, Field(description='A run in the folder, as run and plan return it, such as "runs/quickstart".')]


def check(memory: Any, scenario: Scenario, set: Values = None, full: Full = False) -> Answer:  # noqa: A002
    """Check a scenario without simulating it: what is wrong, on what it would run, what is assumed. Seconds."""
    design = _design(scenario, set)
    notes, lines = checked(design.loaded)
    if design.loaded.scenario.plan is not None:
        check_plan(design.loaded)
    found: dict[str, Any] = {"valid": True}
    if full:
        found["values"] = {key: {"value": value, "from": origin} for key, value, origin in design.loaded.rows()}
    return [f"{design.opened.name}: ok", *lines, *(f"note: {note}" for note in notes)], _trimmed(found, full), []


def run(memory: Any, scenario: Scenario, set: Values = None, full: Full = False) -> Answer:  # noqa: A002
    """Simulate a scenario and judge its SLO: verdict, what to set, first limit, headroom, bill. Up to 10 minutes."""
    design = _design(scenario, set)
    folder = free_folder(design.loaded, [{}])
    if finished_study(design.loaded, [{}], folder, headroom=True) is None:
        folder = tasks.free(folder)
        with tempfile.TemporaryDirectory(prefix="loraplan-mcp-") as scratch:
            task = tasks.Evaluation(design.loaded, design.traffic_key, Path(scratch) / "run", design.command())
            list(tasks.Report(task, folder).run(memory))
    return _of_run(folder, full)


def plan(
    memory: Any,
    scenario: Scenario,
    set: Values = None,  # noqa: A002
    minimize: Ranges = None,
    maximize: Ranges = None,
    full: Full = False,
) -> Answer:
    """Find the smallest fleet or cache, or the largest load, that meets the SLO. Up to 10 minutes.

    The question is `minimize` or `maximize`, or the scenario's own plan block.
    """
    design = _design(scenario, set)
    loaded, command = design.loaded, design.command("plan")
    if minimize is not None or maximize is not None:
        question = plan_question(minimize, maximize)
        loaded = loaded.with_values(question, Origin("maximize" if maximize else "minimize"))
        command += " --set " + shlex.quote(f"plan={json.dumps(question['plan'])}")
    _, page = list(tasks.PlanFromHere(loaded, None, command).run(memory))[-1]
    return _of_run(page.parent, full)


def compare(memory: Any, one: Run, other: Run, full: Full = False) -> Answer:
    """Compare two runs, or two plans: what differs, what changes with it, and whether that is more than chance."""
    folders = [_inside("one", one), _inside("other", other)]
    with blamed_on(*folders):
        report = compare_runs(*folders).document()
        return _sentences(report), _trimmed(report.data, full), pictures(report, _MOST_PICTURES)


def trace(
    memory: Any,
    file: Annotated[str, Field(description="A trace or a log of requests in the folder: CSV, JSON lines, Parquet.")],
    columns: Annotated[dict[str, str] | None, Field(description='Of a log, by role: {"time": "ts"}.')] = None,
    full: Full = False,
) -> Answer:
    """Describe recorded traffic: rate, bursts, popularity of adapters, locality; with a scenario of similar traffic."""
    path = _inside("file", file)
    try:
        source = Trace.model_validate({"file": str(path), "columns": columns or None})
    except ValidationError as error:
        raise InputError(value_problem(error), key="columns") from None
    data = read_trace(source, None)
    study, command = study_trace(data, str(path), fit_share=0.5), f"loraplan trace {shlex.quote(file)}"
    report = study_report(study, source, data, stem=path.stem, requests=None, command=command)
    folder = tasks.free(Path("runs") / f"trace-{path.stem}")
    folder.mkdir(parents=True)
    files = {"report": str(write(report, folder)), "scenario": str(folder / SCENARIO)}
    return _sentences(report), {**files, **_trimmed(report.data, full)}, pictures(report, _MOST_PICTURES)


def profiles(
    memory: Any,
    words: Annotated[list[str] | None, Field(description='Only those with all of these: ["h100", "qwen"].')] = None,
    full: Full = False,
) -> Answer:
    """List for which GPUs, base models and engines there are costs, and whether these are measured or derived."""
    rows = list_profiles(words=words or ())
    return [plural(len(rows), "profile")], _trimmed({"profiles": [asdict(row) for row in rows]}, full), []


_TOOLS: dict[Callable[..., Answer], float] = {
    check: ANSWER_S, run: PLAN_S, plan: PLAN_S, compare: ANSWER_S, trace: ANSWER_S, profiles: ANSWER_S
}  # fmt: skip
"""Each tool, and how long it may compute: as answers, reports and plans of the page."""


def _design(scenario: str, values: dict[str, Any] | None) -> ChosenDesign:
    """Return the scenario of a call; neither it nor the values may name a file outside the folder."""
    text = scenario if "\n" in scenario or ": " in scenario else None
    given = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (values or {}).items()}
    try:
        asked = PageRequest(name=SAVED if text else scenario, text=text, values=given)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(first["msg"], key="set" if first["loc"][0] == "values" else "scenario") from None
    library = Library(Path())
    known = [*bundled_scenarios(), *library.files()]
    if text is None and asked.name not in known:
        raise InputError("no such scenario", key="scenario", got=asked.name, allowed=", ".join(known))
    opened = library.open(asked.name, asked.text)
    settings = tuple(f"{key}={value}" for key, value in asked.values.items())
    confined = replace(opened.loaded, confines=library.folder)  # else values of a bundled one could name any file
    return ChosenDesign(opened, settings, confined.with_settings(settings) if settings else confined)


def _inside(key: str, name: str) -> Path:
    if not inside(Path(name), Path()):
        here = f"what is below {Path.cwd()}"
        raise InputError("lies outside the folder of this server", key=key, got=name, allowed=here)
    return Path(name)


def _of_run(folder: Path, full: bool) -> Answer:
    report = report_of(data := read_run(folder))
    if not current_page(folder):
        write(report, folder)
    notes = dict.fromkeys(warning for point in data.points for warning in point.warnings)
    lines = [*_sentences(report), *(f"note: {note}" for note in notes)]
    found = {"run": str(folder), "report": str(folder / PAGE), **_trimmed(report.data, full)}
    return lines, found, pictures(report, _MOST_PICTURES)


def _sentences(report: Report) -> list[str]:
    short = [f"{label}: {text}" for label, text in report.short] or report.statements
    return [f"{report.name}: {report.headline}", *short, *(f"note: {note}" for note in report.notes)]


def _trimmed(data: Any, full: bool) -> dict[str, Any]:
    """Return data that fit a context: rounded, without what does not apply, the largest cut or left out if need be."""
    whole = json_ready(data)
    found: dict[str, Any] = whole if full else _short(whole)
    most, hint = (MOST_WHOLE, "") if full else (MOST_LETTERS, "; full=true returns them")
    sizes = {key: len(json.dumps(value)) for key, value in found.items()}
    while sum(sizes.values()) > most:
        key = max(sizes, key=lambda name: sizes[name])
        size, value = sizes.pop(key), found[key]
        fit = len(value) * (most - sum(sizes.values())) // size if isinstance(value, list) else 0
        some = [*value[:fit], f"and {len(whole[key]) - fit} more{hint}"] if fit > 0 else None
        found[key] = some or f"left out: {size:,} letters{hint}"
    return found


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list):
        kept = [_short(each) for each in value[:_MOST_ITEMS]]
        return kept if len(value) <= _MOST_ITEMS else [*kept, f"and {len(value) - _MOST_ITEMS} more"]
    if not isinstance(value, dict):
        return value
    if "settled" in value:  # a metric
        value = {key: value[key] for key in ("value", "lo", "hi", "unit", "note")} if value["value"] is not None else {}
    shortened = {key: _short(each) for key, each in value.items()}
    return {key: each for key, each in shortened.items() if each not in (None, "", [], {})}


@dataclass(frozen=True)
class _Call:
    """A call of a tool, as a worker computes it."""

    draws: ClassVar[bool] = True
    tool: Callable[..., Answer]
    given: dict[str, Any]

    def run(self, memory: Any) -> Iterator[Answer]:
        _inside("folder", "runs")
        yield self.tool(memory, **self.given)


def serve() -> None:
    """Serve the working folder over stdin and stdout until the client leaves.

    :raises InputError: if the client sends a message that is too long.
    """
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase
    from mcp_types import CallToolResult, ImageContent, TextContent

    from sim.ui.site import MOST_AT_A_TIME

    about = _ABOUT + ", ".join(bundled_scenarios())
    server: MCPServer[Any] = MCPServer("loraplan", version=__version__, instructions=about, log_level="CRITICAL")
    ArgModelBase.model_config["extra"] = "forbid"  # by itself the SDK ignores an argument that is misspelt
    # Started by the first call: only then is stdout what the protocol leaves to others.
    worker = cache(Worker)
    under_way = 0

    async def answer(tool: Callable[..., Answer], **given: Any) -> CallToolResult:
        nonlocal under_way
        if under_way >= MOST_AT_A_TIME:
            raise ToolError(f"{MOST_AT_A_TIME} calls are under way; wait for one of them")
        under_way += 1
        try:
            *_, (lines, found, drawn) = [
                each async for each in worker().messages(_Call(tool, given), FIRST, _TOOLS[tool])
            ]
        except TooSlow:
            limit = f"{_TOOLS[tool] / 60:.0f} minutes, the most that this server computes for a call"
            raise ToolError(f"stopped after {limit}; the command line has no such limit") from None
        except LoraplanError as error:
            raise ToolError(str(error)) from None
        finally:
            under_way -= 1
        lines = [one_line(line) for line in lines]
        texts = ("\n".join(lines), json.dumps(found, ensure_ascii=False))
        content: list[Any] = [TextContent(type="text", text=text) for text in texts]
        for caption, png in drawn:
            data = base64.b64encode(png).decode()
            content.append(TextContent(type="text", text=caption))
            content.append(ImageContent(type="image", data=data, mime_type="image/png"))
        return CallToolResult(content=content, structured_content={"sentences": lines, **found})

    for tool in _TOOLS:
        called: Any = partial(answer, tool)
        _, *own = inspect.signature(tool, eval_str=True).parameters.values()
        called.__signature__ = inspect.Signature(own, return_annotation=CallToolResult)
        called.__name__ = tool.__name__
        server.add_tool(called, tool.__name__, description=inspect.getdoc(tool), structured_output=False)
    too_long = InputError("a message of the client is too long", allowed="up to 4 MiB")
    given = _Stdin()
    sys.stdin = io.TextIOWrapper(Bounded(cast(IO[bytes], given), lambda: too_long), encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="loraplan-mcp-") as scratch:
        os.environ["TMPDIR"] = scratch  # of the worker, which may be killed
        try:
            server.run("stdio")
        except BaseExceptionGroup as errors:  # of the SDK's tasks
            raise too_long if errors.subgroup(InputError) else errors from None
        finally:
            if worker.cache_info().currsize:
                worker().close()
    if given.stopped:
        raise KeyboardInterrupt


class _Stdin:
    """Standard input that ends when the process is told to: the SDK's thread would wait for the client forever."""

    def __init__(self) -> None:
        self.stopped = False
        self._ends, self._wake = os.pipe()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        self.stopped = True
        os.write(self._wake, b".")

    def read(self, size: int) -> bytes:
        ready, _, _ = select.select([0, self._ends], [], [])
        return b"" if self._ends in ready else os.read(0, size)
