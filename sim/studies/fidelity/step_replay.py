"""Replay a record of a real engine through the simulator's scheduler and adapter cache, and compare every step.

What a simulator can't know comes from the record: the order in which the engine touched each batch's adapters (a Python
set's), and for records in real time when each step began.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sim.policies.costs import StepCosts
from sim.policies.kv.kv_store import CountingStore, KvStore
from sim.policies.kv.prefix_store import PrefixStore
from sim.policies.queues.passed_requests import vllm_queue
from sim.policies.scheduler import Limits, Scheduler
from sim.policies.vllm_lru import TouchOrder, VllmLruCache
from sim.spec.engines import preset_value
from sim.spec.profile import StepCost
from sim.studies.fidelity.step_record import RecordedRequest, RecordedStep, StepRecord
from sim.traffic.request import HOLDING, Request

if TYPE_CHECKING:
    from sim.studies.fidelity.sglang_record import SglangRequest, SglangStep


@dataclass(slots=True)
class Replay:
    """How a replay compares with its record.

    :ivar steps: steps of the record; ``equal_steps``: those with the same tokens for the same requests, the same
        preemptions, loads and evictions, with prefix caching the same cached tokens and blocks overwritten, and with
        asynchronous scheduling the same running requests, ends and outputs processed.
    :ivar loads: loads of the record; ``predicted_loads``: of the replay; ``equal_loads``: those at the same place of
        the same step.
    :ivar cached_tokens: tokens of the record that were found cached; ``predicted_cached_tokens``: of the replay.
    :ivar first_difference: a sentence, or None.
    :ivar late_steps: by request, how many steps later than recorded it ended; negative: earlier.
    """

    steps: int
    equal_steps: int = 0
    loads: int = 0
    predicted_loads: int = 0
    equal_loads: int = 0
    cached_tokens: int = 0
    predicted_cached_tokens: int = 0
    first_difference: str | None = None
    late_steps: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, steps: Sequence[RecordedStep | SglangStep]) -> Replay:
        """Return the comparison with a record in which nothing is equal yet."""
        loads = sum(len(step.loads) for step in steps)
        return cls(len(steps), loads=loads, cached_tokens=sum(sum(step.cached.values()) for step in steps))

    def compare(self, step: str, comparisons: Iterable[tuple[str, object, object]]) -> None:
        """Compare a step by (what, replay, record): it is equal, or the first that differs."""
        different = [each for each in comparisons if each[1] != each[2]]
        self.equal_steps += not different
        if different and self.first_difference is None:
            what, ours, theirs = different[0]
            self.first_difference = f"{step}: {what}: replay {_brief(ours, theirs)}, record {_brief(theirs, ours)}"


class _RecordedOrder(TouchOrder):
    """The recorded order of a set of adapters; where the engine never had this set, that in which they joined."""

    def __init__(self, adapters: int) -> None:
        super().__init__(range(adapters))
        self._orders: dict[frozenset[int], tuple[int, ...]] = {}

    def note(self, adapters: tuple[int, ...]) -> None:
        self._orders[frozenset(adapters)] = adapters

    def touched(self) -> list[int]:
        batch = self.batch()
        return list(self._orders.get(frozenset(batch), batch))


class EngineReplay:
    """A record's engine, and the requests to come."""

    def __init__(self, record: StepRecord) -> None:
        config, preset = record.config, record.preset
        self.record = record
        self._orders = _RecordedOrder(config.adapters)
        counts_running = preset_value(preset, "fleet.adapter_limit") == "running"
        self.cache = VllmLruCache(
            config.adapters, config.slots, config.host_slots, self._orders, counts_running=counts_running
        )
        self.waiting = vllm_queue(self.cache, preset_value(preset, "fleet.passed_requests"))
        self.waiting.by_priority = config.policy == "priority"
        limits = Limits(
            config.max_num_seqs,
            config.max_num_batched_tokens,
            preset_value(preset, "fleet.kv_check") == "whole-prompt",
            asynchronous=record.asynchronous,
            ends_scan=preset_value(preset, "fleet.self_preemption") == "ends-scan",
        )
        blocks = config.kv_blocks - preset_value(preset, "fleet.reserved_kv_blocks")
        self.kv = self._store(blocks)
        costs = StepCosts(StepCost(), config.slots, config.max_num_batched_tokens)
        self.scheduler = self._scheduler(limits, costs)
        base_model = self.cache.serve_base_model()
        self.scheduler.admit_base_model(base_model)
        self.requests = requests = [self._request(request, base_model) for request in record.requests]
        self._order: list[int] = []  # of the running requests, as the step before the last one processed them
        self._next_turns = {
            request.after: requests[request.id] for request in record.requests if request.after is not None
        }
        counted = record.mode == "online" and all(r.before_step is not None for r in record.requests if r.after is None)
        starts = [step.at_s for step in record.steps]
        # The step before which each request came.
        self._joins = [(r.before_step or 0) if counted else bisect_left(starts, r.arrival_s) for r in record.requests]
        self._to_come: list[tuple[int, float, int, Request]] = []
        for first_turn in [requests[r.id] for r in record.requests if r.after is None]:
            self._expect(first_turn, 0)
        self._pushed = 0
        self._taken_back: set[int] = set()  # at some time, by the client
        self._finished: list[int] = []  # since the step before was scheduled

    def _store(self, blocks: int) -> KvStore:
        config = self.record.config
        if not config.prefix_caching:
            return CountingStore(blocks, config.block_size)
        uncached_last = preset_value(self.record.preset, "fleet.uncached_blocks") == "last"
        return PrefixStore(blocks, config.block_size, uncached_last=uncached_last)

    def _scheduler(self, limits: Limits, costs: StepCosts) -> Scheduler:
        return Scheduler(limits, self.kv, self.waiting, [0] * self.record.config.adapters, costs)

    def _more(self, number: int, step: RecordedStep) -> list[tuple[str, object, object]]:
        """Return what else of a step is compared, once it was scheduled."""
        return []

    def run(self) -> Replay:
        record = self.record
        result = Replay.of(record.steps)
        last = {request: number for number, step in enumerate(record.steps) for request in step.scheduled}
        for number, step in enumerate(record.steps):
            for request in self.step(number, step, result):
                result.late_steps[request.index] = number - last.get(request.index, number)
        return result

    def step(self, number: int, step: RecordedStep, result: Replay) -> list[Request]:
        """Take one step and compare it; return the requests that end with it."""
        scheduler = self.scheduler
        self._orders.note(step.adapters)
        while self._to_come and self._to_come[0][0] <= number:
            self.push(self._to_come.pop(0)[-1])
        before = [request.index for request in scheduler.running]
        evicted_blocks = self.kv.evicted_blocks
        scheduler.compose(step.at_s)
        scheduled = scheduler.scheduled() if scheduler.decided.steps else {}
        running = {request.index: request for request in scheduler.running}
        preempted = sorted(set(before) - running.keys())
        joined = [index for index in running if index not in before]
        cached = {index: running[index].context - scheduled[index] for index in joined}
        self.waiting.unloaded.clear()
        victims: list[int] = []
        self.cache.victims = victims
        loads = self.cache.touch()
        self.cache.check_integrity()
        scheduler.check_integrity()
        evicted = [(adapter, scheduler.uses(adapter)) for adapter in victims]
        comparisons: list[tuple[str, object, object]] = [
            ("tokens by request", scheduled, step.scheduled),
            ("preempted", preempted, sorted(step.preempted)),
            ("loads", [adapter for adapter, _ in loads], [adapter for adapter, _ in step.loads]),
            ("evictions (adapter, in this batch)", evicted, list(step.evictions)),
        ]
        if step.updated is not None:
            comparisons += [
                ("outputs processed", self._processed(number), step.updated),
                ("running", list(running), list(step.running)),
                ("finished", sorted(self._finished), sorted(step.finished)),
                ("tokens out", self._tokens_out(running), [i for i in step.tokens if i not in self._taken_back]),
            ]
        if self.record.config.prefix_caching:
            if isinstance(self.kv, PrefixStore):
                self.kv.settle()
            overwritten = self.kv.evicted_blocks - evicted_blocks
            comparisons += [
                ("cached tokens by request", cached, step.cached),
                ("blocks overwritten", overwritten, step.overwritten),
            ]
            result.predicted_cached_tokens += sum(cached.values())
        comparisons += self._more(number, step)
        result.predicted_loads += len(loads)
        result.equal_loads += sum(ours[0] == theirs[0] for ours, theirs in zip(loads, step.loads, strict=False))
        result.compare(f"step {number} (at {step.at_s:.3f} s)", comparisons)
        scheduler.deliver(step.at_s)
        if not scheduler.decided.steps:
            self._finished = []
            return []
        processed, self._order = self._order, [*before, *joined]
        if not self.record.asynchronous:
            processed = self._order
        finished = scheduler.complete(1, step.at_s)
        for request in finished:
            if request.last_step == HOLDING:
                self.cache.release_paused(request.adapter)
            else:
                self.cache.release(request.adapter)
        self._finished = [request.index for request in finished]
        for index in processed:
            if index in self._finished and index in self._next_turns:
                self._expect(self._next_turns[index], number + 1)
        return finished

    def push(self, request: Request) -> None:
        """Queue a request that comes to this engine now."""
        request.key = self.record.requests[request.index].priority * len(self.requests) + self._pushed
        self._pushed += 1
        self.waiting.push(request)

    def _expect(self, request: Request, number: int) -> None:
        """Let a request come before the step in which it came, but not before this one."""
        insort(self._to_come, (max(number, self._joins[request.index]), request.arrival_s, request.index, request))

    def _processed(self, number: int) -> int:
        """Return how many steps' outputs are processed when this one is scheduled."""
        return max(0, number - int(self.record.asynchronous))

    def _tokens_out(self, running: dict[int, Request]) -> list[int]:
        return [i for i, request in running.items() if i not in self._taken_back and self._gives_token(request)]

    def _gives_token(self, request: Request) -> bool:
        if request.last_step == HOLDING:
            return False
        if request.last_step >= 0:
            return request.last_step > self.scheduler.decode_steps  # otherwise a stop token has ended it
        return request in self.scheduler.decided.prefills and not request.to_prefill

    def _request(self, recorded: RecordedRequest, base_model: int) -> Request:
        config = self.record.config
        adapter = base_model if recorded.adapter is None else recorded.adapter
        request = Request(recorded.id, recorded.arrival_s, adapter, recorded.prompt_tokens, recorded.output_tokens)
        request.stops = config.ends == "stop"
        give_text(request, recorded, config.texts)
        return request


def give_text(request: Request, recorded: RecordedRequest | SglangRequest, texts: int) -> None:
    """Give a request the text that it has in common with others: that of its prefix, or of its conversation.

    :param texts: their number; prompts of a conversation have one key after those of all texts.
    """
    text, tokens = recorded.prefix or (0, 0)
    if tokens:
        request.shared = ((tokens, text),)
    if recorded.session is not None:
        request.text_key = texts + recorded.session


def _brief(some: object, other: object) -> str:
    """Return what of a value differs from the other one."""
    if isinstance(some, dict) and isinstance(other, dict):
        only = {key: value for key, value in some.items() if other.get(key) != value}
        return str(only) if only else "nothing more"
    return str(some)
