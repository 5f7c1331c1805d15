"""Times of day in a scenario, such as ``at: 12:00``: they count from ``workload.start``."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from sim.spec.base import located
from sim.spec.units import TIME_OF_DAY_PATTERN

_TIME_OF_DAY = re.compile(TIME_OF_DAY_PATTERN)
_DAY_S = 86400


def parse_time_of_day(text: object) -> int | None:
    """Return the seconds since midnight of a text such as ``8:30`` or ``08:30:15``; None: it isn't one."""
    found = _TIME_OF_DAY.match(text.strip()) if isinstance(text, str) else None
    return None if found is None else int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3] or 0)


def _checked(value: object) -> object:
    if parse_time_of_day(value) is None:
        raise located("", "not a time of day", got=value, allowed="such as 08:00 or 23:30:15")
    return value


TimeOfDay = Annotated[
    str,
    BeforeValidator(_checked),
    WithJsonSchema({"type": "string", "pattern": TIME_OF_DAY_PATTERN, "examples": ["08:00"]}),
]
"""A time of day on a 24-hour clock."""


def counted_from_start(data: Any) -> Any:
    """Return a scenario's plain data with times of day as times since its start; an earlier one is the next day's.

    Data that is no valid scenario comes back as it is: checking it is another's work.

    :raises PydanticCustomError: where a time of day has no ``workload.start`` to count from.
    """
    if not isinstance(data, dict):
        return data
    workload = data.get("workload")
    given = workload.get("start") if isinstance(workload, dict) else None
    start = parse_time_of_day(given)
    if given is not None and start is None:
        return data
    counted = dict(data)
    for section in ("rollouts", "faults"):
        if isinstance(data.get(section), (list, tuple)):
            counted[section] = [
                _counted(change, "at", start, f"{section}.{number}") for number, change in enumerate(data[section])
            ]
    if isinstance(data.get("tenants"), (list, tuple)):
        counted["tenants"] = [
            steps_from_start(tenant, start, f"tenants.{number}") for number, tenant in enumerate(data["tenants"])
        ]
    fleet = data.get("fleet")
    autoscale = fleet.get("autoscale") if isinstance(fleet, dict) else None
    if isinstance(fleet, dict) and isinstance(autoscale, dict):
        entries = autoscale.get("schedule")
        if isinstance(entries, (list, tuple)):
            within = "fleet.autoscale.schedule"
            entries = [_counted(entry, "at", start, f"{within}.{number}") for number, entry in enumerate(entries)]
            counted["fleet"] = {**fleet, "autoscale": {**autoscale, "schedule": entries}}
    if isinstance(workload, dict):
        arrivals = _counted(workload.get("arrivals"), "peak_at", start, "workload.arrivals")
        arrivals = steps_from_start(arrivals, start, "workload.arrivals")
        counted["workload"] = {**workload, "arrivals": arrivals} if "arrivals" in workload else workload
    return counted


def _counted(table: Any, key: str, start: int | None, within: str) -> Any:
    """Return a table whose ``key`` counts from the start; as it is where it has no time of day there."""
    time = parse_time_of_day(table.get(key)) if isinstance(table, dict) else None
    if time is None:
        return table
    if start is None:
        raise _without_start(f"{within}.{key}", table[key], "a time since the start of the run, such as 10 min")
    return {**table, key: f"{(time - start) % _DAY_S} s"}


def _without_start(key: str, got: object, other: str) -> PydanticCustomError:
    hint = f'give workload.start: "08:00", or {other}'
    return located(key, "a time of day needs to know when the run starts", got=got, hint=hint)


def steps_from_start(table: Any, start: int | None, within: str) -> Any:
    """Return a table whose steps have lengths and begin with the run, in place of times of day at which they begin."""
    steps = table.get("steps") if isinstance(table, dict) else None
    if not isinstance(steps, (list, tuple)) or not any(isinstance(step, dict) and "at" in step for step in steps):
        return table
    begins: dict[int, dict[str, Any]] = {}
    for number, step in enumerate(steps):
        key, got = f"{within}.steps.{number}.at", step.get("at") if isinstance(step, dict) else None
        time = parse_time_of_day(got)
        if time is None or "time" in step:
            what = "a step begins at a time of day, or has a time that it lasts"
            raise located(key, what, got=got, allowed='at: "08:00" in every step or in none')
        if start is None:
            raise _without_start(key, got, "the time that each step lasts")
        if (time - start) % _DAY_S in begins:
            raise located(key, "another step begins at that time", got=got)
        begins[(time - start) % _DAY_S] = {name: value for name, value in step.items() if name != "at"}
    order = sorted(begins)
    counted = [{**begins[at], "time": f"{end - at} s"} for at, end in zip(order, [*order[1:], _DAY_S], strict=True)]
    under_way = [{**begins[order[-1]], "time": f"{order[0]} s"}] if order[0] else []
    return {**table, "steps": [*under_way, *counted]}
