"""The router of NVIDIA Dynamo 1.6.1: what sending a request to a worker costs, among those that have its adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import ClassVar, Final

from sim.policies.routing.dynamo_placement import adapter_name, rankings
from sim.policies.routing.placed import Placed
from sim.policies.routing.prefixes import SentText, Text, TextTree, beginning, text_of
from sim.policies.routing.router_policy import Following, RouterContext, is_up, settings_of
from sim.traffic.request import Request

# What sending a request to a worker costs (lib/kv-router/src/scheduling/selector/default.rs).


def worker_cost(
    prefill_tokens: int,
    cached_blocks: float,
    decode_blocks: int,
    requests: int,
    *,
    block: int,
    credit: float = 1.0,
    scale: float = 1.0,
    request_weight: float = 0.0,
) -> float:
    """Return the cost of a worker for a request, in blocks; the lowest wins.

    :param prefill_tokens: prompts that the worker has not prefilled yet, with that of the request.
    :param cached_blocks: of the request's prompt; each saves ``credit`` blocks of prefill.
    :param decode_blocks: distinct blocks of the requests there and the full ones of this prompt.
    :param scale: weight of prefill; ``request_weight``: blocks that each of the ``requests`` there counts.
    """
    prefill = max(0.0, prefill_tokens / block - credit * cached_blocks)
    return scale * prefill + decode_blocks + request_weight * requests


def choice_weights(costs: Sequence[float], temperature: float) -> list[float]:
    """Return by worker how likely it is chosen.

    At temperature 0 those of the least cost are, equally. Above, costs are scaled to 0..1 first, so that a temperature
    means the same at any load.
    """
    least, most = min(costs), max(costs)
    if temperature <= 0 or most == least:
        weights = [float(cost == least) for cost in costs]
    else:
        weights = [exp(-(cost - least) / ((most - least) * temperature)) for cost in costs]
    total = sum(weights)
    return [weight / total for weight in weights]


class ActiveBlocks:
    """Distinct blocks of the prompts of the requests in flight at one worker; blocks that several share count once.

    A block belongs to the run of its last token, and a block that isn't full counts nothing.
    """

    def __init__(self, block: int) -> None:
        self._block = block
        self._ends: dict[tuple[int, int], list[int]] = {}  # by scope and run, the ends of requests, ascending
        self.blocks = 0
        self.requests = 0

    def needed(self, text: Text, tokens: int, scope: int) -> int:
        """Return the blocks with one more request."""
        return self.blocks + self._added(text, tokens, scope)

    def add(self, text: Text, tokens: int, scope: int) -> None:
        """Count a request."""
        self.blocks = self.needed(text, tokens, scope)
        self.requests += 1
        for end, key, _ in self._new(text, scope):
            ends = self._ends.setdefault((scope, key), [])
            ends.append(end)
            ends.sort()

    def remove(self, text: Text, tokens: int, scope: int) -> None:
        """Count a request that was added no more."""
        for end, key in text:
            ends = self._ends[scope, key]
            ends.remove(end)
            if not ends:
                del self._ends[scope, key]
        self.requests -= 1
        self.blocks -= self._added(text, tokens, scope)

    def _added(self, text: Text, tokens: int, scope: int) -> int:
        """Return the blocks of a request that no request here has."""
        if not text:
            return tokens // self._block
        own = tokens // self._block - text[-1][0] // self._block
        return own + sum([new for _, _, new in self._new(text, scope)])

    def _new(self, text: Text, scope: int) -> list[tuple[int, int, int]]:
        """Return (end, key, blocks that no request here has) of each run."""
        found, begin, block = [], 0, self._block
        for end, key in text:
            ends = self._ends.get((scope, key))
            begin = max(begin, ends[-1]) if ends else begin
            found.append((end, key, max(0, end // block - begin // block)))
            begin = end
        return found


class KvIndex:
    """The blocks that each worker has stored, as the router knows them by the events of engines.

    A worker's blocks that continue text which another worker stored first don't get into it. That is what the index of
    1.6.1 shows in recorded runs: a beginning that several workers share helps all of them, but only the first keeps
    what follows it.
    """

    def __init__(self, block: int) -> None:
        self._block = block
        self._stored = SentText()
        self._first: dict[int, TextTree] = {}  # by scope

    def matched(self, text: Text, scope: int) -> dict[int, int]:
        """Return by worker the full blocks that it has of the beginning of a text."""
        return {worker: end // self._block for worker, end in self._stored.matched(text, scope).items()}

    def stored(self, text: Text, tokens: int, worker: int, scope: int) -> None:
        """Note that a worker has stored the blocks of a text that it did not have yet."""
        first = self._first.setdefault(scope, TextTree())
        before = self.matched(text, scope).get(worker, 0) * self._block
        if before and first.matched(beginning(text, before))[1] != worker:
            return
        self._stored.sent(text, tokens, worker, scope)
        first.insert(text, worker)


BLOCK: Final = 16
"""Tokens of a block of the KV cache, in which the router counts."""


class Dynamo(Placed, Following):
    """The worker with the least cost, among those on which the controller has placed the adapter.

    Of these the ones that have it loaded, if there are any. An adapter that the controller doesn't know goes where it
    is loaded, or else anywhere.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"resident", "request", "cached"})

    def __init__(self, context: RouterContext) -> None:
        super().__init__(context)
        settings = settings_of("dynamo", context)
        self._temperature = settings["temperature"]
        self._credit, self._scale = settings["overlap_credit"], settings["prefill_scale"]
        self._request_weight = settings["request_weight"]
        self._active = [ActiveBlocks(BLOCK) for _ in range(context.replicas)]
        self._prefilling: list[dict[int, tuple[Request, int]]] = [{} for _ in range(context.replicas)]
        self._index = KvIndex(BLOCK)

    def choose(self, adapter: int, number: int) -> int:
        base, request = adapter == self._base_model, self._view.request
        if not base:
            self.asked[adapter] = self.asked.get(adapter, 0) + 1
        workers = self._view.up if base else self._candidates(adapter)
        if len(workers) == 1:
            return workers[0]
        text, tokens = text_of(request), 0 if request is None else request.prompt_tokens
        cached = self._index.matched(text, adapter) if text else {}
        costs = []
        for worker in workers:
            active = self._active[worker]
            costs.append(
                worker_cost(
                    self._to_prefill(worker) + tokens,
                    self._still_cached(cached, worker, request),
                    active.needed(text, tokens, adapter),
                    active.requests,
                    block=BLOCK,
                    credit=self._credit,
                    scale=self._scale,
                    request_weight=self._request_weight,
                )
            )
        drawn = self._draws.of(number)
        for worker, weight in zip(workers, choice_weights(costs, self._temperature), strict=True):
            drawn -= weight
            if drawn < 0:
                return worker
        return workers[costs.index(min(costs))]  # rounding left nothing

    def _candidates(self, adapter: int) -> Sequence[int]:
        up, mask = self._view.up, self._view.resident[adapter]
        homes: Sequence[int] = self.homes.get(adapter, ())
        if homes and len(up) < self._replicas:
            homes = [worker for worker in homes if is_up(worker, up)]
        there = [worker for worker in homes or up if mask >> worker & 1]
        if there or homes or adapter not in self.homes:
            return there or homes or up
        return rankings([adapter_name(adapter)], up)[0][:1]

    def _order(self, adapter: int) -> list[int]:
        return rankings([adapter_name(adapter)], range(self._replicas))[0]

    def _still_cached(self, cached: Mapping[int, int], worker: int, request: Request | None) -> int:
        """Return the blocks that the index knows and the engine has not evicted, which its events say at once."""
        blocks = cached.get(worker, 0)
        if not blocks or request is None:
            return 0
        tokens = self._view.cached(worker, request)
        return blocks if tokens < 0 else min(blocks, tokens // BLOCK)

    def _to_prefill(self, worker: int) -> int:
        waiting, total, done = self._prefilling[worker], 0, []
        for index, (request, tokens) in waiting.items():
            if request.first_token_s < 0:
                total += tokens
            else:
                done.append(index)
        for index in done:
            del waiting[index]
        return total

    def entered(self, request: Request, replica: int) -> None:
        text, tokens, scope = text_of(request), request.prompt_tokens, request.adapter
        self._active[replica].add(text, tokens, scope)
        cached = self._still_cached(self._index.matched(text, scope), replica, request) if text else 0
        self._prefilling[replica][request.index] = (request, max(0, tokens - cached * BLOCK))
        if text and text[-1][1] == request.text_key:  # the next turn begins with the answer too
            text[-1] = (tokens + request.output_tokens, request.text_key)
        if text:
            self._index.stored(text, tokens, replica, scope)

    def left(self, request: Request, replica: int) -> None:
        self._prefilling[replica].pop(request.index, None)
        self._active[replica].remove(text_of(request), request.prompt_tokens, request.adapter)
