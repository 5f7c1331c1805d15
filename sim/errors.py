"""What can go wrong, and the exit code that belongs to it.

The tree::

    LoraplanError              exit 3   a failure inside
    └── InputError             exit 2   what the user gave can't be used
        ├── ScenarioError               a scenario file, a profile or --set
        │   └── UnknownKeyError         a key that scenarios don't have
        ├── TraceError                  a trace or a weights file
        ├── OutputError                 a run directory that can't be read or written
        └── SeveralErrors               several of these, from one file

An ``InputError`` prints as ``file:line: key.path: what is wrong (got X, allowed Y); hint``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class LoraplanError(Exception):
    """Base of every error that loraplan raises on purpose."""

    exit_code = 3


class InputError(LoraplanError):
    """Say what is wrong with the user's input, where, and what would be right.

    :param problem: what is wrong, in words.
    :param key: dotted path of the scenario key, or the column of a trace.
    :param got: the value as the user wrote it.
    :param allowed: what could stand there instead.
    :param hint: what to do next.
    :param file: the file, as the user named it.
    :param line: line in that file, from 1.
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        key: str | None = None,
        got: object = None,
        allowed: str | None = None,
        hint: str | None = None,
        file: str | None = None,
        line: int | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.key = key
        self.got = got
        self.allowed = allowed
        self.hint = hint
        self.file = file
        self.line = line

    def __str__(self) -> str:
        where = ""
        if self.file is not None:
            where = f"{self.file}:{self.line}: " if self.line is not None else f"{self.file}: "
        key = f"{self.key}: " if self.key else ""
        facts = []
        if self.got is not None:
            facts.append(f"got {_shorten(self.got)}")
        if self.allowed is not None:
            facts.append(f"allowed: {self.allowed}")
        bracket = f" ({', '.join(facts)})" if facts else ""
        hint = f"; {self.hint}" if self.hint else ""
        return _one_line(f"{where}{key}{self.problem}{bracket}{hint}")

    def __reduce__(self) -> tuple[object, ...]:
        # The default drops keyword arguments, and errors travel back from worker processes.
        return (_rebuild, (type(self), self.problem, self.__dict__))


class ScenarioError(InputError):
    """A scenario, a profile or a ``--set`` can't be used."""


class UnknownKeyError(ScenarioError):
    """A key that scenarios don't have."""


class TraceError(InputError):
    """A trace or weights file can't be used."""


class OutputError(InputError):
    """A run directory can't be read or written."""


class SeveralErrors(InputError):
    """Carry every problem found in one file, so that the user can fix them all at once."""

    def __init__(self, errors: list[InputError]) -> None:
        super().__init__(errors[0].problem)
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


_MOST_NESTED = 5
"""Levels of lists and mappings that an error shows."""
SYNONYMS = {
    "alpha": "exponent",
    "arrival_rate": "arrivals.rate",
    "blue-green": "new-name",
    "canary": "new-name",
    "clients": "concurrency",
    "completion": "output",
    "cost": "price",
    "disk_bandwidth": "storage.bandwidth",
    "gpu_type": "gpu",
    "gpus": "gpus_per_replica",
    "input": "prompt",
    "latency_p99": "e2e_p99",
    "lora_rank": "rank",
    "mean": "rate",
    "median": "p50",
    "num_adapters": "count",
    "num_gpus": "replicas",
    "p99_latency": "e2e_p99",
    "path": "file",
    "price_per_hour": "price",
    "qps": "rate",
    "requests_per_second": "rate",
    "rps": "rate",
    "users": "concurrency",
}
"""What users write, and the key or value that says it here."""


def did_you_mean(word: str, known: Iterable[str], least: float = 0.6) -> str | None:
    """Return ``did you mean 'x'?`` for the nearest known word, or None.

    :param least: how alike the two are, from 0 to 1 (``difflib``).
    """
    words, same = {each.lower(): each for each in known}, SYNONYMS.get(word.lower())
    parts = sorted(word.lower().split("_"))
    same = next((each for each in words if sorted(each.split("_")) == parts), same)  # p99_ttft
    close = [same] if same in words else difflib.get_close_matches(word.lower(), words, n=1, cutoff=least)
    return f"did you mean {words[close[0]]!r}?" if close else None


def install_hint(extra: str) -> str:
    """Return how to install an extra. loraplan is on no package index, so it takes a clone of the repository."""
    return f"run pip install -e '.[{extra}]' in your clone of loraplan"


def _shorten(value: object, limit: int = 80) -> str:
    text = _written(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _written(value: object, depth: int = 0) -> str:
    """Return a value as a scenario file has it, in one line."""
    if isinstance(value, str):
        return value if value and value == value.strip() else repr(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or not isinstance(value, (Mapping, list, tuple)):
        return "null" if value is None else repr(value)
    if depth == _MOST_NESTED:
        return "…"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_written(item, depth + 1)}' for key, item in value.items())}}}"
    return f"[{', '.join(_written(item, depth + 1) for item in value)}]"


def _one_line(text: str) -> str:
    """Return text with what no terminal should be sent written as escapes: it quotes files that others wrote."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _rebuild(kind: type[InputError], problem: str, state: dict[str, object]) -> InputError:
    error = kind.__new__(kind)
    Exception.__init__(error, problem)
    error.__dict__.update(state)
    return error
