"""Turns a plan's range into the values to consider, the most wanted first."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sim.errors import ScenarioError
from sim.spec.scenario import PRICE, Plan
from sim.spec.units import repeated

MOST_WHOLE = 128
"""Size of a range of whole numbers up to which each number is considered."""
GROWTH = 0.05
"""Growth from one value to the next, where steps grow."""
MOST_VALUES = 5000

_NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*(/?\s*[A-Za-zµ%]*)\s*")


@dataclass(frozen=True, slots=True)
class Variable:
    """One key and the values it may take.

    :ivar values: as a scenario has them, the most wanted first.
    """

    key: str
    values: tuple[Any, ...]


def variables(plan: Plan) -> list[Variable]:
    """Return every key of a plan with its values; a plan for a price varies the replicas.

    :raises ScenarioError: where a range makes no sense.
    """
    keys = ["fleet.replicas"] if plan.keys == (PRICE,) else list(plan.keys)
    if plan.values is not None:
        if repeated(plan.values):
            raise ScenarioError("a value occurs twice", key="plan.values", got=list(plan.values))
        return [Variable(keys[0], tuple(plan.values))]
    assert plan.range is not None, "checked by the model"
    ranges = [plan.range] if len(keys) == 1 else list(plan.range)
    steps = [plan.step] * len(keys) if len(keys) == 1 else list(plan.step or [None] * len(keys))
    found = []
    for i, (key, ends, step) in enumerate(zip(keys, ranges, steps, strict=True)):
        where = "" if len(keys) == 1 else f".{i}"
        values = values_between(ends, step, f"plan.range{where}", f"plan.step{where}")
        found.append(Variable(key, tuple(values if plan.direction == "minimize" else reversed(values))))
    return found


def values_between(ends: Sequence[Any], step: Any, key: str, step_key: str) -> list[Any]:
    """Return all values from the first to the last end, rising.

    :param key: of the range, as errors name it; ``step_key``: of its step.
    :raises ScenarioError: where a range makes no sense.
    """
    (low, unit), (high, other) = (_parse(end, key) for end in ends)
    if unit != other:
        raise ScenarioError(
            "both ends of a range need the same unit",
            key=key,
            got=list(ends),
            hint=f"write {_text(low, unit)} and the other end in {unit or 'plain numbers'}, too",
        )
    if not low < high:
        hint = "write the lower end first" if low > high else "both ends are the same"
        raise ScenarioError("a range must rise", key=key, got=list(ends), hint=hint)
    if low < 0:
        raise ScenarioError("a range must start at 0 or above", key=key, got=list(ends))
    whole = not unit and all(isinstance(end, int) for end in ends)
    growth, width = _step(step, low, high, unit, step_key, whole=whole)
    if (math.log(high / low) / math.log1p(growth) if growth else (high - low) / width) > MOST_VALUES:
        raise ScenarioError(
            "too many values",
            key=step_key,
            got=f"{_text(low, unit)} to {_text(high, unit)} in steps of {step}",
            allowed=f"up to {MOST_VALUES:,}",
            hint="a larger step",
        )
    numbers = _growing(low, high, growth, whole=whole) if growth else _even(low, high, width)
    return [int(number) if whole else _text(number, unit) for number in numbers]


def _even(low: float, high: float, width: float) -> list[float]:
    count = int((high - low) / width + 1e-9)
    numbers = [_rounded(low + i * width) for i in range(count + 1)]
    return numbers if math.isclose(numbers[-1], high) else [*numbers, high]


def _growing(low: float, high: float, growth: float, *, whole: bool) -> list[float]:
    """Return values of three digits, each about ``growth`` larger than the one before."""
    numbers, number = [low], low
    while (number := number * (1 + growth)) < high * (1 - growth / 4):
        kept = max(round(number), numbers[-1] + 1) if whole else float(f"{number:.3g}")
        if whole and kept >= 1000:
            kept = int(float(f"{kept:.3g}"))
        if kept > numbers[-1] and kept < high:
            numbers.append(kept)
            number = max(number, kept)
    return [*numbers, high]


def _step(step: Any, low: float, high: float, unit: str, key: str, *, whole: bool) -> tuple[float, float]:
    """Return the growth between values and 0, or 0 and the distance between them."""
    if step is None:
        if whole and high - low <= MOST_WHOLE:
            return 0.0, 1.0
        if low > 0:
            return GROWTH, 0.0
        raise ScenarioError("a range from 0 needs a step", key=key.replace("step", "range"), hint="add a step")
    number, own = _parse(step, key)
    if number <= 0:
        raise ScenarioError("a step must be above zero", key=key, got=step)
    if own == "%" != unit:
        if low <= 0:
            raise ScenarioError("relative steps need a range above zero", key=key, got=step)
        return number / 100, 0.0
    if own != unit:
        raise ScenarioError(
            "a step needs the range's unit, or a percentage",
            key=key,
            got=step,
            allowed=f"such as {_text(1, unit)}, or 5%",
        )
    if whole and number != int(number):
        hint = f"write the ends as {low:.1f} and {high:.1f} where the key takes fractions"
        raise ScenarioError("a range of whole numbers needs whole steps", key=key, got=step, hint=hint)
    if number > (high - low) * (1 + 1e-9):  # perhaps meant as a value
        ends = f"{_text(low, unit)} to {_text(high, unit)}"
        raise ScenarioError(
            f"wider than the range from {ends}",
            key=key,
            got=step,
            hint="give a smaller step, or a list of values instead",
        )
    return 0.0, number


def _parse(value: Any, key: str) -> tuple[float, str]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value), ""
    match = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    if match is None or not math.isfinite(float(match[1])):
        raise ScenarioError("not a number with its unit", key=key, got=value, allowed="such as 8, 10/s or 20 GB")
    return float(match[1]), match[2].replace(" ", "")


def _rounded(number: float) -> float:
    return float(f"{number:.10g}")


def _text(number: float, unit: str) -> Any:
    if not unit:
        return int(number) if number == int(number) else _rounded(number)
    gap = "" if unit.startswith("/") or unit == "%" else " "
    return f"{number:.10g}{gap}{unit}"
