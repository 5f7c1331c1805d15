"""Readings of an engine's metrics over time: from pages of ``/metrics``, or answers of Prometheus' API."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from sim.errors import InputError
from sim.reading import MANIFEST_BYTES, brackets_fit, read_regular
from sim.spec.units import human_seconds
from sim.studies.observe.engine_metrics import (
    COUNTERS,
    CREATED,
    HISTOGRAMS,
    PROCESS_START,
    Key,
    Labels,
    MetricSample,
    counter_name,
    engine_of,
    gauge_name,
    is_of_interest,
    read_metrics,
)

# How far counters grew, and what gauges were.

Point = tuple[float, float]
"""When (seconds since 1970), and the value."""

FLEET = ("namespace", "job")
_PROCESS = ("pod", "instance", "kubernetes_pod_name")
_SERVER = (*_PROCESS, "engine", "tp_rank", "dp_rank")
_ENDING = re.compile(r"_(?:total|bucket|sum|count)$")


def server_of(labels: Labels) -> Labels:
    """Return the labels that say which engine a series is of."""
    return tuple(pair for pair in labels if pair[0] in _SERVER)


@dataclass(frozen=True)
class Readings:
    """One or more readings of the same servers.

    :ivar series: points of every series, in order of time.
    :ivar since_start: whether counters are totals since the servers' start, because there is one reading only.
    :ivar seconds: the time that growth refers to; None where nothing says it.
    :ivar timing: how that time is known, in words such as ``as --window says``.
    :ivar source: where the readings come from, in words.
    :ivar whole: whether each reading is a whole page, so that a series that it lacks did not exist.
    :ivar idle: what has metrics of an engine, but finished no request in this time; its series are left out.
    """

    series: Mapping[Key, tuple[Point, ...]]
    since_start: bool
    seconds: float | None
    timing: str
    source: str
    whole: bool = False
    idle: tuple[Labels, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Metrics that there are."""
        return frozenset(name for name, _ in self.series)

    def labels_of(self, name: str) -> Iterator[Labels]:
        """Yield the labels of every series of a metric."""
        return (labels for metric, labels in self.series if metric == name)

    def growth(self, key: Key) -> float:
        """Return by how much a counter grew; after a restart of the server it counts from 0.

        A series that is not in the first reading counts from its own first value, which may be that of a long life,
        unless ``began`` shows that it began at 0 since then.
        """
        points = self.series.get(key, ())
        if not points:
            return 0.0
        grown = points[0][1] if self.since_start or self.began(key) else 0.0
        return grown + sum(after - before if after >= before else after for (_, before), (_, after) in pairwise(points))

    def began(self, key: Key) -> bool:
        """Return whether a counter began after the first reading.

        Either its server was read before and had other labels of the metric alone, or the counter or the process says
        that it is younger than the first reading.
        """
        name, labels = key
        first_s = self.series[key][0][0]
        if first_s <= self.first_s:
            return False
        if self._seen_s["" if self.whole else name, server_of(labels)] < first_s:
            return True
        plain = tuple(pair for pair in labels if pair[0] != "le")
        created = self.series.get((_ENDING.sub("", name) + "_created", plain))
        started_s = created[-1][1] if created else self._started_s.get(_process_of(labels), 0.0)
        return started_s > self.first_s

    @cached_property
    def _seen_s(self) -> dict[tuple[str, Labels], float]:
        """When each server was first read; with the metric's name, when it first had that metric."""
        found: dict[tuple[str, Labels], float] = {}
        for (name, labels), points in self.series.items():
            for key in ((name, server_of(labels)), ("", server_of(labels))):
                found[key] = min(found.get(key, math.inf), points[0][0])
        return found

    @cached_property
    def _started_s(self) -> dict[Labels, float]:
        return {_process_of(labels): self.last((PROCESS_START, labels)) for labels in self.labels_of(PROCESS_START)}

    def total_growth(self, name: str) -> float:
        """Return the growth of all series of a metric together."""
        return sum(self.growth((name, labels)) for labels in self.labels_of(name))

    def mean_gauge(self, name: str) -> float | None:
        """Return the mean over time of a gauge, all series together; None without any."""
        sums: dict[float, float] = {}
        for labels in self.labels_of(name):
            for at_s, value in self.series[name, labels]:
                sums[at_s] = sums.get(at_s, 0.0) + value
        return math.fsum(sums.values()) / len(sums) if sums else None

    def late_servers(self, name: str) -> list[Labels]:
        """Return the first series of each server that is not in the first reading."""
        found = {server_of(labels): labels for labels in self.labels_of(name)}
        return [labels for server, labels in sorted(found.items()) if self._seen_s["", server] > self.first_s]

    def servers(self, name: str) -> int:
        """Return how many servers have a metric at a time: the median over time; at least 1."""
        found: dict[float, set[Labels]] = {}
        for labels in self.labels_of(name):
            for at_s, _ in self.series[name, labels]:
                found.setdefault(at_s, set()).add(server_of(labels))
        return math.ceil(median(map(len, found.values()))) if found else 1

    def parts(self, counter: str, label: str, without: Collection[str] = ()) -> tuple[list[str], str]:
        """Return the values of a label of a counter, and the query for the servers of that with most growth."""
        found: dict[str, list[dict[str, str]]] = {}
        grown: dict[str, float] = {}
        for labels in self.labels_of(counter):
            row = dict(labels)
            if (value := row.get(label, "")) and value not in without:
                found.setdefault(value, []).append(row)
                grown[value] = grown.get(value, 0.0) + self.growth((counter, labels))
        most = max(grown, key=grown.__getitem__, default="")
        sides = [[row for each in found for row in found[each] if (each == most) is own] for own in (True, False)]
        for name in (*FLEET, *_PROCESS, label):  # the first in which these servers differ from all others
            own, rest = ({row.get(name, "") for row in rows} for rows in sides)
            if not own & rest:
                break
        which = f'{name}{"=~" if len(own) > 1 else "="}"{"|".join(sorted(own))}"'
        return sorted(found), f'{{__name__=~"{engine_of(self.names)}:.*", {which}}}'

    def last(self, key: Key) -> float:
        """Return the last value of a series."""
        return self.series[key][-1][1]

    @cached_property
    def first_s(self) -> float:
        """When the first reading was taken."""
        return min((points[0][0] for points in self.series.values()), default=0.0)

    @property
    def times(self) -> tuple[float, ...]:
        """When readings were taken."""
        return tuple(sorted({at_s for points in self.series.values() for at_s, _ in points}))


def _process_of(labels: Labels) -> Labels:
    return tuple(pair for pair in labels if pair[0] in _PROCESS)


def gathered(rows: Iterable[tuple[Key, float, float]]) -> dict[Key, tuple[Point, ...]]:
    """Return the points of each series, sorted by time; of several at the same time the last counts.

    :param rows: series, time and value.
    """
    found: dict[Key, dict[float, float]] = {}
    for key, at_s, value in rows:
        found.setdefault(key, {})[at_s] = value
    return {key: tuple(sorted(points.items())) for key, points in found.items()}


# In what order pages of the same server were read, which a copied file doesn't show.

_APART = 0.1
"""Part of the time since the first server's start that others may have started later."""
_COUNTS = ("_total", "_bucket", "_count")
_COUNTERS = {name + end for names in (COUNTERS | HISTOGRAMS).values() for name in names for end in _COUNTS}
_MOST_FALL = 0.9


def placed(times: Sequence[float], seconds: float, *, as_given: bool) -> list[float]:
    """Return when each page was read.

    :param times: of the pages, seconds since 1970; two that are equal don't say which page was first.
    :param seconds: from the first page to the last.
    :param as_given: the pages are in order, whatever their times are.
    """
    if not as_given and len(set(times)) == len(times):
        return list(times)
    order = range(len(times)) if as_given else sorted(range(len(times)), key=times.__getitem__)
    last, gaps = max(times), len(times) - 1
    found = [last] * len(times)
    for rank, place in enumerate(order):
        found[place] = last - seconds * (gaps - rank) / gaps
    return found


def check_order(pages: Sequence[tuple[str, Mapping[Key, float], float]], option: str) -> None:
    """Refuse pages in the wrong order, or of several servers.

    Counters of one server fall when it restarts. Then its process is younger than before; where no metric shows that,
    pages are more often swapped than servers restart. Pages without labels of their servers are of several where the
    processes differ though both began before the first page, or where some counters fall while others rise.

    :param pages: their names, values and times, in the order of these.
    :raises InputError: naming two pages that are in the wrong order, or of two servers.
    """
    for (before, earlier, at_s), (after, later, _) in pairwise(pages):
        change = {key: later[key] - earlier[key] for key in earlier if key in later}
        starts = [change[key] for key in change if key[0] in (PROCESS_START, *CREATED)]
        counted = [change[key] for key in change if key[0].endswith(_COUNTS)]
        fell, rose = (sum(sign * each > 0 for each in counted) for sign in (-1, 1))
        restarted = any(start > 0 for start in starts)
        falls = any(change[key] < 0 for key in change if key[0] in _COUNTERS and not _process_of(key[1]))
        if any(start < 0 for start in starts) or (fell and not restarted and fell >= _MOST_FALL * (fell + rose)):
            problem = "counters fall from the first of these readings to the second"
            hint = "give the earlier one first, and how far they are apart: --window 10min"
        elif (falls and not restarted) or any(began_s <= at_s for began_s in _began_later(earlier, later)):
            problem = "these pages come from different servers"
            hint = "for several servers, use a range query of Prometheus, or its /federate"
        else:
            continue
        hint += "; if the server was restarted, give the later one alone"
        raise InputError(problem, key=option, got=f"{before}, {after}", hint=hint)


def _began_later(earlier: Mapping[Key, float], later: Mapping[Key, float]) -> list[float]:
    """Return when what has no label of its server began, if that is later than in an earlier page."""
    keys = (key for key in earlier if key[0] in (PROCESS_START, *CREATED) and not _process_of(key[1]))
    return [later[key] for key in keys if later.get(key, 0.0) > earlier[key]]


# Pages of text, or JSON.

PAGE_BYTES = MANIFEST_BYTES
"""Bytes of a page, at most. One of vLLM has 50 kB; a day of it every 15 s has some 50 MB of JSON."""

FORMATS = "the text of /metrics, or the JSON of Prometheus' /api/v1/query_range or /api/v1/query"
OPTION = "--prometheus"


@dataclass(frozen=True, slots=True)
class MetricPage:
    """What was read once from a file or an address.

    :ivar name: the file or address.
    :ivar at_s: when it was read, seconds since 1970; of a file, when it was last changed.
    :ivar is_file: whether that is a guess, since a copied file may be younger than its content.
    """

    name: str
    content: bytes
    at_s: float
    is_file: bool


def page_of_file(path: Path) -> MetricPage:
    """Read a file.

    :raises InputError: if it can't be read.
    """
    try:
        return MetricPage(str(path), read_regular(path, PAGE_BYTES), path.stat().st_mtime, is_file=True)
    except OSError as error:
        raise InputError("can't be read", key=OPTION, got=str(path), hint=error.strerror) from None


def readings_of(pages: Sequence[MetricPage], window_s: float | None = None) -> Readings:
    """Return what pages of the same servers say.

    One page of text has totals since the start, several have growth between them. An answer of the API has its own
    times, and several answers are for several metrics.

    :param pages: several pages of text without time stamps count in this order if there is a ``window_s``.
    :param window_s: the time that the growth is for, if the user says it.
    :raises InputError: naming what can't be read, and what can be.
    """
    is_json = [page.content.lstrip()[:1] in (b"{", b"[") for page in pages]
    if any(is_json) and not all(is_json):
        raise InputError(
            "text and JSON don't go together", key=OPTION, got=", ".join(page.name for page in pages), allowed=FORMATS
        )
    found = _serving(_from_answers(pages, window_s) if all(is_json) else _from_text(pages, window_s))
    if not any(name != PROCESS_START for name in found.names):
        first = pages[0].content.decode("utf-8", errors="replace").strip().split("\n", 1)[0]
        raise InputError("has no metrics of vLLM or SGLang", file=pages[0].name, got=first, allowed=FORMATS)
    return found


def _serving(readings: Readings) -> Readings:
    """Return the readings without those of what finished no request: a router, or a server that has no traffic."""
    name = counter_name("finished", readings.names) or ""
    busy = {_process_of(labels) for labels in readings.labels_of(name) if readings.growth((name, labels)) > 0}
    for role in ("running", "waiting"):  # a server at work finishes its requests later; a router names each server
        gauge = gauge_name(role, readings.names) or ""
        own = (labels for labels in readings.labels_of(gauge) if "server" not in dict(labels))
        busy |= {_process_of(labels) for labels in own if any(value for _, value in readings.series[gauge, labels])}
    if not busy or () in busy:  # all idle, or no labels that tell them apart
        return readings
    idle = {_process_of(labels) for metric, labels in readings.series if metric != PROCESS_START} - busy - {()}
    kept = {key: points for key, points in readings.series.items() if _process_of(key[1]) not in idle}
    return replace(readings, series=kept, idle=tuple(sorted(idle)))


def _from_text(pages: Sequence[MetricPage], window_s: float | None) -> Readings:
    values: list[dict[Key, float]] = []
    times: list[float] = []
    stamped = True
    for page in pages:
        samples = [
            sample
            for sample in read_metrics(page.content.decode("utf-8", errors="replace"))
            if is_of_interest(sample.key[0])
        ]
        stamps = [sample.at_s for sample in samples if sample.at_s is not None]
        stamped = stamped and bool(stamps)
        at_s = max(stamps) if stamps else page.at_s
        times.append(at_s)
        values.append({sample.key: sample.value for sample in samples})
    guessed = any(page.is_file for page in pages) and not stamped
    if len(pages) == 1:
        rows = [(key, times[0], value) for key, value in values[0].items()]
        source = f"one reading, {Path(pages[0].name).name}: totals since the server's start"
        return _since_start(source, rows, times[0], window_s, guessed=guessed)
    if window_s is None and max(times) <= min(times):
        raise InputError(
            "both readings have the same time",
            key=OPTION,
            got=", ".join(page.name for page in pages),
            hint="say how far they are apart: --window 10min",
        )
    seconds = max(times) - min(times) if window_s is None else window_s
    at = placed(times, seconds, as_given=window_s is not None and not stamped)
    order = sorted(range(len(pages)), key=at.__getitem__)
    read = [(pages[place].name, values[place], at[place]) for place in order]
    check_order(read, OPTION)
    restarts = [before for (before, earlier, _), (_, later, _) in pairwise(read) if _began_later(earlier, later)]
    if restarts:  # how much it counted before is lost
        name, last, at_s = read[-1]
        source = f"{Path(name).name} alone: totals since the server was restarted after {Path(restarts[-1]).name}"
        rows = [(key, at_s, value) for key, value in last.items()]
        return _since_start(source, rows, at_s, None, guessed=guessed)
    rows = [(key, at_s, value) for _, page, at_s in read for key, value in page.items()]
    timing = _timing(window_s, "the time stamps in the readings" if stamped else None, guessed=guessed)
    source = f"{len(pages)} readings and what happened in between"
    return Readings(gathered(rows), False, seconds, timing, source, whole=True)


def _since_start(
    source: str, rows: list[tuple[Key, float, float]], at_s: float, window_s: float | None, *, guessed: bool
) -> Readings:
    began = _beginnings(rows, CREATED, at_s) or _beginnings(rows, (PROCESS_START,), at_s)
    seconds = window_s
    if seconds is None and began:
        seconds = at_s - min(began)
    known = "when its counters began" if began and not guessed else None
    if seconds and began and max(began) - min(began) > _APART * seconds:
        known = "when the first server started; others started later, so the rate is too low"
    timing = _timing(window_s, known, guessed=guessed)
    return Readings(gathered(rows), True, seconds, timing, source)


def _beginnings(rows: list[tuple[Key, float, float]], names: tuple[str, ...], at_s: float) -> list[float]:
    engines = {_process_of(labels) for (name, labels), _, _ in rows if name != PROCESS_START}  # not other programs
    found = (value for (name, labels), _, value in rows if name in names and _process_of(labels) in engines)
    return [value for value in found if 0 < value < at_s]


def _timing(window_s: float | None, known: str | None, *, guessed: bool) -> str:
    if window_s is not None:
        return "as --window says"
    if guessed:
        return "by when the files were last changed; --window corrects it"
    return f"by {known}" if known else "by when they were read"


def _from_answers(pages: Sequence[MetricPage], window_s: float | None) -> Readings:
    samples = [sample for page in pages for sample in _samples_of(page) if is_of_interest(sample.key[0])]
    rows = [(sample.key, sample.at_s or 0.0, sample.value) for sample in samples]
    times = {at_s for _, at_s, _ in rows}
    span = max(times) - min(times) if times else 0.0
    if window_s is not None and span:
        raise InputError(
            "the answers say from when to when they are",
            key="--window",
            got=human_seconds(window_s),
            allowed=human_seconds(span),
            hint="leave it out, or ask Prometheus for less",
        )
    if len(times) == 1:
        source = "1 point of Prometheus: totals since the servers' start"
        return _since_start(source, rows, times.pop(), window_s, guessed=False)
    source = f"{len(times):,} points of Prometheus over {human_seconds(span)}"
    return Readings(gathered(rows), False, span or None, _timing(None, "its times", guessed=False), source)


def _samples_of(page: MetricPage) -> Iterator[MetricSample]:
    def wrong(problem: str, key: str, got: object, allowed: str, hint: str | None = None) -> InputError:
        return InputError(problem, file=page.name, key=key, got=got, allowed=allowed, hint=hint)

    try:
        if not brackets_fit(page.content):
            raise ValueError("too many brackets")
        answer: Any = json.loads(page.content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON: {error}", file=page.name, allowed=FORMATS) from None
    if not isinstance(answer, dict) or answer.get("status") != "success":
        problem = answer.get("error", answer.get("status")) if isinstance(answer, dict) else type(answer).__name__
        raise wrong("no answer of Prometheus", "status", problem, "success")
    data = answer.get("data")
    data = data if isinstance(data, dict) else {}
    kind = data.get("resultType")
    if kind not in ("matrix", "vector"):
        raise wrong("no series", "data.resultType", kind, "matrix (query_range) or vector (query)")
    result = data.get("result")
    if not isinstance(result, list):
        raise wrong("no series", "data.result", result, "a list")
    for place, series in enumerate(result):
        metric = series.get("metric") if isinstance(series, dict) else None
        if not isinstance(metric, dict) or not isinstance(metric.get("__name__"), str):
            raise wrong(
                "a series without its name",
                f"data.result[{place}].metric.__name__",
                metric,
                "the name of a metric",
                'query the metrics themselves, without rate(): {__name__=~"vllm:.*"}',
            )
        labels = tuple(sorted((str(name), str(value)) for name, value in metric.items() if name != "__name__"))
        points = series.get("values", [series["value"]] if "value" in series else [])
        if not isinstance(points, list):
            raise wrong("no points", f"data.result[{place}].values", json.dumps(points), "a list of pairs")
        for point in points:
            try:
                at_s, value = float(point[0]), float(point[1])
            except (TypeError, ValueError, OverflowError, IndexError, KeyError):
                raise wrong(
                    "no point", f"data.result[{place}].values", point, 'pairs of a time and a text: [1700000000, "1"]'
                ) from None
            if math.isfinite(at_s) and math.isfinite(value) and value >= 0:
                yield MetricSample((metric["__name__"], labels), value, at_s)
