"""How far a metric can be trusted, as data: a cause with its numbers, of which notes and sentences are made.

Files have a note for each value. ``State.note`` writes it, and nothing reads it again: files of points keep the cause
and its numbers too. Older versions kept notes alone; ``stored_state`` knows their texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Kind(Enum):
    """What a cause means for whoever reads the metric."""

    SETTLED = "settled"
    WIDE = "wide"
    TOO_FEW_REQUESTS = "too few requests"
    RUN_TOO_SHORT = "run too short"
    ONE_REPLICATION = "one replication"
    NEAR_SATURATION = "near saturation"
    OVERLOADED = "overloaded"
    INCOMPLETE = "rollout not complete"
    NOT_MEASURED = "not measured"
    """The engine, the SLO or the traffic lacks what it is made from: tables say so."""
    NOT_APPLICABLE = "not applicable"
    """The scenario has nothing that it could be about: tables leave it out."""
    UNKNOWN = "unknown"


class Cause(Enum):
    """Why a metric has no value, no interval, or one that can't be trusted; with the note that files have for it."""

    NONE = (Kind.SETTLED, "")
    WIDE = (Kind.WIDE, "the 95 % interval is wider than ±10 %; {longer}")
    WIDE_OVER_REPLICATIONS = (Kind.WIDE, "the 95 % interval is wider than ±10 %; run more replications")
    NO_REQUESTS = (Kind.TOO_FEW_REQUESTS, "not enough data")
    FEW_REQUESTS = (
        Kind.TOO_FEW_REQUESTS,
        "not enough data: {found:,} requests were measured, {needed:,} are needed",
    )
    NONE_REROUTED = (Kind.NOT_MEASURED, "no request was rerouted and completed")
    NO_BASELINE = (Kind.NOT_MEASURED, "the same traffic without the rollouts and faults was not simulated")
    FEW_SECTIONS = (Kind.RUN_TOO_SHORT, "the run is too short for an interval; run more requests")
    SMALL_SECTIONS = (
        Kind.RUN_TOO_SHORT,
        "the run is too short: some sections have fewer than {needed} requests; run more requests",
    )
    FEW_EFFECTIVE = (
        Kind.RUN_TOO_SHORT,
        "the effective sample size is {found:,}, {needed:,} are needed; {longer}",
    )
    ONE_REPLICATION = (Kind.ONE_REPLICATION, "one replication gives no interval")
    LOADER_BUSY = (Kind.NEAR_SATURATION, "the loader is busy {share:.1%} of the time, close to saturation")
    SERVER_BUSY = (Kind.NEAR_SATURATION, "the server is busy {share:.1%} of the time, close to saturation")
    OVERLOADED = (
        Kind.OVERLOADED,
        "more requests arrive than are served, so the value depends on how long the run is",
    )
    NOT_COMPLETE = (Kind.INCOMPLETE, "not complete before the end of the run")
    ROLLED_BACK = (Kind.INCOMPLETE, "not complete before the end of the run; rolled back")
    COMPLETE_IN_SOME = (Kind.INCOMPLETE, "complete in {found} of {needed} replications")
    ROLLED_BACK_IN_SOME = (Kind.INCOMPLETE, "complete in {found} of {needed} replications; rolled back in {others}")
    NO_TOKENS = (Kind.NOT_MEASURED, "engine fixed has no tokens")
    NO_TARGET = (Kind.NOT_MEASURED, "the SLO has no target for single requests")
    NO_SESSIONS = (Kind.NOT_MEASURED, "the traffic has no sessions")
    NO_ROLLOUT = (Kind.NOT_APPLICABLE, "the scenario has no rollout")
    NO_FAULT = (Kind.NOT_APPLICABLE, "the scenario has no such fault")
    NO_CHANGE = (Kind.NOT_APPLICABLE, "the scenario has neither rollouts nor faults")
    ONE_REPLICA = (Kind.NOT_APPLICABLE, "there is one replica")
    UNKNOWN = (Kind.UNKNOWN, "{text}")
    """Another version of loraplan had a cause that this one doesn't know."""

    def __init__(self, kind: Kind, note: str) -> None:
        self.kind = kind
        self.note = note


MANY_TIMES = 100
"""Times as long a run beyond which an estimate of how long it must be means little."""


@dataclass(frozen=True, slots=True)
class State:
    """How far a metric can be trusted, and why not further.

    :ivar found, needed: what there is, and what it takes: requests, requests in a section, effective sample size,
        replications.
    :ivar others: replications in which a rollout was rolled back.
    :ivar share: of the time that a part is busy.
    :ivar times: as ``times_longer``, where ``found`` and ``needed`` don't say it.
    :ivar requests: ``workload.requests`` for such a run; None where a trace or a duration gives the length.
    :ivar text: of a cause that this version doesn't know.
    """

    cause: Cause = Cause.NONE
    found: int = 0
    needed: int = 0
    others: int = 0
    share: float = 0.0
    times: float | None = None
    requests: int | None = None
    text: str = ""

    @property
    def kind(self) -> Kind:
        """What the cause means for the reader."""
        return self.cause.kind

    @property
    def times_longer(self) -> float | None:
        """How many times as long the run must be for a settled value, about; None where that is unknown."""
        if self.cause is Cause.FEW_EFFECTIVE and self.found:
            return self.needed / self.found
        return self.times

    @property
    def note(self) -> str:
        """The text that ``summary.json`` and the files of points have for it."""
        if not self.cause.note:
            return ""
        longer = "run more requests"
        if self.requests:
            longer = f"run about {self.requests:,} requests"
        elif self.times_longer and self.times_longer > MANY_TIMES:
            longer = f"run more than {MANY_TIMES} times as long"
        elif self.times_longer:
            longer = f"run about {self.times_longer:.2g} times as long"
        return self.cause.note.format(**self._numbers(), longer=longer)

    def to_json(self) -> dict[str, Any]:
        """Return the cause and those numbers that say something, as plain data."""
        return {"cause": self.cause.name, **{name: value for name, value in self._numbers().items() if value}}

    def _numbers(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _NUMBERS}


_NUMBERS = ("found", "needed", "others", "share", "times", "requests", "text")
SETTLED = State()
TRUSTED = frozenset({Kind.SETTLED, Kind.NOT_MEASURED, Kind.NOT_APPLICABLE})
"""Kinds of states in which there is nothing to doubt: the value is sound, or none is to be expected."""

OLD_NOTES = {
    **{cause: cause.note for cause in Cause if cause is not Cause.UNKNOWN},
    Cause.WIDE: "95 % interval wider than ±10%: run more requests or replications",
    Cause.WIDE_OVER_REPLICATIONS: "95 % interval wider than ±10%: run more replications",
    Cause.FEW_REQUESTS: "not enough data: {found:,} measured requests, {needed:,} are needed",
    Cause.NONE_REROUTED: "not enough data: no request was rerouted and completed",
    Cause.FEW_SECTIONS: "too few sections for an interval",
    Cause.SMALL_SECTIONS: "fewer than {needed} requests in a section: run more requests",
    Cause.FEW_EFFECTIVE: "the queue swung {found:,} times, {needed:,} are needed: run more requests",
    Cause.ONE_REPLICATION: "one replication: no interval",
    Cause.LOADER_BUSY: "the loader is busy {share:.1%} of the time: near saturation",
    Cause.SERVER_BUSY: "the server is busy {share:.1%} of the time: near saturation",
    Cause.OVERLOADED: "more arrives than is served: depends on how long the run is",
    Cause.NO_TARGET: "the scenario's slo has no target for single requests",
}
"""Notes of versions that kept no states. These texts stay as they are: run directories have them."""

_RENAMED = {"FEW_CYCLES": "FEW_EFFECTIVE", "FEW_CYCLES_OF_MEANS": "FEW_EFFECTIVE"}
"""Causes in files of versions that counted something else than the effective sample size."""

_FIELD = re.compile(r"\\\{(\w+)[^{}]*\\\}")
_DIGITS = {"found": r"[\d,]+", "needed": r"[\d,]+", "others": r"[\d,]+", "share": r"[\d.]+%"}


def stored_state(data: dict[str, Any] | None, note: str, value: float | None, *, settled: bool) -> State:
    """Return the state of a metric that was read from a run directory.

    Run directories of versions without states have only ``note`` and ``settled``. Their notes are the texts of
    ``OLD_NOTES``, so they give back the cause and its numbers; no other place may read notes.

    :param data: what ``State.to_json`` gave; None in files of those versions.
    """
    cause_name = "" if data is None else _RENAMED.get(data.get("cause", ""), data.get("cause", ""))
    if data is not None and cause_name in Cause.__members__:
        return State(Cause[cause_name], **{name: data[name] for name in _NUMBERS if name in data})
    for cause, pattern in _PATTERNS:
        match = pattern.fullmatch(note)
        if match is not None and not (cause is Cause.NONE and not settled):
            return State(cause, **{name: _number(name, text) for name, text in match.groupdict().items()})
    return SETTLED if settled and value is not None else State(Cause.UNKNOWN, text=note)


def _pattern(note: str) -> re.Pattern[str]:
    return re.compile(_FIELD.sub(lambda field: f"(?P<{field[1]}>{_DIGITS[field[1]]})", re.escape(note)))


def _number(name: str, text: str) -> Any:
    return float(text[:-1]) / 100 if name == "share" else int(text.replace(",", ""))


_OTHER_NOTES = (
    (
        Cause.FEW_EFFECTIVE,
        "the queue swung {found:,} times (means of 16 requests), {needed:,} are needed: run more requests",
    ),
)
_PATTERNS = [(cause, _pattern(note)) for cause, note in (*OLD_NOTES.items(), *_OTHER_NOTES)]
