"""``loraplan observe``: traffic from an engine's metrics, and the metrics beside its simulation."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reports.formatting import measured_value, measured_words
from sim.cli.bench_results import say_correction
from sim.cli.options import JsonOption, QuietOption, takes
from sim.cli.output import message, print_rich, rich_rows, say, say_json
from sim.errors import InputError, ScenarioError
from sim.studies.init.command import gpu_setting, one_command

if TYPE_CHECKING:
    from calibrate.fit.load_correction import LoadCorrection
    from sim.spec.scenario import Scenario
    from sim.spec.scenario_file import LoadedScenario
    from sim.studies.dashboards.engine_metrics import Role
    from sim.studies.dashboards.metric_files import MetricPage
    from sim.studies.dashboards.observed_comparison import ComparedMetric, ObservedComparison
    from sim.studies.dashboards.observed_draft import ObservedScenario
    from sim.studies.dashboards.observed_service import ObservedService
    from sim.studies.init.draft import Draft

_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_LIMIT_S = 30.0
_SHORTEST_S = 1.0
_FITTED: tuple[Role, ...] = ("itl", "ttft")
_FIT_REQUESTS = 2_000
_MOST_SLOTS = 16
"""GPU slots that the next command plans with, at most."""
_WINDOW = "metrics"
"""What the load is called that was read."""


@dataclass(frozen=True)
class ObserveOptions:
    """The options of ``loraplan observe``."""

    prometheus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHERE",
            help="A file with the text of /metrics, or the JSON of Prometheus' query_range, or a server's address. "
            "Repeatable: two texts give what happened in between.",
        ),
    ] = None
    window: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="The time that the counts cover, such as 10min, if the files don't say. With two files, give the "
            "earlier one first. With an address: read it, wait this long, and read it again.",
        ),
    ] = None
    base: Annotated[
        str | None,
        typer.Option(metavar="SCENARIO", help="A scenario of these servers; only its traffic is replaced."),
    ] = None
    from_vllm: Annotated[
        list[str] | None,
        typer.Option(
            "--from-vllm", "--from-sglang", metavar="TEXT", help='Their command line: "vllm serve MODEL --enable-lora".'
        ),
    ] = None
    gpu: Annotated[str | None, typer.Option(help="Their GPU, such as h100-80gb.")] = None
    fit_profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Correct the profile's step costs by the measured latencies, write it, and use it.",
        ),
    ] = None
    out: Annotated[Path, typer.Option(metavar="FILE", help="The scenario to write; it must not exist.")] = Path(
        "observed.yaml"
    )
    json: JsonOption = False
    quiet: QuietOption = False

    @property
    def engine_command(self) -> str | None:
        """The command line of the engine; None: not given."""
        return one_command(self.from_vllm)


@takes(ObserveOptions)
def observe(options: ObserveOptions) -> None:
    """Write a scenario with the traffic that an engine's metrics show, and compare them with its simulation.

    Example: loraplan observe --prometheus metrics.txt --base my-scenario.yaml
    """
    from sim.spec.scenario_file import load_scenario
    from sim.studies.dashboards.metric_files import readings_of
    from sim.studies.dashboards.observed_comparison import compare_observed
    from sim.studies.dashboards.observed_draft import ObservedScenario, lengths_file, source_of, write_observed
    from sim.studies.dashboards.observed_service import observed_service
    from sim.studies.training.adapter_scenario import check_target

    _check(options)
    check_target(options.out)
    check_target(lengths_file(options.out))
    base = None if options.base is None else load_scenario(options.base)
    window_s = None if options.window is None else _window(options.window)
    readings = readings_of(_pages(options.prometheus or [], window_s, options.quiet), window_s)
    service = observed_service(readings)
    observed = ObservedScenario(options.out, service, readings, base)
    if options.fit_profile is not None:
        _check_fit(service, base, options.fit_profile)
    for note in write_observed(observed, _draft(options)):
        message(f"note: {note}", options.quiet)
    correction = None
    try:
        scenario = load_scenario(str(options.out)).scenario
        if options.fit_profile is not None:
            try:
                correction = _correct(options, observed, scenario, options.fit_profile)
            except Exception:
                for written in (observed.path, observed.lengths):  # so that the corrected command can write them
                    written.unlink(missing_ok=True)
                raise
            write_observed(observed, _draft(options, options.fit_profile))
            scenario = load_scenario(str(options.out)).scenario
        comparison = compare_observed(service, scenario)
    except InputError as error:
        if not isinstance(error, ScenarioError):
            raise
        message(f"note: not simulated: {error}", options.quiet)  # the user has to complete the draft
        if options.json:
            say_json(_as_json(options.out, service, None, [f"not simulated: {error}"]))
        else:
            say(f"scenario {options.out}")
        return
    if options.json:
        say_json(_as_json(options.out, service, comparison, comparison.notes))
        return
    _print(service, source_of(readings), comparison, options)
    if correction is not None:
        say("")
        say_correction(correction, options.quiet)
    _say_next(options, scenario)


def _check(options: ObserveOptions) -> None:
    if not options.prometheus:
        raise InputError(
            "nothing to read",
            key="--prometheus",
            allowed="a file with the text of /metrics, JSON of /api/v1/query_range, or an address such as "
            "http://host:8000",
        )
    command = options.engine_command
    if options.base is not None and (command is not None or options.gpu is not None):
        given = "--from-vllm" if command is not None else "--gpu"
        raise InputError("the base scenario says what the servers are", key=given, hint="leave out --base, or this")
    addresses = [where for where in options.prometheus if _ADDRESS.match(where)]
    if addresses and len(options.prometheus) > 1:
        raise InputError("give one address, or files", key="--prometheus", got=", ".join(options.prometheus))
    for address in addresses:
        _check_address(address)


def _check_address(url: str) -> None:
    from calibrate.serve.connection import Host, without_credentials

    try:
        Host(url)
    except (InputError, ValueError):
        raise InputError(
            "this is not the URL of a server",
            key="--prometheus",
            got=without_credentials(url),
            allowed="such as http://host:8000",
        ) from None


def _window(text: str) -> float:
    from sim.spec.units import parse_seconds

    try:
        seconds = parse_seconds(text)
    except ValueError as error:
        raise InputError(str(error), key="--window", got=text, allowed="a time such as 10min") from None
    if seconds <= 0:
        raise InputError("must be more than 0", key="--window", got=text, allowed="a time such as 10min")
    return seconds


def _pages(where: list[str], window_s: float | None, quiet: bool) -> list[MetricPage]:
    from sim.studies.dashboards.metric_files import page_of_file

    if not _ADDRESS.match(where[0]):
        return [page_of_file(Path(file)) for file in where]
    first = _fetched(where[0])
    if window_s is None or first.content.lstrip()[:1] == b"{":
        return [first]
    message(f"reading {first.name} again in {window_s:g} s", quiet)
    time.sleep(max(window_s - (time.time() - first.at_s), _SHORTEST_S))
    return [first, _fetched(where[0])]


def _fetched(url: str) -> MetricPage:
    """Read an address once; without a path, that of ``/metrics``."""
    from calibrate.serve.connection import run_or_stop, without_credentials
    from calibrate.serve.http_answer import Broken
    from calibrate.serve.server_metrics import fetch_page
    from sim.studies.dashboards.metric_files import PAGE_BYTES, MetricPage

    try:
        name, status, content = run_or_stop(fetch_page(url, _LIMIT_S, PAGE_BYTES))
    except (Broken, OSError) as error:
        raise InputError("can't be read", key="--prometheus", got=without_credentials(url), hint=str(error)) from None
    if status != 200:
        got = f"{name}: status {status}"
        raise InputError("no metrics at this address", key="--prometheus", got=got, allowed="200")
    return MetricPage(name, content, time.time(), is_file=False)


def _draft(options: ObserveOptions, fitted: Path | None = None) -> Draft:
    """Return a draft with what the user says of the servers.

    :param fitted: the corrected profile, once it is there.
    """
    from sim.spec.engine_flags.command_reading import Setting, read_command
    from sim.studies.init.draft import Draft

    draft = Draft(re.sub(r"[^A-Za-z0-9._-]+", "-", options.out.stem).strip("-._")[:64] or "observed")
    if fitted is not None:
        path = os.path.relpath(fitted.resolve(), options.out.parent.resolve())
        path = path if os.sep in path else f".{os.sep}{path}"
        draft.add([Setting("fleet.profile", path, "corrected by these metrics")])
    if options.gpu is not None:
        draft.add([gpu_setting(options.gpu)])
    if options.engine_command is not None:
        draft.add_command(read_command(options.engine_command))
    return draft


def _check_fit(service: ObservedService, base: LoadedScenario | None, profile: Path) -> None:
    """Refuse before anything is written.

    :raises InputError: where the metrics lack latencies, the base has no profile, or the profile can't be written.
    """
    from sim.cli.bench_results import check_one_kind
    from sim.cli.commands.fit_command import check_profile_target

    check_profile_target(profile, "--fit-profile")
    if base is not None:
        check_one_kind(base)
    if base is not None and base.scenario.fleet.engine == "fixed":
        raise InputError(
            "this engine has no profile to correct",
            file=base.source,
            key="fleet.engine",
            got="fixed",
            allowed="vllm or sglang",
        )
    found = {role: service.histograms.get(role) for role in _FITTED}
    missing = [role for role, histogram in found.items() if histogram is None or histogram.mean is None]
    if missing:
        raise InputError("these metrics lack latencies to correct by", key="--fit-profile", got=", ".join(missing))


def _correct(options: ObserveOptions, observed: ObservedScenario, scenario: Scenario, profile: Path) -> LoadCorrection:
    """Correct the scenario's profile by the measured latencies, and write it."""
    from calibrate.fit.load_correction import MeasuredLoad
    from sim.cli.bench_results import write_correction
    from sim.studies.dashboards.observed_comparison import observed_world

    found = {f"{role}_mean_s": observed.service.histograms[role] for role in _FITTED}
    load = MeasuredLoad(
        _WINDOW,
        observed_world(scenario, _FIT_REQUESTS),
        {name: histogram.mean for name, histogram in found.items() if histogram.mean is not None},
        {name: histogram.half_width() for name, histogram in found.items()},
    )
    files = [Path(where) for where in options.prometheus or [] if not _ADDRESS.match(where)]
    return write_correction([load], files, profile)[1]


def _as_json(
    path: Path, service: ObservedService, comparison: ObservedComparison | None, notes: Sequence[str]
) -> dict[str, Any]:
    """Return what ``--json`` prints; ``metrics`` is null without a simulation."""
    return {
        "schema_version": 1,
        "scenario": str(path),
        "engine": service.engine,
        "servers": service.servers,
        "seconds": service.seconds,
        "requests": service.finished,
        "aborted": service.aborted,
        "offered_rps": service.offered_rps,
        "adapters": len(service.adapters.names),
        "metrics": None
        if comparison is None
        else {
            row.name: {
                "measured": row.measured,
                "simulated": row.simulated,
                "error": row.error,
                **({} if row.bucket is None else {"bucket": [row.bucket.low, row.bucket.high], "within": row.within}),
            }
            for row in comparison.rows
        },
        "notes": list(notes),
    }


def _print(service: ObservedService, source: str, comparison: ObservedComparison, options: ObserveOptions) -> None:
    from sim.spec.units import human_seconds

    aborted = f" ({service.aborted:,.0f} of them aborted)" if service.aborted >= 1 else ""
    say(
        f"{service.ended:,.0f} requests{aborted} in {human_seconds(service.seconds)}, {service.offered_rps:.3g}/s, "
        f"from {service.servers} {'server' if service.servers == 1 else 'servers'} of {service.engine}",
        f"  {source}",
        "",
    )
    rows = [(measured_words(row.name), *_cells(row)) for row in comparison.rows]
    print_rich(rich_rows(("", "measured", "between", "simulated", "difference"), rows))
    say("")
    for note in comparison.notes:
        message(f"note: {note}", options.quiet)


def _say_next(options: ObserveOptions, scenario: Scenario) -> None:
    """Print what was written, and the plan that comes next: first host memory for all adapters, then GPU slots."""
    if options.fit_profile is not None:
        say("", f"profile  {options.fit_profile}")
    count = scenario.adapters.count or _MOST_SLOTS
    short_of_copies = scenario.cache.eviction == "vllm-lru" and scenario.cache.host is None
    host = f" --set cache.host.slots={count}" if short_of_copies and scenario.adapters.count else ""
    slots = f"cache.gpu.slots=1..{min(_MOST_SLOTS, count)}"
    say(f"scenario {options.out}", f"next     loraplan plan {options.out} --minimize {slots}{host}")


def _cells(row: ComparedMetric) -> tuple[str, str, str, str]:
    between = "" if row.bucket is None else f"{_edge(row.bucket.low)} … {_edge(row.bucket.high)}"
    difference = "within" if row.within else "" if row.error is None else f"{row.error:+.1%}"
    about = "≈ " if row.bucket is not None else ""
    return (
        f"{about}{measured_value(row.name, row.measured)}",
        between,
        measured_value(row.name, row.simulated),
        difference,
    )


def _edge(seconds: float) -> str:
    from sim.spec.units import human_seconds

    return "∞" if seconds == float("inf") else human_seconds(seconds)
