"""What holding a rollout back avoided, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reports.formatting import metric_words, percent, show
from reports.text.metric_text import signed
from sim.results.model import Count, HeldBack, HeldBackRollout, MetricChange
from sim.results.point import Point

_SHORT = {"clearly better": "better", "clearly worse": "worse"}
_SHOWN = ("rollout_ttft_p99_s", "rollout_e2e_p99_s", "rollout_loads")


def held_back_sentences(points: Sequence[Point]) -> list[str]:
    """Return which rollouts were held back and what that avoided, the most important first; nothing where none is."""
    found = [point for point in points if point.held_back]
    if not found:
        return []
    point = found[0]
    held = point.held_back
    assert held is not None, "something is held back there"
    where = "" if len(found) == len(points) else f" at {len(found)} of {len(points):,} points"
    answered, total = held.answered, max(1, held.requests)
    count = f"{answered.value:,.0f} of {total:,} requests, {percent(answered.value / total)}"
    return [
        f"Held back{where}: {'; '.join(why_held_back(row) for row in held.rollouts)}. "
        f"The version held back would have answered {count}.",
        f"If it had been rolled out: {_changes(held)}.",
    ]


def why_held_back(row: HeldBackRollout) -> str:
    """Return which rollout was held back, and what the first failing version shows."""
    failing = [each for each in row.vetted if not each["passes"]]
    found = [f"{each['path']} {_shows(each['findings'])}" for each in failing]
    more = f" and {len(found) - 1} more fail" if len(found) > 1 else ""
    return f"rollouts.{row.rollout}, {found[0]}{more}"


def _shows(findings: Sequence[Mapping[str, Any]]) -> str:
    """Return the surest finding; what fails without one could not be judged."""
    return f"shows {findings[0]['mode']} ({findings[0]['confidence']})" if findings else "can't be judged"


def _changes(held: HeldBack) -> str:
    phrases = []
    for name in _SHOWN:
        found = held.metrics.get(name)
        if found is not None and found.one is not None and found.other is not None:
            change = f" ({clear_change(name, found)})" if name != "rollout_loads" else ""
            words = metric_words(name).removesuffix(" during")
            phrases.append(f"{words} {show(name, found.one)} → {show(name, found.other)}{change}")
    return ", ".join(phrases) or "nothing was measured"


def clear_change(name: str, found: MetricChange) -> str:
    """Return which way a metric would have changed, with the interval; ``no clear change`` where that is open."""
    if found.lo is None or found.hi is None:
        return "one replication gives no interval"
    word = _SHORT.get(found.word)
    between = f"{signed(name, found.lo, found.unit)} to {signed(name, found.hi, found.unit)}"
    return f"{word}: {between}" if word else "no clear change"


def count_bounds(count: Count) -> str:
    """Return the interval of a count, in brackets; empty where there is none."""
    return "" if count.lo is None else f" ({count.lo:,.0f} to {count.hi:,.0f})"
