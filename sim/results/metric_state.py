"""How far a metric can be trusted, as data: a cause with its numbers, of which notes and sentences are made.

Files have a note for each value. ``State.note`` writes it, and nothing reads it again: files of points keep the cause
and its numbers too.
"""

from __future__ import annotations

import math
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


class Cause(Enum):
    """Why a metric has no value, no interval, or one that can't be trusted; with the note that files have for it."""

    NONE = (Kind.SETTLED, "")
    WIDE = (Kind.WIDE, "the 95 % interval is wider than ±10 %; {longer}")
    WIDE_OVER_REPLICATIONS = (Kind.WIDE, "the 95 % interval is wider than ±10 %; run more replications")
    NO_REQUESTS = (Kind.TOO_FEW_REQUESTS, "not enough data")
    FEW_REQUESTS = (Kind.TOO_FEW_REQUESTS, "not enough data: {measured}, {needed:,} are needed")
    NONE_REROUTED = (Kind.NOT_MEASURED, "no request was rerouted and completed")
    NO_BASELINE = (Kind.NOT_MEASURED, "the same traffic without the rollouts and faults was not simulated")
    FEW_SECTIONS = (Kind.RUN_TOO_SHORT, "the run is too short for an interval; run more requests")
    SMALL_SECTIONS = (
        Kind.RUN_TOO_SHORT,
        "the run is too short: some sections have fewer than {needed} requests; run more requests",
    )
    FEW_EFFECTIVE = (Kind.RUN_TOO_SHORT, "the effective sample size is {found:,}, {needed:,} are needed; {longer}")
    ONE_REPLICATION = (Kind.ONE_REPLICATION, "one replication gives no interval")
    LOADER_BUSY = (Kind.NEAR_SATURATION, "the loader is busy {share:.1%} of the time, close to saturation")
    SERVER_BUSY = (Kind.NEAR_SATURATION, "the server is busy {share:.1%} of the time, close to saturation")
    OVERLOADED = (Kind.OVERLOADED, "more requests arrive than are served, so the value depends on how long the run is")
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
    :ivar recorded: whether the requests are those of a trace, which is replayed once.
    :ivar by_cycle: whether sections are one cycle that the rate repeats, or parts of it, which differ by design.
    """

    cause: Cause = Cause.NONE
    found: int = 0
    needed: int = 0
    others: int = 0
    share: float = 0.0
    times: float | None = None
    requests: int | None = None
    recorded: bool = False
    by_cycle: bool = False
    once: bool = False

    @property
    def kind(self) -> Kind:
        """What the cause means for the reader."""
        return self.cause.kind

    @property
    def times_longer(self) -> float | None:
        """How many times as long the run must be for a settled value, at least; None where that is unknown."""
        if self.cause is Cause.FEW_EFFECTIVE and self.found:
            return self.needed / self.found
        return self.times

    @property
    def longer(self) -> str:
        """How long the run must be, as advice."""
        if self.by_cycle:
            return "run five or more replications of whole cycles"
        if self.once:
            times = self.times_longer or math.inf
            many = f"at least {max(2, math.ceil(times))} times as many" if times <= MANY_TIMES else "many more"
            return f"run {many} replications"
        if self.requests:
            return f"run at least {self.requests:,} requests"
        verb = "take a trace" if self.recorded else "run"
        if self.times_longer and self.times_longer > MANY_TIMES:
            return f"{verb} more than {MANY_TIMES} times as long"
        if not self.times_longer:
            return "take a longer trace" if self.recorded else "run more requests"
        return f"{verb} at least {max(1.1, self.times_longer):.2g} times as long"

    @property
    def measured(self) -> str:
        """How many requests were measured, in words."""
        return f"{self.found:,} {'request was' if self.found == 1 else 'requests were'} measured"

    @property
    def note(self) -> str:
        """The text that ``summary.json`` and the files of points have for it."""
        return self.cause.note.format(**self._numbers(), longer=self.longer, measured=self.measured)

    def to_json(self) -> dict[str, Any]:
        """Return the cause and those numbers that say something, as plain data."""
        return {"cause": self.cause.name, **{name: value for name, value in self._numbers().items() if value}}

    def _numbers(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _NUMBERS}


_NUMBERS = ("found", "needed", "others", "share", "times", "requests", "recorded", "by_cycle", "once")
SETTLED = State()
TRUSTED = frozenset({Kind.SETTLED, Kind.NOT_MEASURED, Kind.NOT_APPLICABLE})
"""Kinds of states in which there is nothing to doubt: the value is sound, or none is to be expected."""
