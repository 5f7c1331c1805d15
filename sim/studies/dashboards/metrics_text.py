"""Reads the text format of Prometheus, as ``/metrics`` of an engine and ``/federate`` of a Prometheus server give it.

https://prometheus.io/docs/instrumenting/exposition_formats/. Only samples matter here: ``# HELP`` and ``# TYPE`` are
comments, and what they say of the few metrics that loraplan knows is fixed by their names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

Labels = tuple[tuple[str, str], ...]
"""Labels of a series, by name."""

Key = tuple[str, Labels]
"""A series: the metric's name and its labels."""

LINE_LETTERS = 64 << 10
"""Characters of a line, at most; longer ones are left out."""

_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*+)[ \t]*+(?:\{(.*)\})?[ \t]*+([^\s{}]+)(?:[ \t]+(-?[0-9]{1,16}))?[ \t]*")
_LABEL = re.compile(r'\s*+([a-zA-Z_]\w*+)\s*+=\s*+"((?:[^"\\]|\\.)*+)"\s*+(?:,|$)')
_ESCAPED = re.compile(r"\\(.)")
_UNESCAPED = {"n": "\n"}


@dataclass(frozen=True, slots=True)
class MetricSample:
    """One line of the text format.

    :ivar at_s: seconds since 1970, where the line has a time stamp; engines write none, ``/federate`` does.
    """

    key: Key
    value: float
    at_s: float | None = None


def read_metrics(text: str) -> Iterator[MetricSample]:
    """Yield the samples of a page; lines that are none are left out."""
    for line in text.splitlines():
        if len(line) > LINE_LETTERS or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            continue
        name, inner, number, stamp = found.groups()
        labels = _labels(inner or "")
        value = _number(number)
        if labels is not None and value is not None:
            yield MetricSample((name, labels), value, None if stamp is None else int(stamp) / 1000)


def _number(text: str) -> float | None:
    """Return a value that counts and measures can have: finite and not negative; None for others."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _labels(text: str) -> Labels | None:
    """Return the labels between the braces, in the order of their names; None where they are cut short."""
    found: dict[str, str] = {}
    place = 0
    while place < len(text):
        label = _LABEL.match(text, place)
        if label is None:
            return None if text[place:].strip() else tuple(sorted(found.items()))
        name, value = label.groups()
        found[name] = _ESCAPED.sub(lambda escaped: _UNESCAPED.get(escaped[1], escaped[1]), value)
        place = label.end()
    return tuple(sorted(found.items()))
