"""JSON from a server, which may be anything: parsed within bounds, and its texts cut short for messages."""

from __future__ import annotations

import json
from typing import Any

from sim.cells import printable
from sim.reading import brackets_fit

WORDS = 300
"""Letters of what a server says that are shown and kept, at most."""


def parse_json(data: bytes) -> Any:
    """Return what JSON says.

    :raises ValueError: where it is not JSON, or nested so deep that reading it takes too much.
    """
    if not brackets_fit(data):
        raise ValueError("too many brackets")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None


def words_of(said: object) -> str:
    """Return what a server said, cut short and without control characters."""
    if isinstance(said, str):
        return printable(said, WORDS)
    try:
        return printable(repr(said), WORDS)
    except (RecursionError, ValueError):  # nested too deep, a number of too many digits
        return "an error that can't be shown"
