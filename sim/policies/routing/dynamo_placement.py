"""Where NVIDIA Dynamo 1.6.1 places adapters.

Copies of an adapter follow its share of the load. The workers that get them follow from rendezvous hashing, or from a
minimum-cost flow that keeps adapters where they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from math import ceil, floor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sim.policies.placement import CANDIDATES, Demand, Placement, PlacerContext, cheapest_flow

# Rendezvous hashing of adapters (lib/llm/src/lora/routing/hrw.rs, lib/kv-router/src/rendezvous.rs).

_START: Final = (
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip  # one row of words
_ORDER: Final = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_MIXED: Final = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip  # columns, then diagonals


Scores = NDArray[np.uint64]
Words = NDArray[np.uint32]


def adapter_name(adapter: int) -> str:
    """Return the name by which adapters are hashed."""
    return f"adapter-{adapter}"


def home_scores(names: Sequence[str], workers: Sequence[int]) -> Scores:
    """Return the scores of workers for adapters, an array of (names, workers); the highest is the adapter's home.

    A score is 8 bytes of BLAKE3 over the name and the number of the worker.

    :raises ValueError: for a name of more than 1,012 bytes, which would need the tree of BLAKE3.
    """
    found = np.zeros((len(names), len(workers)), np.uint64)
    encoded = [name.encode() for name in names]
    for length in sorted({len(name) for name in encoded}):
        if length > 1012:
            raise ValueError(f"names of adapters have at most 1,012 bytes, not {length}")
        rows = [row for row, name in enumerate(encoded) if len(name) == length]
        size = length + 12  # with the worker, and four bytes for data-parallel rank 0
        data = np.zeros((len(rows), len(workers), -(-size // 64) * 64), np.uint8)
        data[:, :, :length] = np.frombuffer(b"".join([encoded[row] for row in rows]), np.uint8).reshape(-1, 1, length)
        data[:, :, length : length + 8] = np.array(workers, "<u8").view(np.uint8).reshape(-1, 8)
        words = np.moveaxis(data.view("<u4"), 2, 0)
        chain: Sequence[Words] = [np.full(words.shape[1:], word, np.uint32) for word in _START]
        for start in range(0, size, 64):
            flags = (start == 0) + (2 + 8) * (start + 64 >= size)  # the chunk starts; it ends, and is the root
            block = words[start // 4 : start // 4 + 16]
            chain = _compressed(chain, block, min(64, size - start), flags)
        found[rows] = chain[0] | chain[1].astype(np.uint64) << np.uint64(32)
    return found


def _compressed(chain: Sequence[Words], block: Words, length: int, flags: int) -> list[Words]:
    """Return the chaining values after a block of the first chunk, each an array."""
    rest = (*_START[:4], 0, 0, length, flags)
    state = [*[word.copy() for word in chain], *[np.full_like(chain[0], word) for word in rest]]
    for _ in range(7):
        for number, (a, b, c, d) in enumerate(_MIXED):
            for word, right, left in ((block[2 * number], 16, 12), (block[2 * number + 1], 8, 7)):
                state[a] += state[b] + word
                state[d] = _turned(state[d] ^ state[a], right)
                state[c] += state[d]
                state[b] = _turned(state[b] ^ state[c], left)
        block = block[list(_ORDER)]
    return [state[place] ^ state[place + 8] for place in range(8)]


def _turned(words: Words, bits: int) -> Words:
    return words >> np.uint32(bits) | words << np.uint32(32 - bits)


def rankings(names: Sequence[str], workers: Iterable[int]) -> list[list[int]]:
    """Return for each adapter the workers by their score, its home first."""
    ordered = sorted(workers)
    found: list[list[int]] = np.array(ordered)[np.argsort(~home_scores(names, ordered), axis=1, kind="stable")].tolist()
    return found


def placed_on(order: Sequence[int], copies: int, full: Collection[int], before: Collection[int] = ()) -> list[int]:
    """Return the workers of an adapter: those that had it before, then others; full ones only where all are.

    :param order: all workers by their score.
    """
    free = [worker for worker in order if worker not in full]
    stay = [worker for worker in free if worker in before]
    return (stay + [worker for worker in free if worker not in stay])[:copies] or list(order[:copies])


# Placement by a minimum-cost flow (lib/llm/src/lora/routing/mcf_allocator.rs).

COMING: Final = 1000
KEPT: Final = -250
"""Cost of an adapter on a worker that did not have it, and on one that had it, besides the worker's rank for it."""
OVERFLOW: Final = 10**12
"""Cost of a copy that finds no worker."""


Homes = Mapping[str, Collection[int]]
"""By adapter, its workers."""


def placed_by_flow(
    room: Mapping[int, int], copies: Mapping[str, int], before: Homes, changed: Collection[str] | None = None
) -> tuple[dict[str, list[int]], int, int]:
    """Return the homes of least cost, how many copies found none, and the cost, without what was frozen.

    A worker costs its rank for the adapter, and more where the adapter must be loaded. Its load costs nothing, so no
    adapter moves for balance. Of equally cheap placements the real solver may find another one.

    :param room: by worker, how many adapters it takes.
    :param changed: adapters that are placed again. The others stay, unless their worker takes fewer now, or copies find
        a home without that. None: all are placed.
    """
    frozen: dict[str, list[int]] = {}
    if changed is not None:
        staying = copies.keys() & before.keys() - set(changed)
        frozen = {name: sorted(room.keys() & before[name])[: copies[name]] for name in staying}
        used = Counter(chain.from_iterable(frozen.values()))
        frozen = {name: own for name, own in frozen.items() if all(used[worker] <= room[worker] for worker in own)}
    found = _flow(room, copies, before, frozen)
    if frozen and found[1] and sum(room.values()) > sum(copies.values()) - found[1]:
        return min(found, _flow(room, copies, before, {}), key=lambda each: each[1])
    return found


def _flow(
    room: Mapping[int, int], copies: Mapping[str, int], before: Homes, frozen: Homes
) -> tuple[dict[str, list[int]], int, int]:
    """Place what isn't frozen, on the first candidates of each adapter, and on all if that leaves free slots unused."""
    used = Counter(chain.from_iterable(frozen.values()))
    free = {worker: slots - used[worker] for worker, slots in room.items() if slots > used[worker]}
    names = [name for name in sorted(copies) if copies[name] > len(frozen.get(name, ()))]
    wanted = {number: copies[name] - len(frozen.get(name, ())) for number, name in enumerate(names)}
    asked, workers = sum(wanted.values()), sorted(room)
    scores = home_scores(names, workers)
    order: list[list[int]] = np.argsort(~scores, axis=1, kind="stable").tolist()
    nowhere = 2.0 * (len(room) + 1) * (COMING - KEPT + len(room))  # more than the longest exchange could save
    placed: list[tuple[int, int]] = []
    whole: dict[tuple[int, int], int] = {}
    for most in (CANDIDATES, len(room)):
        whole, costs = {}, []
        for number, name in enumerate(names):
            own, stays = before.get(name, ()), frozen.get(name, ())
            for rank, place in enumerate(order[number]):
                worker = workers[place]
                if worker in free and worker not in stays and (worker in own or rank < max(most, wanted[number])):
                    whole[number, worker] = rank + (KEPT if worker in own else COMING)
                    # Less than one over all copies, so that one placement is the cheapest, whatever SciPy's version.
                    costs.append(whole[number, worker] + float(scores[number, place]) / 2.0**64 / (asked + 1))
        placed = cheapest_flow(list(whole), np.array(costs), wanted, free, nowhere) if whole else []
        if len(placed) == asked or len(placed) == sum(free.values()):
            break
    homes = {name: list(own) for name, own in frozen.items() if own}
    for number, worker in placed:
        homes[names[number]] = sorted([*homes.get(names[number], ()), worker])
    overflow = asked - len(placed)
    return homes, overflow, sum([whole[edge] for edge in placed]) + OVERFLOW * overflow


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
        self._ranked: dict[str, list[int]] = {}  # by adapter, the workers of the last decision
        self._workers: Sequence[int] = ()

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
        self._rank(names, workers)
        there = {name: loaded[adapter] if loaded else 0 for name, adapter in names.items()}
        before = {name: current.get(adapter, ()) for name, adapter in names.items()}
        copies = {name: self._delayed(name, wanted[name], len(before[name])) for name in sorted(wanted)}
        idle = sorted(names.keys() - active.keys())
        for name in idle:
            self._since.pop(name, None)
        found = self._homes(copies, idle, before, there)
        taken = Counter(worker for homes in found.values() for worker in homes)
        for name in sorted(names.keys() - found.keys(), key=lambda name: (name not in copies, name)):
            warm = [worker for worker in before[name] if there[name] >> worker & 1]
            full = {worker for worker in workers if taken[worker] >= self._slots}
            found[name] = warm or placed_on(self._ranked[name], 1, full)
            taken.update(found[name])
        return {names[name]: tuple(sorted(homes)) for name, homes in found.items()}

    def _homes(
        self, copies: Mapping[str, int], idle: Sequence[str], before: Homes, there: Mapping[str, int]
    ) -> dict[str, list[int]]:
        """Return the workers of adapters, as far as they get any.

        :param copies: of those with load; ``idle``: those without. ``there``: bit masks of the workers that have it.
        """
        used = {worker: sum([mask >> worker & 1 for mask in there.values()]) for worker in self._workers}
        found = {}
        for name, count in copies.items():
            own = there[name]
            full = {worker for worker, adapters in used.items() if adapters - (own >> worker & 1) >= self._slots}
            found[name] = placed_on(self._ranked[name], count, full, before[name])
            for worker in found[name]:
                used[worker] += not own >> worker & 1
        return {**found, **{name: self._ranked[name][:1] for name in idle}}

    def _rank(self, names: Iterable[str], workers: Sequence[int]) -> None:
        """Rank the workers for each adapter, unless that is known."""
        if workers != self._workers:
            self._ranked, self._workers = {}, workers
        new = [name for name in names if name not in self._ranked]
        self._ranked.update(zip(new, rankings(new, workers), strict=True))

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


class FlowOfLoad(ShareOfLoad):
    """The same copies, and one of each adapter without load, placed by a flow; only what changed is placed again."""

    def __init__(self, context: PlacerContext) -> None:
        super().__init__(context)
        self._last: dict[str, list[int]] = {}
        self._asked: dict[str, int] = {}
        self._among: frozenset[int] = frozenset()

    def _homes(
        self, copies: Mapping[str, int], idle: Sequence[str], before: Homes, there: Mapping[str, int]
    ) -> dict[str, list[int]]:
        asked, last = {**copies, **dict.fromkeys(idle, 1)}, self._last
        other = self._among.symmetric_difference(self._workers)
        changed = [
            name for name in asked if asked[name] != self._asked.get(name) or other.intersection(last.get(name, ()))
        ]
        room = dict.fromkeys(self._workers, self._slots)
        self._last = placed_by_flow(room, asked, last, changed if last else None)[0]
        self._asked, self._among = asked, frozenset(self._workers)
        return self._last.copy()
