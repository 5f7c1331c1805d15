"""A router as the endpoint picker of llm-d: filters, then a weighted sum of scores, then a picker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sim.policies.routing import scoring
from sim.policies.routing.prefix_index import Block, PrefixIndex, blocks_of
from sim.policies.routing.router_policy import RouterContext
from sim.rng import UniformDraws
from sim.spec.policies import FILTERS, SCORERS
from sim.spec.sections.control_plane import Filter as FilterSpec
from sim.spec.sections.control_plane import Scorer as ScorerSpec
from sim.traffic.request import Request

_SCRAPED: Final = frozenset(("waiting", "batch", "kv"))
"""What changes at readings only, whatever the request."""


class PromptMemory:
    """What the router itself knows of prompts: where their blocks were sent, and which have no first token yet.

    :ivar blocks: of the request at hand; ``matched``: by replica, how many of them it got before.
    """

    def __init__(self, context: RouterContext) -> None:
        self._view = context.view
        self._size = context.block_tokens
        self._shares = len(context.index_blocks) > 0
        self._index = PrefixIndex(context.replicas, context.index_blocks)
        self.none = [0] * context.replicas
        self._sent: list[list[tuple[Request, int]]] = [[] for _ in range(context.replicas)]
        self.blocks: list[Block] = []
        self.matched = self.none

    def look(self, adapter: int) -> None:
        """Find the blocks of the request at hand."""
        request = self._view.request
        self.matched = self.none
        if request is None or not self._shares:
            return
        self.blocks = blocks_of(request, adapter, self._size)
        found = self._index.matches(self.blocks)
        if found:
            self.matched = self.none.copy()
            for mask, count in found:
                replica = 0
                while mask:
                    if mask & 1:
                        self.matched[replica] += count
                    mask >>= 1
                    replica += 1

    def uncached(self, replica: int) -> int:
        """Return the tokens of the request at hand that a replica must compute."""
        request = self._view.request
        return 0 if request is None else max(0, request.prompt_tokens - self.matched[replica] * self._size)

    def tokens_in_flight(self, replica: int) -> int:
        """Return the uncached tokens that were sent to a replica and have no first token yet."""
        sent = self._sent[replica]
        if not sent:
            return 0
        if not self._view.in_flight[replica]:
            sent.clear()  # those that were lost never get a token
        else:
            self._sent[replica] = sent = [each for each in sent if each[0].first_token_s < 0]
        return sum([tokens for _, tokens in sent])

    def chosen(self, replica: int, *, counted: bool) -> None:
        """Remember where the request at hand goes.

        :param counted: whether its tokens are counted as in flight.
        """
        request = self._view.request
        if request is not None:
            if self._shares:
                self._index.add(self.blocks, replica)
            if counted:
                self._sent[replica].append((request, self.uncached(replica)))


class _Scorer:
    """A term of the sum.

    Replicas are named as pods, ``default/replica-3-rank-0``, as their names decide which is the home of an adapter.

    :ivar weight: of its scores; ``scraped``: whether they change at readings only, whatever the request.
    """

    def __init__(self, context: RouterContext, spec: ScorerSpec, memory: PromptMemory) -> None:
        self.weight = spec.weight
        self.scraped = _SCRAPED.issuperset(SCORERS[spec.name].reads)
        self._name = spec.name
        self._view, self._memory = context.view, memory
        self._base_model, self._block_tokens = context.base_model, context.block_tokens
        self._idle, self._busiest = spec.idle_threshold, spec.max_busy_score
        self._length_weight, self._token_limit = spec.match_length_weight, spec.queue_threshold_tokens
        self._twice = context.lists_twice
        self._times = 2 if context.lists_twice and spec.count == "sum" else 1
        self._horizon_s = spec.load_horizon or 0.0
        self._homes: dict[tuple[int, int], int] = {}  # by adapter and candidates
        # By candidate, at the last reading: its score for adapters that it doesn't list; slots without an adapter; and
        # whether it has none, but an adapter without requests.
        self._reading = 0
        self._others: list[float] = []
        self._free: list[int] = []
        self._evictable: list[bool] = []

    def scores(self, adapter: int, among: list[int]) -> Sequence[float]:
        """Return the scores of some replicas; empty: 0 for each."""
        view, memory, name = self._view, self._memory, self._name
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
            tokens = [memory.tokens_in_flight(replica) + memory.uncached(replica) for replica in among]
            return scoring.token_load(tokens, self._token_limit)
        if name == "prefix-cache":
            if memory.matched is memory.none:
                return ()
            blocks, matched, size, weight = len(memory.blocks), memory.matched, self._block_tokens, self._length_weight
            return [scoring.prefix_match(matched[replica], blocks, size, weight) for replica in among]
        self._read(among)
        return self._affinity(adapter, among) if name == "lora-affinity" else self._load_state(adapter, among)

    def _read(self, among: list[int]) -> None:
        """Compute what stays the same until the next reading, as long as all replicas are candidates."""
        view = self._view
        if among is view.up and view.reading and view.reading == self._reading:
            return
        self._reading = view.reading if among is view.up else 0
        lists, slots, held = view.listed, view.slots, view.held
        if self._name == "lora-affinity":
            self._others = [scoring.lora_affinity(False, False, self._times * len(lists[r]), slots) for r in among]
        else:
            self._free = [slots - held[replica] for replica in among]
            self._evictable = [held[r] >= slots and held[r] > self._busy(r) for r in among]

    def _affinity(self, adapter: int, among: list[int]) -> list[float]:
        view, lists = self._view, self._view.listed
        found = self._others.copy()
        for place, replica in enumerate(among):
            if adapter in lists[replica]:
                runs = self._twice or view.running[adapter] >> replica & 1 != 0
                found[place] = scoring.lora_affinity(runs, True, self._times * len(lists[replica]), view.slots)
        return found

    def _load_state(self, adapter: int, among: list[int]) -> list[float]:
        view, slots = self._view, self._view.slots
        if adapter == self._base_model:
            return [scoring.base_load_state(self._busy(replica), slots) for replica in among]
        on_gpu, copies, home = view.resident[adapter], view.copies[adapter], self._home(adapter, among)
        request, horizon_s = view.request, self._horizon_s
        found = []
        for place, replica in enumerate(among):
            there, free = on_gpu >> replica & 1 != 0, self._free[place]
            tier = scoring.load_tier(there, copies >> replica & 1 != 0, free, self._evictable[place])
            if horizon_s and request is not None:
                load_s = max(0.0, request.load_s - request.host_load_s)
                tier = scoring.priced(tier, load_s, request.host_load_s, horizon_s)
            found.append(scoring.load_state(tier, there, replica == home, free, slots))
        return found

    def _busy(self, replica: int) -> int:
        """Return how many adapters in GPU memory have requests."""
        resident = self._view.resident
        return sum([resident[each] >> replica & 1 for each in self._view.listed[replica]])

    def _home(self, adapter: int, among: list[int]) -> int:
        key = (adapter, sum([1 << replica for replica in among]))
        if key not in self._homes:
            names = [f"default/replica-{replica}-rank-0" for replica in among]
            self._homes[key] = among[scoring.rendezvous(f"adapter-{adapter}", names)]
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
            matched = [memory.matched[replica] / blocks for replica in among]
            tokens = [memory.tokens_in_flight(replica) for replica in among]
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
        self._leading = 0  # terms at the head that change at readings only: their sum is kept
        while self._leading < len(self._terms) and self._terms[self._leading].scraped:
            self._leading += 1
        self._sum: list[float] = []
        self._reading = 0

    def choose(self, adapter: int, number: int) -> int:
        among, memory = self._view.up, self._memory
        if self._remembers:
            memory.look(adapter)
        for each in self._filters:
            among = each.of(adapter, among)
        sums = self._leading_sum(among).copy()
        for term in self._terms[self._leading :]:
            _add(sums, term, adapter, among)
        chosen = among[scoring.pick(self._picker, sums, self._draws.of(number))]
        if self._remembers:
            memory.chosen(chosen, counted=self._counts_tokens)
        return chosen

    def _leading_sum(self, among: list[int]) -> list[float]:
        """Return the weighted sum of the first scorers, which stays until the next reading if all replicas are kept."""
        view = self._view
        if among is not view.up or not view.reading or view.reading != self._reading:
            self._reading = view.reading if among is view.up else 0
            self._sum = [0.0] * len(among)
            for term in self._terms[: self._leading]:
                _add(self._sum, term, -1, among)
        return self._sum


def _add(sums: list[float], scorer: _Scorer, adapter: int, among: list[int]) -> None:
    weight = scorer.weight
    for place, score in enumerate(scorer.scores(adapter, among)):
        sums[place] += weight * score
