"""One measured run of a benchmark client, whatever the client is, and how the JSON of such files is checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from sim.arrays import Floats, Ints
from sim.errors import InputError, did_you_mean
from sim.spec.files.tree import value_at
from sim.spec.units import parse_rate, parse_seconds, parse_share

# JSON of a known form: every missing field is an error that names it.

MOST = 1e15
_NUMERIC = {int, float}


@dataclass(frozen=True, slots=True)
class JsonFields:
    """A table of JSON, and where it is.

    :ivar file, where: for error messages: the file, and the path to this table.
    :ivar form: what the file is, such as ``a result of vllm bench serve``.
    """

    file: str
    form: str
    data: Any
    where: str = ""

    def has(self, path: str) -> bool:
        """Return whether there is a value that is not null."""
        return value_at(self.data, path) is not None

    def table(self, path: str) -> JsonFields:
        """Return a table in this one.

        :raises InputError: if there is none.
        """
        value = value_at(self.data, path)
        if not isinstance(value, dict):
            raise self.wrong(path, value, "an object")
        return JsonFields(self.file, self.form, value, self._path(path))

    def tables(self, path: str) -> Iterator[JsonFields]:
        """Yield the tables of a list."""
        for place, value in enumerate(self.items(path)):
            if not isinstance(value, dict):
                raise self.wrong(f"{path}.{place}", value, "an object")
            yield JsonFields(self.file, self.form, value, f"{self._path(path)}.{place}")

    def items(self, path: str) -> list[Any]:
        """Return a list."""
        value = value_at(self.data, path)
        if not isinstance(value, list):
            raise self.wrong(path, value, "a list")
        return value

    def numbers(self, path: str) -> Floats:
        """Return a list of numbers."""
        return self._numbers(path, self.items(path))

    def lists_of_numbers(self, path: str) -> list[Floats]:
        """Return a list of lists of numbers."""
        found = []
        for place, each in enumerate(self.items(path)):
            if not isinstance(each, list):
                raise self.wrong(f"{path}.{place}", each, "a list")
            found.append(self._numbers(f"{path}.{place}", each))
        return found

    def number(self, *paths: str) -> float:
        """Return the first of several numbers that is there.

        :raises InputError: if none is, or it can't be meant.
        """
        for path in paths:
            if (value := value_at(self.data, path)) is not None:
                return self._number(path, value)
        raise self.wrong(paths[0], None, "a number")

    def maybe(self, *paths: str) -> float | None:
        """Return such a number; None if none is there."""
        return self.number(*paths) if any(self.has(path) for path in paths) else None

    def text(self, *paths: str) -> str | None:
        """Return the first text that is there."""
        return next((value for path in paths if isinstance(value := value_at(self.data, path), str)), None)

    def wrong(self, path: str, got: object, allowed: str) -> InputError:
        """Return the error for a field."""
        problem = "is missing" if got is None else "can't be used"
        return InputError(f"{problem} in {self.form}", file=self.file, key=self._path(path), got=got, allowed=allowed)

    def _numbers(self, path: str, values: list[Any]) -> Floats:
        """Check numbers together, which a file may have millions of; one by one only to name the one that is wrong."""
        if set(map(type, values)) <= _NUMERIC:
            try:
                found = np.array(values, dtype=np.float64)
            except OverflowError:  # an integer beyond all floats
                pass
            else:
                if ((found >= 0) & (found <= MOST)).all():
                    return found
        return np.array([self._number(f"{path}.{place}", value) for place, value in enumerate(values)])

    def _number(self, path: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise self.wrong(path, value, "a number")
        if not 0 <= value <= MOST:
            raise self.wrong(path, value, f"0 to {MOST:g}")
        return float(value)

    def _path(self, path: str) -> str:
        return f"{self.where}.{path}" if self.where else path


VLLM = "vllm bench serve"

Kind = Literal["ttft", "tpot", "itl", "e2e"]
KINDS: tuple[Kind, ...] = ("ttft", "tpot", "itl", "e2e")
QUANTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class ClosedLoad:
    """A client that keeps so many requests in flight."""

    concurrency: int

    @property
    def words(self) -> str:
        return f"closed loop, {self.concurrency:,} at a time"


@dataclass(frozen=True, slots=True)
class OpenLoad:
    """A client that sends at a rate, whatever the server does.

    :ivar shape: of the gamma law of the gaps: 1 is Poisson, infinite a constant rate.
    :ivar cap: most requests in flight, which a client may also have; None without.
    """

    rate_rps: float
    shape: float = 1.0
    cap: int | None = None

    @property
    def words(self) -> str:
        process = "Poisson" if self.shape == 1 else "constant" if math.isinf(self.shape) else f"gamma {self.shape:g}"
        cap = "" if self.cap is None else f", {self.cap:,} at a time at most"
        return f"open loop, {process} {self.rate_rps:.4g}/s{cap}"


@dataclass(frozen=True, slots=True)
class BenchRequests:
    """Every completed request, in the order in which it was sent.

    :ivar start_s: when it was sent, from the first one on.
    :ivar ttft_s, e2e_s: seconds from there.
    """

    start_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    ttft_s: Floats
    e2e_s: Floats
    gaps_s: Floats

    def values(self, kind: Kind) -> Floats:
        """Return a latency of every request that has it, in seconds; of ITL every gap."""
        if kind == "ttft":
            return self.ttft_s
        if kind == "e2e":
            return self.e2e_s
        if kind == "itl":
            return self.gaps_s
        several = self.output_tokens > 1
        return np.asarray((self.e2e_s - self.ttft_s)[several] / (self.output_tokens[several] - 1))


@dataclass(frozen=True, slots=True)
class TokenSummary:
    """Lengths of prompts or answers: the mean, and the 99 % quantile where the file has it."""

    mean: float
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class BenchRun:
    """A run.

    :ivar tool: such as ``vllm bench serve``; ``name``: the file, and which run in it.
    :ivar model: as the client names it, if it does.
    :ivar measured: by metric such as ``ttft_mean_s`` or ``requests_per_s``.
    :ivar errors: half-widths of 95 % intervals of these, as far as the file has what they need.
    :ivar rows: every request; None where the file has summaries only.
    :ivar cut_short: whether the client was stopped before the end.
    :ivar engine: that the client says it measured, if it does: ``sglang``.
    :ivar accepted: mean tokens of a step with speculative decoding; None without.
    :ivar notes: on the set of runs that this is the first of.
    """

    tool: str
    name: str
    model: str | None
    load: ClosedLoad | OpenLoad
    completed: int
    failed: int
    prompt: TokenSummary
    output: TokenSummary
    measured: Mapping[str, float]
    errors: Mapping[str, float] = field(default_factory=dict)
    rows: BenchRequests | None = None
    cut_short: bool = False
    engine: str | None = None
    accepted: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def latency_s(self) -> float | None:
        """Mean E2E, or TTFT and the gaps after it; None where neither was measured."""
        found = self.measured
        if "e2e_mean_s" in found:
            return found["e2e_mean_s"]
        if not {"ttft_mean_s", "tpot_mean_s"} <= found.keys():  # ITL may be one of several tokens
            return None
        return found["ttft_mean_s"] + found["tpot_mean_s"] * max(self.output.mean - 1, 0.0)

    @property
    def lost(self) -> float:
        """The share of its requests that failed."""
        return self.failed / max(self.failed + self.completed, 1)

    @property
    def comparable(self) -> Mapping[str, float]:
        """What was measured of all requests: clients count answers alone, so rates are left out where 1 % failed."""
        kept = self.lost < 0.01
        return {name: value for name, value in self.measured.items() if kept or not name.endswith("_per_s")}

    @property
    def words(self) -> str:
        """The run in a few words."""
        return f"{self.tool}, {self.load.words}, {self.completed:,} requests"


def measures_of(rows: BenchRequests) -> tuple[dict[str, float], dict[str, float]]:
    """Return latencies of requests by name, and half-widths of their 95 % intervals.

    Those of quantiles are by order statistics, and left out where they reach beyond the largest value: a p99 needs 381
    values. Requests are taken as independent, though neighbours share batches: the true intervals are wider.
    """
    measured, errors = {}, {}
    for kind in KINDS:
        values = np.sort(rows.values(kind))
        if not len(values):
            continue
        measured[f"{kind}_mean_s"] = float(values.mean())
        errors[f"{kind}_mean_s"] = 1.96 * float(values.std()) / math.sqrt(len(values))
        for percent in QUANTILES:
            name, share = f"{kind}_p{percent}_s", percent / 100
            measured[name] = float(np.quantile(values, share))
            spread = 1.96 * math.sqrt(share * (1 - share) / len(values))
            if share + spread <= 1:
                low, high = np.quantile(values, [share - spread, share + spread])
                errors[name] = float(high - low) / 2
    return measured, errors


# A run of which a few numbers are known, and no file: ``concurrency=8,prompt=512,output=128,tpot=24ms,ttft=180ms``.


def _count(text: str) -> float:
    if not text.isdecimal() or not 0 < int(text) <= 10**7:
        raise ValueError("not a whole number from 1 to 10,000,000")
    return int(text)


_NUMBERS: dict[str, Callable[[str], float]] = {
    **dict.fromkeys(("concurrency", "prompt", "output", "requests"), _count),
    **dict.fromkeys(("tpot", "ttft", "latency"), parse_seconds),
    **dict.fromkeys(("rate", "throughput"), parse_rate),
    "error": parse_share,
}
_MEASURED = {"tpot": "tpot_mean_s", "ttft": "ttft_mean_s", "latency": "e2e_mean_s", "throughput": "requests_per_s"}
_STATED = (
    "a result (.json), or concurrency=N or rate=N/s, prompt=N and output=N (tokens), and one or more of tpot=TIME, "
    "ttft=TIME, latency=TIME (means) and throughput=N/s (requests); also requests=N, error=PERCENT"
)


MOST_CLIENTS = 4096
"""Clients of a stated run, at most: a server with more is saturated, and says nothing of single steps."""


def stated_run(text: str, key: str) -> BenchRun:
    """Return a run by its numbers. One that doesn't say how many requests it had takes ten a client, at least 100.

    :param key: the option that has them, for error messages.
    :raises InputError: naming the number that is wrong, or what is missing.
    """
    given: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (each.strip() for each in part.partition("="))
        if name not in _NUMBERS or name in given:
            problem, hint = "neither a result (.json) nor a number of a run", did_you_mean(name, _NUMBERS)
            if name in given:
                problem, hint = "the same number twice", None
            raise InputError(problem, key=key, got=part, allowed=_STATED, hint=hint)
        try:
            given[name] = _NUMBERS[name](value)
        except ValueError as error:
            raise InputError(str(error), key=key, got=part, allowed=_STATED) from None
    measured = {metric: given[name] for name, metric in _MEASURED.items() if given.get(name)}
    if "concurrency" in given and "rate" in given:
        raise InputError("a concurrency and a rate exclude each other", key=key, got=text, allowed=_STATED)
    if not measured:
        raise InputError("nothing was measured", key=key, got=text, allowed=_STATED)
    if not {"prompt", "output"} <= given.keys() or not {"concurrency", "rate"} & given.keys():
        raise InputError("too few numbers", key=key, got=text, allowed=_STATED)
    if given.get("concurrency", 0) > MOST_CLIENTS:
        raise InputError("too many clients", key=key, got=text, allowed=f"a concurrency up to {MOST_CLIENTS:,}")
    clients = int(given.get("concurrency", 0))
    load = ClosedLoad(clients) if clients else OpenLoad(given["rate"])
    return BenchRun(
        tool="numbers",
        name=f"{load.words.partition(', ')[2]}, {given['prompt']:,} + {given['output']:,} tokens",
        model=None,
        load=load,
        completed=int(given.get("requests", max(10 * clients, 100))),
        failed=0,
        prompt=TokenSummary(given["prompt"]),
        output=TokenSummary(given["output"]),
        measured=measured,
        errors={metric: given["error"] * value for metric, value in measured.items() if "error" in given},
    )
