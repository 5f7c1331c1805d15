"""Records of SGLang, step by step: reading them, and replaying them through the simulator's scheduler and slots.

A record has the form of those of vLLM, and says more: every step is a *try* of the scheduler, and a try that ran
nothing is left out. What comes from the record is when requests joined the queue, and the order of the adapters' ids.
"""

from __future__ import annotations

from bisect import insort
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from sim.policies.admission import by_key
from sim.policies.batch_slots import BatchSlots
from sim.policies.costs import StepCosts
from sim.policies.kv.radix_memory import RadixMemory
from sim.policies.queues.rejoining import LoadingAheadQueue, RejoiningQueue, ScannedQueue
from sim.policies.scheduler import Limits
from sim.policies.sglang_scheduler import FIRST_RATIO, SglangScheduler
from sim.spec.profile import StepCost
from sim.studies.fidelity.step_record import Count, PairRecord, Part, StepRecord, Time, read_data, validated
from sim.studies.fidelity.step_replay import EngineReplay, Replay, give_text
from sim.studies.fidelity.transfer_replay import OffloadReplay, PairReplay
from sim.traffic.request import Request

MOST_TRIES = 1_000_000


class SglangConfig(Part):
    """How the server was set up; see the fields of ``fleet`` and ``cache`` that have the same meaning.

    :ivar ratio: of ``max_tokens``, what is reserved at first and at least, and how far it falls with each step.
    :ivar order: adapters in the order of their ids.
    :ivar overlap_loading, drain: tries that a load takes, and that an adapter waits for; 0: off.
    """

    slots: Count
    adapters: Count
    max_num_seqs: Count
    max_num_batched_tokens: Count
    block_size: Count
    kv_tokens: Count
    prefix_caching: bool
    texts: NonNegativeInt = 0
    eviction: Literal["lru", "fifo"]
    pinned: tuple[NonNegativeInt, ...] = ()
    policy: Literal["fcfs", "lpm"] = "fcfs"
    mixed: bool = False
    overlap_schedule: bool = False
    overlap_loading: NonNegativeInt = 0
    drain: NonNegativeInt = 0
    ignore_eos: bool = False
    ratio: tuple[float, float, float]
    order: tuple[NonNegativeInt, ...]


class SglangRequest(Part):
    """A request; with ``before_try``, the first try before whose start it was in the queue."""

    id: NonNegativeInt
    adapter: NonNegativeInt | None
    prompt_tokens: Count
    output_tokens: Count
    max_tokens: Count
    before_try: PositiveInt
    prefix: tuple[NonNegativeInt, NonNegativeInt] | None = None
    session: NonNegativeInt | None = None
    after: NonNegativeInt | None = None


class SglangStep(Part):
    """A step; ``uncached``: tokens that were thrown out of the tree. None stands for the base model."""

    number: PositiveInt
    scheduled: dict[int, PositiveInt] = Field(default_factory=dict)
    cached: dict[int, NonNegativeInt] = Field(default_factory=dict)
    preempted: tuple[int, ...] = ()
    adapters: tuple[int | None, ...] = ()
    loads: tuple[tuple[int | None, Time], ...] = ()
    evictions: tuple[tuple[int | None, bool], ...] = ()
    uncached: NonNegativeInt = 0

    @model_validator(mode="before")
    @classmethod
    def _try_is_a_word_of_python(cls, data: object) -> object:
        return {**data, "number": data.get("try")} if isinstance(data, dict) else data


class SglangRecord(Part):
    """A complete record."""

    engine: str
    mode: str
    config: SglangConfig
    requests: tuple[SglangRequest, ...]
    steps: tuple[SglangStep, ...]

    preset: Literal["sglang"] = "sglang"

    @model_validator(mode="after")
    def _fits_together(self) -> SglangRecord:
        config, known = self.config, self.config.adapters
        if not self.requests or not self.steps:
            raise ValueError("a record needs requests and steps")
        if [request.id for request in self.requests] != list(range(len(self.requests))):
            raise ValueError("request ids must count 0, 1, 2, …")
        if sorted(config.order) != list(range(known)):
            raise ValueError("config.order must name each adapter once")
        if len(set(config.pinned)) >= config.slots or any(adapter >= known for adapter in config.pinned):
            raise ValueError("config.pinned must name fewer adapters than there are slots")
        if any(after.number <= before.number for before, after in pairwise(self.steps)):
            raise ValueError("steps must be in the order of their tries")
        if self.steps[-1].number > MOST_TRIES:
            raise ValueError(f"at most {MOST_TRIES} tries can be replayed")
        for request in self.requests:
            if request.adapter is not None and request.adapter >= known:
                raise ValueError(f"request {request.id} names an adapter beyond config.adapters ({known})")
            if request.max_tokens < request.output_tokens:
                raise ValueError(f"request {request.id} gives more tokens than max_tokens ({request.max_tokens})")
            if request.prompt_tokens + request.max_tokens + config.block_size >= config.kv_tokens:
                raise ValueError(f"request {request.id} is too long for config.kv_tokens ({config.kv_tokens})")
            if request.prefix is not None and request.prefix[1] > request.prompt_tokens:
                raise ValueError(f"request {request.id}: prefix is longer than prompt_tokens ({request.prompt_tokens})")
            if request.after is not None and request.after >= request.id:
                raise ValueError(f"request {request.id}: after ({request.after}) must be an earlier request")
        return self


def read_any_record(path: Path) -> StepRecord | SglangRecord | PairRecord:
    """Read a record of vLLM, of two of them, or of SGLang.

    :raises InputError: naming the file, the field and the value.
    """
    data = read_data(path)
    engine = data.get("engine") if isinstance(data, dict) else None
    if not (isinstance(engine, str) and engine.lower().startswith("sglang")):
        if isinstance(data, dict) and "d" in data:
            return validated(PairRecord, data, path)
        return validated(StepRecord, data, path)
    return validated(SglangRecord, data, path)


def replay_any_record(record: StepRecord | SglangRecord | PairRecord) -> Replay:
    """Replay a record, step by step."""
    if isinstance(record, SglangRecord):
        return Replayer(record).run()
    if isinstance(record, PairRecord):
        return PairReplay(record).run()
    return (EngineReplay if record.config.offload is None else OffloadReplay)(record).run()


class Replayer:
    """A record's server, and the requests to come."""

    def __init__(self, record: SglangRecord) -> None:
        config = record.config
        self.record = record
        order = [0] * config.adapters
        for place, adapter in enumerate(config.order):
            order[adapter] = place
        self.cache = BatchSlots(config.slots, order, fifo=config.eviction == "fifo", pinned=config.pinned)
        self.memory = RadixMemory(
            config.kv_tokens // config.block_size, config.block_size, caches=config.prefix_caching
        )
        limits = Limits(config.max_num_seqs, config.max_num_batched_tokens, prefill_first=not config.mixed)
        self.scheduler = SglangScheduler(
            limits,
            self.memory,
            self._queue(),
            [0] * config.adapters,
            StepCosts(StepCost(), config.slots, config.max_num_batched_tokens),
            conservativeness=config.ratio[0] / FIRST_RATIO,
            overlapped=config.overlap_schedule,
            ignores_end=config.ignore_eos,
            longest_prefix_first=config.policy == "lpm",
        )
        self._started: list[int] = []  # overlapped loads of the try under way
        self._ready: dict[int, int] = {}  # the tries in which they end
        self._number = 0
        self.base_model = self.cache.serve_base_model()
        self.scheduler.admit_base_model(self.base_model)
        self.requests = [self._request(request) for request in record.requests]
        self._coming = sorted((request.before_try, request.id) for request in record.requests if request.after is None)
        self._next_turns = {request.after: request for request in record.requests if request.after is not None}

    def _queue(self) -> RejoiningQueue:
        config = self.record.config
        if config.overlap_loading:
            return LoadingAheadQueue(self.cache, self._start_load, lambda request: None, float(config.drain))
        if config.drain or config.policy == "lpm":
            return ScannedQueue(self.cache, float(config.drain))
        return RejoiningQueue(self.cache, None, stop=False, gives_up=True)

    def _start_load(self, request: Request) -> bool:
        self._started.append(request.adapter)
        self._ready[request.adapter] = self._number + self.record.config.overlap_loading
        return False

    def _request(self, recorded: SglangRequest) -> Request:
        adapter = self.base_model if recorded.adapter is None else recorded.adapter
        request = Request(
            recorded.id, recorded.before_try - 1.0, adapter, recorded.prompt_tokens, recorded.output_tokens
        )
        request.max_tokens = recorded.max_tokens
        give_text(request, recorded, self.record.config.texts)
        return request

    def run(self) -> Replay:
        record = self.record
        result = Replay.of(record.steps)
        last = {request: number for number, step in enumerate(record.steps) for request in step.scheduled}
        steps = {step.number: (place, step) for place, step in enumerate(record.steps)}
        for number in range(1, record.steps[-1].number + 1):
            place, step = steps.get(number, (-1, None))
            for request in self._try(number, place, step, result):
                late = max(place, 0) - last.get(request.index, place)
                overrun = record.config.overlap_schedule and late == -1  # it took part once more, in vain
                result.late_steps[request.index] = 0 if overrun else late
        return result

    def _try(self, number: int, place: int, step: SglangStep | None, result: Replay) -> list[Request]:
        scheduler, cache, memory = self.scheduler, self.cache, self.memory
        while self._coming and self._coming[0][0] <= number:
            scheduler.waiting.push(self.requests[self._coming.pop(0)[1]])
        before, thrown_out = list(scheduler.running), memory.thrown_out
        victims: list[int] = []
        cache.victims = victims
        self._started, self._number = [], number
        for adapter in [adapter for adapter, at in self._ready.items() if at <= number]:
            del self._ready[adapter]
            cache.arrived(adapter)
        decided = scheduler.plan(float(number))
        scheduled = scheduler.scheduled() | {request.index: 1 for request in scheduler.overrunning}
        batch = {request.index: request for request in (*scheduler.running, *scheduler.overrunning)}
        cached = {request.index: request.context - request.chunk for request in decided.prefills}
        gone = [request for request in before if request.last_step < 0 and request.index not in batch]
        retracted = [request.index for request in sorted(gone, key=by_key) if request.preemptions]
        loads = self._started
        if scheduled and not self.record.config.overlap_loading:
            loads = cache.fetch({batch[index].adapter for index in scheduled})
        scheduler.waiting.unloaded.clear()
        cache.check_integrity()
        scheduler.check_integrity()
        if step is None:
            if scheduled and result.first_difference is None:
                result.first_difference = f"try {number}: the replay runs a step that the record doesn't have"
        else:
            name = {self.base_model: None}
            ours = [name.get(adapter, adapter) for adapter in loads]
            comparisons: list[tuple[str, object, object]] = [
                ("tokens by request", scheduled, step.scheduled),
                ("cached tokens by request", cached, step.cached),
                ("retracted", retracted, list(step.preempted)),
                ("loads", ours, [adapter for adapter, _ in step.loads]),
                ("evictions", [name.get(adapter, adapter) for adapter in victims], [a for a, _ in step.evictions]),
                ("tokens thrown out", memory.thrown_out - thrown_out, step.uncached),
            ]
            result.predicted_cached_tokens += sum(cached.values())
            result.predicted_loads += len(loads)
            result.equal_loads += sum(a == b[0] for a, b in zip(ours, step.loads, strict=False))
            result.compare(f"step {place} (try {number})", comparisons)
        finished = scheduler.complete(1, float(number)) if decided.steps else []
        known_at = number + (2 if self.record.config.overlap_schedule else 1)
        for request in finished:
            cache.release(request.adapter)
            turn = self._next_turns.get(request.index)
            if turn is not None:
                insort(self._coming, (max(known_at, turn.before_try), turn.id))  # its client may pause
        return finished
