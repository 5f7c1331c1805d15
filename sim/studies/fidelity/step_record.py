"""Records of a real engine, step by step: reading and checking them.

A record is gzip JSON (or plain JSON), written by a script that hooks a running vLLM: its ``config``, its ``requests``,
and for every ``step`` what was scheduled, which requests were preempted, which adapters the batch used (in the
order in which they were touched), and which were loaded and evicted.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from sim.errors import InputError
from sim.reading import RECORD_BYTES, read_bounded, read_regular
from sim.spec.engine_versions import VERSIONS, Versions, versions_of


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


Count = Annotated[int, Field(ge=1, le=10_000_000)]
Time = Annotated[float, Field(ge=0, le=1e7)]


class RecordConfig(_Part):
    """How the engine was set up; ``kv_blocks`` counts one that it never uses."""

    slots: Count
    host_slots: Count
    adapters: Count
    max_num_seqs: Count
    max_num_batched_tokens: Count
    block_size: Count
    kv_blocks: Count


class RecordedRequest(_Part):
    """A request; times in seconds since the engine was ready."""

    id: NonNegativeInt
    adapter: NonNegativeInt
    prompt_tokens: Count
    output_tokens: Count
    arrival_s: Time
    finished_s: Time | None = None


class RecordedStep(_Part):
    """A step: tokens by request, those preempted, adapters in the order they were touched, loads, evictions.

    :ivar loads: (adapter, seconds) in their order.
    :ivar evictions: (adapter, whether it was in this batch) in their order.
    """

    at_s: Time
    scheduled: dict[int, PositiveInt]
    preempted: tuple[int, ...] = ()
    adapters: tuple[int, ...]
    loads: tuple[tuple[int, Time], ...] = ()
    evictions: tuple[tuple[int, bool], ...] = ()


class StepRecord(_Part):
    """A complete record."""

    engine: str
    mode: str
    config: RecordConfig
    requests: tuple[RecordedRequest, ...]
    steps: tuple[RecordedStep, ...]

    @property
    def preset(self) -> str:
        """The engine preset whose rules this record should follow."""
        versions = _versions(self.engine)
        assert versions is not None, "checked when it was read"
        return versions.preset

    @model_validator(mode="after")
    def _fits_together(self) -> StepRecord:
        if not self.requests or not self.steps:
            raise ValueError("a record needs requests and steps")
        if [request.id for request in self.requests] != list(range(len(self.requests))):
            raise ValueError("request ids must count 0, 1, 2, …")
        config = self.config
        if config.host_slots < config.slots:
            raise ValueError(f"config.host_slots ({config.host_slots}) must be at least config.slots ({config.slots})")
        if config.kv_blocks < 2:
            raise ValueError("config.kv_blocks must be at least 2: one is never used")
        if config.max_num_batched_tokens < config.max_num_seqs:
            raise ValueError("config.max_num_batched_tokens must be at least config.max_num_seqs")
        if any(after.at_s < before.at_s for before, after in pairwise(self.steps)):
            raise ValueError("steps must be in the order of their times")
        for request in self.requests:
            if request.finished_s is not None and request.finished_s < request.arrival_s:
                raise ValueError(f"request {request.id} ends before it arrives")
        known = config.adapters
        if any(request.adapter >= known for request in self.requests):
            raise ValueError(f"a request names an adapter beyond config.adapters ({known})")
        for number, step in enumerate(self.steps):
            if any(not 0 <= index < len(self.requests) for index in (*step.scheduled, *step.preempted)):
                raise ValueError(f"step {number} schedules a request that the record doesn't have")
            named = (*step.adapters, *(load[0] for load in step.loads), *(eviction[0] for eviction in step.evictions))
            if any(not 0 <= adapter < known for adapter in named):
                raise ValueError(f"step {number} names an adapter beyond config.adapters ({known})")
        return self


def read_record(path: Path) -> StepRecord:
    """Read a record.

    :raises InputError: naming the file, the field and the value.
    """
    where = str(path)
    try:
        raw = read_regular(path, RECORD_BYTES)
    except OSError as error:
        raise InputError("can't read the record", file=where, got=error.strerror) from None
    if raw[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as packed:
                raw = read_bounded(packed, RECORD_BYTES, where)
        except (OSError, EOFError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno == errno.EFBIG:
                raise InputError("can't read the record", file=where, got=error.strerror) from None
            raise InputError(
                "the gzip file is damaged or cut short", file=where, got=str(error), hint="copy or record it again"
            ) from None
    try:
        data: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError("the record is not JSON", file=where, got=str(error)) from None
    engine = data.get("engine") if isinstance(data, dict) else None
    if isinstance(engine, str) and _versions(engine) is None:
        raise InputError(
            "the rules of this engine version are not known",
            file=where,
            key="engine",
            got=engine,
            allowed="vllm " + ", ".join(row.words for row in VERSIONS["vLLM"] if row.simulated),
        )
    try:
        return StepRecord.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "record"
        got = first["input"] if isinstance(first["input"], (str, int, float)) else None
        raise InputError(first["msg"].removeprefix("Value error, "), file=where, key=key, got=got) from None


def _versions(engine: str) -> Versions | None:
    """Return the versions whose rules ``vllm 0.32.0 (cpu)`` follows."""
    return versions_of(engine.partition(" (")[0]) if any(map(str.isdigit, engine)) else None
