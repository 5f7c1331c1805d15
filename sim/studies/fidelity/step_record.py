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
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from sim.errors import InputError
from sim.reading import RECORD_BYTES, read_bounded, read_regular
from sim.spec.engines import VERSIONS, Versions, has_version, versions_of


class Part(BaseModel):
    """A part of a record; what it says beyond the fields is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


Count = Annotated[int, Field(ge=1, le=10_000_000)]
Time = Annotated[float, Field(ge=0, le=1e7)]


class RecordConfig(Part):
    """How the engine was set up.

    :ivar kv_blocks: all blocks, with the one that the engine never uses.
    :ivar prefix_caching: whether requests share blocks with the same content.
    :ivar base_share: share of the requests that use the base model.
    :ivar texts: number of texts with which prompts start; 0: no prompts have text in common.
    :ivar sessions: number of conversations.
    :ivar policy: which waiting request goes first, and which running one is preempted last.
    :ivar ends: whether ``max_tokens`` end requests, or a stop token, which asynchronous scheduling can't foresee.
    """

    slots: Count
    host_slots: Count
    adapters: Count
    max_num_seqs: Count
    max_num_batched_tokens: Count
    block_size: Count
    kv_blocks: Count
    prefix_caching: bool = False
    base_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    texts: NonNegativeInt = 0
    sessions: NonNegativeInt = 0
    policy: Literal["fcfs", "priority"] = "fcfs"
    ends: Literal["length", "stop"] = "length"


class RecordedRequest(Part):
    """A request; times in seconds since the engine was ready.

    :ivar adapter: None: the base model.
    :ivar prefix: the text that the prompt starts with, and how many of its tokens; ``tail_tokens``: tokens of its own
        after them. In a conversation, turns after the first start with the whole turn before, its answer too.
    :ivar session: conversation; ``turn``: its turn in there; ``after``: the request of the turn before. This one joins
        the queue at the end of the step in which that one ends.
    :ivar before_step: of a record in real time, the first step before whose start it was in the queue.
    """

    id: NonNegativeInt
    adapter: NonNegativeInt | None
    prompt_tokens: Count
    output_tokens: Count
    arrival_s: Time
    prefix: tuple[NonNegativeInt, NonNegativeInt] | None = None
    tail_tokens: NonNegativeInt | None = None
    session: NonNegativeInt | None = None
    turn: NonNegativeInt | None = None
    after: NonNegativeInt | None = None
    before_step: NonNegativeInt | None = None
    priority: int = 0
    finished_s: Time | None = None


class RecordedStep(Part):
    """A step: tokens by request, those preempted, adapters in the order they were touched, loads, evictions.

    :ivar loads: (adapter, seconds) in their order.
    :ivar evictions: (adapter, whether it was in this batch) in their order.
    :ivar cached: with prefix caching, the tokens that were found cached, by request that joins in this step.
    :ivar overwritten: cached blocks that were used for something else in this step.
    :ivar updated: of an asynchronous record, as are all that follow: how many steps' outputs had been processed when
        this step was scheduled.
    :ivar running: the running requests in their order, once this step was scheduled; ``finished``: those whose end was
        processed since the step before was scheduled.
    :ivar tokens: requests that got a token from this step, in the order in which it was processed.
    """

    at_s: Time
    scheduled: dict[int, PositiveInt]
    preempted: tuple[int, ...] = ()
    adapters: tuple[int, ...]
    loads: tuple[tuple[int, Time], ...] = ()
    evictions: tuple[tuple[int, bool], ...] = ()
    cached: dict[int, NonNegativeInt] = {}
    overwritten: NonNegativeInt = 0
    updated: NonNegativeInt | None = None
    running: tuple[int, ...] = ()
    finished: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()


class StepRecord(Part):
    """A complete record."""

    engine: str
    asynchronous: bool = Field(default=False, alias="async")
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
            self._check(request)
        known = config.adapters
        for number, step in enumerate(self.steps):
            if any(not 0 <= index < len(self.requests) for index in (*step.scheduled, *step.preempted, *step.cached)):
                raise ValueError(f"step {number} schedules a request that the record doesn't have")
            named = (*step.adapters, *(load[0] for load in step.loads), *(eviction[0] for eviction in step.evictions))
            if any(not 0 <= adapter < known for adapter in named):
                raise ValueError(f"step {number} names an adapter beyond config.adapters ({known})")
        return self

    def _check(self, request: RecordedRequest) -> None:
        config, after = self.config, request.after
        if request.finished_s is not None and request.finished_s < request.arrival_s:
            raise ValueError(f"request {request.id} ends before it arrives")
        if request.adapter is not None and request.adapter >= config.adapters:
            raise ValueError(f"a request names an adapter beyond config.adapters ({config.adapters})")
        if request.prefix is not None:
            text, tokens = request.prefix
            if text >= config.texts:
                raise ValueError(f"request {request.id} names a text beyond config.texts ({config.texts})")
            if tokens > request.prompt_tokens:
                raise ValueError(f"request {request.id}: prefix is longer than prompt_tokens ({request.prompt_tokens})")
        if request.session is not None and request.session >= config.sessions:
            raise ValueError(f"request {request.id} names a session beyond config.sessions ({config.sessions})")
        if after is None:
            return
        if request.session is None or after >= request.id or self.requests[after].session != request.session:
            raise ValueError(f"request {request.id}: after ({after}) must be an earlier request of the same session")
        before = self.requests[after]
        if request.prompt_tokens < before.prompt_tokens + before.output_tokens:
            raise ValueError(f"request {request.id}: prompt_tokens must include request {after} and its answer")


def read_record(path: Path) -> StepRecord:
    """Read a record of vLLM.

    :raises InputError: naming the file, the field and the value.
    """
    return validated(StepRecord, read_data(path), path)


def read_data(path: Path) -> Any:
    """Read the plain data of a record; an engine that it names is one whose rules are known.

    :raises InputError: if there are none, or the engine is another one.
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
        name = "SGLang" if engine.lower().startswith("sglang") else "vLLM"
        raise InputError(
            "the rules of this engine version are not known",
            file=where,
            key="engine",
            got=engine,
            allowed=f"{name.lower()} " + ", ".join(row.words for row in VERSIONS[name] if row.simulated),
        )
    return data


AnyRecord = TypeVar("AnyRecord", bound=BaseModel)


def validated(model: type[AnyRecord], data: Any, path: Path) -> AnyRecord:
    """Return data as a record.

    :raises InputError: naming the file, the field and the value.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "record"
        got = first["input"] if isinstance(first["input"], (str, int, float)) else None
        raise InputError(first["msg"].removeprefix("Value error, "), file=str(path), key=key, got=got) from None


def _versions(engine: str) -> Versions | None:
    """Return the versions whose rules ``vllm 0.32.0 (cpu)`` follows."""
    name = engine.partition(" (")[0]
    return versions_of(name) if has_version(name) else None
