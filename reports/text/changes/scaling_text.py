"""What an autoscaler did, in sentences."""

from __future__ import annotations

from reports.answers.bottleneck import Evidence, limits
from reports.formatting import number, percent
from sim.results.point import Point
from sim.spec.units import human_seconds


def scaling_sentences(point: Point) -> list[str]:
    """Return how many replicas there were, and what their starts did; nothing of a fleet that stays as it is.

    How many are late is left out where cold starts limit the point: then ``limit_sentence`` has it.
    """

    def value(name: str) -> float | None:
        metric = point.metrics.get(name)
        return None if metric is None else metric.value

    mean = value("mean_replicas")
    if mean is None:
        return []
    cold_s, loads = value("cold_start_mean_s"), value("new_replica_loads")
    if cold_s is None or loads is None:
        return [f"There are {number(mean)} replicas on average, and none starts in the measured time."]
    started = number(value("replicas_started") or 0.0)
    each = f"each after {human_seconds(cold_s)}" if cold_s else "each at once"
    said = [
        f"There are {number(mean)} replicas on average; in the measured time {started} start, {each}, and make "
        f"{number(loads)} loads in their first minute."
    ]
    late, otherwise = value("late_while_starting"), value("late_otherwise")
    said_already = any(limit.evidence is Evidence.COLD_STARTS for limit in limits(point))
    if late is not None and otherwise is not None and not said_already:
        said.append(
            f"{percent(late)} of the requests that arrive while a replica starts are late, and {percent(otherwise)} of "
            "the others."
        )
    return said
