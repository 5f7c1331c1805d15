"""Measured stages of a serving benchmark: a table with a row per stage, each predicted with the profile of its server.

A stage is one load on one server: a rate, or clients in a closed loop. docs/validation.md lists the columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from sim.errors import InputError
from sim.results.point_summary import measure_alone
from sim.results.records import COMPLETED
from sim.spec.engines import ENGINES
from sim.spec.gpus import GPUS, gpu_named
from sim.spec.profile_choice import BASE_MODELS, known_model
from sim.spec.scenario import Scenario
from sim.studies.backends.pool import unordered
from sim.studies.evaluate import facts_of
from sim.studies.fidelity.measured_runs import RunCells, TableOfRuns, non_negative
from sim.studies.predicted_service import predicted_values, service_of
from sim.world.build import build_world
from sim.world.replication import simulate

KEY_COLUMN = "answer_tokens"
COLUMNS = ("gpu", "tp", "model", "version", "prompt_tokens", KEY_COLUMN, "arrivals", "rate_per_s")
METRICS = tuple(f"{kind}_{what}" for kind in ("ttft", "tpot", "e2e") for what in ("mean", "p50", "p90", "p99"))
"""What is compared, where the table has it: columns end in ``_ms``."""
_VERSION = re.compile(r"v?(\d+(?:\.\d+)+)")
_FLEET = ("max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization")
_TEXTS = 44
"""Different prompts where a client sends few of them again and again: all but the first of each are found cached."""
_LEAST_REQUESTS, _SECONDS = 400, 120.0
"""Requests of a simulated stage: those that arrive in so many seconds, but not fewer. Half as many come before them,
so that the batch is as large as it becomes."""


@dataclass(frozen=True, slots=True)
class Server:
    """What a stage was measured on: it picks the profile.

    :ivar engine: as scenarios name it, such as ``vllm-0.15.1``.
    """

    gpu: str
    model: str
    tensor_parallel: int
    engine: str

    @property
    def words(self) -> str:
        """The server, for messages."""
        gpus = f"{self.tensor_parallel} x " if self.tensor_parallel > 1 else ""
        return f"{self.model} on {gpus}{self.gpu}"


@dataclass(frozen=True, slots=True)
class Stage:
    """One row.

    :ivar settings: of ``fleet``, where the row has them.
    :ivar rate_per_s: requests; 0 in a closed loop of ``clients``.
    :ivar cv: of the gaps between requests: 1 is Poisson, 0 a constant rate.
    :ivar cached: whether prompts repeat, so that the prefix cache has nearly all of them.
    :ivar measured: seconds by metric.
    :ivar file, line: where it was read, for error messages.
    """

    name: str
    server: Server
    settings: Mapping[str, Any]
    prompt: int
    answer: int
    rate_per_s: float
    cv: float
    clients: int
    cached: bool
    measured: Mapping[str, float]
    file: str
    line: int

    @property
    def load(self) -> str:
        """The load in a few words."""
        if self.clients:
            return f"{self.clients} clients"
        return f"{self.rate_per_s:.3g}/s{'' if self.cv else ' constant'}"

    def scenario(self, profile: str | None) -> Scenario:
        """Return the stage as a scenario without adapters.

        :param profile: path of its profile; None: the bundled one.
        :raises ScenarioError: where no bundled profile is of its server.
        """
        costs: dict[str, Any] = {"gpu": self.server.gpu, "tensor_parallel": self.server.tensor_parallel}
        if profile is not None:
            costs = {"profile": profile}
        arrivals: dict[str, Any] = {"process": "gamma", "rate": f"{self.rate_per_s!r}/s", "cv": max(self.cv, 0.01)}
        if self.clients:
            arrivals = {"process": "closed", "concurrency": self.clients}
        requests = max(_LEAST_REQUESTS, round(self.rate_per_s * _SECONDS), 10 * self.clients)
        workload: dict[str, Any] = {"requests": requests + requests // 2, "arrivals": arrivals}
        workload["tokens"] = {"prompt": self.prompt, "output": self.answer}
        if self.cached:
            workload["tokens"]["prompt"] = 1
            workload["prefix"] = {"shared_by": "all", "texts": _TEXTS, "tokens": max(self.prompt - 1, 1)}
        return Scenario.model_validate(
            {
                "schema_version": 1,
                "name": "stage",
                "workload": workload,
                "adapters": {"base_model": self.server.model, "mix": [{"share": 1, "kind": "base"}]},
                "fleet": {"engine": self.server.engine, **costs, **self.settings},
                "cache": {"gpu": {"slots": 1}},
                "run": {"warmup": "33%", "replications": 1},
            }
        )


@dataclass(frozen=True, slots=True)
class StagePrediction:
    """A stage, and what was predicted for it: seconds by metric.

    :ivar profile: whose costs were simulated.
    :ivar overloaded: whether more requests come than are served: then times depend on how long the simulation is.
    """

    stage: Stage
    profile: str
    predicted: Mapping[str, float]
    overloaded: bool = False

    def error(self, metric: str) -> float:
        """Return predicted over measured, minus 1."""
        return self.predicted[metric] / self.stage.measured[metric] - 1


def stages_of(table: TableOfRuns) -> list[Stage]:
    """Return the rows of a table as stages.

    :raises InputError: naming the missing columns, or the line and value that can't be used.
    """
    table.require(COLUMNS)
    if not any(f"{metric}_ms" in table.columns for metric in METRICS):
        raise InputError("nothing was measured", file=table.file, line=1, allowed=", ".join(f"{m}_ms" for m in METRICS))
    return [_stage(cells) for cells in table.rows]


def _stage(cells: RunCells) -> Stage:
    row = cells.row
    arrivals = (row["arrivals"] or "").split(" ")[0].lower()
    known = {"constant": 0.0, "poisson": 1.0, "closed": inf}
    if arrivals not in known:
        raise cells.error("unknown arrivals", "arrivals", row["arrivals"], ", ".join(known))
    closed = arrivals == "closed"
    if closed and not row.get("clients"):
        raise cells.error("a closed loop has clients", "clients", "nothing", "a whole number, 1 or more")
    gpu = cells.named("gpu", gpu_named, ", ".join(GPUS)).name
    model = cells.named("model", known_model, ", ".join(BASE_MODELS))
    version = cells.named("version", lambda text: _VERSION.match(text.strip()), "a version, such as 0.15.1")[1]
    engine = f"{row.get('engine') or 'vllm'}-{version}"
    if ENGINES.get(engine) is None:
        error = ENGINES.unknown(engine, "version")
        error.file, error.line = cells.file, cells.line
        raise error
    settings = {key: row[key] for key in _FLEET if row.get(key)}
    prompt = max(1, round(cells.number("prompt_tokens")))
    caching = row.get("prefix_caching", "on") != "off"
    return Stage(
        name=row.get("id") or f"line {cells.line}",
        server=Server(gpu, model, cells.count("tp"), engine),
        settings=settings | {"prefix_caching": caching},
        prompt=prompt,
        answer=max(1, round(cells.number("answer_tokens"))),
        rate_per_s=0.0 if closed else float(cells.parsed("rate_per_s", _rate, "above 0, up to 1,000,000 requests/s")),
        cv=0.0 if closed else known[arrivals],
        clients=cells.count("clients") if closed else 0,
        cached=caching and (row.get("prompts_repeat") or "no").startswith("yes") and prompt > 1,
        measured=_measured(cells),
        file=cells.file,
        line=cells.line,
    )


def _measured(cells: RunCells) -> dict[str, float]:
    found = {}
    for metric in METRICS:
        column = f"{metric}_ms"
        if cells.row.get(column):
            value = float(cells.parsed(column, non_negative, "milliseconds, above 0")) / 1000
            if not value:
                raise cells.error("not a time", column, cells.row[column], "milliseconds, above 0")
            found[metric] = value
    if not found:
        raise cells.error("nothing was measured", "ttft_mean_ms", "nothing", "at least one time")
    return found


def _rate(text: str) -> float:
    value = non_negative(text)
    if not 0 < value <= 1e6:
        raise ValueError
    return value


def predict_stages(
    stages: Sequence[Stage],
    profiles: Mapping[Server, str | None],
    jobs: int = -1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[StagePrediction]:
    """Simulate every stage, in parallel.

    :param profiles: path of the profile of each server; None: the bundled one.
    """
    found: dict[int, StagePrediction] = {}
    tasks = [(place, stage, profiles[stage.server]) for place, stage in enumerate(stages)]
    for place, prediction in unordered(_predict, tasks, jobs):
        found[place] = prediction
        progress(len(found), len(stages))
    return [found[place] for place in range(len(stages))]


def _predict(place: int, stage: Stage, profile: str | None) -> tuple[int, StagePrediction]:
    try:
        world = build_world(stage.scenario(profile))
    except InputError as error:
        error.file, error.line = stage.file, stage.line
        raise
    used = world.pools[0].profile
    assert used is not None, "no stage is of engine fixed"
    recording = simulate(world, 0, 1)
    assert np.any(recording.requests["status"] == COMPLETED), f"line {stage.line}: no request was served"
    values = predicted_values(service_of([recording]))
    _, _, overloaded = measure_alone(recording, facts_of(world))
    predicted = {name: values[f"{name}_s"] for name in stage.measured}
    return place, StagePrediction(stage, used.name, predicted, overloaded)


ServerErrors = tuple[int, float, float, float]
"""Stages, median and 90 % quantile of absolute errors, median of signed ones."""


def errors_by_server(predictions: Sequence[StagePrediction], metric: str) -> dict[str, ServerErrors]:
    """Return the errors of each server by its words, and of all stages where there are several servers."""
    servers: dict[str, list[float]] = {}
    for each in predictions:
        if metric in each.stage.measured:
            servers.setdefault(each.stage.server.words, []).append(each.error(metric))
    rows = dict(sorted(servers.items()))
    if len(rows) > 1:
        rows["all"] = [error for errors in servers.values() for error in errors]
    return {
        words: (
            len(errors),
            float(np.median(np.abs(errors))),
            float(np.quantile(np.abs(errors), 0.9)),
            float(np.median(errors)),
        )
        for words, errors in rows.items()
    }
