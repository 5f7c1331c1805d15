"""Parses and formats quantities with units; no other module does.

Inside the program a time is seconds (float), a size bytes (int), a rate per second (float) and a
share a fraction (float). In files they carry their unit: ``20 ms``, ``10 GB``, ``12/s``, ``5%``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

from sim.spec.base import located

SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
TIME_OF_DAY_PATTERN = r"^([01]?[0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?$"
_NUMBER = r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)"
_QUANTITY = re.compile(rf"\s*{_NUMBER}\s*([A-Za-zµ%]*)\s*")
_PRICE = re.compile(rf"\s*(?:\$|USD)?\s*{_NUMBER}\s*(?:\$|USD)?\s*(?:(?:/|per )\s*(?:GPU[ -]?)?(?:h|hour))?\s*")
MOST_EXPENSIVE = 1e6
"""US dollars for a GPU and an hour, at most."""
_SALE = re.compile(
    rf"\s*(?:\$|USD)?\s*{_NUMBER}\s*(?:\$|USD)?\s*(?:/|per )\s*"
    r"(?:(?P<tokens>1?\s*M(?:illion)?[ -]?tok(?:en)?s?)|(?P<request>request))\s*",
    re.IGNORECASE,
)
_RATE = re.compile(rf"\s*{_NUMBER}\s*/\s*([A-Za-zµ]+)\s*")
_RATE_IN_WORDS = re.compile(rf"\s*{_NUMBER}\s*(?:(?:r|q|req\w*|quer\w*)?\s*(?:/|p|per )\s*([smh])\w*\s*)?", re.I)
"""``25 rps``, ``25 req/s``, ``25 requests per second``, ``90 rpm``."""


def _refuse(problem: str, got: object, allowed: str, hint: str = "") -> PydanticCustomError:
    return located("", problem, got=got, allowed=allowed, hint=hint)


def _parse(value: object, units: dict[str, Any], what: str, example: str) -> float:
    allowed = f"a {what} such as {example}; units {', '.join(units)}"
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise _refuse(f"not a {what}", value, allowed)
    if isinstance(value, (int, float)):
        if value == 0:
            return 0.0
        unit = example.split()[-1]
        if isinstance(value, float) and not math.isfinite(value):
            raise _refuse(f"not a finite {what}", value, allowed)
        either = f"{value} s or {value} ms" if what == "time" else f"{value} {unit}"
        raise _refuse(f"a {what} needs its unit", value, allowed, f"write {either}")
    match = _QUANTITY.fullmatch(value)
    if match is None:
        raise _refuse(f"not a {what}", value, allowed)
    number, unit = float(match[1]), match[2]
    if unit not in units and not (number == 0 and unit == ""):
        problem = f"unknown unit {unit!r}" if unit else f"a {what} needs its unit"
        raise _refuse(problem, value, allowed)
    result = number * float(units.get(unit, 1))
    if not math.isfinite(result):
        raise _refuse(f"not a finite {what}", value, allowed)
    return result


def parse_seconds(value: object) -> float:
    """Return a time in seconds: ``"20 ms"`` → 0.02."""
    seconds = _parse(value, SECONDS, "time", "20 ms")
    if seconds < 0:
        raise _refuse("a time can't be negative", value, "0 or more")
    if seconds > 1e10:
        raise _refuse("a time of more than 300 years", value, "up to 1e10 s")
    return seconds


def parse_bytes(value: object) -> int:
    """Return a size in bytes: ``"10 GB"`` → 10_000_000_000; 1 GB = 10^9, 1 GiB = 2^30."""
    size = _parse(value, BYTES, "size", "50 MB")
    if size < 0:
        raise _refuse("a size can't be negative", value, "0 or more")
    if size > 1e15:
        raise _refuse("a size of more than a thousand terabytes", value, "up to 1000 TB")
    return round(size)


def parse_rate(value: object) -> float:
    """Return a rate per second: ``"12/s"`` → 12.0, ``"90/min"`` → 1.5."""
    allowed = "a rate such as 12/s, 90/min or 500/h"
    match = _RATE.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in SECONDS:
        meant = _RATE_IN_WORDS.fullmatch(str(value))
        unit = ((meant and meant[2]) or "s").lower()
        hint = f"write {meant[1]}/{'min' if unit == 'm' else unit}" if meant and float(meant[1]) > 0 else ""
        raise _refuse("not a rate" if match is None else f"unknown unit {match[2]!r}", value, allowed, hint)
    rate = float(match[1]) / SECONDS[match[2]]
    if not rate > 0:
        raise _refuse("a rate must be above zero", value, allowed)
    if not 1e-9 <= rate <= 1e9:
        raise _refuse("not a rate that can be simulated", value, "from 1e-9/s to 1e9/s")
    return rate


def parse_level(value: object) -> Any:
    """Return a rate, which may be zero, as a number: ``"12/s"`` → 12.0; a number as it is."""
    if not isinstance(value, str):
        return value
    match = _RATE.fullmatch(value)
    return 0.0 if match is not None and float(match[1]) == 0 else parse_rate(value)


def parse_bandwidth(value: object) -> int:
    """Return bytes per second: ``"25 GB/s"`` → 25_000_000_000."""
    if not isinstance(value, str) or not re.fullmatch(r".*/\s*s\s*", value):
        raise _refuse("not a bandwidth", value, "a bandwidth such as 25 GB/s")
    return parse_bytes(value.rpartition("/")[0])


def parse_share(value: object) -> float:
    """Return a share of one: ``"5%"`` → 0.05, ``0.05`` → 0.05."""
    allowed = "a share such as 5% or 0.05, from 0 to 1"
    share, match = _plain(value), _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is not None and match[2] in ("%", ""):
        share = float(match[1]) / (100 if match[2] == "%" else 1)
    if share is None:
        raise _refuse("not a share", value, allowed)
    if not 0 <= share <= 1:
        raise _refuse("a share lies between 0 and 1", value, allowed)
    return share


def _plain(value: object) -> float | None:
    """Return a number as a float, since whole numbers may be beyond any: from -1 to 10⁹; None: it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(min(max(value, -1), 10**9))


def parse_price(value: object) -> float:
    """Return a price in US dollars per GPU and hour: ``2.5``, ``"2.50 USD/h"`` and ``"$2.50/h"`` → 2.5."""
    allowed = "US dollars per GPU hour such as 2.50, 2.50 USD/h or $2.50/h; above 0 and up to 1,000,000"
    price = _plain(value)
    if isinstance(value, str):
        match = _PRICE.fullmatch(value)
        if match is None:
            hint = "convert it; or give the number alone, if all your prices have the same currency"
            raise _refuse("not a price", value, allowed, hint if re.search(r"\d", value) else "")
        price = float(match[1])
    if price is None or not 0 < price <= MOST_EXPENSIVE:
        raise _refuse("not a price", value, allowed)
    return price


def parse_token_price(value: object) -> float:
    """Return a price in US dollars per million tokens: ``0.4`` and ``"0.40 USD/1M tokens"`` → 0.4."""
    return _sale(value, "tokens", "US dollars per million tokens such as 0.40 USD/1M tokens")


def parse_request_price(value: object) -> float:
    """Return a price in US dollars per request: ``0.002`` and ``"0.002 USD/request"`` → 0.002."""
    return _sale(value, "request", "US dollars per request such as 0.002 USD/request")


def is_request_price(value: object) -> bool:
    """Return whether a text is a price per request, rather than per million tokens.

    :raises PydanticCustomError: where it is neither.
    """
    match = _SALE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        allowed = "a price with what it is for, such as 0.40 USD/1M tokens or 0.002 USD/request"
        raise _refuse("not a price of tokens or requests", value, allowed)
    return match["request"] is not None


def _sale(value: object, per: str, what: str) -> float:
    allowed = f"{what}; from 0 up to 1,000,000"
    price = _plain(value)
    if isinstance(value, str):
        match = _SALE.fullmatch(value)
        if match is None or match[per] is None:
            raise _refuse("not a price of these", value, allowed)
        price = float(match[1])
    if price is None or not 0 <= price <= MOST_EXPENSIVE:
        raise _refuse("not a price", value, allowed)
    return price


_KINDS: tuple[tuple[str, Callable[[object], float]], ...] = (
    ("rate", parse_rate),
    ("share", parse_share),
    ("bytes", parse_bytes),
    ("seconds", parse_seconds),
)


def quantities(values: Sequence[Any]) -> tuple[str, list[float]] | None:
    """Return the kind and the numbers of values that are all quantities of one kind; None for others.

    :return: ``number``, ``rate``, ``share``, ``bytes`` or ``seconds``, and the values in the order given.
    """
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return "number", list(values)
    if not all(isinstance(value, str) for value in values):
        return None
    for kind, parse in _KINDS:
        try:
            return kind, [float(parse(value)) for value in values]
        except ValueError:
            continue
    return None


def repeated(values: Sequence[Any]) -> list[Any]:
    """Return those values that come again, in whatever unit: ``10/s`` and ``600/min`` are the same."""
    _, known = quantities(values) or ("", values)
    return [values[place] for place, value in enumerate(known) if value in known[:place]]


def _trim(number: float) -> str:
    return f"{number:.10g}"


def format_seconds(seconds: float) -> str:
    """Return a text that ``parse_seconds`` reads back to the same float."""
    if seconds == 0:
        return "0 s"
    for unit, factor in (("h", 3600.0), ("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        text = _trim(seconds / factor)
        # Only a text that reads back as the same float will do: manifests are loaded again.
        if abs(seconds) >= factor and float(text) * factor == seconds:
            return f"{text} {unit}"
    return f"{seconds!r} s"


def format_bytes(size: int) -> str:
    """Return a text that ``parse_bytes`` reads back to the same number."""
    for unit in ("TB", "GB", "MB", "kB"):
        text = f"{_trim(size / BYTES[unit])} {unit}"
        if size >= BYTES[unit] and size % (BYTES[unit] // 1000) == 0 and parse_bytes(text) == size:
            return text
    return f"{size} B"


def format_rate(per_second: float) -> str:
    """Return a text that ``parse_rate`` reads back to the same float."""
    return f"{_trim(per_second) if float(_trim(per_second)) == per_second else repr(per_second)}/s"


def format_share(share: float) -> str:
    """Return a text that ``parse_share`` reads back to the same float."""
    text = _trim(share * 100)
    return f"{text}%" if float(text) / 100 == share else repr(share)


def round_up(number: float) -> int:
    """Return a number of 1 or more rounded up to two digits: ``1234`` → ``1300``."""
    unit = int(10 ** max(0, math.floor(math.log10(number)) - 1))
    return math.ceil(number / unit) * unit


def human_seconds(seconds: float, like: float | None = None) -> str:
    """Return a time for people, three digits: ``0.0123`` → ``"12.3 ms"``; in the unit of another time ``like`` it."""
    magnitude = abs(seconds if like is None else like)
    if magnitude >= 7200:
        return f"{seconds / 3600:.3g} h"
    if magnitude >= 600:
        return f"{seconds / 60:.3g} min"
    if magnitude >= 0.9995:
        return f"{seconds:.3g} s"
    if magnitude >= 0.9995e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs" if seconds else "0 s"


def human_bytes(size: float) -> str:
    """Return a size for people, three digits: ``10**10`` → ``"10 GB"``."""
    for unit in ("TB", "GB", "MB", "kB"):
        if abs(size) >= 0.9995 * BYTES[unit]:
            return f"{size / BYTES[unit]:.3g} {unit}"
    return f"{size:.0f} B"


def _schema(pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]})


_RATE_PATTERN = r"^\s*[0-9.eE+-]+\s*/\s*(ms|s|min|h|d)\s*$"
TIME_SCHEMA = {"type": "string", "pattern": r"^\s*[0-9.eE+-]+\s*(ns|us|µs|ms|s|min|h|d)\s*$", "examples": ["20 ms"]}
"""The JSON Schema of a time."""
_SIZE_SCHEMA = _schema(r"^\s*[0-9.eE+-]+\s*(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)\s*$", "50 MB")
SHARE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "pattern": r"^\s*[0-9.eE+-]+\s*%?\s*$", "examples": ["5%"]},
        {"type": "number", "minimum": 0, "maximum": 1},
    ]
}
"""The JSON Schema of a share."""

Seconds = Annotated[
    float, BeforeValidator(parse_seconds), PlainSerializer(format_seconds, return_type=str), WithJsonSchema(TIME_SCHEMA)
]
Moment = Annotated[
    Seconds,
    WithJsonSchema(
        {
            "anyOf": [TIME_SCHEMA, {"type": "string", "pattern": TIME_OF_DAY_PATTERN}],
            "examples": TIME_SCHEMA["examples"],
        }
    ),
]
"""Seconds since the start of the run. A file may give a time of day instead: ``sim.spec.sections.workload``."""
Bytes = Annotated[
    int, BeforeValidator(parse_bytes), Field(gt=0), PlainSerializer(format_bytes, return_type=str), _SIZE_SCHEMA
]
Bandwidth = Annotated[
    int,
    BeforeValidator(parse_bandwidth),
    Field(gt=0),
    PlainSerializer(lambda size: f"{format_bytes(size)}/s", return_type=str),
    _schema(r"^\s*[0-9.eE+-]+\s*(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)\s*/\s*s\s*$", "25 GB/s"),
]
"""Bytes per second."""
Rate = Annotated[
    float,
    BeforeValidator(parse_rate),
    PlainSerializer(format_rate, return_type=str),
    _schema(_RATE_PATTERN, "12/s"),
]
Level = Annotated[
    float,
    BeforeValidator(parse_level),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": _RATE_PATTERN}]}),
]
"""A rate, or a number relative to others."""
Price = Annotated[
    float,
    BeforeValidator(parse_price),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": MOST_EXPENSIVE},
                {"type": "string", "pattern": r"^\s*(\$|USD)?\s*[0-9.eE+-]+", "examples": ["2.50 USD/h"]},
            ]
        }
    ),
]
SALE_PATTERN = r"^\s*(\$|USD)?\s*[0-9.eE+-]+\s*(\$|USD)?\s*(/|per )"
"""What the text of a price of tokens or requests looks like."""


def _sale_schema(example: str) -> WithJsonSchema:
    text = {"type": "string", "pattern": SALE_PATTERN, "examples": [example]}
    return WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "maximum": MOST_EXPENSIVE}, text]})


TokenPrice = Annotated[float, BeforeValidator(parse_token_price), _sale_schema("0.40 USD/1M tokens")]
RequestPrice = Annotated[float, BeforeValidator(parse_request_price), _sale_schema("0.002 USD/request")]
Share = Annotated[
    float,
    BeforeValidator(parse_share),
    PlainSerializer(format_share, return_type=str),
    WithJsonSchema(SHARE_SCHEMA),
]
