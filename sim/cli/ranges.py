"""Ranges on the command line: ``KEY=a..b`` and ``KEY=a..b:step``, for ``plan`` and ``sweep --over``."""

from __future__ import annotations

import re
from typing import NamedTuple

_RANGE = re.compile(r"(?P<key>[^=]+)=(?P<low>[^,\[{]+?)\.\.(?P<high>[^,\[{]+?)(?::(?P<step>[^:,]+))?")
_NUMBER = re.compile(r"\s*[+-]?\.?\d")


class KeyRange(NamedTuple):
    """A key and the range of its values, as typed."""

    key: str
    low: str
    high: str
    step: str | None


def parse_range(text: str) -> KeyRange | None:
    """Return the range that a text is, or None: ``a=../x.csv`` is a path, ``a=8,16`` a list."""
    match = _RANGE.fullmatch(text)
    if match is None or not all(_NUMBER.match(match[end]) for end in ("low", "high")):
        return None
    step = match["step"]
    return KeyRange(match["key"].strip(), match["low"].strip(), match["high"].strip(), step.strip() if step else None)
