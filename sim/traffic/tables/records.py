"""Tables of records: rows that name their cells, such as those in JSON.

JSON has one object a line, or is a document of objects; spans of OpenTelemetry come without their wrapping.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import IO, Any, NamedTuple

import numpy as np

from sim.errors import TraceError
from sim.reading import BLOCK_BYTES, Bounded
from sim.traffic.tables.blocks import BadRows, RowBlock, TextColumn, text_of

MAX_DEPTH = 8
"""Levels of a record whose keys can be columns; below them, a table is one cell."""
_PIECE = 1 << 20
_NO_REQUESTS = frozenset({"embeddings", "invoke_agent", "create_agent", "invoke_workflow", "execute_tool", "retrieval"})
"""Operations of spans with usage that are no requests: agents sum those in them, and embeddings use no adapter."""
_NO_GENERATIONS = frozenset(
    {"SPAN", "EVENT", "AGENT", "TOOL", "CHAIN", "RETRIEVER", "EVALUATOR", "EMBEDDING", "GUARDRAIL"}
)
"""Observations of Langfuse besides generations."""
_WRAPPINGS = ("data", "observations", "results", "logs", "hits", "events")
"""Keys of an object that holds nothing but a page of records: answers of the web interfaces of Langfuse, LiteLLM,
Jaeger, OpenSearch, Loki and CloudWatch. Spans have ``events`` too, but no time at which these were taken in."""
_MESSAGES = {"log": {"stream"}, "line": {"stream", "labels"}, "message": {"ingestionTime"}, "textPayload": {"logName"}}
"""Keys under which the line stands that a program wrote, and what Docker, Loki, CloudWatch and Google's logging put
beside it: such a line is no request if it is no JSON."""
_NO_JSON = "lines without JSON"
_SPECIAL = frozenset({*_WRAPPINGS, *_MESSAGES, "resourceSpans", "spans", "values", "traceId", "usage_details"})
"""A record with none of these keys is a request as it stands."""


class Found(NamedTuple):
    """A record and the line on which it begins.

    :ivar record: None where the line holds none (``error``), or none that is a request (``left_out``).
    """

    line: int
    record: Mapping[str, Any] | None
    error: TraceError | None = None
    left_out: str | None = None


class RecordTable:
    """Records one after the other."""

    def __init__(self, header: Iterable[str], records: Iterator[Found], source: Bounded) -> None:
        self.header = tuple(header)
        self._records, self._source = records, source

    def read(self, columns: Sequence[str], count: int, bad_rows: BadRows) -> RowBlock | None:
        lines: list[int] = []
        cells: dict[str, list[str]] = {name: [] for name in columns}
        seen, source = False, self._source
        source.block_bytes = 0
        for number, record, error, left_out in islice(self._records, count):
            seen = True
            bad_rows.rows += 1
            if left_out is not None:
                bad_rows.skipped[left_out] += 1
            elif error is not None:
                bad_rows.add(error)
            elif record is not None:
                lines.append(number)
                for name in columns:
                    cells[name].append(text_of(cell_of(record, name)))
            if source.block_bytes > BLOCK_BYTES:
                break
        return block_of(lines, cells) if seen else None


def block_of(lines: list[int], cells: Mapping[str, list[str]]) -> RowBlock:
    """Return a block of texts."""
    return RowBlock(np.asarray(lines, dtype=np.int64), {name: TextColumn(column) for name, column in cells.items()})


def records_by_line(text: Iterable[str], source: Bounded, *, behind_others: bool = False) -> Iterator[Found]:
    """Yield the records of JSON lines; a line that is none yields one without a record, unless it is blank.

    :param behind_others: each record stands behind what loggers or containers write; other lines are no records.
    """
    for number, line in enumerate(text, start=1):
        source.row_bytes = 0
        record = _object(line[line.find("{") :] if behind_others else line)
        if record is not None:
            yield from _unwrapped(number, record)
        elif behind_others:
            yield Found(number, None, left_out=_NO_JSON)
        elif line.strip():
            got, allowed = line.rstrip()[:80], "one object a line"
            yield Found(number, None, TraceError("not a line of JSON", line=number, got=got, allowed=allowed))


def records_of_document(text: IO[str], source: Bounded, file: str) -> Iterator[Found]:
    """Yield the records of a list of objects, or of objects that span several lines, piece by piece.

    :raises TraceError: where it is not JSON; nothing behind that place can be told apart.
    """
    decoder, buffer, place, line, ended = json.JSONDecoder(), "", 0, 1, False
    while True:
        begin = place
        while place < len(buffer) and buffer[place] in " \t\r\n,[]":
            place += 1
        line += buffer.count("\n", begin, place)
        if place < len(buffer):
            try:
                if buffer[place] != "{":
                    raise ValueError("no object")
                record, end = decoder.raw_decode(buffer, place)
            except (ValueError, RecursionError):
                if ended or buffer[place] != "{":
                    got = buffer[place : place + 80].split("\n")[0]
                    allowed = "a list of objects, or one object a line"
                    raise TraceError("not JSON", file=file, line=line, got=got, allowed=allowed) from None
            else:
                source.row_bytes = 0
                yield from _unwrapped(line, record)
                line += buffer.count("\n", place, end)
                place = end
                continue
        elif ended:
            return
        piece = text.read(_PIECE)
        ended = not piece
        buffer, place = buffer[place:] + piece, 0


def columns_of(record: Mapping[str, Any], before: str = "", depth: int = 1) -> Iterator[str]:
    """Yield the names of a record's cells; those of tables in it have dots: ``usage.prompt_tokens``."""
    for key, value in record.items():
        if isinstance(value, dict) and value and depth < MAX_DEPTH:
            yield from columns_of(value, f"{before}{key}.", depth + 1)
        else:
            yield before + key


def cell_of(record: Mapping[str, Any], column: str) -> Any:
    """Return the cell of a column, whose name may have dots; None where there is none."""
    if column in record:
        return record[column]
    place = column.find(".")
    while place >= 0:
        inner = record.get(column[:place])
        if isinstance(inner, dict):
            return cell_of(inner, column[place + 1 :])
        place = column.find(".", place + 1)
    return None


def _unwrapped(line: int, record: Mapping[str, Any]) -> Iterator[Found]:
    """Yield the requests of a record: itself, the records of a page, or the spans of OpenTelemetry."""
    if _SPECIAL.isdisjoint(record):
        yield Found(line, record)
        return
    if "resourceSpans" in record:
        yield from _spans(line, record)
        return
    for key in _WRAPPINGS:
        page = record.get(key)
        if isinstance(page, dict):
            page = page.get("result" if "resultType" in page else key)
        if not isinstance(page, list) or not page or not all(isinstance(each, dict) for each in page):
            continue
        if key != "events" or "ingestionTime" in page[0]:
            for each in page:
                yield from _one(line, each)
            return
    yield from _one(line, record)


def _one(line: int, record: Mapping[str, Any]) -> Iterator[Found]:
    """Yield the requests of a record of a page: itself, the lines of a stream of Loki, or the spans of a trace."""
    if isinstance(record.get("stream"), dict) and isinstance(record.get("values"), list):
        for each in record["values"]:
            if isinstance(each, list) and len(each) > 1:
                yield from _one(line, {"time": each[0], "line": each[1], "stream": ""})
        return
    if "traceID" in record and "spans" in record:
        for span in _tables(record["spans"]):
            yield _span(line, span, {str(tag.get("key")): tag.get("value") for tag in _tables(span.get("tags"))})
        return
    # An observation of Langfuse is a request only if it is a generation.
    of_trace = "traceId" in record or {"trace_id", "usage_details"} <= record.keys()
    if of_trace and str(record.get("type", "")).upper() in _NO_GENERATIONS:
        yield Found(line, None, left_out="observations that are no generation")
        return
    said = {key: _message(record[key]) for key in _MESSAGES if key in record}
    is_text = said and not any(isinstance(each, dict) for each in said.values())
    if is_text and any(_MESSAGES[key] & record.keys() for key in said):
        yield Found(line, None, left_out=_NO_JSON)
    else:
        yield Found(line, {**record, **said} if said else record)


def _message(cell: Any) -> Any:
    """Return what a line says that a program wrote as JSON; any other cell as it is."""
    inner = _object(cell) if isinstance(cell, str) and cell[:1] == "{" else None
    return cell if inner is None else inner


def _object(text: str) -> dict[str, Any] | None:
    """Return an object in JSON; None: it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _spans(line: int, record: Mapping[str, Any]) -> Iterator[Found]:
    """Yield the spans of an export in OTLP's JSON."""
    for resource in _tables(record.get("resourceSpans")):
        for scope in _tables(resource.get("scopeSpans")):
            for span in _tables(scope.get("spans")):
                attributes = {
                    str(each["key"]): next(iter(each["value"].values()), None)
                    for each in _tables(span.get("attributes"))
                    if "key" in each and isinstance(each.get("value"), dict)
                }
                yield _span(line, span, attributes)


def _span(line: int, span: Mapping[str, Any], attributes: dict[str, Any]) -> Found:
    """Return a span, if it has attributes of generative AI."""
    generates = str(attributes.get("gen_ai.operation.name", "")).lower() not in _NO_REQUESTS
    if generates and any(name.startswith("gen_ai.usage.") for name in attributes):
        return Found(line, {**span, "attributes": attributes})
    return Found(line, None, left_out="spans that are no LLM requests, or have no gen_ai.usage attributes")


def _tables(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
