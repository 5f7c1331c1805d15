"""SGLang's KV memory: pages, and a radix tree of what they contain.

Source: SGLang 0.5.23 ``mem_cache/unified_radix_cache.py``, ``unified_cache/unified_tree_core.py``, ``allocator``. A
prompt is known once it, or a chunk of it, has been computed, an answer when its request ends. The tree has a root for
each adapter. A node holds tokens that were always used together; it is split where a lookup or an insert parts ways,
and at the end of a prompt. A request locks its path. When pages lack, leaves without a lock are thrown out whole, the
least recently touched first.
"""

from __future__ import annotations

from bisect import bisect_right
from heapq import heapify, heappop, heappush

from sim.policies.kv.known_blocks import NO_END
from sim.policies.kv.kv_store import KvStore, held_tokens
from sim.traffic.request import Request, Runs


class Node:
    """Tokens from ``start`` to ``end`` of all requests that pass through it.

    :ivar runs: those of a request that has these tokens, as ``Request.shared``, up to the end of the answer.
    :ivar children: by the key of the last token of their first page.
    :ivar locks: requests that run and hold it, or a node below it.
    :ivar touched: when it was touched last; -1: it was thrown out.
    """

    def __init__(self, parent: Node | None, start: int, end: int, runs: Runs, touched: int) -> None:
        self.parent = parent
        self.start, self.end, self.runs = start, end, runs
        self.children: dict[int, Node] = {}
        self.locks = 0
        self.touched = touched
        self.outdated = False


class Held:
    """What a request of the batch holds of the tree.

    :ivar root: of its adapter's tree as it joined; ``node``: the last of its path.
    :ivar tokens: of the path; pages behind it belong to the request alone.
    :ivar keeps: whether its answer stays known when it leaves.
    """

    def __init__(self, root: Node, node: Node, tokens: int) -> None:
        self.root, self.node, self.tokens = root, node, tokens
        self.keeps = True
        self.outdated = False


def key_at(runs: Runs, position: int) -> int:
    """Return the key of the token at this position."""
    return runs[bisect_right(runs, (position, NO_END))][1]


def path_of(request: Request) -> Runs:
    """Return all runs of a request's tokens, those of its own included."""
    own = request.text_key if request.text_key >= 0 else -2 - request.index
    return (*request.shared, (NO_END, own))


class RadixMemory(KvStore):
    """Pages of ``size`` tokens. Tokens are counted, and pages are taken whole.

    :param caches: whether there is a tree; otherwise pages are free once their request has left.
    :ivar free: tokens of free pages; ``evictable``: of nodes without a lock.
    :ivar thrown_out: tokens that were thrown out of the tree.
    """

    def __init__(self, total: int, size: int, *, caches: bool) -> None:
        super().__init__(total, size)
        self.tree = caches
        self.free = total * size
        self.evictable = 0
        self.thrown_out = 0
        self._phases = [0] * size  # decoding sequences by (tokens that they hold - steps so far) % size
        self._peak_tokens = 0
        self._clock = 0
        self._nodes = 0
        self._roots: dict[int, Node] = {}
        self._leaves: list[tuple[int, Node]] = []  # a heap; those that were touched or locked since are stale
        self._held: dict[int, Held] = {}
        self._stopped: dict[int, int] = {}  # tokens of requests that decode no more, but have not left yet
        self._found: Held | None = None
        self._outdated_hits: set[int] = set()

    @property
    def evicted_blocks(self) -> int:
        return self.thrown_out // self.size

    def pages(self, tokens: int) -> int:
        """Return the tokens of the pages that so many tokens take."""
        return -(-tokens // self.size) * self.size

    # The tree -------------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        self._clock += 1
        return self._clock

    def _root(self, adapter: int) -> Node:
        root = self._roots.get(adapter)
        if root is None:
            root = self._roots[adapter] = Node(None, 0, 0, (), 0)
        return root

    def _touch(self, node: Node) -> None:
        node.touched = self._now()
        self._offer(node)

    def _offer(self, node: Node) -> None:
        """Let a node be thrown out if it is a leaf without a lock."""
        if not node.children and not node.locks and node.parent is not None:
            heappush(self._leaves, (node.touched, node))
            if len(self._leaves) > 2 * self._nodes + 64:
                self._leaves = [entry for entry in self._leaves if self._may_go(entry)]
                heapify(self._leaves)

    def _may_go(self, entry: tuple[int, Node]) -> bool:
        touched, node = entry
        return node.touched == touched and not node.children and not node.locks

    def _common(self, node: Node, runs: Runs, limit: int) -> int:
        """Return up to which position a node has the same tokens, in whole pages."""
        position, end = node.start, min(node.end, limit)
        mine, other = bisect_right(node.runs, (position, NO_END)), bisect_right(runs, (position, NO_END))
        while position < end and node.runs[mine][1] == runs[other][1]:
            ends, ends_other = node.runs[mine][0], runs[other][0]
            position = min(ends, ends_other)
            mine += ends <= position
            other += ends_other <= position
        return min(position, end) // self.size * self.size

    def _child(self, node: Node, runs: Runs, limit: int) -> Node | None:
        last = node.end + self.size - 1
        return node.children.get(key_at(runs, last)) if last < limit else None

    def _split(self, node: Node, at: int) -> Node:
        """Split a node; return its head. The tail counts as touched after it."""
        parent = node.parent
        assert parent is not None, "a root has no tokens"
        head = Node(parent, node.start, at, node.runs, self._now())
        head.locks, head.outdated = node.locks, node.outdated
        parent.children[key_at(node.runs, node.start + self.size - 1)] = head
        head.children[key_at(node.runs, at + self.size - 1)] = node
        node.parent, node.start = head, at
        self._nodes += 1
        self._touch(node)
        return head

    def _find(self, root: Node, runs: Runs, limit: int) -> Node:
        """Return the last node of the path that these tokens have; touches all of it, the end last."""
        path: list[Node] = []
        node = root
        while (child := self._child(node, runs, limit)) is not None:
            at = self._common(child, runs, limit)
            if at < child.end:
                node = self._split(child, at)
                path.append(node)
                break
            node = child
            path.append(node)
        for each in path:
            self._touch(each)
        return node

    def _insert(self, held: Held, runs: Runs, limit: int) -> tuple[int, Node]:
        """Make tokens known up to ``limit``; return how many were, and the last node."""
        node = held.root
        while (child := self._child(node, runs, limit)) is not None:
            self._touch(child)
            at = self._common(child, runs, limit)
            node = self._split(child, at) if at < child.end else child
        known = node.end
        if known < limit:
            leaf = Node(node, known, limit, runs, self._now())
            leaf.outdated = held.outdated
            node.children[key_at(runs, known + self.size - 1)] = leaf
            self._nodes += 1
            self.evictable += limit - known
            node = leaf
        return known, node

    def _lock(self, node: Node) -> None:
        while node.parent is not None:
            if not node.locks:
                self.evictable -= node.end - node.start
            node.locks += 1
            node = node.parent

    def _unlock(self, node: Node) -> None:
        while node.parent is not None:
            node.locks -= 1
            if not node.locks:
                self.evictable += node.end - node.start
                self._offer(node)
            node = node.parent

    def make_room(self, tokens: int) -> None:
        """Throw out leaves until so many tokens are free, or none is left."""
        while self.free < tokens and self._leaves:
            entry = heappop(self._leaves)
            if not self._may_go(entry):
                continue
            node = entry[1]
            parent, size = node.parent, node.end - node.start
            assert parent is not None, "a root is never offered"
            del parent.children[key_at(node.runs, node.start + self.size - 1)]
            node.touched = -1
            self._nodes -= 1
            self.free += size
            self.evictable -= size
            self.thrown_out += size
            self._offer(parent)

    # Prompts --------------------------------------------------------------------------------------------------------

    def cached_tokens(self, request: Request) -> int:
        """Return how many tokens of a request that would join are known; touches their path."""
        root = self._root(request.adapter)
        limit = request.prompt_tokens + request.generated - 1
        node = self._find(root, path_of(request), limit) if self.tree else root
        self._found = Held(root, node, node.end)
        return node.end

    def known_tokens(self, request: Request) -> int:
        return -1 if self.tree else 0

    def room_beside_found(self) -> int:
        """Return the tokens that are free or evictable, without what the last lookup found."""
        found = self._found
        assert found is not None, "looked up before"
        self._lock(found.node)
        room = self.free + self.evictable
        self._unlock(found.node)
        return room

    def keep_found(self, request: Request) -> None:
        """Let a request that joins hold what the last lookup found."""
        found = self._found
        assert found is not None, "looked up before"
        self._lock(found.node)
        self._held[request.index] = found
        if not request.preemptions:
            request.cached_tokens = found.tokens
        node = found.node
        while node.parent is not None and not node.outdated:
            node = node.parent
        if node.outdated:
            self._outdated_hits.add(request.index)

    def touch(self, request: Request) -> int:
        """Touch what is known of a waiting request; return how many tokens that are."""
        return self._find(self._root(request.adapter), path_of(request), request.prompt_tokens + request.generated).end

    def take(self, request: Request, tokens: int, room_for: int, cached: int = 0) -> bool:
        held = request.context + cached
        self.free -= self.pages(held + tokens) - self.pages(held)
        assert self.free >= 0, "room was made"
        return True

    def know(self, request: Request, tokens: int) -> None:
        """Make known the first tokens of a request of the batch."""
        if not self.tree:
            return
        held, runs = self._held[request.index], path_of(request)
        limit = tokens // self.size * self.size
        known, node = self._insert(held, runs, limit)
        self.free += max(0, known - held.tokens)
        prompt = request.prompt_tokens // self.size * self.size
        if 0 < prompt < limit:
            self._insert(held, runs, prompt)
        self._lock(node)
        self._unlock(held.node)
        held.node, held.tokens = node, limit

    # Decodes --------------------------------------------------------------------------------------------------------

    def _phase(self, held: int) -> int:
        return (held - self._step) % self.size

    def _taken(self, steps: int) -> int:
        """Return the tokens of the pages that decodes take in so many steps."""
        size = self.size
        if size == 1:
            return steps * self.decoding
        rounds, rest = divmod(steps, size)
        starts = [self._phases[(-self._step - step) % size] for step in range(rest)]
        return size * (rounds * self.decoding + sum(starts))

    def reserve_decodes(self) -> bool:
        needed = self._taken(1)
        self.make_room(needed)
        if self.free < needed:
            return False
        self.make_room(self.size * self.decoding)
        return True

    def start_decodes(self, requests: list[Request]) -> None:
        self.decoding += len(requests)
        for request in requests:
            self.tokens += request.context
            self._phases[self._phase(request.context)] += 1

    def grow(self, steps: int) -> None:
        if not steps:
            return
        if steps > 1:
            self.make_room(self._taken(steps - 1) + self.size * self.decoding)
        self.free -= self._taken(steps)
        self._step += steps
        self.tokens += steps * self.decoding
        self._peak_tokens = max(self._peak_tokens, self.tokens)

    def steps_that_fit(self, steps: int) -> int:
        room, each = self.free + self.evictable, self.size * self.decoding
        low, high = 1, steps
        while low < high:
            middle = (low + high + 1) // 2
            if self._taken(middle - 1) + each <= room:
                low = middle
            else:
                high = middle - 1
        return low

    def stop_decoding(self, request: Request, overrun: int = 0) -> None:
        """Let a request decode no more that leaves later; it still takes ``overrun`` tokens of the step under way."""
        held = held_tokens(request, self._step)
        self.decoding -= 1
        self.tokens -= held
        self._phases[self._phase(held)] -= 1
        self._stopped[request.index] = held + overrun
        self.free -= self.pages(held + overrun) - self.pages(held)

    def free_blocks(self) -> int:
        return (self.free + self.evictable) // self.size

    def give_back(self, requests: list[Request], *, early: bool = False) -> None:
        for request in requests:
            if request.last_step >= 0 and request.index not in self._stopped:
                self.stop_decoding(request)
            tokens = self._stopped.pop(request.index, request.context)
            if self._held[request.index].keeps:
                self.know(request, tokens)
            held = self._held.pop(request.index)
            self.free += self.pages(tokens) - held.tokens
            self._unlock(held.node)

    def drop_answer(self, request: Request) -> None:
        """Let nothing more of a request become known when it leaves."""
        self._held[request.index].keeps = False

    # The rest -------------------------------------------------------------------------------------------------------

    def note_peak(self, steps: int) -> None:
        self._peak_tokens = max(self._peak_tokens, self.tokens + steps * self.decoding)

    def peak_share(self) -> float:
        return self._peak_tokens / (self.total * self.size)

    def _of(self, root: Node | None) -> list[Node]:
        nodes = [] if root is None else list(root.children.values())
        for node in nodes:
            nodes.extend(node.children.values())
        return nodes

    def forget(self, adapter: int) -> None:
        self._roots.pop(adapter, None)  # what hangs on the old root is thrown out in its turn

    def outdate(self, adapter: int) -> None:
        for node in self._of(self._roots.get(adapter)):
            node.outdated = True
        for request in self.running:
            if request.adapter == adapter:
                self._held[request.index].outdated = True

    def found_outdated(self, index: int) -> bool:
        if index not in self._outdated_hits:
            return False
        self._outdated_hits.remove(index)
        return True

    def check_integrity(self) -> None:
        assert self._held.keys() == {request.index for request in self.running}
        own = 0
        for request in self.running:
            index, decodes = request.index, request.last_step >= 0
            tokens = held_tokens(request, self._step) if decodes else request.context
            own += self.pages(self._stopped.get(index, tokens)) - self._held[index].tokens
        roots = {id(root): root for root in (*self._roots.values(), *(held.root for held in self._held.values()))}
        nodes = [node for root in roots.values() for node in self._of(root)]
        for node in nodes:
            assert node.parent is not None
            assert node.parent.end == node.start < node.end
            assert node.parent.parent is None or node.parent.locks >= node.locks
        if len(nodes) == self._nodes:  # no root was forgotten
            known = sum(node.end - node.start for node in nodes)
            assert self.free + known + own == self.total * self.size
            assert self.evictable == sum(node.end - node.start for node in nodes if not node.locks)
        others = sum(r.last_step < 0 or r.index in self._stopped for r in self.running)
        assert (self.decoding, sum(self._phases)) == (len(self.running) - others, self.decoding)
