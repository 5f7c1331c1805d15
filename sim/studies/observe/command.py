"""``loraplan observe``: traffic from an engine's metrics, and the metrics beside its simulation."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.options import JsonOption, QuietOption
from sim.cli.output import command_line, finish, message, say
from sim.errors import InputError, ScenarioError
from sim.spec.units import human_seconds
from sim.studies.init.command import gpu_setting, one_command

if TYPE_CHECKING:
    from reports.document import Report
    from sim.spec.scenario import Scenario
    from sim.spec.scenario_file import LoadedScenario
    from sim.studies.init.draft import Draft
    from sim.studies.observe.engine_metrics import Role
    from sim.studies.observe.readings import MetricPage
    from sim.studies.observe.study import ObservedService

_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_LIMIT_S = 30.0
_SHORTEST_S = 1.0
_FITTED: tuple[Role, ...] = ("itl", "ttft")
_MOST_SLOTS = 16
"""GPU slots that the next command plans with, at most."""
_WINDOW = "metrics"
"""What the load is called that was read."""


def observe(
    prometheus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHERE",
            help="A file with the text of /metrics, or the JSON of Prometheus' query_range, or a server's address. "
            "Repeatable: two texts, the earlier one first, give what happened in between.",
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="The time that the counts cover, such as 10min, if the files don't say. With an address: how long to "
            "wait between two reads.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="SCENARIO", help="A scenario of these servers; only its traffic is replaced."),
    ] = None,
    from_vllm: Annotated[
        list[str] | None,
        typer.Option(
            "--from-vllm", "--from-sglang", metavar="TEXT", help='Their command line: "vllm serve MODEL --enable-lora".'
        ),
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="Their GPU, such as h100-80gb.")] = None,
    fit_profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Correct the profile's step costs by the measured latencies, write it, and use it.",
        ),
    ] = None,
    dashboard: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Write Prometheus rules and a Grafana dashboard beside the scenario: servers against this finished "
            "run.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The scenario to write; it must not exist.")] = Path(
        "observed.yaml"
    ),
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a scenario with the traffic that an engine's metrics show, and compare them with its simulation.

    Example: loraplan observe --prometheus metrics.txt --base my-scenario.yaml
    """
    from sim.results.run_directory.result_files import write_text
    from sim.spec.scenario_file import load_scenario
    from sim.studies.observe.dashboard import DASHBOARD, RULES, dashboard_files
    from sim.studies.observe.draft import lengths_file, source_of, write_observed
    from sim.studies.observe.findings import compare_observed
    from sim.studies.observe.readings import readings_of
    from sim.studies.observe.report import observe_report
    from sim.studies.observe.study import observed_service
    from sim.studies.vet.adapter_scenario import check_target

    where, command = prometheus or [], one_command(from_vllm)
    _check(where, base, command, gpu)
    check_target(out)  # before names beside it: a folder may have none
    lengths = lengths_file(out)
    targets = [out, lengths, *(out.with_name(file) for file in (RULES, DASHBOARD) if dashboard is not None)]
    for target in targets[1:]:
        check_target(target)
    loaded = None if base is None else load_scenario(base)
    window_s = None if window is None else _window(window)
    pages = _pages(where, window_s, quiet)
    readings = readings_of(pages, window_s)
    service = observed_service(readings)
    if window_s is None:
        _check_seconds(service, pages)
    if fit_profile is not None:
        _check_fit(service, loaded, fit_profile)
    if loaded is not None:
        _check_model(service, _models_of(loaded), "adapters.base_model", loaded.source)
    watching = {} if dashboard is None else dashboard_files(dashboard, readings, service)
    for note in write_observed(out, service, readings, loaded, _draft(out, service, gpu, command)):
        message(f"note: {note}", quiet)
    for file, text in watching.items():
        write_text(out.with_name(file), text)
    correction = None
    try:
        scenario = load_scenario(str(out)).scenario
        if fit_profile is not None:
            try:
                correction = _correct(service, scenario, where, fit_profile)
            except Exception:
                for written in targets:  # so that the corrected command can write them
                    written.unlink(missing_ok=True)
                raise
            write_observed(out, service, readings, loaded, _draft(out, service, gpu, command, fit_profile))
            scenario = load_scenario(str(out)).scenario
        rows, notes = compare_observed(service, scenario)
    except InputError as error:
        if not isinstance(error, ScenarioError):
            raise
        report = observe_report(out, service, source_of(readings), None, [f"not simulated: {error}"])
        finish(report, None, as_json=json, quiet=quiet)  # the user has to complete the draft
        return
    finish(observe_report(out, service, source_of(readings), rows, notes), None, as_json=json, quiet=quiet)
    if json:
        return
    for note in notes:
        message(f"note: {note}", quiet)
    if correction is not None:
        say("")
        finish(correction, None, as_json=False, quiet=quiet)
    # The plan that comes next: first host memory for all adapters, then GPU slots.
    count = scenario.adapters.count or _MOST_SLOTS
    short_of_copies = scenario.cache.eviction == "vllm-lru" and scenario.cache.host is None
    host = f" --set cache.host.slots={count}" if short_of_copies and scenario.adapters.count else ""
    slots = f"cache.gpu.slots=1..{min(_MOST_SLOTS, count)}"
    watch = [f"watch    {', '.join(str(out.with_name(file)) for file in watching)}"] if watching else []
    say(f"scenario {out}", *watch, f"next     loraplan plan {shlex.quote(str(out))} --minimize {slots}{host}")


def _check(where: list[str], base: str | None, command: str | None, gpu: str | None) -> None:
    if not where:
        raise InputError(
            "nothing to read",
            key="--prometheus",
            allowed="a file with the text of /metrics, JSON of /api/v1/query_range, or an address such as "
            "http://host:8000",
        )
    if base is not None and (command is not None or gpu is not None):
        given = "--from-vllm" if command is not None else "--gpu"
        raise InputError("the base scenario says what the servers are", key=given, hint="leave out --base, or this")
    addresses = [each for each in where if _ADDRESS.match(each)]
    if addresses and len(where) > 1:
        raise InputError("give one address, or files", key="--prometheus", got=", ".join(where))
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
    if seconds < _SHORTEST_S:
        raise InputError("too short to count requests", key="--window", got=text, allowed="1 s or more, such as 10min")
    return seconds


def _pages(where: list[str], window_s: float | None, quiet: bool) -> list[MetricPage]:
    from sim.studies.observe.readings import page_of_file

    if not _ADDRESS.match(where[0]):
        return [page_of_file(Path(file)) for file in where]
    first = _fetched(where[0])
    if window_s is None or first.content.lstrip()[:1] == b"{":
        return [first]
    message(f"reading {first.name} again in {window_s:g} s", quiet)
    time.sleep(max(window_s - (time.time() - first.at_s), _SHORTEST_S))
    return [first, _fetched(where[0])]


def _check_seconds(service: ObservedService, pages: list[MetricPage]) -> None:
    """Refuse files whose times lie so close together that they are those of a copy."""
    mean_s = service.histograms["e2e"].mean if "e2e" in service.histograms else None
    if mean_s is not None and service.seconds < mean_s:
        raise InputError(
            f"{human_seconds(service.seconds)} is too short: requests take {human_seconds(mean_s)} on average",
            key="--prometheus",
            got=", ".join(page.name for page in pages),
            hint="copying a file changes its time: say how much time passed, such as --window 10min",
        )


def _fetched(url: str) -> MetricPage:
    """Read an address once; without a path, that of ``/metrics``."""
    from calibrate.serve.connection import run_or_stop, without_credentials
    from calibrate.serve.http_answer import Broken
    from calibrate.serve.server_metrics import fetch_page
    from sim.studies.observe.readings import PAGE_BYTES, MetricPage

    try:
        name, status, content = run_or_stop(fetch_page(url, _LIMIT_S, PAGE_BYTES))
    except (Broken, OSError) as error:
        raise InputError("can't be read", key="--prometheus", got=without_credentials(url), hint=str(error)) from None
    if status != 200:
        got = f"{name}: status {status}"
        raise InputError("no metrics at this address", key="--prometheus", got=got, allowed="200")
    return MetricPage(name, content, time.time(), is_file=False)


def _check_model(service: ObservedService, given: Iterable[str], key: str, file: str | None = None) -> None:
    """Refuse another base model than the metrics name; a name of one's own says nothing."""
    from sim.spec.profile_choice import known_model

    measured = known_model(service.model)
    for model in given:
        known = known_model(model)
        if known and measured and known != measured:
            raise InputError(
                "the metrics are of another base model",
                file=file,
                key=key,
                got=model,
                allowed=f"{service.model} (model_name of the metrics)",
                hint="give the --base or --from-vllm of these servers",
            )


def _models_of(base: LoadedScenario) -> Iterator[str]:
    from sim.spec.profile_choice import profile_of

    for pool in base.scenario.pools or (base.scenario,):
        with suppress(ScenarioError):  # what can't be simulated is written, and says so
            profile, _ = profile_of(pool)
            if profile is not None:
                yield profile.model


def _draft(out: Path, service: ObservedService, gpu: str | None, command: str | None, fit: Path | None = None) -> Draft:
    """Return a draft with what the user says of the servers, and with their model, if the metrics name one.

    :param fit: the corrected profile, once it is there.
    """
    from sim.spec.engine_flags.command_lines import Setting, read_command
    from sim.spec.profile_choice import known_model
    from sim.studies.init.draft import Draft

    draft = Draft(re.sub(r"[^A-Za-z0-9._-]+", "-", out.stem).strip("-._")[:64] or "observed")
    if fit is not None:
        path = os.path.relpath(fit.resolve(), out.parent.resolve())
        path = path if os.sep in path else f".{os.sep}{path}"
        draft.add([Setting("fleet.profile", path, "corrected by these metrics")])
    if gpu is not None:
        draft.add([gpu_setting(gpu)])
    model = Setting("adapters.base_model", service.model, "measured: model_name")
    if known_model(service.model) is not None:
        draft.add([model])
    if command is not None:
        read = read_command(command)
        _check_model(service, [read.model], "--from-vllm")
        draft.add_command(read)
    if "/" in service.model:  # a repository: it is not simulated, and a note says so
        draft.add([model])
    return draft


def _check_fit(service: ObservedService, base: LoadedScenario | None, profile: Path) -> None:
    """Refuse before anything is written.

    :raises InputError: where the metrics lack latencies, the base has no profile, or the profile can't be written.
    """
    from calibrate.fit.command import check_profile_target
    from sim.cli.bench_results import check_one_kind

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


def _correct(service: ObservedService, scenario: Scenario, where: list[str], profile: Path) -> Report:
    """Correct the scenario's profile by the measured latencies, and write it."""
    from calibrate.fit.load_correction import MeasuredLoad
    from calibrate.fit.report import correction_report
    from sim.studies.observe.findings import observed_world

    found = {f"{role}_mean_s": service.histograms[role] for role in _FITTED}
    load = MeasuredLoad(
        _WINDOW,
        observed_world(scenario),
        {name: histogram.mean for name, histogram in found.items() if histogram.mean is not None},
        {name: histogram.half_width() for name, histogram in found.items()},
    )
    files = [Path(file) for file in where if not _ADDRESS.match(file)]
    return correction_report([load], files, profile, command_line())
