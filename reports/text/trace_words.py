"""How counts, shares and differences read in what is said of a trace."""

from __future__ import annotations

from collections.abc import Sequence

from reports.formatting import number, percent
from sim.results.traces.trace_facts import LawRow

_SHARES = ("hot", "requests")
"""Parameters of popularity laws that are shares of one."""


def plural(count: float, word: str) -> str:
    """Return a count with its word: ``1 slot``, ``1,808 sessions``."""
    return f"{number(count)} {word}{'' if count == 1 else 's'}"


def about(share: float) -> str:
    """Return a share in two digits, for sentences: ``0.3470`` → ``"35 %"``; tables have three."""
    return percent(float(f"{share:.2g}")) if share < 0.995 else percent(share)


def known(value: float | None) -> str:
    """Return a number, or why there is none."""
    return "too few to say" if value is None else number(round(value, 2))


def parameters(law: LawRow) -> str:
    """Return the parameters of a law in words: ``exponent 1.6, shift 32.8``."""
    words = [
        f"{name} {percent(value) if name in _SHARES else f'{value:.4g}'}" for name, value in law.parameters.items()
    ]
    return ", ".join(words) or "none"


def points(difference: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return with_sign(f"{difference * 100:+.1f}", " points")


def with_sign(text: str, unit: str) -> str:
    """Return a signed number with a true minus, and no sign where it rounds to nothing."""
    plain = text.lstrip("+-")
    return f"0{unit}" if float(plain) == 0 else f"{'−' if text.startswith('-') else '+'}{plain}{unit}"


def shown(value: float, unit: str) -> str:
    """Return a checked value with its unit."""
    if unit == "1":
        return percent(value)
    return f"{number(value)}/s" if unit == "1/s" else number(value)


def spread_words(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
