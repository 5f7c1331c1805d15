"""A router as the endpoint picker of llm-d: filters, then a weighted sum of scores, then a picker."""

from __future__ import annotations

from typing import Final

from sim.policies.routing import scoring
from sim.policies.routing.prefix_index import Block, PrefixIndex, blocks_of
from sim.policies.routing.router_policy import RouterContext
from sim.rng import UniformDraws
from sim.spec.policies import FILTERS, SCORERS
from sim.spec.sections.control_plane import Filter as FilterSpec
from sim.spec.sections.control_plane import Scorer as ScorerSpec
from sim.traffic.request import Request

_HOMES: Final = 64
"""Adapters whose homes are computed at a time, where all replicas are candidates."""


class _Sent:
    """A request that was sent, and its tokens that its replica must compute."""

    def __init__(self, request: Request, tokens: int) -> None:
        self.request = request
        self.tokens = tokens


class PromptMemory:
    """What the router itself knows of prompts: where their blocks were sent, and which have no first token yet.

    :ivar blocks: of the request at hand; ``matched``: by replica that got any of them before, how many.
    """

    def __init__(self, context: RouterContext) -> None:
        self._view = context.view
        self._size = context.block_tokens
        self._shares = len(context.index_blocks) > 0
        self._index = PrefixIndex(context.replicas, context.index_blocks)
        self._sent: list[list[_Sent]] = [[] for _ in range(context.replicas)]
        self.blocks: list[Block] = []
        self.matched: dict[int, int] = {}

    def look(self, adapter: int) -> None:
        """Find the blocks of the request at hand."""
        request = self._view.request
        if request is None or not self._shares:
            return
        self.blocks = blocks_of(request, adapter, self._size)
        self.matched = {}
        for mask, count in self._index.matches(self.blocks):
            for replica in _replicas(mask):
                self.matched[replica] = self.matched.get(replica, 0) + count

    def uncached(self, replica: int) -> int:
        """Return the tokens of the request at hand that a replica must compute."""
        request = self._view.request
        return 0 if request is None else max(0, request.prompt_tokens - self.matched.get(replica, 0) * self._size)

    def tokens_in_flight(self, among: list[int]) -> list[int]:
        """Return, for some replicas, the uncached tokens that were sent there and have no first token yet."""
        found = []
        for replica in among:
            sent, total, started = self._sent[replica], 0, False
            if sent and not self._view.in_flight[replica]:
                sent.clear()  # those that were lost never get a token
            for each in sent:
                if each.request.first_token_s < 0:
                    total += each.tokens
                else:
                    started = True
            if started:
                self._sent[replica] = [each for each in sent if each.request.first_token_s < 0]
            found.append(total)
        return found

    def chosen(self, replica: int, *, counted: bool) -> None:
        """Remember where the request at hand goes.

        :param counted: whether its tokens are counted as in flight.
        """
        request = self._view.request
        if request is not None:
            if self._shares:
                self._index.add(self.blocks, replica)
            if counted:
                self._sent[replica].append(_Sent(request, self.uncached(replica)))


def _replicas(mask: int) -> list[int]:
    """Return the replicas in a bit mask."""
    found = []
    while mask:
        lowest = mask & -mask
        found.append(lowest.bit_length() - 1)
        mask ^= lowest
    return found


class _Scorer:
    """A term of the sum.

    Replicas are named as pods, ``default/replica-3-rank-0``, as their names decide which is the home of an adapter.

    :ivar weight: of its scores; ``steady``: whether ``usual`` stays until the next reading.
    :ivar usual: by replica, its score for a request of which no candidate has anything.
    :ivar own: by replica, the other scores for the request at hand, once ``look`` has been called; ``looks``: whether
        there can be any.
    """

    def __init__(self, context: RouterContext, spec: ScorerSpec, memory: PromptMemory) -> None:
        self.weight = spec.weight
        self.steady = "in_flight" not in SCORERS[spec.name].reads and spec.load_horizon is None
        self.usual = [0.0] * context.replicas
        self.own: dict[int, float] = {}
        self.looks = spec.name in ("prefix-cache", "lora-affinity", "lora-load-state")
        self._name = spec.name
        self._view, self._memory = context.view, memory
        self._replicas = context.replicas
        self._base_model, self._block_tokens = context.base_model, context.block_tokens
        self._idle, self._busiest = spec.idle_threshold, spec.max_busy_score
        self._length_weight, self._token_limit = spec.match_length_weight, spec.queue_threshold_tokens
        self._twice = context.lists_twice
        self._times = 2 if context.lists_twice and spec.count == "sum" else 1
        self._horizon_s = spec.load_horizon or 0.0
        self._homes: dict[tuple[int, int], int] = {}  # by adapter and candidates
        # By replica, at the last reading: slots without an adapter; and whether it has none, but an idle adapter.
        self._free = [0] * context.replicas
        self._evictable = [False] * context.replicas
        self._candidates = 0  # their bit mask

    def read(self, among: list[int]) -> None:
        """Compute the usual scores of some replicas."""
        if self.looks:
            self._candidates = sum([1 << replica for replica in among])
        values = self._values(among)
        if len(among) == self._replicas:
            self.usual = values
        else:
            for place, replica in enumerate(among):
                self.usual[replica] = values[place]

    def _values(self, among: list[int]) -> list[float]:
        view, memory, name, slots = self._view, self._memory, self._name, self._view.slots
        if name == "queue":
            return scoring.spread([view.waiting[replica] for replica in among])
        if name == "running-requests":
            return scoring.spread([view.batch[replica] for replica in among])
        if name == "kv-cache-utilization":
            return [1.0 - view.kv[replica] for replica in among]
        if name == "load-aware":
            return scoring.load_aware([view.waiting[replica] for replica in among])
        if name == "active-request":
            return scoring.active_request([view.in_flight[each] for each in among], self._idle, self._busiest)
        if name == "token-load":
            request, some = view.request, memory.matched
            prompt = 0 if request is None else request.prompt_tokens
            tokens = memory.tokens_in_flight(among)
            for place, replica in enumerate(among):
                tokens[place] += memory.uncached(replica) if replica in some else prompt
            return scoring.token_load(tokens, self._token_limit)
        if name == "prefix-cache":
            return [0.0] * len(among)
        if name == "lora-affinity":
            return [scoring.lora_affinity(False, False, self._times * len(view.listed[r]), slots) for r in among]
        for replica in among:
            self._free[replica] = slots - view.held[replica]
            self._evictable[replica] = self._free[replica] <= 0 and view.held[replica] > self._busy(replica)
        return [self._load_state(replica, False, False, False) for replica in among]

    def look(self, adapter: int, among: list[int]) -> dict[int, float]:
        """Compute the scores of the candidates that have something of the request at hand, and return them."""
        name, view, memory = self._name, self._view, self._memory
        self.own = own = {}
        if name == "prefix-cache" and memory.matched:
            scores: dict[int, float] = {}  # by blocks that match
            for replica, matched in memory.matched.items():
                if matched not in scores:
                    blocks, size = len(memory.blocks), self._block_tokens
                    scores[matched] = scoring.prefix_match(matched, blocks, size, self._length_weight)
                if self._candidates >> replica & 1:
                    own[replica] = scores[matched]
        elif name == "lora-affinity":
            lists, slots = view.listed, view.slots
            running = -1 if self._twice else view.running[adapter]
            for replica in among:
                if adapter in lists[replica]:
                    count = self._times * len(lists[replica])
                    own[replica] = scoring.lora_affinity(running >> replica & 1 != 0, True, count, slots)
        elif name == "lora-load-state" and adapter == self._base_model:
            for replica in among:
                own[replica] = scoring.base_load_state(self._busy(replica), view.slots)
        elif name == "lora-load-state":
            on_gpu, copies, home = view.resident[adapter], view.copies[adapter], self._home(adapter, among)
            for replica in _replicas((on_gpu | copies | 1 << home) & self._candidates):
                there, copied = on_gpu >> replica & 1 != 0, copies >> replica & 1 != 0
                own[replica] = self._load_state(replica, there, copied, replica == home)
        return own

    def _load_state(self, replica: int, on_gpu: bool, copied: bool, home: bool) -> float:
        free, request = self._free[replica], self._view.request
        tier = scoring.load_tier(on_gpu, copied, free, self._evictable[replica])
        if self._horizon_s and request is not None:
            load_s = max(0.0, request.load_s - request.host_load_s)
            tier = scoring.priced(tier, load_s, request.host_load_s, self._horizon_s)
        return scoring.load_state(tier, on_gpu, home, free, self._view.slots)

    def _busy(self, replica: int) -> int:
        """Return how many adapters in GPU memory have requests."""
        resident = self._view.resident
        return sum([resident[each] >> replica & 1 for each in self._view.listed[replica]])

    def _home(self, adapter: int, among: list[int]) -> int:
        key = (adapter, self._candidates)
        if key not in self._homes:
            first, all_up = adapter - adapter % _HOMES, len(among) == self._replicas
            adapters = range(first, first + _HOMES) if all_up else range(adapter, adapter + 1)
            names = [f"default/replica-{replica}-rank-0" for replica in among]
            places = scoring.homes([f"adapter-{each}" for each in adapters], names)
            for each, place in zip(adapters, places, strict=True):
                self._homes[each, self._candidates] = among[place]
        return self._homes[key]


class _Keeps:
    """A filter."""

    def __init__(self, context: RouterContext, spec: FilterSpec, memory: PromptMemory) -> None:
        self._view = context.view
        self._memory = memory
        self._spec = spec
        self._base_model = context.base_model

    def of(self, adapter: int, among: list[int]) -> list[int]:
        """Return the replicas that are kept."""
        view, memory, spec = self._view, self._memory, self._spec
        if spec.name == "prefix-cache-affinity":
            blocks = max(1, len(memory.blocks))
            matched = [memory.matched.get(replica, 0) / blocks for replica in among]
            tokens = memory.tokens_in_flight(among)
            kept = scoring.sticky(
                matched,
                tokens,
                share=spec.affinity_threshold,
                penalty_s=spec.max_ttft_penalty,
                per_s=spec.peak_prefill_throughput,
            )
            return [among[place] for place in kept]
        waiting, kv = [view.waiting[replica] for replica in among], [view.kv[replica] for replica in among]
        if spec.name == "utilization":
            return [among[place] for place in scoring.unsaturated(waiting, kv, [True] * len(among))]
        if adapter == self._base_model:
            return among
        on_gpu, copies = view.resident[adapter], view.copies[adapter]
        kept = scoring.residents(
            [on_gpu >> replica & 1 != 0 for replica in among],
            [copies >> replica & 1 != 0 for replica in among],
            waiting,
            kv,
            queue=spec.queue_threshold,
            usage=spec.kv_cache_threshold,
            most=spec.max_replicas,
        )
        return [among[place] for place in kept]


class ByScores:
    """The replica with the highest weighted sum of scores, of those that the filters keep.

    Metrics of replicas are as old as the last reading, so they miss what the router has sent since. What it counts
    itself, its requests in flight and the prompts that it sent, is current.
    """

    def __init__(self, context: RouterContext) -> None:
        spec = context.spec
        scorers, filters = spec.scoring, spec.filters
        each_reads = [frozenset(SCORERS[each.name].reads) for each in scorers]
        each_reads += [frozenset(FILTERS[each.name].reads) for each in filters]
        self.reads = frozenset[str]().union(*each_reads)
        if context.lists_twice:
            self.reads -= {"running"}
        self._view = context.view
        self._draws = UniformDraws(context.key)
        self._picker = spec.picker or "max-score"
        self._memory = memory = PromptMemory(context)
        self._remembers = "request" in self.reads
        self._counts_tokens = any(reads.issuperset(("request", "in_flight")) for reads in each_reads)
        self._terms = [_Scorer(context, each, memory) for each in scorers]
        self._filters = [_Keeps(context, each, memory) for each in filters]
        unsteady = [place for place, each in enumerate(self._terms) if not each.steady]
        self._leading = self._terms[: unsteady[0]] if unsteady else self._terms
        self._others = self._terms[len(self._leading) :]
        # At the last reading, for a request of which no candidate has anything: by replica the sums of the first terms,
        # of none, one, and so on; the highest of all leading ones, and where it is.
        self._sums = [[0.0] * context.replicas for _ in range(len(self._leading) + 1)]
        self._most = 0.0
        self._best: list[int] = []
        self._reading = 0

    def choose(self, adapter: int, number: int) -> int:
        view, memory = self._view, self._memory
        among = view.up
        if self._remembers:
            memory.look(adapter)
        for each in self._filters:
            kept = each.of(adapter, among)
            among = kept if len(kept) < len(among) else among
        if among is not view.up or not view.reading or view.reading != self._reading:
            self._read(among)
        best = self._highest(adapter, among, number)
        chosen = best[int(self._draws.of(number) * len(best))] if len(best) > 1 else best[0]
        if self._remembers:
            memory.chosen(chosen, counted=self._counts_tokens)
        return chosen

    def _read(self, among: list[int]) -> None:
        """Compute what stays until the next reading, if all replicas are kept."""
        self._reading = self._view.reading if among is self._view.up else 0
        for term in self._terms:
            if term.steady:
                term.read(among)
        for place, term in enumerate(self._leading):
            weight, usual, before, after = term.weight, term.usual, self._sums[place], self._sums[place + 1]
            for replica in among:
                after[replica] = before[replica] + weight * usual[replica]
        sums = [self._sums[-1][replica] for replica in among]
        self._most = max(sums)
        self._best = [among[place] for place in scoring.highest(sums)]

    def _highest(self, adapter: int, among: list[int], number: int) -> list[int]:
        """Return the replicas of which one is drawn; most requests have something at a few replicas only."""
        leading = self._leading
        own: dict[int, float] = {}
        first = len(leading)
        for place, term in enumerate(leading):
            if term.looks and term.look(adapter, among):
                own.update(term.own)
                first = min(first, place)
        for replica in own:
            total = self._sums[first][replica]
            for term in leading[first:]:
                total += term.weight * term.own.get(replica, term.usual[replica])
            own[replica] = total
        if self._picker == "max-score" and not self._others:
            if not own:
                return self._best
            most = max(own.values())
            if most > self._most:
                return sorted([replica for replica, total in own.items() if total == most])
            if most < self._most and own.keys().isdisjoint(self._best):
                return self._best
        sums = self._sums[-1].copy()
        for replica, total in own.items():
            sums[replica] = total
        for term in self._others:
            if not term.steady:
                term.read(among)
            weight, usual = term.weight, term.usual
            scores = term.look(adapter, among) if term.looks else {}
            for replica in among:
                sums[replica] += weight * (scores.get(replica, usual[replica]) if scores else usual[replica])
        values = sums if len(among) == len(sums) else [sums[replica] for replica in among]
        if self._picker == "max-score":
            return [among[place] for place in scoring.highest(values)]
        return [among[scoring.pick(self._picker, values, self._draws.of(number))]]
