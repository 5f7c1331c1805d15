"""Log what every step of a simulated run was made of, so that its costs can be fitted."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim.arrays import Floats
from sim.traffic.request import Request
from sim.world.replica.continuous import BatchServer

COLUMNS = (
    "ended_s",
    "steps",
    "seconds",
    "load_s",
    "tokens",
    "decoding",
    "prefills",
    "prefill_tokens",
    "kv_tokens",
    "attended",
    "distinct",
    "passed",
)
"""One row for every leap of equal steps; ``kv_tokens`` and ``tokens`` are those of its first step."""


@dataclass(slots=True)
class StepLog:
    """The steps of one replica and the times of its requests.

    :ivar rows: flat, ``len(COLUMNS)`` numbers a leap.
    :ivar requests: flat, for every completed request the times at which it reached the engine and at which the engine
        made its first and its last token, and its output tokens.
    """

    rows: array[float] = field(default_factory=lambda: array("d"))
    requests: array[float] = field(default_factory=lambda: array("d"))

    def columns(self) -> dict[str, Floats]:
        """Return the rows by column, each (leaps,)."""
        table = np.frombuffer(self.rows, dtype=np.float64).reshape(-1, len(COLUMNS))
        return dict(zip(COLUMNS, table.T, strict=True))

    def facts(self, slots: int, max_rank: int) -> dict[str, Floats]:
        """Return what the steps are made of, the mean over each leap, on a server with so many slots."""
        table = self.columns()
        growth = (table["steps"] - 1) / 2
        return {
            "tokens": table["tokens"],
            "sequences": table["decoding"] + table["prefills"],
            "prefill_tokens": table["prefill_tokens"],
            "decode_kv_tokens": table["kv_tokens"] + table["decoding"] * growth,
            "distinct": table["distinct"],
            "slots": np.full_like(growth, slots),
            "max_rank": np.full_like(growth, max_rank),
        }

    def request_columns(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Return times of arrival, first and last token, and output tokens, each (requests,)."""
        arrival, first, last, tokens = np.frombuffer(self.requests, dtype=np.float64).reshape(-1, 4).T
        return arrival, first, last, tokens

    def watching(self, server: type[BatchServer]) -> type[BatchServer]:
        """Return a class of servers like ``server`` that writes into this log."""
        log = self

        class LoggingServer(server):  # type: ignore[valid-type, misc]
            def __init__(self, *parts: Any, **options: Any) -> None:
                super().__init__(*parts, **options)
                self._made_of: tuple[float, ...] = ()
                self._reached_s: dict[int, float] = {}

            def enqueue(self, request: Request, may_join_now: bool) -> None:
                self._reached_s[request.index] = self.clock.now
                super().enqueue(request, may_join_now)

            def _next_leap(self, now: float) -> float:
                if self._steps:
                    log.rows.extend((now, self._steps, now - self._started_s, self._load_s, *self._made_of))
                end = super()._next_leap(now)
                if self._steps:
                    self._made_of = _made_of(self)
                return float(end)

            def _record(self, requests: list[Request], now: float) -> None:
                for r in requests:
                    log.requests.extend((self._reached_s.pop(r.index), r.first_token_s, now, r.output_tokens))
                super()._record(requests, now)

        return LoggingServer


def _made_of(server: BatchServer) -> tuple[float, ...]:
    scheduler = server.scheduler
    step, decoding = scheduler.decided, scheduler.kv.decoding
    sequences, prefill_tokens, attended, _, passed = scheduler.details()
    return (
        step.tokens,
        decoding,
        sequences - decoding,
        prefill_tokens,
        scheduler.kv.tokens + decoding,
        attended,
        scheduler.distinct_adapters,
        passed,
    )
