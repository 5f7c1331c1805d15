"""How a column writes times: as dates, as access logs do, or as numbers of some unit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
"""Units of a time by name, in a second."""
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
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
    return TimeStyle(_NAMES[unit], unit)


def style_of(cells: Sequence[str]) -> TimeStyle | None:
    """Return the style of the first cell that is a time; None: none is.

    Numbers below 10¹¹ are seconds: as milliseconds they would lie before 1973. So it goes on in steps of a thousand.
    """
    for cell in map(str.strip, cells):
        if _ISO.match(cell):
            return ISO if _ZONE.search(cell) else ISO_WITHOUT_ZONE
        if _ACCESS_LOG.match(cell):
            return ACCESS_LOG
        try:
            size = abs(float(cell)) if cell.isascii() and "_" not in cell else float("nan")
        except ValueError:
            continue
        for unit, limit in zip(UNITS, (1e11, 1e14, 1e17, 1e20), strict=True):
            if size < limit:
                return numbers(unit)
    return None
