"""What the verbs of ``sim.api`` return: the points of a run directory as numbers, tables and words."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.errors import InputError
from sim.results.point import Metric, Point
from sim.results.run_directory.headroom_record import Headroom
from sim.results.run_directory.store import RunData
from sim.results.verdict import MET, NO_SLO, verdict

if TYPE_CHECKING:
    import pandas as pd

    from reports.document import Report
    from sim.studies.compare.plans import PlanDiff
    from sim.studies.compare.study import Comparison
    from sim.studies.run.answer import Answer


class Results:
    """What a run, a sweep or a plan left: its points, as numbers, tables and words.

    :ivar path: the run directory; a temporary one where no ``out`` was given, gone with this object.
    :ivar points: one for every combination of swept values; one for a run.
    :ivar reused: how many of them were there already; ``unchanged``: whether all were, and the folder is as it was.
    """

    def __init__(self, data: RunData, *, kept: bool, reused: int = 0, unchanged: bool = False) -> None:
        self.data, self.reused, self.unchanged = data, reused, unchanged
        if not kept:
            weakref.finalize(self, shutil.rmtree, data.path.parent, ignore_errors=True)
        self.path = data.path
        self.points: list[Point] = data.points
        self._terms = _terms(data)

    @property
    def headroom(self) -> Headroom | None:
        """At what multiple of the traffic the SLO fails; None where that was not simulated."""
        return self.data.headroom

    @property
    def point(self) -> Point:
        """The point of a run; of a plan its answer; of a sweep the one to choose where there is a choice."""
        from sim.studies.run.findings import sweep_focus

        return self.points[0] if len(self.points) == 1 else sweep_focus(self.points, self._terms)

    @property
    def metrics(self) -> pd.DataFrame:
        """One row for each metric of ``point``: value, lo, hi, unit, settled, note."""
        import pandas as pd

        columns = ("value", "lo", "hi", "unit", "settled", "note")
        known = {name: metric for name, metric in self.point.metrics.items() if metric.applies}
        rows = [{column: getattr(metric, column) for column in columns} for metric in known.values()]
        return pd.DataFrame(rows, index=pd.Index(list(known), name="metric"))

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
        from sim.studies.run.report import run_answer

        return run_answer(self.data)

    @property
    def meets_slo(self) -> bool | None:
        """Whether every point meets every term of the SLO, and of its tenants', with its interval; None without any."""
        words = {verdict(point, self._terms) for point in self.points}
        return None if words == {NO_SLO} else words == {MET}

    def value(self, name: str) -> float | None:
        """Return a metric's value at ``point``, in its unit; None where it was not measured.

        :raises InputError: if there is no such metric.
        """
        return _metric(self.point, name).value

    def table(self, *names: str) -> pd.DataFrame:
        """Return one row for each point, with the swept keys as index and the values of these metrics.

        :param names: of metrics; none: all that every point has.
        :raises InputError: if there is no such metric.
        """
        import pandas as pd

        names = names or tuple(n for n in self.point.metrics if all(n in point.metrics for point in self.points))
        rows = [{name: _metric(point, name).value for name in names} for point in self.points]
        keys = list(dict.fromkeys(key for point in self.points for key in point.set))
        if not keys:
            return pd.DataFrame(rows)
        columns = [[_hashable(point.set.get(key)) for point in self.points] for key in keys]
        index = pd.MultiIndex.from_arrays(columns, names=keys) if len(keys) > 1 else pd.Index(columns[0], name=keys[0])
        return pd.DataFrame(rows, index=index)

    def document(self) -> Report:
        """Return the report as a value: what the terminal prints, and what the page shows."""
        from sim.studies.run.report import run_report

        return run_report(self.data)

    def report(self) -> Path:
        """Write ``report.html`` into the run directory and return its path."""
        from reports.render.html import write

        return write(self.document(), self.path)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the answer and a table, as a terminal shows them."""
        from reports.render.html import snippet

        return snippet(self.document())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.data.manifest.get('name')}: {self.answer.headline}>"


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
        from sim.studies.plan.findings import PlanReading

        return PlanReading(self.data).chosen

    @property
    def answer(self) -> Answer:
        """The answer in words, as the report's top box has it."""
        from sim.studies.plan.findings import plan_answer

        return plan_answer(self.data)

    def document(self) -> Report:
        """Return the report as a value: what the terminal prints, and what the page shows."""
        from sim.studies.plan.report import plan_report

        return plan_report(self.data)

    @property
    def looks(self) -> pd.DataFrame:
        """What the search looked at, in order."""
        import pandas as pd

        looks = self.data.manifest["plan"]["looks"]
        return pd.DataFrame([{**look.pop("set"), **look} for look in [dict(each) for each in looks]])

    @property
    def grades(self) -> pd.DataFrame:
        """How likely each design that was simulated meets the SLO, the most wanted first."""
        import pandas as pd

        return pd.DataFrame(
            [{**each.set, "verdict": each.verdict, "probability": each.probability} for each in self.data.plan.grades]
        )

    @property
    def what_if(self) -> pd.DataFrame:
        """One row for each change and metric that was tried: change, metric, one, other, lo, hi, word."""
        import pandas as pd

        kept = ("one", "other", "lo", "hi", "word")
        return pd.DataFrame(
            [
                {"change": row["label"], "metric": name, **{key: found[key] for key in kept}}
                for row in self.data.manifest.get("what_if") or []
                for name, found in row["metrics"].items()
            ]
        )


class ComparisonResults:
    """Two runs side by side, under the same traffic where their scenarios allow it.

    :ivar comparison: pairs of points with the difference of every metric.
    :ivar plans: what changes in what two plans recommend; ``comparison`` is that of these designs.
    """

    def __init__(self, comparison: Comparison, plans: PlanDiff | None = None) -> None:
        self.comparison, self.plans = comparison, plans

    @property
    def answer(self) -> str:
        """Whether the second run is better, or what changes in what is recommended, in one sentence."""
        return self.document().headline

    def document(self, command: str = "") -> Report:
        """Return the report as a value: what the terminal prints, and what the page shows.

        :param command: the command that makes it again.
        """
        from sim.studies.compare.plans import plans_report
        from sim.studies.compare.report import compare_report

        return compare_report(self.comparison, command) if self.plans is None else plans_report(self.plans, command)

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


def _terms(data: RunData) -> dict[str, float]:
    from reports.formatting import read_terms

    return read_terms((data.manifest.get("scenario") or {}).get("slo"))


def _metric(point: Point, name: str) -> Metric:
    if name not in point.metrics:
        raise InputError("no such metric", key=name, allowed=", ".join(point.metrics))
    return point.metrics[name]


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
