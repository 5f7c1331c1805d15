"""The prompts that a router sent to each replica, in blocks: llm-d's approximate prefix index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sim.traffic.request import Request

LEAST_BLOCK: Final = 64
"""Tokens of a block, if those of the engine are smaller; with ``autoTune``, which is on by default."""
INDEX_BLOCKS: Final = 31_250
"""Blocks of each replica that are kept, if its metrics don't say how many it has."""
MOST_TOKENS: Final = 131_072
"""Tokens of a prompt beyond which it is not looked at."""

Block = tuple[int, int, int]
"""The adapter, the key of the run in which the block ends (``Request.shared``), and its last position."""


def blocks_of(request: Request, adapter: int, size: int) -> list[Block]:
    """Return the blocks of a request's prompt, the last one even if it is partly filled.

    Tokens that no other request has get a key of their own: they match nothing, but take room.

    :param size: tokens of a block.
    """
    prompt = min(request.prompt_tokens, MOST_TOKENS)
    rest = request.text_key if request.text_key >= 0 else ~request.index
    found: list[Block] = []
    end = size
    for run_end, key in request.shared:
        while end <= run_end and end <= prompt:
            found.append((adapter, key, end))
            end += size
        if run_end >= prompt > end - size:
            found.append((adapter, key, prompt))
            return found
    while end <= prompt:
        found.append((adapter, rest, end))
        end += size
    if prompt > end - size:
        found.append((adapter, rest, prompt))
    return found


class PrefixIndex:
    """By block, the replicas to which it was sent; each replica has an LRU list of limited length.

    It follows the published one where that surprises: blocks of a prompt are added from the front, so its beginning is
    evicted first; a prompt longer than the list leaves blocks that are never evicted, even when the replica is gone.

    :param capacity: blocks of each replica.
    """

    def __init__(self, replicas: int, capacity: Sequence[int]) -> None:
        self._capacity = capacity
        self._orders: list[dict[Block, None]] = [{} for _ in range(replicas)]  # the last is the newest
        self._masks: dict[Block, int] = {}  # the replicas that have a block

    def matches(self, blocks: Sequence[Block]) -> list[tuple[int, int]]:
        """Return how many leading blocks replicas have: (mask, how many more blocks all of it has) each.

        The walk ends at the first block that no replica has. A replica with a hole counts blocks behind it.
        """
        found: list[tuple[int, int]] = []
        masks, last, count = self._masks, 0, 0
        for block in blocks:
            mask = masks.get(block, 0)
            if mask != last:
                if count:
                    found.append((last, count))
                last, count = mask, 0
            if not mask:
                return found
            count += 1
        if count:
            found.append((last, count))
        return found

    def add(self, blocks: Sequence[Block], replica: int) -> None:
        """Note that a prompt was sent to a replica."""
        order, capacity, masks, bit = self._orders[replica], self._capacity[replica], self._masks, 1 << replica
        for block in blocks:
            if block in order:
                del order[block]
                order[block] = None
                continue
            if len(order) >= capacity:
                self._drop(next(iter(order)), replica)
            order[block] = None
            masks[block] = masks.get(block, 0) | bit
        for block in blocks if len(blocks) > capacity else ():  # those that it has evicted itself
            masks[block] = masks.get(block, 0) | bit

    def _drop(self, block: Block, replica: int) -> None:
        del self._orders[replica][block]
        mask = self._masks.pop(block, 0) & ~(1 << replica)
        if mask:
            self._masks[block] = mask

    def forget(self, replica: int) -> None:
        """Drop what is in the list of a replica that is gone."""
        for block in list(self._orders[replica]):
            self._drop(block, replica)

    def length(self, replica: int) -> int:
        """Return the number of blocks in the list of a replica."""
        return len(self._orders[replica])
