"""When decoding sequences end, counted in decode steps."""

from __future__ import annotations

from heapq import heappop, heappush

from sim.traffic.request import Request

INDEX_BITS = 40
INDEX_MASK = (1 << INDEX_BITS) - 1


class DecodeEnds:
    """The decoding sequences of a batch by ``last_step``, the earliest first.

    :param running: the sequences of the batch by index. An entry counts only as long as its sequence is in there and
        still ends at that step, so a preemption does not have to search for it here.
    """

    def __init__(self, running: dict[int, Request]) -> None:
        self._running = running
        self._heap: list[int] = []  # (last step, index), packed into one number: faster to compare than tuples

    def add(self, requests: list[Request]) -> None:
        """Add sequences that start to decode; their ``last_step`` is set."""
        heap = self._heap
        for request in requests:
            heappush(heap, request.last_step << INDEX_BITS | request.index)

    def pop_ended(self, step: int) -> list[Request]:
        """Remove and return the sequences that end at ``step`` of the decode counter; none ends before it."""
        heap, running, ended, last = self._heap, self._running, [], -1
        while heap and heap[0] >> INDEX_BITS <= step:
            entry = heappop(heap)
            if entry == last:
                continue  # it was preempted, and ends at the same step as it would have without
            last = entry
            request = running.get(entry & INDEX_MASK)
            if request is not None and request.last_step == step:
                ended.append(request)
        return ended

    def next_end(self) -> int:
        """Return the step at which the next sequence ends; at least one decodes."""
        heap = self._heap
        while True:
            end = heap[0] >> INDEX_BITS
            request = self._running.get(heap[0] & INDEX_MASK)
            if request is not None and request.last_step == end:
                return end
            heappop(heap)
