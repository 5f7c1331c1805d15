"""Run ``loraplan calibrate serve``: measure, predict when the server is idle again, compare, write."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibrate.serve import engine, ladder, paired_table
from calibrate.serve.client import COMPLETE, PlannedRequest, longest_request, plan_requests, served_models
from calibrate.serve.connection import Host, run_or_stop
from calibrate.serve.drive import Driver, LiveRun
from calibrate.serve.http_answer import ServerError
from calibrate.serve.paired_table import predict
from calibrate.serve.report import serve_report
from calibrate.serve.server_metrics import ObservedRun, observed_between, over_run, read_page
from sim.errors import InputError
from sim.results.run_directory.result_files import write_atomically, write_json, write_text
from sim.spec.engines import ENGINES, nearest_version, versions_of
from sim.spec.profile import load_profile
from sim.spec.profile_choice import profile_choice
from sim.spec.scenario_file import LoadedScenario
from sim.spec.units import human_bytes
from sim.traffic.adapters import model_shape
from sim.traffic.generate import Traffic

if TYPE_CHECKING:
    from calibrate.serve.command import ServeOptions
    from reports.document import Report

COMPARISON, REQUESTS, KEPT = "comparison.json", "requests.parquet", "requests-{}.jsonl"
PROFILE, LADDER = "profile.json", "ladder.json"
STEADY = 1.2
"""A server's speed has changed if a step takes more than this many times as long as in the ladder, or less than 1 over
that."""


@dataclass(slots=True)
class ServerMeasurement:
    """What came back from the server.

    :ivar preset: the nearest engine preset, where its version is known.
    :ivar kv: the size of its KV cache, ``prefix_caching``: whether it is on; both where the server reports it.
    :ivar slowdowns: with ``--fit``, a decode step after each run divided by the same step in the ladder.
    """

    engine: str
    preset: str | None
    kv: dict[str, int]
    prefix_caching: bool | None = None
    runs: list[LiveRun] = field(default_factory=list)
    observed: list[ObservedRun | str] = field(default_factory=list)
    slowdowns: list[float | None] = field(default_factory=list)

    @property
    def fleet(self) -> dict[str, int | bool]:
        """What the server reports, as keys of ``fleet``: of prefix caching only that it is off.

        The presets of vLLM have it on, and a scenario's engine may be one that can't have it.
        """
        return {**self.kv, **({"prefix_caching": False} if self.prefix_caching is False else {})}


@dataclass(frozen=True, slots=True)
class ServeStudy:
    """A study, checked as far as can be without the server.

    :ivar begin: makes the folder, once the server is known to do.
    """

    loaded: LoadedScenario
    options: ServeOptions
    traffic: Traffic
    base_model: str
    planned: list[PlannedRequest]
    profile: str
    folder: Path
    begin: Callable[[], None]
    say: Callable[[str], None]

    @property
    def adapters(self) -> int:
        """How many adapters the server must have."""
        return len(self.traffic.population)


def serve(
    loaded: LoadedScenario,
    options: ServeOptions,
    folder: Path,
    begin: Callable[[Path], None],
    command: str,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Report:
    """Run a study; every finished request is on disk, even if the study fails.

    :param begin: makes the folder; is given the profile that the study reads from there.
    :raises InputError: where scenario, server and options don't fit together.
    :raises ServerError: where the server refuses, stalls or dies.
    """
    job = _job(loaded, options, folder, begin, say)
    with _server(job) as (driver, running, installed):
        driver.progress = progress
        measured = run_or_stop(_measure(job, driver, running, installed))
    return _conclude(job, measured, command)


def _job(
    loaded: LoadedScenario,
    options: ServeOptions,
    folder: Path,
    begin: Callable[[Path], None],
    say: Callable[[str], None],
) -> ServeStudy:
    scenario = loaded.scenario
    if scenario.fleet.engine == "fixed":
        raise InputError(
            "a live server has no fixed service time", key="fleet.engine", got="fixed", hint="choose another engine"
        )
    if scenario.fleet.pools:
        raise InputError(
            "a live server is of one kind", key="fleet.pools", got=f"{len(scenario.fleet.pools)} pools", allowed="none"
        )
    if scenario.fleet.full_models is not None:
        raise InputError(
            "a live server has one base model",
            key="fleet.full_models",
            got=scenario.fleet.full_models.serve,
            hint="remove full models from adapters.mix",
        )
    if scenario.adapters.base_quantization != "bf16":
        raise InputError(
            "the server that is started does not quantize its base weights",
            key="adapters.base_quantization",
            got=scenario.adapters.base_quantization,
            allowed="bf16",
        )
    if options.url is None and scenario.fleet.replicas > 1:
        raise InputError(
            "only one server can be started",
            key="fleet.replicas",
            got=scenario.fleet.replicas,
            hint="set fleet.replicas=1, or give --url of a router",
        )
    base_model, read = scenario.adapters.base_model, ""
    if not options.fit or base_model is None:  # a wrong name must fail before the measurement
        read = options.profile or profile_choice(scenario).name
        known = load_profile(read)[0].model
        base_model = base_model or known
        if not options.fit and known != base_model:
            raise InputError(
                "the profile was made for another base model",
                key="adapters.base_model",
                got=base_model,
                allowed=known,
                hint="--fit makes a profile of the server itself",
            )
    traffic = Traffic(scenario, base_model)
    planned = plan_requests(scenario, traffic)
    profile = str(folder / PROFILE) if options.fit else read
    begins = partial(begin, Path(read))
    return ServeStudy(loaded, options, traffic, base_model, planned, profile, folder, begins, say)


@contextlib.contextmanager
def _server(job: ServeStudy) -> Iterator[tuple[Driver, engine.RunningServer | None, engine.InstalledVllm | None]]:
    """Yield a driver for the server, and the server itself where it was started here."""
    options, scenario = job.options, job.loaded.scenario
    if options.url is not None:
        yield Driver(Host(options.url, options.key), (), options.stall), None, None
        return
    installed = engine.find_vllm(options.server_python)
    longest = scenario.fleet.max_model_len or max(1024, longest_request(job.planned))
    shape, population = model_shape(job.base_model), job.traffic.population
    if installed.cpu:
        engine.check_memory(scenario, shape, population)
    with tempfile.TemporaryDirectory(prefix="loraplan-model-") as model:
        arguments = engine.server_arguments(scenario, job.traffic.population, Path(model), longest, installed)
        job.begin()
        size = human_bytes(int(population.size_bytes.sum()))
        job.say(f"writing {job.adapters} random adapters ({size}) for {job.base_model} into {model}")
        engine.write_model(Path(model), scenario, shape, population, longest)
        job.say(f"starting {installed.name} with {job.adapters} adapters; its log: {job.folder / 'server.log'}")
        with engine.launched(installed, arguments, job.folder) as running:
            names = [engine.adapter_name(index) for index in range(job.adapters)]
            yield Driver(Host(running.url), names, options.stall, running.died), running, installed


async def _measure(
    job: ServeStudy, driver: Driver, running: engine.RunningServer | None, installed: engine.InstalledVllm | None
) -> ServerMeasurement:
    try:
        bases, listed = await served_models(driver.host, driver.stall_s)
        if not driver.names:
            driver.names = _names(job.options.adapters, listed, bases, job.adapters)
        if running is None:
            job.begin()
        page = await read_page(driver.host, driver.page_limit_s)
        kv: dict[str, int] = {}
        if page is not None and page.kv_tokens and page.block_size:
            kv = {"kv_tokens": page.kv_tokens, "block_size": page.block_size}
        name = installed.name if installed else bases[0] if bases else "server"
        caches = page.prefix_caching if page is not None else None
        preset = nearest_version(f"vllm-{installed.version}").preset if installed else None
        measured = ServerMeasurement(name, preset, kv, caches)
        rungs = None
        if job.options.fit:
            job.say("measuring step and load costs over the API")
            rungs = await _fit(job, driver, measured)
        for number in range(1, job.options.repeat + 1):
            await _run(job, driver, measured, number, running.observed if running else None)
            if rungs is not None:
                measured.slowdowns.append(await ladder.slowdown(driver, rungs, number))
        return measured
    finally:
        await driver.host.close()


async def _run(
    job: ServeStudy, driver: Driver, measured: ServerMeasurement, number: int, observed: Path | None
) -> None:
    job.say(
        f"run {number} of {job.options.repeat}: asking for every adapter once, then {len(job.planned):,} requests over "
        f"{job.planned[-1].at_s:.0f} s"
    )
    for adapter in range(job.adapters):  # so that the caches' state is known
        await driver.one(PlannedRequest(adapter, 0.0, adapter, 8, 1))
    run = await driver.run(job.planned, job.folder / KEPT.format(number))
    measured.runs.append(run)
    rows = engine.read_observed(observed) if observed else []
    measured.observed.append(
        observed_between(rows, run.start, run.end) if observed else "the server does not report loads"
    )


async def _fit(job: ServeStudy, driver: Driver, measured: ServerMeasurement) -> ladder.Ladder:
    rungs = await ladder.measure(driver, job.loaded.scenario, job.planned, job.adapters)
    write_json(job.folder / LADDER, asdict(rungs))
    if not rungs.batches:
        raise ServerError(
            "no step can be timed: the tokens of an answer come all at once",
            where=driver.host.url,
            hint="turn off what collects streams, such as a buffering proxy",
        )
    scenario = job.loaded.scenario
    command = ladder.public_command(scenario.name, launched=job.options.url is None, settings=job.options.set_ or ())
    fitted = ladder.fit_profile(
        rungs,
        scenario,
        command,
        base_model=job.base_model,
        population=job.traffic.population,
        engine=measured.engine,
        kv_tokens=measured.kv.get("kv_tokens"),
    )
    write_text(job.folder / PROFILE, fitted.model_dump_json(indent=2) + "\n")
    return rungs


def _names(pattern: str | None, listed: Sequence[str], bases: Sequence[str], count: int) -> list[str]:
    """Return what each adapter is called there.

    :raises InputError: where the server has too few, or none at all.
    """
    if pattern is not None:
        if "{}" not in pattern:
            raise InputError("no place for the number", key="--adapters", got=pattern, allowed="such as adapter-{}")
        names = [pattern.replace("{}", str(index)) for index in range(count)]
        missing = [name for name in names if name not in {*listed, *bases}]
        if listed and missing:
            raise InputError(
                "the server has no such adapter",
                key="--adapters",
                got=missing[0],
                allowed=", ".join(listed[:5]) + (", …" if len(listed) > 5 else ""),
            )
        return names
    if not listed:
        raise InputError(
            "the server lists no LoRA adapters",
            key="--url",
            got=f"models: {', '.join(bases) or 'none'}",
            hint="start it with LoRA (vLLM: --enable-lora --lora-modules name=path …), or give --adapters a pattern",
        )
    if len(listed) < count:
        raise InputError(
            "the server has fewer adapters than the scenario",
            key="adapters.count",
            got=count,
            allowed=f"up to {len(listed)}",
            hint=f"--set adapters.count={len(listed)}",
        )
    return list(listed[:count])


def _preset(engine_: str, measured: ServerMeasurement) -> tuple[str, list[str]]:
    """Return the preset to predict with: the scenario's, unless it is of no vLLM and the server is one."""
    near = measured.preset
    if near is None or ENGINES[engine_].name == near:
        return engine_, []
    if versions_of(engine_) is not None:
        return engine_, [f"predicted with the rules of {engine_}, while the server is {measured.engine}"]
    return near, [f"predicted with the rules of {near}, the server's; the scenario's fleet.engine is {engine_}"]


def drift_notes(slowdowns: Sequence[float | None]) -> list[str]:
    """Return what to say of steps that took longer or shorter after the runs than in the ladder."""
    notes = [
        f"after run {run}, the server did not serve the batch that checks its speed"
        for run, factor in enumerate(slowdowns, 1)
        if factor is None
    ]
    known = [factor for factor in slowdowns if factor is not None]
    far = max(known, key=lambda factor: abs(math.log(factor)), default=1.0)
    if not 1 / STEADY < far < STEADY:
        times = f"{far:.2g}" if far < 10 else f"{far:,.0f}"
        notes.append(
            f"after run {slowdowns.index(far) + 1}, decode steps took {times} times as long as when their costs were "
            "fitted: the server's speed changed, so the errors say little about the prediction"
        )
    return notes


def _conclude(job: ServeStudy, measured: ServerMeasurement, command: str) -> Report:
    import pyarrow.parquet as parquet

    times = [paired_table.times_of(run, len(job.planned)) for run in measured.runs]
    runs = [
        paired_table.measured_metrics(run, columns, seen)
        for run, columns, seen in zip(measured.runs, times, measured.observed, strict=True)
    ]
    planned_s = np.array([request.at_s for request in job.planned])
    sent_s = np.where(np.isfinite(times[0].sent_s), times[0].sent_s, planned_s)
    preset, notes = _preset(job.loaded.scenario.fleet.engine, measured)
    settings = {"profile": job.profile, "engine": preset, **measured.fleet}
    prediction = predict(job.loaded, job.planned, job.adapters, np.maximum(sent_s, 0.0), settings)
    used, digest = load_profile(job.profile)
    failed = [sum(sent.status != COMPLETE for sent in run.sent) for run in measured.runs]
    late = np.concatenate([columns.late_s for columns in times])
    seen = measured.observed[0]
    summary = {
        "schema_version": 1,
        "scenario": job.loaded.scenario.name,
        "engine": measured.engine,
        "requests": len(job.planned),
        "repeat": len(runs),
        "failed": failed,
        "problems": sorted({sent.problem for run in measured.runs for sent in run.sent if sent.problem})[:5],
        "metrics": paired_table.comparison(runs, prediction),
        "runs": runs,
        "server": [over_run(run.pages) for run in measured.runs],
        "loads_from": "an observer inside the server" if isinstance(seen, ObservedRun) else seen,
        "late_p99_s": float(np.nanquantile(late, 0.99)),
        "kv": measured.kv,
        "profile": {
            "name": used.name,
            "status": used.status,
            "sha256": digest,
            "fitted": job.options.fit,
            "front_end_s": used.front_end_s,
        },
        "slowdown": measured.slowdowns,
        "notes": [*notes, *drift_notes(measured.slowdowns), *prediction.notes],
    }
    write_json(job.folder / COMPARISON, summary)
    table = paired_table.request_table(measured.runs, times, prediction)
    write_atomically(job.folder / REQUESTS, lambda file: parquet.write_table(table, file))
    order = [row.request.index for row in measured.runs[0].sent]
    first, again = {}, {}
    for name in ("ttft_s", "e2e_s"):
        found, predicted = getattr(times[0], name), getattr(prediction, name)
        first[name] = [(index, found[index], predicted[index]) for index in order]
        again[name] = [getattr(run, name).tolist() for run in times[1:2]]
    return serve_report(summary, job.loaded.scenario.description, first, again, command)
