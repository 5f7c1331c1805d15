"""A benchmark's run as a scenario, simulated as its client loaded the server."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sim.errors import InputError, SeveralErrors
from sim.results.run_directory.result_files import write_text
from sim.spec.engines import is_same_engine
from sim.spec.profile import Profile
from sim.spec.profile_choice import known_model
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import LoadedScenario
from sim.studies.fidelity.bench_run import VLLM, BenchRequests, BenchRun, ClosedLoad, OpenLoad, TokenSummary
from sim.studies.predicted_service import predict_service, predicted_values
from sim.traffic.fits.describe import correlation
from sim.world.build import build_world
from sim.world.world import World

# A benchmark's run as a scenario: its load and its lengths, on the fleet that the user says.

_ALONE: dict[str, Any] = {
    "schema_version": 1,
    "name": "benchmark",
    "adapters": {"mix": [{"share": 1, "kind": "base"}]},
    "cache": {"gpu": {"slots": 1}},  # LoRA is off; profiles know few slots
}
"""One replica without adapters."""
_LEFT_OUT = ("workload", "run", "sweep", "slo", "plan", "rollouts", "faults", "extends")
"""Sections of the user's scenario that a benchmark's run doesn't have, or has of its own."""
_ANY_LOAD: dict[str, Any] = {"workload": {"requests": 1, "arrivals": {"process": "closed", "concurrency": 1}}}
_AT_LIMIT = 0.9
"""Share of a client's limit that is in flight on average where it is a closed loop; less only at start and end."""
_SET_HERE = "sweep"
"""Where ``LoadedScenario.with_values`` says that values were written."""
_ALIKE = 1.05
"""A p99 up to this many times the mean is taken for lengths that are all the same."""
_TAIL = math.exp(2.3263478740408408**2 / 2)
"""Most times that a log-normal law's p99 can exceed its mean."""


def bench_scenario(run: BenchRun, base: LoadedScenario | None, profile: str | None, folder: Path) -> LoadedScenario:
    """Return a run as a scenario; what it needs of files is written to a folder.

    :param base: says fleet, adapters, caches and popularity; None: one replica, without adapters.
    :param profile: in place of the base's.
    :raises InputError: where neither says what the costs are, or they don't fit together.
    """
    if base is None and profile is None:
        raise InputError(
            "a result doesn't say which GPU and settings it was measured with",
            file=run.name,
            key="--scenario",
            hint="give --scenario with the server's fleet and adapters, or --profile for a server without adapters",
        )
    engine = {} if base is not None or run.engine is None else {"fleet.engine": run.engine}
    if base is None:
        base = LoadedScenario(Scenario.model_validate(_ALONE | _ANY_LOAD), _ALONE, {}, run.name)
    elif base.scenario.fleet.engine == "fixed":
        raise base.locate(
            InputError(
                "this engine has no tokens, so it predicts no benchmark",
                key="fleet.engine",
                got="fixed",
                allowed="vllm, sglang or continuous",
            )
        )
    data = {key: value for key, value in base.data.items() if key not in _LEFT_OUT}
    alone, numbered = base.scenario.adapters.base_alone, base.scenario.adapters.count is not None
    values: dict[str, Any] = {
        "workload": _workload(run, base.data.get("workload", {}), folder, alone=alone, numbered=numbered),
        "run": {"seed": base.scenario.run.seed, "replications": 1, "warmup": 0},
        **engine,
    }
    if profile is not None:
        values |= {"fleet.gpu": None, "adapters.base_model": None, "fleet.profile": profile}
    # The files of the run are loraplan's own, and the user names the profile: no folder confines them.
    return replace(base, data=data, confines=None).with_values(values)


def moved_to_run(error: InputError, run: BenchRun, folder: Path) -> InputError:
    """Return an error with the run in place of what was written for it, which the user never sees.

    :param folder: what ``bench_scenario`` wrote its files to.
    """
    if isinstance(error, SeveralErrors):
        return SeveralErrors([moved_to_run(each, run, folder) for each in error.errors])
    ours = error.file is not None and Path(error.file).is_relative_to(folder)
    if not ours and error.file != _SET_HERE:
        return error
    moved = copy.copy(error)
    moved.file, moved.line = run.name, None
    if ours:
        moved.hint = None  # on options of traces
    elif moved.key == "fleet.profile":
        moved.file, moved.key = None, "--profile"
    return moved


def _workload(run: BenchRun, base: dict[str, Any], folder: Path, *, alone: bool, numbered: bool) -> dict[str, Any]:
    """Return the traffic; what a client sent in an open loop is replayed, if the file has every request.

    :param alone: whether all requests are for the base model; then nothing is replayed, since a trace has adapters.
        ``numbered``: whether the scenario says how many adapters there are.
    """
    kept = {key: base[key] for key in ("popularity",) if key in base}
    if run.tool == VLLM and numbered:
        kept = {"popularity": {"law": "uniform"}}  # --lora-assignment: random or round-robin
    load = simulated_load(run)
    if isinstance(load, OpenLoad) and load.cap is not None:
        return {"client": _client(run, load)}
    if run.rows is not None and isinstance(load, OpenLoad) and not alone:
        write_text(folder / "requests.csv", _table(run.rows, with_times=True))
        none = dict.fromkeys(("adapter", "session", "status"), "none")
        columns = {"time": "timestamp_s", "unit": "s", "input": "input_tokens", "output": "output_tokens", **none}
        return {**kept, "trace": {"file": str(folder / "requests.csv"), "format": "log", "columns": columns}}
    return {
        **kept,
        "requests": run.completed,
        "arrivals": _arrivals(load),
        "tokens": _tokens(run, folder),
    }


def _client(run: BenchRun, load: OpenLoad) -> dict[str, Any]:
    """Return the client of a run whose rate and limit both decide when a request is sent."""
    lengths = {"input_len": max(1, round(run.prompt.mean)), "output_len": max(1, round(run.output.mean))}
    return {
        "tool": "vllm-bench",
        "num_prompts": run.completed,
        "request_rate": f"{load.rate_rps!r}/s",
        "burstiness": min(load.shape, 1e4),
        "max_concurrency": load.cap,
        "special_tokens": 0,
        **lengths,
    }


def _are_alike(run: BenchRun) -> bool:
    """Return whether all prompts are of one length, and all answers, as far as the file knows."""
    rows = run.rows
    return rows is None or all(
        np.max(each) <= _ALIKE * np.mean(each) for each in (rows.prompt_tokens, rows.output_tokens)
    )


def simulated_load(run: BenchRun) -> ClosedLoad | OpenLoad:
    """Return the load that stands for a run: at its limit, a client that sends at a rate is a closed loop.

    :returns: an open loop has its limit only where that held some requests back.
    :raises InputError: where it did, and no client of the simulator draws such requests.
    """
    load = run.load
    if isinstance(load, ClosedLoad):
        return load
    free, latency_s = replace(load, cap=None), run.latency_s
    if load.cap is None or load.cap >= run.completed + run.failed or latency_s is None:
        return free
    answered_rps = run.measured["requests_per_s"]
    in_flight, unlimited = latency_s * answered_rps, latency_s * load.rate_rps
    if _AT_LIMIT * load.cap <= in_flight and answered_rps < _AT_LIMIT * load.rate_rps:
        return ClosedLoad(load.cap)
    if unlimited + 4 * math.sqrt(unlimited / min(load.shape, 1.0)) <= load.cap:
        return free
    if run.tool == VLLM and _are_alike(run):
        return load
    raise InputError(
        "the client's limit may have held requests back, so this run is neither an open nor a closed loop",
        file=run.name,
        got=f"{load.words}: {in_flight:,.3g} in flight on average",
        allowed=f"{_AT_LIMIT * load.cap:,.3g} or more in flight, or so few that the limit is never reached",
        hint="measure without a rate (vllm bench serve --request-rate inf), or without the limit",
    )


def simulated_runs(runs: Sequence[BenchRun]) -> list[BenchRun]:
    """Return the runs without those that no load stands for, which notes of the first one name.

    :raises InputError: of ``simulated_load``, where no run remains.
    """
    kept, errors = [], []
    for run in runs:
        try:
            simulated_load(run)
            kept.append(run)
        except InputError as error:
            errors.append(error)
    if errors and not kept:
        raise errors[0]
    return [replace(kept[0], notes=tuple(f"left out: {error}" for error in errors)), *kept[1:]] if errors else kept


def notes_on_run(run: BenchRun, engine: str) -> Iterator[str]:
    """Yield where load or engine that are simulated are others than the client says, and which runs were left out."""
    yield from run.notes
    if run.engine is not None and not is_same_engine(run.engine, engine):
        yield f"{run.name}: {run.engine} was measured, and the rules are of {engine} (--set fleet.engine={run.engine})"
    if isinstance(run.load, OpenLoad) and isinstance(load := simulated_load(run), ClosedLoad):
        yield (
            f"{run.name}: {run.measured['requests_per_s']:.3g} requests/s were answered at a rate of "
            f"{run.load.rate_rps:.4g}/s, because the client's limit held the others back: simulated as a {load.words}"
        )


def _arrivals(load: ClosedLoad | OpenLoad) -> dict[str, Any]:
    if isinstance(load, ClosedLoad):
        return {"process": "closed", "concurrency": load.concurrency}
    rate = f"{load.rate_rps!r}/s"
    if load.shape == 1:
        return {"process": "poisson", "rate": rate}
    return {"process": "gamma", "rate": rate, "cv": 1 / math.sqrt(min(load.shape, 1e4))}


def _tokens(run: BenchRun, folder: Path) -> dict[str, Any]:
    if run.rows is None:
        return {"prompt": _law(run.prompt), "output": _law(run.output)}
    write_text(folder / "lengths.csv", _table(run.rows, with_times=False))
    file = str(folder / "lengths.csv")
    return {
        "prompt": {"law": "empirical", "file": file, "column": "input_tokens"},
        "output": {"law": "empirical", "file": file, "column": "output_tokens"},
        "correlation": correlation(run.rows.prompt_tokens, run.rows.output_tokens),
    }


def _law(summary: TokenSummary) -> dict[str, Any]:
    """Return a law with this mean, and this p99 where lengths differ and a log-normal law has both."""
    if summary.p99 is None or not _ALIKE * summary.mean < summary.p99 < _TAIL * summary.mean:
        return {"law": "fixed", "value": max(1, round(summary.mean))}
    return {"law": "lognormal", "mean": summary.mean, "p99": summary.p99}


def _table(rows: BenchRequests, *, with_times: bool) -> str:
    lengths = zip(rows.prompt_tokens.tolist(), rows.output_tokens.tolist(), strict=True)
    lines = ["input_tokens,output_tokens", *(f"{prompt},{output}" for prompt, output in lengths)]
    if with_times:
        times = ["timestamp_s", *(f"{at_s:.6f}" for at_s in rows.start_s.tolist())]
        lines = [f"{at_s},{line}" for at_s, line in zip(times, lines, strict=True)]
    return "\n".join(lines) + "\n"


# The prediction.

SIMULATIONS = 8


@dataclass(frozen=True, slots=True)
class BenchPrediction:
    """A run and what was predicted for it.

    :ivar profile, profile_status: whose costs were simulated, and how trustworthy they are.
    :ivar engine: whose rules.
    :ivar metrics: by name, what was ``measured``, the ``half_width`` of its 95 % interval (None where the file has no
        spread, or too few requests), what was ``predicted``, and the relative ``error``.
    :ivar notes: on the scenario, and on what the file lacks.
    """

    run: BenchRun
    profile: str
    profile_status: str
    engine: str
    metrics: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]


def bench_world(run: BenchRun, base: LoadedScenario | None, profile: str | None) -> World:
    """Return the world of a run, whose files are all read.

    :raises InputError: where it can't be simulated.
    """
    with tempfile.TemporaryDirectory(prefix="loraplan-") as folder:
        try:
            loaded = bench_scenario(run, base, profile, Path(folder))
            try:
                world = build_world(loaded.scenario)
            except InputError as error:
                raise loaded.locate(error) from None
        except InputError as error:
            raise moved_to_run(error, run, Path(folder)) from None
    _check_server(run, world.scenario, world.pools[0].profile)
    return world


def _check_server(run: BenchRun, scenario: Scenario, profile: Profile | None) -> None:
    """Refuse a run of another base model, or with drafts; a model's name of one's own says nothing."""
    if (run.accepted or 1.0) > 1.0 and scenario.fleet.speculation is None:
        raise InputError(
            "the server that was measured had speculative decoding, and the scenario has none",
            file=run.name,
            key="fleet.speculation",
            got=f"{run.accepted:.3g} tokens a step",
            hint="give --scenario with fleet.speculation as on the server (docs/speculation.md)",
        )
    known = known_model(run.model or "")
    if known is not None and profile is not None and known != profile.model:
        raise InputError(
            "this run is of another base model",
            file=run.name,
            got=run.model,
            allowed=f"{profile.model} (profile {profile.name})",
            hint="give a scenario or a profile of that model",
        )


def predict_bench(run: BenchRun, base: LoadedScenario | None, profile: str | None) -> BenchPrediction:
    """Simulate a run as its client loaded the server, and compare.

    :raises InputError: where it can't be simulated.
    """
    world = bench_world(run, base, profile)
    used = world.pools[0].profile
    assert used is not None, "engine fixed is refused"
    predicted = predicted_values(predict_service(world, SIMULATIONS))
    return BenchPrediction(
        run=run,
        profile=used.name,
        profile_status=used.stated,
        engine=world.scenario.fleet.engine,
        metrics={
            name: {
                "measured": (measured := run.measured[name]),
                "half_width": run.errors.get(name),
                "predicted": value,
                "error": value / measured - 1 if measured else None,
            }
            for name, value in predicted.items()
            if name in run.comparable and math.isfinite(value)  # answers of one token have no gaps
        },
        notes=(*_gaps_of(run), *notes_on_run(run, world.scenario.fleet.engine), *_on_fleet(run, world)),
    )


def _on_fleet(run: BenchRun, world: World) -> Iterator[str]:
    """Yield the simulator's notes, but those on how the file in between was read."""
    if not world.scenario.adapters.base_alone:
        count, law = len(world.traffic.population), world.scenario.workload.popularity.law
        evenly = run.tool == VLLM and (law == "uniform" or world.scenario.workload.client is not None)
        how = "all equally popular, as this client picks them" if evenly else f"by the scenario's popularity ({law})"
        yield (
            f"a result of {run.tool} doesn't say which adapter a request was for: it is drawn from {count:,} "
            f"{'adapter' if count == 1 else 'adapters'} (--set adapters.count=N, if the client used others), {how}"
        )
    yield from (note for note in world.notes if "requests.csv" not in note)


def _gaps_of(run: BenchRun) -> Iterator[str]:
    if run.rows is None:
        yield (
            f"{run.name} has no single requests: their lengths are drawn with the mean"
            f"{'' if run.prompt.p99 is None else ' and p99'} that it names"
        )
    elif "ttft_p99_s" not in run.errors:
        yield f"{run.name}: {run.completed:,} requests are too few for an interval of p99, which takes 381"
    if run.failed:
        rates = "" if run.comparable.keys() == run.measured.keys() else ", and so are rates, which count answers alone"
        yield f"{run.name}: {run.failed:,} requests failed; they are left out{rates}"
    if run.cut_short:
        yield f"{run.name} was stopped before its end; requests that were under way are left out"
