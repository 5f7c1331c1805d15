"""Swept keys as axes: which values they take, in what order, and how they read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reports.formatting import is_counted, key_words, number, percent, singular
from sim.results.point import Point
from sim.spec.engines import engine_words
from sim.spec.units import human_bytes, human_seconds, quantities

_NAMING = ("law", "process", "policy", "name", "serve")
_TENANT = re.compile(r"(?<=^tenants\.)\d+(?=\.)")
_SEPARATORS = "/-_. ,:("
_SHARED = 4
"""Letters that labels share from which on it is shorter without them."""
_LOG_SPAN = 20.0
"""An axis whose values span more than this factor is logarithmic."""


@dataclass(frozen=True)
class Axis:
    """One swept key.

    :ivar key: dotted path as in the scenario.
    :ivar words: the key in words.
    :ivar kind: ``number``, ``rate``, ``share``, ``bytes``, ``seconds``, or ``category``.
    :ivar values: the distinct values as swept, ascending; categories in the order of the run.
    :ivar places: where each value stands on the axis; categories at 0, 1, 2, …
    """

    key: str
    words: str
    kind: str
    values: tuple[Any, ...]
    places: tuple[float, ...]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {_identity(value): i for i, value in enumerate(self.values)}

    @property
    def numeric(self) -> bool:
        """Whether the values are quantities."""
        return self.kind != "category"

    @property
    def counted(self) -> bool:
        """Whether the key follows its value in words: ``64 GPU slots``."""
        return self.kind == "number" and is_counted(self.words)

    @property
    def log(self) -> bool:
        """Whether the values span so much that a logarithmic axis reads better."""
        return self.numeric and self.places[0] > 0 and self.places[-1] > _LOG_SPAN * self.places[0]

    def place(self, point: Point) -> float:
        """Return where a point stands on this axis."""
        return self.places[self.index(point)]

    def index(self, point: Point) -> int:
        """Return which of the values a point has."""
        return self._index[_identity(point.set.get(self.key))]

    def label(self, value: Any) -> str:
        """Return a swept value as the reader knows it: ``34.2/s``, ``1,000``, ``lru``."""
        if isinstance(value, str):
            return engine_words(value.strip()) if self.key == "fleet.engine" else value.strip()
        if isinstance(value, bool):
            return "on" if value else "off"
        if value is None:
            return "null"
        if isinstance(value, (int, float)):
            return number(value) if abs(value) < 1e15 and float(value).is_integer() else f"{value:,.6g}"
        if isinstance(value, Mapping):
            # A law's name says what it is; its parameters need theirs.
            name, *rest = [self._part(*each) for each in value.items()] or [""]
            return f"{name} ({', '.join(rest)})" if rest else name
        if isinstance(value, (list, tuple)):
            return ", ".join(self.label(item) for item in value)
        return str(value)

    def _part(self, key: str, value: Any) -> str:
        """Return one key of a section with its value: ``burst 20,000``, ``full: queue``."""
        joint = ": " if isinstance(value, str) and value.isalpha() else " "
        return self.label(value) if key in _NAMING else f"{key}{joint}{self.label(value)}"

    def short_labels(self, most: int) -> list[str]:
        """Return the labels of all values, cut to this many letters; what all share goes first."""
        return _short([self.label(value) for value in self.values], most)

    def short_label(self, point: Point, most: int) -> str:
        """Return the short label of a point's value."""
        return self.short_labels(most)[self.index(point)]

    def point_label(self, point: Point) -> str:
        """Return the label of a point's value."""
        return self.label(point.set.get(self.key))

    def point_phrase(self, point: Point) -> str:
        """Return a point's value with the key in words."""
        return self.phrase(point.set.get(self.key))

    def phrase(self, value: Any) -> str:
        """Return a value with its key in words: ``64 GPU slots``, ``arrival rate 25/s``."""
        label = self.label(value)
        if value is None and "." not in self.words:
            return f"no {self.words}"
        if self.counted:
            label = "no" if label == "0" and self.words.startswith("replicas of ") else label
            return f"{label} {singular(self.words) if label == '1' else self.words}"
        return f"{self.words} {label}"

    def tick(self, place: float) -> str:
        """Return the label of any place on a numeric axis."""
        if self.kind == "bytes":
            return human_bytes(place)
        if self.kind == "seconds":
            return human_seconds(place)
        if self.kind == "share":
            return percent(place)
        text = number(place) if abs(place) >= 1000 else f"{place:.6g}"
        return f"{text}/s" if self.kind == "rate" else text


def _identity(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def make_axis(key: str, points: Sequence[Point]) -> Axis:
    """Build the axis of one swept key from the points that were run."""
    distinct = {_identity(point.set.get(key)): point.set.get(key) for point in points}
    values = list(distinct.values())
    names = {str(place): tenant.name for place, tenant in enumerate(points[0].tenants)} if points else {}
    found, words = quantities(values), key_words(_TENANT.sub(lambda it: names.get(it[0], it[0]), key))
    if found is None:
        return Axis(key, words, "category", tuple(values), tuple(float(i) for i in range(len(values))))
    kind, numbers = found
    order = sorted(range(len(values)), key=lambda i: numbers[i])
    return Axis(key, words, kind, tuple(values[i] for i in order), tuple(float(numbers[i]) for i in order))


def make_axes(points: Sequence[Point]) -> list[Axis]:
    """Return the axes along which the points differ, in the order of the sweep."""
    keys = list(dict.fromkeys(key for point in points for key in point.set))
    axes = [make_axis(key, points) for key in keys]
    return [axis for axis in axes if len(axis.values) > 1]


def in_order(points: Sequence[Point], axes: Sequence[Axis]) -> list[Point]:
    """Return the points sorted along the axes, the first axis slowest."""
    return sorted(points, key=lambda point: tuple(axis.index(point) for axis in axes))


def point_words(point: Point, axes: Sequence[Axis]) -> str:
    """Return a point's swept values in words: ``arrival rate 34.2/s, 64 GPU slots``."""
    return ", ".join(axis.point_phrase(point) for axis in axes) or "this run"


def label_of(point: Point, axes: Sequence[Axis]) -> str:
    """Return a point's swept values: quantities with their key in words, names as they are."""
    return ", ".join(axis.point_phrase(point) if axis.numeric else axis.point_label(point) for axis in axes)


def shorten(text: str, most: int) -> str:
    """Return a text cut to this many letters, with an ellipsis where something was cut."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _short(labels: Sequence[str], most: int) -> list[str]:
    """Return labels cut to this many letters: where several begin alike, that goes first."""
    if max(map(len, labels)) <= most:
        return list(labels)
    same = next((i for i, letters in enumerate(zip(*labels, strict=False)) if len(set(letters)) > 1), 0)
    shared = labels[0][:same]
    for marks in (",(", _SEPARATORS):  # a whole part of a section, or else a whole word
        cut = max(shared.rfind(mark) + 1 for mark in marks)
        ends = [label if cut < _SHARED else f"…{label[cut:].strip()}" for label in labels]
        found = [shorten(end if "(" in end else end.rstrip(")"), most) for end in ends]
        if cut >= _SHARED and len(set(found)) == len(found):
            return found
    for one in {each for each in found if 1 < found.count(each) < len(found)}:
        alike = [i for i, each in enumerate(found) if each == one]
        for i, label in zip(alike, _short([labels[i] for i in alike], most), strict=True):
            found[i] = label
    return found


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most ``most`` items, evenly spaced, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
