"""Records in JSON: one object a line, or a document of objects; spans of OpenTelemetry come without their wrapping."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, NamedTuple

from sim.errors import TraceError
from sim.reading import Bounded

MAX_DEPTH = 8
"""Levels of a record whose keys can be columns; below them, a table is one cell."""
_PIECE = 1 << 20
_WRAPPINGS = ("data", "observations", "results", "logs")
"""Keys of an object that holds nothing but a page of records: answers of the web interfaces of Langfuse and LiteLLM."""


class Found(NamedTuple):
    """A record and the line on which it begins.

    :ivar record: None where the line holds none, or none that is a request: then ``left_out`` says why.
    """

    line: int
    record: Mapping[str, Any] | None
    text: str = ""
    left_out: str | None = None


def records_by_line(text: Iterable[str], source: Bounded) -> Iterator[Found]:
    """Yield the records of JSON lines; a line that is none yields one without a record, unless it is blank."""
    for number, line in enumerate(text, start=1):
        source.row_bytes = 0
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            yield from _unwrapped(number, record)
        elif line.strip():
            yield Found(number, None, line)


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
    if "resourceSpans" in record:
        yield from _spans(line, record)
        return
    for key in _WRAPPINGS:
        page = record.get(key)
        if isinstance(page, list) and page and all(isinstance(each, dict) for each in page):
            for each in page:
                yield from _one(line, each)
            return
    yield from _one(line, record)


def _one(line: int, record: Mapping[str, Any]) -> Iterator[Found]:
    """Yield a record; an observation of Langfuse is a request only if it is a generation."""
    if "traceId" in record and str(record.get("type", "GENERATION")).upper() != "GENERATION":
        yield Found(line, None, left_out="observations that are no generation")
    else:
        yield Found(line, record)


def _spans(line: int, record: Mapping[str, Any]) -> Iterator[Found]:
    """Yield the spans of an export in OTLP's JSON that have attributes of generative AI."""
    for resource in _tables(record.get("resourceSpans")):
        for scope in _tables(resource.get("scopeSpans")):
            for span in _tables(scope.get("spans")):
                attributes = {
                    str(each["key"]): next(iter(each["value"].values()), None)
                    for each in _tables(span.get("attributes"))
                    if "key" in each and isinstance(each.get("value"), dict)
                }
                if any(name.startswith("gen_ai.usage.") for name in attributes):
                    yield Found(line, {**span, "attributes": attributes})
                else:
                    yield Found(line, None, left_out="spans without gen_ai.usage attributes")


def _tables(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
