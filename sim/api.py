"""The verbs of the command line for notebooks and scripts: typed results, DataFrames, no printing.

::

    import loraplan

    result = loraplan.run("quickstart", {"cache.gpu.slots": 64})
    result.value("ttft_p99_s"), result.meets_slo
    loraplan.sweep("quickstart", {"cache.gpu.slots": [16, 32, 64]}).table("ttft_p99_s")
    loraplan.plan("quickstart", minimize={"cache.gpu.slots": (8, 128)}).answer
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from sim.errors import InputError
from sim.results.point import Metric, Point
from sim.results.run_directory.store import read_run
from sim.spec.files.tree import Origin
from sim.spec.policies import Given
from sim.spec.scenario_file import LoadedScenario
from sim.spec.scenario_file import load_scenario as _load
from sim.study_results import ComparisonResults, PlanResults, Results

if TYPE_CHECKING:
    from sim.studies import execution as studies

__all__ = [
    "ComparisonResults",
    "LoadedScenario",
    "Metric",
    "PlanResults",
    "Point",
    "Results",
    "compare",
    "load_scenario",
    "plan",
    "run",
    "sweep",
]

_VALUES, _SEED = Origin("values"), Origin("seed")
"""How errors name the place of what a call sets."""
_OVER = 'such as {"cache.gpu.slots": [16, 32, 64]}'

Source = str | Path | LoadedScenario
Progress = Callable[[int, int], None]
Policies = Mapping[str, type]
"""Classes of eviction policies or routers by name."""


def load_scenario(
    source: str | Path,
    values: Mapping[str, Any] | None = None,
    seed: int | None = None,
    *,
    confined: bool = False,
    evictions: Policies | None = None,
    routers: Policies | None = None,
) -> LoadedScenario:
    """Read and check a scenario.

    :param source: a YAML file, or the name of a bundled scenario.
    :param values: by dotted key, such as ``{"cache.gpu.slots": 64, "workload.arrivals.rate": "12/s"}``.
    :param seed: replaces ``run.seed``.
    :param confined: refuse files outside the scenario's folder: for a stranger's scenario.
    :param evictions: classes of your own by the names that ``cache.eviction`` may then have (docs/own-policy.md).
    :param routers: the same for ``router.policy``.
    :raises InputError: with every problem found.
    """
    loaded = _load(str(source), confined=confined, given=Given.of(evictions, routers))
    return _with_values(loaded, values, seed)


class Execution(TypedDict, total=False):
    """What the verbs that simulate take besides their question.

    - ``evictions``: eviction policies of your own, such as ``{"mine": Mine}``: classes by the names that
      ``cache.eviction`` may then have (docs/own-policy.md). ``routers``: the same for ``router.policy``.
    - ``seed``: replaces ``run.seed``.
    - ``out``: a run directory to keep; one that holds this run already is read, not simulated.
    - ``jobs``: worker processes; -1, the default: one for each core.
    - ``backend``: ``local``, ``dask`` or ``ray``; ``address``: of a cluster that is there already.
    - ``progress``: called with the tasks done and all there are.
    """

    evictions: Policies | None
    routers: Policies | None
    seed: int | None
    out: str | Path | None
    jobs: int
    backend: str
    address: str | None
    progress: Progress


def run(
    scenario: Source, values: Mapping[str, Any] | None = None, *, headroom: bool = False, **how: Unpack[Execution]
) -> Results:
    """Simulate one scenario.

    :param scenario: a file, a bundled name, or what ``load_scenario`` gave.
    :param values: by dotted key.
    :param headroom: also simulate at what multiple of the traffic the SLO fails (``Results.headroom``).
    :param how: see ``Execution``.
    :raises InputError: if the scenario can't be simulated.
    """
    return simulated(_loaded(scenario, values, how), [{}], how.get("out"), _executing(how), headroom=headroom)


def sweep(
    scenario: Source,
    over: Mapping[str, Iterable[Any]] | None = None,
    values: Mapping[str, Any] | None = None,
    **how: Unpack[Execution],
) -> Results:
    """Simulate every combination of values; other parameters as for ``run``.

    :param over: values by dotted key; None: the scenario's ``sweep`` block.
    """
    from sim.studies.design import grid

    loaded = _loaded(scenario, values, how)
    _check_keys("over", over, _OVER)
    axes: dict[str, list[Any]] = {}
    for key, swept in (over or {}).items():
        axes[key] = list(swept) if isinstance(swept, Iterable) and not isinstance(swept, str) else []
        if key in (values or {}):
            raise InputError("given in values, too", key=f"over: {key}", hint="leave out one of the two")
        if not axes[key]:
            raise InputError("no values to sweep", key=f"over: {key}", got=swept, hint=_OVER)
    if not axes and not loaded.scenario.sweep:
        raise InputError("nothing to sweep", key="over", hint=f"{_OVER}, or write a sweep: block in the scenario")
    return simulated(loaded, grid(loaded, axes), how.get("out"), _executing(how))


def simulated(
    loaded: LoadedScenario,
    sets: list[dict[str, Any]],
    out: str | Path | None,
    opened: AbstractContextManager[studies.Execution],
    *,
    overwrite: bool = False,
    headroom: bool = False,
) -> Results:
    """Simulate points, or read those that a run directory holds already: what ``run``, ``sweep`` and their commands do.

    :param sets: swept keys and values of each point; ``[{}]`` for a single run.
    :param opened: opens what simulates, if anything is to be.
    """
    from sim.studies.study_identity import finished_study

    with _folder(out) as folder:
        # Looked for before anything opens: a study that is finished needs no simulator, which takes long to import.
        finished = None if overwrite else finished_study(loaded, sets, folder, headroom=headroom)
        if finished is None:
            with opened as execution:
                from sim.studies.sweep import run_study

                finished = run_study(loaded, sets, folder, execution, overwrite=overwrite, headroom=headroom)
    return Results(finished.run, kept=out is not None, reused=finished.reused, unchanged=finished.unchanged)


def plan(
    scenario: Source,
    values: Mapping[str, Any] | None = None,
    *,
    minimize: Mapping[str, Sequence[Any]] | None = None,
    maximize: Mapping[str, Sequence[Any]] | None = None,
    what_if: bool = False,
    headroom: bool = False,
    **how: Unpack[Execution],
) -> PlanResults:
    """Find the smallest or largest value that meets the SLO; other parameters as for ``run``.

    :param minimize, maximize: range by dotted key, ``(first, last)`` or ``(first, last, step)``; neither: the
        scenario's ``plan`` block.
    :param what_if: also try one change at a time at the answer; ``progress`` counts these.
    :param headroom: also simulate how much more traffic fits into the answer.
    """
    from sim.studies.plan.study import make_plan

    loaded = _loaded(scenario, values, how)
    if minimize is not None or maximize is not None:
        loaded = loaded.with_values(plan_question(minimize, maximize), Origin("maximize" if maximize else "minimize"))
    with _folder(how.get("out")) as folder, _executing(how) as execution:
        planned = make_plan(loaded, folder, execution, and_what_if=what_if, headroom=headroom)
    return PlanResults(read_run(planned.path), kept=how.get("out") is not None)


def compare(one: Results | str | Path, other: Results | str | Path) -> ComparisonResults:
    """Compare two runs: is the second one better? Of two plans: what changes in what they recommend?

    :param one, other: what ``run``, ``sweep`` or ``plan`` returned, or run directories.
    :raises InputError: if a run can't be read, or no points of the two belong together.
    """
    from sim.studies.compare.study import compare_runs

    for key, each in (("one", one), ("other", other)):
        if not isinstance(each, Results | str | Path):
            raise InputError("not a run", key=key, got=each, allowed="what run, sweep or plan returned, or a folder")
    runs = [read_run(each.path if isinstance(each, Results) else Path(each)) for each in (one, other)]
    if all(run.manifest.get("kind") == "plan" for run in runs):
        from sim.studies.compare.plans import PlanDiff

        plans = PlanDiff(*runs)
        return ComparisonResults(plans.comparison, plans)
    return ComparisonResults(compare_runs(*runs))


def plan_question(
    minimize: Mapping[str, Sequence[Any]] | None, maximize: Mapping[str, Sequence[Any]] | None
) -> dict[str, Any]:
    """Return the ``plan`` block that asks for these ranges."""
    if minimize and maximize:
        raise InputError(
            "a plan needs exactly one of minimize and maximize", key="maximize", hint="give either minimize or maximize"
        )
    name, asked = ("minimize", minimize) if minimize else ("maximize", maximize)
    _check_keys(name, asked, 'such as {"cache.gpu.slots": (8, 128)}')
    if not asked:
        raise InputError("no key and range", key=name, hint='such as {"cache.gpu.slots": (8, 128)}')
    for key, ends in asked.items():
        if not isinstance(ends, (list, tuple)) or not 2 <= len(ends) <= 3:
            raise InputError("not a range", key=key, got=ends, allowed="(first, last) or (first, last, step)")
    ranges = [list(ends[:2]) for ends in asked.values()]
    steps = [ends[2] if len(ends) > 2 else None for ends in asked.values()]
    one = len(asked) == 1
    question: dict[str, Any] = {name: next(iter(asked)) if one else list(asked), "range": ranges[0] if one else ranges}
    if any(step is not None for step in steps):
        question["step"] = steps[0] if one else steps
    return {"plan": question}


def _loaded(scenario: Source, values: Mapping[str, Any] | None, how: Execution) -> LoadedScenario:
    given = Given.of(how.get("evictions"), how.get("routers"))
    if not isinstance(scenario, LoadedScenario):
        loaded = _load(str(scenario), given=given)
    else:
        loaded = scenario.with_policies(given) if given.evictions or given.routers else scenario
    return _with_values(loaded, values, how.get("seed"))


def _check_keys(name: str, given: Any, hint: str) -> None:
    """Refuse an argument that is not a mapping of dotted keys, such as what ``--set`` takes."""
    if given is not None and not (isinstance(given, Mapping) and all(isinstance(key, str) for key in given)):
        raise InputError("not values by dotted key", key=name, got=given, hint=hint)


def _with_values(loaded: LoadedScenario, values: Mapping[str, Any] | None, seed: int | None) -> LoadedScenario:
    _check_keys("values", values, 'such as {"cache.gpu.slots": 64}')
    loaded = loaded.with_values(values, _VALUES) if values else loaded
    return loaded if seed is None else loaded.with_values({"run.seed": seed}, _SEED)


def _executing(how: Execution) -> AbstractContextManager[studies.Execution]:
    """Return what opens the pool that the options select."""
    from sim.studies.backends.backend_choice import choose_backend, open_pool
    from sim.studies.execution import executing

    if unknown := how.keys() - Execution.__annotations__.keys():
        raise TypeError(f"no such parameter: {', '.join(sorted(unknown))}")
    backend, address = how.get("backend", "local"), how.get("address")
    opened = open_pool(choose_backend([backend] if address is None else [backend, address]), how.get("jobs", -1))
    return executing(opened, nullcontext(how.get("progress", lambda done, total: None)))


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    """Give the run directory: the one that is to be kept, or one in a temporary folder, gone if nothing comes of it."""
    if out is not None:
        yield Path(out)
        return
    temporary = Path(tempfile.mkdtemp(prefix="loraplan-"))
    try:
        yield temporary / "run"
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
