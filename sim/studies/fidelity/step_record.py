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

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from sim.errors import InputError
from sim.reading import RECORD_BYTES, read_bounded, read_regular
from sim.spec.engines import VERSIONS, Versions, has_version, versions_of


class Part(BaseModel):
    """A part of a record; what it says beyond the fields is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


Count = Annotated[int, Field(ge=1, le=10_000_000)]
Time = Annotated[float, Field(ge=0, le=1e7)]


class OffloadConfig(Part):
    """Host memory for KV, and how many steps copies take.

    :ivar load_steps, store_steps: a load is done with the output of this many steps after the one that it was ordered
        with; a store, which begins with the step after it, of one more.
    :ivar answers: whether generated blocks are stored too; ``store_from``: a block is stored when it is offered for
        this time.
    :ivar sync_load_blocks: blocks that may be loaded within a step.
    """

    host_blocks: Count
    policy: Literal["lru", "arc"]
    load_steps: NonNegativeInt
    store_steps: NonNegativeInt
    answers: bool = False
    store_from: NonNegativeInt = 0
    sync_load_blocks: NonNegativeInt = 0


class SideConfig(Part):
    """The limits of an engine, such as one of two.

    :ivar kv_blocks: all blocks, with the one that the engine never uses.
    """

    slots: Count
    host_slots: Count
    max_num_seqs: Count
    max_num_batched_tokens: Count
    block_size: Count
    kv_blocks: Count


class RecordConfig(SideConfig):
    """How the engine was set up.

    :ivar prefix_caching: whether requests share blocks with the same content.
    :ivar base_share: share of the requests that use the base model.
    :ivar texts: number of texts with which prompts start; 0: no prompts have text in common.
    :ivar sessions: number of conversations.
    :ivar policy: which waiting request goes first, and which running one is preempted last.
    :ivar ends: whether ``max_tokens`` end requests, or a stop token, which asynchronous scheduling can't foresee.
    """

    adapters: Count
    prefix_caching: bool = False
    base_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    texts: NonNegativeInt = 0
    sessions: NonNegativeInt = 0
    policy: Literal["fcfs", "priority"] = "fcfs"
    ends: Literal["length", "stop"] = "length"
    offload: OffloadConfig | None = None


class RecordedRequest(Part):
    """A request; times in seconds since the engine was ready.

    :ivar adapter: None: the base model.
    :ivar prefix: the text that the prompt starts with, and how many of its tokens; ``tail_tokens``: tokens of its own
        after them. In a conversation, turns after the first start with the whole turn before, its answer too.
    :ivar session: conversation; ``turn``: its turn in there; ``after``: the request of the turn before. This one joins
        the queue at the end of the step in which that one ends, or later if its client pauses.
    :ivar before_step: of a record in real time, the first step before whose start it was in the queue.
    """

    id: NonNegativeInt
    adapter: NonNegativeInt | None
    prompt_tokens: Count
    output_tokens: Count
    arrival_s: Time = 0.0
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
    :ivar asked: with a KV connector, as are all that follow: requests in the order in which they were looked at, tokens
        cached, and tokens that can be loaded (None: not known yet); ``loading``: those whose KV is on its way.
    :ivar free: free blocks, once this step was scheduled; ``host``: blocks in the host pool.
    :ivar load, store: by request, blocks whose copy was ordered, for a store also those that it evicts; the blocks of a
        store are None if it found no room. ``flush``: copies that had to end first; ``done``: those that had ended with
        this step's output, numbered in the order in which they were ordered.
    :ivar tick: of two engines, when it was scheduled.
    :ivar held: ended requests that hold blocks; ``received``, ``failed``, ``sent``: what the output reports.
    """

    at_s: Time = 0.0
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
    asked: tuple[tuple[int, int, int | None, bool], ...] = ()
    loading: tuple[int, ...] = ()
    free: NonNegativeInt = 0
    host: NonNegativeInt = 0
    load: tuple[tuple[int, tuple[Any, ...]], ...] = ()
    store: tuple[tuple[int, tuple[Any, ...] | None, tuple[Any, ...]], ...] = ()
    flush: tuple[int, ...] = ()
    done: tuple[int, ...] = ()
    tick: NonNegativeInt = 0
    held: tuple[int, ...] = ()
    received: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    sent: tuple[int, ...] = ()

    @field_validator("loads", mode="before")
    @classmethod
    def _without_seconds(cls, loads: object) -> object:
        return [(load, 0.0) if isinstance(load, int) else load for load in loads] if isinstance(loads, list) else loads


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
            if tokens and text >= config.texts:  # prompts without a shared text have one of no tokens
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


class PairConfig(Part):
    """A prefill engine, a decode engine, and how many of its steps the latter's reads take.

    :ivar transfer_rate: blocks a step on top of ``transfer_steps``; 0: they take no longer for more blocks.
    :ivar fail_every: reads fail of requests whose number is one less than a multiple of this; 0: of none. ``failure``:
        whether these compute their prompt on the decode engine, or end.
    :ivar lease_ticks: the prefill engine keeps what was not read for so long after the failure.
    """

    p: SideConfig
    d: SideConfig
    adapters: Count
    texts: NonNegativeInt = 0
    sessions: NonNegativeInt = 0
    transfer_steps: NonNegativeInt
    transfer_rate: NonNegativeInt = 0
    fail_every: NonNegativeInt = 0
    failure: Literal["recompute", "fail"] = "recompute"
    lease_ticks: NonNegativeInt = 0
    ticks: Count


class PairRequest(RecordedRequest):
    """A request; ``tick``: when it came to the prefill engine; ``abort``: on which side it was taken back, and when."""

    tick: NonNegativeInt
    abort: tuple[Literal["p", "d"], NonNegativeInt] | None = None


class PairRecord(Part):
    """A record of a prefill engine and a decode engine, in ticks: in each, both loops are called once."""

    engine: str
    asynchronous: bool = Field(default=False, alias="async")
    config: PairConfig
    requests: tuple[PairRequest, ...]
    p: tuple[RecordedStep, ...]
    d: tuple[RecordedStep, ...]

    def side(self, name: Literal["p", "d"]) -> StepRecord:
        """Return the record of one engine; the prefill engine's answers have one token."""
        own: SideConfig = getattr(self.config, name)
        requests = [request.model_dump(exclude={"tick", "abort"}) for request in self.requests]
        for request in requests:
            if name == "p":
                request["output_tokens"] = 1
            request["after"] = None
        shared = {"adapters": self.config.adapters, "texts": self.config.texts, "sessions": self.config.sessions}
        return StepRecord(
            engine=self.engine,
            **{"async": self.asynchronous},
            mode="ticks",
            config=RecordConfig(**own.model_dump(), **shared, prefix_caching=True),
            requests=tuple(RecordedRequest(**request) for request in requests),
            steps=getattr(self, name),
        )

    @model_validator(mode="after")
    def _fits_together(self) -> PairRecord:
        for name in ("p", "d"):
            ticks = [step.tick for step in getattr(self, name)]
            if ticks != sorted(set(ticks)) or ticks[-1:] > [self.config.ticks]:
                raise ValueError(f"the steps of {name} must be in the order of their ticks, up to config.ticks")
        self.side("p")
        self.side("d")
        return self


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
        raise InputError(f"the record is not JSON: {error}", file=where) from None
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
