"""When decoding sequences end, counted in decode steps."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import Final

from sim.traffic.request import Request

NEVER: Final = 1 << 61
"""A decode step that never comes."""

_by_index = attrgetter("index")


class DecodeEnds:
    """The decoding sequences of a batch by ``last_step``.

    :ivar next_step: the step at which the next sequence ends; ``NEVER`` if none decodes.
    """

    def __init__(self) -> None:
        self.next_step = NEVER
        self._ending: dict[int, list[Request]] = {}  # by last step, none empty
        self._steps = [NEVER]  # a heap of these last steps, and of one that is always behind them

    def start(self, requests: list[Request], step: int) -> list[Request]:
        """Let sequences decode that get their next token at ``step``; return those for which it is the last."""
        ending, ended = self._ending, []
        for request in requests:
            request.last_step = last = step + request.output_tokens - request.generated - 1
            if last == step:
                ended.append(request)
            elif last in ending:
                ending[last].append(request)
            else:
                ending[last] = [request]
                heappush(self._steps, last)
                if last < self.next_step:
                    self.next_step = last
        return ended

    def remove(self, request: Request) -> None:
        """Remove a sequence that leaves before its end."""
        last = request.last_step
        self._ending[last].remove(request)
        if not self._ending[last]:
            del self._ending[last]
            self._steps.remove(last)
            heapify(self._steps)
            self.next_step = self._steps[0]

    def pop_next(self) -> list[Request]:
        """Remove and return the sequences that end at ``next_step``, in the order of their index."""
        steps = self._steps
        step = heappop(steps)
        ended = self._ending[step]
        del self._ending[step]
        self.next_step = steps[0]
        if len(ended) > 1:
            ended.sort(key=_by_index)
        return ended
