"""SGLang 0.5.23's scheduler, radix tree and LoRA pool, written plainly from the rules beside the records.

Every token is an object, every try looks at every request, and every eviction sorts all leaves. ``steps`` takes the
``config`` and ``requests`` of a record and returns its steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

CLIP = 4096
Adapter = int | None


class Node:
    def __init__(self, parent: Node | None, tokens: list[Any], touched: float) -> None:
        self.parent, self.tokens, self.touched = parent, tokens, touched
        self.children: list[Node] = []
        self.locks = 0

    def path(self) -> list[Node]:
        """This node and those above it, without the root."""
        return [self, *self.parent.path()] if self.parent is not None else []


class Tree:
    """The radix tree; every adapter has a root of its own."""

    def __init__(self, page: int, on: bool) -> None:
        self.page, self.on, self.clock, self.thrown_out = page, on, 0, 0
        self.roots: dict[Adapter, Node] = {}

    def now(self) -> int:
        self.clock += 1
        return self.clock

    def root(self, adapter: Adapter) -> Node:
        return self.roots.setdefault(adapter, Node(None, [], 0))

    def nodes(self) -> list[Node]:
        found = [child for root in self.roots.values() for child in root.children]
        for node in found:
            found.extend(node.children)
        return found

    def size(self) -> int:
        return sum(len(node.tokens) for node in self.nodes())

    def evictable(self) -> int:
        return sum(len(node.tokens) for node in self.nodes() if not node.locks)

    def whole(self, tokens: list[Any]) -> list[Any]:
        return tokens[: len(tokens) // self.page * self.page]

    def child(self, node: Node, rest: list[Any]) -> Node | None:
        first = rest[: self.page]
        return next((child for child in node.children if rest and child.tokens[: self.page] == first), None)

    def common(self, node: Node, rest: list[Any]) -> int:
        length = 0
        while length < min(len(rest), len(node.tokens)) and rest[length] == node.tokens[length]:
            length += 1
        return length // self.page * self.page

    def split(self, node: Node, length: int) -> Node:
        assert node.parent is not None
        head = Node(node.parent, node.tokens[:length], self.now())
        head.locks, head.children = node.locks, [node]
        node.parent.children[node.parent.children.index(node)] = head
        node.parent, node.tokens = head, node.tokens[length:]
        node.touched = self.now()
        return head

    def find(self, adapter: Adapter, tokens: list[Any]) -> tuple[int, Node]:
        """The known tokens, and the last node of their path; touches all of it."""
        node, found, tokens = self.root(adapter), 0, self.whole(tokens)
        if not self.on or not tokens:
            return 0, node
        while (child := self.child(node, tokens[found:])) is not None:
            length = self.common(child, tokens[found:])
            found += length
            if length < len(child.tokens):
                node = self.split(child, length)
                break
            node = child
        now = float(self.now())
        for above in node.path():
            above.touched = now
            now -= 0.00001
        return found, node

    def insert(self, adapter: Adapter, tokens: list[Any]) -> tuple[int, Node]:
        """How many tokens were known, and the last node."""
        node, known, tokens = self.root(adapter), 0, self.whole(tokens)
        while (child := self.child(node, tokens[known:])) is not None:
            child.touched = self.now()
            length = self.common(child, tokens[known:])
            if length < len(child.tokens):
                child = self.split(child, length)
            node, known = child, known + length
        if known < len(tokens):
            leaf = Node(node, tokens[known:], self.now())
            node.children.append(leaf)
            node = leaf
        return known, node

    def lock(self, node: Node, change: int) -> None:
        for above in node.path():
            above.locks += change

    def throw_out(self, tokens: int) -> int:
        freed = 0
        while freed < tokens:
            leaves = [node for node in self.nodes() if not node.children and not node.locks]
            if not leaves:
                break
            victim = min(leaves, key=lambda node: node.touched)
            assert victim.parent is not None
            victim.parent.children.remove(victim)
            freed += len(victim.tokens)
        self.thrown_out += freed
        return freed


@dataclass(eq=False)
class Asked:
    """A request of the record, and where it is."""

    id: int
    adapter: Adapter
    prompt: list[Any]
    answer: list[Any]
    limit: int
    came: int = 0  # the try in which it joined the queue
    given: int = 0
    done: bool = False
    retracted: bool = False
    prefix: int = 0  # tokens computed or found before the prefill under way
    end: int = 0  # those after it
    held: int = 0  # tokens with KV memory
    protected: int = 0  # of them, those of the tree
    node: Node | None = None  # the last of them
    found: Node | None = None
    locked: bool = False

    def tokens(self) -> list[Any]:
        return self.prompt + self.answer[: self.given]

    def left(self) -> int:
        return min(self.limit - self.given, CLIP)


@dataclass
class Batch:
    kind: str
    requests: list[Asked]
    chunked: Asked | None = None
    decoding: list[Asked] = field(default_factory=list)
    ends_s: float = 0.0


class Pool:
    """The LoRA slots."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.slots: list[Any] = [None] + ["empty"] * (config["slots"] - 1)
        self.order: list[Adapter] = []  # least recently touched first
        self.place = {adapter: place for place, adapter in enumerate(config["order"])}
        self.fifo, self.pinned = config["eviction"] == "fifo", config["pinned"]
        self.loads: list[Adapter] = []
        self.evictions: list[Adapter] = []

    def sorted(self, adapters: set[Adapter]) -> list[Adapter]:
        return sorted(adapters, key=lambda adapter: -1 if adapter is None else self.place[adapter])

    def fetch(self, adapters: set[Adapter]) -> None:
        for adapter in self.sorted(adapters):
            if adapter is None or (self.fifo and adapter in self.order):
                continue
            if adapter in self.order:
                self.order.remove(adapter)
            self.order.append(adapter)
        for adapter in self.sorted(adapters):
            if adapter in self.slots:
                continue
            if "empty" not in self.slots:
                may_go = [a for a in self.order if a in self.slots and a not in adapters and a not in self.pinned]
                victim = may_go[0] if may_go else None
                self.evictions.append(victim)
                self.slots[self.slots.index(victim)] = "empty"
                if victim in self.order:
                    self.order.remove(victim)
            self.slots[self.slots.index("empty")] = adapter
            self.loads.append(adapter)

    def fits(self, adapters: set[Adapter]) -> bool:
        pinned = sum(adapter in self.pinned for adapter in adapters)
        return len(adapters) <= len(self.slots) and len(adapters) - pinned <= len(self.slots) - len(self.pinned)


class Server:
    def __init__(self, config: dict[str, Any], requests: list[dict[str, Any]]) -> None:
        self.config, self.page = config, config["block_size"]
        self.free = config["kv_tokens"] // self.page * self.page
        self.tree, self.pool = Tree(self.page, config["prefix_caching"]), Pool(config)
        self.ratio: float = config["ratio"][0]
        self.requests = requests
        self.asked: list[Asked] = []
        self.coming = [r for r in requests if r.get("after") is None]
        self.waiting: list[Asked] = []
        self.running: list[Asked] = []
        self.full = False
        self.chunked: Asked | None = None
        self.last: Batch | None = None
        self.results: list[Batch] = []
        self.scans = 0
        self.tries = 0
        self.ready_at: dict[Adapter, int] = {}
        self.drains: dict[Adapter, Adapter] = {}  # adapter: the one that it makes room for
        self.still: dict[Adapter, int] = {}
        self.steps: list[dict[str, Any]] = []
        self.step: dict[str, Any] = {}
        self.idle = False

    # Requests ---------------------------------------------------------------------------------------------------------

    def make(self, r: dict[str, Any]) -> Asked:
        before: list[Any] = []
        if r.get("after") is not None:
            earlier = next(asked for asked in self.asked if asked.id == r["after"])
            before = earlier.prompt + earlier.answer
        elif r.get("prefix") is not None:
            before = [("text", r["prefix"][0], i) for i in range(r["prefix"][1])]
        own = [("own", r["id"], i) for i in range(r["prompt_tokens"] - len(before))]
        answer = [("answer", r["id"], i) for i in range(r["output_tokens"])]
        return Asked(r["id"], r["adapter"], before + own, answer, r["max_tokens"])

    def receive(self) -> None:
        for r in [r for r in self.coming if self.due(r)]:
            self.coming.remove(r)
            asked = self.make(r)
            asked.came = self.tries
            self.asked.append(asked)
            self.waiting.append(asked)
            r["before_try"], r["before_step"] = self.tries + 1, len(self.steps)

    def due(self, r: dict[str, Any]) -> bool:
        return r.get("before_try", 0) <= self.tries + 1

    def end(self, asked: Asked) -> None:
        asked.done = True
        self.requests[asked.id]["finished_step"] = len(self.steps) - 1
        for r in self.requests:
            if r.get("after") == asked.id:
                r["before_try"] = self.tries + 1
                self.coming.append(r)

    # Memory -----------------------------------------------------------------------------------------------------------

    def pages(self, tokens: int) -> int:
        return -(-tokens // self.page) * self.page

    def own(self, asked: Asked) -> int:
        return self.pages(asked.held) - asked.protected

    def make_room(self, tokens: int) -> None:
        if self.tree.on and tokens > self.free:
            self.free += self.tree.throw_out(tokens - self.free)

    def take(self, asked: Asked, tokens: int) -> None:
        before = self.pages(asked.held)
        asked.held = tokens
        self.free -= self.pages(tokens) - before
        assert self.free >= 0

    def hand_over(self, asked: Asked, tokens: list[Any]) -> None:
        """Make known what a request has computed."""
        if not self.tree.on or not tokens:
            return
        aligned = self.tree.whole(tokens)
        known, node = self.tree.insert(asked.adapter, tokens)
        self.free += max(0, known - asked.protected)
        if 0 < len(self.tree.whole(asked.prompt)) < len(aligned):
            self.tree.insert(asked.adapter, asked.prompt)
        if asked.locked and asked.node is not None:
            self.tree.lock(asked.node, -1)
        asked.node, asked.locked = node, True
        self.tree.lock(node, 1)
        asked.protected = len(aligned)

    def release(self, asked: Asked, *, keep: bool) -> None:
        if keep:
            self.hand_over(asked, asked.tokens()[: asked.held])
        self.free += self.own(asked)
        if asked.locked and asked.node is not None:
            self.tree.lock(asked.node, -1)
        asked.held, asked.protected, asked.node, asked.locked = 0, 0, None, False

    def needed(self, requests: list[Asked]) -> int:
        return self.page * sum(asked.held % self.page == 0 for asked in requests)

    def decodes_fit(self, requests: list[Asked]) -> bool:
        self.make_room(self.needed(requests))
        return self.free >= self.needed(requests)

    def decode(self, requests: list[Asked]) -> None:
        self.make_room(self.page * len(requests) if self.page > 1 else len(requests))
        for asked in requests:
            self.take(asked, asked.held + 1)

    # A try ------------------------------------------------------------------------------------------------------------

    def plan(self) -> Batch | None:
        chunked, last = self.chunked, self.last
        if chunked is not None:
            self.hand_over(chunked, chunked.tokens()[: chunked.end])
            chunked.prefix = chunked.end
        if last is not None and last.kind != "decode":
            there = [a for a in last.requests if not a.done and a is not chunked and a is not last.chunked]
            if len(there) < len(last.requests):
                self.full = False
            if not self.running and there:
                self.full = False
            self.running = self.running + there
        there = [asked for asked in self.running if not asked.done]
        if len(there) < len(self.running):
            self.full = False
        self.running = there
        return self.prefill() or self.decode_step()

    def prefill(self) -> Batch | None:
        config, running = self.config, self.running
        if not running:
            self.full = False
        if (self.full or not self.waiting) and self.chunked is None:
            return None
        if len(running) >= config["max_num_seqs"] and self.chunked is None:
            self.full = True
            return None
        self.sort()
        decodes = len(running) if config["mixed"] else 0
        self.rest = config["max_num_batched_tokens"] - decodes
        self.rest_prefill = config["max_prefill_tokens"] - decodes
        ratio = 1.0 if config["ignore_eos"] else self.ratio
        self.now_taken: float = decodes
        self.taken: float = decodes + sum(asked.left() * ratio for asked in running)
        self.states: list[tuple[float, int]] | None = None
        chosen: list[Asked] = []
        if self.chunked is not None:
            asked = self.chunked
            room = int(self.room())
            most = min(self.rest, room) if min(self.rest, room) > 0 else self.rest
            todo = len(asked.tokens()) - asked.prefix
            asked.end = asked.prefix + min(todo, most)
            chosen.append(asked)
            self.charge(asked, 0 if todo > most else min(asked.limit, CLIP))
            self.chunked = asked if todo > most else None
        adapters = {asked.adapter for asked in (*running, *chosen) if not asked.done}
        if config["drain"]:
            self.update_drains()
        for asked in list(self.waiting):
            if self.state() == "OTHER":
                break
            if not self.may_join(asked, adapters):
                self.step["passed"].append(asked.id)
                continue
            if len(chosen) >= config["max_num_seqs"] - len(running):
                self.full = True
            if self.full:
                break
            asked.prefix, asked.found = self.tree.find(asked.adapter, asked.tokens()[:-1])
            asked.protected = asked.prefix
            result = self.add(asked, chosen)
            adapters.add(asked.adapter)
            if result != "CONTINUE":
                self.step["stopped"] = [result, asked.id]
                if result == "NO_TOKEN":
                    self.full = bool(chosen or running)
                break
        if not chosen:
            return None
        self.waiting = [asked for asked in self.waiting if asked not in chosen]
        tokens = sum(asked.end - asked.prefix for asked in chosen)
        self.make_room(tokens + (self.page * len(chosen) if self.page > 1 else 0))
        for asked in chosen:
            asked.retracted = False
            if asked.held == 0:
                asked.held = asked.protected
            self.take(asked, asked.end)
        batch = Batch("prefill", chosen, self.chunked)
        if config["mixed"] and running:
            self.leave_out_ending()
            if self.running and self.decodes_fit(self.running):
                self.decode(self.running)
                batch = Batch("mixed", chosen + self.running, self.chunked, self.running)
                self.running = []
        return batch

    def room(self) -> float:
        return self.free + self.tree.evictable() - self.taken

    def state(self) -> str:
        if self.room() <= 0 or self.free + self.tree.evictable() - self.now_taken <= 0:
            return "NO_TOKEN"
        return "OTHER" if self.rest <= 0 or self.rest_prefill <= 0 else "CONTINUE"

    def charge(self, asked: Asked, limit: int) -> None:
        tokens = self.pages(asked.end - asked.prefix)
        self.taken += tokens + self.page + limit
        self.now_taken += tokens + self.page
        self.rest -= tokens
        self.rest_prefill -= tokens

    def add(self, asked: Asked, chosen: list[Asked]) -> str:
        if self.config["ignore_eos"] and not self.tree.on:
            return self.add_ignoring_eos(asked, chosen)
        assert asked.found is not None
        todo, node = len(asked.tokens()) - asked.prefix, asked.found
        self.tree.lock(node, 1)
        result = self.shape(asked, todo)
        self.tree.lock(node, -1)
        if result is not None:
            return result
        self.tree.lock(node, 1)
        asked.node, asked.locked = node, True
        chosen.append(asked)
        whole = asked.end == asked.prefix + todo
        if not whole:
            self.chunked = asked
        self.charge(asked, min(asked.limit, CLIP) if whole else 0)
        return self.state()

    def shape(self, asked: Asked, todo: int) -> str | None:
        if todo + asked.left() + self.page >= self.room():
            return "NO_TOKEN"
        asked.end = asked.prefix + todo
        if self.pages(todo) > self.rest:
            asked.end = (asked.prefix + self.rest // self.page * self.page) // self.page * self.page
            if asked.end <= asked.prefix:
                return "OTHER"
        return None

    def add_ignoring_eos(self, asked: Asked, chosen: list[Asked]) -> str:
        todo = len(asked.tokens())
        input_tokens = self.pages(todo) + self.page
        now = self.free - self.now_taken
        if input_tokens > min(now, self.room()):
            return "NO_TOKEN"

        def state_of(a: Asked) -> tuple[float, int]:
            return a.limit - a.given, len(a.tokens())

        if self.states is None:
            states = [state_of(a) for a in (asked, *self.running, *chosen)]
            self.states = sorted((s for s in states if s[0] > 0), key=lambda s: s[0])
        elif state_of(asked)[0] > 0:
            place = 0
            for place in range(len(self.states)):  # before the last if none is longer: SGLang's own slip
                if state_of(asked)[0] <= self.states[place][0]:
                    break
            self.states.insert(place, state_of(asked))
        freed = 0
        for ended, (left, occupied) in enumerate(self.states):
            alive = len(self.states) - ended
            if now - input_tokens + freed - left * alive <= alive:
                return "NO_TOKEN"
            freed += occupied
        if todo > self.rest and self.rest <= 0:
            return "OTHER"
        chosen.append(asked)
        asked.end = min(todo, self.rest)
        if todo > self.rest:
            self.chunked = asked
        self.charge(asked, min(asked.limit, CLIP) if todo <= self.rest else 0)
        return self.state()

    def sort(self) -> None:
        if not self.tree.on:
            return
        if self.config["policy"] == "lpm" and len(self.waiting) <= 128:
            known: dict[int, float] = {}
            seen: list[tuple[Adapter, list[Any]]] = []
            for asked in self.waiting:
                tokens = asked.tokens()
                found, _ = self.tree.find(asked.adapter, tokens)
                known[asked.id] = -min(found, len(tokens) - 1)
                if found <= 32:
                    if any(a == asked.adapter and len(t) >= 32 and t[:32] == tokens[:32] for a, t in seen):
                        known[asked.id] = float("inf")
                    else:
                        seen.append((asked.adapter, tokens))
            self.waiting.sort(key=lambda asked: known[asked.id])
        else:
            if self.scans % 32 == 0:
                for asked in reversed(self.waiting[:128]):
                    self.tree.find(asked.adapter, asked.tokens())
            self.scans += bool(self.waiting)

    def leave_out_ending(self) -> bool:
        """With the overlapped schedule: those that end by their limit with the result to come."""
        ending = [
            asked
            for asked in self.running
            if self.results and asked in self.results[0].requests and asked.given + 1 >= asked.limit
        ]
        self.running = [asked for asked in self.running if asked not in ending]
        if ending:
            self.full = False
        return bool(ending)

    def decode_step(self) -> Batch | None:
        if not self.running:
            return None
        ending = self.leave_out_ending()
        if not self.running:
            self.full = False
            return None
        if self.decodes_fit(self.running):
            self.ratio = max(self.ratio - self.config["ratio"][2], self.config["ratio"][1])
        elif ending:
            self.full = False
            return None
        else:
            self.retract()
        self.decode(self.running)
        return Batch("decode", self.running)

    def retract(self) -> None:
        order = sorted(self.running, key=lambda a: (a.given, -len(a.prompt)), reverse=True)
        while len(order) > 1:
            asked = order.pop()
            self.release(asked, keep=False)
            self.make_room(20 * len(order))
            asked.retracted, asked.prefix, asked.end, asked.came = True, 0, 0, self.tries
            self.waiting.append(asked)
            self.step["preempted"].append(asked.id)
            if self.decodes_fit(order):
                break
        assert self.decodes_fit(order), "the last one does not fit"
        self.running, self.full = order, False
        given, limits = sum(a.given for a in order), sum(a.limit for a in order)
        self.ratio = min(1.0, (given + 20 * len(order)) / (limits + 1))

    # Adapters ---------------------------------------------------------------------------------------------------------

    def may_join(self, asked: Asked, adapters: set[Adapter]) -> bool:
        if asked.adapter in self.drains and asked.limit > 1.2 * self.still[asked.adapter]:
            return False
        if asked.adapter in adapters:
            return True
        if not self.config["overlap_loading"]:
            return self.pool.fits(adapters | {asked.adapter})
        self.ready_at = {adapter: at for adapter, at in self.ready_at.items() if at > self.tries}
        if asked.adapter in self.ready_at:
            return False
        if asked.adapter in self.pool.slots:
            return True
        wanted = adapters | self.ready_at.keys() | {asked.adapter}
        if self.pool.fits(wanted):
            self.step.setdefault("requested", []).append(self.pool.sorted(wanted))
            self.pool.fetch(wanted)
            self.ready_at[asked.adapter] = self.tries + self.config["overlap_loading"]
        return False

    def update_drains(self) -> None:
        waits: dict[Adapter, int] = {}
        self.still = dict.fromkeys([a.adapter for a in (*self.waiting, *self.running)], 0)
        for asked in self.waiting:
            waits[asked.adapter] = max(waits.get(asked.adapter, 0), self.tries - asked.came)
        for asked in self.running:
            self.still[asked.adapter] = max(self.still[asked.adapter], asked.limit - asked.given)
        running = {asked.adapter for asked in self.running}
        if len(running) >= self.config["slots"]:
            starving = [a for a, wait in waits.items() if wait > self.config["drain"] and a is not None]
            starving = [a for a in starving if a not in self.drains.values()]
            for adapter in sorted(starving, key=lambda a: -waits[a]):
                may_drain = [a for a in self.pool.sorted(running) if a not in self.drains]
                if not may_drain:
                    break
                self.drains[min(may_drain, key=lambda a: self.still[a])] = adapter
        self.drains = {adapter: other for adapter, other in self.drains.items() if adapter in running}

    # The loop ---------------------------------------------------------------------------------------------------------

    def take_result(self, batch: Batch) -> None:
        for asked in batch.requests:
            if asked.done or asked.retracted or asked is batch.chunked:
                continue
            asked.given += 1
            if asked.given == len(asked.answer):
                self.end(asked)
                self.release(asked, keep=True)
            elif batch.kind != "decode" and asked not in batch.decoding:
                self.hand_over(asked, asked.tokens()[: asked.end])
                asked.prefix = asked.end

    def one_try(self) -> None:
        self.receive()
        self.tries += 1
        self.step = {"kind": "none", "try": self.tries, "scheduled": {}, "cached": {}, "preempted": [], "adapters": []}
        self.step |= {"passed": [], "stopped": None, "ratio": round(self.ratio, 6)}
        self.pool.loads, self.pool.evictions, self.tree.thrown_out = [], [], 0
        in_use = lambda: {asked.adapter for asked in self.running if not asked.done}  # noqa: E731
        batch = self.plan()
        running = in_use()
        if batch is not None:
            self.step["kind"] = batch.kind
            for asked in batch.requests:
                decodes = batch.kind == "decode" or asked in batch.decoding
                self.step["scheduled"][asked.id] = 1 if decodes else asked.end - asked.prefix
                if not decodes:
                    self.step["cached"][asked.id] = asked.prefix
            self.step |= {"kv_free": self.free, "kv_evictable": self.tree.evictable()}
            if self.idle:
                self.step["idle_before"] = True
            self.idle = False
            if not self.config["overlap_loading"]:
                adapters = {asked.adapter for asked in batch.requests}
                self.step["adapters"] = self.pool.sorted(adapters)
                self.pool.fetch(adapters)
        self.step["loads"] = [[adapter, 0.0] for adapter in self.pool.loads]
        self.step["evictions"] = [[adapter, adapter in running] for adapter in self.pool.evictions]
        self.step["uncached"] = self.tree.thrown_out
        if batch is not None or self.step["preempted"] or self.pool.loads:
            self.steps.append(self.step)
        last = self.last
        if self.config["overlap_schedule"]:
            if self.results:
                self.take_result(self.results.pop(0))
            if batch is not None:
                self.results.append(replace(batch, requests=list(batch.requests)))
            idle = batch is None and last is None
        else:
            if batch is not None:
                self.take_result(batch)
            idle = batch is None
        if idle and not (self.running or self.waiting or self.chunked or self.results):
            self.ratio = self.config["ratio"][0]
            self.idle = True
        self.last = batch


def steps(config: dict[str, Any], requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps of a record with this config and these requests, whose ``before_*`` and ``finished_step`` it sets."""
    server = Server(config, requests)
    while len(server.asked) < len(requests) or not all(asked.done for asked in server.asked):
        server.one_try()
        assert server.tries < 100_000, "nothing happens"
    return server.steps
