"""How many examples a law is tried on: a quarter of them with every change, all of them at night."""

from __future__ import annotations

from hypothesis import settings

AT_NIGHT, ENOUGH = 400, 60
PART = settings.default.max_examples / AT_NIGHT
"""The profile ``night`` (``conftest.py``) makes it 1."""


def examples(number: int) -> settings:
    """Return the settings of a test that tries this many examples at night, and at least 60 of them before."""
    return settings(max_examples=max(min(number, ENOUGH), round(number * PART)))
