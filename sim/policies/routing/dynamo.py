"""The router of NVIDIA Dynamo 1.6.1: its cost of a worker, and its placement of adapters by share of the load."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from math import ceil, exp, floor
from typing import ClassVar, Final

from sim.policies.placement import Demand, Placement, PlacerContext
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
        return self.blocks + self._own(text, tokens) + sum(new for _, _, new in self._new(text, scope))

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
        self.blocks -= self._own(text, tokens) + sum(new for _, _, new in self._new(text, scope))

    def _own(self, text: Text, tokens: int) -> int:
        """Return the blocks that no other request has."""
        return tokens // self._block - (text[-1][0] // self._block if text else 0)

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


# Rendezvous hashing of adapters (lib/llm/src/lora/routing/hrw.rs, lib/kv-router/src/rendezvous.rs).

_WORD: Final = 0xFFFFFFFF
_START: Final = (
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip  # one row of words
_ORDER: Final = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_MIXED: Final = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip  # columns, then diagonals


@lru_cache(maxsize=1 << 16)
def home_score(name: str, worker: int) -> int:
    """Return the score of a worker for an adapter: 8 bytes of BLAKE3 over both; the highest is the adapter's home.

    :raises ValueError: for a name of more than 1,012 bytes, which would need the tree of BLAKE3.
    """
    data = name.encode() + worker.to_bytes(8, "little") + bytes(4)  # of data-parallel rank 0
    if len(data) > 1024:
        raise ValueError(f"names of adapters have at most 1,012 bytes, not {len(data) - 12}")
    chain = list(_START)
    for start in range(0, len(data), 64):
        last = start + 64 >= len(data)
        flags = (start == 0) + (2 + 8) * last  # the chunk starts; it ends, and is the root
        chain = _compressed(chain, data[start : start + 64], flags)
    return chain[0] | chain[1] << 32


def _compressed(chain: list[int], block: bytes, flags: int) -> list[int]:
    """Return the chaining value after a block of the first chunk."""
    padded = block.ljust(64, b"\0")
    words = [int.from_bytes(padded[at : at + 4], "little") for at in range(0, 64, 4)]
    state = [*chain, *_START[:4], 0, 0, len(block), flags]
    for _ in range(7):
        for number, (a, b, c, d) in enumerate(_MIXED):
            for word, right, left in ((words[2 * number], 16, 12), (words[2 * number + 1], 8, 7)):
                state[a] = (state[a] + state[b] + word) & _WORD
                turned = state[d] ^ state[a]
                state[d] = (turned >> right | turned << (32 - right)) & _WORD
                state[c] = (state[c] + state[d]) & _WORD
                turned = state[b] ^ state[c]
                state[b] = (turned >> left | turned << (32 - left)) & _WORD
        words = [words[place] for place in _ORDER]
    return [state[place] ^ state[place + 8] for place in range(8)]


def ranking(name: str, workers: Iterable[int]) -> list[int]:
    """Return the workers by their score for an adapter, its home first."""
    return sorted(workers, key=lambda worker: (-home_score(name, worker), worker))


def placed_on(order: Sequence[int], copies: int, full: Collection[int], before: Collection[int] = ()) -> list[int]:
    """Return the workers of an adapter: those that had it before, then others; full ones only where all are.

    :param order: all workers by their score.
    """
    free = [worker for worker in order if worker not in full]
    stay = [worker for worker in free if worker in before]
    return (stay + [worker for worker in free if worker not in stay])[:copies] or list(order[:copies])


# Copies of adapters (lib/llm/src/lora/controller.rs, load_estimator.rs).

SMOOTHING: Final = 0.3
"""Weight of the newest count in the controller's moving average."""
COOLDOWN: Final = 3
"""Decisions from which on an adapter may lose copies: after the first that asked for fewer, and after each loss."""


def smoothed_load(before: float | None, count: int, weight: float = SMOOTHING) -> float:
    """Return the moving average of the counts of arrivals, begun with the first one."""
    return float(count) if before is None else weight * count + (1 - weight) * before


def whole_load(smoothed: float) -> int:
    """Return a load as the controller compares it; 0 means that the adapter is inactive."""
    return floor(smoothed + 0.5)


def copies_by_share(loads: Mapping[str, int], slots: int, workers: int) -> dict[str, int]:
    """Return on how many workers each adapter should be, by its share of the load of those that find a slot.

    It is shares, not rates: an adapter that is alone gets every worker, however little traffic there is. An adapter
    beyond the slots of the fleet isn't in the answer.

    :param loads: by name, above 0; ``slots``: of all workers together.
    """
    first = sorted(loads, key=lambda name: (-loads[name], name))[:slots]
    total = sum(loads[name] for name in first)
    wanted = {name: min(float(workers), max(1.0, ceil(loads[name] / total * slots))) for name in first}
    asked = sum(wanted.values())
    if asked <= slots:
        return {name: int(copies) for name, copies in wanted.items()}
    scaled = {name: max(1.0, copies * (slots / asked)) for name, copies in wanted.items()}
    found = {name: floor(copies) for name, copies in scaled.items()}
    left = slots - sum(found.values())
    for name in sorted(found, key=lambda name: (found[name] - scaled[name], name)):
        if left > 0 and found[name] < workers:
            found[name] += 1
            left -= 1
    return found


class ShareOfLoad:
    """Copies by share of the load, on the workers that rendezvous hashing gives; adapters stay where they were.

    An adapter without load has its home alone, whether or not a slot is free there. One beyond the slots of the fleet
    stays where it is loaded, or goes to one worker.
    """

    def __init__(self, context: PlacerContext) -> None:
        self._slots = context.slots
        self._smoothed: dict[int, float] = {}
        self._decision = 0
        self._since: dict[str, int] = {}  # by adapter, the decision of the last step down, or of the first asked for

    def place(self, demand: Demand, current: Placement) -> Placement:
        self._decision += 1
        workers, loaded = demand.replicas, demand.loaded
        for adapter in self._smoothed.keys() | demand.requests.keys():
            count = int(demand.requests.get(adapter, 0))
            self._smoothed[adapter] = smoothed_load(self._smoothed.get(adapter), count)
        if loaded:  # one without load that no worker has is forgotten
            self._smoothed = {a: load for a, load in self._smoothed.items() if loaded[a] or whole_load(load)}
        known = self._smoothed.keys() | {adapter for adapter, mask in enumerate(loaded) if mask}
        names = {adapter_name(adapter): adapter for adapter in known}
        loads = {name: whole_load(self._smoothed.get(adapter, 0.0)) for name, adapter in names.items()}
        active = {name: load for name, load in loads.items() if load > 0}
        wanted = copies_by_share(active, self._slots * len(workers), len(workers))
        there = {adapter: {r for r in workers if loaded[adapter] >> r & 1} if loaded else set() for adapter in known}
        used = {worker: sum(worker in on for on in there.values()) for worker in workers}
        found: Placement = {}
        for name in sorted(wanted):
            adapter, before = names[name], current.get(names[name], ())
            own = there[adapter]
            full = {worker for worker in workers if used[worker] - (worker in own) >= self._slots}
            copies = self._delayed(name, wanted[name], len(before))
            homes = placed_on(ranking(name, workers), copies, full, before)
            for worker in homes:
                used[worker] += worker not in own
            found[adapter] = tuple(sorted(homes))
        for name in names.keys() - active.keys():
            self._since.pop(name, None)
            found[names[name]] = (ranking(name, workers)[0],)
        taken = {worker: sum(worker in homes for homes in found.values()) for worker in workers}
        for name in sorted(active.keys() - wanted.keys()):
            warm = [worker for worker in current.get(names[name], ()) if worker in there[names[name]]]
            full = {worker for worker in workers if taken[worker] >= self._slots}
            homes = warm or placed_on(ranking(name, workers), 1, full)
            for worker in homes:
                taken[worker] += 1
            found[names[name]] = tuple(sorted(homes))
        return found

    def _delayed(self, name: str, wanted: int, now: int) -> int:
        """Return how many copies an adapter gets that has ``now``: the first decision for fewer only starts a wait."""
        if wanted >= now:
            self._since.pop(name, None)
            return wanted
        since = self._since.setdefault(name, self._decision)
        if self._decision - since < COOLDOWN:
            return now
        self._since[name] = self._decision
        return wanted


BLOCK: Final = 16
"""Tokens of a block of the KV cache, in which the router counts."""


def adapter_name(adapter: int) -> str:
    """Return the name by which adapters are hashed."""
    return f"adapter-{adapter}"


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
        cached = self._index.matched(text, adapter)
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

    def _candidates(self, adapter: int) -> list[int]:
        view = self._view
        mask = view.resident[adapter]
        loaded = [worker for worker in view.up if mask >> worker & 1]
        if adapter not in self.homes:
            return loaded or view.up
        homes = [worker for worker in self.homes[adapter] if is_up(worker, view.up)]
        there = [worker for worker in homes if worker in loaded]
        return there or homes or loaded or ranking(adapter_name(adapter), view.up)[:1]

    def _order(self, adapter: int) -> list[int]:
        return ranking(adapter_name(adapter), range(self._replicas))

    def _still_cached(self, cached: Mapping[int, int], worker: int, request: Request | None) -> int:
        """Return the blocks that the index knows and the engine has not evicted, which its events say at once."""
        blocks = cached.get(worker, 0)
        if not blocks or request is None:
            return 0
        tokens = self._view.cached(worker, request)
        return blocks if tokens < 0 else min(blocks, tokens // BLOCK)

    def _to_prefill(self, worker: int) -> int:
        waiting = self._prefilling[worker]
        for index in [index for index, (request, _) in waiting.items() if request.first_token_s >= 0]:
            del waiting[index]
        return sum([tokens for _, tokens in waiting.values()])

    def entered(self, request: Request, replica: int) -> None:
        text, tokens, scope = text_of(request), request.prompt_tokens, request.adapter
        cached = self._still_cached(self._index.matched(text, scope), replica, request)
        self._prefilling[replica][request.index] = (request, max(0, tokens - cached * BLOCK))
        self._active[replica].add(text, tokens, scope)
        if text and text[-1][1] == request.text_key:  # the next turn begins with the answer too
            text[-1] = (tokens + request.output_tokens, request.text_key)
        self._index.stored(text, tokens, replica, scope)

    def left(self, request: Request, replica: int) -> None:
        self._prefilling[replica].pop(request.index, None)
        self._active[replica].remove(text_of(request), request.prompt_tokens, request.adapter)
