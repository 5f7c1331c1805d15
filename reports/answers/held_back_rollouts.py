"""What holding a rollout avoided, in sentences and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reports.charts.svg import Table
from reports.formatting import metric_words, percent, show
from sim.results.model import Count, HeldBack, HeldBackRollout, MetricChange
from sim.results.point import Point

_SHORT = {"clearly better": "better", "clearly worse": "worse"}
_TOLD = ("rollout_ttft_p99_s", "rollout_e2e_p99_s", "rollout_loads")


def is_held(points: Sequence[Point]) -> bool:
    """Return whether a rollout is held at one of these points."""
    return any(point.held_back for point in points)


def tell_held(points: Sequence[Point]) -> list[str]:
    """Return which rollouts are held and what that avoided, the most telling first; nothing where none is."""
    found = [point for point in points if point.held_back]
    if not found:
        return []
    point = found[0]
    held = point.held_back
    assert held is not None, "something is held back there"
    where = "" if len(found) == len(points) else f" at {len(found)} of {len(points):,} points"
    return [
        f"Held back{where}: {'; '.join(_why(row) for row in held.rollouts)}. {_answered(held)}",
        f"Had it gone out in the meantime: {_changes(held)}.",
    ]


def held_table(point: Point, where: str) -> Table | None:
    """Return what happened beside what would have happened; None where nothing is held."""
    held = point.held_back
    if held is None:
        return None
    answered = held.answered
    rows = [["requests answered by the version held back", "0", f"{answered.value:,}{_between(answered)}", ""]]
    if len(held.rollouts) > 1:
        for row, each in zip(held.rollouts, held.by_rollout, strict=True):
            rows.append([f"of rollouts.{row.rollout}", "0", f"{each.value:,}{_between(each)}", ""])
    for name, found in held.metrics.items():
        if found.one is None or found.other is None:
            continue
        rows.append([metric_words(name), show(name, found.one), show(name, found.other), _change(name, found)])
    why = "; ".join(_why(row) for row in held.rollouts)
    note = (
        f"Held: {why}. Both columns are the same traffic, all replications; during: from the begin of the rollout "
        "for as long as it is observed."
    )
    return Table(f"What holding it back avoided{where}", ["", "held", "had it gone out", "change"], rows, note)


def _why(row: HeldBackRollout) -> str:
    failing = [each for each in row.vetted if not each["passes"]]
    found = [f"{each['path']} {_shows(each['findings'])}" for each in failing]
    more = f" and {len(found) - 1} more fail" if len(found) > 1 else ""
    return f"rollouts.{row.rollout}, {found[0]}{more}"


def _shows(findings: Sequence[Mapping[str, Any]]) -> str:
    """Return the surest finding; what fails without one could not be judged."""
    return f"shows {findings[0]['mode']} ({findings[0]['confidence']})" if findings else "can't be judged"


def _answered(held: HeldBack) -> str:
    answered, total = held.answered, max(1, held.requests)
    count = f"{answered.value:,} of {total:,} requests, {percent(answered.value / total)}"
    return f"The version held back would have answered {count}."


def _changes(held: HeldBack) -> str:
    told = []
    for name in _TOLD:
        found = held.metrics.get(name)
        if found is not None and found.one is not None and found.other is not None:
            change = f" ({_change(name, found)})" if name != "rollout_loads" else ""
            words = metric_words(name).removesuffix(" during")
            told.append(f"{words} {show(name, found.one)} → {show(name, found.other)}{change}")
    return ", ".join(told) or "nothing was measured"


def _change(name: str, found: MetricChange) -> str:
    from reports.answers.deltas import signed  # numpy is heavy, and the terminal's words need it here alone

    if found.lo is None or found.hi is None:
        return "one replication gives no interval"
    word = _SHORT.get(found.word)
    between = f"{signed(name, found.lo, found.unit)} to {signed(name, found.hi, found.unit)}"
    return f"{word}: {between}" if word else "no clear change"


def _between(metric: Count) -> str:
    return "" if metric.lo is None else f" ({metric.lo:,.0f} to {metric.hi:,.0f})"
