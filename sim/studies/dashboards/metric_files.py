"""Readings from pages: the text of ``/metrics``, or answers of Prometheus' API (``query_range``, ``query``)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sim.errors import InputError
from sim.reading import MANIFEST_BYTES, brackets_fit, read_regular
from sim.spec.units import human_seconds
from sim.studies.dashboards.engine_metrics import (
    CREATED,
    PROCESS_START,
    Key,
    MetricSample,
    is_of_interest,
    read_metrics,
)
from sim.studies.dashboards.readings import Readings, gathered

# In what order pages of the same server were read, which a copied file doesn't show.

_COUNTS = ("_total", "_bucket", "_count")
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


def check_order(names: Sequence[str], pages: Sequence[Mapping[Key, float]], option: str) -> None:
    """Refuse pages in the wrong order.

    Counters of one server fall when it restarts. Then its process is younger than before; where no metric shows that,
    pages are more often swapped than servers restart.

    :param names: of the pages, in the order of their times.
    :raises InputError: naming two pages between which nearly every counter falls, or the process gets older.
    """
    for (before, earlier), (after, later) in pairwise(zip(names, pages, strict=True)):
        starts = [later[key] - earlier[key] for key in earlier if key[0] in (PROCESS_START, *CREATED) and key in later]
        changed = [later[key] - earlier[key] for key in earlier if key[0].endswith(_COUNTS) and key in later]
        fell, rose = (sum(sign * change > 0 for change in changed) for sign in (-1, 1))
        restarted = any(start > 0 for start in starts)
        if any(start < 0 for start in starts) or (fell and not restarted and fell >= _MOST_FALL * (fell + rose)):
            raise InputError(
                "counters fall from the first of these readings to the second",
                key=option,
                got=f"{before}, {after}",
                hint="give the earlier one first, and how far they are apart: --window 10min; if the server was "
                "restarted, give the later one alone",
            )


PAGE_BYTES = MANIFEST_BYTES
"""Bytes of a page, at most. One of vLLM has 50 kB; a day of it every 15 s has some 50 MB of JSON."""

FORMATS = "the text of /metrics, or the JSON of Prometheus' /api/v1/query_range"
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
    found = _from_answers(pages, window_s) if all(is_json) else _from_text(pages, window_s)
    if not any(name != PROCESS_START for name in found.names):
        first = pages[0].content.decode("utf-8", errors="replace").strip().split("\n", 1)[0]
        raise InputError("has no metrics of vLLM or SGLang", file=pages[0].name, got=first, allowed=FORMATS)
    return found


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
        return _since_start(pages[0], rows, times[0], window_s, guessed=guessed)
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
    check_order([pages[place].name for place in order], [values[place] for place in order], OPTION)
    rows = [(key, at[place], value) for place in order for key, value in values[place].items()]
    timing = _timing(window_s, "the time stamps in the readings" if stamped else None, guessed=guessed)
    source = f"{len(pages)} readings and what happened in between"
    return Readings(gathered(rows), False, seconds, timing, source, whole=True)


def _since_start(
    page: MetricPage, rows: list[tuple[Key, float, float]], at_s: float, window_s: float | None, *, guessed: bool
) -> Readings:
    began = _beginnings(rows, CREATED, at_s) or _beginnings(rows, (PROCESS_START,), at_s)
    seconds = window_s
    if seconds is None and began:
        seconds = at_s - min(began)
    timing = _timing(window_s, "when its counters began" if began and not guessed else None, guessed=guessed)
    source = f"one reading, {Path(page.name).name}: totals since the server's start"
    return Readings(gathered(rows), True, seconds, timing, source)


def _beginnings(rows: list[tuple[Key, float, float]], names: tuple[str, ...], at_s: float) -> list[float]:
    """Return the times, before that of the reading, that these metrics hold."""
    return [value for (name, _), _, value in rows if name in names and 0 < value < at_s]


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
    seconds = window_s if window_s is not None else span or None
    source = f"{len(times):,} points of Prometheus" + (f" over {human_seconds(span)}" if span else "")
    return Readings(gathered(rows), len(times) == 1, seconds, _timing(window_s, "its times", guessed=False), source)


def _samples_of(page: MetricPage) -> Iterator[MetricSample]:
    def wrong(problem: str, key: str, got: object, allowed: str, hint: str | None = None) -> InputError:
        return InputError(problem, file=page.name, key=key, got=got, allowed=allowed, hint=hint)

    try:
        if not brackets_fit(page.content):
            raise ValueError("too many brackets")
        answer: Any = json.loads(page.content)
    except (ValueError, RecursionError) as error:
        raise InputError("is not JSON", file=page.name, got=str(error), allowed=FORMATS) from None
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
