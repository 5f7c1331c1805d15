"""Which columns of a log hold what: as the user says, or by their names, and then a note says so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from sim.arrays import Mask
from sim.errors import TraceError, did_you_mean
from sim.spec.sections.trace_source import NO_COLUMN
from sim.traffic.tables.blocks import listed, number_of, shown
from sim.traffic.traces.data import ReadOptions
from sim.traffic.traces.rows import Rows

# How a column writes times: as dates, as access logs do, or as numbers of some unit.

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
"""Units of a time by name, in a second."""
_TIME_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
EXAMPLES = (
    "2023-11-16 18:15:46.68, 16/Nov/2023:18:15:46 +0000, or seconds, ms, µs or ns since 1970 (columns.unit says which)"
)

_ISO = re.compile(r"\d{4}[-/]\d\d[-/]\d\d")
_ZONE = re.compile(r"\d\d:\d\d.*(Z|UTC|[+-]\d\d:?(\d\d)?)$")
_ACCESS_LOG = re.compile(r"\d\d/[A-Z][a-z]{2}/\d{4}:")


@dataclass(frozen=True, slots=True)
class TimeStyle:
    """A way to write times.

    :ivar words: for messages.
    :ivar unit: of numbers; empty for dates.
    :ivar date_format: of dates, as pandas takes it.
    """

    words: str
    unit: str = ""
    date_format: str = ""

    def dates(self, cells: Iterable[str]) -> list[str]:
        """Return cells as pandas reads them; what is no date becomes empty, for pandas takes words such as "now"."""
        if self == ACCESS_LOG:
            return [cell.strip() if cell.isascii() else "" for cell in cells]
        dates = (cell if cell[:1].isdigit() and cell.isascii() else "" for cell in map(str.strip, cells))
        return [date.replace("/", "-").replace(",", ".").removesuffix(" UTC") for date in dates]


ISO = TimeStyle("ISO 8601", date_format="ISO8601")
ISO_WITHOUT_ZONE = TimeStyle("ISO 8601 without a zone, taken as UTC", date_format="ISO8601")
ACCESS_LOG = TimeStyle("dates of access logs", date_format="%d/%b/%Y:%H:%M:%S %z")


def numbers(unit: str) -> TimeStyle:
    """Return the style of numbers of a unit."""
    return TimeStyle(_TIME_NAMES[unit], unit)


def style_of(cells: Sequence[str]) -> TimeStyle | None:
    """Return the style of the first cell that is a time; None: none is.

    Numbers below 10¹¹ are seconds: as milliseconds they would lie before 1973. So it goes on in steps of a thousand.
    """
    for cell in map(str.strip, cells):
        if _ISO.match(cell):
            return ISO if _ZONE.search(cell) else ISO_WITHOUT_ZONE
        if _ACCESS_LOG.match(cell):
            return ACCESS_LOG
        size = abs(number_of(cell))
        for unit, limit in zip(UNITS, (1e11, 1e14, 1e17, 1e20), strict=True):
            if size < limit:
                return numbers(unit)
    return None


_PLAIN = {"time": "timestamp_s", "adapter": "adapter_id", "input": "input_tokens", "output": "output_tokens"}
"""Our own names, which are no guesses, by role."""

_ENDS = ("endtime", "endtimeunixnano", "completedat", "finishedat", "endedat", "timelocal", "timeiso8601", "msec")
"""Names of times at which a request has ended: nginx writes its line then."""
_NAMES = {
    "time": (
        *("startedat", "timestamps", "starttime", "startts", "starttimestamp", "startutc", "starttimeunixnano"),
        *("arrivaltime", "arrivaltimestamp", "requeststart", "requesttimestamp"),
        *("timestamp", "time", "ts", "datetime", "date", "createdat", "created", "receivedat", "requestcreatedat"),
        *("timestampms", "tsms", "timems", "start"),
        *_ENDS,
    ),
    "adapter": (
        *("adapterid", "adapter", "adaptername", "loraadapter", "loraname", "lora", "loraid", "lorapath", "loramodel"),
        *("loraadapterid", "loraadaptername", "adapterpath", "peftadapter"),
        *("genai.request.model", "requestmodel", "model", "modelname", "providedmodelname", "modelid"),
        *("tenantid", "tenant", "customerid", "customer"),
    ),
    "input": (
        *("inputtokens", "prompttokens", "numinputtokens", "numprompttokens", "ninputtokens", "nprompttokens"),
        *("inputlength", "promptlength", "inputlen", "promptlen", "contexttokens", "requesttokens", "tokensin"),
        *("inputtokencount", "prompttokencount", "usagedetails.input", "usage.input"),
    ),
    "output": (
        *("outputtokens", "completiontokens", "numoutputtokens", "numcompletiontokens", "noutputtokens"),
        *("generatedtokens", "responsetokens", "outputlength", "outputlen", "completionlength", "completionlen"),
        *("tokensout", "outputtokencount", "completiontokencount", "usagedetails.output", "usage.output"),
    ),
    "session": ("sessionid", "conversationid", "genai.conversation.id"),
    "status": (
        *("statuscode", "httpstatuscode", "responsestatuscode", "httpstatus", "httpresponsecode", "httpcode"),
        *("responsecode", "scstatus", "elbstatuscode", "downstreamstatus", "status", "responsestatus"),
    ),
    "request": ("requestid", "xrequestid", "reqid", "request.id", "genai.response.id", "spanid"),
    "duration": ("requesttime", "durationms", "latencyms", "responsetimems", "durationseconds", "latencyseconds"),
}
"""Names of columns by role, in lower case, without underscores and dashes; the first that a header has is taken."""

_FAILED = re.compile(
    r"^(http\S* )?[13-5]\d\d(\.0+)?(?=\s[a-z]{3}|$)|^-\d|^(false|ko|err)$|fail|error|(?<!no[ _])exception|cancel|"
    r"timed? ?-?_?out|abort|reject|unavailable|deadline.?exceeded|throttled|rate.?limit",
    re.IGNORECASE,
)
"""Status codes of HTTP other than 2xx, and words for what went wrong."""
_UNIT = re.compile(
    r"(?P<ms>ms|millis|milliseconds)$|(?P<us>[_.-]us|micros|microseconds)$|(?P<ns>[_.-]ns|nanos|nanoseconds)$",
    re.IGNORECASE,
)
_LIKELY = re.compile(r"token|usage|prompt|model|lora|adapter|time|date|start|^ts$", re.IGNORECASE)
"""What may be in the name of a column that a trace needs."""
_KEY = "(in a scenario: workload.trace.columns)"
"""What has the name of the option, where no option has it."""
NOTHING = frozenset({"null", "\\n", "none", "nan", "n/a", "(null)", "-", "undefined"})
"""What databases and programs write where there is nothing."""

_FAMILIES = re.compile(r"llama|qwen|mistral|mixtral|gemma|phi|deepseek|gpt-oss|falcon|granite|olmo")
_TUNED = ("instruct", "chat", "it", "base", "hf", "fp8", "awq", "gptq", "int4", "int8")
"""What makers append to the size of a base model; more than this is a tuner's."""


@dataclass(slots=True)
class LogRules:
    """The columns of a log by role, and what its rows mean.

    :ivar columns: role → column, without roles that have none.
    :ivar guessed: roles whose column was found by its name.
    :ivar drawn: roles that the log has no column for.
    :ivar unit: of times that are numbers; empty: the first one decides.
    :ivar statuses: columns that say whether a request failed, the second where the first is empty.
    """

    columns: dict[str, str]
    guessed: tuple[str, ...]
    drawn: tuple[str, ...]
    unit: str
    statuses: tuple[str, ...]
    base_model: str | None
    pattern: re.Pattern[str] | None
    _reasons: dict[str, str] = field(default_factory=dict)
    _seen_base: bool = False

    def leave_out(self, rows: Rows) -> None:
        """Leave out rows of failed requests, and rows in which the pattern finds no adapter."""
        for status, before in zip(self.statuses, (None, *self.statuses), strict=False):
            cells = rows.texts(status)
            failed = {cell for cell in set(cells) if _FAILED.search(cell.strip()[:100])}
            if failed:
                mask = np.fromiter((cell in failed for cell in cells), np.bool_, len(cells))
                if before is not None:
                    mask &= [(cell.strip().lower() or "-") in NOTHING for cell in rows.texts(before)]
                self._drop(rows, mask, status, "failed requests")
        if self.pattern is not None:
            column = self.columns["adapter"]
            names = self.names(rows.texts(column))
            found = {cell for cell, name in names.items() if name is not None}
            cells = rows.texts(column)
            mask = np.fromiter((cell not in found for cell in cells), np.bool_, len(cells))
            self._drop(rows, mask, column, "rows in which adapter_from finds no adapter")

    def names(self, cells: Sequence[str]) -> dict[str, str | None]:
        """Return the adapter's name for every cell; empty for the base model, None where the pattern finds none."""
        found: dict[str, str | None] = {}
        for cell in set(cells):
            name: str | None = cell
            if self.pattern is not None and cell:
                match = self.pattern.search(cell)
                name = None if match is None else (match[1] if self.pattern.groups else match[0]) or ""
            if self.base_model is not None and name is not None and name.strip() == self.base_model:
                self._seen_base, name = True, ""
            found[cell] = name
        return found

    def said(self, style: TimeStyle | None) -> dict[str, str]:
        """Return the fields of ``workload.trace.columns`` that read the log again without guessing."""
        unit = style.unit if style is not None else ""
        return {**self.columns, **dict.fromkeys(self.drawn, NO_COLUMN), **({"unit": unit} if unit else {})}

    def _drop(self, rows: Rows, mask: Mask, column: str, what: str) -> None:
        if not mask.any():
            return
        # One reason for all rows, with the first example: reasons are counted.
        example = shown(rows.texts(column)[int(np.argmax(mask))])[:40] or "an empty cell"
        rows.leave_out(mask, self._reasons.setdefault(what, f"{what} ({column} such as {example})"))

    def notes(self, file: str, style: TimeStyle | None, names: Sequence[str]) -> Iterator[str]:
        """Yield what was read as what, and what looks wrong about the names.

        :param style: of the times.
        """
        guessed = (*self.guessed, "unit") if style is not None and style.unit and not self.unit else self.guessed
        if guessed:
            said = ", ".join(f"{role} = {shown(column)}" for role, column in self.columns.items())
            if "duration" in self.columns:
                said += f" (in {unit_of(self.columns['duration']) or 's'})"
            said += f"; times are {style.words}" if style is not None else ""
            yield f"{file}: read as a log with {said}. Guessed: {', '.join(guessed)}; --columns {_KEY} changes that"
        time = self.columns.get("time", "")
        if _bare(time) in _ENDS and "duration" not in self.columns:
            yield (
                f"{file}: {shown(time)} is when a request ends, and counts as its arrival; "
                "--columns duration=COLUMN subtracts how long it took"
            )
        if self.base_model is not None:
            if not self._seen_base:
                near = did_you_mean(self.base_model, names)
                yield f"{file}: no row is for the base model {shown(self.base_model)}" + (f"; {near}" if near else "")
            return
        bases = [name for name in names if _is_base(name)]
        for found, like in ((bases, "the base model"), ([n for n in names if n.lower() in NOTHING], "no name")):
            if not found:
                continue
            mend = f"--base-model {shown(found[0])} makes its rows requests to the base model"
            if len(found) == len(names):
                mend = "--columns adapter=COLUMN names another column"
            looks = f"looks like {like}, but counts as an adapter"
            if len(found) > 1:
                looks = f"look like {like}, but count as adapters"
            yield f"{file}: {listed(found)} {looks}; {mend}"


def find_columns(header: Sequence[str], ask: ReadOptions) -> LogRules:
    """Return the columns of a log by role.

    :raises TraceError: where a role has no column, or could have several.
    """
    given = {} if ask.columns is None else ask.columns.model_dump(exclude_none=True, exclude={"unit"})
    optional = {"session", "status", "duration", *(("time",) if ask.adapters_only else ())}
    roles = ("time", "duration", "adapter", *(() if ask.adapters_only else ("input", "output", "session")), "status")
    columns: dict[str, str] = {}
    guessed, drawn, missing = [], [], []
    for role in roles:
        column = given.get(role)
        if column == NO_COLUMN and role != "time":
            drawn.append(role)
        elif column is not None:
            columns[role] = _there(column, header, ask.file, role)
        elif role == "duration" and _bare(columns.get("time", "")) not in _ENDS:
            continue  # the time is that of the beginning
        elif (found := guess(role, header, ask.file)) is not None:
            columns[role] = found
            if found not in (_PLAIN.get(role), "session_id"):
                guessed.append(role)
        elif role not in optional:
            missing.append(role)
    if missing:
        raise _missing(missing, header, ask)
    if ask.adapter_from is not None and "adapter" not in columns:
        raise TraceError("adapter_from needs a column to look in", file=ask.file, key="columns.adapter", got=NO_COLUMN)
    unit = (None if ask.columns is None else ask.columns.unit) or unit_of(columns.get("time", ""))
    pattern = None if ask.adapter_from is None else re.compile(ask.adapter_from)
    statuses = [columns["status"]] if "status" in columns else []
    if statuses and (word := guess("status", [n for n in header if "." not in n and n not in statuses], ask.file)):
        statuses.append(word)
    return LogRules(columns, tuple(guessed), tuple(drawn), unit, tuple(statuses), ask.base_model, pattern)


def unit_of(column: str) -> str:
    """Return the unit that a column's name ends in, such as ``ms``; empty where it names none."""
    found = _UNIT.search(column)
    return "" if found is None or found.lastgroup is None else found.lastgroup


def guess(role: str, header: Sequence[str], file: str) -> str | None:
    """Return the column whose name is the first in the list; one that stands alone before one in a table.

    :raises TraceError: for several.
    """
    if (plain := _PLAIN.get(role)) in header:
        return plain
    if role == "adapter" and {"tenant_id", "timestamp_s", "input_tokens", "output_tokens"} <= set(header):
        return "tenant_id"  # a plain trace, whose adapters these are
    bare = {column: _bare(column) for column in dict.fromkeys(header)}
    for is_nested in (False, True):
        for wanted in _NAMES[role]:
            found = [c for c, name in bare.items() if (name.endswith(f".{wanted}") if is_nested else name == wanted)]
            if len(found) > 1 and role not in ("session", "status", "request", "duration"):  # which a log may lack
                hint = f"choose one: --columns {role}={shown(found[0])}"
                raise TraceError(f"several columns may hold the {role}", file=file, got=listed(found), hint=hint)
            if found:
                return found[0] if len(found) == 1 else None
    return None


def _there(column: str, header: Sequence[str], file: str, role: str) -> str:
    if column in header:
        return column
    key, near = f"columns.{role}", did_you_mean(column, header)
    raise TraceError(
        "the file has no such column", file=file, line=1, key=key, got=column, allowed=listed(list(header)), hint=near
    )


def _missing(roles: Sequence[str], header: Sequence[str], ask: ReadOptions) -> TraceError:
    """Return the error for roles without a column, which says how to name them all, or do without."""
    names = ["adapter_id or tenant_id" if role == "adapter" else _PLAIN[role] for role in roles]
    them = "column holds it" if len(roles) == 1 else "columns hold them"
    hints = [f"say which {them}: --columns {','.join(f'{role}=NAME' for role in roles)} {_KEY}"]
    if "adapter" in roles and not ask.adapters_only:
        hints.append(f"--columns adapter={NO_COLUMN} draws adapters from workload.popularity")
    if "input" in roles or "output" in roles:
        hints.append(f"--columns input={NO_COLUMN},output={NO_COLUMN} draws lengths from workload.tokens")
    likely = sorted(header, key=lambda name: _LIKELY.search(name) is None)  # there may be more than are listed
    problem = f"column {names[0]} is missing" if len(names) == 1 else f"columns are missing: {', '.join(names)}"
    return TraceError(problem, file=ask.file, line=1, got=listed(likely), hint="; ".join(hints))


def _is_base(name: str) -> bool:
    """Return whether a name is that of a well-known base model: a family, a size, and what its maker appends."""
    words = name.rpartition("/")[2].lower().removeprefix("meta-").split("-")
    sizes = [place for place, word in enumerate(words) if re.fullmatch(r"\d{1,4}(\.\d{1,2})?b", word)]
    known = _FAMILIES.match("-".join(words[:2]))
    return bool(known and sizes) and all(word in _TUNED or word[:1] in "v0123456789" for word in words[sizes[0] + 1 :])


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())
