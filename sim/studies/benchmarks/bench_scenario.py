"""A benchmark's run as a scenario: its load and its lengths, on the fleet that the user says."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

from sim.errors import InputError
from sim.results.run_directory.result_files import write_text
from sim.spec.profile import load_profile
from sim.spec.profile_choice import profile_choice
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import LoadedScenario
from sim.studies.benchmarks.bench_run import BenchRequests, BenchRun, ClosedLoad, OpenLoad, TokenSummary
from sim.traffic.fits.length_fit import correlation

_ALIKE = 1.05
"""A p99 up to this many times the mean is taken for lengths that are all the same."""
_TAIL = math.exp(2.3263478740408408**2 / 2)
"""Most times that a log-normal law's p99 can exceed its mean."""


def bench_scenario(run: BenchRun, base: LoadedScenario | None, profile: str | None, folder: Path) -> Scenario:
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
    data: dict[str, Any] = {} if base is None else copy.deepcopy(base.data)
    for key in ("sweep", "slo", "plan", "rollouts", "faults", "extends"):
        data.pop(key, None)
    if base is None:
        data |= {
            "schema_version": 1,
            "name": "benchmark",
            "adapters": {"mix": [{"share": 1, "kind": "base"}]},
            "cache": {"gpu": {"slots": 1}},  # LoRA is off; profiles know few slots
        }
    if profile is not None:
        fleet = data.setdefault("fleet", {})
        fleet["profile"] = profile
        fleet.pop("gpu", None)
        data["adapters"].pop("base_model", None)
    data["workload"] = _workload(
        run, data.get("workload", {}), folder, alone=base is None or base.scenario.adapters.base_alone
    )
    data["run"] = {"seed": data.get("run", {}).get("seed", 1), "replications": 1, "warmup": 0}
    return _with_think(Scenario.model_validate(data), run)


def _with_think(scenario: Scenario, run: BenchRun) -> Scenario:
    """Let clients of a closed loop wait for what lies between them and the engine."""
    arrivals = scenario.workload.arrivals
    if not isinstance(run.load, ClosedLoad) or arrivals is None:
        return scenario
    outside_s = load_profile(profile_choice(scenario).name)[0].front_end_s
    if not outside_s:
        return scenario
    data = scenario.workload.model_dump(mode="json", by_alias=True, exclude_unset=True)
    data["arrivals"]["think"] = f"{outside_s} s"
    return scenario.model_copy(update={"workload": type(scenario.workload).model_validate(data)})


def _workload(run: BenchRun, base: dict[str, Any], folder: Path, *, alone: bool) -> dict[str, Any]:
    """Return the traffic; what a client sent in an open loop is replayed, if the file has every request.

    :param alone: whether all requests are for the base model; then nothing is replayed, since a trace has adapters.
    """
    kept = {key: base[key] for key in ("popularity",) if key in base}
    if run.rows is not None and isinstance(run.load, OpenLoad) and not alone:
        write_text(folder / "requests.csv", _trace_text(run.rows))
        none = dict.fromkeys(("adapter", "session", "status"), "none")
        columns = {"time": "timestamp_s", "unit": "s", "input": "input_tokens", "output": "output_tokens", **none}
        return {**kept, "trace": {"file": str(folder / "requests.csv"), "format": "log", "columns": columns}}
    return {
        **kept,
        "requests": run.completed,
        "arrivals": _arrivals(run.load),
        "tokens": _tokens(run, folder),
    }


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
    write_text(folder / "lengths.csv", _lengths_text(run.rows))
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


def _trace_text(rows: BenchRequests) -> str:
    lines = ["timestamp_s,input_tokens,output_tokens"]
    columns = (rows.start_s.tolist(), rows.prompt_tokens.tolist(), rows.output_tokens.tolist())
    lines += [f"{at_s:.6f},{prompt},{output}" for at_s, prompt, output in zip(*columns, strict=True)]
    return "\n".join(lines) + "\n"


def _lengths_text(rows: BenchRequests) -> str:
    lines = ["input_tokens,output_tokens"]
    pairs = zip(rows.prompt_tokens.tolist(), rows.output_tokens.tolist(), strict=True)
    lines += [f"{prompt},{output}" for prompt, output in pairs]
    return "\n".join(lines) + "\n"
