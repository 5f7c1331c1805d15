"""When decoding sequences end, counted in decode steps."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from sim.traffic.request import Request


class DecodeEnds:
    """The decoding sequences of a batch by ``last_step``.

    :param running: the sequences of the batch by index.
    """

    def __init__(self, running: dict[int, Request]) -> None:
        self._running = running
        self._ending: dict[int, list[int]] = {}  # indices by last step, none of which is empty
        self._steps: list[int] = []  # a heap of these last steps

    def add(self, requests: list[Request], step: int) -> None:
        """Add sequences that start to decode, but for those that end at this very step; ``last_step`` is set."""
        ending = self._ending
        for request in requests:
            last = request.last_step
            if last in ending:
                ending[last].append(request.index)
            elif last > step:
                ending[last] = [request.index]
                heappush(self._steps, last)

    def remove(self, request: Request) -> None:
        """Remove a sequence that leaves before its end."""
        last = request.last_step
        self._ending[last].remove(request.index)
        if not self._ending[last]:
            del self._ending[last]
            self._steps.remove(last)
            heapify(self._steps)

    def pop_ended(self, step: int) -> list[Request]:
        """Remove and return the sequences that end at ``step``, in the order of their index; none ends before it."""
        if not self._steps or self._steps[0] > step:
            return []
        return list(map(self._running.__getitem__, sorted(self._ending.pop(heappop(self._steps)))))

    def next_end(self) -> int:
        """Return the step at which the next sequence ends; at least one decodes."""
        return self._steps[0]
