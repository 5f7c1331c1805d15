"""When decoding sequences end, counted in decode steps."""

from __future__ import annotations

from bisect import insort
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import Final

from sim.traffic.request import Request

NEVER: Final = 1 << 61
"""A decode step that never comes."""

_push: Final = heappush  # compiled, constants are found faster than names
_pop: Final = heappop
by_index = attrgetter("index")


class DecodeEnds:
    """The decoding sequences of a batch by ``last_step``.

    :param overruns: a stop token is seen one step late, so a sequence that ends by one computes one token too many.
    :ivar next_step: the step at which the next sequence ends; ``NEVER`` if none decodes.
    """

    def __init__(self, *, overruns: bool = False) -> None:
        self.next_step = NEVER
        self._overruns = overruns
        self._steps = [NEVER]  # a heap of last steps, and of one that is always behind them
        # The sequences of each last step, in the order of their index: a ring with a place for every step that any of
        # them may reach, so that two steps never share one: up to 16 bytes for each token of the longest answer.
        self._ending: list[list[Request] | None] = [None] * 256
        self._mask = 255

    def start(self, requests: list[Request], step: int) -> list[Request]:
        """Let sequences decode that get their next token at ``step``; return those for which it is the last."""
        ended: list[Request] = []
        overruns, ending, mask = self._overruns, self._ending, self._mask
        for request in requests:
            left = request.output_tokens - request.generated - 1
            request.last_step = last = step + left
            if overruns and request.stops:
                left += 1
                last += 1
            if not left:
                ended.append(request)
                continue
            if left > mask:
                self._widen(left)
                ending, mask = self._ending, self._mask
            place = last & mask
            group = ending[place]
            if group is None:
                ending[place] = [request]
                _push(self._steps, last)
                if last < self.next_step:
                    self.next_step = last
            elif group[-1].index < request.index:
                group.append(request)
            else:
                insort(group, request, key=by_index)
        return ended

    def _widen(self, left: int) -> None:
        """Make room for sequences that end this many steps from now."""
        groups = [group for group in self._ending if group is not None]
        size = 1 << left.bit_length()
        self._ending = [None] * size
        self._mask = size - 1
        for group in groups:
            self._ending[self._end_of(group[0]) & self._mask] = group

    def _end_of(self, request: Request) -> int:
        """Return the step at which a sequence ends."""
        return request.last_step + int(self._overruns and request.stops)

    def remove(self, request: Request) -> None:
        """Remove a sequence that leaves before its end."""
        last = self._end_of(request)
        group = self._ending[last & self._mask]
        assert group is not None, "it decodes"
        group.remove(request)
        if not group:
            self._ending[last & self._mask] = None
            self._steps.remove(last)
            heapify(self._steps)
            self.next_step = self._steps[0]

    def pop_next(self) -> list[Request]:
        """Remove and return the sequences that end at ``next_step``, in the order of their index."""
        steps = self._steps
        place = _pop(steps) & self._mask
        self.next_step = steps[0]
        ended = self._ending[place]
        assert ended is not None, "each step of the heap has sequences"
        self._ending[place] = None
        return ended
