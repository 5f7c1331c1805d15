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
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.errors import InputError
from sim.results.point import Metric, Point
from sim.results.run_directory.store import RunData, read_run
from sim.results.verdict import MET, NO_SLO, verdict
from sim.spec.policies import Given
from sim.spec.scenario_file import LoadedScenario
from sim.spec.scenario_file import load_scenario as _load

if TYPE_CHECKING:
    import pandas as pd

    from reports.answers.run_comparison import Comparison
    from reports.text.answer_text import Answer
    from sim.studies.backends.pool import Pool

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
    :param confined: refuse files outside the scenario's folder: for a stranger's scenario.
    :param evictions: classes of your own by the names that ``cache.eviction`` may then have (docs/own-policy.md).
    :param routers: the same for ``router.policy``.
    :raises InputError: with every problem found.
    """
    loaded = _load(str(source), (), seed, confined=confined, given=Given.of(evictions, routers))
    return loaded.with_values(values) if values else loaded


class Results:
    """What a run, a sweep or a plan left: its points, as numbers, tables and words.

    :ivar path: the run directory; a temporary one where no ``out`` was given, gone with this object.
    :ivar points: one for every combination of swept values; one for a run.
    """

    def __init__(self, data: RunData, *, kept: bool) -> None:
        self._data = data
        if not kept:
            weakref.finalize(self, shutil.rmtree, data.path.parent, ignore_errors=True)
        self.path = data.path
        self.points: list[Point] = data.points
        self._terms = _terms(data)

    @property
    def point(self) -> Point:
        """The point of a run; of a sweep or a plan, the one whose numbers one wants first."""
        from reports.answers.findings import sweep_focus

        return self.points[0] if len(self.points) == 1 else sweep_focus(self.points, self._terms)

    @property
    def metrics(self) -> pd.DataFrame:
        """One row for each metric of ``point``: value, lo, hi, unit, settled, note."""
        return _frame([(name, metric) for name, metric in self.point.metrics.items() if metric.applies])

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each point and metric: the swept keys, metric, value, lo, hi, unit."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    **point.set,
                    "metric": name,
                    "value": metric.value,
                    "lo": metric.lo,
                    "hi": metric.hi,
                    "unit": metric.unit,
                }
                for point in self.points
                for name, metric in point.metrics.items()
            ]
        )

    @property
    def requests(self) -> pd.DataFrame:
        """One row for each request of the first replication of one point (docs/run-directory.md)."""
        import pandas as pd

        return pd.read_parquet(self.path / "requests.parquet")

    @property
    def answer(self) -> Answer:
        """The answer in words, as the report's top box has it."""
        from reports.pages.run_page import run_answer

        return run_answer(self._data)

    @property
    def meets_slo(self) -> bool | None:
        """Whether every point meets every term of the SLO with its interval; None without an SLO."""
        words = {verdict(point, self._terms) for point in self.points}
        return None if words == {NO_SLO} else words == {MET}

    def value(self, name: str) -> float | None:
        """Return a metric's value at ``point``, in its unit; None where it was not measured.

        :raises InputError: if there is no such metric.
        """
        return _metric(self.point, name).value

    def table(self, *names: str) -> pd.DataFrame:
        """Return one row for each point, with the swept keys as index and the values of these metrics.

        :raises InputError: if there is no such metric.
        """
        import pandas as pd

        rows = [{name: _metric(point, name).value for name in names} for point in self.points]
        keys = list(dict.fromkeys(key for point in self.points for key in point.set))
        if not keys:
            return pd.DataFrame(rows)
        columns = [[_hashable(point.set.get(key)) for point in self.points] for key in keys]
        index = pd.MultiIndex.from_arrays(columns, names=keys) if len(keys) > 1 else pd.Index(columns[0], name=keys[0])
        return pd.DataFrame(rows, index=index)

    def report(self) -> Path:
        """Write ``report.html`` into the run directory and return its path."""
        from reports.pages.run_page import write_report

        return write_report(self._data, self.answer)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the answer, and the numbers behind it."""
        from reports.pages.notebook import snippet

        return snippet(self._data, self.answer)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._data.manifest.get('name')}: {self.answer.headline}>"


class PlanResults(Results):
    """What a plan found.

    :ivar feasible: whether anything meets the SLO; ``certain``: whether nothing more wanted may do after all.
    :ivar found: the values, ``{}`` where nothing does.
    :ivar simulated_requests: what the search took.
    """

    def __init__(self, data: RunData, *, kept: bool) -> None:
        super().__init__(data, kept=kept)
        record = data.manifest["plan"]
        self.feasible: bool = record["feasible"]
        self.certain: bool = record["certain"]
        self.found: dict[str, Any] = record["answer"]
        self.simulated_requests: int = record["simulated_requests"]

    @property
    def point(self) -> Point:
        """The point of the answer, or of the best that was found."""
        from reports.answers.plan_reading import PlanReading

        chosen: Point | None = PlanReading(self._data).chosen
        assert chosen is not None, "a finished plan has a best point"
        return chosen

    @property
    def looks(self) -> pd.DataFrame:
        """What the search looked at, in order."""
        import pandas as pd

        looks = self._data.manifest["plan"]["looks"]
        return pd.DataFrame([{**look.pop("set"), **look} for look in [dict(each) for each in looks]])

    @property
    def what_if(self) -> pd.DataFrame:
        """One row for each change and metric that was tried: change, metric, one, other, lo, hi, word."""
        import pandas as pd

        kept = ("one", "other", "lo", "hi", "word")
        return pd.DataFrame(
            [
                {"change": row["label"], "metric": name, **{key: found[key] for key in kept}}
                for row in self._data.manifest.get("what_if") or []
                for name, found in row["metrics"].items()
            ]
        )


def run(
    scenario: Source,
    values: Mapping[str, Any] | None = None,
    *,
    evictions: Policies | None = None,
    routers: Policies | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    jobs: int = -1,
    backend: str = "local",
    address: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Results:
    """Simulate one scenario.

    :param scenario: a file, a bundled name, or what ``load_scenario`` gave.
    :param values: by dotted key.
    :param evictions: eviction policies of your own, such as ``{"mine": Mine}``: classes by the names that
        ``cache.eviction`` may then have (docs/own-policy.md). ``routers``: the same for ``router.policy``.
    :param out: a run directory to keep; one that holds this run already is read, not simulated.
    :param jobs: worker processes; -1: one for each core.
    :param backend: ``local``, ``dask`` or ``ray``; ``address``: of a cluster that is there already.
    :param progress: called with the tasks done and all there are.
    :raises InputError: if the scenario can't be simulated.
    """
    return _study(
        _loaded(scenario, values, seed, Given.of(evictions, routers)),
        [{}],
        out,
        _pool(backend, address, jobs),
        progress,
    )


def sweep(
    scenario: Source,
    over: Mapping[str, Iterable[Any]] | None = None,
    values: Mapping[str, Any] | None = None,
    *,
    evictions: Policies | None = None,
    routers: Policies | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    jobs: int = -1,
    backend: str = "local",
    address: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Results:
    """Simulate every combination of values; parameters as for ``run``.

    :param over: values by dotted key; None: the scenario's ``sweep`` block.
    """
    from sim.studies.sweep import grid

    loaded = _loaded(scenario, values, seed, Given.of(evictions, routers))
    axes = None if over is None else {key: list(values) for key, values in over.items()}
    return _study(loaded, grid(loaded, axes), out, _pool(backend, address, jobs), progress)


def plan(
    scenario: Source,
    values: Mapping[str, Any] | None = None,
    *,
    minimize: Mapping[str, Sequence[Any]] | None = None,
    maximize: Mapping[str, Sequence[Any]] | None = None,
    what_if: bool = False,
    evictions: Policies | None = None,
    routers: Policies | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    jobs: int = -1,
    backend: str = "local",
    address: str | None = None,
    progress: Progress = lambda done, total: None,
) -> PlanResults:
    """Find the smallest or largest value that meets the SLO; other parameters as for ``run``.

    :param minimize, maximize: range by dotted key, ``(first, last)`` or ``(first, last, step)``; neither: the
        scenario's ``plan`` block.
    :param what_if: also try one change at a time at the answer; ``progress`` counts these.
    """
    from sim.studies.execution import Execution
    from sim.studies.planning.plan_study import make_plan

    loaded = _loaded(scenario, values, seed, Given.of(evictions, routers))
    if minimize is not None or maximize is not None:
        loaded = loaded.with_values(_question(minimize, maximize))
    with _folder(out) as folder, _pool(backend, address, jobs) as pool:
        planned = make_plan(loaded, folder, Execution(pool, on_progress=progress), and_what_if=what_if)
    return PlanResults(read_run(planned.path), kept=out is not None)


class ComparisonResults:
    """Two runs side by side, under the same traffic where their scenarios allow it.

    :ivar comparison: pairs of points with the difference of every metric.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    @property
    def answer(self) -> str:
        """Whether the second run is better, in one sentence."""
        from reports.text.comparison_text import headline

        return headline(self.comparison)

    @property
    def differences(self) -> pd.DataFrame:
        """One row for each pair of points and metric: the swept keys, metric, one, other, change, lo, hi, word."""
        import pandas as pd

        kept = ("one", "other", "change", "lo", "hi", "word")
        return pd.DataFrame(
            [
                {**pair.set, "metric": name, **{key: getattr(found, key) for key in kept}}
                for pair in self.comparison.pairs
                for name, found in pair.differences.items()
            ]
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.answer}>"


def compare(one: Results | str | Path, other: Results | str | Path) -> ComparisonResults:
    """Compare two runs: is the second one better?

    :param one, other: what ``run``, ``sweep`` or ``plan`` returned, or run directories.
    :raises InputError: if a run can't be read, or no points of the two belong together.
    """
    from reports.answers.run_comparison import compare_runs

    runs = [read_run(each.path if isinstance(each, Results) else Path(each)) for each in (one, other)]
    return ComparisonResults(compare_runs(*runs))


def _question(
    minimize: Mapping[str, Sequence[Any]] | None, maximize: Mapping[str, Sequence[Any]] | None
) -> dict[str, Any]:
    if minimize and maximize:
        raise InputError(
            "a plan needs exactly one of minimize and maximize", key="maximize", hint="give either minimize or maximize"
        )
    name, asked = ("minimize", minimize) if minimize else ("maximize", maximize)
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


def _loaded(scenario: Source, values: Mapping[str, Any] | None, seed: int | None, given: Given) -> LoadedScenario:
    if not isinstance(scenario, LoadedScenario):
        loaded = _load(str(scenario), (), seed, given=given)
        return loaded.with_values(values) if values else loaded
    loaded = scenario.with_policies(given) if given.evictions or given.routers else scenario
    changed = {**(values or {}), **({} if seed is None else {"run.seed": seed})}
    return loaded.with_values(changed) if changed else loaded


def _pool(backend: str, address: str | None, jobs: int) -> AbstractContextManager[Pool]:
    from sim.studies.backends.backend_choice import choose_backend, open_pool

    return open_pool(choose_backend([backend] if address is None else [backend, address]), jobs)


def _study(
    loaded: LoadedScenario,
    sets: list[dict[str, Any]],
    out: str | Path | None,
    opened: AbstractContextManager[Pool],
    progress: Progress,
) -> Results:
    from sim.studies.execution import Execution
    from sim.studies.sweep import run_study

    with _folder(out) as folder, opened as pool:
        finished = run_study(loaded, sets, folder, Execution(pool, on_progress=progress))
    return Results(read_run(finished.path), kept=out is not None)


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


def _terms(data: RunData) -> dict[str, float]:
    from reports.formatting import read_terms

    return read_terms((data.manifest.get("scenario") or {}).get("slo"))


def _metric(point: Point, name: str) -> Metric:
    if name not in point.metrics:
        raise InputError("no such metric", key=name, allowed=", ".join(point.metrics))
    return point.metrics[name]


def _frame(rows: list[tuple[str, Metric]]) -> pd.DataFrame:
    import pandas as pd

    columns = ("value", "lo", "hi", "unit", "settled", "note")
    data = [{column: getattr(metric, column) for column in columns} for _, metric in rows]
    return pd.DataFrame(data, index=pd.Index([name for name, _ in rows], name="metric"))


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
