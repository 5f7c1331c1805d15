"""Logs whose lines are text: access logs of nginx, Apache and Envoy, and vLLM's log of requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice

from sim.errors import TraceError
from sim.reading import Bounded
from sim.traffic.tables.blocks import BadRows, RowBlock
from sim.traffic.tables.records import Found, RecordTable, block_of

HEAD_LINES = 100
"""Lines that say which names a log gives to its fields."""

MOST_LETTERS_OF_LINE = 1 << 16
"""Of a line of an access log; nginx and Envoy refuse requests whose first lines are longer than 8 or 60 kB."""
MOST_REQUESTS, MOST_LETTERS = 20_000_000, 1 << 29
"""Of a log of vLLM, which is read whole since several lines speak of a request: at most these. They take 6 GB."""

_FIELD = re.compile(r'([A-Za-z_][\w.-]*)=(?:"((?:[^"\\]|\\.)*)"|(\S*))|\[([^\]]{0,200})\]|"((?:[^"\\]|\\.)*)"|(\S+)')
_COMBINED = ("remote_addr", "ident", "user", "time", "request", "status", "bytes", "referer", "user_agent")
# https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage, "Default format string"
_ENVOY = ("start_time", "request", "response_code", "response_flags")
_ENVOY_REST = (
    *("bytes_received", "bytes_sent", "duration_ms", "upstream_service_time_ms", "x_forwarded_for", "user_agent"),
    *("request_id", "authority", "upstream_host"),
)

ACCESS_LINE = re.compile(rb'^(\[\d{4}-\d\d-\d\dT[^\]]*\] "|\S+ \S+ [^\[\n]*\[\d\d/[A-Z][a-z]{2}/\d{4}:[^\]]*\])')
"""What an access log begins with."""
FIELDS_LINE = re.compile(rb'^[A-Za-z_][\w.-]*=("[^"\n]*"|[^\s",;]*)[ \t]+[A-Za-z_][\w.-]*=')
"""What a line begins with that has nothing but ``name=value`` (logfmt)."""
_VLLM = r"(?:INFO|DEBUG|WARNING|ERROR) \d\d-\d\d \d\d:\d\d:\d\d "
_COLOUR = r"(?:\x1b\[[\d;]*m)*"
_BEFORE = (
    rf"(?:\[pod/\S+\] |[\w.-]+ +\| )?(?:(?P<iso>\d{{4}}-\d\d-\d\dT\S+) )?{_COLOUR}(?:\([^)]*\){_COLOUR} )?{_COLOUR}"
)
"""What kubectl logs --prefix, docker compose, kubectl logs --timestamps and processes of the engine write first."""
VLLM_LINE = re.compile(f"^{_BEFORE}{_VLLM}".encode())
"""What a line of vLLM's log begins with."""


class AccessTable(RecordTable):
    """An access log, or one of named fields alone; names of its fields follow from its first lines.

    Fields written as ``name=value`` have that name. The others have those of the combined format, or of Envoy's default
    format, or their place: ``field_10``. ``method`` and ``path`` are parts of the request.
    """

    def __init__(self, text: Iterable[str], source: Bounded) -> None:
        lines = ((number, line) for number, line in enumerate(text, start=1) if line.strip())
        head = list(islice(lines, HEAD_LINES))
        named, first_fields = _fields(head[0][1])
        for _, line in head[1:]:
            named |= _fields(line)[0]
        only_named = FIELDS_LINE.match(head[0][1].encode(errors="replace")) is not None
        count = 0 if only_named else len(first_fields)
        first: tuple[str, ...] = _COMBINED
        if head[0][1].lstrip().startswith("["):
            first = (*_ENVOY, *_ENVOY_REST) if count == len(_ENVOY) + len(_ENVOY_REST) else _ENVOY
        places = tuple(first[i] if i < len(first) else f"field_{i + 1}" for i in range(count))

        def records() -> Iterator[Found]:
            for number, line in chain(head, lines):
                source.row_bytes = 0
                record, found = _fields(line) if len(line) <= MOST_LETTERS_OF_LINE else ({}, [])
                if len(found) < count:
                    got, allowed = str(len(found)), f"{count}, as in the first line"
                    yield Found(number, None, TraceError("fields are missing", line=number, got=got, allowed=allowed))
                    continue
                record |= dict(zip(places, found, strict=False))
                if not only_named:
                    method, _, rest = record.get("request", "").partition(" ")
                    record["method"], record["path"] = method, rest.partition(" ")[0]
                yield Found(number, {name: "" if cell == "-" else cell for name, cell in record.items()})

        super().__init__((*places, *(() if only_named else ("method", "path")), *named), records(), source)


class VllmTable:
    """vLLM's log of requests: a row for every request received, with what other lines say of it.

    Token ids are there if vLLM was started with ``--enable-log-requests``, ``--enable-log-outputs`` and, from 0.11 on,
    ``VLLM_LOGGING_LEVEL=DEBUG``. A column of lengths that no line gives is absent.
    """

    def __init__(self, text: Iterable[str], source: Bounded, file: str) -> None:
        self._text, self._source, self._file = text, source, file
        self._row = 0

    @cached_property
    def _found(self) -> _VllmRequests:
        found = _VllmRequests()
        for number, line in enumerate(self._text, start=1):
            self._source.row_bytes = 0
            found.take(number, line)
            if len(found.lines) > MOST_REQUESTS or found.letters > MOST_LETTERS:
                allowed = f"up to {MOST_REQUESTS:,} requests, and names and ids of {MOST_LETTERS:,} letters together"
                raise TraceError("the log of vLLM is too long", file=self._file, line=number, allowed=allowed)
        return found

    @cached_property
    def header(self) -> tuple[str, ...]:
        """Its columns, for which the whole log is read."""
        lengths = [name for name in ("input_tokens", "output_tokens") if any(self._found.cells[name])]
        return ("time", "lora_name", *lengths)

    def read(self, columns: Sequence[str], count: int, bad_rows: BadRows) -> RowBlock | None:
        part = slice(self._row, self._row + count)
        lines = self._found.lines[part]
        self._row += len(lines)
        bad_rows.rows += len(lines)
        return block_of(lines, {name: self._found.cells[name][part] for name in columns}) if lines else None


class _VllmRequests:
    """The requests of a log of vLLM, collected line by line: three lines speak of each."""

    _LINE = re.compile(
        rf"^{_BEFORE}(?P<clock>{_VLLM}){_COLOUR}\S+ "
        r"(?P<what>Received request|Request|Generated response) (?P<id>[^\s:]+)(?P<rest>.*)"
    )
    _LORA = re.compile(r"lora_request: LoRARequest\(lora_name='((?:[^'\\]|\\.)*)'")

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.cells: dict[str, list[str]] = {name: [] for name in ("time", "lora_name", "input_tokens", "output_tokens")}
        self._prompts: dict[str, str] = {}
        self._rows: dict[str, int] = {}
        self._same: dict[str, str] = {}
        self.letters = 0
        self._year, self._month = 2000, 0

    def take(self, number: int, line: str) -> None:
        found = self._LINE.match(line)
        if found is None:
            return
        name, rest = found["id"], found["rest"]
        if found["what"] == "Received request":
            lora = self._LORA.match(rest, max(0, rest.rfind("lora_request: ")))
            prompt = self._prompts.pop(name, "")
            self._rows[name] = len(self.lines)
            self.letters += len(name)
            self.lines.append(number)
            time = found["iso"] or self._dated(found["clock"])
            cells = (time, (lora and lora[1]) or "", _count("prompt_token_ids: [", rest) or prompt, "")
            for column, cell in zip(self.cells, cells, strict=True):
                self.cells[column].append(self._one(cell))
        elif found["what"] == "Request":  # its details come first
            self._prompts[name] = _count("prompt_token_ids: [", rest)
            self.letters += len(name)
        elif name in self._rows and "(streaming delta)" not in rest:
            self.cells["output_tokens"][self._rows.pop(name)] = self._one(_count("output_token_ids: [", rest))
            self.letters -= 2 * len(name)

    def _one(self, cell: str) -> str:
        """Return one string for equal cells: a log of a million requests has few."""
        if cell not in self._same:
            self.letters += len(cell)
            self._same[cell] = cell
        return self._same[cell]

    def _dated(self, clock: str) -> str:
        """Return the time with a year, of which vLLM writes none: only differences count."""
        day, time = clock.split()[1:]
        month = int(day[:2])
        self._year += month < self._month - 6
        self._month = month
        return f"{self._year}-{day} {time}"


def _count(label: str, text: str) -> str:
    """Return how many ids the last list behind a label has; empty: none. A prompt before it may hold anything."""
    begin = text.rfind(label)
    end = text.find("]", begin)
    ids = text[begin + len(label) : end] if 0 <= begin < end else ""
    return str(ids.count(",") + 1) if ids.strip() else ""


def _fields(line: str) -> tuple[dict[str, str], list[str]]:
    """Return the fields of a line that have names, and the others in their order."""
    named: dict[str, str] = {}
    places: list[str] = []
    for name, quoted, bare, bracket, text, word in _FIELD.findall(line):
        if name:
            named[name] = quoted or bare
        else:
            places.append(bracket or text or word)
    return named, places
